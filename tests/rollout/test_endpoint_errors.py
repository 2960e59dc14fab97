"""What servers say when they refuse, in their own words, over real sockets.

The sentences are those of vLLM (`vllm/renderers/params.py` and its elder versions), SGLang
(`managers/tokenizer_manager.py`), and what users report of the others.
"""

from __future__ import annotations

import httpx
import openai
import pytest

from spark_rl.config import EngineConfig
from spark_rl.rollout import endpoint_engine
from spark_rl.rollout.endpoint_engine import EndpointEngine
from spark_rl.rollout.endpoint_errors import OPTIONS, Failure
from spark_rl.rollout.engine import Request
from tests.rollout.openai_server import completion, refusal, reply, serving

CONTEXT = 1000


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint_engine, "FIRST_PAUSE", 0.01)


def ask(content="x", n=1, **changes):
    messages = ({"role": "user", "content": content},)
    return Request(id=content, prompt_ids=(), messages=messages, n=n, max_new_tokens=50, **changes)


def said(content="x"):
    return reply({"messages": [{"content": content}]})


def refusing(reason, status=400):
    """A server that refuses by the sentence that `reason` finds in a request, and answers if it finds none."""

    def answer(body):
        found = reason(body)
        if not found:
            return 200, completion(body), {}
        return status, found if isinstance(found, dict) else refusal(found), {}

    return serving(answer=answer)


def asked_for(reason, **changes):
    """The limits that were asked for, one after the other, and the reply."""
    with refusing(reason) as (address, state):
        ((completion,),) = EndpointEngine(address, EngineConfig()).generate([ask(**changes)])
    return [body.get("max_tokens") for body in state.bodies], completion


# ------------------------------------------------------------------------------------------------ the context

COUNTED = {
    "vLLM, OpenAI": "This model's maximum context length is {context} tokens. However, you requested {total} tokens "
    "({prompt} in the messages, {new} in the completion). Please reduce the length of the messages or completion.",
    "vLLM 0.8": "'max_tokens' or 'max_completion_tokens' is too large: {new}. This model's maximum context length is "
    "{context} tokens and your request has {prompt} input tokens ({new} > {context} - {prompt}).",
    "vLLM 0.12": "This model's maximum context length is {context} tokens. However, you requested {new} output tokens "
    "and your prompt contains {prompt} input tokens, for a total of {total} tokens.",
    "OpenAI, completions": "This model's maximum context length is {context} tokens, however you requested {total} "
    "tokens ({prompt} in your prompt; {new} for the completion). Please reduce your prompt; or completion length.",
    "OpenRouter": "This endpoint's maximum context length is {context} tokens. However, you requested about {total} "
    "tokens ({prompt} of text input, {new} in the output).",
    "Anthropic": "input length and `max_tokens` exceed context limit: {prompt} + {new} > {context}, decrease input "
    "length or `max_tokens` and try again",
}
SGLANG = (
    "Requested token count exceeds the model's maximum context length of {context} tokens. You requested a total of "
    "{total} tokens: {prompt} tokens from the input messages and {new} tokens for the completion. Please reduce the "
    "number of tokens in the input messages or the completion to fit within the limit."
)


def counting(sentence, prompt, spare=0):
    """Refuses what goes beyond the context, `spare` tokens of which it keeps, and says how long everything is."""

    def reason(body):
        new = body["max_tokens"]
        if prompt + new + spare > CONTEXT:
            return sentence.format(context=CONTEXT, prompt=prompt, new=new, total=prompt + new)

    return reason


@pytest.mark.parametrize("server", COUNTED)
def test_a_reply_is_cut_to_what_the_prompt_leaves_of_the_context(server):
    limits, reply = asked_for(counting(COUNTED[server], prompt=990))
    assert (limits, reply.text) == ([50, 10], said())
    for filled in (1000, 2000):
        limits, reply = asked_for(counting(COUNTED[server], prompt=filled))
        assert (limits, reply.text, reply.finish_reason) == ([50], "", "no_room")


def test_sglang_keeps_one_token_of_the_context():
    limits, reply = asked_for(counting(SGLANG, prompt=990, spare=1))
    assert (limits, reply.text) == ([50, 10, 9], said())
    limits, reply = asked_for(counting(SGLANG, prompt=999, spare=1))
    assert (limits, reply.finish_reason) == ([50, 1], "no_room")


