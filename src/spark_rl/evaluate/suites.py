"""What is measured: questions to answer, responses and pairs to judge, probes. A suite is fixed: same name, same items.

    embedded         the embedded questions of the validation split (what settings may be chosen on)
    embedded:test    those of the test split (what is reported)
    embedded:vision-validation, embedded:vision-test
                     the same of the embedded questions about pictures
    paper-text       published sets, all or one by name (`published_sets.py`): gsm8k, math-500, aime24, ...
    reward-bench-2   responses to choose among, scored by its own rule
    paper-vision     published sets whose questions have images; vl-reward-bench compares responses to such ones
    FILE.jsonl       yours: rows to answer (`prompt`, `answer`), to judge (`question`, `response`, `right`: true or
                     false) and to compare (`question`, `right`, `wrong`: responses), each with `images` or without

The embedded judge sets are `embedded/judged/*.jsonl`: rollouts of models that are not under test, recorded once by
`python -m spark_rl.evaluate.record`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spark_rl.config import DataConfig, SourceConfig
from spark_rl.data.row_images import asked_to_judge
from spark_rl.data.rows import RowReader
from spark_rl.data.sources import open_sources
from spark_rl.evaluate.probes import Probe, probes_of
from spark_rl.evaluate.published import in_suite, load
from spark_rl.evaluate.published_rows import BestOfItem, PairItem
from spark_rl.evaluate.published_sets import PUBLISHED, PublishedSet
from spark_rl.images import blank, reference
from spark_rl.jsonl import read_row
from spark_rl.prompts import Prompts
from spark_rl.types import Example, Image
from spark_rl.verify import (
    BOXED,
    Check,
    Format,
    VerifierPool,
    box,
    check_trusted,
    extract_answer,
    gold_problem,
)

EMBEDDED = ("embedded", *(f"embedded:{part}" for part in ("validation", "test", "vision-validation", "vision-test")))
COLLECTIONS = tuple(dict.fromkeys(each.suite for each in PUBLISHED.values()))


@dataclass(frozen=True, slots=True)
class PointItem:
    """A response to judge."""

    id: str
    question: str
    response: str
    right: bool
    images: tuple[Image, ...] = ()
    """Of the question, as those of an `Example`."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything that is asked of a model."""

    name: str
    questions: list[Example]
    further: list[Example] = field(default_factory=list)
    """Questions that are only reported by source: transfer, retention."""
    points: list[PointItem] = field(default_factory=list)
    pairs: list[PairItem] = field(default_factory=list)
    best_of: list[BestOfItem] = field(default_factory=list)
    """Of several responses, which are right? Scored as RewardBench 2."""
    probes: list[Probe] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """By source, what was wrong with each row that is left out."""

    @property
    def has_images(self) -> bool:
        """Whether some of it asks about images."""
        judged: Sequence[PointItem | PairItem | BestOfItem] = [*self.points, *self.pairs, *self.best_of]
        return any(each.images for each in [*self.questions, *self.further, *judged])


def blinded(suite: Suite) -> Suite:
    """The same items with white pictures: what a model makes of them without looking."""

    def without(items: list[Any]) -> list[Any]:
        return [replace(item, images=tuple(map(blank, item.images))) for item in items]

    return replace(
        suite,
        name=f"{suite.name}, blind",
        questions=without(suite.questions),
        further=without(suite.further),
        points=without(suite.points),
        pairs=without(suite.pairs),
        best_of=without(suite.best_of),
        probes=without(suite.probes),
    )


