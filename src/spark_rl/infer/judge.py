"""The model as judge: is this response right, which of two is? (SPARK section 3.2, at test time.)

The prompts, the fencing of what is quoted and the extractor are those of training. A verdict's probability is that of
the tokens in its box; where the engine does not tell it, the share of sampled verdicts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar

from spark_rl.config import JudgeConfig, load_inference
from spark_rl.data.row_images import listed, placed_in_question
from spark_rl.images import reference
from spark_rl.infer.chat import ChatModel
from spark_rl.infer.plan import Ask, Plan, Reply, Spent, run
from spark_rl.prompts import Template, View, shown
from spark_rl.types import IMAGE, Image, Role, without_images
from spark_rl.verify import verdict_side

T = TypeVar("T")
Images = tuple[Image, ...]
Pictures = Any
"""What `reference` makes an `Image` of (a path from the current folder, a data URL, bytes, a PIL image), an `Image`, or
several of these."""
ToScore = tuple[str, str] | tuple[str, str, Pictures]
"""A question and a response, and the images of the question if it has some."""
ToCompare = tuple[str, str, str] | tuple[str, str, str, Pictures]
"""A question and two responses, and the images of the question if it has some."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one response."""

    verdict: Literal["right", "wrong"] | None
    """None: no judgement held a verdict. Right takes a probability above one half."""
    probability: float | None
    """That the response is right; None where `verdict` is."""
    text: str
    """The (first) judgement in the model's words."""
    no_room: bool = False
    """Whether nothing could be generated: the prompt fills the model's context, or the budget is spent."""

    def columns(self) -> dict[str, Any]:
        """As a row of JSON holds it."""
        return {"verdict": self.verdict, "probability": self.probability}


@dataclass(frozen=True, slots=True)
class Preference:
    """On two responses, asked in both orders."""

    preferred: Literal["a", "b"] | None
    """None: neither order gave a verdict, or the two cancel out exactly."""
    probability: float | None
    """That `a` is the better one, the mean of both orders; None if neither gave a verdict."""
    consistent: bool | None
    """Whether both orders prefer the same response; None unless both gave a verdict."""
    texts: tuple[str, str]
    """The (first) judgements, `a` shown first and `b` shown first."""
    no_room: bool = False
    """Whether, in either order, nothing could be generated."""

    def columns(self) -> dict[str, Any]:
        """As a row of JSON holds it."""
        return {"preferred": self.preferred, "probability": self.probability, "consistent": self.consistent}

    def swapped(self) -> Preference:
        """The same with the names `a` and `b` exchanged."""
        return replace(
            self,
            preferred={"a": "b", "b": "a", None: None}[self.preferred],
            probability=None if self.probability is None else _rounded(1 - self.probability),
            texts=self.texts[::-1],
        )


