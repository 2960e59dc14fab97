"""What `--dry-run` measures and counts, against the real model and the real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spark_rl.config import Config, ModelConfig, load_config
from spark_rl.data import load_data
from spark_rl.prompts import ChatRenderer
from spark_rl.train.dry_run import _advice, describe, figures, make_plan, memory_of
from spark_rl.train.model import load_model, load_tokenizer
from spark_rl.types import Role

SMALL = ["preset=spark", "rollout.groups_per_step=12", "rollout.num_generations=4", "rollout.max_new_tokens=24"]


def small(*overrides: str) -> Config:
    return load_config(None, [*SMALL, *overrides])


def write_questions(path: Path, lengths: list[int]) -> Path:
    rows = [{"prompt": f"What is {i} + 1? " + "seven " * n, "answer": str(i + 1)} for i, n in enumerate(lengths)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    return json.loads(json.dumps(figures(small("train.steps=5"))))


def test_parameters_are_counted_without_loading_weights(shown):
    model = load_model(ModelConfig())
    assert shown["model"]["num_params"] == sum(p.numel() for p in model.parameters())
    assert shown["model"]["architecture"] == "Qwen3ForCausalLM"
    assert shown["memory"]["weights"] == 12 * shown["model"]["num_params"]
    assert shown["disk"]["needed"] % (4 * shown["model"]["num_params"]) == 0
    assert shown["disk"]["needed"] < shown["disk"]["free"]


def test_prompt_lengths_are_those_of_the_data(shown):
    renderer = ChatRenderer(load_tokenizer(ModelConfig()))
    tasks, _ = load_data(small()).train.draw(200)
    lengths = [len(renderer.encode(task.messages)) for task in tasks]
    answer = shown["roles"]["answer"]
    assert answer["prompt_longest"] == max(lengths)
    assert answer["prompt_mean"] == pytest.approx(sum(lengths) / len(lengths), abs=0.06)


def test_the_tokens_of_a_run_add_up(shown):
    roles, run = shown["roles"], shown["run"]
    assert set(roles) == set(Role)
    assert all(r["rollout_tokens"] == r["groups"] * 4 * 24 for r in roles.values())
    assert run["rollouts"] == 5 * 12 * 4
    assert run["rollout_tokens"] == 5 * sum(r["rollout_tokens"] for r in roles.values()) == 5 * 12 * 4 * 24
    assert run["prompt_tokens"] == 5 * sum(r["prompt_tokens"] for r in roles.values())


def test_recycled_prompts_grow_with_what_they_may_show():
    def longest(*overrides: str) -> dict[Role, int]:
        return {role: r.prompt_longest for role, r in make_plan(small(*overrides)).roles.items()}

    short, long = longest(), longest("rollout.max_new_tokens=124")
    assert long[Role.ANSWER] == short[Role.ANSWER]
    assert long[Role.POINTWISE] - short[Role.POINTWISE] == 100
    assert long[Role.REFLECTION] - short[Role.REFLECTION] == 100
    assert long[Role.PAIRWISE] - short[Role.PAIRWISE] == 200
    assert max(longest("rollout.max_new_tokens=800").values()) == 1024 - 800  # longer ones are never asked


def test_questions_that_are_too_long_are_counted(tmp_path):
    data = write_questions(tmp_path / "data.jsonl", [0, 0, 300, 0, 400])
    plan = make_plan(small(f"data.train={data}", "data.max_prompt_tokens=150"))
    assert (plan.num_questions, plan.sampled, plan.too_long, plan.limit) == (5, 5, 2, 150)
    assert "which are skipped: 2 of 5" in describe(plan.config)


def test_nothing_fits_is_refused_as_the_run_refuses_it(tmp_path):
    data = write_questions(tmp_path / "data.jsonl", [300, 400])
    with pytest.raises(ValueError, match="every question is longer than 100 tokens"):
        describe(small(f"data.train={data}", "data.max_prompt_tokens=100"))


def test_the_text_says_what_fits_and_which_settings_count():
    text = describe(small())
    for part in ("# Tokens", "# Memory of one process", "# Disk", "rollout.max_batch_tokens", "(cpu): fits"):
        assert part in text
    assert "reference" not in text.partition("# Memory")[2].partition("# Disk")[0]


def test_a_reference_model_is_four_bytes_a_parameter_more():
    plan = make_plan(small("loss.kl_coef=0.1"))
    assert plan.memory.reference == 4 * plan.shape.num_params
    assert "for loss.kl_coef above 0" in describe(plan.config)


def test_processes_share_the_step_and_shards_the_weights(monkeypatch):
    plan = make_plan(small())
    alone = plan.memory
    monkeypatch.setenv("WORLD_SIZE", "4")
    four = memory_of(plan.config, plan.shape, plan.roles, "cpu")
    assert four.weights == alone.weights
    assert four.generation < alone.generation
    assert four.optimizer == alone.optimizer + 4 * plan.shape.num_params  # DDP's buckets
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert memory_of(plan.config, plan.shape, plan.roles, "cpu").weights == alone.weights // 4


def advice(available: int, *overrides: str) -> str | None:
    plan = make_plan(small("train.micro_batch_tokens=100000", "rollout.groups_per_step=512", *overrides))
    return _advice(plan.config, plan.shape, plan.roles, "cpu", available)


def test_the_advice_names_the_setting_that_is_to_blame():
    plan = make_plan(small("train.micro_batch_tokens=100000", "rollout.groups_per_step=512"))
    always = plan.memory.weights + plan.memory.runtime
    assert advice(plan.memory.peak) is None
    said = advice(plan.memory.peak - 1)
    assert said is not None and "lower train.micro_batch_tokens to " in said and "activation_checkpointing" in said
    tokens = int(said.split("micro_batch_tokens to ")[1].split()[0])
    fits = make_plan(
        small(
            f"train.micro_batch_tokens={tokens}", "rollout.groups_per_step=512", "model.activation_checkpointing=false"
        )
    )
    assert fits.memory.update <= plan.memory.peak - 1 - always
    assert "rollout.max_batch_tokens" in (advice(always + plan.memory.optimizer + 1) or "")
    assert "smaller model.path" in (advice(always) or "")
    assert "loss.kl_coef" in (advice(always, "loss.kl_coef=0.1") or "")


def test_checkpointing_lowers_the_update():
    plain, little = (make_plan(small(f"model.activation_checkpointing={on}")).memory.update for on in ("false", "true"))
    assert little < plain


def test_a_model_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.path"):
        describe(small(f"model.path={tmp_path}"))
