"""Sources to examples. A source is a JSONL file, or `embedded:<set>`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_rl.config import DataConfig, SourceConfig
from spark_rl.embedded.tasks import FACTS, FAMILIES, TRANSFER, Problem, problems
from spark_rl.prompts import answer_prompt
from spark_rl.types import Example, Message, Role, Task
from spark_rl.verify import Check, VerifierPool, box, gold_problem, resolve


def load_examples(sources: Sequence[SourceConfig | str], config: DataConfig) -> list[Example]:
    """All examples of the sources, in order.

    Raises:
        ValueError: a source or a row is unusable, or two rows share an id; the sentence names the place.
    """
    places: dict[str, str] = {}
    examples: list[Example] = []
    for where, example in (row for source in sources for row in _load(source, config)):
        if example.id in places:
            first = places[example.id]
            raise ValueError(
                f"{where}: its id {example.id!r} is also that of {first}; give every row an 'id' of its own"
            )
        places[example.id] = where
        examples.append(example)
    _check_golds(examples, places)
    return examples


def _check_golds(examples: Sequence[Example], places: Mapping[str, str]) -> None:
    """Grade every gold against itself, in the verifiers' own workers: a gold may be anything."""
    checks = (Check(box(e.answer), e.answer, e.verifier, e.metadata) for e in examples)
    with VerifierPool() as pool:
        for example, verdict in zip(examples, pool.stream(checks), strict=True):
            if problem := gold_problem(verdict, example.verifier):
                raise ValueError(f"{places[example.id]}: {problem}")


def load_tasks(sources: Sequence[SourceConfig | str], config: DataConfig) -> list[Task]:
    """The questions of the sources as tasks of the answer role."""
    return [question_task(example) for example in load_examples(sources, config)]


def question_task(example: Example) -> Task:
    """Ask an example's question."""
    return Task(
        id=f"answer-{example.id}",
        role=Role.ANSWER,
        messages=example.prompt,
        label=example.answer,
        verifier=example.verifier,
        example=example,
    )


def _load(source: SourceConfig | str, config: DataConfig) -> Iterator[tuple[str, Example]]:
    """Examples and the place each comes from, as messages name it."""
    source = source if isinstance(source, str) else source.path
    kind, _, name = source.partition(":")
    if kind == "embedded":
        if name not in _EMBEDDED:
            raise ValueError(f"data: there is no {source!r}; the embedded sets are {', '.join(_EMBEDDED)}")
        return ((source, example) for example in _EMBEDDED[name](config))
    return _read_jsonl(Path(source), config)


def _read_jsonl(path: Path, config: DataConfig) -> Iterator[tuple[str, Example]]:
    try:
        with path.open(encoding="utf-8") as lines:
            holds_rows = False
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    holds_rows = True
                    where = f"{path}, row {number}"
                    yield where, _example(line, where, f"{path.stem}-{number}", path.stem, config)
        if not holds_rows:
            raise ValueError(f"{path}: holds no rows")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text") from None


def _example(line: str, where: str, default_id: str, default_source: str, config: DataConfig) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be a JSON object with the keys 'prompt' and 'answer'")
    _check_fields(row, where)
    prompt, question = _prompt(row["prompt"], where, row.get("system") or config.system)
    example = Example(
        id=default_id if row.get("id") is None else str(row["id"]),
        prompt=prompt,
        question=question,
        answer=str(row["answer"]),
        verifier=row.get("verifier") or config.verifier,
        source=row.get("source") or default_source,
        metadata=row.get("metadata") or {},
    )
    try:
        resolve(example.verifier)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return example


_FIELDS: dict[str, tuple[type, ...]] = {
    "prompt": (str, list),
    "answer": (str, int, float),
    "id": (str, int, float),
    "verifier": (str,),
    "source": (str,),
    "system": (str,),
    "metadata": (dict,),
}
_JSON_NAMES = {str: "text", list: "chat messages", int: "a number", float: "a number", dict: "an object"}


def _check_fields(row: dict[str, Any], where: str) -> None:
    for key in ("prompt", "answer"):
        value = row.get(key)
        if value in (None, []) or (isinstance(value, str) and not value.strip()):
            raise ValueError(f"{where}: has no {key!r}")
    for key in ("role", "images"):
        if row.get(key):
            raise ValueError(f"{where}: rows with {key!r} cannot be trained on yet; remove the row")
    for key, types in _FIELDS.items():
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            wanted = " or ".join(dict.fromkeys(_JSON_NAMES[t] for t in types))
            raise ValueError(f"{where}: {key!r} must be {wanted}, not {json.dumps(value)[:40]}")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None


def _prompt(prompt: Any, where: str, system: str | None) -> tuple[tuple[Message, ...], str]:
    """The chat messages, and the question as judges will see it."""
    if isinstance(prompt, str):
        return answer_prompt(prompt, system), prompt
    well_formed = isinstance(prompt, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt
    )
    if not well_formed or prompt[-1]["role"] != "user":
        raise ValueError(
            f"{where}: 'prompt' must be text, or chat messages (role, content) that end with a user's turn"
        )
    turns = [m for m in prompt if m["role"] != "system"]
    question = turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{m['role']}: {m['content']}" for m in turns)
    has_system = any(m["role"] == "system" for m in prompt)
    opening = [{"role": "system", "content": system}] if system and not has_system else []
    return (*opening, *prompt), question


def _problem_examples(stream: Iterator[Problem], count: int, config: DataConfig) -> Iterator[Example]:
    """The first `count` different questions of a stream."""
    seen: set[str] = set()
    for problem in itertools.islice(stream, 50 * count):
        if len(seen) == count:
            return
        if problem.question not in seen:
            seen.add(problem.question)
            yield Example(
                id=f"{problem.family.name}-{len(seen)}-{problem.question}",
                prompt=answer_prompt(problem.question, config.system),
                question=problem.question,
                answer=problem.answer,
                verifier="numeric",
                source=problem.family.name,
            )


def _fact_examples(config: DataConfig) -> Iterator[Example]:
    for question, answer in FACTS:
        prompt = answer_prompt(question, config.system)
        yield Example(f"fact-{question}", prompt, question, answer, verifier="choice", source="retention")


_EMBEDDED: dict[str, Callable[[DataConfig], Iterator[Example]]] = {
    "train": lambda config: _problem_examples(problems(FAMILIES, "train", 0), 4096, config),
    "validation": lambda config: _problem_examples(problems(FAMILIES, "validation", 0), 700, config),
    "test": lambda config: _problem_examples(problems(FAMILIES, "test", 0), 700, config),
    "transfer": lambda config: itertools.chain.from_iterable(
        _problem_examples(problems((family,), "test", 0), 100, config) for family in TRANSFER
    ),
    "retention": _fact_examples,
}