def test_a_server_that_refuses_what_it_says_there_is_room_for_is_not_asked_for_ever():
    with refusing(counting(SGLANG, prompt=990, spare=8)) as (address, state):
        engine = EndpointEngine(address, EngineConfig())
        with pytest.raises(ValueError, match=r"refuses a request .*exceeds the model's maximum context length of 1000"):
            engine.generate([ask()])
    assert [body["max_tokens"] for body in state.bodies] == [50, 10, 9]


def at_least(tokens, limit, new):
    return (
        f"This model's maximum context length is {CONTEXT} tokens. However, you requested {new} output tokens and your "
        f"prompt contains at least {limit + 1} input tokens, for a total of at least {CONTEXT + 1} tokens."
    )


def characters(tokens, limit, new):
    return (
        f"This model's maximum context length is {CONTEXT} tokens. However, you requested {new} output tokens and your "
        f"prompt contains {9 * tokens} characters (more than {8 * limit} characters, which is the upper bound for "
        f"{limit} input tokens). Please reduce the length of the input prompt or the number of requested output tokens."
    )


def passed(tokens, limit, new):
    return (
        f"You passed {limit + 1} input tokens and requested {new} output tokens. However, the model's context length "
        f"is only {CONTEXT} tokens, resulting in a maximum input length of {limit} tokens."
    )


def passed_characters(tokens, limit, new):
    return (
        f"You passed {9 * tokens} input characters and requested {new} output tokens. However, the model's context "
        f"length is only {CONTEXT} tokens, resulting in a maximum input length of {limit} tokens (at most {8 * limit} "
        "characters)."
    )


@pytest.mark.parametrize("sentence", [at_least, characters, passed, passed_characters])
def test_vllm_gives_what_is_left_where_it_does_not_count_the_prompt(sentence):
    """It looks no further than to the first token that is too many: by its numbers one would come down one by one."""

    def refused(prompt):
        def reason(body):
            limit = CONTEXT - body.get("max_tokens", 0)
            if prompt > limit:
                return sentence(prompt, limit, body.get("max_tokens", 0))
            if prompt == CONTEXT:
                return f"max_tokens must be at least 1, got {CONTEXT - prompt}."

        return reason

    limits, reply = asked_for(refused(990))
    assert (limits, reply.text) == ([50, None], said())
    for filled in (1000, 5000):
        limits, reply = asked_for(refused(filled))
        assert (limits, reply.finish_reason) == ([50, None], "no_room")


def test_a_limit_beyond_the_whole_context_is_no_prompt_that_fills_it():
    def reason(body):
        if body.get("max_tokens", 0) > 40:
            return "max_tokens=50cannot be greater than max_model_len=max_total_tokens=40. Please request fewer."

    limits, reply = asked_for(reason)
    assert (limits, reply.text) == ([50, None], said())


@pytest.mark.parametrize(
    "sentence",
    [
        "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
        "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens).",
        "The decoder prompt (length 8357) is longer than the maximum model length of 8192. Make sure that "
        "`max_model_len` is no smaller than the number of text tokens.",
        "max_tokens must be at least 1, got -186.",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 8227 tokens.",
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 509178 tokens.",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "the request exceeds the available context size. try increasing the context size or enable context shift",
        "request (14429 tokens) exceeds the available context size (8192 tokens), try increasing it",
        "prompt is too long: 215000 tokens > 200000 maximum",
        "Input is too long for requested model.",
        "prompt token count of 200000 exceeds the limit of 128000",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens",
        "Prompt contains 235396 tokens and 0 draft tokens, too large for model with 131072 maximum context length",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    ],
)
def test_a_prompt_that_is_said_to_be_too_long_gets_empty_replies(sentence):
    with refusing(lambda body: sentence) as (address, state):
        (replies,) = EndpointEngine(address, EngineConfig()).generate([ask(n=2)])
    assert [(c.text, c.finish_reason) for c in replies] == [("", "no_room")] * 2
    assert state.num_asked == 1


