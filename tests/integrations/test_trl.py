"""The reward function, called as TRL 1.16 calls it (huggingface/trl, trl/trainer/grpo_trainer.py), and by TRL."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from infer.scripted import says, scripted

from spark_rl.infer import Judge
from spark_rl.integrations.trl import reward_function
from spark_rl.models.folder import resolve_path


def judge():
    def believe(prompt, number, request):
        return "I cannot tell." if "hm" in prompt else says("Yes", 0.75) if "7" in prompt else says("No", 0.75)

    model, engine = scripted(believe)
    return Judge(model), engine


def test_text_and_messages_are_rewarded_with_the_probability():
    the_judge, engine = judge()
    reward, logged = reward_function(the_judge), []
    columns = {
        "completion_ids": [[1], [2], [3], [1]],
        "answer": ["7"] * 4,
        "trainer_state": SimpleNamespace(global_step=1),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: logged.append((name, value)),
    }
    texts = ["so 7", "so 8", "hm", "so 7"]
    expected = [0.75, 0.25, None, 0.75]
    assert reward(prompts=["3+4?"] * 4, completions=texts, **columns) == expected
    assert len(engine.prompts) == 3
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    prompts = [[{"role": "system", "content": "Brief."}, {"role": "user", "content": "3+4?"}]] * 4
    assert reward(prompts=prompts, completions=messages, **columns) == expected
    assert engine.prompts[:3] == engine.prompts[3:]
    assert logged == [("spark_judge/unparsed", 0.25)] * 2


def test_it_needs_no_more_than_prompts_and_completions():
    assert reward_function(judge()[0])(["3+4?"], ["so 7"]) == [0.75]
    assert reward_function(judge()[0])([], []) == []


def test_its_name_is_what_metrics_are_called_by():
    assert reward_function(judge()[0]).__name__ == "spark_judge"
    assert reward_function(judge()[0], "math_judge").__name__ == "math_judge"


def test_two_steps_of_grpo(tmp_path: Path):
    trl = pytest.importorskip("trl", reason="runs TRL's trainer: pip install trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    the_judge = Judge.open("embedded", "engine.max_new_tokens=16")
    folder = resolve_path("embedded")
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [[{"role": "user", "content": f"What is {i}+1?"}] for i in range(4)]
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=[reward_function(the_judge)],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts, "answer": ["1", "2", "3", "4"]}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(steps) == 2
    for entry in steps:
        assert 0 <= entry["rewards/spark_judge/mean"] <= 1
        assert 0 <= entry["spark_judge/unparsed"] <= 1
    assert the_judge.spent.generated_tokens > 0
