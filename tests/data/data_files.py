"""Small data files, and the sources that are opened on them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from factories import make_config

from spark_rl.config import DataConfig, SourceConfig
from spark_rl.data.load import Data, load_data
from spark_rl.data.sources import Source, open_sources
from spark_rl.types import Example, Task

USER = {"role": "user", "content": "What is 1+1?"}


def write(folder: Path, *rows: Any, name: str = "set.jsonl") -> str:
    """A JSONL file of these rows; a string is written as it is."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def sums(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Different questions with numbers as answers."""
    return [{"prompt": f"What is {i}+1?", "answer": i + 1} for i in range(start, start + count)]


def opened(*sources: str | SourceConfig, held_out: bool = False, **settings: Any) -> list[Source]:
    """The sources of `data.train`, with these settings of `data`."""
    config = DataConfig(train=list(sources), **settings)
    return open_sources(config.train, config, set(), held_out=held_out)


def tasks(sources: Iterable[Source]) -> list[Task]:
    return [source.read(index) for source in sources for index in range(source.num_rows)]


def examples(*sources: str | SourceConfig, **settings: Any) -> list[Example]:
    return [task.example for task in tasks(opened(*sources, **settings))]


def loaded(*sources: str | SourceConfig, **settings: Any) -> Data:
    """`load_data` with these sources of `data.train`."""
    return load_data(make_config(data={"train": list(sources), **settings}))
