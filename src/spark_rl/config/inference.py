"""Every knob of test time: the engine, the judge, the strategies. Read and refused like a run's (`schema.py`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from spark_rl.config.base import Count, Positive, Section, listed
from spark_rl.config.prompts import PromptsConfig
from spark_rl.config.schema import ModelConfig, VerifyConfig


class EngineConfig(Section):
    """What generates, and how much of it at once."""

    kind: Literal["auto", "transformers", "vllm", "endpoint"] = "auto"
    """`auto` is `endpoint` for a model given as `http://...`, else `transformers`. `vllm` runs in this process."""
    max_new_tokens: Positive = 768
    """Length limit of one reply, tokens (paper: 768)."""
    stop: Annotated[list[str], BeforeValidator(listed)] = Field(default_factory=list)
    """Strings that end a reply beside the model's end-of-turn token."""
    max_batch_tokens: Positive | None = None
    """transformers: tokens held in the cache at once; null chooses by device."""
    served_model: str | None = None
    """endpoint: the model's name on the server; null takes the one that the server lists."""
    concurrency: Positive = 32
    """endpoint: requests under way at once."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """endpoint: seconds without an answer after which a request is sent again."""
    retries: Count = 5
    """endpoint: how often a request is sent again after a time-out, a lost connection or a busy server, after growing
    pauses."""
    api_key_env: str = "OPENAI_API_KEY"
    """endpoint: the environment variable that holds the key, if the server wants one."""


class JudgeConfig(Section):
    """How responses are judged. Templates, extractor and views are those of training."""

    samples: Positive = 1
    """Judgements of each prompt: 1 is greedy; more are sampled, and their probabilities averaged."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampled judgements."""
    view: Literal["answer", "reasoning"] = "answer"
    """What the judge sees of a response: its final answer alone, where it has one, or all of it. Words beside an answer
    cannot win over who does not read them; where the verdict is to be on the reasoning too, show it."""
    max_response_chars: Positive = 8000
    """A shown response is cut in its middle to this many characters, visibly."""
    pointwise_template: str | None = None
    """The name of the template of a pointwise prompt; null is the first one, shipped `pointwise-1` to `-3`."""
    pairwise_template: str | None = None
    """The name of the template of a pairwise prompt; null is the first one, shipped `pairwise-1` and `-2`."""


class SolveConfig(Section):
    """How questions are solved; see `infer/strategies.py` for what each strategy does."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampled answers; `greedy` and all of `reflect` are greedy."""
    max_tokens: Positive | None = None
    """Budget of a question: tokens read (each prompt once) and written, of all roles. Answers are sampled as far as it
    lasts, and what is under way when it ends is cut."""
    rounds: Positive = 1
    """`reflect`: how often an answer may be revised."""
    revise: Literal["wrong", "always"] = "wrong"
    """`reflect`: revise what the judge calls wrong (PAG), or everything, unjudged."""
    accept: Literal["always", "preferred"] = "preferred"
    """`reflect`: a revision replaces the answer always (paper), or if the judge prefers it, both orders averaged."""
    reflection_template: str | None = None
    """`reflect`: the name of its template; null is the first one, shipped `reflection-1` and `-2`."""
    prior: Annotated[float, Field(ge=0)] = 1.0
    """`tournament`: how many comparisons an answer's share of the votes counts for."""
    comparisons: Positive | None = None
    """`tournament`: comparisons at most, each in both orders; null is twice the number of distinct answers."""


class ServeConfig(Section):
    """How much a judge that is served over HTTP takes on, and for how long."""

    max_batch: Positive = 64
    """Items judged together at most."""
    batch_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    """How long an item that finds the judge idle waits for others to be judged with, milliseconds."""
    max_queue: Positive = 1024
    """Items that may wait; a request that does not fit is answered 503, to be sent again."""
    max_items: Positive = 256
    """Items of one request."""
    max_chars: Positive = 100_000
    """Characters of one text: a question without its images, a response, a prompt with its response."""
    max_body_bytes: Positive = 8 * 2**20
    """Bytes of one request's body, its images included, refused before it is parsed."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Seconds within which a body must be there; then its request is answered 408."""
    stop_seconds: Positive = 30
    """Seconds that a server which is to stop gives the batch under way; then its requests are answered 503."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Seconds after which a request is answered 504; its items that still wait are not judged."""
    unparsed_reward: float = 0.0
    """What `/get_reward` gives for a judgement without a verdict, since its protocol has no null. By 0 a response
    gains nothing from confusing the judge."""

    @model_validator(mode="after")
    def _largest_request_fits(self) -> Self:
        if self.max_items > self.max_queue:
            raise ValueError(
                f"serve.max_items is {self.max_items}, but only {self.max_queue} items may wait; raise serve.max_queue "
                "or lower serve.max_items"
            )
        return self


class ReadConfig(Section):
    """How responses are read."""

    answer_format: str | None = None
    """As in a run."""


class Inference(Section):
    """All of test time."""

    model: ModelConfig = ModelConfig()
    data: ReadConfig = ReadConfig()
    prompts: PromptsConfig = PromptsConfig()
    engine: EngineConfig = EngineConfig()
    judge: JudgeConfig = JudgeConfig()
    solve: SolveConfig = SolveConfig()
    serve: ServeConfig = ServeConfig()
    verify: VerifyConfig = VerifyConfig()
    seed: int = 0
    """Seed of all sampling."""

    @property
    def is_remote(self) -> bool:
        """The model is the address of a server."""
        return self.model.is_remote

    @property
    def engine_kind(self) -> Literal["transformers", "vllm", "endpoint"]:
        """`engine.kind`, `auto` decided."""
        if self.engine.kind == "auto":
            return "endpoint" if self.is_remote else "transformers"
        return self.engine.kind

    @model_validator(mode="after")
    def _no_data_to_take_examples_from(self) -> Self:
        if self.prompts.num_taken:
            raise ValueError(
                "prompts.examples takes rows of data.train, which only a run has; name a file, or ready (a run's "
                "final/ has the examples it was trained with)"
            )
        return self

    @model_validator(mode="after")
    def _endpoint_has_an_address(self) -> Self:
        if self.is_remote != (self.engine_kind == "endpoint"):
            raise ValueError(
                f"engine.kind is {self.engine.kind}, but the model is {self.model.path}; give an address to endpoint, "
                "and only to it"
            )
        return self

    @model_validator(mode="after")
    def _server_has_its_template(self) -> Self:
        if self.is_remote and self.model.chat_template is not None:
            raise ValueError(
                f"model.chat_template is {self.model.chat_template}, but {self.model.path} renders prompts with its "
                "own; start that server with the template (vLLM, SGLang: --chat-template), and leave it out here"
            )
        return self

    @model_validator(mode="after")
    def _server_has_its_revision(self) -> Self:
        if self.is_remote and self.model.revision is not None:
            raise ValueError(
                f"model.revision is {self.model.revision!r}, but {self.model.path} has loaded its model already; start "
                "that server with the revision, and leave it out here"
            )
        return self
