"""Two real processes with gloo make the run that one process makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories import lines, read_rows
from ranks import train_on_ranks
from safetensors.torch import load_file
from test_loop import SMALL
from vision import picture, save_vision_model


def test_two_ranks_equal_one_and_resume(tmp_path: Path) -> None:
    config = tmp_path / "empty.yaml"
    config.write_text("{}")
    held_out = ["data.validation=[embedded:validation]", "validation.items=12"]
    settings = [*SMALL, *held_out, "train.learning_rate=1e-4", "loss.kl_coef=0.001", "checkpoint.every=2"]
    settings += ["rollout.refill_rounds=1"]
    finals = []
    for world in (1, 2):
        run = tmp_path / f"world-{world}"
        if world == 1:
            train_on_ranks(world, config, *settings, f"train.output={run}")
        else:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
            command += ["-m", "spark_rl.cli", "train", str(config), *settings, f"train.output={run}"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
        once = load_file(run / "final" / "model.safetensors")
        (run / "checkpoints" / "step-000003" / f"random-{world - 1}.json").write_text("{}")
        said = train_on_ranks(world, config, *settings, f"train.output={run}", "--resume")
        assert f"is damaged (random-{world - 1}.json" in said and "resumed after step 2" in said
        again = load_file(run / "final" / "model.safetensors")  # the last step is made again
        assert all(torch.equal(again[name], once[name]) for name in once)
        finals.append((load_file(run / "final" / "model.safetensors"), read_rows(run / "metrics.jsonl")))
    (one, one_metrics), (two, two_metrics) = finals
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5)
    for mine, theirs in zip(one_metrics, two_metrics, strict=True):
        for key in ("answer/accuracy", "rollout_tokens", "trained_tokens", "pool/pointwise"):
            assert mine[key] == theirs[key], key


def test_two_ranks_warm_start_as_one(tmp_path: Path) -> None:
    """Of the two rows of a step both are learnt, or one, so that a rank has nothing to do, or none."""
    rows = [{"prompt": f"What is {i}+1?", "answer": i + 1, "response": [f"#### {i + 1}", "#### 77"]} for i in range(6)]
    rows += [{**row, "prompt": f"Now, {row['prompt']}", "response": "." * 60 + f"#### {row['answer']}"} for row in rows]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    (tmp_path / "empty.yaml").write_text("{}")
    settings = [*SMALL, "rollout.groups_per_step=2", "roles.answer.share=1", "roles.pointwise.share=0"]
    settings += ["roles.pairwise.share=0", "roles.reflection.share=0", f"warm_start.data={tmp_path / 'rows.jsonl'}"]
    settings += [
        "warm_start.from_rollouts=true",
        "prompts.examples=ready",
        "warm_start.steps=6",
        "train.steps=1",
        "data.answer_format=hash",
        "warm_start.learning_rate=1e-4",
    ]
    finals, metrics = [], []
    for world in (1, 2):
        run = tmp_path / f"world-{world}"
        train_on_ranks(world, tmp_path / "empty.yaml", *settings, f"train.output={run}")
        finals.append(load_file(run / "final" / "model.safetensors"))
        metrics.append(read_rows(run / "metrics.jsonl"))
    for name in finals[0]:
        torch.testing.assert_close(finals[0][name], finals[1][name], rtol=1e-3, atol=2e-5)
    assert {row["warm_start/trained"] for row in metrics[0][:6]} >= {0, 1}
    for mine, theirs in zip(*metrics, strict=True):
        assert mine.get("warm_start/nll", 0) == pytest.approx(theirs.get("warm_start/nll", 0), rel=1e-4)
        assert mine.get("warm_start/trained") == theirs.get("warm_start/trained")


def test_a_verifier_that_hangs_on_one_rank_stops_them_all(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import os, time\ndef grade(completions, **kwargs):\n"
        "    time.sleep(3600 * (os.environ['RANK'] == '1'))\n    return [1.0]\n"
    )
    (tmp_path / "rows.jsonl").write_text(lines([{"prompt": f"What is {i}+1?", "answer": i + 1} for i in range(12)]))
    (tmp_path / "empty.yaml").write_text("{}")
    settings = [*SMALL, f"data.train={tmp_path / 'rows.jsonl'}", "data.verifier=trl:odd:grade"]
    settings += ["data.check_golds=false", "verify.wall_seconds=0.5"]
    with pytest.raises(AssertionError, match=r"stopped in step 0: the verifier trl:odd:grade ran out of time"):
        train_on_ranks(2, tmp_path / "empty.yaml", *settings, f"train.output={tmp_path / 'run'}", cwd=tmp_path)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_two_ranks_equal_one_with_images(family: str, tmp_path: Path) -> None:
    """Questions with and without images: in some micro-batches of a rank there is nothing to see. The towers of some
    families have weights that nothing reads. What most questions begin with is computed once a step on two ranks, and
    for every rollout where there is one."""
    model = save_vision_model(family, tmp_path / "model")
    rows: list[dict[str, object]] = []
    for i in range(12):
        picture(i).save(tmp_path / f"{i}.png")
        question = f"{'Look well. ' * 20 if i % 6 else ''}Number {i}?" + " <image>" * (i % 3 == 0)
        rows.append({"prompt": question, "answer": "Yes", "images": [f"{i}.png"] if i % 3 == 0 else []})
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    (tmp_path / "graders.py").write_text(
        "def even(completions, **kwargs):\n    return [float(len(c[0]['content']) % 2 == 0) for c in completions]\n"
    )
    config = tmp_path / "empty.yaml"
    config.write_text("{}")
    settings = [
        *SMALL,
        f"model.path={model}",
        f"data.train={tmp_path / 'rows.jsonl'}",
        "data.verifier=trl:graders:even",
        "data.check_golds=false",
        "rollout.max_new_tokens=6",
        "train.learning_rate=1e-4",
        "train.micro_batch_tokens=400",
    ]
    finals = []
    for world in (1, 2):
        run = tmp_path / f"world-{world}"
        sharing = "plain" if world == 1 else "auto"
        train_on_ranks(world, config, *settings, f"train.output={run}", f"train.shared_prefix={sharing}", cwd=tmp_path)
        finals.append(load_file(run / "final" / "model.safetensors"))
    before = load_file(model / "model.safetensors")
    for name, value in finals[0].items():
        torch.testing.assert_close(value, finals[1][name], rtol=1e-3, atol=2e-5)
    assert any("vis" in name and not torch.equal(value, before[name]) for name, value in finals[0].items())
