"""Self-reward: the model's own verdicts reward its answers to questions that no rule can verify (`verifier: self`).

One policy and one judge in one loop, as URPO (arXiv 2507.17515) has it. What differs: verdicts count only once the
judge is shown to be good, since self-reward from the first step on is worse than none (Self-Guide, arXiv 2604.03098).
The held-out evaluation that a run makes anyway measures the judge on questions with known answers; while it is below
`self_reward.threshold` the other questions are not asked. Afterwards the weight of their groups rises step by step, and
falls to nothing again when the judge gets worse or the verdicts stop telling responses apart.

What the model rewards itself never becomes a label: recycling takes groups that a rule has graded (`Selection`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from statistics import fmean, pstdev
from typing import Any

from spark_rl.config import Config, JudgeConfig, SelfRewardConfig
from spark_rl.infer import ChatModel, Judge
from spark_rl.prompts import ChatRenderer
from spark_rl.rollout.engine import Engine
from spark_rl.rollout.scoring import RuleScorer
from spark_rl.train.metrics import Metrics
from spark_rl.train.validation import HEADLINE
from spark_rl.types import Group, Image, Role, Rollout
from spark_rl.verify import SELF

Item = tuple[str, Sequence[str], tuple[Image, ...]]
"""A question, responses to it, and its images."""


@dataclass(slots=True)
class SwitchState:
    """What a checkpoint holds of the switch."""

    is_on: bool = False
    steps_on: int = 0
    """Steps that were trained since it was switched on."""
    has_collapsed: bool = False
    accuracy: float | None = None
    """Of the judge, held out, when it was last measured."""
    best_answers: float = 0.0
    """The best held-out accuracy of answers since it was switched on."""
    means: list[float] = field(default_factory=list)
    """Mean self-reward of each step since the last evaluation."""
    stds: list[float] = field(default_factory=list)
    """Mean standard deviation within a group, of the same steps."""


class Switch:
    """Decides, at every held-out evaluation, whether the model's verdicts count; says how much."""

    def __init__(self, settings: SelfRewardConfig) -> None:
        self.settings, self.state = settings, SwitchState()

    @property
    def is_on(self) -> bool:
        return self.state.is_on

    @property
    def weight(self) -> float:
        """Factor on the advantages of the groups of the step that is next; 0 while off."""
        if not self.is_on:
            return 0.0
        return self.settings.weight * min(1.0, (self.state.steps_on + 1) / max(1, self.settings.ramp_steps))

    def watch(self, groups: Sequence[Group]) -> Metrics:
        """The metrics of a step, `self_reward/...`, from its groups of all ranks; empty if the run has no self-reward.

        on, weight: of this step. held_out_accuracy: of the judge, when last measured. mean: of the rewards. std: within
        a group, on the mean. parse_rate: judgements that held a verdict. groups: their number.
        """
        if not self.settings.enabled:
            return {}
        state = self.state
        metrics: Metrics = {"on": float(state.is_on), "weight": self.weight}
        if state.accuracy is not None:
            metrics["held_out_accuracy"] = state.accuracy
        state.steps_on += state.is_on
        mine = [group for group in groups if group.task.verifier == SELF]
        if rewards := [reward for group in mine for reward in group.rewards]:
            metrics |= {"groups": len(mine), "mean": fmean(rewards)}
            metrics["std"] = fmean(pstdev(group.rewards) for group in mine if group.rewards)
            state.means.append(metrics["mean"])
            state.stds.append(metrics["std"])
        if reasons := [r.reason for group in mine for r in group.rollouts if r.reason in ("judged", "no_verdict")]:
            metrics["parse_rate"] = reasons.count("judged") / len(reasons)
        return {f"self_reward/{name}": value for name, value in metrics.items()}

    def evaluated(self, result: Mapping[str, Any]) -> str | None:
        """Take in the metrics of a held-out evaluation. Returns a sentence if it switches on or off, else None."""
        settings, state = self.settings, self.state
        name = HEADLINE[Role(settings.kind)]
        if not settings.enabled or name not in result:
            return None
        accuracy, answers = result[name], result.get(HEADLINE[Role.ANSWER], 0.0)
        state.accuracy = accuracy
        mean, std = fmean(state.means or [0.5]), fmean(state.stds or [0.5])
        state.means, state.stds = [], []
        measured = f"held-out {name.replace('_', ' ')} is {accuracy:.1%}"
        if not state.is_on:
            if state.has_collapsed or accuracy < settings.threshold:
                return None
            state.is_on, state.steps_on, state.best_answers = True, 0, answers
            return f"self-reward is on: {measured}, the threshold {settings.threshold:.1%}"
        if accuracy < settings.threshold - settings.hysteresis:
            state.is_on = False
            return f"self-reward is off until the judge is better: {measured}"
        is_blind = mean > settings.saturated_at or std < settings.min_std
        if is_blind and answers < state.best_answers - settings.max_drop:
            state.is_on, state.has_collapsed = False, True
            return (
                f"self-reward is off for good: rewards no longer tell responses apart (mean {mean:.3f}, standard "
                f"deviation in a group {std:.3f}), and held-out answers fell from {state.best_answers:.1%} to "
                f"{answers:.1%}"
            )
        state.best_answers = max(state.best_answers, answers)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.state = SwitchState(**state)


