"""The reward function, called as TRL 1.16 calls it (huggingface/trl, trl/trainer/grpo_trainer.py), and by TRL."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from image_files import noise, png
from infer.scripted import says, scripted
from vision import picture, save_vision_model

from spark_rl.config import ModelConfig
from spark_rl.images import open_image
from spark_rl.infer import Judge
from spark_rl.integrations.trl import reward_function
from spark_rl.models.folder import resolve_path
from spark_rl.models.load import load_tokenizer
from spark_rl.models.processor import load_image_processor
from spark_rl.types import IMAGE


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


QUESTION = [{"role": "user", "content": "Which colour?"}]


def test_the_judge_is_shown_the_images_of_the_columns_and_of_the_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_RL_CACHE", str(tmp_path))
    the_judge, engine = judge()
    reward = reward_function(the_judge)
    first, second = noise(seed=1), noise(seed=2)
    answers = ["so 7"] * 3
    parts = [
        {"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "Which colour?"}]}
    ]
    for columns in ({"images": [[first], [second], [first]]}, {"image": [first, second, first]}):
        assert reward([QUESTION] * 3, answers, **columns) == [0.75] * 3
    assert reward([parts, QUESTION, parts], answers, images=[[first], [], [first]]) == [0.75] * 3
    shown = [[open_image(image).tobytes() for image in request.images] for call in engine.calls for request in call]
    one, other = [first.tobytes()], [second.tobytes()]
    assert shown == [one, other, one, other, one, []], "equal items are judged once"
    assert all(prompt.count(IMAGE) == len(images) for prompt, images in zip(engine.prompts, shown, strict=True))


def test_images_that_cannot_be_shown_are_one_sentence(tmp_path):
    sentence = "spark_judge, prompt 1: the image .*/gone.png cannot be read .No such file or directory.; check the path"
    with pytest.raises(ValueError, match=sentence):
        reward_function(judge()[0])([QUESTION] * 2, ["so 7"] * 2, image=[None, str(tmp_path / "gone.png")])
    (tmp_path / "a.png").write_bytes(png())
    blind = Judge.open("embedded", "engine.max_new_tokens=8")
    with pytest.raises(ValueError, match="the model takes no images, but a question has some; name a vision-languag"):
        reward_function(blind)([QUESTION], ["7"], image=[str(tmp_path / "a.png")])


def test_a_step_of_grpo_with_images(tmp_path, monkeypatch):
    """TRL hands over what its own model was shown; the judge sees the same."""
    trl = pytest.importorskip("trl", reason="runs TRL's trainer: pip install trl")
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageColumn
    from transformers import AutoModelForImageTextToText

    monkeypatch.setenv("SPARK_RL_CACHE", str(tmp_path / "cache"))
    folder = save_vision_model("qwen2_5_vl", tmp_path / "model")
    pictures = [picture(seed) for seed in range(2)]
    message = {"role": Value("string"), "content": Value("string")}
    questions = Dataset.from_dict(
        {"prompt": [QUESTION] * 2, "images": [[each] for each in pictures]},
        Features({"prompt": List(message), "images": List(ImageColumn())}),
    )
    the_judge, engine = judge()
    settings = ModelConfig(path=str(folder))
    trainer = trl.GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(folder),
        reward_funcs=[reward_function(the_judge)],
        args=grpo(trl, tmp_path, max_steps=1),
        train_dataset=questions,
        processing_class=load_image_processor(settings, load_tokenizer(settings)).processor,
    )
    trainer.train()
    requests = [request for call in engine.calls for request in call]
    seen = {open_image(image).tobytes() for request in requests for image in request.images}
    assert seen and seen <= {each.tobytes() for each in pictures}
    assert all(f"{IMAGE}Which colour?" in prompt for prompt in engine.prompts)


def grpo(trl, folder: Path, **settings):
    return trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )


def test_two_steps_of_grpo(tmp_path: Path):
    trl = pytest.importorskip("trl", reason="runs TRL's trainer: pip install trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    the_judge = Judge.open("embedded", "engine.max_new_tokens=16")
    folder = resolve_path("embedded")
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [[{"role": "user", "content": f"What is {i}+1?"}] for i in range(4)]
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=[reward_function(the_judge)],
        args=grpo(trl, tmp_path, max_steps=2),
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
