"""A model of ours for lm-eval, whose generation is a strategy of `infer/strategies.py`:

    python -m spark_rl.integrations.lm_eval run --model spark-rl --tasks gsm8k_cot \
        --model_args pretrained=runs/mine/final,strategy=reflect

is lm-eval's own command with this model registered. Needs the extra `lm-eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from spark_rl.config import load_inference
from spark_rl.infer import ChatModel, Solver
from spark_rl.infer.strategies import parse_strategy
from spark_rl.types import Example, without_images
from spark_rl.verify import VerifierPool

CHUNK = 256


@register_model("spark-rl")
class StrategyLM(LM):
    """A task's context is a question of one user turn, with our instruction to box the answer, which strategies vote
    and judge by. The task's filters read the chosen response, cut at its `until` strings; its `max_gen_toks` and
    sampling options do not count, since a strategy asks more than once.

    Args:
        pretrained: as the model of `spark-rl solve`.
        strategy: of `spark-rl solve`.
        max_gen_toks: length limit of each reply, tokens.
        verifier: says whether two answers are equal.
        batch_size, max_batch_size, device: accepted because lm-eval passes them, and not used.
        settings: `section.key=value` of engine, judge, solve.

    Raises:
        ValueError: as `load_inference`, `parse_strategy` and `ChatModel.open`.
    """

    def __init__(
        self,
        pretrained: str,
        strategy: str = "greedy",
        max_gen_toks: int | None = None,
        verifier: str = "math",
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        parse_strategy(strategy)
        limit = {} if max_gen_toks is None else {"max_new_tokens": max_gen_toks}
        overrides = [f"{key}={value}" for key, value in settings.items()]
        self.inference = load_inference(overrides, model={"path": pretrained}, engine=limit)
        self.strategy, self.verifier = strategy, verifier
        self.chat = ChatModel.open(self.inference)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The response that the strategy chooses for each request."""
        texts: list[str] = []
        with VerifierPool.of(self.inference.verify) as pool:
            solver = Solver(self.chat, pool, self.inference.solve, seed=self.inference.seed)
            for start in tqdm(range(0, len(requests), CHUNK), disable=disable_tqdm, desc=self.strategy):
                chunk = requests[start : start + CHUNK]
                examples = [self._example(start + i, request.args[0]) for i, request in enumerate(chunk)]
                for request, solution in zip(chunk, solver.solve(examples, self.strategy), strict=True):
                    texts.append(_cut(solution.text, request.args[1].get("until") or []))
        return texts

    def _example(self, number: int, context: str) -> Example:
        context = without_images(context)
        return Example(str(number), self.chat.prompts.question(context), context, "", self.verifier)

    def loglikelihood(self, requests: Any, *arguments: Any) -> Any:
        """Not had: a strategy answers, it scores no continuations."""
        raise NotImplementedError(
            "spark-rl answers in words; choose tasks of lm-eval whose output_type is generate_until"
        )

    loglikelihood_rolling = loglikelihood


def _cut(text: str, until: str | Sequence[str]) -> str:
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
