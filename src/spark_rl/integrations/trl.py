"""The judge as a reward function of TRL's trainers (GRPO, RLOO):

    judge = Judge.open("runs/quickstart/final")
    trainer = GRPOTrainer(model, reward_funcs=[reward_function(judge)], train_dataset=dataset)

TRL itself is not imported. The signature follows huggingface/trl, `trl/trainer/grpo_trainer.py`
(`_calculate_rewards`), of version 1.16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_rl.data.row_images import listed
from spark_rl.images import reference
from spark_rl.infer import Judge
from spark_rl.integrations.turns import answered, asked
from spark_rl.types import Image

Text = str | Sequence[Mapping[str, Any]]
"""Text, or messages in the conversational format."""
RewardFunction = Callable[..., list[float | None]]


def reward_function(judge: Judge, name: str = "spark_judge") -> RewardFunction:
    """What rewards each completion with the probability, by the judge, that its final answer is right.

    The function takes `prompts` and `completions`, and `log_metric` and whatever columns the trainer adds. It returns
    one reward a completion, in 0..1, or None where the judgement held no verdict: TRL then leaves this function out of
    the completion's reward. Their share is logged as `{name}/unparsed`.

    A vision-language judge is shown the images of a prompt: those in its image parts, where TRL puts the data set's
    `images` or `image`, or these columns themselves. They are kept as files in the cache of images. The function raises
    ValueError if one cannot be used, or if the judge takes none.

    Args:
        name: as TRL's metrics call it, `rewards/{name}/mean`.
    """

    def item(number: int, prompt: Text, completion: Text, column: Any) -> tuple[str, str, tuple[Image, ...]]:
        try:
            question, values = asked(prompt, listed(column))
            return question, answered(completion), tuple(reference(value, Path()) for value in values)
        except ValueError as error:
            raise ValueError(f"{name}, prompt {number}: {error}") from None

    def rewards(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        images: Sequence[Any] | None = None,
        image: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        column = images or image or [None] * len(prompts)
        items = [item(i, *each) for i, each in enumerate(zip(prompts, completions, column, strict=True))]
        unique = list(dict.fromkeys(items))
        verdicts = dict(zip(unique, judge.score_all(unique), strict=True))
        values: list[float | None] = [verdicts[item].columns()["probability"] for item in items]
        if log_metric and values:
            log_metric(f"{name}/unparsed", values.count(None) / len(values))
        return values

    rewards.__name__ = rewards.__qualname__ = name
    return rewards