class SelfRewardScorer:
    """Leaves to the rules what they can grade, and has the model judge its answers to the other questions.

    A response without an answer gets 0 and is not judged: a judge must not be won over by it. A response on which no
    verdict was given gets None. Responses that the judge would see as the same are judged once.

    Args:
        rules: grades the other groups.
        renderer: renders the judge's prompts.
        context: tokens that a prompt and its verdict may have together; None if there is no limit.
    """

    def __init__(
        self, config: Config, rules: RuleScorer, switch: Switch, renderer: ChatRenderer, context: int | None
    ) -> None:
        self.config, self.rules, self.switch, self.renderer = config, rules, switch, renderer
        self.context = context

    def score(self, groups: Sequence[Group], engine: Engine) -> None:
        """As `Scorer.score`; also sets the weight of the groups that it judges."""
        self.rules.score([group for group in groups if group.task.verifier != SELF])
        mine = [group for group in groups if group.task.verifier == SELF]
        if not mine or not self.switch.is_on:
            return
        answered = []
        for group in mine:
            group.weight = self.switch.weight
            answered.append([rollout for rollout in group.rollouts if self._is_open(rollout)])
        items = [
            (g.task.example.question, [r.text for r in of_group], g.task.example.images)
            for g, of_group in zip(mine, answered, strict=True)
        ]
        rewards = _REWARDS[self.config.self_reward.kind](self._judge(engine), items)
        for of_group, of_item in zip(answered, rewards, strict=True):
            for rollout, reward in zip(of_group, of_item, strict=True):
                rollout.reward = None if reward is None else round(reward, 6)  # to what does not depend on the batch
                rollout.reason = "no_verdict" if reward is None else "judged"

    def _is_open(self, rollout: Rollout) -> bool:
        """Whether a rollout is the judge's business; others are graded here."""
        rollout.extracted = self.renderer.prompts.answer_format.read(rollout.text)
        if self.rules.settle_cut(rollout):
            return False
        if rollout.extracted is None:
            rollout.reward, rollout.reason = 0.0, "unparsed"
            return False
        return True

    def _judge(self, engine: Engine) -> Judge:
        config, settings = self.config, self.config.self_reward
        role = Role(settings.kind)
        model = ChatModel(
            engine,
            "self",
            renderer=self.renderer,
            prompts=self.renderer.prompts,
            context=self.context,
            max_new_tokens=settings.max_new_tokens or config.max_new_tokens(role),
            stop=config.rollout.stop,
        )
        how = JudgeConfig(
            samples=settings.samples,
            temperature=config.temperature(role),
            view=settings.view,
            max_response_chars=config.recycle.max_response_chars,
        )
        return Judge(model, how, seed=config.train.seed)


def pointwise_rewards(judge: Judge, items: Sequence[Item]) -> list[list[float | None]]:
    """For each response the probability, by the judge, that it is right; None where it gave no verdict."""
    views = [_by_view(judge, responses) for _, responses, _ in items]
    asked = [
        (question, shown, images)
        for (question, _, images), seen in zip(items, views, strict=True)
        for shown in seen.values()
    ]
    verdicts = iter(judge.score_all(asked))
    known = [{view: next(verdicts).probability for view in seen} for seen in views]
    return [
        [of_item[judge.view(response)] for response in responses]
        for (_, responses, _), of_item in zip(items, known, strict=True)
    ]


def pairwise_rewards(judge: Judge, items: Sequence[Item]) -> list[list[float | None]]:
    """For each response its rate of wins over the responses that look different, each pair shown in both orders.

    One half where all look the same; None where no pair got a verdict in both orders.
    """
    views = [_by_view(judge, responses) for _, responses, _ in items]
    asked = [
        (question, seen[a], seen[b], images)
        for (question, _, images), seen in zip(items, views, strict=True)
        for a, b in combinations(seen, 2)
    ]
    preferences = iter(judge.compare_all(asked))
    rewards = []
    for (_, responses, _), seen in zip(items, views, strict=True):
        wins: dict[tuple[str, str], float] = {}
        for a, b in combinations(seen, 2):
            preference = next(preferences)
            if preference.consistent is not None and preference.probability is not None:
                wins[a, b], wins[b, a] = preference.probability, 1 - preference.probability
        shown = [judge.view(response) for response in responses]
        rewards.append([_win_rate(view, shown, wins) for view in shown])
    return rewards


_REWARDS = {"pointwise": pointwise_rewards, "pairwise": pairwise_rewards}


def _win_rate(view: str, shown: Sequence[str], wins: Mapping[tuple[str, str], float]) -> float | None:
    others = [other for other in shown if other != view]
    won = [wins[view, other] for other in others if (view, other) in wins]
    return fmean(won) if won else None if others else 0.5


def _by_view(judge: Judge, responses: Sequence[str]) -> dict[str, str]:
    """What the judge sees of the responses, each view with one response that looks so."""
    return {judge.view(response): response for response in reversed(responses)}
