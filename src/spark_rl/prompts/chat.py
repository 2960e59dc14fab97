"""Messages to token ids, by the tokenizer's own chat template, with quoted special tokens kept as plain text
and images in their places."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from jinja2 import TemplateError

from spark_rl.prompts.prompts import Prompts
from spark_rl.types import IMAGE, Image, Message, Role, Task, in_parts
from spark_rl.verify import visible

_MARK = "\u27e6content-"
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What a template raises by itself, or runs into with contents that it did not expect."""

logger = logging.getLogger(__name__)


class CannotRender(ValueError):
    """The chat template makes no prompt of these messages.

    Args:
        reason: what it does.
        remedy: what to do about it.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}; {remedy}" if remedy else reason)
        self.reason = reason


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
        prompts: whose worked examples stand before the prompts of tasks.

    Raises:
        ValueError: the tokenizer has no chat template, or one that cannot be rendered, or that leaves out worked
            examples.
    """

    def __init__(
        self,
        tokenizer: Any,
        template_kwargs: Mapping[str, Any] | None = None,
        images: ImageText | None = None,
        prompts: Prompts = Prompts(),
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template; set model.chat_template to a Jinja file "
                "(a base model needs one to be asked questions)"
            )
        self.tokenizer, self.images, self.prompts = tokenizer, images, prompts
        self.template_kwargs = dict(template_kwargs or {})
        after_question = self.text([{"role": "user", "content": _MARK}]).partition(_MARK)[2]
        opens_reasoning = after_question.rfind("<think>") > after_question.rfind("</think>")
        self.opening = "<think>" if opens_reasoning else ""
        """What the template has written of the assistant's turn, as far as the extractor must know of it."""
        self._specials = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        if images is not None:
            self._specials.append(images.placeholder)
        self._check_examples()
        if header := self.missing_header():
            _say_missing(header)

    def _check_examples(self) -> None:
        """Templates may drop earlier turns, and then a model would see no example, or questions without replies."""
        for role, turns in self.prompts.examples.items():
            remedy = f"change model.chat_template, or give none: prompts.examples={{{role}: none}}"
            try:
                rest = self.text([*turns, {"role": "user", "content": "q"}])
            except CannotRender as error:
                raise ValueError(f"prompts.examples.{role}: {error.reason}; {remedy}") from None
            for number, turn in enumerate(turns, start=1):
                _, found, rest = rest.partition(visible(turn["content"]))
                if not found:
                    raise ValueError(
                        f"prompts.examples.{role}: the tokenizer's chat template leaves out, changes or moves turn "
                        f"{number} of {len(turns)} ({turn['role']}), so the model would not see it; {remedy}"
                    )

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, special tokens included and a placeholder for each image.

        Raises:
            CannotRender: the template refuses the messages, or cannot cope with them.
        """
        return self._rendered(messages, add_generation_prompt=True)

    def check(self, messages: Sequence[Message], images: Sequence[Image] = ()) -> None:
        """See that `encode` can make a prompt of these messages, without its tokens and without opening an image.

        Raises:
            ValueError: it cannot.
        """
        written, _ = self._written(messages, images)
        self._expanded(written, images, expand=False)

    def encode_task(self, task: Task) -> list[int]:
        """The token ids of a task's prompt, with the worked examples of its role; raises as `encode`."""
        return self.encode(self.prompts.conversation(task.role, task.messages), task.example.images)

    def example_tokens(self, role: Role) -> int:
        """What the worked examples of a role add to a prompt, tokens."""
        bare: tuple[Message, ...] = ({"role": "user", "content": "?"},)
        return len(self.encode(self.prompts.conversation(role, bare))) - len(self.encode(bare))

    def check_task(self, task: Task) -> None:
        """See that `encode_task` can make a prompt of a task; raises as `check`."""
        self.check(self.prompts.conversation(task.role, task.messages), task.example.images)

    def missing_header(self) -> str:
        """What the template writes before a reply in a conversation, and not at the end of a prompt, because it has no
        part for that; empty where nothing is missing, as in templates whose replies follow the question at once."""
        question = {"role": "user", "content": "q"}
        prompt = self.text([question])
        try:
            if prompt != self._rendered([question], add_generation_prompt=False):
                return ""
            conversation = self._rendered([question, {"role": "assistant", "content": _MARK}])
        except CannotRender:
            return ""
        before_reply, found, _ = conversation.partition(_MARK)
        return before_reply.removeprefix(prompt).strip() if found and before_reply.startswith(prompt) else ""

    def encode_reply(self, text: str, ends: Collection[int]) -> list[int]:
        """The token ids of a reply that is given, as the model would write it: up to the end of its turn, which no text
        of a special token in the reply is.

        Args:
            ends: tokens that end a turn; the first one is taken where the chat template writes none after a reply.

        Raises:
            ValueError: there are none.
        """
        if not ends:
            raise ValueError(
                "a reply that is given must end as the model would end it, and neither generation_config.json nor the "
                "tokenizer names an end token (eos_token); set one there"
            )
        after = self._ids(self._after_reply())
        length = next((i for i, token in enumerate(after) if token in ends), len(after))
        reply = self._ids(text.removeprefix(self.opening), split_special_tokens=True)
        return [*reply, *after[:length], after[length] if length < len(after) else next(iter(ends))]

    def _after_reply(self) -> str:
        """What the template writes after a reply in a conversation; nothing where it has no conversations."""
        try:
            conversation = self._rendered(
                [{"role": "user", "content": "q"}, {"role": "assistant", "content": _MARK}], add_generation_prompt=False
            )
        except CannotRender:
            return ""
        return conversation.partition(_MARK)[2]

    def encode(self, messages: Sequence[Message], images: Sequence[Image] = (), expand: bool = True) -> list[int]:
        """The prompt's token ids, with the tokens of its images.

        Args:
            expand: whether an image has as many tokens as features; otherwise it is what the chat template writes.

        Raises:
            CannotRender: the template makes no prompt of the messages, or leaves some images out.
            ValueError: the model takes no images, or one cannot be loaded.
        """
        written, quoted = self._written(messages, images)
        written = self._expanded(written, images, expand)
        ids = self._ids(written[0])
        for piece, after in zip(quoted, written[1:], strict=True):
            ids += self._ids(piece, split_special_tokens=True) + self._ids(after)
        return ids

    def _written(self, messages: Sequence[Message], images: Sequence[Image]) -> tuple[list[str], list[str]]:
        """What the template writes, and the texts that it quotes between: none where the prompt can stay in one, since
        no text holds that of a special token."""
        pieces = [piece for m in messages for piece in m["content"].split(IMAGE)]
        assert len(pieces) - len(messages) == len(images), "every image has its place in a text"
        if images and self.images is None:
            raise ValueError("the model takes no images, but a question has some; name a vision-language model")
        if not any(special in piece for piece in pieces for special in self._specials):
            return [self.text(messages)], []
        marks = [f"{_MARK}{i}\u27e7" for i in range(len(pieces))]
        unused = iter(marks)
        rest = self.text([{**m, "content": _marked(m["content"], unused)} for m in messages])
        written = []
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                raise CannotRender(
                    "the tokenizer's chat template leaves out, changes or moves one of the turns "
                    f"{_turns(messages)}, which hold the text of a special token; remove that text, or the turn"
                )
            written.append(before)
        return [*written, rest], pieces

    def _rendered(self, messages: Sequence[Message], **options: Any) -> str:
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                [{**m, "content": self._content(m["content"])} for m in messages],
                tokenize=False,
                **options,
                **self.template_kwargs,
            )
        except _TEMPLATE_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CannotRender(
                f"the tokenizer's chat template cannot be rendered for the turns {_turns(messages)} ({reason})",
                "change model.chat_template, or the turns (data.system adds one)",
            ) from None
        if not rendered:
            raise CannotRender(f"the tokenizer's chat template writes nothing for the turns {_turns(messages)}")
        return rendered

    def _content(self, content: str) -> str | list[dict[str, str]]:
        """A message's content as the template of a vision-language model takes it: in parts."""
        return content if self.images is None else in_parts(content)

    def _expanded(self, written: list[str], images: Sequence[Image], expand: bool) -> list[str]:
        """What the template has written, each placeholder in it expanded to the tokens of its image, if it is to be."""
        if self.images is None or not images:
            return written
        if (found := sum(text.count(self.images.placeholder) for text in written)) != len(images):
            raise CannotRender(
                f"the chat template writes {found} of a prompt's {len(images)} images; change model.chat_template"
            )
        if not expand:
            return written
        expansions = iter([self.images.expand(image) for image in images])
        return [_replaced(text, self.images.placeholder, expansions) for text in written]

    def _ids(self, text: str, **kwargs: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **kwargs)["input_ids"])


@cache
def _say_missing(header: str) -> None:
    """Once in a process, however many renderers have such a template."""
    logger.warning(
        "the chat template ends a prompt without the assistant's header %r, which stands before replies in its "
        "conversations: it ignores add_generation_prompt. If the model was trained with that header, let the template "
        "end with {%% if add_generation_prompt %%} and the header (model.chat_template)",
        header,
    )


def _turns(messages: Sequence[Message]) -> str:
    return ", ".join(m["role"] for m in messages)


def _marked(content: str, marks: Iterator[str]) -> str:
    return IMAGE.join(next(marks) for _ in content.split(IMAGE))


def _replaced(text: str, placeholder: str, expansions: Iterator[str]) -> str:
    first, *others = text.split(placeholder)
    return first + "".join(next(expansions) + other for other in others)
