"""Messages to token ids, by the tokenizer's own chat template, with quoted special tokens kept as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from spark_rl.types import Message

_MARK = "\u27e6content-"


class ChatRenderer:
    """Renders chat messages to prompt ids that end where the assistant's turn begins.

    A response of the model, or a question, may contain the text of a special token ("<|im_end|>"). Tokenised with the
    rest of the prompt it would end the user's turn. Such contents are tokenised apart, with special tokens off.

    Raises:
        ValueError: the tokenizer has no chat template, or one that cannot be rendered.
    """

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template; set model.chat_template to a Jinja file "
                "(a base model needs one to be asked questions)"
            )
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        after_question = self.text([{"role": "user", "content": _MARK}]).partition(_MARK)[2]
        opens_reasoning = after_question.rfind("<think>") > after_question.rfind("</think>")
        self.opening = "<think>" if opens_reasoning else ""
        """What the template has written of the assistant's turn, as far as the extractor must know of it."""
        self._specials = [str(token) for token in tokenizer.added_tokens_decoder.values()]

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, special tokens included."""
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True, **self.template_kwargs
            )
        except TemplateError as error:
            turns = ", ".join(m["role"] for m in messages)
            raise ValueError(
                f"the tokenizer's chat template cannot be rendered for the turns {turns} ({error}); change "
                "model.chat_template, or the turns (data.system adds one)"
            ) from None
        return rendered

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids."""
        contents = [m["content"] for m in messages]
        if not any(special in content for content in contents for special in self._specials):
            return self._ids(self.text(messages))
        marks = [f"{_MARK}{i}\u27e7" for i in range(len(messages))]
        rest = self.text([{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)])
        ids: list[int] = []
        for mark, content in zip(marks, contents, strict=True):
            before, found, rest = rest.partition(mark)
            assert found, "the chat template changed the order or the text of the messages"
            ids += self._ids(before) + self._ids(content, split_special_tokens=True)
        return ids + self._ids(rest)

    def _ids(self, text: str, **kwargs: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **kwargs)["input_ids"])