# ------------------------------------------------------------------------------------------------ the longest reply


@pytest.mark.parametrize(
    "sentence",
    [
        "`max_tokens` must be less than or equal to `20`, the maximum value for `max_tokens` is less than the "
        "`context_window` for this model",
        "max_completion_tokens must be less than or equal to 20",
        "max_tokens for `llama-3.1-8b-instant` must be less than or equal to 20",
        "max_tokens exceeds the maximum number of output tokens (20)",
        "max_tokens is too large: 50. This model supports at most 20 completion tokens, whereas you provided 50.",
        "Invalid 'max_tokens': integer above maximum value. Expected a value <= 20, but got 50 instead.",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 20]",
        "max_tokens: 50 > 20, which is the maximum allowed number of output tokens for this model",
    ],
)
def test_the_longest_reply_that_a_server_gives_is_asked_for(sentence):
    limits, reply = asked_for(lambda body: body["max_tokens"] > 20 and refusal(sentence, "max_tokens"))
    assert (limits, reply.text) == ([50, 20], said())


@pytest.mark.parametrize(
    "sentence",
    [
        "max_tokens exceeds the maximum number of output tokens for this context length",
        "Please reduce the length of the messages or completion.",
        "This model's maximum context length is 1000 tokens. However, you requested 1040 tokens.",
        "The sum of prompt tokens and max_tokens exceeds the maximum context length",
        "max_tokens must be less than or equal to 64",
        "The input exceeds the maximum number of images",
    ],
)
def test_a_limit_that_cannot_be_read_ends_the_call_with_the_servers_sentence(sentence):
    with refusing(lambda body: sentence) as (address, state):
        engine = EndpointEngine(address, EngineConfig())
        with pytest.raises(ValueError) as refused:
            engine.generate([ask()])
    assert f"refuses a request (it says 400: {sentence.rstrip('.')})" in str(refused.value)
    assert state.num_asked == 1


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("option", ["logprobs", "seed", "max_tokens"])
@pytest.mark.parametrize("named", [True, False])
def test_options_that_a_server_does_not_know_are_left_out(option, named):
    def answer(body):
        if option in body:
            return 400, refusal(f"Unsupported parameter: '{option}'", option if named else None), {}
        return 200, completion(body), {}

    with serving(answer=answer) as (address, state):
        engine = EndpointEngine(address, EngineConfig(concurrency=4))
        replies = engine.generate([ask(str(i), seed=1) for i in range(20)])
    assert [of[0].text for of in replies] == [said(str(i)) for i in range(20)]
    assert state.num_asked <= 20 + 4
    if option == "max_tokens":
        assert state.bodies[-1]["max_completion_tokens"] == 50
    if option == "logprobs":
        assert replies[0][0].logps == []
        assert replies[0][0].num_tokens == 3, "from the usage"


EXTRAS = {"top_k", "min_p", "repetition_penalty"}


