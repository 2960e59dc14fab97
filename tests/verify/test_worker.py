"""What verifiers may do to the process they run in: no verdict ever goes to another item."""

import os
import time
from pathlib import Path

import pytest

from spark_rl.verify import Check, VerifierHangs, VerifierPool, box


@pytest.fixture(autouse=True)
def graders_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(cpu_seconds=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def hasty_pool():
    """For what sleeps; what does not has a second to be graded in, however busy the machine."""
    with VerifierPool(wall_seconds=1) as pool:
        yield pool


def check(answer, grader, gold="5", **metadata):
    return Check(box(answer), gold, f"graders:{grader}", metadata)


def rewards(pool, grader, **metadata):
    """Of right and wrong answers in turn, each of which is the worker's to do; then of a verifier that does nothing."""
    odd = [check(str(5 + i % 2), grader, number=i, **metadata) for i in range(6)]
    even = [check(str(5 + i % 2), "right", number=i) for i in range(6)]
    return [verdict.reward for verdict in pool.verify([*odd, *even])]


@pytest.mark.parametrize(
    "grader",
    [
        "in_a_child",
        "raises_in_a_child",
        "in_many_processes",
        "behind_python",
        "leaves_a_daemon",
        "leaves_a_thread",
        "prints",
    ],
)
def test_a_verifier_that_forks_or_leaves_things_behind_answers_once(pool, grader):
    right_or_all = [1, 1] if grader == "prints" else [1, 0]
    assert rewards(pool, grader) == right_or_all * 3 + [1, 0] * 3


@pytest.mark.parametrize("grader", ["becomes_a_daemon", "closes_everything", "leaves", "kills_its_worker"])
def test_a_verifier_that_loses_its_worker_costs_its_own_items(pool, grader):
    metadata = {"gold": "0"} if grader == "leaves" else {}
    assert rewards(pool, grader, **metadata) == [None] * 6 + [1, 0] * 3


@pytest.mark.parametrize(
    "noise",
    ["x", "\n", "{}\n", "5\n", "[[]]\n", "[" * 5000 + "\n", "\0" * 70_000, '[1, 1.0, "correct", ""]\n', '[1, 1.0, "'],
)
def test_what_a_verifier_writes_to_the_socket_is_never_a_verdict(pool, noise):
    given = rewards(pool, "writes_everywhere", noise=noise)
    assert given[6:] == [1, 0] * 3
    assert all(got in (None, expected) for got, expected in zip(given[:6], [1, 0] * 3, strict=True))


@pytest.mark.parametrize(
    "verdict",
    [
        "NaN, 7, null",
        'NaN, "wrong", ""',
        '1e999, "wrong", ""',
        f'1{"0" * 400}, "wrong", ""',
        'true, "correct", ""',
        '"1", "correct", ""',
        '1, null, ""',
        '1, "correct", 7',
        '1, "correct"',
    ],
)
def test_what_is_no_verdict_is_none_even_with_the_right_number(pool, verdict):
    """A verifier that learns the number of its request may say anything in its name."""
    (given,) = pool.verify([check("5", "answers_for_its_worker", verdict=verdict)])
    assert (given.reward, given.reason, given.detail) == (None, "crash", "")


def test_what_a_verifier_changes_is_undone():
    """Its alarm would end the worker during a later item, and an ignored SIGXCPU would let one spin forever."""
    with VerifierPool(cpu_seconds=1) as pool:
        assert rewards(pool, "changes_its_surroundings") == [1] * 6 + [1, 0] * 3
        assert pool.verify([check("5", "spins_in_c")])[0].reason == "timeout"


def test_a_child_that_keeps_the_socket_of_a_dead_worker_costs_the_limit(hasty_pool):
    (verdict,) = hasty_pool.verify([check("5", "holds_the_line")])
    assert (verdict.reward, verdict.reason) == (None, "timeout")


def test_what_a_verifier_leaves_running_ends_with_the_pool():
    with VerifierPool() as pool:
        pool.verify([check("5", "leaves_a_daemon")])
        group = pool._workers[0].process.pid
        os.killpg(group, 0)
    end = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.01)


