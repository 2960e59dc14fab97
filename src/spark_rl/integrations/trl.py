"""The judge as a reward function of TRL's trainers (GRPO, RLOO):

    judge = Judge.open("runs/quickstart/final")
    trainer = GRPOTrainer(model, reward_funcs=[reward_function(judge)], train_dataset=dataset)

TRL itself is not imported. The signature follows huggingface/trl, `trl/trainer/grpo_trainer.py`
(`_calculate_rewards`), of version 1.16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spark_rl.infer import Judge
from spark_rl.integrations.turns import answered, asked

Text = str | Sequence[Mapping[str, Any]]
"""Text, or messages in the conversational format."""
RewardFunction = Callable[..., list[float | None]]


def reward_function(judge: Judge, name: str = "spark_judge") -> RewardFunction:
    """What rewards each completion with the probability, by the judge, that its final answer is right.

    The function takes `prompts` and `completions`, and `log_metric` and whatever columns the trainer adds. It returns
    one reward a completion, in 0..1, or None where the judgement held no verdict: TRL then leaves this function out of
    the completion's reward. Their share is logged as `{name}/unparsed`.

    Args:
        name: as TRL's metrics call it, `rewards/{name}/mean`.
    """

    def rewards(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        items = [(asked(p), answered(c)) for p, c in zip(prompts, completions, strict=True)]
        unique = list(dict.fromkeys(items))
        verdicts = dict(zip(unique, judge.score_all(unique), strict=True))
        values: list[float | None] = [verdicts[item].columns()["probability"] for item in items]
        if log_metric and values:
            log_metric(f"{name}/unparsed", values.count(None) / len(values))
        return values

    rewards.__name__ = rewards.__qualname__ = name
    return rewards
