"""Record the rollouts of a step in the middle of quickstart runs, for the benchmarks: `rollouts.json.gz`.

    OMP_NUM_THREADS=1 python benchmarks/record_rollouts.py

Three runs of 20 steps, about a minute in all. They differ in what recycled prompts show of a response: its final
answer, the whole of it, or each for half of them, as in the quickstart.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

from harness import RECORDED

from spark_rl.config import load_config
from spark_rl.train.loop import Trainer
from spark_rl.types import Group

STEP = 20
VIEWS = {"answer": 0.0, "both": 0.5, "reasoning": 1.0}
RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"


def record(reasoning_view: float, output: Path) -> list[Group]:
    """What the last of some steps trains on."""
    overrides = ["data.validation=[]", "data.monitor=[]", "train.threads=1", f"recycle.reasoning_view={reasoning_view}"]
    trainer = Trainer(load_config(RECIPE, [*overrides, f"train.output={output}"]))
    taken: list[Group] = []
    update = trainer.updater.update
    trainer.updater.update = lambda groups: (taken.__setitem__(slice(None), groups), update(groups))[1]
    with trainer.verifiers:
        for _ in range(STEP):
            trainer.step()
    return taken


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        views = {
            name: [
                {
                    "role": group.task.role.value,
                    "prompt": group.prompt_ids,
                    "completions": [rollout.token_ids for rollout in group.rollouts],
                    "rewards": [rollout.reward for rollout in group.rollouts],
                }
                for group in record(share, Path(folder, name))
            ]
            for name, share in VIEWS.items()
        }
    text = json.dumps(views, separators=(",", ":")).encode()
    RECORDED.write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    main()
