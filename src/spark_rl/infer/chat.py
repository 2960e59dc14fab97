"""A model as test time sees it: chat messages in, replies out, whichever engine is behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from spark_rl.config import Inference
from spark_rl.models.folder import check_folder, context_length, source
from spark_rl.models.prompts import prompts_for
from spark_rl.prompts import ChatRenderer, Prompts, check_room
from spark_rl.rollout.engine import Completion, Engine, Request
from spark_rl.types import Image, Message


class ChatModel:
    """An engine and what turns messages into its prompts.

    Args:
        name: as reports call it.
        renderer: renders messages to token ids; None if the engine is a server that does so.
        prompts: what it is shown, and how its replies are read.
        context: tokens that a prompt and its reply may have together; None if only the server knows.
        max_new_tokens: length limit of a reply, tokens.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        renderer: ChatRenderer | None = None,
        prompts: Prompts = Prompts(),
        context: int | None = None,
        max_new_tokens: int = 768,
        stop: Sequence[str] = (),
    ) -> None:
        self.engine, self.name, self.renderer, self.context = engine, name, renderer, context
        self.prompts, self.max_new_tokens, self.stop = prompts, max_new_tokens, tuple(stop)
        self.told: Callable[[float, int], None] | None = None
        """Told (replies that have come, all) of the call under way, where `generate` is given nothing to tell."""

    @classmethod
    def open(cls, settings: Inference, prompts: Prompts | None = None) -> ChatModel:
        """The model that the settings name: a local folder, a Hub id, `embedded`, or the address of a server.

        Args:
            prompts: instead of those that belong to it (`prompts_for`).

        Raises:
            ValueError: it cannot be loaded, or there is no server at the address.
        """
        engine, kind, path = settings.engine, settings.engine_kind, settings.model.name
        prompts = prompts or prompts_for(settings)
        if kind == "endpoint":
            from spark_rl.rollout.endpoint_engine import EndpointEngine

            remote = EndpointEngine(path, engine, settings.model.max_pixels, settings.model.chat_template_kwargs)
            return cls(remote, path, prompts=prompts, max_new_tokens=engine.max_new_tokens, stop=engine.stop)
        folder = check_folder(settings.model)
        context = context_length(folder) if folder else None
        if context is not None and engine.max_new_tokens >= context:
            raise ValueError(
                f"engine.max_new_tokens is {engine.max_new_tokens}, but the model {path} has a context of {context} "
                "tokens; lower it"
            )
        if kind == "vllm":
            from spark_rl.rollout.vllm_engine import VLLMEngine, check_installed

            check_installed()
        from spark_rl.models.load import load_for_inference, load_tokenizer
        from spark_rl.models.processor import load_image_processor

        tokenizer = load_tokenizer(settings.model)
        images = load_image_processor(settings.model, tokenizer)
        renderer = ChatRenderer(tokenizer, settings.model.chat_template_kwargs, images, prompts)
        if kind == "vllm":
            folder_or_id, options = source(settings.model)
            vllm = VLLMEngine(folder_or_id, settings.model.dtype, renderer=renderer, images=images, **options)
            local: Engine = vllm
            context = vllm.context
        else:
            from spark_rl.rollout.transformers_engine import TransformersEngine

            model = load_for_inference(settings.model)
            local = TransformersEngine(model, tokenizer, images=images, max_batch_tokens=engine.max_batch_tokens)
            context = context or getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None:
            reason = f"the model {path} has a context of {context}"
            check_room(prompts, prompts.examples, context, renderer.example_tokens, reason)
        return cls(
            local,
            path,
            renderer=renderer,
            prompts=prompts,
            context=context,
            max_new_tokens=engine.max_new_tokens,
            stop=engine.stop,
        )

    @property
    def takes_images(self) -> bool:
        """Whether prompts may have images; True where only the server knows."""
        return self.renderer is None or self.renderer.images is not None

    def generate(
        self, requests: Sequence[Request], progress: Callable[[float, int], None] | None = None
    ) -> list[list[Completion]]:
        """The engine's replies to requests that hold messages, each cut at what its prompt leaves of the context.

        A prompt that leaves nothing gets empty replies with the finish reason `no_room`.
        """
        rendered = list(map(self._render, requests))
        fitting = [i for i, request in enumerate(rendered) if request is not None]
        answered = (
            self.engine.generate([r for r in rendered if r is not None], progress or self.told) if fitting else []
        )
        replies = [[Completion([], [], "", "no_room") for _ in range(request.n)] for request in requests]
        opening = self.renderer.opening if self.renderer else ""
        for i, completions in zip(fitting, answered, strict=True):
            request = rendered[i]
            assert request is not None
            for completion in completions:
                completion.text = opening + completion.text
                completion.num_prompt_tokens = completion.num_prompt_tokens or len(request.prompt_ids)
            replies[i] = completions
        return replies

    def check(self, messages: Sequence[Message], images: Sequence[Image] = ()) -> None:
        """See that a prompt can be made of messages; of what a server renders, nothing is known.

        Raises:
            ValueError: it cannot.
        """
        if self.renderer is not None:
            self.renderer.check(messages, images)

    def tokens(self, reply: Completion) -> list[str]:
        """The text of each token of a reply; empty where the engine tells neither ids nor texts."""
        if reply.tokens or self.renderer is None:
            return reply.tokens
        tokenizer: Any = self.renderer.tokenizer
        return [tokenizer.decode([i]) for i in reply.token_ids]

    def logp_of_verdict(self, reply: Completion, content: str, word: str) -> float | None:
        r"""Log-probability of `word` where a reply states the verdict `content` last, its tokens together, nats.

        What it is wrapped in (`\text{Yes}`) or followed by (`A. The first`) does not count, nor do upper and lower
        case; if it is not to be found, all of the content counts. None where the engine tells no log-probabilities, or
        the statement is not to be found.
        """
        tokens = self.tokens(reply)
        if not tokens or len(tokens) != len(reply.logps):
            return None
        text, at = "".join(tokens), 0
        said = reply.text.removeprefix(self.renderer.opening if self.renderer else "")
        text = said if text.startswith(said) else text  # without the token that ends the turn
        stated = self.prompts.verdict_format
        place = stated.place(text)
        if place is None or stated.decode(text[slice(*place)]).strip() != content:
            return None
        start, end = place
        if stands := re.search(rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])", text[start:end], re.IGNORECASE):
            start, end = start + stands.start(), start + stands.end()
        total = 0.0
        for token, logp in zip(tokens, reply.logps, strict=True):
            if at < end and at + len(token) > start:
                total += logp
            at += len(token)
        return total

    def _render(self, request: Request) -> Request | None:
        """The request with its prompt's ids and a limit that fits; None if nothing fits."""
        if self.renderer is None:
            return request
        ids = tuple(self.renderer.encode(request.messages, request.images))
        room = request.max_new_tokens if self.context is None else self.context - len(ids)
        if room < 1:
            return None
        return replace(request, prompt_ids=ids, max_new_tokens=min(request.max_new_tokens, room))
