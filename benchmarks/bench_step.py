"""A whole SPARK step against TRL's GRPO step on its policy groups alone, and where the step's time goes.

    OMP_NUM_THREADS=1 python benchmarks/bench_step.py

A quickstart run of 20 steps gives the model, so that both sides generate what a model in the middle of a run does. Then
learning stops (learning rate 1e-9), and steps of all sides take turns, after three to fill the pools:

- TRL: 32 questions x 8, with the micro-batch that is fastest for it, tried first;
- ours: 32 questions and 32 recycled prompts x 8, the recycled ones showing answers or the whole reasoning, with groups
  without signal dropped before the update, or not dropped (the update then costs what it costs where all of them have
  signal);
- ours, `grpo` preset: 64 questions x 8, nothing dropped. What a prompt-once token costs there, times the tokens of a
  SPARK step (prompts once, completions each), is what that step is predicted to cost.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import embedded, line, show, speedup, trl_trainer

from spark_rl.config import load_config
from spark_rl.train import batches
from spark_rl.train.loop import Trainer
from spark_rl.types import Group
from spark_rl.verify import extract_answer, grade

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
WARM_UP, FILL = 20, 3


def trainer(folder: Path, name: str, *overrides: str) -> Trainer:
    without = ["data.validation=[]", "data.monitor=[]", "train.threads=1", f"train.output={folder / name}"]
    return Trainer(load_config(RECIPE, [*without, *overrides]))


def keep_all(group: Group, config: object) -> bool:
    return bool(group.rewards)


@contextmanager
def nothing_dropped(active: bool) -> Iterator[None]:
    kept = batches.keeps
    batches.keeps = keep_all if active else kept
    try:
        yield
    finally:
        batches.keeps = kept


class Side:
    """One of our trainers, stepped and timed."""

    def __init__(self, trainer: Trainer, drops: bool) -> None:
        self.trainer, self.drops = trainer, drops
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.stages: list[dict[str, float]] = []
        update = trainer.updater.update

        def counted(groups: list[Group]) -> Any:
            self.tokens.append(sum(len(g.prompt_ids) + sum(len(r.token_ids) for r in g.rollouts) for g in groups))
            return update(groups)

        trainer.updater.update = counted

    def step(self) -> None:
        with nothing_dropped(not self.drops):
            start = time.perf_counter()
            metrics = self.trainer.step()
            self.seconds.append(time.perf_counter() - start)
        self.stages.append({k.removeprefix("time/"): v for k, v in metrics.items() if k.startswith("time/")})

    def forget(self) -> None:
        for record in (self.seconds, self.tokens, self.stages):
            record.clear()

    @property
    def share_of_the_rest(self) -> float:
        """Part of the time that is neither generation nor update."""
        rest = [s["step"] - s["generate"] - s["update"] for s in self.stages]
        return sum(rest) / sum(s["step"] for s in self.stages)


def turns_with(sides: list[Side]) -> Any:
    """A callback of TRL's that times its steps and lets the sides step after each; the first `FILL` do not count."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def __init__(self) -> None:
            self.done, self.seconds = 0, []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)
            for side in sides:
                side.step()
            self.done += 1
            if self.done == FILL:
                self.seconds.clear()
                for side in sides:
                    side.forget()

    return Turns()


def reward(completions: list[Any], gold: list[str], **_: Any) -> list[float]:
    answers = [extract_answer(completion[0]["content"]) for completion in completions]
    return [0.0 if a is None else grade(a, g, "numeric", {}).reward for a, g in zip(answers, gold, strict=True)]


def trl(model_path: Path, rows: list[dict[str, Any]], batch: int, steps: int, sides: list[Side]) -> list[float]:
    """Seconds of TRL's steps, after `FILL` that are not counted; the sides take turns with it."""
    turns = turns_with(sides)
    model, tokenizer = embedded(model_path)
    trl_trainer(
        model,
        tokenizer,
        rows,
        reward,
        groups=32,
        batch=batch,
        max_new_tokens=80,
        steps=FILL + steps,
        callbacks=[turns],
    ).train()
    return turns.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = trainer(folder, "warm")
        with warm.verifiers:
            for _ in range(WARM_UP):
                warm.step()
        tasks, _ = warm.selection.questions.draw(32 * (rounds + FILL), warm.selection.fits)
        rows = [{"prompt": [dict(m) for m in t.messages], "gold": t.example.answer} for t in tasks]
        model = folder / "model"
        warm.model.save_pretrained(model)
        warm.tokenizer.save_pretrained(model)
        batch = min((16, 32, 64, 128), key=lambda size: statistics.median(trl(model, rows, size, 2, [])))

        frozen = [f"model.path={model}", "train.learning_rate=1e-9"]
        sides = {
            "answer-views": ["recycle.reasoning_view=0"],
            "reasoning-views": ["recycle.reasoning_view=1"],
            "grpo": ["preset=grpo"],
        }
        ours = {(n, drops): Side(trainer(folder, f"{n}-{drops}", *frozen, *o), drops) for n, o in sides.items()
                for drops in ((False, True) if n != "grpo" else (False,))}  # fmt: skip
        for side in ours.values():
            side.trainer.verifiers.__enter__()
        baseline = trl(model, rows, batch, rounds, list(ours.values()))
        for side in ours.values():
            side.trainer.verifiers.__exit__(None, None, None)
        report(ours, baseline, batch)


def report(ours: dict[tuple[str, bool], Side], baseline: list[float], batch: int) -> None:
    trl_median = statistics.median(baseline)
    for view, most in (("answer-views", 1.0), ("reasoning-views", 1.6)):
        for drops in (False, True):
            side = ours[view, drops]
            turns = [a / b for a, b in zip(side.seconds, baseline, strict=True)]
            stages = {k: round(statistics.median(s[k] for s in side.stages), 3) for k in ("generate", "update", "step")}
            show(
                line(
                    f"step/{view}{'-dropping' if drops else ''}",
                    turns,
                    ratio=statistics.median(side.seconds) / trl_median,
                    at_most=most,
                    **stages,
                    trl_step=round(trl_median, 3),
                    trl_batch=batch,
                )
            )
    grpo = ours["grpo", False]
    assert len(grpo.seconds) == len(baseline)
    per_token = [s / t for s, t in zip(grpo.seconds, grpo.tokens, strict=True)]
    for view in ("answer-views", "reasoning-views"):
        side = ours[view, False]
        turns = [s / t / g for s, t, g in zip(side.seconds, side.tokens, per_token, strict=True)]
        show(line(f"step-predicted/{view}", turns, at_most=1.1, tokens=round(statistics.mean(side.tokens))))
        show(line(f"step-rest/{view}", [side.share_of_the_rest], at_most=0.05))
    same = speedup("step/grpo-64-questions", grpo.seconds, baseline)
    show({**same, "tokens": round(statistics.mean(grpo.tokens))})


if __name__ == "__main__":
    main()
