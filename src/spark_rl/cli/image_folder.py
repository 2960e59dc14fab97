"""The images of `spark-rl data convert`: files where they stand in the data, paths where they are files already."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from spark_rl.data.convert import Picture, Unusable
from spark_rl.images import ImageError, reference, suffix_of
from spark_rl.images.decode import decoded


class ImageFolder:
    """Where images that stand in the data become files: all of them at the end, or none.

    Args:
        base: the folder from which paths are given where they lie in it.
    """

    def __init__(self, path: Path, base: Path) -> None:
        self.path, self.base = path, Path(os.path.abspath(base))
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._names: set[str] = set()
        self._made: list[Path] = []
        """What stands there since `publish`, and did not before."""

    @property
    def num_images(self) -> int:
        return len(self._names)

    def __enter__(self) -> Self:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--images {self.path}: is a file; name a folder")
        return self

    def path_of(self, image: Picture, beside: Path) -> str:
        """The path that a row gives for an image; of bytes, that of their file to be.

        Args:
            beside: the folder that relative paths are in.

        Raises:
            Unusable: it is not there, or no image that training could use.
        """
        if isinstance(image, bytes):
            suffix = suffix_of(image)
            if suffix is None:
                raise Unusable("bytes that are no image", image[:12])
            name = hashlib.sha256(image).hexdigest()[:24] + f".{suffix}"
            if name not in self._names:
                try:
                    decoded(image)
                except ImageError as error:
                    raise Unusable("an image that cannot be used", f"it {error}") from None
                self._write(name, image)
            found = self.path / name
        else:
            found = _find(image, beside)
        path = Path(os.path.abspath(found))
        return (path.relative_to(self.base) if path.is_relative_to(self.base) else path).as_posix()

    def publish(self) -> None:
        """Give the folder its name, or its files to the folder that is there."""
        if not self._names:
            return
        try:
            if not self.path.exists():
                self._made.append(self.path)
                self._temporary.rename(self.path)
                return
            for file in self._temporary.iterdir():
                target = self.path / file.name
                if not target.exists():
                    self._made.append(target)
                file.replace(target)
            self._temporary.rmdir()
        except OSError as error:
            raise self._unwritable(error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        for made in (self._temporary, *self._made):
            if made.is_dir():
                shutil.rmtree(made, ignore_errors=True)
            elif made.exists():
                made.unlink()

    def _write(self, name: str, content: bytes) -> None:
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            (self._temporary / name).write_bytes(content)
        except OSError as error:
            raise self._unwritable(error) from None
        self._names.add(name)

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(
            f"--images {self.path}: cannot be written ({error.strerror}); make room, or name another folder"
        )


def _find(given: str, beside: Path) -> Path:
    """The file of a path. An absolute one, of the machine on which the data was made, is also looked for by its end."""
    path = Path(given)
    ends = [path]
    if path.is_absolute():
        ends += [Path(*path.parts[start:]) for start in range(1, len(path.parts) - 1)]
    for end in ends:
        file = beside / end
        if os.path.isfile(file):
            break
    else:
        raise Unusable("an image that is not there", given)
    try:
        reference(file, Path())
    except ImageError as error:
        raise Unusable("an image that cannot be used", error) from None
    return file
