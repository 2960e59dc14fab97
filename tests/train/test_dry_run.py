"""What `--dry-run` measures and counts, against the real model and the real data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spark_rl.config import Config, ModelConfig, load_config
from spark_rl.data import load_data
from spark_rl.models.folder import resolve_path
from spark_rl.models.load import load_model, load_tokenizer
from spark_rl.prompts import ChatRenderer
from spark_rl.rollout.engine import Request
from spark_rl.rollout.transformers_engine import _chunks
from spark_rl.train.dry_run import describe, figures
from spark_rl.train.estimate import Memory, ModelShape, generation_bytes
from spark_rl.train.loop import Trainer
from spark_rl.train.plan import RoleTokens, advice, make_plan, memory_of, step_tokens
from spark_rl.types import Role

SMALL = [
    "preset=spark",
    "rollout.groups_per_step=12",
    "rollout.num_generations=4",
    "rollout.max_new_tokens=24",
    "data.train={path: embedded:train, size: 200}",
]


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
    roles, step, run = shown["roles"], shown["step"], shown["run"]
    assert set(roles) == set(Role)
    assert all(r["rollout_tokens"] == r["groups"] * 4 * 24 for r in roles.values())
    assert (step["generation_calls"], step["rollouts"]) == (1, 12 * 4)
    assert step["rollout_tokens"] == sum(r["rollout_tokens"] for r in roles.values()) == 12 * 4 * 24
    assert step["prompt_tokens"] == pytest.approx(sum(r["prompt_tokens"] for r in roles.values()), abs=2)
    assert all(run[name] == 5 * step[name] for name in ("rollouts", "prompt_tokens", "rollout_tokens"))


def test_refilling_multiplies_what_a_step_asks_but_not_what_it_trains_on():
    once, thrice = (make_plan(small(f"rollout.refill_rounds={rounds}")) for rounds in (0, 2))
    assert thrice.step.generation_calls == 3
    assert thrice.step.rollouts == 3 * once.step.rollouts and thrice.step.rollout_tokens == 3 * once.step.rollout_tokens
    assert thrice.memory == once.memory
    assert "up to 3 generation calls" in describe(thrice.config) and "one generation call" in describe(once.config)


def test_what_comes_before_the_steps_of_rl_is_said() -> None:
    examples = 'prompts.examples={answer: [{question: "What is 2+2?", reply: 2+2=4, answer: 4}]}'
    warm = small("warm_start.steps=5", "warm_start.from_rollouts=true", examples)
    assert "before them 5 supervised steps (warm_start), each on the right rollouts of such a step" in describe(warm)
    assert figures(warm)["run"]["warm_start_steps"] == 5 and figures(warm)["run"]["steps"] == warm.train.steps
    assert describe(warm).count("[assistant] 2+2=4") == 1
    assert "they stand before each prompt of the warm start" in describe(warm)


def test_a_warm_start_is_counted_apart_since_rl_does_without_its_examples() -> None:
    examples = 'prompts.examples={answer: [{question: "What is 2+2?", reply: 2+2=4, answer: 4}]}'
    few = ("rollout.refill_rounds=1", "train.micro_batch_tokens=512")
    warm, bare = make_plan(small("warm_start.steps=5", "warm_start.from_rollouts=true", examples, *few)), small(*few)
    plain, always = make_plan(bare), make_plan(small(examples, *few))
    assert warm.roles == plain.roles and warm.step == plain.step and warm.memory.update == plain.memory.update
    assert warm.warm_roles == always.roles and warm.memory.generation == always.memory.generation
    assert plain.warm_step is None and warm.warm_step is not None
    longer = always.roles[Role.ANSWER].prompt_mean - plain.roles[Role.ANSWER].prompt_mean
    assert longer > 10  # with the example
    assert warm.warm_step.generation_calls == 1 and 2 * warm.warm_step.rollouts == warm.step.rollouts
    assert 2 * warm.warm_step.prompt_tokens == always.step.prompt_tokens > warm.step.prompt_tokens
    shown = figures(warm.config)
    assert shown["warm_step"]["prompt_tokens"] == warm.warm_step.prompt_tokens
    assert "a step of the warm start, worked examples included, at most: 48 rollouts" in describe(warm.config)


def of(config: Config, **changes: tuple[int, int, int, float]) -> dict[Role, RoleTokens]:
    """Figures by hand: most_groups, num_generations, max_new_tokens, prompt_mean."""
    return {
        Role(name): RoleTokens(config.slots()[Role(name)], most, n, new, mean, round(mean))
        for name, (most, n, new, mean) in changes.items()
    }


def test_a_step_is_bounded_whatever_the_pool_can_fill():
    """12 groups: 6 questions, 4 pointwise, 2 pairwise. Verdicts are short, pairs have the longest prompts."""
    shares = ["answer.share=0.5", "pointwise.share=0.33", "pairwise.share=0.17", "reflection.share=0"]
    config = small(*(f"roles.{share}" for share in shares))
    roles = of(config, answer=(12, 4, 100, 10), pointwise=(4, 4, 8, 20), pairwise=(2, 8, 80, 50))
    step = step_tokens(config, roles)
    assert step.rollout_tokens == 10 * 4 * 100 + 2 * 8 * 80
    assert step.rollouts == 10 * 4 + 2 * 8
    assert step.prompt_tokens == 6 * 10 + 4 * 20 + 2 * 50
    alternating = small(*(f"roles.{share}" for share in shares), "recycle.schedule=alternating")
    roles = of(alternating, answer=(12, 4, 100, 10), pointwise=(12, 4, 8, 20), pairwise=(12, 8, 80, 50))
    assert step_tokens(alternating, roles).rollout_tokens == 12 * 8 * 80  # a step of pairs only


def test_the_first_step_of_a_real_run_is_within_the_bound(tmp_path):
    """It asks questions only, here with the longest rollouts of all roles."""
    short = [f"roles.{role}.max_new_tokens=2" for role in ("pointwise", "pairwise", "reflection")]
    once = ["train.steps=1", "train.threads=1", f"train.output={tmp_path}"]
    config = small("rollout.max_new_tokens=8", "rollout.refill_rounds=1", *short, *once)
    plan = make_plan(config)
    assert plan.roles[Role.ANSWER].most_groups == 12 and plan.roles[Role.POINTWISE].most_groups < 12
    assert Trainer(config).run() is not None
    asked = json.loads((tmp_path / "metrics.jsonl").read_text())["rollout_tokens"]
    assert asked <= plan.step.rollout_tokens
    assert asked > sum(role.rollout_tokens for role in plan.roles.values())


def test_generation_holds_as_many_rows_as_a_step_of_questions():
    short, full = (
        make_plan(small(*(f"roles.{role}.{what}" for role in ("pointwise", "pairwise", "reflection")), *more))
        for what, more in (
            ("max_new_tokens=1", ["rollout.max_new_tokens=500"]),
            ("share=0", ["rollout.max_new_tokens=500", "roles.answer.share=1"]),
        )
    )
    assert short.memory.generation == full.memory.generation


@pytest.mark.parametrize("preset", ["spark", "paper"])
@pytest.mark.parametrize("answers", [["7"], ["7", "7", "7"], ["7", "8"]])
def test_recycled_roles_have_examples_whatever_the_labels(tmp_path, preset, answers):
    rows = [{"prompt": f"What is the digit {'!' * i}?", "answer": answer} for i, answer in enumerate(answers)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = make_plan(small(f"preset={preset}", f"data.train={tmp_path / 'data.jsonl'}"))
    assert all(plan.prompts[role] and plan.roles[role].prompt_mean > 0 for role in plan.roles)
    assert set(plan.roles) == {role for role in Role if plan.config.roles[role].share}


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


def test_processes_share_the_step_and_each_holds_the_weights(monkeypatch):
    plan = make_plan(small())
    alone = plan.memory
    monkeypatch.setenv("WORLD_SIZE", "4")
    four = memory_of(plan.config, plan.shape, plan.roles, "cpu")
    assert four.weights == alone.weights
    assert four.generation < alone.generation
    assert four.optimizer == alone.optimizer + 4 * plan.shape.num_params  # DDP's buckets


SHAPE = ModelShape(
    num_params=500_000, layers=4, hidden=96, intermediate=256, heads=4, kv_heads=2, head_dim=24, vocab=512
)
MANY = ["preset=grpo", "rollout.groups_per_step=512", "train.micro_batch_tokens=100000"]


def advised(available: int, *overrides: str) -> str | None:
    config = small(*MANY, *overrides)
    return advice(config, SHAPE, of(config, answer=(512, 4, 24, 40.0)), "cpu", available)


def memory(*overrides: str) -> Memory:
    config = small(*MANY, *overrides)
    return memory_of(config, SHAPE, of(config, answer=(512, 4, 24, 40.0)), "cpu")


def test_the_advice_names_the_setting_that_is_to_blame():
    peak, always = memory().peak, memory().weights + memory().runtime
    assert advised(peak) is None
    said = advised(peak - 1)
    assert said is not None and "lower train.micro_batch_tokens to " in said and "activation_checkpointing" in said
    tokens = int(said.split("micro_batch_tokens to ")[1].split()[0])
    assert memory(f"train.micro_batch_tokens={tokens}").update <= peak - 1 - always
    assert "rollout.max_batch_tokens" in (advised(always + memory().optimizer + 1) or "")
    assert advised(always) == "choose a smaller model.path"
    assert "loss.kl_coef" in (advised(always, "loss.kl_coef=0.1") or "")


def test_checkpointing_lowers_the_update():
    plain, little = (make_plan(small(f"model.activation_checkpointing={on}")).memory.update for on in ("false", "true"))
    assert little < plain


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    """A model whose prompts cannot be shared, with the embedded tokenizer."""
    folder = tmp_path_factory.mktemp("lfm2") / "model"
    shutil.copytree(resolve_path("embedded"), folder)
    size = len(load_tokenizer(ModelConfig()))
    model = tiny_model("Lfm2", vocab_size=size, max_position_embeddings=1024, layer_types=["conv", "full_attention"])
    model.save_pretrained(folder)
    return folder


def test_a_model_that_cannot_share_prompts_is_estimated_by_what_it_does(convolutional, tmp_path):
    config = small(f"model.path={convolutional}", "train.threads=1", f"train.output={tmp_path}")
    plan = make_plan(config)
    trainer = Trainer(config)
    assert plan.shape.shares is trainer.engine.shares is trainer.updater.shares is False
    assert plan.memory == make_plan(small("train.shared_prefix=plain", f"model.path={convolutional}")).memory
    sharing = memory_of(config, replace(plan.shape, shares=True), plan.roles, plan.device)
    assert plan.memory.update > sharing.update
    assert "this model cannot share" in describe(config) and "cannot share" not in describe(small())


@pytest.mark.parametrize("shares", [True, False])
def test_generation_is_estimated_for_the_rows_that_the_engine_runs_at_once(shares):
    config = small("preset=grpo", "rollout.groups_per_step=64", "rollout.max_batch_tokens=4000")
    shape = replace(SHAPE, shares=shares)
    estimated = memory_of(config, shape, of(config, answer=(64, 4, 24, 40.0)), "cpu").generation
    requests = [Request(str(i), (1,) * 40, 4, 24) for i in range(64)]
    chunk = max(_chunks(requests, 4000, shares), key=len)
    prompts = len({i for i, _ in chunk}) if shares else len(chunk)
    of_chunk = generation_bytes(shape, prompts * 40 + len(chunk) * 24, len(chunk), 4)
    assert estimated == pytest.approx(of_chunk, rel=0.02)


def test_a_model_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.path"):
        describe(small(f"model.path={tmp_path}"))
