import json

import pytest
from factories import make_example
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_rl.data import Questions, question_task
from spark_rl.data.check import question_key
from spark_rl.data.sources import Source

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def source(count: int, name: str = "q", **values) -> Source:
    made = [question_task(make_example(i, id=f"{name}{i}", source=name)) for i in range(count)]
    return Source(name, count, made.__getitem__, lambda i: f"{name}, row {i + 1}", **values)


def questions(*counts: int, seed: int = 0, weights: list[float] | None = None, **values) -> Questions:
    given = weights or [None] * len(counts)
    sources = [source(n, f"{name}-", weight=w) for name, n, w in zip("abcdefgh", counts, given, strict=False)]
    return Questions(sources, seed, **values)


def ids(run: Questions, count: int) -> list[str]:
    return [task.example.id for task in run.draw(count)[0]]


@given(counts=COUNTS, seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_every_epoch_asks_every_question_once(counts, seed, epochs):
    run = questions(*counts, seed=seed)
    every = sorted(s.read(i).example.id for s in run.sources for i in range(s.num_rows))
    for _ in range(epochs):
        assert sorted(ids(run, sum(counts))) == every
    assert run.num_rows == sum(counts)


@given(counts=COUNTS, sizes=st.lists(st.integers(0, 9), max_size=6))
def test_the_order_does_not_depend_on_how_many_are_drawn_at_once(counts, sizes):
    at_once, piecewise = questions(*counts), questions(*counts)
    assert ids(at_once, sum(sizes)) == [id for size in sizes for id in ids(piecewise, size)]
    assert at_once.state_dict() == piecewise.state_dict()
    assert sum(at_once.drawn) == sum(sizes)


@given(
    counts=COUNTS,
    weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4) | st.none(),
    before=st.integers(0, 40),
    after=st.integers(1, 40),
    left_out=st.sets(st.integers(0, 3)),
)
def test_the_state_is_all_there_is_to_resume(counts, weights, before, after, left_out):
    def start() -> Questions:
        run = questions(20, *counts, weights=weights and [1.0, *weights])
        run.sources[0].left_out.update(dict.fromkeys(left_out, "bad_gold"))
        return run

    def fits(task) -> bool:
        return task.example.id != "a-5"

    run, resumed = start(), start()
    run.draw(before, fits)
    resumed.load_state_dict(json.loads(json.dumps(run.state_dict())))
    drawn, passed = resumed.draw(after, fits)
    assert (drawn, passed) == run.draw(after, fits)
    assert {task.example.id for task in drawn}.isdisjoint({"a-5", *(f"a-{i}" for i in left_out)})


@settings(max_examples=300)
@given(
    weights=st.lists(st.floats(0.01, 100) | st.integers(1, 50).map(float), min_size=1, max_size=8),
    count=st.integers(1, 150),
)
def test_a_mixture_is_exact_to_one_question_at_any_prefix(weights, count):
    run = questions(*[3] * len(weights), weights=weights)
    for number in range(1, count + 1):
        run.draw(1)
        for weight, drawn in zip(weights, run.drawn, strict=True):
            assert abs(number * weight / sum(weights) - drawn) < 1 + 1e-6


def test_a_mixture_that_always_takes_what_is_furthest_behind_would_not_be():
    weights = [5.0, 50.0, 5.0, 50.0, 5.0, 5.0, 1.0, 50.0]
    run = questions(*[1] * 8, weights=weights)
    run.draw(59)
    assert max(abs(59 * w / sum(weights) - n) for w, n in zip(weights, run.drawn, strict=True)) < 1


def test_sources_without_weights_are_through_at_once():
    run = questions(30, 10)
    for quarter in range(1, 5):
        run.draw(10)
        assert abs(run.drawn[1] - 2.5 * quarter) < 1
    assert run.cursors == [30, 10]


def test_what_is_left_out_has_no_share():
    run = questions(4, 4)
    run.sources[0].left_out.update({0: "bad_row", 1: "held_out", 2: "bad_row"})
    run = Questions(run.sources, 0)
    assert run.num_rows == 5
    assert sorted(ids(run, 5)) == ["a-3", "b-0", "b-1", "b-2", "b-3"]


def test_epochs_seeds_and_sources_have_orders_of_their_own():
    run = questions(20)
    first, second = ids(run, 20), ids(run, 20)
    assert first != second
    assert first != ids(questions(20, seed=1), 20)
    assert first != [f"a-{i}" for i in range(20)], "the order of the file is no order to train in"
    assert first == ids(questions(20), 20)
    both = [id.split("-") for id in ids(questions(20, 20), 40)]
    assert [i for name, i in both if name == "a"] != [i for name, i in both if name == "b"]


def test_questions_that_do_not_fit_are_passed_over_and_counted():
    run = questions(10)
    drawn, passed = run.draw(12, lambda task: task.example.id not in ("a-3", "a-4"))
    assert passed["too_long"] >= 2 and set(passed) == {"too_long"}
    assert {task.example.id for task in drawn} == {f"a-{i}" for i in range(10)} - {"a-3", "a-4"}


@given(count=st.integers(1, 9), seed=st.integers(0, 50))
def test_one_question_that_can_be_asked_is_enough_for_any_number_of_epochs(count, seed):
    """Wherever in the next epoch's order it stands."""
    run = Questions([source(count, left_out=frozenset(range(1, count)))], seed)
    assert ids(run, 20) == ["q0"] * 20


def test_generated_questions_that_are_held_out_are_passed_over_and_counted():
    made = source(6, generator="seed 0")
    held_out = {question_key(made.read(2))}
    drawn, passed = Questions([made], 0, held_out).draw(5)
    assert "q2" not in {task.example.id for task in drawn} and passed["held_out"] <= 1
    assert len({task.example.id for task in drawn}) == 5


def test_a_source_of_which_nothing_fits_is_named():
    with pytest.raises(LookupError, match="b-"):
        questions(5, 5).draw(4, lambda task: not task.example.id.startswith("b-"))
    held_out = source(1, generator="seed 0")
    with pytest.raises(LookupError, match="q"):
        Questions([held_out], 0, {question_key(held_out.read(0))}).draw(1)


def test_a_state_of_other_sources_is_refused():
    with pytest.raises(ValueError, match=r"data\.train now opens 2 sources, and 1 when the checkpoint was made"):
        questions(5, 5).load_state_dict(questions(5).state_dict())


def test_no_sources_are_refused():
    with pytest.raises(ValueError, match=r"data\.train names no source of questions"):
        Questions([], seed=0)


def test_a_row_that_went_bad_during_the_run_is_named():
    def read(index: int):
        raise ValueError("not valid JSON")

    broken = Source("a.jsonl", 3, read, lambda i: f"a.jsonl, row {i + 1}")
    with pytest.raises(ValueError, match=r"a\.jsonl, row \d: not valid JSON; it was good when the run began, so the"):
        Questions([broken], 0).draw(1)
