"""The sources of a config, opened: tasks with random access, from files, the Hub, generators and embedded sets."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib import metadata

from spark_rl.config import DataConfig, SourceConfig
from spark_rl.data.rows import RowReader, question_task
from spark_rl.data.tables import Table, names_files, open_tables
from spark_rl.embedded.pictures import PictureProblem, picture_problems
from spark_rl.embedded.tasks import FACTS, FAMILIES, TRANSFER, Problem, problems
from spark_rl.prompts import Prompts
from spark_rl.types import Example, Image, Message, Task, without_images

Asking = Callable[[str], tuple[Message, ...]]
"""Makes the prompt of a question."""
HELD_OUT_SEED = 10**9
"""Generated held-out questions come from seeds that no training set of a lesser size reaches."""
_UNSTABLE = {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
"""Tasks of reasoning-gym 0.1.25 that iterate over sets of strings, so that only other processes disagree."""
_PROBES = 3
"""Generated rows that are made twice, in two orders, to see whether they stay the same."""


@dataclass(eq=False)
class Source:
    """Tasks by index. What is left out stays in place, so that an index always means the same row."""

    path: str
    num_rows: int
    read: Callable[[int], Task]
    """The task of a row; ValueError with a reason if the row is bad."""
    where: Callable[[int], str]
    """A row's place, as messages name it."""
    weight: float | None = None
    generator: str = ""
    """What identifies generated rows, which are made when they are drawn; empty for rows that are stored."""
    reader: RowReader | None = None
    """What reads rows of a file or data set, and knows their columns."""
    response: Callable[[int], str | None] = lambda index: None
    """The worked response that a row holds; None if it has none."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Rows that are not asked, and why: `bad_row`, `bad_image`, `unverified`, `duplicate_id`, `bad_gold`,
    `bad_prompt`, `held_out`, `example`, `repeated` or `no_right_response`."""

    @property
    def has_responses(self) -> bool:
        """Whether its rows have responses to be trained on."""
        return self.reader is not None and self.reader.has_responses

    def task(self, index: int) -> Task:
        """The task of a row that was good before.

        Raises:
            ValueError: it no longer is, since somebody wrote to the file.
        """
        try:
            return self.read(index)
        except ValueError as error:
            raise ValueError(
                f"{self.where(index)}: {error}; it was good when the run began, so the file was changed: put it back"
            ) from None


def open_sources(
    configs: Sequence[SourceConfig],
    config: DataConfig,
    names: set[str],
    *,
    held_out: bool = False,
    prompts: Prompts = Prompts(),
    responses: bool = False,
) -> list[Source]:
    """One source for every file, data set or generator that is named.

    Args:
        responses: whether every row has responses; those that are made here have none.
        names: short names that are taken; those of the new sources are added.
        prompts: how questions that are plain text are asked.

    Raises:
        ValueError: one of them does not exist or cannot be read; the sentence names it.
    """
    sources: list[Source] = []
    for each in configs:
        kind, colon, name = each.path.partition(":")
        _refuse_unread(each, kind if colon else "")
        if responses and colon and kind in ("embedded", "reasoning_gym"):
            raise ValueError(
                f"warm_start.data: {each.path} has questions and no responses; name rows that have, or train on the "
                "model's own by warm_start.from_rollouts"
            )
        if kind == "embedded" and colon:
            parts = [_embedded(each, name, config, prompts)]
        elif kind == "reasoning_gym" and colon:
            parts = [
                _generated(each, task, own_name(task, names), config, held_out, prompts) for task in name.split("+")
            ]
        else:
            split = each.split or ("test" if held_out else "train")
            tables = open_tables(each.path, split=split, subset=each.subset, revision=each.revision)
            parts = _stored(each, tables, [own_name(table.name, names) for table in tables], config, prompts, responses)
        num_rows = sum(part.num_rows for part in parts)
        for part in parts:
            part.weight = each.weight and each.weight * part.num_rows / num_rows
        sources += parts
    return sources


def _refuse_unread(source: SourceConfig, kind: str) -> None:
    """A setting that does nothing is a mistake."""
    reads = {"path", "weight", "size", "system"}
    if kind == "reasoning_gym":
        reads |= {"options"}
    elif kind != "embedded":
        reads |= {"columns", "answer_pattern", "verifier"}
        reads |= set() if names_files(source.path) else {"split", "subset", "revision"}
    if unread := [key for key in SourceConfig.model_fields if key not in reads and getattr(source, key)]:
        raise ValueError(f"data: {source.path} makes no use of {unread[0]!r}; remove it")


def own_name(name: str, names: set[str]) -> str:
    """The name itself, or with a number if another source has it: ids and metrics are made of it. It joins `names`."""
    numbered = (name if i == 1 else f"{name}~{i}" for i in itertools.count(1))
    own = next(candidate for candidate in numbered if candidate not in names)
    names.add(own)
    return own


def _stored(
    source: SourceConfig,
    tables: Sequence[Table],
    names: Sequence[str],
    config: DataConfig,
    prompts: Prompts,
    responses: bool,
) -> list[Source]:
    """One source a table, the first `size` rows of them all."""
    sources, left = [], source.size or sum(map(len, tables))
    for table, name in zip(tables, names, strict=True):
        num_rows = min(len(table), left)
        if num_rows:
            reader = RowReader(source, config, name, table.folder, prompts, responses)
            read, response = _read(table, reader), _response(table, reader)
            sources.append(Source(table.place, num_rows, read, table.where, reader=reader, response=response))
        left -= num_rows
    return sources


