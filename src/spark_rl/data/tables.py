"""Raw rows with random access, so that a file may be larger than memory and still be shuffled as a whole.

JSONL and CSV files are indexed by the byte at which each row starts (8 bytes of memory a row) and read row by row,
which also is what lets a message name the row. Parquet files and Hub data sets are opened through `datasets`, which
maps them from disk. Only a JSON array is read whole.
"""

from __future__ import annotations

import csv
import errno
import glob
import io
import logging
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from spark_rl.config import FILE_SUFFIXES
from spark_rl.jsonl import MAX_ROW_BYTES, decoded, parse_json, read_row, row_text, whole


class Table(Protocol):
    """Rows of one file or data set. Reading a bad one raises ValueError with the reason, but not the place."""

    name: str
    """Short name for metrics: the file's stem, the data set's name."""
    place: str
    """What messages call it: the path, or the data set and its split."""
    folder: Path
    """What paths in its rows are relative to: the file's folder, or the current one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def where(self, index: int) -> str:
        """The row's place, as messages name it."""
        ...


class LineTable:
    """A JSONL or CSV file, indexed by where its rows start."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.place, self.folder = path, path.stem, str(path), path.parent
        self.is_csv = path.suffix in (".csv", ".tsv")
        self._file = _open(path)
        self._starts = array("q")
        self._header: list[str] = []
        self._counted = (0, 0)
        """A byte and the line breaks before it: where the next count of lines may begin."""
        rows = self._csv_rows() if self.is_csv else self._json_rows()
        for start in rows:
            self._starts.append(start)
        self._end = self._file.tell()
        if not self._starts:
            raise ValueError(_no_rows(path))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Any:
        start = self._starts[index]
        end = self._starts[index + 1] if index + 1 < len(self) else self._end
        raw = os.pread(self._file.fileno(), min(end - start, MAX_ROW_BYTES + 1), start)
        return self._csv_row(row_text(raw)) if self.is_csv else read_row(raw)

    def where(self, index: int) -> str:
        if self.is_csv:
            return f"{self.path}, row {index + 1}"
        start = self._starts[index]
        position, lines = self._counted if self._counted[0] <= start else (0, 0)
        while block := os.pread(self._file.fileno(), min(2**20, start - position), position):
            position, lines = position + len(block), lines + block.count(b"\n")
        self._counted = (position, lines)
        return f"{self.path}, row {lines + 1}"

    def _json_rows(self) -> Iterator[int]:
        start, at_start = 0, True
        while piece := self._file.readline(2**20):  # a file without line breaks must not be read whole
            if at_start and not piece.isspace():
                yield start
            start, at_start = start + len(piece), piece.endswith(b"\n")

    def _csv_rows(self) -> Iterator[int]:
        """A quoted field may hold line breaks: the csv module says where a row ends."""
        position = 0

        def lines() -> Iterator[str]:
            nonlocal position
            for line in self._file:
                position += len(line)
                try:
                    yield line.decode("utf-8-sig")
                except UnicodeDecodeError:
                    start = position - len(line)
                    raise ValueError(f"{self.path}: is not UTF-8 text after byte {start}; convert it") from None

        csv.field_size_limit(MAX_ROW_BYTES)
        header = self._file.readline().decode("utf-8-sig", errors="replace")
        self._delimiter = max(",;\t", key=header.count)  # spreadsheets write any of them, by country
        self._file.seek(0)
        reader, start, first_line = csv.reader(lines(), delimiter=self._delimiter, strict=True), 0, 1
        try:
            for row in reader:
                if not self._header:
                    self._header = [name.strip() for name in row]
                    if twice := [name for name in self._header if name and self._header.count(name) > 1]:
                        raise ValueError(f"{self.path}: the header names {twice[0]!r} twice; rename one of the columns")
                elif any(field.strip() for field in row):
                    yield start
                start, first_line = position, reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{self.path}, line {first_line}: not valid CSV from here on ({error}); look for a quote that is not "
                "closed, or is not doubled inside quotes"
            ) from None

    def _csv_row(self, text: str) -> dict[str, str | None]:
        lines = io.StringIO(text, newline="\n")  # only these end a line; `splitlines` knows many more
        try:
            fields = next((row for row in csv.reader(lines, delimiter=self._delimiter, strict=True) if row), [])
        except csv.Error as error:
            raise ValueError(f"not valid CSV ({error})") from None
        if len(fields) != len(self._header):
            raise ValueError(
                f"has {len(fields)} fields where the header has {len(self._header)}; put quotes around fields that "
                f"hold {self._delimiter!r}"
            )
        return {name: field or None for name, field in zip(self._header, fields, strict=True)}


class ListTable:
    """Rows that are in memory."""

    def __init__(self, rows: Sequence[Any], name: str, place: str, folder: Path = Path()) -> None:
        self.rows, self.name, self.place, self.folder = rows, name, place, folder
        if not len(rows):
            raise ValueError(_no_rows(place))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return whole(self.rows[index])

    def where(self, index: int) -> str:
        return f"{self.place}, row {index + 1}"


class ArrowTable(ListTable):
    """Rows of a `datasets.Dataset`, mapped from disk. They are taken as they are stored: an image is a mapping of its
    `bytes` and its `path`, wherever it stands in the row, since decoding it is not the table's business."""

    def __init__(self, rows: Any, name: str, place: str, folder: Path = Path()) -> None:
        super().__init__(rows.with_format("arrow"), name, place, folder)

    def __getitem__(self, index: int) -> Any:
        table: Any = self.rows[index : index + 1]
        (row,) = table.to_pylist()
        return {column: _without_nulls(value) for column, value in row.items()}