def test_an_item_whose_worker_is_killed_is_graded_again(pool, tmp_path):
    checks = [check(str(i), "kills_its_worker_once", flag=str(tmp_path / str(i))) for i in range(4, 7)]
    assert [verdict.reward for verdict in pool.verify(checks)] == [0, 1, 0]
    assert pool.verify([check("5", "kills_its_worker")])[0].reason == "crash"


# ------------------------------------------------------------------------------------------------ out of time


def test_an_answer_that_makes_a_verifier_time_out_which_grades_the_gold_is_worth_0(hasty_pool, tmp_path):
    slow = {"on": ["6"]}
    (verdict,) = hasty_pool.verify([check("6", "hangs_on", **slow)])
    assert (verdict.reward, verdict.reason) == (0, "timeout")
    down = tmp_path / "down"
    down.touch()
    (verdict,) = hasty_pool.verify([check("6", "hangs_on", down=str(down))])
    assert (verdict.reward, verdict.reason) == (None, "timeout"), "the gold times out as well"
    with VerifierPool(wall_seconds=0.4, timed_out="mask") as masking:
        (verdict,) = masking.verify([check("6", "hangs_on", **slow)])
    assert (verdict.reward, verdict.reason) == (None, "timeout")


def test_a_whole_response_is_blamed_as_an_answer_is(hasty_pool):
    slow, fast = (Check(text, "5", "trl:reward_functions:slow_without_a_box") for text in ("so", box("6")))
    assert [(v.reward, v.reason) for v in hasty_pool.verify([slow, fast])] == [(0, "timeout"), (0, "wrong")]


def test_a_failure_of_ours_is_the_answers_and_one_of_yours_is_not(pool):
    """A number that Python refuses to read stands for all that a verifier of the package may fail on."""
    huge = Check(box("7" * 5000), "5", "reasoning_gym", {"dataset": "chain_sum", "entry": {"answer": "5"}})
    broken = Check(box("7"), "5", "reasoning_gym", {"dataset": "nowhere", "entry": {}})
    given = pool.verify([huge, broken, check("7", "raises", gold="7")])
    assert [(verdict.reward, verdict.reason[:5]) for verdict in given[1:]] == [(None, "error"), (None, "error")]
    assert given[0].reward == 0


def test_a_verifier_that_hangs_on_most_items_ends_the_run(tmp_path):
    down = tmp_path / "down"
    with VerifierPool(workers=4, wall_seconds=0.2) as pool:
        fine = [check(str(i), "hangs_on", down=str(down)) for i in range(100)]
        assert len(pool.verify(fine)) == 100
        down.touch()
        given = []
        with pytest.raises(VerifierHangs, match=r"graders:hangs_on ran out of time on 17 of the last 32 answers"):
            given.extend(pool.stream(fine))
        assert all(verdict.reason == "timeout" for verdict in given) and len(given) < 17


def test_one_that_hangs_from_the_start_costs_few_items():
    with VerifierPool(workers=2, wall_seconds=0.1) as pool, pytest.raises(VerifierHangs, match="6 of the last 6"):
        pool.verify([check(str(i), "sleeps") for i in range(50)])


def test_one_that_may_hang_goes_on():
    with VerifierPool(workers=4, wall_seconds=0.1, max_timeout_rate=1) as pool:
        assert {verdict.reason for verdict in pool.verify([check(str(i), "sleeps") for i in range(10)])} == {"timeout"}


def test_pool_settings_are_those_of_a_run():
    from spark_rl.config import VerifyConfig

    settings = VerifyConfig(workers=3, cpu_seconds=2, wall_seconds=9, memory_gb=1, timed_out="mask")
    pool = VerifierPool.of(settings)
    assert (pool.num_workers, pool.limits, pool.timed_out) == (3, (2, 9, 1), "mask")
    assert vars(VerifierPool.of(VerifyConfig())) == vars(VerifierPool())
