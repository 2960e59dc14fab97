"""Prompts from settings, and in a model's folder, where they hold at test time unless other ones are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from spark_rl.config import PromptsConfig
from spark_rl.prompts.check import check_templates
from spark_rl.prompts.examples import check_turns, with_examples
from spark_rl.prompts.prompts import Prompts
from spark_rl.prompts.template_file import read_templates
from spark_rl.prompts.templates import Template
from spark_rl.types import Role
from spark_rl.verify import Format, format_of

FILE = "spark_rl_prompts.json"
"""Holds a trained model's prompts, in its folder."""


def build_prompts(
    settings: PromptsConfig, answer_format: str | None = None, saved: Prompts | None = None, whole: float = 0.5
) -> Prompts:
    """The prompts that settings name, without examples that are to be taken from data.

    Args:
        answer_format: null is that of `saved`.
        saved: what holds where the settings say nothing; the shipped prompts unless given.
        whole: the share of worked examples that show whole responses; see `with_examples`.

    Raises:
        ValueError: there is no such format or file, or a template or an example cannot be used; one sentence.
    """
    prompts = saved or Prompts()
    if answer_format is not None:
        prompts = replace(prompts, answer_format=_named("data.answer_format", answer_format))
    if settings.verdict_format is not None:
        prompts = replace(prompts, verdict_format=_of_verdicts(settings.verdict_format))
    if settings.templates is not None:
        prompts = replace(prompts, templates=_from_file(settings.templates, prompts))
    check_templates(prompts)
    prompts = with_examples(prompts, settings.examples_by_role, whole)
    for role, turns in prompts.examples.items():
        try:
            check_turns(prompts, role, turns)
        except ValueError as error:
            raise ValueError(
                f"the model's own worked examples of the role {role} do not fit these settings ({error}); give others, "
                f"or none: prompts.examples={{{role}: none}}"
            ) from None
    return prompts


def kept_prompts(prompts: Prompts, saved: Prompts) -> list[str]:
    """In words, what prompts have of saved ones, other than the shipped."""
    shipped, kept = Prompts(), []
    for what, each in (("answers", "answer_format"), ("verdicts", "verdict_format")):
        if (name := getattr(prompts, each).name) == getattr(saved, each).name != getattr(shipped, each).name:
            kept.append(f"{what} as {name}")
    for role in Role:
        if prompts.templates_for(role) == saved.templates_for(role) != shipped.templates_for(role):
            kept.append(f"templates of the role {role}")
        if (turns := saved.examples.get(role)) and prompts.examples.get(role) == turns:
            kept.append(f"worked examples of the role {role} ({len(turns) // 2})")
    return kept


def save_prompts(prompts: Prompts, folder: Path) -> None:
    """Write prompts into a model's folder."""
    (folder / FILE).write_text(
        json.dumps(prompts_as_json(prompts), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


def saved_prompts(folder: Path | None) -> Prompts | None:
    """The prompts in a model's folder; None if it has none.

    Raises:
        ValueError: they cannot be read.
    """
    if folder is None or not (folder / FILE).exists():
        return None
    try:
        prompts = prompts_from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))
        check_templates(prompts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f" ({error})" if isinstance(error, OSError | ValueError) else ""
        raise ValueError(f"{folder / FILE} is damaged, or no file of prompts{reason}; mend or remove it") from None
    return prompts


def prompts_as_json(prompts: Prompts) -> dict[str, Any]:
    """Prompts as JSON types."""
    return {
        "answer_format": prompts.answer_format.name,
        "verdict_format": prompts.verdict_format.name,
        "templates": [asdict(t) | {"verdicts": list(t.verdicts)} for t in prompts.templates],
        "examples": {role.value: [dict(turn) for turn in turns] for role, turns in prompts.examples.items()},
    }


def prompts_from_json(values: Mapping[str, Any]) -> Prompts:
    """The inverse of `prompts_as_json`."""
    templates = (Template(t["name"], Role(t["role"]), t["text"], tuple(t["verdicts"])) for t in values["templates"])
    return Prompts(
        format_of(values["answer_format"]),
        format_of(values["verdict_format"]),
        tuple(templates),
        {Role(role): tuple(turns) for role, turns in values["examples"].items()},
    )


def _named(key: str, name: str) -> Format:
    try:
        return format_of(name)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _of_verdicts(name: str) -> Format:
    if name in ("hash", "last_number"):
        raise ValueError(
            f"prompts.verdict_format: {name!r} is for answers; choose boxed, tags, phrase or json:<key> for verdicts"
        )
    return _named("prompts.verdict_format", name)


def _from_file(path: Path, known: Prompts) -> tuple[Template, ...]:
    try:
        templates = read_templates(path, known)
        check_templates(replace(known, templates=templates))
    except ValueError as error:
        raise ValueError(f"prompts.templates: {error}") from None
    return templates
