"""Reads the published evaluation sets (`published_sets.py`) from the Hub or from a local copy of what stands there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spark_rl.config import FILE_SUFFIXES
from spark_rl.data.row_images import listed
from spark_rl.data.tables import Table, open_tables
from spark_rl.evaluate.published_rows import Item, Row, placed
from spark_rl.evaluate.published_sets import PUBLISHED, PublishedSet
from spark_rl.images import ImageError, reference
from spark_rl.prompts import Prompts
from spark_rl.types import Example, Image


def in_suite(suite: str) -> list[PublishedSet]:
    """The sets of `paper-text`, `paper-vision`, `paper-reward` or `paper-general`."""
    return [each for each in PUBLISHED.values() if each.suite == suite]


def load(
    name: str,
    path: Path | None = None,
    limit: int | None = None,
    skipped: list[str] | None = None,
    prompts: Prompts = Prompts(),
) -> list[Item]:
    """The items of a set, all or the first `limit`, from the Hub or from a local copy.

    Images that stand in the data are written to the cache of images.

    Args:
        path: a Parquet, JSONL, JSON or CSV file, or a folder as a snapshot download leaves it.
        skipped: what is wrong with the rows that are left out goes here, a sentence a row; None refuses the first one.
        prompts: how questions are asked.

    Raises:
        ValueError: no such set, no row that can be used, or (unless they are skipped) an image that cannot be read or a
            row that is not of the published schema; one sentence.
    """
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=1, cutoff=0)[0]
        raise ValueError(f"unknown set {name!r}; did you mean {near!r}? Known are {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    items: list[Item] = []
    for table, index in _places(_tables(published, path)):
        if len(items) == limit:
            break
        try:
            item = _item(published, table[index], _folders(table, path), prompts)
        except ValueError as error:
            sentence = f"{name}, row {index + 1}: {error}"
            if skipped is not None:
                skipped.append(sentence)
                continue
            if isinstance(error, ImageError):
                raise ValueError(f"{sentence} (--skip-bad leaves such rows out)") from None
            raise ValueError(f"{sentence}; compare {table.place} with {published.place}") from None
        if isinstance(item, Example):
            item = replace(item, id=f"{name}-{len(items) + len(skipped or ()) + 1}", source=name)
        if item is not None:
            items.append(item)
    if not items and skipped:
        raise ValueError(f"no row is usable; the first one: {skipped[0]}")
    if not items:
        raise ValueError(f"{name}: no row of {path or published.place} belongs to the set; compare it with the card")
    return items


def _places(tables: Sequence[Table]) -> Iterator[tuple[Table, int]]:
    for table in tables:
        for index in range(len(table)):
            yield table, index


def _folders(table: Table, copy: Path | None) -> list[Path]:
    """Where paths of images may begin: the folder of the row's file, and the one that was given as the copy."""
    return [Path()] if copy is None else [Path(table.place).parent, *([copy] if copy.is_dir() else [])]


def _item(published: PublishedSet, row: Any, folders: Sequence[Path], prompts: Prompts) -> Item | None:
    if not isinstance(row, Mapping):
        raise ValueError("must be an object with the columns of the set")
    item = published.row(row)
    if item is None:
        return None
    question, images = placed(item.question, list(_images(published, row, folders)))
    if isinstance(item, Example):
        return replace(item, prompt=prompts.question(question), question=question, images=images)
    return replace(item, question=question, images=images)


def _images(published: PublishedSet, row: Row, folders: Sequence[Path]) -> Iterator[Image]:
    for column in published.images:
        values = listed(row.get(column))
        if not values and column == published.images[0]:
            raise ValueError(f"{column!r} is empty" if column in row else f"has no {column!r}")
        for each in values:
            found = [folder for folder in folders if isinstance(each, str) and os.path.exists(folder / each)]
            try:
                yield reference(each, [*found, *folders][0])
            except ImageError as error:
                raise ImageError(f"{column!r}: {error}") from None


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
