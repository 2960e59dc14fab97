import pytest
from factories import make_example
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.data import Questions, question_task
from spark_rl.types import Role


def questions(count: int, seed: int = 0) -> Questions:
    return Questions([question_task(make_example(i)) for i in range(count)], seed)


def ids(drawn) -> list[str]:
    return [task.id for task in drawn]


@given(count=st.integers(1, 12), seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_every_epoch_asks_every_question_once(count, seed, epochs):
    source = questions(count, seed)
    for _ in range(epochs):
        assert sorted(ids(source.draw(count))) == sorted(ids(source.tasks))


@given(count=st.integers(1, 12), sizes=st.lists(st.integers(0, 9), max_size=6))
def test_the_order_does_not_depend_on_how_many_are_drawn_at_once(count, sizes):
    at_once, piecewise = questions(count), questions(count)
    assert ids(at_once.draw(sum(sizes))) == [id for size in sizes for id in ids(piecewise.draw(size))]
    assert at_once.cursor == piecewise.cursor == sum(sizes)


@given(count=st.integers(1, 12), before=st.integers(0, 40), after=st.integers(1, 40))
def test_the_cursor_is_all_there_is_to_resume(count, before, after):
    run = questions(count)
    run.draw(before)
    resumed = questions(count)
    resumed.cursor = run.cursor
    assert ids(resumed.draw(after)) == ids(run.draw(after))


def test_a_cursor_set_back_asks_the_same_again():
    run = questions(7)
    first = ids(run.draw(10))
    run.cursor = 0
    assert ids(run.draw(10)) == first


def test_epochs_and_seeds_have_orders_of_their_own():
    run = questions(20)
    first, second = ids(run.draw(20)), ids(run.draw(20))
    assert first != second
    assert first != ids(questions(20, seed=1).draw(20))
    assert first != ids(run.tasks), "the order of the file is no order to train in"
    assert first == ids(questions(20).draw(20))


def test_no_questions_are_refused():
    with pytest.raises(ValueError, match=r"data\.train holds no questions"):
        Questions([], seed=0)


def test_a_question_becomes_a_task_of_the_answer_role():
    example = make_example(4)
    task = question_task(example)
    assert (task.id, task.role, task.label, task.verifier) == ("answer-q4", Role.ANSWER, "5", "numeric")
    assert task.messages == example.prompt and task.example is example
    assert (task.depth, task.step, task.shown, task.template) == (0, 0, (), None)
