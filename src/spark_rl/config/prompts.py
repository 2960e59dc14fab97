"""What the model is shown, in training and at test time."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from spark_rl.config.base import Section
from spark_rl.types import Role

_TAKEN = "data.train"


def _examples(given: Any) -> Any:
    """`prompts.examples`, whose shape is seen to before anything is read."""
    if _is_taken(given) or isinstance(given, str):
        return _checked("prompts.examples", given)
    if not isinstance(given, Mapping):
        raise ValueError(
            f"prompts.examples must be ready, none, a file, {{num: 2, from: {_TAKEN}}}, or one of these by role, not "
            f"{given!r:.60}"
        )
    for role, value in given.items():
        if role not in list(Role):
            near = get_close_matches(str(role), list(Role), 1)
            hint = f"did you mean {str(near[0])!r}?" if near else f"roles are {', '.join(Role)}"
            raise ValueError(f"prompts.examples: there is no role {role!r}; {hint}")
        _checked(f"prompts.examples.{role}", value)
        if _is_taken(value) and role != Role.ANSWER:
            raise ValueError(
                f"prompts.examples.{role}: rows of {_TAKEN} hold no examples of this role; give ready, or a file"
            )
    return dict(given)


def _is_taken(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"num", "from"} & value.keys())


def _checked(key: str, value: Any) -> Any:
    if _is_taken(value):
        num = value.get("num")
        if value.keys() != {"num", "from"} or value["from"] != _TAKEN or type(num) is not int or num < 1:
            raise ValueError(f"{key}: {value!r:.60} must be of the form {{num: 2, from: {_TAKEN}}}")
    elif value == "" or not isinstance(value, str | list):
        raise ValueError(f"{key}: {value!r:.60} is neither ready, none, a file, nor a list of examples")
    return value


class PromptsConfig(Section):
    """The prompts of all roles. They are saved in a run's `final/`, and hold for that model, at test time and where it
    is trained on, unless other ones are named."""

    examples: Annotated[str | dict[str, Any], BeforeValidator(_examples)] = {}
    """Worked examples that stand before every prompt of a role (`answer`, `pointwise`, `pairwise`, `reflection`), as
    turns of user and assistant: `ready` (those of the package), `none`, a JSONL or YAML file, a list, or for answers
    `{num: 2, from: data.train}`, rows that are then not trained on. By role, or one of these for all of them."""
    templates: Path | None = None
    """A YAML file with templates of yours, by role, which take the place of the shipped ones of that role; see
    prompts.md."""
    verdict_format: str | None = None
    """How judgements state their verdict: `boxed`, `tags`, `phrase`, `json:<key>` or a regular
    expression that can state them (paper: `boxed`). null is that of the model, as with `data.answer_format`."""

    @property
    def examples_by_role(self) -> dict[Role, Any]:
        """What is given, for each role that something is given for. A file for all of them, which may hold examples of
        some, is a `Path`."""
        if isinstance(self.examples, str):
            whole = self.examples if self.examples in ("ready", "none") else Path(self.examples)
            return dict.fromkeys(Role, whole)
        if _is_taken(self.examples):
            return {Role.ANSWER: self.examples} | dict.fromkeys((r for r in Role if r is not Role.ANSWER), "ready")
        return {Role(role): given for role, given in self.examples.items()}

    @property
    def num_taken(self) -> int:
        """Rows of the training data that become examples of answers."""
        given = self.examples_by_role.get(Role.ANSWER)
        return int(given["num"]) if isinstance(given, Mapping) else 0
