"""A model as test time sees it: what fits its context, and the log-probability of what stands in a box."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scripted import scripted

from spark_rl.config import load_inference
from spark_rl.infer import ChatModel
from spark_rl.prompts import ChatRenderer, Prompts
from spark_rl.rollout.engine import Completion, Request
from spark_rl.verify import extract_answer


def ask(question: str, n: int = 1, max_new_tokens: int = 40) -> Request:
    return Request(question, (), n, max_new_tokens, temperature=0.0, messages=Prompts().question(question))


def prompt_tokens(model: ChatModel, request: Request) -> int:
    assert model.renderer
    return len(model.renderer.encode(request.messages))


def test_a_prompt_without_room_gets_empty_replies_and_the_others_are_answered(embedded: ChatModel) -> None:
    (long,) = embedded.generate([ask("What is 3+4? " * 500, n=2)])
    assert [(reply.text, reply.finish_reason, reply.num_tokens) for reply in long] == [("", "no_room", 0)] * 2
    short = [ask("What is 3+4?"), ask("What is 2*6?")]
    alone = embedded.generate(short)
    first, nothing, last = embedded.generate([short[0], ask("What is 3+4? " * 500), short[1]])
    assert [first[0].text, last[0].text] == [replies[0].text for replies in alone]
    assert nothing[0].finish_reason == "no_room"
    assert first[0].num_prompt_tokens == prompt_tokens(embedded, short[0])


@pytest.mark.parametrize("room", [1, 3])
def test_a_reply_is_cut_at_what_the_prompt_leaves_of_the_context(embedded: ChatModel, room: int) -> None:
    request = ask("What is 3+4?")
    (whole,) = embedded.generate([request])[0]
    narrow = copy.copy(embedded)
    narrow.context = prompt_tokens(embedded, request) + room
    (cut,) = narrow.generate([request])[0]
    assert cut.token_ids == whole.token_ids[:room]
    assert cut.finish_reason == "length"


def test_reasoning_that_the_template_opens_is_no_answer(embedded: ChatModel) -> None:
    assert embedded.renderer
    tokenizer = copy.deepcopy(embedded.renderer.tokenizer)
    tokenizer.chat_template += "<think>"
    thinking = copy.copy(embedded)
    thinking.renderer = ChatRenderer(tokenizer)
    (reply,) = thinking.generate([ask("What is 3+4?")])[0]
    assert reply.text.startswith("<think>")
    assert extract_answer(reply.text) is None


@pytest.mark.parametrize(
    ("tokens", "content", "word", "counted"),
    [
        (["So ", r"\boxed", "{", "Yes", "}"], "Yes", "Yes", [3]),
        (["So ", r"\boxed", "{", "Y", "es", "}"], "Yes", "Yes", [3, 4]),
        (["So ", r"\box", "ed{", "No}", "."], "No", "No", [3]),
        ([r"\boxed{", r"\text", "{", "yes", "}", "}"], r"\text{yes}", "Yes", [3]),
        ([r"\boxed{", "(", "B", ")", "}"], "(B)", "B", [2]),
        ([r"\boxed{", r"\mathrm", "{A", "}}"], r"\mathrm{A}", "A", [2]),
        ([r"\boxed{", "A", ". The", " first a", "}"], "A. The first a", "A", [1]),
        ([r"\boxed{", r"\text", "{", "Option ", "B", "}", "}"], r"\text{Option B}", "B", [4]),
        ([r"\boxed{", "No", "}", " no, ", r"\boxed{ ", "Yes", " }"], "Yes", "Yes", [5]),
        ([r"\boxed{", "Yes", "}", " again ", r"\boxed{", "Yes", "}"], "Yes", "Yes", [5]),
        ([r"\boxed{", "\uff39", "es", "}"], "\uff39es", "Yes", [1, 2]),
    ],
)
def test_the_tokens_of_the_word_in_the_last_box_are_counted(
    tokens: list[str], content: str, word: str, counted: list[int]
) -> None:
    model, _ = scripted(lambda prompt, i, request: "")
    logps = [-(2.0**i) for i in range(len(tokens))]
    reply = Completion([], logps, "".join(tokens), "stop", tokens)
    assert extract_answer(reply.text) == content
    assert model.logp_of_verdict(reply, content, word) == sum(logps[i] for i in counted)
    assert model.logp_of_verdict(Completion([], [], reply.text, "stop", tokens), content, word) is None
    assert (
        model.logp_of_verdict(Completion([], logps, "no box", "stop", ["no box"] * len(logps)), content, word) is None
    )


def test_log_probability_of_a_box_is_that_of_the_model(embedded: ChatModel) -> None:
    """Against a forward over the whole text, the word's tokens found by counting from its end."""
    request = ask("What is 3+4?")
    (reply,) = embedded.generate([request])[0]
    answer = extract_answer(reply.text)
    assert answer and embedded.renderer
    tokenizer, prompt = embedded.renderer.tokenizer, embedded.renderer.encode(request.messages)
    with torch.no_grad():
        logits = embedded.engine.model(torch.tensor([[*prompt, *reply.token_ids]])).logits[0]  # type: ignore[attr-defined]
    logps = logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(reply.token_ids)), reply.token_ids].tolist()
    texts = [tokenizer.decode([i]) for i in reply.token_ids]
    end = max(i for i, text in enumerate(texts) if "}" in text)
    start = max(i for i in range(end) if "{" in texts[i]) + 1
    assert "".join(texts[start:end]) == answer
    assert embedded.logp_of_verdict(reply, answer, answer) == pytest.approx(math.fsum(logps[start:end]), abs=1e-5)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("embedded", ["engine.kind=endpoint"], ["engine.kind is endpoint", "give an address"]),
        ("http://127.0.0.1:9", ["engine.kind=vllm"], ["engine.kind is vllm", "http://127.0.0.1:9"]),
        ("http://127.0.0.1:9", [], ["no server answers at http://127.0.0.1:9", "start it"]),
        ("http://127.0.0.1:9", ["model.chat_template=chat.jinja"], ["chat.jinja", "with its own", "--chat-template"]),
        ("embedded", ["engine.max_new_tokens=5000"], ["engine.max_new_tokens is 5000", "1024", "lower it"]),
        ("./nowhere", [], ["./nowhere"]),
    ],
)
def test_what_cannot_be_opened_is_said(model: str, settings: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as refused:
        ChatModel.open(load_inference(settings, model={"path": model}))
    assert all(word in str(refused.value) for word in words), refused.value
