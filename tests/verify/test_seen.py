"""In which formats replies state their answers, and which of them is worth asking for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from spark_rl.verify import BOXED, Check, VerifierPool, better_format, format_of, formats_seen, verdicts_seen

GOLDS = [str(12 + 7 * i) for i in range(20)]


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool() as pool:
        yield pool


def checks(texts: Sequence[str], verifier: str = "numeric") -> list[Check]:
    return [Check(text, gold, verifier) for text, gold in zip(texts, GOLDS, strict=False)]


@pytest.mark.parametrize("name", ["tags", "hash", "phrase", "json:answer"])
def test_a_format_is_found_by_the_golds_that_it_holds(name: str, pool: VerifierPool) -> None:
    right = [f"I add.\n{format_of(name).write(gold)}" for gold in GOLDS[:8]]
    wrong = [f"I add.\n{format_of(name).write('1')}" for _ in GOLDS[8:]]
    seen = formats_seen(checks([*right, *wrong]), pool, BOXED)
    assert seen[0].format is BOXED and (seen[0].answers, seen[0].golds) == (0, 0)
    better = better_format(seen)
    assert better is not None
    assert (better.format.name, better.answers, better.golds, better.replies) == (name, 20, 8, 20)
    assert better.advice("--x") == f"40% of the replies hold the gold as `{format_of(name).form}`: set --x={name}"


def test_a_number_at_the_end_is_evidence_only_beyond_chance(pool: VerifierPool) -> None:
    better = better_format(formats_seen(checks([f"so we get {gold}" for gold in GOLDS]), pool, BOXED))
    assert better is not None and better.format.name == "last_number" and better.by_chance == 0
    assert "100% of the replies end with the gold as their last number (0% would by chance)" in better.advice("--x")
    alike = [Check("so we get 1", "1" if i % 2 else "2", "numeric") for i in range(20)]  # half are right by luck
    assert better_format(formats_seen(alike, pool, BOXED)) is None
    one = [Check("so we get 3", "3", "numeric")] * 20  # what else could be right is not known
    assert better_format(formats_seen(one, pool, BOXED)) is None


def test_where_a_format_says_it_the_last_number_is_not_asked_for(pool: VerifierPool) -> None:
    better = better_format(formats_seen(checks([f"#### {gold}" for gold in GOLDS]), pool, BOXED))
    assert better is not None and better.format.name == "hash"


def test_without_a_gold_the_answers_count(pool: VerifierPool) -> None:
    better = better_format(formats_seen(checks(["The answer is 1."] * 20), pool, BOXED))
    assert better is not None and better.holds == "hold an answer as `The answer is ...`"
    assert better_format(formats_seen(checks(["I cannot say."] * 20), pool, BOXED)) is None


def test_what_reads_as_well_by_its_own_format_needs_no_other(pool: VerifierPool) -> None:
    both = [f"\\boxed{{{gold}}}\n#### {gold}" for gold in GOLDS]
    assert better_format(formats_seen(checks(both), pool, BOXED)) is None
    own = format_of("json:result")
    seen = formats_seen(checks([own.write(gold) for gold in GOLDS]), pool, own)
    assert seen[0].format is own and seen[0].golds == 20 and better_format(seen) is None


def test_the_two_names_of_one_format_are_one_format(pool: VerifierPool) -> None:
    seen = formats_seen(checks(['{"answer": "12"}']), pool, format_of("json"))
    names = [each.format.name for each in seen]
    assert format_of("json") is format_of("json:answer") and names[0] == "json:answer" and names.count(names[0]) == 1


def test_replies_that_are_read_whole_need_no_format(pool: VerifierPool) -> None:
    assert formats_seen(checks(["#### 12"], "trl:json:dumps"), pool, BOXED) == []
    assert better_format([]) is None


def test_verdicts_are_read_by_their_own_words() -> None:
    replies = [("<answer>Yes</answer>", ("Yes", "No"))] * 6 + [("<answer>Nein</answer>", ("Ja", "Nein"))] * 4
    better = better_format(verdicts_seen([*replies, ("<answer>perhaps</answer>", ("Yes", "No"))], BOXED))
    assert better is not None and (better.format.name, better.answers, better.golds) == ("tags", 11, 10)
    assert verdicts_seen([], BOXED) == []
