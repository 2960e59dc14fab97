"""Reads the published evaluation sets (`published_sets.py`) from the Hub or from a local copy of what stands there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spark_rl.config import FILE_SUFFIXES
from spark_rl.data.tables import Table, open_tables
from spark_rl.evaluate.published_rows import BestOfItem, ImagePair, Item, Row
from spark_rl.evaluate.published_sets import PUBLISHED, PublishedSet
from spark_rl.types import Example


def in_suite(suite: str) -> list[PublishedSet]:
    """The sets of `paper-text`, `paper-vision`, `paper-reward` or `paper-general`."""
    return [each for each in PUBLISHED.values() if each.suite == suite]


def load(name: str, path: Path | None = None) -> list[Item]:
    """All items of a set, from the Hub or from a local copy.

    Args:
        path: a Parquet, JSONL, JSON or CSV file, or a folder as a snapshot download leaves it.

    Raises:
        ValueError: no such set, nothing there, or a row that is not of the published schema; one sentence.
    """
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=1, cutoff=0)[0]
        raise ValueError(f"unknown set {name!r}; did you mean {near!r}? Known are {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    items: list[Item] = []
    for table in _tables(published, path):
        for index in range(len(table)):
            try:
                item = _item(published, table, index)
            except ValueError as error:
                compare = f"compare {table.place} with {published.place}"
                raise ValueError(f"{name}, row {index + 1}: {error}; {compare}") from None
            if isinstance(item, Example):
                item = replace(item, id=f"{name}-{len(items) + 1}", source=name)
            if item is not None:
                items.append(item)
    if not items:
        raise ValueError(f"{name}: no row of {path or published.place} belongs to the set; compare it with the card")
    return items


def _item(published: PublishedSet, table: Table, index: int) -> Item | None:
    row = table[index]
    if not isinstance(row, Mapping):
        raise ValueError("must be an object with the columns of the set")
    item = published.row(row)
    if item is None or isinstance(item, BestOfItem):
        return item
    images = list(_images(published, table, index, row))
    if isinstance(item, ImagePair):
        return replace(item, images=tuple(images))
    return replace(item, metadata={**item.metadata, "images": images}) if images else item


def _images(published: PublishedSet, table: Table, index: int, row: Row) -> Iterator[Any]:
    """Paths and addresses as they are; of an image that is in the table, its place there, for it may be large."""
    for column in published.images:
        value = row.get(column)
        if value is None and column == published.images[0]:
            raise ValueError(f"{column!r} is empty" if column in row else f"has no {column!r}")
        values = value if isinstance(value, list) else [value] if value is not None else []
        for number, each in enumerate(values):
            at = {"table": table.place, "row": index, "column": column, "number": number}
            yield each if isinstance(each, str) else at


def _tables(published: PublishedSet, path: Path | None) -> list[Table]:
    tables: list[Table] = []
    if path is None:
        for split in published.splits:
            try:
                tables += open_tables(published.hub_id, split=split, subset=published.subset)
            except ValueError as error:
                raise ValueError(f"{error}, or give a copy: --local {published.name}=PATH") from None
    else:
        for file in _files(published, path) if path.is_dir() else [path]:
            tables += open_tables(str(file.absolute()), split="", subset=None)
    return tables


def _files(published: PublishedSet, folder: Path) -> list[Path]:
    """The files of the set's splits, in order: `test-00000-of-00004.parquet`, `test.jsonl`, `main/test-...`."""
    found = sorted(file for file in folder.rglob("*") if file.suffix in FILE_SUFFIXES and file.is_file())
    if published.subset and any(published.subset in file.relative_to(folder).parts[:-1] for file in found):
        found = [file for file in found if published.subset in file.relative_to(folder).parts[:-1]]
    starts = published.files or published.splits
    chosen = [file for start in starts for file in found if file.stem == start or file.stem.startswith(f"{start}-")]
    if not chosen and len(found) == 1:
        return found
    if not chosen:
        raise ValueError(
            f"{published.name}: {folder} holds no file whose name begins with {starts[0]!r}; name the file itself, or "
            f"download {published.place} again"
        )
    return chosen
