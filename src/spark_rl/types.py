"""The nouns that flow through the loop: plain dataclasses, no torch.

    Example ──> Task ──> Group of Rollouts ──> (recycler) ──> Task ──> ...

An `Example` is a question with a checkable answer. A `Task` is one prompt to roll out: the question itself, or a
prompt that asks the same model to judge or to correct earlier rollouts of that question. A `Group` is a task with
its rollouts. Nothing is ever recovered from decoded text: a task keeps the example it is about, and a rollout keeps
the token ids that were sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

Message = Mapping[str, Any]
"""One chat turn: `{"role": "system" | "user" | "assistant", "content": str}`; `IMAGE` stands where an image goes."""

IMAGE = "\ufffc"
"""Stands for one image in a text (Unicode's object replacement character). The images of an example belong to the
`IMAGE`s of its texts one by one, in order. A text from elsewhere never holds one: see `without_images`."""


def without_images(text: str) -> str:
    """A text in which nothing stands for an image: what data, users or the model wrote."""
    return text.replace(IMAGE, "\ufffd")


def with_markers(text: str) -> str:
    """A text as people read it, and as rows of data have it: `<image>` where an image stands."""
    return text.replace(IMAGE, "<image>")


def in_parts(text: str) -> list[dict[str, str]]:
    """A text as the parts of a message: `{"type": "text", "text": ...}`, and `{"type": "image"}` where one stands."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE)):
        parts += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": piece}] * bool(piece)
    return parts


@dataclass(frozen=True, slots=True)
class Image:
    """A reference to an image: it is loaded where it is needed, and what pools and checkpoints keep is small."""

    path: str
    """An absolute path; or `drawn:...` with the description of a drawing (see `images/drawn.py`); or a data URL, which
    holds the file itself."""
    sha256: str
    """Of the file's bytes, hexadecimal; for a drawing, of its path."""


class Role(StrEnum):
    """What a task asks the model to be (SPARK section 3: policy, judge and reflector are one model)."""

    ANSWER = "answer"
    POINTWISE = "pointwise"
    PAIRWISE = "pairwise"
    REFLECTION = "reflection"

    @property
    def is_judge(self) -> bool:
        """True for the roles whose label is a verdict (Yes/No, A/B)."""
        return self in (Role.POINTWISE, Role.PAIRWISE)

    @property
    def verdicts(self) -> tuple[str, str]:
        """The words of a judge's verdicts, where no template has others: that of a right response, or of the first of
        two, comes first."""
        return ("Yes", "No") if self is Role.POINTWISE else ("A", "B")

    @property
    def is_recycled(self) -> bool:
        return self is not Role.ANSWER

    def right_at(self, of_answers: float) -> float:
        """The reward from which on a rollout is right: verdicts have the scale of 0 and 1, whatever answers have."""
        return 1.0 if self.is_judge else of_answers


@dataclass(frozen=True, slots=True)
class Example:
    """A question with a checkable answer, as it stands in the data."""

    id: str
    prompt: tuple[Message, ...]
    """Chat messages that end with the user's turn."""
    question: str
    """The bare question, as judge and reflection prompts quote it (no answer instruction, no system turn)."""
    answer: str
    """Gold answer, in the form its verifier reads."""
    verifier: str = "math"
    source: str = ""
    """Where the row came from (file, task family); metrics are broken down by it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the verifier needs besides the answer (for example the reasoning-gym entry)."""
    images: tuple[Image, ...] = ()
    """In the order in which `IMAGE` stands for them in the prompt and in the question."""


@dataclass(frozen=True, slots=True)
class Response:
    """An earlier rollout as recycled prompts know it."""

    id: str
    text: str
    extracted: str | None
    reward: float
    disturbed: bool = False
    """Whether the text is not what the model wrote; see `recycle/probes.py`."""


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt to roll out, with the label its rollouts are graded against."""

    id: str
    role: Role
    messages: tuple[Message, ...]
    label: str
    """Gold answer (answer, reflection) or gold verdict (pointwise: Yes/No, pairwise: A/B)."""
    verifier: str
    example: Example
    """The question this task is about."""
    template: str | None = None
    shown: tuple[Response, ...] = ()
    """The earlier responses that the prompt shows, in order (lineage)."""
    depth: int = 0
    """0 for a question of the data, 1 for what was recycled from its rollouts, and so on."""
    step: int = 0
    """The step that made this task (0 for data); its age in the pool is counted from here."""
    verdicts: tuple[str, str] | None = None
    """The words of a judge's verdicts where they are not those of the role (`Role.verdicts`)."""
    responses: tuple[str, ...] = ()
    """What the data give to be learnt from: rows of a warm start alone."""

    @property
    def positive(self) -> str:
        """The verdict that a judge's habits favour: that a response is right, or the first of two."""
        return (self.verdicts or self.role.verdicts)[0]


def with_images_at_hand(task: Task, images: Mapping[str, Image]) -> Task:
    """A task that was saved, with its images where they are now.

    Args:
        images: by the hash of their content. What is not among them stays where it was.
    """
    found = tuple(images.get(image.sha256, image) for image in task.example.images)
    return replace(task, example=replace(task.example, images=found)) if found else task


FinishReason = Literal["stop", "length", "no_room"]
"""`stop`: the model ended its turn or wrote a stop string. `length`: it was cut at `max_new_tokens`. `no_room`: nothing
was generated, since the prompt fills the model's context or the question's budget of tokens (test time only)."""


@dataclass(slots=True)
class Rollout:
    """One sampled completion. The engine fills the first five fields, the scorer the others."""

    id: str
    token_ids: list[int]
    """Sampled ids, the end-of-turn token included when it was sampled."""
    logps: list[float]
    """Log-probability of each id under the distribution it was sampled from (temperature applied), nats."""
    text: str
    """Decoded ids without special tokens."""
    finish_reason: FinishReason
    reward: float | None = None
    """None: could not be graded (unverifiable gold, verifier failure); such a rollout trains nothing."""
    extracted: str | None = None
    """The answer or verdict that was graded; None when the text holds none."""
    reason: str = ""
    """Why the reward is what it is: `correct`, `wrong`, `unparsed`, `truncated`, `timeout`, ..."""
    detail: str = ""
    """The verifier's own words, where it failed."""


@dataclass(slots=True)
class Group:
    """A task, the ids its prompt was rendered to, and its rollouts."""

    task: Task
    prompt_ids: list[int]
    rollouts: list[Rollout]
    weight: float = 1.0
    """Factor on its advantages: below 1 where the model's own verdicts are trusted by degrees."""

    @property
    def rewards(self) -> list[float]:
        """The rewards of the rollouts that could be graded."""
        return [r.reward for r in self.rollouts if r.reward is not None]

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ, i.e. whether any advantage is non-zero."""
        return len(set(self.rewards)) > 1
