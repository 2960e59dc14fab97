"""All the data of a run, opened and checked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spark_rl.config import Config
from spark_rl.data.check import Checker, Track, example_questions, question_key, refuse_unknown_columns, untracked
from spark_rl.data.questions import Questions
from spark_rl.data.sources import Source, open_sources
from spark_rl.data.worked import take_examples
from spark_rl.models.prompts import prompts_of_run
from spark_rl.prompts import ChatRenderer, Prompts, one_sided
from spark_rl.types import Image, Role, Task
from spark_rl.verify import VerifierPool

_SELF_REWARD_OFF = "give it an answer and a rule, or set self_reward.enabled=true"
_NO_RULE = "the responses of a warm start need an answer and a rule, so move it to data.train"
_HELD_OUT_UNVERIFIED = "held-out questions need an answer and a rule, so move it to data.train"


@dataclass(slots=True)
class Data:
    """What a run asks."""

    train: Questions
    validation: list[Task]
    monitor: list[Task]
    training: Checker
    held_out: Checker
    """Of the sources of `validation` and of `monitor`."""
    num_validation: int
    """How many of these are of `validation`."""
    prompts: Prompts
    """What the model is shown, worked examples from the data included."""
    notes: list[str] = field(default_factory=list)
    """Sentences on the worked examples, and on prompts that are the model's own."""
    warm_start: Questions | None = None
    """Rows with responses, if the run begins with such."""
    warming: Checker | None = None
    """Of their sources."""

    @property
    def _checkers(self) -> list[Checker]:
        return [self.held_out, self.training, *([self.warming] if self.warming else [])]

    @property
    def report(self) -> dict[str, list[dict[str, Any]]]:
        """By part of the run, of every source: `source`, `rows`, `skipped` (reason to count), `fingerprint`."""
        held_out, n = self.held_out.report(), self.num_validation
        report = {"train": self.training.report(), "validation": held_out[:n], "monitor": held_out[n:]}
        return report | ({"warm_start": self.warming.report()} if self.warming else {})

    @property
    def messages(self) -> list[str]:
        """Sentences on worked examples, on rows that were left out, and on images that were not found."""
        return [*self.notes, *(message for checker in self._checkers for message in checker.messages())]

    @property
    def images(self) -> dict[str, Image]:
        """All images, by the hash of their content, about 400 bytes of memory each."""
        return {hash: image for checker in self._checkers for hash, image in checker.images.items()}

    @property
    def with_images(self) -> str | None:
        """The place of a row with images, of any part; None if no question has some."""
        return next(filter(None, (checker.first_with_images() for checker in reversed(self._checkers))), None)

    def settled(self, config: Config) -> Config:
        """A config with the formats that it leaves to the model."""
        answers = config.data.answer_format or self.prompts.answer_format.name
        verdicts = config.prompts.verdict_format or self.prompts.verdict_format.name
        data = config.data.model_copy(update={"answer_format": answers})
        prompts = config.prompts.model_copy(update={"verdict_format": verdicts})
        return config.model_copy(update={"data": data, "prompts": prompts})

    def check_prompts(self, renderer: ChatRenderer) -> None:
        """Render every prompt of the data as the model will see it, and leave out, or refuse, what cannot be rendered.

        Raises:
            ValueError: a row cannot, and such are refused, or a source has no others; or one has images, which the
                model does not take. The sentence names the row.
        """
        if renderer.images is None:
            self.refuse_images()

        left_out = self.held_out.check_prompts(renderer.check_task)
        self.validation = [task for task in self.validation if task.id not in left_out]
        self.monitor = [task for task in self.monitor if task.id not in left_out]
        self.training.check_prompts(renderer.check_task)
        self.train = Questions(self.train.sources, self.train.seed, self.train.held_out, self.prompts)
        if self.warm_start and self.warming:
            self.warming.check_prompts(renderer.check_task)
            self.warm_start = Questions(self.warm_start.sources, self.warm_start.seed, prompts=self.prompts)

    def refuse_images(self) -> None:
        """Refuse questions that the model cannot see, for a model that takes no images.

        Raises:
            ValueError: one has images; the sentence names its place.
        """
        if self.with_images:
            raise ValueError(
                f"{self.with_images}: has images, and the model takes none; name a vision-language model with "
                "model.path, or remove such rows"
            )


