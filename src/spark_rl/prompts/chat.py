"""Messages to token ids, by the tokenizer's own chat template, with quoted special tokens kept as plain text
and images in their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from jinja2 import TemplateError

from spark_rl.types import IMAGE, Image, Message, in_parts

_MARK = "\u27e6content-"


class ImageText(Protocol):
    """How the prompts of a vision-language model write images."""

    placeholder: str
    """What the chat template writes in an image's place."""

    def expand(self, image: Image) -> str:
        """What the placeholder becomes: as many image tokens as the image has features."""
        ...


class ChatRenderer:
    """Renders chat messages to prompt ids that end where the assistant's turn begins.

    A response of the model, or a question, may contain the text of a special token ("<|im_end|>", "<|image_pad|>").
    Tokenised with the rest of the prompt it would end the user's turn, or count as an image. Such contents are
    tokenised apart, with special tokens off.

    Args:
        images: how images are written; None for a language model.

    Raises:
        ValueError: the tokenizer has no chat template, or one that cannot be rendered.
    """

    def __init__(
        self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None, images: ImageText | None = None
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template; set model.chat_template to a Jinja file "
                "(a base model needs one to be asked questions)"
            )
        self.tokenizer, self.images = tokenizer, images
        self.template_kwargs = dict(template_kwargs or {})
        after_question = self.text([{"role": "user", "content": _MARK}]).partition(_MARK)[2]
        opens_reasoning = after_question.rfind("<think>") > after_question.rfind("</think>")
        self.opening = "<think>" if opens_reasoning else ""
        """What the template has written of the assistant's turn, as far as the extractor must know of it."""
        self._specials = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        if images is not None:
            self._specials.append(images.placeholder)

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, special tokens included and a placeholder for each image."""
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                [{**m, "content": self._content(m["content"])} for m in messages],
                tokenize=False,
                add_generation_prompt=True,
                **self.template_kwargs,
            )
        except TemplateError as error:
            turns = ", ".join(m["role"] for m in messages)
            raise ValueError(
                f"the tokenizer's chat template cannot be rendered for the turns {turns} ({error}); change "
                "model.chat_template, or the turns (data.system adds one)"
            ) from None
        return rendered

    def encode(self, messages: Sequence[Message], images: Sequence[Image] = (), expand: bool = True) -> list[int]:
        """The prompt's token ids, with the tokens of its images.

        Args:
            expand: whether an image has as many tokens as features; otherwise it is what the chat template writes.

        Raises:
            ValueError: the model takes no images, the template leaves some out, or one cannot be loaded.
        """
        pieces = [piece for m in messages for piece in m["content"].split(IMAGE)]
        assert len(pieces) - len(messages) == len(images), "every image has its place in a text"
        if images and self.images is None:
            raise ValueError("the model takes no images, but a question has some; name a vision-language model")
        if not any(special in piece for piece in pieces for special in self._specials):
            return self._ids(self._expanded([self.text(messages)], images, expand)[0])
        marks = [f"{_MARK}{i}\u27e7" for i in range(len(pieces))]
        unused = iter(marks)
        rest = self.text([{**m, "content": _marked(m["content"], unused)} for m in messages])
        written = []
        for mark in marks:
            before, found, rest = rest.partition(mark)
            assert found, "the chat template changed the order or the text of the messages"
            written.append(before)
        *written, rest = self._expanded([*written, rest], images, expand)
        ids: list[int] = []
        for before, piece in zip(written, pieces, strict=True):
            ids += self._ids(before) + self._ids(piece, split_special_tokens=True)
        return ids + self._ids(rest)

    def _content(self, content: str) -> str | list[dict[str, str]]:
        """A message's content as the template of a vision-language model takes it: in parts."""
        return content if self.images is None else in_parts(content)

    def _expanded(self, written: list[str], images: Sequence[Image], expand: bool) -> list[str]:
        """What the template has written, each placeholder in it expanded to the tokens of its image, if it is to be."""
        if self.images is None or not images:
            return written
        if (found := sum(text.count(self.images.placeholder) for text in written)) != len(images):
            raise ValueError(
                f"the chat template writes {found} of a prompt's {len(images)} images; change model.chat_template"
            )
        if not expand:
            return written
        expansions = iter([self.images.expand(image) for image in images])
        return [_replaced(text, self.images.placeholder, expansions) for text in written]

    def _ids(self, text: str, **kwargs: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **kwargs)["input_ids"])


def _marked(content: str, marks: Iterator[str]) -> str:
    return IMAGE.join(next(marks) for _ in content.split(IMAGE))


def _replaced(text: str, placeholder: str, expansions: Iterator[str]) -> str:
    first, *others = text.split(placeholder)
    return first + "".join(next(expansions) + other for other in others)
