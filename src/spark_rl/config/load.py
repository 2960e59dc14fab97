"""Preset, YAML file and `section.key=value` overrides to a `Config`, every mistake answered by one sentence."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from spark_rl.config.base import Section
from spark_rl.config.inference import Inference
from spark_rl.config.schema import Config
from spark_rl.jsonl import MAX_DEPTH, is_too_deep

S = TypeVar("S", bound=Section)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted keys."""
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        flattened |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flattened


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value` as a nested mapping; the value is YAML.

    Raises:
        ValueError: there is no `=`, or the value is not YAML.
    """
    path, found, value = text.partition("=")
    if not found or not path.strip():
        raise ValueError(f"override {text!r} is not of the form section.key=value")
    try:
        nested: Any = _parsed(value, yaml.SafeLoader)
    except yaml.YAMLError:
        raise ValueError(f"override {text!r}: {value!r} is not valid YAML; quote it") from None
    except _TooDeep as error:
        raise ValueError(f"override {path.strip()}: {error}") from None
    for key in reversed(path.strip().split(".")):
        nested = {key: nested}
    return dict(nested)


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Preset, then file, then overrides: `load_config("run.yaml", ["train.steps=10"])`.

    Raises:
        ValueError: one sentence a mistake on what to change; unknown keys come with the nearest known one.
    """
    values = given_settings(path, overrides)
    if (preset := values.get("preset")) is not None:
        values = merge(_preset(preset), values)
    return config_from(values, where=str(path) if path else "config")


def given_settings(path: str | Path | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a file and overrides say, as nested mappings of values that nobody has looked at yet.

    Raises:
        ValueError: they cannot be read.
    """
    values = {} if path is None else _read_yaml(Path(path))
    for override in overrides:
        values = merge(values, parse_override(override))
    return values


def load_inference(overrides: Iterable[str] = (), **values: Any) -> Inference:
    """The settings of test time: `load_inference(["judge.samples=4"], model={"path": "embedded"})`.

    Raises:
        ValueError: as `load_config`.
    """
    for override in overrides:
        values = merge(values, parse_override(override))
    return _validated(Inference, values, "settings")


def config_from(values: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a mapping; see `load_config`."""
    return _validated(Config, values, where)


def _validated(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(f"{where}: {_sentence(kind, e)}" for e in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is given twice is an error, not a silent last word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _TooDeep(Exception):
    """Of YAML."""


def _parsed(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """What YAML says.

    Raises:
        yaml.YAMLError: it is none.
        _TooDeep: it is nested so deeply that it cannot be read, or what comes after would fail.
    """
    try:
        values = yaml.load(text, loader)
    except RecursionError:
        values = None
    else:
        if not is_too_deep(values):
            return values
    raise _TooDeep(f"is nested more than {MAX_DEPTH} levels deep; look for brackets that are not closed")


def read_yaml(path: Path, what: str = "file") -> Any:
    """What a YAML file says.

    Args:
        what: what the file should be, for messages.

    Raises:
        ValueError: it cannot be read, or is no YAML.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"), _Loader)
    except _TooDeep as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML {what}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "config")
    if not isinstance(values or {}, dict):
        raise ValueError(f"{path}: must hold a mapping of sections such as 'model:' and 'train:'")
    return values or {}


def _preset(name: Any) -> dict[str, Any]:
    folder = importlib.resources.files("spark_rl.presets")
    known = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    if name not in known:
        raise ValueError(f"preset: there is no {name!r}; choose one of {', '.join(known)}")
    values: dict[str, Any] = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def _sentence(kind: type[Section], error: Mapping[str, Any]) -> str:
    """One pydantic error as a sentence."""
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        known = _fields(kind, path[:-1])
        near = _elsewhere(kind, path[-1]) or difflib.get_close_matches(path[-1], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {'.'.join(path)!r}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] == "missing":
        return f"{'.'.join(path)} is missing; give it"
    return f"{'.'.join(path)}: {message[0].lower()}{message[1:]}, not {error['input']!r}"


def _elsewhere(kind: type[Section], name: str) -> list[str]:
    """Where a key belongs that stands in the wrong section."""
    sections = {key: _section_in(field.annotation) for key, field in kind.model_fields.items()}
    return [f"{key}.{name}" for key, section in sections.items() if section and name in section.model_fields][:1]


def _fields(kind: type[Section], path: list[str]) -> list[str]:
    """The known keys of the section at a path; entries of a list are numbered."""
    section: Any = kind
    for key in path:
        section = section.model_fields[key].annotation if not key.isdigit() else _section_in(section)
    return list((_section_in(section) or section).model_fields)


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a field's type is or holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
