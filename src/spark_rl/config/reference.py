"""The page of all settings, made of the schema: `python -m spark_rl.config.reference > docs/config.md`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic.fields import FieldInfo

from spark_rl.config.base import Section
from spark_rl.config.inference import Inference
from spark_rl.config.load import flat, load_config
from spark_rl.config.schema import Config

_PRESETS = ("paper", "spark", "grpo")
_HEAD = """# Settings

A run is one YAML file. `preset: paper`, `spark` or `grpo` names the values it starts from, the file's own keys replace
them, and `section.key=value` arguments of the command line replace those. An unknown key is an error that names the
nearest known one.

This page is made of the schema ([`config/schema.py`](../src/spark_rl/config/schema.py),
[`config/inference.py`](../src/spark_rl/config/inference.py)) by `make docs`.
"""
_TEST_TIME = """# Settings of judge, solve, eval and serve

These verbs take the model as an argument, these keys as `section.key=value` after it, and those of `model` and
`verify` above.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_presets(), *_sections(Config, ""), _TEST_TIME, *_test_time()]) + "\n"


def _presets() -> Iterator[str]:
    """Where the presets differ from the defaults or from each other."""
    values = [flat(load_config().model_dump(mode="json"))]
    values += [flat(load_config(None, [f"preset={name}"]).model_dump(mode="json")) for name in _PRESETS]
    yield "## preset\n\nWhat the presets set. Everything else has its default.\n"
    yield f"| key | default | {' | '.join(_PRESETS)} |\n|---|---|---|---|---|"
    for key in values[0]:
        shown = [_value(column[key]) for column in values]
        if len(set(shown)) > 1 and key != "preset":
            yield f"| `{key}` | {' | '.join(shown)} |"
    yield ""


def _test_time() -> Iterator[str]:
    """The sections that a run does not have."""
    for name, field in Inference.model_fields.items():
        if _is_section(field.annotation) and name not in Config.model_fields:
            yield from _sections(field.annotation, f"{name}.", field.description)  # type: ignore[arg-type]


def _sections(section: type[Section], path: str, about: str | None = None) -> Iterator[str]:
    inner = {name: f for name, f in section.model_fields.items() if _is_section(f.annotation)}
    plain = {name: f for name, f in section.model_fields.items() if name not in inner and f"{path}{name}" != "preset"}
    if path:
        yield f"## {path.removesuffix('.')}\n\n{_line(about or section.__doc__ or '')}\n"
    if plain:
        yield "| key | values | default | meaning |\n|---|---|---|---|"
        yield from (_row(f"{path}{name}", field) for name, field in plain.items())
        yield ""
    for name, field in inner.items():
        yield from _sections(field.annotation, f"{path}{name}.", field.description)  # type: ignore[arg-type]
    for name, field in plain.items():
        if (entry := _entry(field.annotation)) is not None and f"{path}{name}" == "data.train":
            yield from _sections(entry, "data.train[].")


def _row(key: str, field: FieldInfo) -> str:
    default = "(needed)" if field.is_required() else _value(_plain(field.get_default(call_default_factory=True)))
    return f"| `{key}` | {_values(field.annotation, field.metadata)} | {default} | {_line(field.description or '')} |"


def _values(annotation: Any, limits: list[Any]) -> str:
    """A type in words, with its limits."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _values(inner, more)
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_values(part, limits) for part in get_args(annotation))
    if _entry(annotation) is not None:
        return "list of paths or mappings"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{_plain(value)}`" for value in arguments)
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(f"`{value}`" for value in annotation)
    if origin in (list, tuple):
        return f"{'list' if origin is list else 'pair'} of {_values(arguments[0], [])}"
    if origin is dict:
        return "mapping"
    names = {str: "text", bool: "true or false", int: "whole number", float: "number", Path: "path", type(None): "null"}
    signs = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}
    inner = [m for limit in limits for m in getattr(limit, "metadata", [limit])]
    bounds = [f"{signs[type(m)]} {next(iter(_bounds(m)))}" for m in inner if type(m) in signs]
    name = names.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return " ".join([name, ", ".join(bounds)]).strip() if annotation in (int, float) else name


def _bounds(limit: Any) -> list[Any]:
    """The bound of an annotated limit, such as 1 of `Ge(ge=1)`."""
    return [getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _entry(annotation: Any) -> type[Section] | None:
    """The section that a list holds."""
    if _is_section(annotation):
        return None
    for part in get_args(annotation):
        if _is_section(part):
            found: type[Section] = part
            return found
        if (nested := _entry(part)) is not None:
            return nested
    return None


def _plain(value: Any) -> Any:
    """A default as it would stand in YAML."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, Path | StrEnum) else value


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix('...').strip()}`"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
