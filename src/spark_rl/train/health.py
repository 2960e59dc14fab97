"""Whether a run destroys its model, by what a step's answers and weights say of it; all of that is at hand anyway.

A destroyed model makes no error: no rewards differ any more, so the loss is 0 and every step succeeds. What gives it
away is a change: answers that ended no longer end, that held a box hold none, that differed are all the same. So an
alarm compares a step with the run's own first and best ones, and a model that was so from the start raises none.
Learning rates of 0.01 and 0.1 raise some in the second step of the embedded base, 1e30 ends its first; in the
quickstarts there was none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from spark_rl.config import Config, HealthConfig
from spark_rl.train.checkpoint import RunDirectory
from spark_rl.train.metrics import ALARM, Metrics
from spark_rl.types import Group, Role
from spark_rl.verify import SELF

_DESTROYED = 1000.0
"""Growth of the largest weight from which there is no way back."""
_CHANGE = 0.5
"""Of a rate, from the best step, that is no chance."""
_MORE_THAN_GOLDS = 0.3
"""By how much the share of one answer exceeds that of one gold, where answers have become all the same."""
_FEW = 4
"""Groups of answers below which a step says nothing of how alike answers to different questions are."""
_NOISE = 0.9
"""Of the entropy of equally likely tokens."""
_SOLVED = 0.9
"""Accuracy from which on a model may be sure of what it says."""


class Collapsed(Exception):
    """The model is destroyed, or was for too long: a run that goes on would only overwrite what was good."""


@dataclass(slots=True)
class HealthState:
    """What later steps are compared with; a checkpoint holds it."""

    first_reward: float | None = None
    """Mean reward of answers in the first step."""
    first_weight: float | None = None
    """The largest weight before the first step."""
    largest_weight: float | None = None
    """The same now."""
    least_truncated: float = 1.0
    most_parsed: float = 0.0
    least_same: float = 1.0
    most_entropy: float = 0.0
    least_noise: float = 1.0
    alarms: list[str] = field(default_factory=list)
    """Of the last step."""
    steps: int = 0
    """Steps with an alarm in a row, up to the last one."""
    last_checkpoint: int | None = None
    """The step of the last checkpoint. What its weights say is seen in the step after it."""
    good_checkpoint: int | None = None
    """The step of the last one whose weights raised no alarm."""


class Health:
    """Watches a run, says what alarms, and ends what is beyond return.

    Args:
        say: told an alarm in a sentence, when it begins.
        vocab_size: tokens that the model gives probabilities to.
    """

    def __init__(self, config: Config, say: Callable[[str], None], vocab_size: int) -> None:
        self.config, self.say, self.vocab_size = config, say, vocab_size
        self.state = HealthState()
        self._step = 0

    def begin(self, largest_weight: float) -> None:
        """Take in the largest weight that the run, or what is resumed of it, begins with."""
        if self.state.first_weight is None:
            self.state.first_weight = self.state.largest_weight = largest_weight

    def begin_anew(self) -> None:
        """Forget what earlier steps were like, whose prompts were others; not what the weights were."""
        old = self.state
        self.state = HealthState(
            first_weight=old.first_weight,
            largest_weight=old.largest_weight,
            last_checkpoint=old.last_checkpoint,
            good_checkpoint=old.good_checkpoint,
        )

    def see_rollouts(self, groups: Sequence[Group], metrics: Metrics, step: int) -> Metrics:
        """What a step's rollouts say of the model that made them, as metrics `health/...`, a 1 for every alarm.

        Args:
            groups: of all ranks.
            metrics: `role_metrics` of them.

        Raises:
            Collapsed: a token was sampled with a log-probability that is not finite.
        """
        self._step = step
        if not all(math.isfinite(sum(rollout.logps)) for group in groups for rollout in group.rollouts):
            raise Collapsed(f"in step {step} its log-probabilities are not finite")
        seen = answers_alike(groups) | noise(metrics, self.vocab_size)
        before, limit = self.state.alarms, self.config.health.stop_after
        found = watch(metrics | seen, self.state, self.config.health)
        if fresh := [said for name, said in found.items() if name not in before]:
            stop = f"; after {limit} such steps the run stops (health.stop_after)" if limit else ""
            self.say(f"ALARM, step {step}, the model collapses: {', '.join(fresh)}; {self._remedy()}{stop}")
        return seen | {f"{ALARM}{name}": 1.0 for name in found}

    def see_update(self, metrics: Metrics, step: int) -> None:
        """Take in what an update has left.

        Raises:
            Collapsed: the loss or a weight is not finite, or weights have grown beyond return.
        """
        if not math.isfinite(metrics["loss"]):
            raise Collapsed(f"the loss of step {step} is {metrics['loss']:g}")
        state = self.state
        state.largest_weight = metrics["health/largest_weight"]
        if not state.largest_weight < _DESTROYED * _start(state):
            raise Collapsed(
                f"the update of step {step} took its largest weight to {state.largest_weight:.3g}, from "
                f"{state.first_weight:.3g} at the start"
            )

    def see_patience(self, step: int) -> None:
        """See whether to go on after a step.

        Raises:
            Collapsed: there were alarms in as many steps as settings allow.
        """
        if 0 < self.config.health.stop_after <= self.state.steps:
            raise Collapsed(f"the {self.state.steps} steps up to {step} had alarms (health.stop_after)")

    def way_back(self, directory: RunDirectory) -> str:
        """What to do about a model that is destroyed."""
        good, saved = self.state.good_checkpoint, directory.checkpoints()
        if good is None or good not in saved:
            return f"no good checkpoint was made, so {self._remedy()} and begin again"
        later = "remove the later ones, " if saved[-1] != good else ""
        return (
            f"the last good checkpoint is {directory.checkpoint(good)}: {later}{self._remedy()} and go on from it with "
            "--resume --allow-changes"
        )

    def _remedy(self) -> str:
        section = "warm_start" if self.config.is_warm_start(self._step) else "train"
        return f"lower {section}.learning_rate (now {getattr(self.config, section).learning_rate:g})"

    def state_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.state = HealthState(**state)


def answers_alike(groups: Sequence[Group]) -> Metrics:
    """`health/same_answer`: the share of the most frequent answer (the whole response where it holds none) among all
    answers to a step's questions; `health/same_gold`: the same of the golds. Nothing of few questions."""
    asked = [group for group in groups if group.task.role is Role.ANSWER and group.task.verifier != SELF]
    if len(asked) < _FEW:
        return {}
    said = Counter((r.extracted, None if r.extracted else r.text) for group in asked for r in group.rollouts)
    golds = Counter(group.task.label for group in asked)
    return {"health/same_answer": _largest_share(said), "health/same_gold": _largest_share(golds)}


