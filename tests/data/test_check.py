from collections.abc import Sequence

import pytest
from data_files import loaded, opened, sums, tasks, write
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.config import DataConfig, SourceConfig
from spark_rl.data.check import Checker, question_key, untracked
from spark_rl.prompts import Prompts
from spark_rl.verify import VerifierHangs, VerifierPool


@pytest.fixture(scope="module")
def verifiers():
    with VerifierPool() as pool:
        yield pool


def run(verifiers, sources: Sequence, held_out=(), track=untracked, **settings) -> tuple[list, list[str]]:
    right_at = settings.pop("right_at", 1.0)
    checker = Checker(sources, DataConfig(**settings), "training", held_out, track, right_at=right_at)
    checker.run(verifiers)
    return checker.report(), checker.messages()


def refusal(verifiers, *paths, **settings) -> str:
    with pytest.raises(ValueError) as caught:
        run(verifiers, opened(*paths, **settings), **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ bad rows

GOOD = {"prompt": "What is 1+1?", "answer": "2"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "not valid JSON"),
        ({"answer": "2"}, "has no 'prompt'"),
        ({"prompt": "What?", "answer": "two", "verifier": "numeric"}, "The numeric verifier cannot read the gold"),
        ({"prompt": "What?", "answer": "}{"}, "its braces do not balance"),
        ({"prompt": "What?", "answer": "2", "verifier": "numeric", "metadata": {"tolerance": "x"}}, "failed on the"),
        ({"prompt": "What?", "answer": "2", "metadata": {"note": r"\udc00"}}, ""),
        (r'{"prompt": "What?", "answer": "2", "metadata": {"note": "\udc00"}}', "surrogate pair"),
        ({"prompt": "What?", "answer": "2", "verifier": "reasoning_gym"}, "failed on the gold"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_row_is_named_with_file_and_row_and_can_be_skipped(verifiers, tmp_path, row, words):
    path = write(tmp_path, GOOD, "", row, GOOD)
    if not words:
        assert run(verifiers, opened(path))[1] == []
        return
    said = refusal(verifiers, path)
    assert said.startswith(f"{path}, row 3: ") and words in said
    assert said.endswith(" (or leave such rows out: data.bad_rows=skip)")
    (source,) = sources = opened(path)
    (report,), (message,) = run(verifiers, sources, bad_rows="skip")
    kind = "bad_row" if words in ("not valid JSON", "has no 'prompt'", "surrogate pair") else "bad_gold"
    assert (report["rows"], report["skipped"]) == (3, {kind: 1})
    assert source.left_out == {1: kind}
    said = f"1 of the 3 rows of {path} are left out of training ({kind.replace('_', ' ')}); the first one is"
    assert message.startswith(f"{said} {path}, row 3: ")
    assert words in message


def test_all_reasons_are_counted_and_the_first_row_of_each_is_named(verifiers, tmp_path):
    rows = [*sums(5), "{", "", "[]", {**GOOD, "id": "x"}, {**GOOD, "id": "x"}, {"prompt": "?", "answer": "}{"}]
    path = write(tmp_path, *rows)
    sources = opened(path)
    held_out = {question_key(sources[0].read(0))}
    (report,), messages = run(verifiers, sources, held_out, bad_rows="skip")
    assert report["skipped"] == {"bad_row": 2, "held_out": 1, "duplicate_id": 1, "bad_gold": 1}
    assert [message.partition(": ")[0] for message in messages] == [
        f"{count} of the 10 rows of {path} are left out of training ({kind}); the first one is {path}, row {row}"
        for count, kind, row in ((1, "held out", 1), (2, "bad row", 6), (1, "duplicate id", 10), (1, "bad gold", 11))
    ]


def test_golds_are_not_graded_where_the_config_says_so(verifiers, tmp_path):
    path = write(tmp_path, {"prompt": "What?", "answer": "two", "verifier": "numeric"})
    assert run(verifiers, opened(path), check_golds=False)[0][0]["skipped"] == {}


def test_a_source_without_a_usable_row_is_refused(verifiers, tmp_path):
    good, bad = write(tmp_path, *sums(2)), write(tmp_path, "{", "[", name="bad.jsonl")
    said = refusal(verifiers, good, bad, bad_rows="skip")
    assert said.startswith(f"{bad}: no row is usable; the first one: {bad}, row 1: not valid JSON")
    sources = opened(good)
    with pytest.raises(ValueError, match=r"no row is usable; the first one: .* the question is held out"):
        run(verifiers, sources, {question_key(sources[0].read(i)) for i in range(2)})


def test_a_place_is_looked_for_only_if_it_is_shown(verifiers, tmp_path):
    (source,) = opened(write(tmp_path, *sums(1), *["{"] * 9))
    places, where = [], source.where
    source.where = lambda index: places.append(index) or where(index)
    run(verifiers, [source], bad_rows="skip")
    assert len(source.left_out) == 9 and places == [1]


GRADERS = """
def half(answer, gold, metadata):
    return 0.5

def five(answer, gold, metadata):
    return 5 if answer == gold else -1

def asked(completions, prompts, **columns):
    assert prompts[0][-1]["content"].startswith("What is 1+1?")
    return [1.0]
"""


@pytest.fixture
def graders(tmp_path, monkeypatch):
    (tmp_path / "my_graders.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(tmp_path)
    with VerifierPool() as pool:
        yield pool


def test_a_function_with_partial_credit_is_told_how_to_go_on(graders, tmp_path):
    path = write(tmp_path, GOOD)
    said = refusal(graders, path, verifier="my_graders:half")
    assert said == (
        f"{path}, row 1: The my_graders:half verifier gives the gold itself 0.5, and right is 1 or more; correct "
        "the verifier, the gold or right_at, or grade no golds before a run: data.check_golds=false (or leave such "
        "rows out: data.bad_rows=skip)"
    )
    run(graders, opened(path, verifier="my_graders:half"), check_golds=False)
    run(graders, opened(path, verifier="my_graders:half"), right_at=0.5)
    wrong = write(tmp_path, {**GOOD, "answer": "}{"})
    assert "check_golds" not in refusal(graders, wrong, verifier="my_graders:half"), "it would not help"


def test_a_gold_is_right_on_the_scale_of_its_verifier(graders, tmp_path):
    """Whatever answers get, verdicts are right at 1; and a rule that gives at most 1 cannot reach 5."""
    verdict = {"prompt": "Is 1+1 2?", "answer": "Yes", "role": "pointwise"}
    path = write(tmp_path, GOOD, verdict)
    assert run(graders, opened(path, verifier="my_graders:five"), right_at=5)[0][0]["skipped"] == {}
    with pytest.raises(ValueError, match="gives the gold itself 1, and right is 5 or more"):
        run(graders, opened(path), right_at=5)


def test_a_gold_is_graded_with_its_prompt(graders, tmp_path):
    run(graders, opened(write(tmp_path, GOOD), verifier="trl:my_graders:asked"))


# ------------------------------------------------------------------------------------------------ held out


def keys(verifiers, folder, *rows) -> set[int]:
    (source,) = opened(write(folder, *rows))
    return {question_key(source.read(index)) for index in range(source.num_rows)}


def test_a_question_is_recognised_however_it_is_spelled(verifiers, tmp_path):
    texts = ["What is 1+1?", " What is 1+1? ", "what IS\n\n1+1?", Prompts().question("What is 1+1?")[0]["content"]]
    rows = [{"prompt": text, "answer": 2} for text in texts]
    rows += [{"prompt": [{"role": "user", "content": text}], "answer": 2} for text in texts]
    rows += [{"prompt": "Again: what is 1+1?", "question": "What is 1+1?", "answer": 2}]
    assert len(keys(verifiers, tmp_path, *rows)) == 1
    assert len(keys(verifiers, tmp_path, *rows, {"prompt": "What is 1 + 1?", "answer": 2})) == 2
    assert len(keys(verifiers, tmp_path, *sums(50))) == 50


# ------------------------------------------------------------------------------------------------ duplicates


def test_two_rows_with_one_id_are_both_named(verifiers, tmp_path):
    first = write(tmp_path, *sums(1), {"prompt": "two", "answer": 2, "id": "x"}, name="a.jsonl")
    second = write(tmp_path, {"prompt": "three", "answer": 3, "id": "x", "source": "elsewhere"}, name="b.jsonl")
    said = refusal(verifiers, first, second)
    assert said.startswith(f"{second}, row 1: its id 'x' is also that of {first}, row 2; give every row an 'id' of its")
    (a, b), _ = run(verifiers, opened(first, write(tmp_path, *sums(3), {**GOOD, "id": "x"})), bad_rows="skip")
    assert (a["skipped"], b["skipped"]) == ({}, {"duplicate_id": 1})


@pytest.mark.parametrize("ids", [(1, "1"), ("set-1", None), ("a", "a")])
def test_ids_are_compared_as_text(verifiers, tmp_path, ids):
    rows = [{"prompt": f"{i}", "answer": i, "id": id} for i, id in enumerate(ids[::-1])]
    assert f"is also that of {tmp_path}/set.jsonl, row 1" in refusal(verifiers, write(tmp_path, *rows))


def test_a_file_or_an_embedded_set_given_twice(verifiers, tmp_path):
    said = refusal(verifiers, "embedded:retention", "embedded:retention")
    assert said.startswith("embedded:retention: its id ") and "is also that of embedded:retention" in said
    path = write(tmp_path, {**GOOD, "id": "x"})
    assert f"{path}, row 1: its id 'x' is also that of {path}, row 1" in refusal(verifiers, path, path)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(0, 20))
def test_the_first_of_equal_ids_stays(verifiers, tmp_path_factory, ids, cut):
    folder = tmp_path_factory.getbasetemp()
    rows = [{"prompt": f"{i}", "answer": i, "id": id} for i, id in enumerate(ids)]
    paths = [write(folder, *part, name=f"{n}.jsonl") for n, part in enumerate((rows[:cut], rows[cut:])) if part]
    sources = opened(*paths)
    try:
        run(verifiers, sources, bad_rows="skip", check_golds=False)
    except ValueError as error:
        assert "no row is usable" in str(error)
    kept = [s.read(i).example.id for s in sources for i in range(s.num_rows) if i not in s.left_out]
    assert kept == [str(id) for id in dict.fromkeys(ids)]


def test_many_bad_rows_are_placed_in_one_pass(verifiers, tmp_path):
    path = write(tmp_path, *sums(1), *["{"] * 20_000)
    (report,), (message,) = run(verifiers, opened(path), bad_rows="skip")
    assert report["skipped"] == {"bad_row": 20_000} and f"{path}, row 2: " in message


# ------------------------------------------------------------------------------------------------ generated rows


def test_generated_golds_are_sampled(verifiers):
    seen = []

    def track(items, name, total):
        seen.append((name, total))
        return items

    path = "reasoning_gym:leg_counting"
    (report,), messages = run(verifiers, opened(SourceConfig(path=path, size=500)), track=track)
    assert (report["rows"], report["skipped"], messages) == (500, {}, [])
    assert seen == [(f"reading {path}", 0), (f"checking the golds of {path}", 64)]


def test_generated_questions_without_a_gold_pass(verifiers):
    assert run(verifiers, opened(SourceConfig(path="reasoning_gym:graph_color", size=3)))[0][0]["skipped"] == {}


# ------------------------------------------------------------------------------------------------ fingerprints


def fingerprint(*sources: str | SourceConfig) -> str:
    (report,) = loaded(*sources, check_golds=False).report["train"]
    return report["fingerprint"]


def test_the_same_rows_have_the_same_fingerprint_whatever_their_file(tmp_path):
    rows = [{**row, "id": str(i)} for i, row in enumerate(sums(9))]
    first = fingerprint(write(tmp_path, *rows))
    assert first == fingerprint(write(tmp_path, *rows, name="copy/set.jsonl"))
    assert first == fingerprint(write(tmp_path, "", *({**row, "extra": 1} for row in rows)))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [{**rows[0], "answer": 7}, *rows[1:]],
        lambda rows: [{**rows[0], "prompt": "What is 0 + 1?"}, *rows[1:]],
        lambda rows: [{**rows[0], "id": "other"}, *rows[1:]],
        lambda rows: [{**rows[0], "verifier": "numeric"}, *rows[1:]],
        lambda rows: [{**rows[0], "metadata": {"tolerance": 1}}, *rows[1:]],
        lambda rows: [{**rows[0], "source": "elsewhere"}, *rows[1:]],
        lambda rows: [{**rows[0], "role": "reflection"}, *rows[1:]],
        lambda rows: [{**rows[0], "system": "Be brief."}, *rows[1:]],
        lambda rows: [{**rows[0], "question": "One more than 0?"}, *rows[1:]],
        lambda rows: rows[::-1],
        lambda rows: rows[:-1],
        lambda rows: [*rows, {"prompt": "more", "answer": 1}],
    ],
    ids=[
        "gold",
        "prompt",
        "id",
        "verifier",
        "metadata",
        "source",
        "role",
        "messages",
        "question",
        "order",
        "fewer",
        "more",
    ],
)
def test_changed_rows_have_another_fingerprint(tmp_path, change):
    rows = [{**row, "id": str(i)} for i, row in enumerate(sums(4))]
    assert fingerprint(write(tmp_path, *rows)) != fingerprint(write(tmp_path, *change(rows), name="other.jsonl"))


