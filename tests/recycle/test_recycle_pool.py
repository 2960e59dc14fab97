import json
from collections import Counter

import pytest
from factories import make_example, question_group
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.config import RecycleConfig
from spark_rl.recycle import Bundle, Pool, recycle
from spark_rl.types import Image, Response, Role, Task

RECYCLED = [role for role in Role if role.is_recycled]


def bundle(*names: str, role: Role = Role.POINTWISE, step: int = 0) -> Bundle:
    images = (Image("/images/a.png", "0" * 64), Image('drawn:{"size":[9,9],"marks":[]}', "f" * 64))
    example = make_example(metadata={"tolerance": 0.5, "of": ["a", {"b": None}]}, images=images)
    shown = (Response("r", "a response", "5", 1.0), Response("s", "no answer \u2028 é", None, 0.0))
    return tuple(
        Task(f"{role}-{name}", role, example.prompt, "Yes", "choice", example, "t-1", shown, 1, step) for name in names
    )


bundles = st.builds(
    lambda names, role, step: bundle(*names, role=role, step=step),
    names=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3, unique=True),
    role=st.sampled_from(RECYCLED),
    step=st.integers(0, 9),
)
slots = st.dictionaries(st.sampled_from(list(Role)), st.integers(0, 6))


def waiting(pool: Pool) -> list[Task]:
    """All that waits, read off a copy."""
    copy = Pool(pool.size, max_age=10**9)
    copy.load_state_dict(pool.state_dict(), {})
    return copy.take({role: 10**9 for role in Role}, 0)[0]


def names(tasks: list[Task]) -> list[str]:
    return [task.id.rpartition("-")[2] for task in tasks]


# ------------------------------------------------------------------------------------------------ properties


@given(batches=st.lists(st.lists(bundles, max_size=6), max_size=5), size=st.integers(1, 8))
def test_the_pool_is_bounded_has_no_duplicates_and_accounts_for_every_task(batches, size):
    pool = Pool(size, max_age=100)
    for batch in batches:
        before = len(pool)
        counts = pool.add(batch)
        assert before + sum(map(len, batch)) == len(pool) + counts.total()
        for role in RECYCLED:
            assert pool.num_waiting(role) <= size
        ids = [task.id for task in waiting(pool)]
        assert len(set(ids)) == len(ids) == len(pool) == sum(map(pool.num_waiting, RECYCLED))


@given(added=st.lists(bundles, max_size=12), slots=slots, step=st.integers(0, 15), max_age=st.integers(1, 10))
def test_take_gives_whole_bundles_fresh_ones_and_never_more_than_asked(added, slots, step, max_age):
    pool = Pool(100, max_age)
    pool.add(added)
    before = {task.id: task for task in waiting(pool)}
    bundles = [whole for of_role in pool.state_dict().values() for whole in of_role]
    partners = {task["id"]: {other["id"] for other in whole} for whole in bundles for task in whole}
    taken, counts = pool.take(slots, step)
    after = {task.id for task in waiting(pool)}
    ids = [task.id for task in taken]
    for role, number in Counter(task.role for task in taken).items():
        assert number <= slots[role]
    assert len(set(ids)) == len(ids) and after.isdisjoint(ids)
    assert all(partners[task.id] <= set(ids) for task in taken), "a bundle is never torn"
    assert all(step - task.step <= max_age for task in taken)
    assert all(step - before[id].step <= max_age for id in after)
    assert len(before) == len(taken) + len(after) + counts["expired"]


@given(
    steps=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    wanted=st.integers(0, 9),
)
def test_the_newest_are_taken_first(steps, wanted):
    pool = Pool(100, max_age=100)
    for i, step in enumerate(sorted(steps)):
        pool.add([bundle(str(i), step=step)])
    taken, _ = pool.take({Role.POINTWISE: wanted}, step=9)
    assert names(taken) == [str(i) for i in reversed(range(len(steps)))][:wanted]


@given(added=st.lists(bundles, max_size=12), size=st.integers(1, 20), slots=slots, step=st.integers(0, 12))
def test_a_pool_read_back_from_json_is_the_same_pool(added, size, slots, step):
    pool = Pool(size, max_age=5)
    pool.add(added)
    again = Pool(size, max_age=5)
    again.load_state_dict(json.loads(json.dumps(pool.state_dict())), {})
    assert again.state_dict() == pool.state_dict()
    assert waiting(again) == waiting(pool)
    assert again.take(slots, step) == pool.take(slots, step)
    assert again.state_dict() == pool.state_dict()
    assert again.add(added) == pool.add(added)