def _largest_share(counts: Counter[Any]) -> float:
    return max(counts.values()) / counts.total()


def noise(metrics: Metrics, vocab_size: int) -> Metrics:
    """`health/noise`: the entropy of the role that has most of it, as a share of what equally likely tokens have."""
    entropies = [metrics[name] for role in Role if (name := f"{role}/entropy") in metrics]
    return {"health/noise": max(entropies) / math.log(vocab_size)} if entropies else {}


def watch(metrics: Metrics, state: HealthState, settings: HealthConfig) -> dict[str, str]:
    """The alarms of a step by name, each with a sentence of what is seen; `state` takes the step in.

    They tell of the weights that made the step's rollouts, hence of the last checkpoint if there was none since.

    Args:
        metrics: of the step's rollouts: `answer/...` (missing where it had no questions) and `health/...`.
    """
    if state.first_reward is None:
        state.first_reward = metrics.get("answer/reward")
    found = {name: said for name, check in _CHECKS.items() if (said := check(metrics, state, settings))}
    state.least_truncated = min(state.least_truncated, metrics.get("answer/truncated_rate", 1.0))
    state.most_parsed = max(state.most_parsed, metrics.get("answer/parse_rate", 0.0))
    state.least_same = min(state.least_same, metrics.get("health/same_answer", 1.0))
    state.least_noise = min(state.least_noise, metrics.get("health/noise", 1.0))
    state.most_entropy = max(state.most_entropy, metrics.get("answer/entropy", 0.0))
    if found:
        state.alarms, state.steps = list(found), state.steps + 1
    elif "answer/groups" in metrics:  # a step without questions does not say that it is over
        state.alarms, state.steps = [], 0
        state.good_checkpoint = state.last_checkpoint
    return found


