"""A short supervised stage before RL."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from spark_rl.config.base import Count, Positive, Section
from spark_rl.config.sources import Sources


class WarmStartConfig(Section):
    """A short supervised stage before RL, for models that do not answer in the format that is asked for: it trains on
    rows with responses, or on the model's own right rollouts made with worked examples, which RL then does without.
    Judges and reflection are trained in the same way (paper: none, its models can answer)."""

    steps: Count = 0
    """Supervised steps before the `train.steps` of RL; 0 is none. They are steps of the run like all others: they have
    the first numbers, and `checkpoint.every` and `validation.every` count them."""
    from_rollouts: bool = False
    """Roll out with `prompts.examples` before each prompt, and train on the right rollouts behind the prompt alone
    (rejection sampling; STaR, arXiv 2203.14465). After the warm start nobody is shown the examples any more: RL and
    held-out questions do without, and `final/` has none."""
    data: Sources = []
    """Sources of rows with a `response` to their `prompt`: a text, or a list of some. Responses that the row's verifier
    does not find right are left out, and rows without a right one counted. A step takes as many rows as it has groups
    (`rollout.groups_per_step`); with `from_rollouts` beside the rollouts."""
    max_per_prompt: Positive = 4
    """Different right responses to one prompt that a step trains on, at most, so that easy questions do not
    outweigh."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Of the supervised steps: constant, but for `train.warmup_ratio` of them. RL then begins with AdamW's moments at 0
    and a schedule of its own."""
