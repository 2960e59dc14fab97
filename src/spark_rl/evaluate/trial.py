"""A model tried on a few questions of a run before the run: what it is asked, and what it replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from spark_rl.config import Config, RecycleConfig
from spark_rl.data import Data
from spark_rl.infer.chat import ChatModel
from spark_rl.prompts import Prompts
from spark_rl.recycle import recycle
from spark_rl.rollout.engine import Request
from spark_rl.rollout.scoring import RuleScorer
from spark_rl.train.records import rollout_record
from spark_rl.train.unread import Unread
from spark_rl.types import Group, Role, Rollout, Task
from spark_rl.verify import SELF, Seen, VerifierPool, better_format

SEED = 0
Progress = Callable[[float, float | None], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """Graded replies to some questions, or to prompts made of them."""

    name: str
    """What was special about the prompts, in words; empty for those that the settings name."""
    prompts: Prompts
    """What was shown, and how the replies are read."""
    groups: list[Group]
    seen: list[Seen]
    """The formats of the replies, that of the settings first."""
    tokens: list[int]
    """Of each reply, in order."""
    prompt_tokens: list[int]
    """Of each prompt."""
    seconds: float
    """What the generation took."""

    @property
    def rollouts(self) -> list[Rollout]:
        return [rollout for group in self.groups for rollout in group.rollouts]

    @property
    def parse_rate(self) -> float:
        """Share of the replies in which an answer was found."""
        return fmean(rollout.extracted is not None for rollout in self.rollouts)

    @property
    def is_stated(self) -> bool:
        """Whether answers are read where they are stated as such, and not in whatever number comes last."""
        names = [each.format.name for each in self.seen[:1]]
        return self.prompts.answer_format.name != "last_number" or names == ["last_number"]

    @property
    def cut_rate(self) -> float:
        """Share of the replies that were cut at the length limit."""
        return fmean(rollout.finish_reason == "length" for rollout in self.rollouts)

    @property
    def num_mixed(self) -> int:
        """Groups whose rewards differ, which alone teach anything."""
        return sum(group.has_signal for group in self.groups)


class Trier:
    """Asks a model, a few times.

    Args:
        max_new_tokens: of a reply.
    """

    def __init__(self, chat: ChatModel, pool: VerifierPool, config: Config, max_new_tokens: int) -> None:
        self.chat, self.pool, self.config, self.max_new_tokens = chat, pool, config, max_new_tokens

    def questions(self, data: Data, count: int) -> list[Task]:
        """Up to so many questions of the training data, at random, each once.

        Raises:
            ValueError: there is none that a rule verifies and that fits into the model's context.
        """

        def fits(task: Task) -> bool:
            if task.role is not Role.ANSWER or task.verifier == SELF:
                return False
            renderer, context = self.chat.renderer, self.chat.context
            if renderer is None or context is None:
                return True
            messages = data.prompts.conversation(task.role, task.messages)
            return len(renderer.encode(messages, task.example.images)) + self.max_new_tokens <= context

        try:
            drawn, _ = data.train.draw(min(count, data.train.num_rows), fits)
        except LookupError as source:
            raise ValueError(
                f"{source}: holds no question that a rule verifies and that leaves room for a reply of "
                f"{self.max_new_tokens} tokens in the model's context; name other data, or lower rollout.max_new_tokens"
            ) from None
        return list({task.id: task for task in drawn}.values())

    def seconds_to_read(self, tasks: Sequence[Task], prompts: Prompts) -> float:
        """Seconds that a token of these prompts takes to be read, by reading them all once."""
        self._generate(tasks[:1], prompts, 1, 1, 0.0)  # what comes first takes longer
        started = time.monotonic()
        _, tokens = self._generate(tasks, prompts, 1, 1, 0.0)
        return (time.monotonic() - started) / sum(tokens)

    def seconds_to_write(self, tasks: Sequence[Task], prompts: Prompts, samples: int, tokens: int = 8) -> float:
        """Seconds that one token of all replies together takes to be written, by writing a few."""
        started = time.monotonic()
        self._generate(tasks, prompts, samples, 1, 1.0)
        begun = time.monotonic()
        self._generate(tasks, prompts, samples, tokens, 1.0)
        return max(0.0, (time.monotonic() - begun) - (begun - started)) / (tokens - 1)

    def answers(
        self, tasks: Sequence[Task], prompts: Prompts, samples: int, name: str = "", progress: Progress | None = None
    ) -> Trial:
        """Sampled answers to questions. Where fewer than half of them are in the format that was asked for and another
        one holds far more, they are read by that one."""
        started = time.monotonic()
        temperature = self.config.temperature(Role.ANSWER)
        groups, prompt_tokens = self._generate(
            tasks, prompts, samples, self.max_new_tokens, temperature, progress=progress
        )
        seconds = time.monotonic() - started
        right_at = self.config.recycle.right_at
        self._score(groups, prompts)
        seen = Unread(prompts, self.pool, right_at).seen(Role.ANSWER, list(map(rollout_record, groups)))
        better = better_format(seen) if seen and 2 * seen[0].answers < seen[0].replies else None
        if better:
            prompts = replace(prompts, answer_format=better.format)
            self._score(groups, prompts)
        return Trial(name, prompts, groups, seen, _tokens(groups), prompt_tokens, seconds)

    def verdicts(self, answers: Trial, prompts: Prompts, count: int, progress: Progress | None = None) -> Trial | None:
        """Greedy verdicts on some of those answers, half of them right as far as there are such. None if no prompt can
        be made of them."""
        tasks = _judge_tasks(answers.groups, self.config.recycle, prompts)[:count]
        if not tasks:
            return None
        started = time.monotonic()
        groups, prompt_tokens = self._generate(tasks, prompts, 1, self.max_new_tokens, 0.0, progress=progress)
        seconds = time.monotonic() - started
        self._score(groups, prompts)
        unread = Unread(prompts, self.pool, 1.0)
        seen = unread.seen(Role.POINTWISE, list(map(rollout_record, groups)))
        return Trial("", prompts, groups, seen, _tokens(groups), prompt_tokens, seconds)

    def _score(self, groups: Sequence[Group], prompts: Prompts) -> None:
        right_at, wrong_at = self.config.recycle.right_at, self.config.recycle.wrong_at
        RuleScorer(self.pool, right_at=right_at, wrong_at=wrong_at, prompts=prompts).score(groups)

    def _generate(
        self,
        tasks: Sequence[Task],
        prompts: Prompts,
        samples: int,
        max_new_tokens: int,
        temperature: float,
        progress: Progress | None = None,
    ) -> tuple[list[Group], list[int]]:
        """The groups of the tasks, not yet graded, and the tokens of their prompts."""
        requests = [
            Request(
                id=task.id,
                prompt_ids=(),
                messages=prompts.conversation(task.role, task.messages),
                images=task.example.images,
                n=samples,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=self.config.rollout.top_p if temperature else 1.0,
                stop=tuple(self.config.rollout.stop),
                seed=SEED + number,
            )
            for number, task in enumerate(tasks)
        ]
        groups, prompt_tokens = [], []
        for task, replies in zip(tasks, self.chat.generate(requests, progress), strict=True):
            rollouts = [
                Rollout(f"{task.id}:{i}", _ids(reply), reply.logps, reply.text, reply.finish_reason)
                for i, reply in enumerate(replies)
            ]
            groups.append(Group(task, [], rollouts))
            prompt_tokens.append(max(reply.num_prompt_tokens for reply in replies))
        return groups, prompt_tokens


def _ids(reply: Any) -> list[int]:
    """The token ids of a reply; zeros where a server only counts them."""
    return reply.token_ids or [0] * reply.num_tokens


def _tokens(groups: Sequence[Group]) -> list[int]:
    return [len(rollout.token_ids) for group in groups for rollout in group.rollouts]


def _judge_tasks(groups: Sequence[Group], config: RecycleConfig, prompts: Prompts) -> list[Task]:
    """Pointwise prompts of these answers: couples of a right and a wrong one; if there are none, of any."""
    for balanced in (True, False):
        settings = RecycleConfig(
            balanced=balanced, max_depth=1, pair_rate=0.0, right_at=config.right_at, wrong_at=config.wrong_at
        )
        made = recycle(groups, settings, seed=SEED, step=0, prompts=prompts)
        tasks = [task for bundle in made.bundles for task in bundle if task.role is Role.POINTWISE]
        if tasks:
            return tasks
    return []