class Judge:
    """A model that judges.

    The images of a question are shown where `<image>` (or `IMAGE`) stands in its text, in order; where it does not,
    they come first. In a question without images `<image>` is text.

    >>> judge = Judge.open("runs/quickstart/final")  # doctest: +SKIP
    >>> judge.score("What is 2+2?", r"It is \\boxed{5}.").verdict  # doctest: +SKIP
    'wrong'
    """

    def __init__(self, model: ChatModel, settings: JudgeConfig | None = None, *, seed: int = 0) -> None:
        self.model, self.settings, self.seed = model, settings or JudgeConfig(), seed
        self.prompts = model.prompts
        self.templates = {
            Role.POINTWISE: self.prompts.template(self.settings.pointwise_template, Role.POINTWISE),
            Role.PAIRWISE: self.prompts.template(self.settings.pairwise_template, Role.PAIRWISE),
        }
        self.spent = Spent()
        """What all calls have cost."""

    @classmethod
    def open(cls, model: str, *overrides: str) -> Judge:
        """The judge in a local folder, a Hub id, `embedded` or the model at a server's address.

        Args:
            overrides: settings as `section.key=value`: `Judge.open("embedded", "judge.samples=4")`.

        Raises:
            ValueError: a setting is wrong, the model cannot be loaded, or there is no server at the address.
        """
        settings = load_inference(overrides, model={"path": model})
        return cls(ChatModel.open(settings), settings.judge, seed=settings.seed)

    def score(self, question: str, response: str, images: Pictures = ()) -> Verdict:
        """Is the final answer of this response right?"""
        return self.score_all([(question, response, images)])[0]

    def compare(self, question: str, a: str, b: str, images: Pictures = ()) -> Preference:
        """Which of the two has the right final answer?"""
        return self.compare_all([(question, a, b, images)])[0]

    def score_all(self, items: Sequence[ToScore], progress: Callable[[int, int], None] | None = None) -> list[Verdict]:
        """`score` of many (question, response) or (question, response, images), in one generation call.

        Raises:
            ValueError: an image cannot be used, or there are not as many places for them.
        """

        def begin(question: str, response: str, shown: Pictures = ()) -> tuple[str, Callable[[Spent], Plan[Verdict]]]:
            images = _references(shown)
            return _content_id((question, response), images), lambda spent: self.pointwise(question, response, images)

        return self._carry_out([begin(*item) for item in items], progress)

    def compare_all(
        self, items: Sequence[ToCompare], progress: Callable[[int, int], None] | None = None
    ) -> list[Preference]:
        """`compare` of many (question, a, b) or (question, a, b, images), in one generation call.

        Raises:
            ValueError: as `score_all`.
        """

        def begin(
            question: str, a: str, b: str, shown: Pictures = ()
        ) -> tuple[str, Callable[[Spent], Plan[Preference]]]:
            images = _references(shown)
            id = _content_id((question, *sorted((a, b))), images)
            return id, lambda spent: self.pairwise(question, a, b, images)

        return self._carry_out([begin(*item) for item in items], progress)

    def asks(self, question: str, *responses: str, images: Images = ()) -> list[Ask]:
        """The prompts by which one response is judged, or two are compared."""
        if len(responses) == 1:
            return list(next(self.pointwise(question, responses[0], images)))
        a, b = responses
        return list(next(self.pairwise(question, a, b, images)))

    def _carry_out(
        self, plans: Sequence[tuple[str, Callable[[Spent], Plan[T]]]], progress: Callable[[int, int], None] | None
    ) -> list[T]:
        done = run(plans, self.model, seed=self.seed, progress=progress)
        self.spent.prompt_tokens += sum(each.spent.prompt_tokens for each in done)
        self.spent.generated_tokens += sum(each.spent.generated_tokens for each in done)
        return [each.value for each in done]

    def pointwise(self, question: str, response: str, images: Images = ()) -> Plan[Verdict]:
        """`score` as a plan, for strategies that judge along the way."""
        template = self.templates[Role.POINTWISE]
        (replies,) = yield [self._ask(template, images, question=question, response=response)]
        probability = self._probability(replies, *template.verdicts)
        verdict = None if probability is None else "right" if probability > 0.5 else "wrong"
        no_room = replies[0].finish_reason == "no_room"
        return Verdict(verdict, probability, replies[0].text, no_room)  # type: ignore[arg-type]

    def pairwise(self, question: str, a: str, b: str, images: Images = ()) -> Plan[Preference]:
        """`compare` as a plan. That of (b, a) is the same one, down to its sampling noise."""
        if b < a:
            return (yield from self.pairwise(question, b, a, images)).swapped()
        template = self.templates[Role.PAIRWISE]
        forward, backward = yield [
            self._ask(template, images, question=question, first=a, second=b),
            self._ask(template, images, question=question, first=b, second=a),
        ]
        a_first = self._probability(forward, *template.verdicts)
        b_first = self._probability(backward, *template.verdicts[::-1])
        parsed = [p for p in (a_first, b_first) if p is not None]
        probability = _rounded(fmean(parsed)) if parsed else None
        return Preference(
            preferred=None if probability in (None, 0.5) else "a" if probability > 0.5 else "b",
            probability=probability,
            consistent=(parsed[0] - 0.5) * (parsed[1] - 0.5) > 0 if len(parsed) == 2 else None,
            texts=(forward[0].text, backward[0].text),
            no_room="no_room" in (forward[0].finish_reason, backward[0].finish_reason),
        )

    def _ask(self, template: Template, images: Images, question: str, **responses: str) -> Ask:
        quoted = dict(zip(responses, self._views(*responses.values()), strict=True))
        if not images:
            question = without_images(question)
        elif IMAGE not in question:
            question = placed_in_question(question, len(images))
        messages = self.prompts.conversation(template.role, self.prompts.fill(template, question=question, **quoted))
        n = self.settings.samples
        return Ask(messages, n, self.settings.temperature if n > 1 else 0.0, images)

    def view(self, response: str) -> str:
        """What is shown of a response: all of it where there is no answer to show alone, even if it is empty."""
        return self._views(response)[0]

    def _views(self, *responses: str) -> list[str]:
        """As the recycler shows them: both of a pair by one view."""
        stated = self.prompts.answer_format
        extracted = [stated.read(response) for response in responses]
        view = View.REASONING if None in extracted else View(self.settings.view)
        limit = self.settings.max_response_chars
        return [shown(*each, view, limit, stated) or "" for each in zip(responses, extracted, strict=True)]

    def _probability(self, replies: Sequence[Reply], yes: str, no: str) -> float | None:
        """Mean probability of the verdict `yes` over the replies that hold a verdict; None if none does."""
        found = [p for reply in replies if (p := self._probability_of(reply, yes, no)) is not None]
        return _rounded(fmean(found)) if found else None

    def _probability_of(self, reply: Reply, yes: str, no: str) -> float | None:
        content = self.prompts.verdict_format.read(reply.text)
        side = None if content is None else verdict_side(content, (yes, no))
        if content is None or side is None:
            return None
        logp = self.model.logp_of_verdict(reply, content, (yes, no)[side])
        # What else could have stood there is not known: the other verdict, or the same one spelled otherwise. So the
        # verdict that was given keeps at least one half.
        certainty = 1.0 if logp is None else max(0.5 + 1e-6, math.exp(min(0.0, logp)))
        return 1 - certainty if side else certainty


def _references(shown: Pictures) -> Images:
    return tuple(each if isinstance(each, Image) else reference(each, Path()) for each in listed(shown))


def _content_id(texts: Sequence[str], images: Images) -> str:
    return hashlib.sha256("\0".join([*texts, *(image.sha256 for image in images)]).encode()).hexdigest()[:16]


def _rounded(probability: float) -> float:
    """To what does not depend on the batch, so that nothing that is chosen by it does."""
    return round(probability, 6)