def _read(table: Table, reader: RowReader) -> Callable[[int], Task]:
    return lambda index: reader.task(table[index], index)


def _response(table: Table, reader: RowReader) -> Callable[[int], str | None]:
    return lambda index: reader.response(table[index])


# ------------------------------------------------------------------------------------------------ reasoning-gym


def _generated(
    source: SourceConfig, task: str, name: str, config: DataConfig, held_out: bool, prompts: Prompts
) -> Source:
    """Questions that reasoning-gym makes and grades; number i comes from the generator's seed plus i."""
    import reasoning_gym

    path = f"reasoning_gym:{task}"
    known = sorted(set(reasoning_gym.factory.DATASETS) - {"composite"})
    if task not in known:
        near = get_close_matches(task, known, n=1, cutoff=0)[0]
        raise ValueError(f"data: reasoning-gym has no task {task!r}; did you mean {near!r}?")
    if task in _UNSTABLE and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise ValueError(
            f"data: {path} makes other questions in every process; set the environment variable PYTHONHASHSEED=0, so "
            "that a run can be resumed and its ranks agree"
        )
    size = source.size or (500 if held_out else 2000)
    options = dict(source.options)
    seed = options.pop("seed", 0)
    if type(seed) is not int or not 0 <= seed <= HELD_OUT_SEED - size:
        limit = HELD_OUT_SEED - size
        raise ValueError(f"data: {path}: the seed is {seed!r}; make it a whole number from 0 to {limit}")
    seed += HELD_OUT_SEED if held_out else 0
    allowed = [f.name for f in fields(reasoning_gym.factory.DATASETS[task][1]) if f.name not in ("seed", "size")]
    if unknown := [key for key in options if key not in allowed]:
        raise ValueError(f"data: {path} has no option {unknown[0]!r}; known are {', '.join(allowed)}")
    try:
        generator = reasoning_gym.create_dataset(task, seed=seed, size=size, **options)
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"data: {path} refuses its options {options} ({reason}); change them") from None

    def made(index: int) -> str:
        return json.dumps(generator[index], default=str)  # as a checkpoint would keep it

    probes = range(min(_PROBES, size))
    if [made(i) for i in probes] != [made(i) for i in reversed(probes)][::-1]:
        raise ValueError(
            f"data: {path} makes another question each time it is asked for the same one, so that no run could be "
            "resumed; name another task"
        )

    def read(index: int) -> Task:
        entry = json.loads(made(index))
        question = without_images(entry["question"])
        example = Example(
            id=f"{name}-{seed + index}",
            prompt=prompts.question(question, source.system or config.system),
            question=question,
            answer=entry["answer"] or "",  # some tasks have a scorer and no single right answer
            verifier="reasoning_gym",
            source=name,
            metadata={"dataset": task, "entry": entry},
        )
        return question_task(example)

    version = metadata.version("reasoning-gym")
    identity = f"{path} {json.dumps(options, sort_keys=True)} {seed} {size} {version}"
    return Source(path, size, read, lambda i: f"{path}, seed {seed + i}", generator=identity)


# ------------------------------------------------------------------------------------------------ embedded sets


def _embedded(source: SourceConfig, name: str, config: DataConfig, prompts: Prompts) -> Source:
    if name not in _EMBEDDED:
        raise ValueError(f"data: there is no {source.path!r}; the embedded sets are {', '.join(_EMBEDDED)}")
    system = source.system or config.system

    def ask(question: str) -> tuple[Message, ...]:
        return prompts.question(question, system)

    examples = list(itertools.islice(_EMBEDDED[name](ask), source.size))
    return Source(source.path, len(examples), lambda i: question_task(examples[i]), lambda i: source.path)


def _problem_examples(stream: Iterator[Problem | PictureProblem], count: int, ask: Asking) -> Iterator[Example]:
    """The first `count` different questions of a stream."""
    seen: set[tuple[str, tuple[Image, ...]]] = set()
    for problem in itertools.islice(stream, 50 * count):
        if len(seen) == count:
            return
        if (problem.asked, problem.images) not in seen:
            seen.add((problem.asked, problem.images))
            yield Example(
                id=f"{problem.kind}-{len(seen)}-{problem.asked}",
                prompt=ask(problem.question),
                question=problem.question,
                answer=problem.answer,
                verifier="numeric",
                source=problem.kind,
                images=problem.images,
            )


def _transfer_examples(ask: Asking) -> Iterator[Example]:
    for family in TRANSFER:
        yield from _problem_examples(problems((family,), "test", 0), 100, ask)


def _fact_examples(ask: Asking) -> Iterator[Example]:
    for question, answer in FACTS:
        yield Example(f"fact-{question}", ask(question), question, answer, verifier="choice", source="retention")


_EMBEDDED: dict[str, Callable[[Asking], Iterator[Example]]] = {
    "train": lambda ask: _problem_examples(problems(FAMILIES, "train", 0), 4096, ask),
    "validation": lambda ask: _problem_examples(problems(FAMILIES, "validation", 0), 700, ask),
    "test": lambda ask: _problem_examples(problems(FAMILIES, "test", 0), 700, ask),
    "transfer": _transfer_examples,
    "retention": _fact_examples,
    "vision-train": lambda ask: _problem_examples(picture_problems("train", 0), 4096, ask),
    "vision-validation": lambda ask: _problem_examples(picture_problems("validation", 0), 700, ask),
    "vision-test": lambda ask: _problem_examples(picture_problems("test", 0), 700, ask),
}
