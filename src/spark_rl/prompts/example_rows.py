"""Where worked examples are written down: `ready`, a list in the settings, a JSONL or YAML file."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spark_rl.config import read_yaml
from spark_rl.jsonl import read_row
from spark_rl.types import Role

Row = tuple[str, Any]
"""An example as it was written, and its place, as messages name it."""
_READY = Path(str(importlib.resources.files("spark_rl.prompts") / "ready.yaml"))


def example_rows(role: Role, given: Any) -> Iterator[Row]:
    """The examples of a role as they were written.

    Args:
        given: as `PromptsConfig.examples_by_role` has it.

    Raises:
        ValueError: there is no such file, or it cannot be read; one sentence.
    """
    if given == "none":
        return
    if given == "ready":
        rows = read_yaml(_READY)[role.value]
        yield from ((f"ready example {number} of {role}", row) for number, row in enumerate(rows, start=1))
    elif isinstance(given, list):
        yield from _entries(f"prompts.examples.{role}", given)
    else:
        yield from _rows_of_file(Path(given), role, for_all=isinstance(given, Path))


def _rows_of_file(path: Path, role: Role, for_all: bool) -> Iterator[Row]:
    if path.suffix not in (".jsonl", ".yaml", ".yml"):
        near = get_close_matches(str(path), ("ready", "none"), 1)
        hint = f"did you mean {near[0]!r}?" if near else "name such a file"
        raise ValueError(f"prompts.examples: {path} is neither ready, none, nor a .jsonl or .yaml file; {hint}")
    if path.suffix == ".jsonl":
        rows: Any = list(_json_rows(path))
    else:
        rows = read_yaml(path)
    if isinstance(rows, Mapping):
        if unknown := [key for key in rows if key not in list(Role)]:
            raise ValueError(f"{path}: there is no role {unknown[0]!r}; roles are {', '.join(Role)}")
        if role.value not in rows and for_all:
            return
        yield from _entries(f"{path}, {role}", rows.get(role.value))
    elif for_all:
        raise ValueError(f"{path}: holds examples of one role; say which: prompts.examples={{answer: {path}}}")
    elif path.suffix == ".jsonl":
        yield from rows
    else:
        yield from _entries(str(path), rows)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(
            f"prompts.examples: {path} cannot be read ({error.strerror}); give the path of a .jsonl or .yaml file"
        ) from None
    filled = [(f"{path}, row {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        raise ValueError(f"{path}: holds no examples; add some, or give none")
    for place, line in filled:
        try:
            yield place, read_row(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def _entries(place: str, rows: Any) -> Iterator[Row]:
    """Of a list: examples, or the turns of one conversation."""
    if not isinstance(rows, list):
        raise ValueError(f"{place}: must be a list of examples, not {rows!r:.40}")
    if rows and all(isinstance(row, Mapping) and row.keys() == {"role", "content"} for row in rows):
        rows = [{"messages": rows}]
    yield from ((f"{place}, example {number}", row) for number, row in enumerate(rows, start=1))
