"""A question and its response, found again in what other trainers pass on: text with chat tags, or messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spark_rl.data.row_images import completed, from_parts
from spark_rl.types import without_images

_USER_TURNS = (
    ("<|im_start|>user\n", "<|im_end|>"),
    ("<|start_header_id|>user<|end_header_id|>", "<|eot_id|>"),
    ("<start_of_turn>user\n", "<end_of_turn>"),
    ("<|user|>\n", "<|end|>"),
    ("[INST]", "[/INST]"),
)
"""ChatML (Qwen), Llama 3, Gemma, Phi, Mistral."""
_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


def question_of(prompt: str) -> str:
    """The one user turn of a prompt; the whole prompt where it has no chat tags that we know, or several turns.

    >>> question_of("<|im_start|>user\\nWhat is 2+2?<|im_end|>\\n<|im_start|>assistant\\n")
    'What is 2+2?'
    """
    turns = [
        turn.partition(closing)[0].strip()
        for opening, closing in _USER_TURNS
        for turn in prompt.split(opening)[1:]
        if closing in turn
    ]
    return turns[0] if len(turns) == 1 else prompt


def response_of(query: str, prompt: str) -> str:
    """What follows the prompt in a query, without its end-of-turn token, and with the reasoning tag that the prompt
    opened: the extractor must see it.

    Raises:
        ValueError: the query does not begin with the prompt.
    """
    if not query.startswith(prompt):
        raise ValueError("does not begin with its prompt; send the prompt as text, as it stands in the query, uncut")
    response = query[len(prompt) :].rstrip()
    end = next((tag for tag in _ENDS if response.endswith(tag)), "")
    opening = "<think>" if prompt.rstrip().endswith("<think>") else ""
    return opening + response.removesuffix(end).rstrip()


def asked(prompt: str | Sequence[Mapping[str, Any]], column: Sequence[Any] = ()) -> tuple[str, list[Any]]:
    """The question of a prompt, text or messages, with `IMAGE` where images stand, and what is given as each image;
    several user turns come with their roles.

    Args:
        column: the images that the prompt's row has beside it. They belong to the image parts that have none of their
            own; they come before a question without image parts.

    Raises:
        ValueError: the images are not as many as the places for them; the reason alone.
    """
    if isinstance(prompt, str):
        return without_images(question_of(prompt)), list(column)
    users = [message for message in prompt if message["role"] == "user"]
    read = [from_parts(message.get("content") or "") for message in (users if len(users) == 1 else prompt)]
    values = [value for _, own in read for value in own]
    if not values:
        values = list(column)
    elif any(value is None for value in values):
        values = completed(values, column)
    if len(users) == 1:
        return read[0][0], values
    return "\n\n".join(f"{m['role']}: {text}" for m, (text, _) in zip(prompt, read, strict=True)), values


def answered(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The response of a completion, text or messages: the last of the assistant's, after any calls of tools."""
    if isinstance(completion, str):
        return completion
    spoken = [from_parts(m.get("content") or "")[0] for m in completion if m["role"] == "assistant"]
    return spoken[-1] if spoken else ""
