"""What verbs that stream JSONL share: rows in, rows out, in constant memory, and one sentence for every mistake."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from rich.console import Console

from spark_rl.config import VerifyConfig, load_inference
from spark_rl.jsonl import MAX_ROW_BYTES, read_row
from spark_rl.verify import Format, check_trusted, format_of, resolve

Row = dict[str, Any]
T = TypeVar("T")

_NAMES = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}


def take(row: Row, key: str, *kinds: type, default: Any = None) -> Any:
    """A key's value, which must be of one of these kinds; no `default` makes it a must.

    Raises:
        ValueError: it is missing or of another kind.
    """
    value = row.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"has no {key!r}; add it")
        return default
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = " or ".join(dict.fromkeys(_NAMES[kind] for kind in kinds))
        raise ValueError(f"{key!r} must be {wanted}, not {json.dumps(value)[:40]}")
    return value


RIGHT_AT = "Reward from which on an answer is right: on another scale than 0 to 1."
"""What the option `--right-at` says."""
FORMAT = "How responses state answers: boxed, tags, hash, phrase, last_number, json:<key>, or a regular expression."
"""What the option `--format` says."""


def take_format(name: str) -> Format:
    """The format that `--format` names.

    Raises:
        ValueError: there is none.
    """
    try:
        return format_of(name)
    except ValueError as error:
        raise ValueError(f"--format: {error}") from None


def check_right_at(right_at: float) -> None:
    """Refuse what no reward can reach, or every one.

    Raises:
        ValueError: it is no finite number.
    """
    if not math.isfinite(right_at):
        raise ValueError(f"--right-at {right_at}: must be a number, the reward from which on an answer is right")


def take_verifier(row: Row, default: str) -> str:
    """The verifier of a row.

    Raises:
        ValueError: it is unknown, or a function other than the default.
    """
    name: str = take(row, "verifier", str, default=default)
    resolve(name)
    check_trusted(name, default)
    return name


def file_and_settings(file: str | None, settings: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Of positional arguments the file, which may have been left out before `section.key=value`, and the settings."""
    given = list(settings or [])
    if file and re.match(r"[\w.]+=", file):
        return None, [file, *given]
    return file, given


def verify_settings(overrides: Sequence[str], **values: Any) -> VerifyConfig:
    """How a verb that runs no model has answers graded: these values, then the overrides.

    Raises:
        ValueError: as `load_inference`, or an override is of another section.
    """
    for override in overrides:
        if not override.startswith("verify."):
            raise ValueError(
                f"{override!r} is no setting of grading; give verify.key=value, or, where it is a second file, pipe "
                "both: cat A B | spark-rl verify"
            )
    return load_inference(overrides, verify=values).verify


def check_pictures(question: str | None, images: Sequence[str] | None, file: str | None) -> None:
    """A second picture after `--image a.png` would be read as the file of rows."""
    if question is not None and images and file:
        raise ValueError(
            f"{file} is read as the file of rows, beside which --question has no place; give one --image for each "
            "picture, and no file"
        )


def check_summary(as_json: bool, out: Path | None) -> None:
    """A summary on standard output must not stand among the rows."""
    if as_json and out is None:
        raise ValueError("--json prints a summary where the rows would go; name a file for them with --out")


class Input:
    """The rows of a JSONL file, or of standard input when the file is `-` or not given."""

    def __init__(self, file: str | None, skip_bad: bool = False) -> None:
        if file is None and sys.stdin.isatty():
            raise ValueError("there is nothing to read; name a JSONL file, or pipe rows in")
        self.path = None if file in (None, "-") else Path(str(file))
        self.name = str(self.path or "standard input")
        self.skip_bad = skip_bad
        self.num_bad = 0

    def num_lines(self) -> int | None:
        """The lines of a regular file, which are rows but for blank ones; None for a stream."""
        if self.path is None or not self.path.is_file():
            return None
        count, end = 0, b"\n"
        try:
            with self.path.open("rb", buffering=0) as file:
                while block := file.read(2**20):
                    count, end = count + block.count(b"\n"), block[-1:]
        except OSError:
            return None  # reading says it better
        return count + (end != b"\n")

    def read(self, parse: Callable[[Row, int], T]) -> Iterator[T]:
        """What `parse` makes of each row and its number; blank lines are no rows, but count.

        Raises:
            ValueError: the file cannot be read, or (unless they are skipped and counted) a row cannot.
        """
        for number, line in enumerate(self._lines(), start=1):
            if not line.strip():
                continue
            try:
                parsed = parse(_row(line), number)
            except ValueError as error:
                self.refuse(number, str(error))
            else:
                yield parsed

    def refuse(self, number: int, reason: str) -> None:
        """Count a bad row, which unless such are left out is the end.

        Raises:
            ValueError: as `read`.
        """
        self.num_bad += 1
        if not self.skip_bad:
            raise ValueError(f"{self.name}, row {number}: {reason} (--skip-bad leaves such rows out)") from None

    def _lines(self) -> Iterator[bytes]:
        """Lines, of which too long ones come cut off: memory is constant."""
        try:
            with self.path.open("rb") if self.path else open(0, "rb", closefd=False) as file:
                while line := file.readline(MAX_ROW_BYTES + 1):
                    yield line
                    while _is_cut(line):
                        line = file.readline(MAX_ROW_BYTES + 1)
        except OSError as error:
            raise ValueError(f"{self.name}: cannot be read ({error.strerror}); name a JSONL file") from None


def _is_cut(line: bytes) -> bool:
    return len(line) > MAX_ROW_BYTES and not line.endswith(b"\n")


def _row(line: bytes) -> Row:
    row = read_row(line, finite=True)
    if not isinstance(row, dict):
        raise ValueError("must be a JSON object; write one a line")
    return row


class Output:
    """Rows to standard output, or to a file that is there whole or not at all.

    A file is written under another name beside it and renamed at the end. What is no regular file (`/dev/stdout`, a
    named pipe) is written to directly.
    """

    def __init__(self, path: Path | None, source: Input | None, option: str = "--out ") -> None:
        """`option` is what messages put before the path."""
        self.path = path
        self.name = f"{option}{path}" if path else "standard output"
        self._temporary: Path | None = None
        if path and source and source.path and path.exists() and source.path.exists() and path.samefile(source.path):
            raise ValueError(f"{self.name}: is the file that is read; name another")

    def __enter__(self) -> Self:
        with self._named():
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path is None:
                self._file: BinaryIO = sys.stdout.buffer
            elif self.path.exists() and not self.path.is_file():
                self._file = self.path.open("wb")
            else:
                self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
                self._file = self._temporary.open("wb")
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._named():
            self._file.write(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = False
        try:
            if kind is None:
                self._finish()
                finished = True
        finally:
            if not finished:
                self._abandon()

    def _finish(self) -> None:
        with self._named():
            self._file.flush()
            if self.path:
                self._file.close()
            if self._temporary and self.path:
                self._temporary.replace(self.path)

    def _abandon(self) -> None:
        """Leave nothing behind: no half a file, and no buffer that would be flushed (in vain, aloud) at exit."""
        if self.path is None:
            try:
                self._file.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())
            return
        with suppress(OSError):
            self._file.close()
        if self._temporary:
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # who reads has seen enough: leave quietly
            raise
        except OSError as error:
            raise ValueError(
                f"{self.name}: cannot be written ({error.strerror}); make room, or name another file"
            ) from None


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def say(line: str) -> None:
    """One line on standard error."""
    Console(stderr=True, emoji=False).print(line, markup=False, highlight=False, soft_wrap=True)