def open_suite(
    name: str,
    pool: VerifierPool,
    limit: int | None = None,
    local: Mapping[str, Path] | None = None,
    *,
    skip_bad: bool = False,
    verifier: str = "math",
    right_at: float = 1.0,
    prompts: Prompts = Prompts(),
) -> Suite:
    """The suite of that name, each part cut to its first `limit` items, of published sets each set.

    Args:
        local: copies of published sets, by name; the others come from the Hub.
        skip_bad: leave out rows that are wrong, or whose images cannot be read, and count them in `skipped`.
        verifier: of rows of a file that name none; the only function that these may name.
        right_at: the reward from which on an answer to such rows is right.
        prompts: how questions are asked, and how embedded responses state their answers.

    Raises:
        ValueError: there is none, it has no usable row, or (unless they are skipped) a row is wrong; the sentence names
            row and field.
    """
    published = in_suite(name) or ([PUBLISHED[name]] if name in PUBLISHED else [])
    if unused := set(local or {}) - {each.name for each in published}:
        raise ValueError(f"--local {min(unused)}: {name} holds no such set; {_known_sets(published)}")
    for option, is_set in ((f"--verifier {verifier}", verifier != "math"), (f"--right-at {right_at:g}", right_at != 1)):
        if is_set and (published or name in EMBEDDED):
            raise ValueError(f"{option}: {name} says itself how its answers are graded; leave it out")
    if published:
        return _published(name, published, limit, local or {}, skip_bad, prompts)
    if name in EMBEDDED:
        return _embedded(name, limit, prompts)
    if name.endswith(".jsonl") or Path(name).is_file():
        return _file(Path(name), pool, limit, skip_bad, verifier, right_at, prompts)
    near = get_close_matches(name, [*EMBEDDED, *COLLECTIONS, *PUBLISHED], 1)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    known = ", ".join((*EMBEDDED, *COLLECTIONS))
    raise ValueError(f"unknown suite {name!r}; {hint} are {known}, each published set, and any .jsonl file of yours")


def _known_sets(published: Sequence[PublishedSet]) -> str:
    return f"it holds {', '.join(each.name for each in published)}" if published else "it is no published set"


def _published(
    name: str,
    published: Sequence[PublishedSet],
    limit: int | None,
    local: Mapping[str, Path],
    skip_bad: bool,
    prompts: Prompts,
) -> Suite:
    suite = Suite(name, [])
    for each in published:
        skipped: list[str] = []
        items = load(each.name, local.get(each.name), limit, skipped if skip_bad else None, prompts)
        _check_stated(each.name, items, prompts.answer_format)
        if skipped:
            suite.skipped[each.name] = skipped
        suite.questions.extend(item for item in items if isinstance(item, Example))
        suite.best_of.extend(item for item in items if isinstance(item, BestOfItem))
        suite.pairs.extend(item for item in items if isinstance(item, PairItem))
    return suite


def _check_stated(name: str, items: Sequence[Any], stated: Format) -> None:
    """Of published sets the golds are trusted, but a format may not be able to state them.

    Raises:
        ValueError: it cannot state one.
    """
    for item in items if stated is not BOXED else ():
        if isinstance(item, Example) and stated.read(stated.write(item.answer)) is None:
            raise ValueError(
                f"{name}: the answer {item.answer[:40]!r} cannot be stated in the format {stated.name}; set another "
                "data.answer_format"
            )


def _embedded(name: str, limit: int | None, prompts: Prompts) -> Suite:
    part = name.partition(":")[2] or "validation"
    judged = importlib.resources.files("spark_rl.embedded") / "judged" / f"{part}.jsonl"
    rows = [read_row(line.encode()) for line in judged.read_text(encoding="utf-8").splitlines()][:limit]
    rows = [row | {key: _restated(row[key], prompts.answer_format) for key in ("right", "wrong")} for row in rows]
    images = [tuple(reference(image, Path()) for image in row.get("images", ())) for row in rows]
    further = () if part.startswith("vision-") else ("transfer", "retention")
    return Suite(
        name=f"embedded:{part}",
        questions=embedded_examples(f"embedded:{part}", prompts)[: limit or 500],
        further=[e for other in further for e in embedded_examples(f"embedded:{other}", prompts)[:limit]],
        points=[
            PointItem(f"{row['id']}/{key}", row["question"], row[key], key == "right", of_row)
            for row, of_row in zip(rows, images, strict=True)
            for key in ("right", "wrong")
        ],
        pairs=[
            PairItem(row["id"], row["question"], row["right"], row["wrong"], images=of_row)
            for row, of_row in zip(rows, images, strict=True)
        ],
        probes=[
            probe
            for number, (row, of_row) in enumerate(zip(rows[:100], images, strict=False))
            for probe in probes_of(row["id"], row["question"], row["right"], row["wrong"], number, of_row, prompts)
        ],
    )


