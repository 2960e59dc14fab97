"""What a model's replies to a few questions say of a run on them: figures, and whether RL can learn. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from spark_rl.evaluate.statistics import mean_interval
from spark_rl.evaluate.trial import Trial
from spark_rl.train.metrics import role_metrics
from spark_rl.types import Group, Role, with_markers

Kind = Literal["learns", "little", "too hard", "too easy", "unread", "cut", "noise"]
_NOISE = 0.5
"""Of the entropy of equally likely tokens: trained models have a tenth of it, random ones nearly all."""
_FEWEST_TOKENS = 64
_MANY, _LITTLE, _EASY = 0.5, 0.1, 0.9
"""Shares: of replies or of groups what is many and what is little, and of right replies from where on it is easy."""


@dataclass(frozen=True, slots=True)
class Prognosis:
    """Whether a run would have something to learn from."""

    kind: Kind
    sentence: str


def pass_at(k: int, num_right: int, num: int) -> float:
    """Unbiased estimate, from `num` samples of which some are right, of the chance that one of k is (Chen et al., arXiv
    2107.03374)."""
    return 1 - math.comb(num - num_right, k) / math.comb(num, k)


def answer_figures(trial: Trial, right_at: float, vocab_size: int | None = None) -> dict[str, Any]:
    """The figures of sampled answers, as JSON types; shares are of replies unless said otherwise.

    Args:
        right_at: the reward from which on an answer is right.
        vocab_size: of the model, where it is known: `noise` is the replies' entropy as a share of the largest.
    """
    rights = [[r.reward is not None and r.reward >= right_at for r in group.rollouts] for group in trial.groups]
    by_question = {group.task.id: list(map(float, right)) for group, right in zip(trial.groups, rights, strict=True)}
    most = min(8, *map(len, rights))
    rates = role_metrics(trial.groups, right_at)
    told = any(rollout.logps for rollout in trial.rollouts)
    return {
        "name": trial.name,
        "questions": len(trial.groups),
        "replies": len(trial.rollouts),
        "answer_format": trial.prompts.answer_format.name,
        "examples": len(trial.prompts.examples.get(Role.ANSWER, ())) // 2,
        "formats": [
            {"format": each.format.name, "answers": each.answers, "golds": each.golds, "by_chance": each.by_chance}
            for each in trial.seen
        ],
        "parse_rate": trial.parse_rate,
        "pass@1": asdict(mean_interval(by_question)),
        f"pass@{most}": fmean(pass_at(most, sum(right), len(right)) for right in rights),
        "ungraded_rate": rates["answer/ungraded_rate"],
        "mixed_groups": trial.num_mixed,
        "cut_rate": trial.cut_rate,
        "tokens": fmean(trial.tokens),
        "prompt_tokens": fmean(trial.prompt_tokens),
        "noise": rates["answer/entropy"] / math.log(vocab_size) if vocab_size and told else None,
    }


def judge_figures(trial: Trial) -> dict[str, Any]:
    """The same of greedy verdicts on the model's own answers."""
    rates = {name.partition("/")[2]: rate for name, rate in role_metrics(trial.groups).items()}
    kept = ("parse_rate", "yes_rate", "label_rate", "balanced_accuracy", "truncated_rate", "tokens")
    yes, _ = trial.prompts.verdicts(Role.POINTWISE)
    return {"items": len(trial.groups), "yes": yes, **{name: rates.get(name) for name in kept}}


def is_noise(figures: dict[str, Any]) -> bool:
    """Whether tokens come as if by chance."""
    return figures["noise"] is not None and figures["noise"] > _NOISE


def prognosis(figures: dict[str, Any], remedy: str, max_new_tokens: int) -> Prognosis:
    """Whether RL can learn from such answers, and if not why.

    Args:
        figures: of `answer_figures`.
        remedy: what to do where most replies cannot be read.
    """
    questions, mixed, right = figures["questions"], figures["mixed_groups"], figures["pass@1"]["value"]
    most = next(name for name in figures if name.startswith("pass@") and name != "pass@1")
    passes = f"pass@1 {_percent(right)}, {most} {_percent(figures[most])}"
    groups = f"{mixed} of {questions} groups have rewards that differ"
    if is_noise(figures):
        return Prognosis(
            "noise",
            f"this model writes noise (its tokens have {_percent(figures['noise'])} of the largest entropy), from "
            "which nothing can be learned: take a model that was trained",
        )
    if figures["ungraded_rate"] > _MANY:
        return Prognosis(
            "unread",
            f"cannot be graded: the verifier gave no reward to {_percent(figures['ungraded_rate'])} of the replies; "
            "look at the golds and at data.verifier",
        )
    if figures["cut_rate"] > _MANY and mixed < _LITTLE * questions:
        return Prognosis(
            "cut",
            f"cannot be told: {_percent(figures['cut_rate'])} of the replies are cut at {max_new_tokens} tokens; try "
            f"rollout.max_new_tokens={2 * max_new_tokens}",
        )
    is_read = not figures["formats"]  # by a verifier that reads replies whole
    if not is_read and figures["parse_rate"] < _LITTLE and not mixed:
        return Prognosis("unread", f"cannot be read: {remedy}")
    if mixed >= _LITTLE * questions:
        return Prognosis("learns", f"RL can learn here: {passes}, {groups}")
    if right >= _EASY:
        return Prognosis("too easy", f"too easy to teach anything: {passes}, {groups}; take harder questions")
    if right > 0:
        return Prognosis(
            "little", f"little to learn from: {passes}, {groups}; take questions that it answers now and then"
        )
    hint = "take easier questions" if is_read or figures["parse_rate"] > _MANY else remedy
    return Prognosis("too hard", f"too hard for this model: {passes}; {hint}")


def needed_tokens(*trials: Trial | None, limit: int) -> int:
    """Tokens for replies of a model that learns to work things out: half more than the longest that ended, a multiple
    of 16. Where a tenth or more was cut at `limit` it is twice that."""
    present = [trial for trial in trials if trial]
    if max(trial.cut_rate for trial in present) >= _LITTLE:
        return 2 * limit
    longest = max(
        (len(r.token_ids) for trial in present for r in trial.rollouts if r.finish_reason != "length"), default=limit
    )
    return max(_FEWEST_TOKENS, 16 * math.ceil(1.5 * longest / 16))


def example_replies(groups: Sequence[Group], right_at: float) -> dict[str, str]:
    """A right reply, and one that is not, where there are such, each as one short line."""
    shown: dict[str, str] = {}
    for group in groups:
        for rollout in group.rollouts:
            name = "right" if rollout.reward is not None and rollout.reward >= right_at else "not right"
            shown.setdefault(name, f"{_short(with_markers(group.task.example.question))} -> {_short(rollout.text)}")
    return shown


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:100]} ... {line[-55:]}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"
