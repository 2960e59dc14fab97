"""A row of data to a task: column map, defaults, and one sentence for everything that can be wrong with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from spark_rl.config import DataConfig, SourceConfig
from spark_rl.data.row_images import images_of, listed, placed, placed_in_question
from spark_rl.data.tables import lookup
from spark_rl.images import reference
from spark_rl.prompts import Prompts
from spark_rl.types import Example, Message, Role, Task, without_images
from spark_rl.verify import SELF, resolve, verdict_side

MAX_PROMPT_CHARS = 1_000_000
"""Longer prompts are refused before anyone tries to tokenise them."""
_FIELDS: dict[str, tuple[type, ...]] = {
    "prompt": (str, list),
    "answer": (str, int, float, Decimal),
    "question": (str, list),
    "role": (str,),
    "id": (str, int, float),
    "verifier": (str,),
    "source": (str,),
    "system": (str,),
    "metadata": (dict,),
}
_NUMBERS = dict.fromkeys((int, float, Decimal), "a number")
_JSON_NAMES = {str: "text", list: "chat messages", dict: "an object", **_NUMBERS}


class RowReader:
    """Reads the rows of one source as tasks.

    Args:
        name: the source's short name, for ids and metrics of rows that give none.
        folder: what the paths of images are relative to, unless the config says.
        prompts: how a question that is plain text is asked.
        responses: whether every row has responses, to be trained on.
    """

    def __init__(
        self,
        source: SourceConfig,
        config: DataConfig,
        name: str,
        folder: Path = Path(),
        prompts: Prompts = Prompts(),
        responses: bool = False,
    ) -> None:
        self.name, self.prompts, self.has_responses = name, prompts, responses
        self.folder, self.allow_urls = config.image_folder or folder, config.allow_image_urls
        self.columns: dict[str, str] = {field: field for field in (*_FIELDS, "images", "response")}
        self.mapped: dict[str, str] = {}
        """Fields whose column the config names, and the setting that does so."""
        for setting, given in (("data.columns", config.columns), (f"columns of {source.path}", source.columns)):
            self.columns.update((str(field), column) for field, column in given.items())
            self.mapped.update(dict.fromkeys(map(str, given), setting))
        self.seen: dict[str, None] = {}
        """The columns of the rows read so far."""
        self._filled: set[str] = set()
        self.functions = {source.verifier, config.verifier}
        """Verifiers that a row may name although they are no rule of ours."""
        self.verifier, self.system = source.verifier or config.verifier, source.system or config.system
        pattern = source.answer_pattern or config.answer_pattern
        try:
            self.pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise ValueError(
                f"data.answer_pattern: {pattern!r} is no regular expression ({error}); correct it"
            ) from None
        if self.pattern and self.pattern.groups != 1:
            raise ValueError(f"data.answer_pattern: {pattern!r} needs exactly one group, around the answer")
        resolve(self.verifier)

    def task(self, row: Any, index: int) -> Task:
        """The task of row number `index`, counted from 0.

        Raises:
            ValueError: the row is bad; the reason alone, since the caller knows the place.
        """
        if not isinstance(row, dict):
            raise ValueError("must be a JSON object with the keys 'prompt' and 'answer'")
        values = {
            field: lookup(row, column) if "." in column else row.get(column) for field, column in self.columns.items()
        }
        self.seen.update(dict.fromkeys(row))
        self._filled.update(field for field, value in values.items() if value is not None)
        mapped, responses = listed(values.pop("images")), values.pop("response")
        column = images_of(row) if self.columns["images"] == "images" else mapped
        self._check(values, row)
        role = _role(values["role"])
        verifier = self._verifier(values["verifier"], role)
        label = self._label(values["answer"], role, verifier)
        system = values["system"] or self.system
        messages, question, given = self._prompt(values["prompt"], role, label, system, column)
        if (length := sum(len(m["content"]) for m in messages)) > MAX_PROMPT_CHARS:
            raise ValueError(f"'prompt' has {length} characters, more than {MAX_PROMPT_CHARS}; shorten it")
        example = Example(
            id=f"{self.name}-{index + 1}" if values["id"] in (None, "") else str(values["id"]),
            prompt=messages,
            question=placed_in_question(values["question"], len(given)) if values["question"] else question,
            answer=label,
            verifier=verifier,
            source=values["source"] or self.name,
            metadata=self._metadata(values["metadata"], row, verifier),
            images=tuple(reference(value, self.folder, allow_urls=self.allow_urls) for value in given),
        )
        verdicts = self.prompts.verdicts(role, label) if role.is_judge else None
        task = question_task(example, role, verdicts if verdicts != role.verdicts else None)
        return replace(task, responses=self._responses(responses, row)) if self.has_responses else task

    def _responses(self, given: Any, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The responses of a row: a text, chat messages of one turn, or a list of these."""
        if given in (None, "", []):
            raise ValueError(self._missing("response", row))
        several = given if isinstance(given, list) else [given]
        entries = [entry.get("content") if isinstance(entry, dict) else entry for entry in several]
        texts = [without_images(entry) for entry in entries if isinstance(entry, str) and entry.strip()]
        if len(texts) < len(entries):
            raise ValueError(
                f"{self.columns['response']!r} must be text or a list of texts, not "
                f"{json.dumps(given, default=str)[:40]}; change it, or name the column that is meant: "
                "data.columns.response=<name>"
            )
        return tuple(texts)

    def response(self, row: Any) -> str | None:
        """The worked response that a row holds beside its question; None if it holds no text there."""
        column = self.columns["response"]
        value = lookup(row, column) if "." in column else row.get(column)
        return without_images(value) if isinstance(value, str) and value.strip() else None

    def makes_use_of(self, field: str) -> bool:
        """Whether the column that the config names for a field, maybe a dotted path, is in some row read so far; or
        whether it keeps one of the field's own name, which means something else, from being read."""
        own = ("images", "image") if field == "images" else (field,)
        return field in self._filled or any(name in self.seen for name in (self.columns[field], *own))

    def _check(self, values: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        is_self = (values["verifier"] or self.verifier) == SELF and values["role"] in (None, "", Role.ANSWER)
        for field in ("prompt",) if is_self else ("prompt", "answer"):
            value = values[field]
            if value in (None, []) or (isinstance(value, str) and not value.strip()):
                raise ValueError(self._missing(field, row))
        for field, value in values.items():
            is_known = type(value) in _FIELDS[field]  # not isinstance: true is an int as well
            if value is None or (is_known and not (type(value) is float and not math.isfinite(value))):
                continue
            names = {**_JSON_NAMES, list: "parts of a message"} if field == "question" else _JSON_NAMES
            wanted = " or ".join(dict.fromkeys(names[t] for t in _FIELDS[field]))
            raise ValueError(
                f"{self.columns[field]!r} must be {wanted}, not {json.dumps(value, default=str)[:40]}; change it, or "
                f"name the column that is meant: data.columns.{field}=<name>"
            )

    def _missing(self, field: str, row: Mapping[str, Any]) -> str:
        column = self.columns[field]
        if column in row or lookup(row, column) is not None:
            return f"{column!r} is empty; fill it in or remove the row"
        if "." in column and isinstance(lookup(row, column.rpartition(".")[0]), Mapping):  # nulls there are dropped
            return (
                f"{column!r} is empty or missing; fill it in, or say which column holds it: data.columns.{field}=<name>"
            )
        used = {self.columns[field].split(".")[0] for field in ("prompt", "answer")}
        others = ", ".join([key for key in row if key not in used][:8])
        found = f", but {others}" if others else ""
        hint = (
            f", or have the model judge it: 'verifier': '{SELF}'" if field == "answer" and not row.get("role") else ""
        )
        return f"has no {column!r}{found}; add it, or say which column holds it: data.columns.{field}=<name>{hint}"

    def _verifier(self, given: str | None, role: Role) -> str:
        """The verifier of a row. Data from elsewhere must not choose which function of which module is called."""
        if not given:
            return "choice" if role.is_judge else self.verifier
        if ":" in given and given not in self.functions:
            raise ValueError(
                f"'verifier' names the function {given!r}, which a row may only do if the config does; set "
                f"data.verifier={given}"
            )
        resolve(given)
        return given

    def _label(self, answer: Any, role: Role, verifier: str) -> str:
        """What rollouts are graded against: nothing where the model is its own verifier, even if the row has a gold."""
        if verifier == SELF and role is not Role.ANSWER:
            raise ValueError(f"a {role} row cannot have the verifier {SELF!r}, which is for questions; name a rule")
        if role.is_judge:
            return self._verdict(role, str(answer))
        return "" if verifier == SELF else self._answer(str(answer))

    def _verdict(self, role: Role, answer: str) -> str:
        """The gold verdict of a judge item, as our own prompts spell it."""
        known = self.prompts.verdicts(role, answer)
        if (side := verdict_side(answer, known)) is None:
            raise ValueError(f"the answer of a {role} row must be {' or '.join(known)}, not {answer[:40]!r}")
        return known[side]

    def _prompt(
        self, prompt: Any, role: Role, label: str, system: str | None, column: Sequence[Any]
    ) -> tuple[tuple[Message, ...], str, list[Any]]:
        """The chat messages, the question as judges will see it, and the images' values in the order of both."""
        system = system and without_images(system)
        if isinstance(prompt, str):
            ((turn,), images) = placed([{"role": "user", "content": prompt}], column)
            text = turn["content"]
            if not role.is_judge:
                return self.prompts.question(text, system), text, images
            offered = " or ".join(map(self.prompts.verdict_format.write, self.prompts.verdicts(role, label)))
            return (*_opening(system), {"role": "user", "content": f"{text}\n\nEnd with {offered}."}), text, images
        _check_turns(prompt)
        messages, images = placed(prompt, column)
        turns = [m for m in messages if m["role"] != "system"]
        question = (
            turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{m['role']}: {m['content']}" for m in turns)
        )
        has_system = len(turns) < len(messages)
        return (*_opening(None if has_system else system), *messages), question, images

    def _answer(self, text: str) -> str:
        if self.pattern is None:
            return text
        found = self.pattern.findall(text)
        if not found or not found[-1].strip():
            raise ValueError(f"data.answer_pattern finds no answer in {text[-60:]!r}; change one of the two")
        return str(found[-1]).strip()

    def _metadata(self, given: Mapping[str, Any] | None, row: Mapping[str, Any], verifier: str) -> Mapping[str, Any]:
        """A function of the user's gets the columns that we have no use for, as TRL's reward functions do.

        As JSON, in which checkpoints keep it: what JSON has no form for (a date in a Parquet file) becomes text.
        """
        if ":" in verifier:
            used = (column for field, column in self.columns.items() if field != "response")
            known = {"image", *(column.split(".")[0] for column in used)}
            given = {**{key: value for key, value in row.items() if key not in known}, **(given or {})}
        return json.loads(json.dumps(given, default=str)) if given else {}


def question_task(example: Example, role: Role = Role.ANSWER, verdicts: tuple[str, str] | None = None) -> Task:
    """Ask an example's question; with another role, a ready judge or reflection item, of a judge with the words of its
    verdicts where these are not the role's."""
    return Task(
        id=f"{role}-{example.id}",
        role=role,
        messages=example.prompt,
        label=example.answer,
        verifier=example.verifier,
        example=example,
        verdicts=verdicts,
    )


def _role(given: str | None) -> Role:
    try:
        return Role(given) if given else Role.ANSWER
    except ValueError:
        raise ValueError(f"'role' is {given!r}; it must be one of {', '.join(Role)}, or left out") from None


def _check_turns(prompt: Any) -> None:
    """See that a prompt is chat messages that can be asked; the first that cannot is named by its number, from 1.

    Raises:
        ValueError: it is not; the reason alone.
    """
    if not isinstance(prompt, list):
        raise ValueError("'prompt' must be text, or chat messages (role, content) that end with a user's turn")
    for number, turn in enumerate(prompt, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise ValueError(
                f"entry {number} of 'prompt' is no chat message with a 'role' and a 'content'; make it one"
            )
        content, named = turn.get("content"), f"turn {number} of 'prompt' ({turn['role']})"
        if content is None and turn.get("tool_calls"):
            raise ValueError(f"{named} calls tools and has no content; tools are not run here, so give it text")
        if not isinstance(content, str | list):
            found = "has no content" if content is None else f"has the content {json.dumps(content, default=str)[:40]}"
            raise ValueError(f"{named} {found}; it must be text or a list of parts")
    if prompt[-1]["role"] != "user":
        raise ValueError(
            f"'prompt' ends with a turn of the role {prompt[-1]['role']!r}, and must end with a user's turn; remove "
            "what follows the last one"
        )


def _opening(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []
