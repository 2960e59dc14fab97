"""The model families that users bring, tiny and with random weights: three steps, and three steps with a stop between.

A random model never answers anything, so its reward is a function of ours in TRL's signature, which pays for a letter.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer

from spark_rl.config import Config, load_config
from spark_rl.models.folder import resolve_path
from spark_rl.train.loop import Trainer
from spark_rl.train.metrics import Metrics
from spark_rl.train.telemetry import Display

REWARD = """
def many_digits(completions, **columns):
    return [float(sum(c.isdigit() for c in turn[0]["content"]) > 2) for turn in completions]
"""
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", {}),
    "Llama": ("Llama", {}),
    "Gemma": ("Gemma", {}),
    "Gemma2": ("Gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "Gemma3": ("Gemma3", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "Phi": ("Phi", {}),
    "Phi3": ("Phi3", {}),
    "SmolLM3": ("SmolLM3", {}),
}


class StopsAfter(Display):
    """Sends SIGTERM once a step is done."""

    last: int | None = None

    def step(self, step: int, metrics: Metrics) -> None:
        super().step(step, metrics)
        if step == self.last:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any]) -> Any:
    def make(family: str, **values: Any) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(resolve_path("embedded"))
        name, extra = FAMILIES[family]
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model = tiny_model(name, vocab_size=len(tokenizer), max_position_embeddings=512, **{**ids, **extra, **values})
        folder = tmp_path / family
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (tmp_path / "rewards.py").write_text(REWARD)
        monkeypatch.chdir(tmp_path)  # functions of the user's are imported from the current folder
        return folder

    return make


def settings(model: Path, output: str, *overrides: str) -> Config:
    (model.parent / "data.jsonl").write_text(
        "".join(f'{{"prompt": "What is {i}+{i}?", "answer": {2 * i}}}\n' for i in range(9))
    )
    few = ["rollout.groups_per_step=4", "rollout.num_generations=4", "rollout.max_new_tokens=12", "train.threads=1"]
    shared = ["data.train=[data.jsonl]", "data.verifier=trl:rewards:many_digits", "train.steps=3"]
    return load_config(
        None,
        [f"model.path={model}", *shared, *few, "train.learning_rate=1e-3", f"train.output={output}", *overrides],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps_and_a_stop_between_give_the_same_weights(family: str, model_folder: Any, capfd: Any) -> None:
    folder = model_folder(family)
    whole = settings(folder, "whole")
    assert Trainer(whole).run() is not None
    assert "not shared" not in capfd.readouterr().err, "the prompt is shared in the update"

    stopped = settings(folder, "stopped")
    display = StopsAfter(3)
    display.last = 2
    assert Trainer(stopped, display=display).run() is None
    assert Trainer(stopped, resume=True).run() is not None

    start, one, other = (
        load_file(path / "model.safetensors") for path in (folder, Path("whole/final"), Path("stopped/final"))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], start[name]) for name in one)
    model = transformers.AutoModelForCausalLM.from_pretrained("whole/final")
    assert type(model).__name__.startswith(FAMILIES[family][0])


def test_a_base_model_gets_its_chat_template_from_the_config(model_folder: Any) -> None:
    folder = model_folder("Llama")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template; set model\.chat_template"):
        Trainer(settings(folder, "run"))
    assert not Path("run").exists()
    Path("plain.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}Answer:")
    Trainer(settings(folder, "run", "model.chat_template=plain.jinja", "train.steps=1")).run()
    saved = AutoTokenizer.from_pretrained("run/final")
    prompt = saved.apply_chat_template([{"role": "user", "content": "1+1?"}], tokenize=False)
    assert prompt == "1+1?\nAnswer:"


def test_reasoning_that_the_template_opens_is_hidden_from_judges_and_from_the_extractor(model_folder: Any) -> None:
    folder = model_folder("Qwen3")
    shutil.copy(folder / "chat_template.jinja", "closed.jinja")
    opened = Path("closed.jinja").read_text() + "<think>\n"
    Path("opened.jinja").write_text(opened)
    trainer = Trainer(settings(folder, "run", "model.chat_template=opened.jinja", "train.steps=1"))
    assert trainer.renderer.opening == "<think>"
    trainer.run()
    for line in Path("run/rollouts/step-000001.jsonl").read_text().splitlines():
        assert '"text": "<think>' in line and '"extracted": null' in line