def forbidden(names):
    """As FastAPI and Mistral refuse a body with fields of which they know nothing."""
    why = {"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}
    return [{**why, "loc": ["body", name], "input": 0} for name in sorted(names)]


@pytest.mark.parametrize(
    "refuse",
    [
        lambda names: refusal(f"Unrecognized request argument supplied: {min(names)}"),
        lambda names: refusal(f"Unrecognized request arguments supplied: {', '.join(sorted(names))}"),
        lambda names: refusal(f"property '{max(names)}' is unsupported, did you mean 'top_p'?"),
        lambda names: refusal(f"{min(names)} is not one of the parameters"),
        lambda names: {"detail": forbidden(names)},
        lambda names: {"object": "error", "message": {"detail": forbidden(names)}, "param": None},
        lambda names: {"error": {"message": "Bad request", "details": forbidden(names)}},
        lambda names: {"error": f"1 validation error for Request\n{min(names)}\n  Extra inputs are not permitted"},
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_what_is_no_part_of_the_protocol_is_left_out_where_it_is_not_known(refuse, status):
    def reason(body):
        if unknown := EXTRAS & body.keys():
            return refuse(unknown)

    with refusing(reason, status) as (address, state):
        engine = EndpointEngine(address, EngineConfig(concurrency=1))
        replies = engine.generate([ask(str(i), temperature=0.0) for i in range(3)])
    assert [of[0].text for of in replies] == [said(str(i)) for i in range(3)]
    assert state.num_asked == 3 + 3, "each is refused once"
    kept = {"max_tokens", "temperature", "top_p", "logprobs"}
    assert all(body.keys() - EXTRAS == {"model", "messages"} | kept for body in state.bodies)


def test_reasoning_models_that_refuse_most_options_are_asked_without_and_it_is_said_once(caplog):
    """As OpenAI does of gpt-5 and the o-series: each option by a sentence of its own."""

    def answer(body):
        if unknown := sorted(EXTRAS & body.keys()):
            return 400, refusal(f"Unrecognized request argument supplied: {unknown[0]}"), {}
        if "max_tokens" in body:
            says = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return 400, refusal(f"Unsupported parameter: {says}", "max_tokens"), {}
        if body.get("temperature", 1) != 1:
            says = "'temperature' does not support 0 with this model. Only the default (1) value is supported."
            return 400, refusal(f"Unsupported value: {says}", "temperature"), {}
        if "top_p" in body:
            says = "Unsupported parameter: 'top_p' is not supported with this model."
            return 400, refusal(says, "top_p"), {}
        if "logprobs" in body:
            return 403, refusal("You are not allowed to request logprobs from this model"), {}
        return 200, completion(body), {}

    with serving(answer=answer) as (address, state):
        engine = EndpointEngine(address, EngineConfig(concurrency=4))
        replies = engine.generate([ask(str(i), temperature=0.0) for i in range(20)])
    assert [of[0].text for of in replies] == [said(str(i)) for i in range(20)]
    assert state.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert state.num_asked <= 20 + 4 * 7
    assert [record.getMessage() for record in caplog.records if "spark_rl" in record.name] == [
        f"{address}/v1 takes no temperature: replies are sampled at its own, also those that were to be greedy"
    ]


def test_of_two_options_that_exclude_each_other_the_temperature_stays(caplog):
    """As Anthropic's models do, behind whichever server."""

    def reason(body):
        if {"temperature", "top_p"} <= body.keys():
            return "`temperature` and `top_p` cannot both be specified for this model. Please use only one."

    with refusing(reason) as (address, state):
        EndpointEngine(address, EngineConfig()).generate([ask(str(i), temperature=0.0) for i in range(8)])
    assert state.bodies[-1]["temperature"] == 0 and "top_p" not in state.bodies[-1]
    assert not caplog.records


def test_the_option_that_a_server_points_at_is_left_out_whatever_its_sentence_names():
    def reason(body):
        if "temperature" in body:
            return refusal("Leave the choice to top_p and logprobs.", "temperature")

    with refusing(reason) as (address, state):
        EndpointEngine(address, EngineConfig()).generate([ask()])
    assert state.bodies[0].keys() - state.bodies[1].keys() == {"temperature"} and state.num_asked == 2


def test_arguments_of_the_chat_template_are_never_left_out():
    says = "property 'chat_template_kwargs' is unsupported, did you mean 'temperature'?"
    with refusing(lambda body: "chat_template_kwargs" in body and says) as (address, state):
        engine = EndpointEngine(address, EngineConfig(), chat_template_kwargs={"enable_thinking": False})
        with pytest.raises(ValueError, match=r"refuses a request .*property 'chat_template_kwargs' is unsupported"):
            engine.generate([ask()])
    assert state.num_asked == 1


def test_what_a_server_repeats_of_a_request_names_no_option():
    """Pydantic's errors hold their `input`: here all that was sent."""
    detail = [{"loc": ["body", "messages"], "msg": "bad role", "input": {name: 1 for name in OPTIONS}}]
    response = httpx.Response(400, request=httpx.Request("POST", "http://x"))
    failure = Failure.of(openai.BadRequestError("refused", response=response, body={"detail": detail}))
    assert failure.unknown_option(OPTIONS) is None and "bad role" in failure.told
    detail[0]["loc"] = ["body", "top_k"]
    failure = Failure.of(openai.BadRequestError("refused", response=response, body={"detail": detail}))
    assert failure.unknown_option(OPTIONS) == "top_k"
