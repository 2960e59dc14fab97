"""What a step's graded groups say about each role. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from spark_rl.types import Group, Role, Task
from spark_rl.verify import verdict_side

Metrics = dict[str, float]
ALARM = "health/alarm_"
"""Begins the metrics, of the value 1, that name a step's alarms (`health.py`)."""
_MANY = 0.2
"""Share of rollouts that could not be graded, from which on it is said."""
_NO_PROMPTS, _NO_SIGNAL = "no prompts", "no learning signal"
_UNGRADED = "many rollouts could not be graded"
Explain = Callable[[Role], str]
"""What replies of a role lack that cannot be read, and what to do about it."""
COLLAPSED = "since the model has collapsed, as the alarms say: lower train.learning_rate"


def is_alarmed(metrics: Metrics) -> bool:
    """Whether a step raised an alarm."""
    return any(name.startswith(ALARM) for name in metrics)


def role_metrics(groups: Sequence[Group], right_at: float = 1.0) -> Metrics:
    """`role/metric` for every role that has groups. Rates are shares of rollouts unless said otherwise.

    accuracy: graded rollouts that are right, of a reward of `right_at` at least (verdicts: 1). reward: the mean of the
    rewards. zero_variance_rate: groups whose rewards are all equal. parse_rate: rollouts with an answer or verdict.
    truncated_rate: cut at the length limit. ungraded_rate: no reward could be given. tokens: mean length.
    entropy: mean negative log-probability of the sampled tokens, nats. yes_rate: parsed verdicts that say Yes or A, or
    what templates have for it. label_rate: tasks (weighted by rollouts) of which the gold verdict does.
    balanced_accuracy: mean of the accuracies on either label. accuracy_on_wrong,
    accuracy_on_right: of reflection, by whether the shown response was right (`right_at`).
    """
    metrics: Metrics = {}
    for role in Role:
        of_role = [group for group in groups if group.task.role is role]
        rollouts = [(group.task, rollout) for group in of_role for rollout in group.rollouts]
        if not rollouts:
            continue
        graded = [(task, r.reward) for task, r in rollouts if r.reward is not None]
        num_tokens = sum(len(r.token_ids) for _, r in rollouts)
        values: Metrics = {
            "groups": len(of_role),
            "rollouts": len(rollouts),
            "accuracy": _mean([reward >= role.right_at(right_at) for _, reward in graded]),
            "reward": _mean([reward for _, reward in graded]),
            "zero_variance_rate": _mean([not group.has_signal for group in of_role]),
            "parse_rate": _mean([r.extracted is not None for _, r in rollouts]),
            "truncated_rate": _mean([r.finish_reason == "length" for _, r in rollouts]),
            "ungraded_rate": 1 - len(graded) / len(rollouts),
            "tokens": num_tokens / len(rollouts),
            "entropy": -sum(sum(r.logps) for _, r in rollouts) / max(1, num_tokens),
        }
        if role.is_judge:
            parsed = [(task, r.extracted) for task, r in rollouts if r.extracted is not None]
            values["yes_rate"] = _mean([is_positive(task, text) for task, text in parsed])
            values["label_rate"] = _mean([is_positive(task, task.label) for task, _ in rollouts])
            values["balanced_accuracy"] = balanced_accuracy([(side(task), reward >= 1) for task, reward in graded])
        if role is Role.REFLECTION:
            for name, is_right in (("accuracy_on_wrong", False), ("accuracy_on_right", True)):
                values[name] = _mean([r >= right_at for task, r in graded if _shows_right(task, right_at) is is_right])
        metrics.update({f"{role}/{name}": value for name, value in values.items() if value == value})  # no NaN
    return metrics


def _shows_right(task: Task, right_at: float) -> bool | None:
    """Whether a reflection task shows a right response; None for ready items of the data, which do not say."""
    return task.shown[0].reward >= right_at if task.shown else None


def is_positive(task: Task, verdict: str) -> bool:
    """Whether a verdict is the one that habits favour: Yes, or the first of two."""
    return verdict_side(verdict, task.verdicts or task.role.verdicts) == 0