# ------------------------------------------------------------------------------------------------ examples


def test_what_does_not_fit_the_free_slots_waits_and_smaller_ones_go_before_it():
    pool = Pool(100, max_age=100)
    pool.add([bundle("a"), bundle("b", "c"), bundle("d", "e", "f")])
    taken, _ = pool.take({Role.POINTWISE: 1}, step=0)
    assert names(taken) == ["a"]
    taken, _ = pool.take({Role.POINTWISE: 4}, step=0)
    assert names(taken) == ["d", "e", "f"]
    assert names(waiting(pool)) == ["b", "c"]


def test_roles_have_room_and_slots_of_their_own():
    pool = Pool(2, max_age=100)
    pool.add(bundle(name, role=role) for role in RECYCLED for name in "ab")
    assert [pool.num_waiting(role) for role in RECYCLED] == [2, 2, 2]
    taken, _ = pool.take({Role.ANSWER: 5, Role.PAIRWISE: 1, Role.REFLECTION: 2}, step=0)
    assert Counter(task.role for task in taken) == {Role.PAIRWISE: 1, Role.REFLECTION: 2}


def test_the_oldest_leave_a_full_pool_first():
    pool = Pool(4, max_age=100)
    assert pool.add([bundle("a", "b"), bundle("c")]) == {}
    assert pool.add([bundle("d", "e")]) == {"evicted": 2}
    assert sorted(names(waiting(pool))) == ["c", "d", "e"]


def test_age_is_counted_from_the_step_that_made_the_task():
    pool = Pool(100, max_age=3)
    pool.add([bundle("old", step=1), bundle("new", step=4)])
    assert pool.mean_age(4) == 1.5
    assert pool.take({}, step=4) == ([], Counter())
    taken, counts = pool.take({Role.POINTWISE: 9}, step=5)
    assert names(taken) == ["new"] and counts["expired"] == 1
    assert pool.mean_age(5) == 0.0 and len(pool) == 0


def test_a_bundle_made_again_replaces_its_older_self():
    pool = Pool(100, max_age=100)
    pool.add([bundle("a", "b", step=1), bundle("c", step=2)])
    assert pool.add([bundle("b", "a", step=3)]) == {"renewed": 2}
    taken, _ = pool.take({Role.POINTWISE: 2}, step=3)
    assert [(name, task.step) for name, task in zip(names(taken), taken, strict=True)] == [("b", 3), ("a", 3)]


@pytest.mark.parametrize("newer", [("a",), ("a", "x"), ("a", "b", "x")])
def test_a_bundle_that_overlaps_another_is_left_out_whole(newer):
    pool = Pool(100, max_age=100)
    pool.add([bundle("a", "b")])
    assert pool.add([bundle(*newer)]) == {"duplicate": len(newer)}
    assert names(waiting(pool)) == ["a", "b"]


def test_the_same_id_in_another_role_is_another_task():
    pool = Pool(100, max_age=100)
    assert pool.add([bundle("a"), bundle("a", role=Role.PAIRWISE)]) == {}
    assert len(pool) == 2


def test_recycled_groups_keep_their_balance_on_the_way_through_the_pool():
    groups = [question_group(n, [n + 1, n + 2, n + 1, n + 3]) for n in range(8)]
    pool = Pool(20, max_age=10)
    counts = pool.add(recycle(groups, RecycleConfig(), seed=0, step=0).bundles)
    assert counts["evicted"] > 0
    for step, number in enumerate((5, 7, 3)):
        taken, _ = pool.take({Role.POINTWISE: number, Role.PAIRWISE: number}, step)
        labels = Counter(task.label for task in taken)
        assert labels["Yes"] == labels["No"] == labels["A"] == labels["B"] == number // 2


def test_what_does_not_fit_is_dropped_when_its_turn_comes_and_makes_room():
    pool = Pool(10, max_age=10)
    pool.add([bundle("a"), bundle("b", "long"), bundle("c")])
    taken, counts = pool.take({Role.POINTWISE: 3}, 1, fits=lambda task: "long" not in task.id)
    assert names(taken) == ["c", "a"] and counts["too_long"] == 2 and len(pool) == 0
