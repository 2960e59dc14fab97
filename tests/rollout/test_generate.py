"""Tasks to groups: what the engine is asked, and how its answers come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from factories import make_config, make_example

from spark_rl.data import question_task
from spark_rl.rollout.engine import Completion, Request
from spark_rl.rollout.generate import greedy_sampling, roll_out, training_sampling
from spark_rl.types import Group, Role, Task
from spark_rl.verify import extract_answer


class Recorder:
    """An engine that writes down its requests and completes each with its own number."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> list[list[Completion]]:
        self.requests = list(requests)
        return [
            [Completion([i, j], [-0.5, -0.25], f"{i}-{j}", "stop") for j in range(request.n)]
            for i, request in enumerate(requests)
        ]


class Letters:
    """A renderer whose ids are the characters of the last message."""

    opening = ""

    def encode_task(self, task: Task) -> list[int]:
        return [ord(c) for c in task.messages[-1]["content"]]


CONFIG = make_config(
    rollout={"num_generations": 3, "max_new_tokens": 50, "top_p": 0.9, "stop": ["END"]},
    roles={"answer": {"share": 0.5}, "pointwise": {"share": 0.5, "num_generations": 5, "temperature": 0.5}},
)


def ask(tasks: list[Task], seed: int = 0, step: int = 1, greedy: bool = False) -> tuple[list[Group], list[Request]]:
    engine = Recorder()
    sampling = greedy_sampling(CONFIG) if greedy else training_sampling(CONFIG)
    groups = roll_out(tasks, engine, Letters(), CONFIG, sampling, seed=seed, step=step)  # type: ignore[arg-type]
    return groups, engine.requests


TASKS = [
    question_task(make_example(1)),
    replace(question_task(make_example(2)), id="judge", role=Role.POINTWISE),
]


def test_roles_are_sampled_by_their_own_settings() -> None:
    _, (answer, pointwise) = ask(TASKS)
    assert (answer.n, answer.temperature, answer.max_new_tokens) == (3, 1.0, 50)
    assert (pointwise.n, pointwise.temperature) == (5, 0.5)
    assert answer.top_p == 0.9 and answer.stop == ("END",)


def test_greedy_is_one_sample_at_temperature_zero_and_the_whole_nucleus() -> None:
    _, requests = ask(TASKS, greedy=True)
    assert [(r.n, r.temperature, r.top_p) for r in requests] == [(1, 0.0, 1.0)] * 2


def test_groups_come_back_in_order_with_lineage_ids() -> None:
    groups, requests = ask(TASKS, step=7)
    assert [group.task for group in groups] == TASKS
    assert [tuple(group.prompt_ids) for group in groups] == [request.prompt_ids for request in requests]
    assert [r.text for r in groups[1].rollouts] == [f"1-{j}" for j in range(5)]
    ids = [r.id for group in groups for r in group.rollouts]
    assert len(set(ids)) == len(ids) and all(id.startswith("7:") for id in ids)


def test_noise_is_addressed_by_seed_step_and_task_not_by_place() -> None:
    def seeds(tasks: list[Task], **address: int) -> dict[str, int]:
        return {request.id: request.seed for request in ask(tasks, **address)[1]}

    assert seeds(TASKS) == seeds(TASKS[::-1])
    assert len({*seeds(TASKS).values(), *seeds(TASKS, seed=1).values(), *seeds(TASKS, step=2).values()}) == 6


def test_what_the_template_opened_is_part_of_the_response(monkeypatch) -> None:
    """Else an answer in unfinished reasoning would count, and a judge would be shown it."""
    monkeypatch.setattr(Letters, "opening", "<think>")
    group = ask(TASKS)[0][0]
    assert group.rollouts[0].text == "<think>0-0"
    assert extract_answer(f"{Letters.opening}so \\boxed{{5}}, or") is None
    assert extract_answer(f"{Letters.opening}so 5 </think> \\boxed{{6}}") == "6"