def side(task: Task) -> str:
    """Which verdict is right, in whatever words: templates of one role may differ in them. The same of all others."""
    return str(is_positive(task, task.label)) if task.role.is_judge else ""


def balanced_accuracy(labelled: Sequence[tuple[str, bool]]) -> float:
    """Mean over labels of the share of right ones; insensitive to the label mix."""
    by_label: dict[str, list[bool]] = {}
    for label, is_right in labelled:
        by_label.setdefault(label, []).append(is_right)
    return _mean([fmean(of_label) for of_label in by_label.values()])


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else float("nan")


def look_at_them(role: Role) -> str:
    """An explanation where the replies are not at hand."""
    return f"{'a verdict' if role.is_judge else 'an answer'}: look at rollouts/"


def warnings(
    recent: Sequence[Metrics],
    slots: Mapping[Role, int],
    alternating: bool = False,
    explain: Explain = look_at_them,
    said: set[str] | None = None,
) -> list[str]:
    """Plain words on every role that had no learning signal in any of the recent steps, and why, and on every role of
    whose rollouts many could not be graded.

    Args:
        alternating: whether a role may well be missing for some steps.
        explain: may take long, and is asked for what is told alone.
        said: what was told before, which is not told again; what is told now is added.
    """
    found, said = [], set[str]() if said is None else said
    for role in Role:
        present = [metrics for metrics in recent if f"{role}/groups" in metrics]
        problem = _problem(role, present, alternating) if slots[role] and recent else None
        if problem is None or (topic := f"{role}: {problem}") in said:
            continue
        said.add(topic)
        found.append(f"{topic} in the last {len(recent)} steps{_more(problem, role, present, explain)}")
    return found


def _problem(role: Role, present: Sequence[Metrics], alternating: bool) -> str | None:
    if not present:
        return None if alternating else _NO_PROMPTS
    if all(metrics[f"{role}/zero_variance_rate"] == 1 for metrics in present):
        return _NO_SIGNAL
    return _UNGRADED if _ungraded(role, present) > _MANY else None


def _more(problem: str, role: Role, present: Sequence[Metrics], explain: Explain) -> str:
    """The rest of the sentence on a problem."""
    if problem == _NO_PROMPTS:
        return (
            ". Recycling needs questions of which some rollouts are right and some wrong; see answer/zero_variance_rate"
        )
    if problem == _UNGRADED:
        return (
            f" ({_ungraded(role, present):.0%}), and count nowhere: look at `reason` in rollouts/ for what the "
            "verifier says"
        )
    rates = {name.removeprefix(f"{role}/"): value for name, value in present[-1].items()}
    return f", {COLLAPSED if is_alarmed(present[-1]) else why_no_signal(rates, role, explain)}"


def _ungraded(role: Role, present: Sequence[Metrics]) -> float:
    return fmean(metrics[f"{role}/ungraded_rate"] for metrics in present)


def why_no_signal(rates: Metrics, role: Role = Role.ANSWER, explain: Explain = look_at_them) -> str:
    """The likeliest cause, from a role's `accuracy`, `ungraded_rate`, `truncated_rate` and `parse_rate`."""
    if (ungraded := rates.get("ungraded_rate", 0)) > _MANY:
        share = "no rollout" if ungraded == 1 else f"only {1 - ungraded:.0%} of the rollouts"
        return f"since {share} could be graded: look at `reason` in rollouts/ for what the verifier says"
    if rates.get("accuracy", 0) >= 1:
        return "since every rollout is right: the prompts are too easy to teach anything"
    if (cut := rates.get("truncated_rate", 0)) > 0.5:
        return f"since {cut:.0%} of the rollouts are cut at their length limit: raise max_new_tokens"
    if (parsed := rates.get("parse_rate", 1)) < 0.5:
        many = f"only {parsed:.0%} of the rollouts hold" if parsed else "no rollout holds"
        return f"since {many} {explain(role)}"
    if rates.get("accuracy") == 0:
        return "since no rollout is right: the prompts are too hard for this model"
    return "since all rollouts of a group get the same reward: the prompts are too hard, or all samples are alike"
