"""`spark-rl data convert`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer

from spark_rl.cli.rows import Output, progress, say
from spark_rl.data.convert import FORMATS, Picture, Question, Unusable, detect
from spark_rl.data.tables import Table, open_tables
from spark_rl.images import suffix_of
from spark_rl.jsonl import MAX_ROW_BYTES

data = typer.Typer(help="Prepare data.", no_args_is_help=True)


@data.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="JSON, JSONL, CSV or Parquet file, or a pattern for several.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="JSONL file for the rows.")],
    format: Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; by its columns when left out.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="For images that stand in the data; OUTPUT's name and _images if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Convert rows with images that others published to rows that train here.

    Formats: spark (internlm/Spark-Data), virl39k (TIGER-Lab/ViRL39K), easyr1
    (hiyouga/geometry3k and others of EasyR1), verl (what its preprocessing
    writes).

    A row comes out as {"id", "prompt", "answer", "images", "source"}, with one
    <image> in the prompt where each image goes, and with the "verifier" where it
    is not math. Paths of images are looked for from INPUT's folder. Rows that
    cannot be converted are left out, counted, and named by an example.

    Examples:

        spark-rl data convert infer_data_ViRL_19k.json spark.jsonl

        spark-rl data convert 'data/train-*.parquet' geometry.jsonl --images pictures
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"--format {format}: is none; known are {', '.join(FORMATS)}")
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: rows are written as JSON lines; name a file that ends with .jsonl")
    tables = open_tables(source, split="train", subset=None)
    for table in tables:
        if out.exists() and Path(table.place).exists() and out.samefile(table.place):
            raise ValueError(f"{out}: is the file that is read; name another")
    name = format or _detected(tables)
    left_out = LeftOut()
    num_rows = 0
    total = sum(map(len, tables))
    with (
        ImageFolder(images or out.with_name(f"{out.stem}_images"), out.parent) as folder,
        Output(out, None, option="") as output,
        progress("convert", visible=True, total=total) as advance,
    ):
        for table in tables:
            for index in range(len(table)):
                try:
                    output.write(_converted(table, index, name, folder))
                    num_rows += 1
                except Unusable as problem:
                    left_out.add(problem, table.where(index))
                advance()
        if not num_rows:
            raise ValueError(f"{source}: no row could be converted as {name}: {left_out}")
        folder.publish()
    if as_json:
        report = {"format": name, "rows": num_rows, "images_written": folder.num_images, "left_out": left_out.columns()}
        print(json.dumps(report, ensure_ascii=False))
    else:
        written = f", {folder.num_images:,} images written to {folder.path}" if folder.num_images else ""
        missing = f"; {left_out.total:,} left out: {left_out}" if left_out.total else ""
        say(f"{num_rows:,} rows of {total:,} ({name}){written}{missing}")


class LeftOut:
    """Rows that could not be converted, by the reason, with the first of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, problem: Unusable, where: str) -> None:
        self._counts[problem.kind] += 1
        self._first.setdefault(problem.kind, where + f": {problem.detail}" * bool(problem.detail))

    @property
    def total(self) -> int:
        return self._counts.total()

    def columns(self) -> list[dict[str, Any]]:
        """As JSON, the most frequent reason first."""
        counts = self._counts.most_common()
        return [{"reason": kind, "rows": count, "first": self._first[kind]} for kind, count in counts]

    def __str__(self) -> str:
        return ", ".join(f"{each['rows']:,} with {each['reason']} (first {each['first']})" for each in self.columns())


def _detected(tables: Sequence[Table]) -> str:
    """The format of the first row."""
    table = tables[0]
    try:
        row = table[0]
    except ValueError as error:
        raise ValueError(f"{table.where(0)}: {error}") from None
    columns = list(row) if isinstance(row, dict) else []
    if name := detect(columns):
        return name
    found = f"the columns {', '.join(map(str, columns[:12]))}" if columns else "rows that are no objects"
    raise ValueError(
        f"{table.place}: cannot tell its format from {found}; name it with --format ({', '.join(FORMATS)})"
    )


def _converted(table: Table, index: int, format: str, folder: ImageFolder) -> dict[str, Any]:
    """A row of ours.

    Raises:
        Unusable: the row cannot be converted.
    """
    try:
        row = table[index]
    except ValueError as error:
        raise Unusable("text that is no row", error) from None
    if not isinstance(row, dict):
        raise Unusable("text that is no row", "not an object")
    question: Question = FORMATS[format].question(row)
    beside = Path(table.place).parent
    paths = [folder.path_of(image, beside) for image in question.images]
    made = question.row(f"{table.name}-{index + 1}", table.name, paths)
    if len(json.dumps(made, ensure_ascii=False).encode()) >= MAX_ROW_BYTES:
        raise Unusable("a row that is too long")
    return made


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
            Unusable: it is not there, or no image.
        """
        if isinstance(image, bytes):
            suffix = suffix_of(image)
            if suffix is None:
                raise Unusable("bytes that are no image", image[:12])
            name = hashlib.sha256(image).hexdigest()[:24] + f".{suffix}"
            if name not in self._names:
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
            else:
                made.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        try:
            self._temporary.mkdir(exist_ok=True)
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
        with file.open("rb") as opened:
            head = opened.read(16)
    except OSError as error:
        raise Unusable("an image that cannot be read", f"{given} ({error.strerror})") from None
    if suffix_of(head) is None:
        raise Unusable("a file that is no image", given)
    return file