def _restated(response: str, stated: Format) -> str:
    """A response with a box, with its answer in another format."""
    answer = extract_answer(response)
    return response if answer is None else response.replace(box(answer), stated.write(answer))


def embedded_examples(
    path: str,
    prompts: Prompts = Prompts(),
) -> list[Example]:
    """All questions of an embedded set."""
    (source,) = open_sources([SourceConfig(path=path)], DataConfig(), set(), held_out=True, prompts=prompts)
    return [source.task(i).example for i in range(source.num_rows)]


def _file(
    path: Path,
    pool: VerifierPool,
    limit: int | None,
    skip_bad: bool,
    verifier: str,
    right_at: float,
    prompts: Prompts,
) -> Suite:
    suite = Suite(path.name, [])
    parts: dict[type, list[Any]] = {Example: suite.questions, PointItem: suite.points, PairItem: suite.pairs}
    reader = RowReader(SourceConfig(path=path.stem), DataConfig(verifier=verifier), path.stem, path.parent, prompts)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"suite: {path} cannot be read ({error.strerror}); name a suite or a JSONL file") from None
    known: dict[tuple[type, str], int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = _item(read_row(line), number, reader, pool, right_at)
            if (first := known.setdefault((type(item), item.id), number)) != number:
                raise ValueError(f"the id {item.id!r} was given before, in row {first}; give each row its own")
        except ValueError as error:
            sentence = f"{path}, row {number}: {error}"
            if not skip_bad:
                raise ValueError(f"{sentence} (--skip-bad leaves such rows out)") from None
            suite.skipped.setdefault(path.name, []).append(sentence)
        else:
            parts[type(item)].append(item)
    if not any(parts.values()) and suite.skipped:
        raise ValueError(f"no row is usable; the first one: {suite.skipped[path.name][0]}")
    if not any(parts.values()):
        raise ValueError(f"suite: {path} has no rows; write one JSON object a line")
    return replace(suite, questions=suite.questions[:limit], points=suite.points[:limit], pairs=suite.pairs[:limit])


def _item(
    row: Any, number: int, reader: RowReader, pool: VerifierPool, right_at: float
) -> Example | PointItem | PairItem:
    """What a row asks.

    Raises:
        ValueError: nothing, or it is wrong; the reason alone.
    """
    if isinstance(row, Mapping) and ("response" in row or "wrong" in row):
        id, is_point = str(row.get("id", f"row-{number}")), "response" in row
        if is_point and not isinstance(row.get("right"), bool):
            raise ValueError("'right' must be true or false: whether the response is right")
        question, *responses = _texts(row, ("question", "response") if is_point else ("question", "right", "wrong"))
        question, images = asked_to_judge(question, row, reader.folder)
        if is_point:
            return PointItem(id, question, responses[0], row["right"], images)
        return PairItem(id, question, responses[0], responses[1], str(row.get("source", "")), images)
    if isinstance(row, Mapping):
        _check_question(row, reader)
    example = reader.task(row, number - 1).example
    stated = reader.prompts.answer_format
    gold = stated.write(example.answer)
    check = Check(gold, example.answer, example.verifier, example.metadata, example.prompt, stated)
    if problem := gold_problem(pool.verify([check])[0], example.verifier, right_at, stated):
        raise ValueError(f"'answer': {problem}")
    return example


def _check_question(row: Mapping[str, Any], reader: RowReader) -> None:
    """What the reader would refuse with advice on the config of a run, which an evaluation has none of.

    Raises:
        ValueError: something is missing, or the verifier is a function that the user did not name.
    """
    if missing := [key for key in ("prompt", "answer") if key not in row]:
        raise ValueError(f"has no {missing[0]!r}; add it")
    if isinstance(name := row.get("verifier"), str):
        check_trusted(name, reader.verifier)


def _texts(row: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    for key in keys:
        if not isinstance(row.get(key), str):
            raise ValueError(f"{key!r} must be text" if key in row else f"has no {key!r}; add it")
    return [row[key] for key in keys]
