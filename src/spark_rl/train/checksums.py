"""Folders whose every byte is checked: their hashes are written last, and what does not match them is not read.

`checksums.txt` has a line `hash  name` for each file and ends in the hash of these lines, so that no byte of the folder
can change unnoticed. The hash is xxh3 of 64 bits, faster than any disk (a checkpoint of 7B parameters has 84 GB). It
tells damage, not forgery; against that helps that nothing in a checkpoint is code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xxhash import xxh3_64

NAME = "checksums.txt"
_BLOCK = 2**22
"""Bytes read at once."""


def seal(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the hashes of all files under a folder.

    Args:
        known: those that need not be computed, by the file's path in the folder.
    """
    known = known or {}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{known.get(name) or hash_of(folder / name)}  {name}\n" for name in names if name != NAME)
    (folder / NAME).write_bytes(f"{lines}{xxh3_64(lines.encode()).hexdigest()}\n".encode())


def flaw(folder: Path, part: slice = slice(None)) -> str | None:
    """What is wrong with a sealed folder, the file named; None if each of its files is what was written.

    Args:
        part: which of the files to look at, where several processes share the work.
    """
    try:
        *lines, last = (folder / NAME).read_bytes().splitlines(keepends=True) or [b""]
    except FileNotFoundError:
        return f"{NAME} is missing"
    except OSError as error:
        return f"{NAME} cannot be read: {error.strerror}"
    if last != xxh3_64(b"".join(lines)).hexdigest().encode() + b"\n":
        return f"{NAME} is not what was written"
    for line in lines[part]:
        was, name = line.decode().rstrip("\n").split("  ", 1)
        try:
            if hash_of(folder / name) != was:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def hash_of(path: Path) -> str:
    """Of a file's content."""
    digest, block = xxh3_64(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()
