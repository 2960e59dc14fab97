from dataclasses import replace

import pytest
from factories import make_example, make_group, make_rollout

from spark_rl.data import question_task
from spark_rl.rollout.scoring import RuleScorer
from spark_rl.types import Group, Role
from spark_rl.verify import VerifierPool, box


@pytest.fixture(scope="module")
def pool():
    with VerifierPool() as verifiers:
        yield verifiers


def ungraded(example, *texts: str) -> Group:
    return make_group(question_task(example), texts, [None] * len(texts))


def grades(group: Group) -> list[tuple]:
    return [(r.reward, r.extracted, r.reason) for r in group.rollouts]


def test_every_rollout_is_graded_against_its_own_task(pool):
    numeric = ungraded(make_example(4), f"So {box('5')}.", box("6"), "I do not know.")
    choice = ungraded(make_example(7, answer="B", verifier="choice"), box("(b)"), box("8"))
    RuleScorer(pool).score([numeric, choice])
    assert grades(numeric) == [(1.0, "5", "correct"), (0.0, "6", "wrong"), (0.0, None, "unparsed")]
    assert grades(choice) == [(1.0, "(b)", "correct"), (0.0, "8", "wrong")]


def test_the_worker_process_and_the_inline_verifiers_keep_the_order(pool):
    groups = [
        ungraded(make_example(1, answer=r"\frac{1}{2}", verifier="math"), box("0.5"), box("0.6"), box("1/2")),
        ungraded(make_example(2), box("3"), box("4")),
        ungraded(make_example(3, answer="x+1", verifier="math"), box("1+x"), "nothing"),
    ]
    RuleScorer(pool).score(groups)
    assert [group.rewards for group in groups] == [[1.0, 0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]


def test_verifiers_see_the_metadata_of_the_example(pool):
    loose = ungraded(make_example(4, metadata={"tolerance": 0.5}), box("5.4"), box("5.6"))
    RuleScorer(pool).score([loose])
    assert loose.rewards == [1.0, 0.0]


def test_the_label_of_the_task_counts_not_the_answer_of_its_example(pool):
    group = ungraded(make_example(4), box("No"), box("5"))
    group.task = replace(group.task, label="No", verifier="choice")
    RuleScorer(pool).score([group])
    assert group.rewards == [1.0, 0.0]


def test_an_unusable_gold_punishes_nobody(pool):
    group = ungraded(make_example(4, answer="about five"), box("5"), "nothing")
    RuleScorer(pool).score([group])
    assert grades(group) == [(None, "5", "bad_gold"), (0.0, None, "unparsed")]


@pytest.mark.parametrize(
    ("truncated", "cut_right", "cut_empty"),
    [
        ("grade", (1.0, "5", "correct"), (0.0, None, "unparsed")),
        ("zero", (0.0, "5", "truncated"), (0.0, None, "truncated")),
        ("mask", (None, "5", "truncated"), (None, None, "truncated")),
    ],
)
def test_rollouts_cut_at_their_limit(pool, truncated, cut_right, cut_empty):
    group = ungraded(make_example(4), box("5"), box("6"))
    group.rollouts += [
        make_rollout(f"{box('5')} and", None, "cut", finish_reason="length"),
        make_rollout("and so on", None, "endless", finish_reason="length"),
    ]
    RuleScorer(pool, truncated).score([group])
    assert grades(group) == [(1.0, "5", "correct"), (0.0, "6", "wrong"), cut_right, cut_empty]


@pytest.mark.parametrize(("timed_out", "reward"), [("zero", 0.0), ("mask", None)])
def test_answers_that_make_the_verifier_time_out(tmp_path, monkeypatch, timed_out, reward):
    grader = "import time\ndef grade(answer, gold, metadata):\n    return time.sleep(9) if answer == 'x' else 1\n"
    (tmp_path / "slow_on_x.py").write_text(grader)
    monkeypatch.syspath_prepend(str(tmp_path))
    group = ungraded(make_example(4, verifier="slow_on_x:grade"), box("5"), box("x"))
    group.rollouts.append(make_rollout(f"{box('x')} and", None, "cut", finish_reason="length"))
    with VerifierPool(wall_seconds=1, timed_out=timed_out) as pool:
        RuleScorer(pool, "grade").score([group])
    assert grades(group) == [(1.0, "5", "correct"), (reward, "x", "timeout"), (reward, "x", "timeout")]


def test_no_groups_need_no_grading(pool):
    before = pool.counts.total()
    RuleScorer(pool).score([])
    assert pool.counts.total() == before


SCALE = """
def stars(answer, gold, metadata):
    return {"good": 5, "fair": 2}.get(answer, -1)
"""


def test_a_scale_of_its_own_says_what_is_right_and_what_no_answer_gets(tmp_path, monkeypatch):
    """On a scale with negative rewards no answer must not be better than a wrong one, and verdicts keep theirs."""
    (tmp_path / "star_graders.py").write_text(SCALE)
    monkeypatch.syspath_prepend(tmp_path)
    texts = [box("good"), box("fair"), box("bad"), "nothing"]
    group = ungraded(make_example(4, answer="good", verifier="star_graders:stars"), *texts)
    group.rollouts.append(make_rollout(f"{box('good')} and", None, "cut", finish_reason="length"))
    judge = ungraded(make_example(7), box("Yes"), box("No"), "nothing")
    judge.task = replace(judge.task, role=Role.POINTWISE, label="Yes", verifier="choice")
    with VerifierPool() as own:
        RuleScorer(own, "zero", right_at=5, wrong_at=-1).score([group, judge])
    assert grades(group) == [
        (5.0, "good", "correct"),
        (2.0, "fair", "partial"),
        (-1.0, "bad", "wrong"),
        (-1.0, None, "unparsed"),
        (-1.0, "good", "truncated"),
    ]
    assert grades(judge) == [(1.0, "Yes", "correct"), (0.0, "No", "wrong"), (0.0, None, "unparsed")]