def test_other_rows_that_are_left_out_are_another_fingerprint(verifiers, tmp_path):
    path = write(tmp_path, *sums(3))
    key = [question_key(task) for task in tasks(opened(path))]
    made = [
        run(verifiers, opened(path), held_out)[0][0]["fingerprint"] for held_out in ((), key[:1], key[1:2], key[:2])
    ]
    assert len(set(made)) == 4
    assert made[1] == run(verifiers, opened(path), key[:1])[0][0]["fingerprint"]


def test_a_gold_that_is_left_out_is_another_fingerprint(verifiers, tmp_path):
    """The gold of a user's function may be refused now and not before, although the file is the same."""
    path = write(tmp_path, *sums(3), {"prompt": "What?", "answer": "two", "verifier": "numeric"})
    graded, not_graded = (
        run(verifiers, opened(path), bad_rows="skip", check_golds=check)[0][0] for check in (True, False)
    )
    assert graded["skipped"] == {"bad_gold": 1} and graded["fingerprint"] != not_graded["fingerprint"]


def test_generators_are_told_apart_by_what_makes_them():
    values = [{}, {"size": 7}, {"options": {"seed": 1}}, {"options": {"max_animals": 5}}]
    path = "reasoning_gym:leg_counting"
    made = [fingerprint(SourceConfig(path=path, **value)) for value in values]
    assert len({*made, fingerprint("reasoning_gym:basic_arithmetic")}) == 5
    assert made[0] == fingerprint(path)


def test_a_function_that_hangs_on_every_gold_is_not_waited_for_row_by_row(tmp_path, monkeypatch):
    (tmp_path / "sleepy.py").write_text("import time\ndef grade(answer, gold, metadata):\n    time.sleep(9)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path, *sums(40))
    with VerifierPool(wall_seconds=0.1) as pool, pytest.raises(VerifierHangs, match="6 of the last 6"):
        run(pool, opened(path, verifier="sleepy:grade"), bad_rows="skip")