def _weights(metrics: Metrics, state: HealthState, settings: HealthConfig) -> str | None:
    largest = state.largest_weight or 0.0
    if largest < settings.max_weight_growth * _start(state):
        return None
    return f"the largest weight is {largest:.3g}, and was {state.first_weight:.3g} at the start"


def _noise(metrics: Metrics, state: HealthState, settings: HealthConfig) -> str | None:
    share = metrics.get("health/noise", 0.0)
    if share <= _NOISE or state.least_noise > _NOISE:  # a model of random weights begins so
        return None
    return f"tokens come as if by chance ({share:.0%} of the largest entropy)"


def _entropy(metrics: Metrics, state: HealthState, settings: HealthConfig) -> str | None:
    entropy = metrics.get("answer/entropy", math.inf)
    if entropy >= min(settings.min_entropy, 0.1 * state.most_entropy) or metrics.get("answer/accuracy", 0.0) >= _SOLVED:
        return None
    return f"nothing else is tried any more (entropy {entropy:.2g} nats a token), and much is not right"


def _same(metrics: Metrics, state: HealthState, settings: HealthConfig) -> str | None:
    share, of_golds = metrics.get("health/same_answer", 0.0), metrics.get("health/same_gold", 1.0)
    if share < settings.max_same or share < of_golds + _MORE_THAN_GOLDS or share < state.least_same + _MORE_THAN_GOLDS:
        return None
    return f"{share:.0%} of the answers are the same, whatever the question ({of_golds:.0%} of the golds are)"


def _truncated(metrics: Metrics, state: HealthState, settings: HealthConfig) -> str | None:
    rate = metrics.get("answer/truncated_rate", 0.0)
    if rate < max(settings.max_truncated, state.least_truncated + _CHANGE) or not _no_better(metrics, state):
        return None
    return f"{rate:.0%} of the answers no longer end ({state.least_truncated:.0%} in the best step)"


def _unparsed(metrics: Metrics, state: HealthState, settings: HealthConfig) -> str | None:
    rate = metrics.get("answer/parse_rate", 1.0)
    if rate > min(settings.min_parsed, state.most_parsed - _CHANGE) or not _no_better(metrics, state):
        return None
    return f"only {rate:.0%} of the responses still hold an answer ({state.most_parsed:.0%} in the best step)"


_CHECKS: dict[str, Callable[[Metrics, HealthState, HealthConfig], str | None]] = {
    "weights": _weights,
    "noise": _noise,
    "entropy": _entropy,
    "same": _same,
    "truncated": _truncated,
    "unparsed": _unparsed,
}


def _start(state: HealthState) -> float:
    """The largest weight that growth is counted from: some models begin with very small ones."""
    return max(1.0, state.first_weight or 0.0)


def _no_better(metrics: Metrics, state: HealthState) -> bool:
    """Whether answers are worth no more than in the first step: longer ones may be better, and some need no box."""
    reward = metrics.get("answer/reward")
    return reward is None or state.first_reward is None or reward <= state.first_reward


_WHAT = {
    "weights": "the weights had grown out of all proportion",
    "noise": "tokens came as if by chance",
    "entropy": "nothing else was tried any more",
    "same": "the answers were all the same, whatever the question",
    "truncated": "hardly any answer ended",
    "unparsed": "hardly any response held an answer",
}


def health_sentences(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """A sentence on every alarm of a run, by the rows of `metrics.jsonl`."""
    found = []
    for name, what in _WHAT.items():
        rung = [int(row["step"]) for row in steps if f"{ALARM}{name}" in row]
        if rung:
            when = f"step {rung[0]}" if len(rung) == 1 else f"{len(rung)} steps from {rung[0]} to {rung[-1]}"
            found.append(f"the model collapsed: {what} in {when}; lower train.learning_rate")
    return found
