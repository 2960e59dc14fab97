import itertools
import sys
import time
from pathlib import Path

import pytest

from spark_rl.verify import Check, Verdict, VerifierPool, box, gold_problem
from spark_rl.verify.pool import LOOK_AHEAD

LIMIT = "is no number of at most 1e+30"


@pytest.fixture(autouse=True)
def graders_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # workers see the caller's sys.path


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(workers=2, cpu_seconds=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def hasty_pool():
    """For what sleeps."""
    with VerifierPool(workers=2, cpu_seconds=1, wall_seconds=1) as pool:
        yield pool


def check(answer, gold="5", verifier="graders:right", **metadata):
    return Check(box(answer), gold, verifier, metadata)


def test_verdicts_of_all_kinds_in_order(pool):
    checks = [
        check("1/2", "0.5", "math"),
        check("Yes", "No", "choice"),
        Check("no tag", "5"),
        check("5", "???", "math"),
        check("1,000", "1000", "numeric"),
        check("5", "5", "graders:half"),
    ]
    assert pool.verify(checks) == [
        Verdict(1.0, "1/2", "correct"),
        Verdict(0.0, "Yes", "wrong"),
        Verdict(0.0, None, "unparsed"),
        Verdict(None, "5", "bad_gold"),
        Verdict(1.0, "1,000", "correct"),
        Verdict(0.5, "5", "partial"),
    ]


@pytest.mark.parametrize(
    ("verifier", "gold", "reason", "detail"),
    [
        ("spins_in_c", "5", "timeout", ""),
        ("huge", "5", "error: ValueError", "ValueError: verifier graders:huge returned 1e+308, which " + LIMIT),
        ("sleeps", "5", "timeout", ""),
        ("leaves", "0", "crash", ""),
        ("leaves", "3", "crash", ""),
        ("quits", "5", "crash", ""),
        ("segfaults", "5", "crash", ""),
        ("raises", "5", "error: KeyError", "KeyError: '5'"),
        ("fills_memory", "5", "error: MemoryError", "MemoryError"),
        (
            "not_a_number",
            "5",
            "error: ValueError",
            "ValueError: verifier graders:not_a_number returned nan, which " + LIMIT,
        ),
        ("rambles", "5", "error: ValueError", "ValueError: " + "a" * 188),
    ],
)
def test_a_failure_costs_its_item_only(hasty_pool, verifier, gold, reason, detail):
    bad = check("5", gold, f"graders:{verifier}")
    good = [check(str(i), "5") for i in range(10)]
    verdicts = hasty_pool.verify([*good[:5], bad, *good[5:]])
    assert verdicts.pop(5) == Verdict(None, "5", reason, detail)
    assert [verdict.reward for verdict in verdicts] == [float(i == 5) for i in range(10)]


def test_mixed_faults_leave_the_other_verdicts_right(hasty_pool):
    before = hasty_pool.counts.copy()
    answers = [str(i) for i in range(40)]
    for position, fault in ((3, "spin"), (10, "sleep"), (11, "raise"), (30, "spin")):
        answers[position] = fault
    verdicts = hasty_pool.verify([check(answer, verifier="graders:by_mood") for answer in answers])
    assert [verdict.extracted for verdict in verdicts] == answers
    assert hasty_pool.counts - before == {"correct": 1, "wrong": 35, "timeout": 3, "error: KeyError": 1}


def test_a_hostile_power_cannot_hang_math(pool):
    verdicts = pool.verify([check("9^{9^{9^{9}}}", "5", "math"), check("5", "5", "math")])
    assert verdicts[0].reward in (0.0, None)
    assert verdicts[1].reward == 1


def test_a_slow_import_is_not_charged_to_the_item(pool):
    assert pool.verify([check("5", verifier="slow_to_import:right")])[0].reward == 1


def test_identical_checks_are_computed_once(hasty_pool):
    seconds = []
    for count in (1, 20):
        start = time.monotonic()
        verdicts = hasty_pool.verify([check("5", verifier="graders:sleeps")] * count)
        assert [verdict.reason for verdict in verdicts] == ["timeout"] * count
        seconds.append(time.monotonic() - start)
    assert seconds[1] < 3 * seconds[0], "one wall limit, not ten"


def test_metadata_tells_checks_apart(pool):
    assigned = pool.verify([check("5", verifier="graders:as_told", reward=i / 8) for i in range(8)])
    assert [verdict.reward for verdict in assigned] == [i / 8 for i in range(8)]
    both = pool.verify([check("1", "2", "numeric", tolerance=1), check("1", "2", "numeric")])
    assert [verdict.reward for verdict in both] == [1, 0]


def test_workers_import_no_torch_and_print_nothing(pool, capfd):
    import_verdict, print_verdict = pool.verify(
        [check("5", verifier=f"graders:{f}") for f in ("imports_torch", "prints")]
    )
    assert import_verdict.reward == 0
    assert print_verdict.reward == 1
    assert capfd.readouterr().out == ""


def test_cheap_verifiers_start_no_worker():
    pool = VerifierPool()
    checks = (
        check(str(i % 7), "5", verifier) for i, verifier in zip(range(20_000), itertools.cycle(["choice", "numeric"]))
    )
    assert sum(verdict.reward for verdict in pool.stream(checks)) == sum(i % 7 == 5 for i in range(20_000))
    assert pool._workers == []
    assert pool.counts.total() == 20_000


def test_a_stream_of_20k_rows_reads_a_bounded_number_ahead(pool):
    read = 0

    def rows():
        nonlocal read
        for i in range(20_000):
            read += 1
            yield check(str(i % 5000), str(i % 5000 // 2 * 2))

    for given, verdict in enumerate(pool.stream(rows())):
        assert verdict == Verdict(float(given % 2 == 0), str(given % 5000), verdict.reason)
        assert read - given <= LOOK_AHEAD + 1
    assert given == 19_999


def test_an_abandoned_stream_leaves_the_pool_usable(pool):
    assert next(pool.stream(check(str(i)) for i in range(100))).reward == 0
    assert pool.verify([check("5")])[0].reward == 1


def test_two_streams_can_be_read_in_turn(pool):
    streams = [pool.stream([check(str(i), gold) for i in range(20)]) for gold in ("3", "8")]
    pairs = list(zip(*streams, strict=True))
    assert [[i for i, pair in enumerate(pairs) if pair[n].reward == 1] for n in (0, 1)] == [[3], [8]]


def test_results_wait_for_a_slow_reader():
    with VerifierPool(wall_seconds=1) as pool:
        stream = pool.stream(check(str(i), verifier="graders:right") for i in range(5))
        next(stream)
        time.sleep(1.5)  # the next result lies in the pipe beyond its deadline
        assert [verdict.reason for verdict in stream] == ["wrong"] * 4


def test_close_ends_the_processes_and_the_pool_can_go_on():
    pool = VerifierPool()
    (first,) = pool.verify([check("5", verifier="graders:process_id")])
    process = pool._workers[0].process
    assert process.pid == first.reward
    pool.close()
    assert process.returncode is not None
    (second,) = pool.verify([check("5", verifier="graders:process_id")])
    assert second.reward != first.reward
    pool.close()


def test_a_worker_killed_while_idle_is_replaced(pool):
    pool.verify([check("5")])
    for worker in pool._workers:
        worker.process.kill()
        worker.process.wait()
    assert pool.verify([check("5"), check("6")]) == [Verdict(1.0, "5", "correct"), Verdict(0.0, "6", "wrong")]


def test_a_pool_closed_under_a_stream_loses_the_running_item_only():
    with VerifierPool() as pool:
        stream = pool.stream(check(str(i), verifier="graders:by_mood") for i in range(3))
        reasons = [next(stream).reason]
        pool.close()
        reasons += [verdict.reason for verdict in stream]
    assert reasons[0] == "wrong"
    assert reasons[2] == "wrong"


def test_unknown_verifier_and_bad_limits_are_refused(pool):
    with pytest.raises(ValueError, match="did you mean 'math'"):
        pool.verify([Check("no tag", "5", "maths")])
    with pytest.raises(ValueError, match="at least 1 worker"):
        VerifierPool(workers=0)


def test_a_worker_that_cannot_start_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with VerifierPool() as pool, pytest.raises(RuntimeError, match="could not start"):
        pool.verify([check("5")])


def graded(pool, function, text, gold="5", prompt=(), **metadata):
    (verdict,) = pool.verify([Check(text, gold, f"trl:reward_functions:{function}", metadata, prompt)])
    return verdict


def test_a_reward_function_is_called_as_trl_calls_it(pool):
    text = "<think>hm</think> no box"
    prompt = ({"role": "user", "content": "?"},)
    (verdict,) = pool.verify([Check(text, "5", "trl:reward_functions:called_as_by_trl", {"difficulty": 3}, prompt)])
    assert verdict == Verdict(1.0, None, "correct")
    assert graded(pool, "has_prompt", text).reward == 0  # none given: an empty conversation
    assert graded(pool, "has_prompt", text, prompt=[{"role": "user", "content": "?"}]).reward == 1


@pytest.mark.parametrize(
    ("function", "text", "reward"),
    [
        ("think_format", "<think>hm</think>It is 5.", 1),
        ("think_format", box("5"), 0),
        ("accuracy", box("5"), 1),
        ("accuracy", box("6"), 0),
        ("accuracy", "5", 0),
        ("few_parameters", "five", 0.25),
        ("later", box("5"), 0.5),
        ("an_object", box("5"), 0.75),
    ],
)
def test_reward_functions(pool, function, text, reward):
    assert graded(pool, function, text).reward == reward


@pytest.mark.parametrize(
    ("function", "reason", "detail"),
    [
        ("gives_none", "no_reward", ""),
        ("gives_a_number", "error: ValueError", "must return a list of one reward"),
        ("gives_two", "error: ValueError", "must return a list of one reward"),
        ("wants_token_ids", "error: TypeError", "completion_ids"),
        ("missing", "error: AttributeError", "'reward_functions' has no attribute 'missing'"),
        ("not_callable", "error: TypeError", "not a callable"),
    ],
)
def test_reward_functions_that_give_nothing(pool, function, reason, detail):
    verdict = graded(pool, function, f"so {box('7')}")
    assert (verdict.reward, verdict.extracted, verdict.reason) == (None, "7", reason)
    assert detail in verdict.detail


def test_a_column_of_the_data_wins_over_the_gold_under_that_name(pool):
    assert graded(pool, "accuracy", box("7"), solution="7").reward == 1


def test_a_module_in_the_current_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "right_here.py").write_text("def one(answer, gold, metadata):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as under the console script
    with VerifierPool() as pool:
        assert pool.verify([check("5", verifier="right_here:one")])[0].reward == 1


@pytest.mark.parametrize(
    ("verifier", "problem"),
    [
        ("trl:reward_functions:think_format", None),
        ("trl:reward_functions:accuracy", None),
        ("trl:reward_functions:gives_none", None),
        ("trl:reward_functions:missing", "failed on the gold (AttributeError: module 'reward_functions' has no"),
        ("trl:nowhere:at_all", "failed on the gold (ModuleNotFoundError: No module named 'nowhere')"),
        ("nowhere:at_all", "failed on the gold (ModuleNotFoundError: No module named 'nowhere')"),
        ("trl:graders:raises", "failed on the gold (TypeError: "),
        ("graders:raises", "failed on the gold (KeyError: '5')"),
        ("graders:quits", "failed on the gold (crash)"),
        (
            "graders:half",
            "gives the gold itself 0.5, and right is 1 or more; correct the verifier, the gold or right_at.",
        ),
    ],
)
def test_a_gold_check_says_what_is_wrong_with_a_verifier(pool, verifier, problem):
    (verdict,) = pool.verify([check("5", verifier=verifier)])
    said = gold_problem(verdict, verifier)
    assert said is None if problem is None else problem in said and verifier in said
