"""Our model inside the real lm-eval, on a task of its own format."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from spark_rl.types import IMAGE

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

TASK = """
task: little_sums
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:"], max_gen_toks: 64}}
filter_list:
  - name: boxed
    filter:
      - {{function: regex, regex_pattern: '\\\\boxed\\{{(\\d+)\\}}', group_select: -1}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def tasks(tmp_path):
    rows = [{"question": f"Work out {a}+{a + 1}.", "answer": str(2 * a + 1)} for a in range(1, 9)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "little_sums.yaml").write_text(TASK.format(data=data))
    return folder


def test_a_strategy_is_a_model_of_lm_eval(tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from spark_rl.integrations.lm_eval import StrategyLM

    results = lm_eval.simple_evaluate(
        model=StrategyLM("embedded", "majority@8", max_gen_toks=48),
        tasks=["little_sums"],
        task_manager=TaskManager(include_path=str(tasks)),
        bootstrap_iters=0,
    )
    assert 0 <= results["results"]["little_sums"]["exact_match,boxed"] <= 1
    samples = results["samples"]["little_sums"]
    assert all("\\boxed{" in sample["resps"][0][0] for sample in samples)


def test_the_command_is_lm_evals_own(tasks):
    command = [sys.executable, "-m", "spark_rl.integrations.lm_eval", "run", "--model", "spark-rl"]
    command += ["--model_args", "pretrained=embedded,strategy=greedy,max_gen_toks=48,judge.samples=1"]
    command += ["--tasks", "little_sums", "--include_path", str(tasks), "--limit", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "little_sums" in done.stdout and "spark-rl" in done.stdout


def test_a_document_that_quotes_the_mark_of_an_image_has_none():
    from lm_eval.api.instance import Instance

    from spark_rl.integrations.lm_eval import StrategyLM

    model = StrategyLM("embedded", max_gen_toks=8)
    asked, plain = (
        Instance("generate_until", {}, (f"What is {sign}?", {"until": ["\n"]}), i)
        for i, sign in enumerate((IMAGE, "\ufffd"))
    )
    said = model.generate_until([asked, plain], disable_tqdm=True)
    assert said[0] == said[1]


def test_what_it_is_not_for_is_said():
    from spark_rl.integrations.lm_eval import StrategyLM

    model = StrategyLM("embedded", max_gen_toks=8)
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="did you mean 'reflect'"):
        StrategyLM("embedded", "reflct")
    with pytest.raises(ValueError, match=r"judge\.sample"):
        StrategyLM("embedded", **{"judge.sample": 3})
