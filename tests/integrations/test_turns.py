"""Questions and responses found again in prompts of chat templates."""

from __future__ import annotations

import pytest
from clock import steps_of

from spark_rl.integrations.turns import answered, asked, question_of, response_of
from spark_rl.types import IMAGE

PROMPTS = [
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n3+4?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<bos><start_of_turn>user\n3+4?<end_of_turn>\n<start_of_turn>model\n",
    "<|user|>\n3+4?<|end|>\n<|assistant|>\n",
    "<s>[INST] 3+4? [/INST]",
    "3+4?",
]
TWO_TURNS = f"{PROMPTS[0]}7<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_one_question_is_found(prompt):
    assert question_of(prompt) == "3+4?"


@pytest.mark.parametrize("prompt", [TWO_TURNS, "[INST] cut off", "What does </s> mean?", ""])
def test_what_is_not_clear_stays_whole(prompt):
    assert question_of(prompt) == prompt


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "<|eot_id|>", "</s>", ""])
def test_a_response_is_what_follows_without_its_end(end):
    assert response_of(f"{PROMPTS[0]}It is 7. {end}", PROMPTS[0]) == "It is 7."


def test_a_tag_within_a_response_stays():
    assert response_of("q</s> and </s>", "q") == "</s> and"


def test_the_reasoning_that_the_prompt_opens_is_seen():
    assert response_of("3+4?<think>\nhm</think>7", "3+4?<think>\n") == "<think>hm</think>7"


def test_a_prompt_that_was_cut_is_refused():
    with pytest.raises(ValueError, match="begin with its prompt"):
        response_of("4? 7", "3+4?")


@pytest.mark.parametrize("piece", ["[INST]", "<|im_start|>user\n", " ", "[/INST]", "[INST][/INST]", "</s>"])
def test_long_texts_take_no_time(piece):
    prompt = piece * 200_000
    assert steps_of(lambda: (question_of(prompt), response_of(prompt + prompt, prompt))) < 2e7  # quadratic: 1e10


def test_messages_and_texts():
    user = {"role": "user", "content": "3+4?"}
    assert asked("3+4?") == asked([{"role": "system", "content": "Be brief."}, user]) == ("3+4?", [])
    assert asked([user, {"role": "assistant", "content": "7"}, user])[0] == "user: 3+4?\n\nassistant: 7\n\nuser: 3+4?"
    called = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "7"}]
    assert answered([*called, {"role": "assistant", "content": "It is 7."}]) == answered("It is 7.") == "It is 7."
    assert answered(called) == answered([]) == ""


def user(*content: str | dict) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


PLACE = {"type": "image"}
OWN = {"type": "image", "image": "own.png"}


@pytest.mark.parametrize(
    ("prompt", "column", "question", "images"),
    [
        ([user(OWN, "3+4?")], ["own.png"], f"{IMAGE}3+4?", ["own.png"]),  # as TRL has them: in the part and the column
        ([user(OWN, "3+4?")], [], f"{IMAGE}3+4?", ["own.png"]),
        ([user("Is ", PLACE, " or ", OWN, "?")], ["a.png"], f"Is {IMAGE} or {IMAGE}?", ["a.png", "own.png"]),
        ([user("3+4?")], ["a.png"], "3+4?", ["a.png"]),
        ("3+4?", ["a.png"], "3+4?", ["a.png"]),
        ([user(OWN), user(PLACE)], ["a.png"], f"user: {IMAGE}\n\nuser: {IMAGE}", ["own.png", "a.png"]),
        ([user(f"{IMAGE}<image>")], [], "\ufffd<image>", []),
        (f"{IMAGE}?", ["a.png"], "\ufffd?", ["a.png"]),
    ],
)
def test_images_belong_to_their_places_and_typed_markers_are_none(prompt, column, question, images):
    assert asked(prompt, column) == (question, images)


def test_as_many_images_as_places():
    with pytest.raises(ValueError, match=r"the number of images in the column is 1, and that of image parts .* is 2"):
        asked([user(PLACE, PLACE)], ["a.png"])
    with pytest.raises(ValueError, match="has a part of a message that is neither"):
        asked([user({"type": "video", "video": "a.mp4"})])