def load_data(config: Config, track: Track[Any] = untracked) -> Data:
    """Open and check the sources of a config.

    Raises:
        ValueError: a source or a row is unusable; the sentence names the place and what to change.
    """
    prompts, kept = prompts_of_run(config)
    if config.warm_start.from_rollouts and not (prompts.examples or config.prompts.num_taken):
        raise ValueError(
            "warm_start.from_rollouts rolls out with worked examples before the prompts, and there are none; set "
            "prompts.examples"
        )
    notes = one_sided(prompts)
    if kept:
        notes.append(
            f"{config.model.path} goes on with prompts that it was trained with, since these settings name no others: "
            f"{', '.join(kept)}"
        )
    names = set[str]()  # validation and monitor are answered together, and told apart by id
    validation = open_sources(config.data.validation, config.data, names, held_out=True, prompts=prompts)
    monitor = open_sources(config.data.monitor, config.data, names, held_out=True, prompts=prompts)
    train = open_sources(config.data.train, config.data, set(), prompts=prompts)
    warm = open_sources(config.warm_start.data, config.data, set(), prompts=prompts, responses=True)
    with VerifierPool.of(config.verify) as verifiers:

        def checked(
            sources: Sequence[Source],
            part: str,
            held_out: Collection[int] = (),
            refuse_self: str | None = None,
            examples: Collection[int] = (),
        ) -> Checker:
            right_at = config.recycle.right_at
            checker = Checker(sources, config.data, part, held_out, track, refuse_self, right_at, prompts, examples)
            checker.run(verifiers)
            return checker

        checker = checked([*validation, *monitor], "the held-out questions", refuse_self=_HELD_OUT_UNVERIFIED)
        tasks = _held_out(validation, track, prompts), _held_out(monitor, track, prompts)
        held_out = frozenset(question_key(task, prompts) for part in tasks for task in part)
        refuse_self = None if config.self_reward.enabled else _SELF_REWARD_OFF
        prompts, examples = _with_taken(config, prompts, train, held_out, verifiers, notes)
        training = checked(train, "training", held_out, refuse_self, examples)
        warming = checked(warm, "the warm start", held_out, _NO_RULE, examples) if warm else None
    refuse_unknown_columns([*train, *validation, *monitor, *warm])
    questions = Questions(train, config.train.seed, held_out | examples, prompts)
    rows = Questions(warm, config.train.seed, prompts=prompts) if warm else None
    return Data(questions, *tasks, training, checker, len(validation), prompts, notes, rows, warming)


def _with_taken(
    config: Config,
    prompts: Prompts,
    train: Sequence[Source],
    held_out: Collection[int],
    verifiers: VerifierPool,
    notes: list[str],
) -> tuple[Prompts, frozenset[int]]:
    """The prompts with the examples that are taken from the data, and the keys of the questions of all examples.

    Raises:
        ValueError: there are too few rows for them, or a question is held out.
    """
    shown = example_questions(prompts)
    if both := [text for key, text in shown.items() if key in held_out]:
        raise ValueError(
            f"prompts.examples: the question {both[0]!r:.60} is held out as well; take another one, or hold it out no "
            "longer"
        )
    num = config.prompts.num_taken
    if not num:
        return prompts, frozenset(shown)
    seed, right_at = config.train.seed, config.recycle.right_at
    taken = take_examples(num, train, prompts, held_out, verifiers, seed=seed, right_at=right_at)
    if taken.num_bare:
        notes.append(
            f"prompts.examples: {taken.num_bare} of the {num} rows taken from data.train have no worked response, so "
            "their examples show an answer alone, after which small models guess; name a column that holds the work "
            "(data.columns.response), or write examples yourself (prompts.examples={answer: FILE})"
        )
    return replace(prompts, examples={**prompts.examples, Role.ANSWER: taken.turns}), taken.keys


def _held_out(sources: Sequence[Source], track: Track[Any], prompts: Prompts) -> list[Task]:
    """All tasks of sources that are small and hold questions only, each question of a generator once.

    They are mixed evenly, so that the first of them are of every source.
    """
    placed: list[tuple[float, Task]] = []
    for source in sources:
        asked = set[int]()
        for index in track(range(source.num_rows), f"loading {source.path}", source.num_rows):
            if index in source.left_out:
                continue
            task = source.task(index)
            key = question_key(task, prompts) if source.generator else index
            if key in asked:
                source.left_out[index] = "repeated"
                continue
            asked.add(key)
            if task.role.is_recycled:
                raise ValueError(
                    f"{source.where(index)}: has the role {task.role.value!r}, but only questions can be held out; "
                    "remove it, since judge and reflection items are made of the model's own rollouts"
                )
            placed.append(((index + 0.5) / source.num_rows, task))
    return [task for _, task in sorted(placed, key=lambda place: place[0])]
