"""The memory that `train --dry-run` foretells against what a step takes. One JSON line a model.

    OMP_NUM_THREADS=1 python benchmarks/bench_memory.py

Random models are saved to a temporary folder, and the real trainer makes two steps on each in a process of its own (in
the first one AdamW's moments do not exist yet). `actual` is the process's highest resident memory less that after the
imports, `of_actual` is the estimate, without what it sets aside for the libraries, over it, and `ratio` the factor that
they are apart, in whatever direction. Rewards alternate, so that every group trains; random models hardly ever end
their turn, so rollouts have their full length. All cases take about six minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import line, show

_MOST = 1.25


@dataclass(frozen=True)
class Case:
    name: str
    hidden: int
    layers: int
    vocab: int
    overrides: tuple[str, ...] = ()
    prompt_words: int = 0
    """0 takes the short questions of the embedded set."""
    family: str = "Qwen3"


CASES = [
    Case("memory/5M", hidden=128, layers=4, vocab=32_000),
    Case("memory/5M-plain", 128, 4, 32_000, ("train.shared_prefix=plain",)),
    Case("memory/5M-long-prompt", 128, 4, 32_000, prompt_words=300),
    Case("memory/5M-convolutions", 128, 4, 32_000, family="Lfm2"),
    Case("memory/40M", hidden=512, layers=8, vocab=32_000),
    Case("memory/40M-reference", 512, 8, 32_000, ("loss.kl_coef=0.001", "train.micro_batch_tokens=1024")),
    Case("memory/40M-checkpointing", 512, 8, 32_000, ("model.activation_checkpointing=true",)),
    Case("memory/110M", hidden=768, layers=12, vocab=32_000, overrides=("rollout.groups_per_step=4",)),
]


def config_of(case: Case, folder: Path) -> list[str]:
    return [
        "preset=grpo",
        f"model.path={folder / 'model'}",
        f"train.output={folder / 'run'}",
        "train.steps=2",
        "train.threads=1",
        "train.micro_batch_tokens=2048",
        "rollout.groups_per_step=8",
        "rollout.num_generations=8",
        "rollout.max_new_tokens=48",
        *([f"data.train={folder / 'questions.jsonl'}"] if case.prompt_words else []),
        *case.overrides,
    ]


def save_questions(case: Case, folder: Path) -> None:
    rows = [{"prompt": f"What is {i} + 1? " * (case.prompt_words // 5), "answer": str(i + 1)} for i in range(64)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_model(case: Case, folder: Path) -> None:
    import torch
    import transformers

    from spark_rl.models.folder import resolve_path

    torch.manual_seed(0)
    model_class = getattr(transformers, f"{case.family}ForCausalLM")
    mixed = {"layer_types": ["conv", "full_attention"] * (case.layers // 2), "block_auto_adjust_ff_dim": False}
    config = model_class.config_class(
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=3 * case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.hidden // 64,
        num_key_value_heads=case.hidden // 128,
        head_dim=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
        **(mixed if case.family == "Lfm2" else {}),
    )
    shutil.copytree(resolve_path("embedded"), folder / "model")
    model_class(config).save_pretrained(folder / "model")


def estimated(overrides: Sequence[str]) -> dict[str, int]:
    from spark_rl.config import load_config
    from spark_rl.train.dry_run import figures

    memory: dict[str, int] = figures(load_config(None, overrides))["memory"]
    return memory


def measured(overrides: Sequence[str]) -> int:
    """Bytes that two steps take, in this process."""
    import torch
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    from spark_rl.config import load_config
    from spark_rl.train.loop import Trainer
    from spark_rl.types import Group

    torch.ones(1)
    before = _status("VmRSS")

    class Alternating:
        def score(self, groups: Sequence[Group], engine: object) -> None:
            for group in groups:
                for i, rollout in enumerate(group.rollouts):
                    rollout.reward = float(i % 2)

    trainer = Trainer(load_config(None, overrides))
    trainer.scorer = Alternating()
    for _ in range(2):
        assert trainer.step()["trained_tokens"] > 0
    print(f"{before} bytes after imports", file=sys.stderr)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    rows = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith(name))


def run_case(case: Case) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        save_model(case, Path(folder))
        save_questions(case, Path(folder))
        overrides = config_of(case, Path(folder))
        memory = estimated(overrides)
        command = [sys.executable, __file__, "--measure", *overrides]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    actual = int(child.stdout.splitlines()[-1])
    estimate = memory["peak"] - memory["runtime"]
    apart = max(estimate / actual, actual / estimate)
    parts = {name: memory[name] for name in ("weights", "reference", "generation", "update", "optimizer")}
    of_actual = round(estimate / actual, 3)
    return line(case.name, [apart], at_most=_MOST, of_actual=of_actual, estimate=estimate, actual=actual, **parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    parser.add_argument("--measure", nargs="+", metavar="OVERRIDE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measured(args.measure))
        return
    for case in CASES:
        if args.case in case.name:
            show(run_case(case))


if __name__ == "__main__":
    main()
