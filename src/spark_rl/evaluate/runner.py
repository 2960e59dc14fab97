"""Asks a model everything of a suite, and writes each answer down as it comes.

A row of `samples.jsonl` is one finished item; its key is (model, part, strategy, seed, id). What stands there is not
asked again, so that an evaluation that was killed goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from spark_rl.config import Inference
from spark_rl.data.row_images import written_question
from spark_rl.evaluate.probes import Probe
from spark_rl.evaluate.published_rows import BestOfItem, PairItem
from spark_rl.evaluate.suites import PointItem, Suite
from spark_rl.infer.chat import ChatModel
from spark_rl.infer.judge import Judge
from spark_rl.infer.plan import Ask
from spark_rl.infer.solver import Solution, Solver
from spark_rl.infer.strategies import Step
from spark_rl.jsonl import decoded, parse_json
from spark_rl.types import Example, Role
from spark_rl.verify import Check, Verdict, VerifierPool, failed

CHUNK = 128
"""Items that are asked together and written down together."""
Row = dict[str, Any]
Key = tuple[Any, ...]
T = TypeVar("T")
KEYS = ("model", "part", "strategy", "seed", "id")
SEEDLESS = ("greedy", "reflect")
"""Strategies that sample nothing while the judge does not."""
_PARTS = ("questions", "further", "points", "pairs", "best_of", "probes")
_AnyItem = Example | PointItem | PairItem | BestOfItem | Probe
_OF_THE_GOLD = ("accepted", "entry")
"""Metadata that holds the gold, which a row has already."""


class Samples:
    """`samples.jsonl`: the rows so far, and more as they come. They may be longer than rows of data.

    Raises:
        ValueError: a row was damaged; the sentence names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            whole = path.read_bytes()
            kept = whole[: whole.rfind(b"\n") + 1]
            if len(kept) < len(whole):
                path.write_bytes(kept)  # the last line was being written
            self.rows = [self._read(line, number) for number, line in enumerate(kept.splitlines(), start=1)]
        self._known = {_key(row) for row in self.rows}

    def _read(self, line: bytes, number: int) -> Row:
        try:
            row: Row = parse_json(decoded(line))
        except ValueError as error:
            raise ValueError(f"{self.path}, row {number}: {error} (remove it to have it asked again)") from None
        return row

    def __contains__(self, row: Row) -> bool:
        return _key(row) in self._known

    def add(self, rows: Sequence[Row]) -> None:
        """Append finished rows."""
        with self.path.open("ab") as file:
            file.write(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
        self.rows += rows
        self._known |= {_key(row) for row in rows}


class Runner:
    """Evaluates one model.

    Args:
        label: the model's name in the rows, `model` or `baseline`.
        progress: told (what is being done, items done, items in all).
        right_at: the reward from which on an answer is right.
    """

    def __init__(
        self,
        label: str,
        model: ChatModel,
        settings: Inference,
        pool: VerifierPool,
        samples: Samples,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
        right_at: float = 1.0,
    ) -> None:
        self.label, self.model, self.settings, self.pool = label, model, settings, pool
        self.samples, self.progress, self.right_at = samples, progress, right_at
        self.judge = Judge(model, settings.judge, seed=settings.seed)

    def renderable(self, suite: Suite, skip_bad: bool = False) -> Suite:
        """The suite without the items of which the model's chat template makes no prompt.

        Raises:
            ValueError: there is such an item, and it is not to be skipped; the sentence names it.
        """
        reasons: list[str] = []

        def is_good(item: _AnyItem) -> bool:
            try:
                for ask in self._asks(item):
                    self.model.check(ask.messages, ask.images)
            except ValueError as error:
                sentence = f"{suite.name}, {item.id}: {error}"
                if not skip_bad:
                    raise ValueError(f"{sentence} (--skip-bad leaves such rows out)") from None
                reasons.append(sentence)
                return False
            return True

        parts: dict[str, Any] = {name: list(filter(is_good, getattr(suite, name))) for name in _PARTS}
        skipped = {f"{suite.name} ({self.model.name})": reasons} if reasons else {}
        return replace(suite, skipped=suite.skipped | skipped, **parts)

    def _asks(self, item: _AnyItem) -> Iterator[Ask]:
        """What an item is asked with at first."""
        if isinstance(item, Example):
            yield Ask(self.model.prompts.conversation(Role.ANSWER, item.prompt), images=item.images)
        elif isinstance(item, PairItem):
            yield from self.judge.asks(item.question, item.right, item.wrong, images=item.images)
        else:
            for response in item.responses if isinstance(item, BestOfItem) else [item.response]:
                yield from self.judge.asks(item.question, response, images=item.images)

    def run(self, suite: Suite, strategies: Sequence[str], seeds: int) -> None:
        """Everything that is not known yet."""
        for strategy in strategies:
            alone = strategy in SEEDLESS and self.settings.judge.samples == 1
            for seed in range(1 if alone else seeds):
                self._solve("answer", suite.questions, strategy, seed)
        if suite.further:
            self._solve("further", suite.further, "greedy", 0)
        self._points("pointwise", suite.points)
        self._pairs("pairwise", suite.pairs)
        self._best_of(suite.best_of)
        probes = {probe.id: probe.kind for probe in suite.probes}
        as_points = [PointItem(p.id, p.question, p.response, p.right, p.images) for p in suite.probes]
        self._points("probe", as_points, probes)
        if suite.points or suite.pairs:
            self._own(suite.questions)

    def _own(self, questions: Sequence[Example]) -> None:
        """The judge on the model's own answers: a sampled one to each question, if the verifier said what it is."""
        self._solve("own answer", questions, "sample", 0)
        rows = {row["id"]: row for row in self.samples.rows if row["part"] == "own answer" and self._is_mine(row)}
        own = [(q, rows[q.id]) for q in questions if q.id in rows and _is_label(rows[q.id])]
        items = [PointItem(q.id, q.question, row["text"], row["reason"] == "correct", q.images) for q, row in own]
        self._points("own", items)

    def _is_mine(self, row: Row) -> bool:
        return bool(row["model"] == self.label)

    def _solve(self, part: str, examples: Sequence[Example], strategy: str, seed: int) -> None:
        base = {"model": self.label, "part": part, "strategy": strategy, "seed": seed}
        solver = Solver(
            self.model,
            self.pool,
            self.settings.solve,
            judge=self.judge,
            seed=self.settings.seed + 1_000_003 * seed,
            right_at=self.right_at,
        )
        for chunk in self._open(f"{part}, {strategy}, seed {seed}", examples, base):
            solutions = solver.solve(chunk, strategy)
            self.samples.add([{**base, **row} for row in self._graded(chunk, solutions)])

    def _graded(self, examples: Sequence[Example], solutions: Sequence[Solution]) -> Iterator[Row]:
        stated = self.model.prompts.answer_format
        for example, solution in zip(examples, solutions, strict=True):
            stages = [*solution.steps, Step("answer", solution.text)]
            answers = [step for step in stages if step.kind in ("answer", "revise")]
            checks = [
                Check(step.text, example.answer, example.verifier, example.metadata, example.prompt, stated)
                for step in answers
            ]
            verdicts = [verdict.at(self.right_at) for verdict in self.pool.verify(checks)]
            graded = {id(step): _grade(verdict) for step, verdict in zip(answers, verdicts, strict=True)}
            metadata = {key: value for key, value in example.metadata.items() if key not in _OF_THE_GOLD}
            yield {
                "id": example.id,
                "group": _group(example),
                "source": example.source,
                **({"metadata": metadata} if metadata else {}),
                "gold": example.answer,
                "answer": solution.answer,
                **_grade(verdicts[-1]),
                "prompt_tokens": solution.prompt_tokens,
                "generated_tokens": solution.generated_tokens,
                "text": solution.text,
                "steps": [asdict(step) | graded.get(id(step), _grade(None)) for step in solution.steps],
            }

    def _points(self, part: str, items: Sequence[PointItem], kinds: dict[str, str] | None = None) -> None:
        base = {"model": self.label, "part": part, "strategy": "judge", "seed": 0}
        for chunk in self._open(f"judging, {part}", items, base):
            verdicts = self.judge.score_all([(item.question, item.response, item.images) for item in chunk])
            self.samples.add(
                [
                    {
                        **base,
                        "id": item.id,
                        **({"kind": kinds[item.id]} if kinds else {}),
                        "label": "right" if item.right else "wrong",
                        "verdict": verdict.verdict,
                        "probability": verdict.probability,
                        **written_question(item.question, item.images),
                        "response": item.response,
                        "text": verdict.text,
                    }
                    for item, verdict in zip(chunk, verdicts, strict=True)
                ]
            )

    def _pairs(self, part: str, items: Sequence[PairItem]) -> None:
        base = {"model": self.label, "part": part, "strategy": "judge", "seed": 0}
        for chunk in self._open(f"judging, {part}", items, base):
            preferences = self.judge.compare_all(
                [(each.question, each.right, each.wrong, each.images) for each in chunk]
            )
            self.samples.add(
                [
                    {
                        **base,
                        "id": item.id,
                        "source": item.source,
                        "prefers_right": None if p.preferred is None else p.preferred == "a",
                        "probability": p.probability,
                        "consistent": p.consistent,
                        **written_question(item.question, item.images),
                        "texts": p.texts,
                    }
                    for item, p in zip(chunk, preferences, strict=True)
                ]
            )

    def _best_of(self, items: Sequence[BestOfItem]) -> None:
        base = {"model": self.label, "part": "best_of", "strategy": "judge", "seed": 0}
        for chunk in self._open("judging, best of several", items, base):
            shown = [(item.question, response, item.images) for item in chunk for response in item.responses]
            verdicts = iter(self.judge.score_all(shown))
            self.samples.add(
                [
                    {
                        **base,
                        "id": item.id,
                        "subset": item.subset,
                        "num_right": item.num_right,
                        "scores": [next(verdicts).probability for _ in item.responses],
                    }
                    for item in chunk
                ]
            )

    def _open(self, what: str, items: Sequence[T], base: Row) -> Iterator[list[T]]:
        """Chunks of the items that are not known yet."""
        fresh = [item for item in items if {**base, "id": item.id} not in self.samples]  # type: ignore[attr-defined]
        done = len(items) - len(fresh)
        self.progress(what, done, len(items))
        for start in range(0, len(fresh), CHUNK):
            chunk = fresh[start : start + CHUNK]
            yield chunk
            done += len(chunk)
            self.progress(what, done, len(items))


def _is_label(row: Row) -> bool:
    """Whether the verifier has said what an answer is: where it failed it has not, whatever the reward."""
    return row["reward"] is not None and not failed(row["reason"])


def _grade(verdict: Verdict | None) -> Row:
    return {"reward": verdict and verdict.reward, "reason": verdict and verdict.reason}


def _group(example: Example) -> str:
    """What variants of one problem share; of other questions, the id."""
    problem = example.metadata.get("variant_of")
    return example.id if problem is None else f"{example.source}, {problem}"


def _key(row: Row) -> Key:
    return tuple(row[key] for key in KEYS)