def _without_nulls(value: Any) -> Any:
    """A columnar format gives every object the keys of all the others, as nulls."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def open_tables(path: str, *, split: str, subset: str | None, revision: str | None = None) -> list[Table]:
    """The tables of a path, a pattern or a Hub id, to which the other arguments belong.

    Raises:
        ValueError: nothing can be read there; the sentence names it.
    """
    if names_files(path):
        return [_open_file(Path(file)) for file in _matches(path)]
    return [_open_hub(path, split=split, subset=subset, revision=revision)]


def names_files(path: str) -> bool:
    """Whether a path means files here; the form `owner/name` without a suffix else is a Hub id."""
    is_hub_id = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    return not is_hub_id or path.endswith(FILE_SUFFIXES) or glob.has_magic(path) or Path(path).is_file()


def _matches(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if not glob.has_magic(path) or os.path.exists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise ValueError(f"{path}: no file matches this pattern")
    return found


def _open_file(path: Path) -> Table:
    if path.is_dir():
        raise ValueError(f"{path}: cannot be read, since it is a folder; name its files, for example {path}/*.jsonl")
    with _open(path) as file:
        first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    match path.suffix:
        case ".jsonl" | ".csv" | ".tsv":
            return LineTable(path)
        case ".json":
            return _open_array(path) if first == b"[" else LineTable(path)
        case ".parquet":
            rows = _load_dataset(str(path), "write it again", "parquet", data_files=str(path), split="train")
            return ArrowTable(rows, path.stem, str(path), path.parent)
    raise ValueError(f"{path}: cannot tell its format; name a file that ends with {', '.join(FILE_SUFFIXES)}")


def _open_array(path: Path) -> Table:
    text = _text_of(path)
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return ListTable(rows, path.stem, str(path), path.parent)


def _open_hub(name: str, *, split: str, subset: str | None, revision: str | None) -> Table:
    remedy = f"check the name, the split, the subset{', the revision' * bool(revision)} and the network"
    rows = _load_dataset(name, remedy, name, name=subset, split=split, revision=revision)
    return ArrowTable(rows, name.split("/")[-1], f"{name} ({split})")


def _load_dataset(place: str, remedy: str, *arguments: Any, **keywords: Any) -> Any:
    """`datasets.load_dataset`, whose many errors become one sentence."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it prints errors, and then raises them
    try:
        return datasets.load_dataset(*arguments, **keywords)
    except Exception as error:  # whatever its readers, the file system or the network raise
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        raise ValueError(f"{place}: cannot be loaded ({type(cause).__name__}: {reason}); {remedy}") from None


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        remedy = "check the path" if path.suffix else "check the path; a data set of the Hub is named owner/name"
        if error.errno == errno.EMFILE:
            remedy = "join files, or raise the limit with ulimit -n"
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None


def _text_of(path: Path) -> str:
    with _open(path) as file:
        try:
            return decoded(file.read())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _no_rows(place: object) -> str:
    return f"{place}: holds no rows; add some or leave it out"


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a dotted path into nested ones; None where there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
