"""Questions in, solutions out, by a strategy of `strategies.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from spark_rl.config import SolveConfig
from spark_rl.infer.chat import ChatModel
from spark_rl.infer.judge import Judge
from spark_rl.infer.plan import Plan, Spent, run
from spark_rl.infer.strategies import Attempt, Outcome, Step, parse_strategy
from spark_rl.types import Example
from spark_rl.verify import Check, VerifierPool, box, equality


@dataclass(frozen=True, slots=True)
class Solution:
    """A question solved, and what it took."""

    answer: str | None
    """None: no answer came of it."""
    text: str
    """The response that was chosen."""
    prompt_tokens: int
    """Each prompt counted once, of all roles."""
    generated_tokens: int
    steps: tuple[Step, ...]
    """Everything that was generated on the way, the verdicts on answers included."""

    @property
    def tokens(self) -> int:
        """The cost: tokens read and written."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def no_room(self) -> bool:
        """Whether not even the first answer could be begun: the question fills the model's context."""
        return not self.generated_tokens and not self.steps[0].text


class Solver:
    """Solves questions with a model, and a judge where the strategy wants one (by default the same model).

    Args:
        pool: says whether two answers are equal, by the verifier of the question.
        right_at: the reward from which on that verifier takes them for equal.
    """

    def __init__(
        self,
        model: ChatModel,
        pool: VerifierPool,
        settings: SolveConfig | None = None,
        *,
        judge: Judge | None = None,
        seed: int = 0,
        right_at: float = 1.0,
    ) -> None:
        self.model, self.pool, self.settings, self.seed = model, pool, settings or SolveConfig(), seed
        self.right_at = right_at
        self.judge = judge or Judge(model, seed=seed)

    def solve(
        self, examples: Sequence[Example], strategy: str, progress: Callable[[int, int], None] | None = None
    ) -> list[Solution]:
        """Solve the questions together. What is generated for one depends on it, the strategy and the seed alone.

        Raises:
            ValueError: the strategy is unknown.
        """
        carry_out, k = parse_strategy(strategy)

        def begin(example: Example, spent: Spent) -> Plan[Outcome]:
            same = partial(self._same, example)
            return carry_out(Attempt(example, self.judge, self.settings, same, spent, self.model.prompts, k))

        plans = [(example.id, partial(begin, example)) for example in examples]
        limit = self.settings.max_tokens
        return [
            Solution(
                done.value.answer,
                done.value.text,
                done.spent.prompt_tokens,
                done.spent.generated_tokens,
                done.value.steps,
            )
            for done in run(plans, self.model, seed=self.seed, limit=limit, progress=progress)
        ]

    def _same(self, example: Example, answer: str, other: str) -> bool:
        if answer == other:
            return True
        verifier, metadata = equality(example.verifier, example.metadata)
        both_ways = ((answer, other), (other, answer))  # "A. 12" is right where "A" is the gold, not the reverse
        checks = [Check(box(one), gold, verifier, metadata, example.prompt) for one, gold in both_ways]
        right_at = self.right_at if verifier == example.verifier else 1.0
        return any(verdict.at(right_at).reason == "correct" for verdict in self.pool.verify(checks))
