"""From rows to results: what a figure counts, on rows small enough to count by hand."""

from __future__ import annotations

import json

import pytest

from spark_rl.evaluate.report import markdown
from spark_rl.evaluate.summary import summarise


def graded(reward, reason=None):
    return {"reward": reward, "reason": reason or {None: None, 1: "correct", 0: "wrong"}[reward]}


def step(kind, answer=None, reward=None, verdict=None, reason=None):
    judged = {"verdict": verdict, "probability": None}
    return {"kind": kind, "text": "", "answer": answer, **graded(reward, reason), **judged}


def answered(
    id, reward, strategy="greedy", model="model", steps=(), prompt=10, generated=5, seed=0, group=None, reason=None
):
    return {
        **{"model": model, "part": "answer", "strategy": strategy, "seed": seed, "id": id, "source": "sums"},
        **{"group": group or id, **graded(reward, reason), "steps": list(steps)},
        **{"prompt_tokens": prompt, "generated_tokens": generated},
    }


def reflected(id, first, verdict, last=None, model="model"):
    """A first answer, what the judge said, and the revision if there was one."""
    steps = [step("answer", "a", first), step("judge", verdict=verdict)]
    if last is not None:
        steps.append(step("revise", "b", last))
    return answered(id, first if last is None else last, "reflect", model, steps)


def measured(rows, label="model"):
    return summarise(rows)["models_measured"][label]


def test_reflection_is_counted_by_what_became_of_the_first_answer():
    rows = [
        reflected("1", 1, "right"),
        reflected("2", 1, "right"),
        reflected("3", 0, "right"),
        reflected("4", 0, "wrong", 1),
        reflected("5", 0, "wrong", 0),
        reflected("6", 1, "wrong", 0),
        reflected("7", 1, None),
        reflected("8", 1, "wrong", 1),
    ]
    reflect = measured(rows)["strategies"]["reflect"]
    assert reflect["flips"] == {"wrong_to_right": 1, "right_to_wrong": 1, "revised": 4, "n": 8}
    assert reflect["judge_precision"] == pytest.approx(2 / 3)
    assert reflect["solver_accuracy"] == 5 / 8
    assert reflect["predicted_gain"] == pytest.approx(2 / 3 - 5 / 8)
    gain = reflect["measured_gain"]
    assert gain["value"] == 0 and gain["low"] < 0 < gain["high"] and gain["n"] == 8


def test_the_vote_is_of_as_many_samples_as_cost_the_same():
    samples = [step("answer", "8", 1), step("answer", "9", 0), step("answer", "9", 0), step("answer", "8", 1)]
    rows = [
        answered("1", 1, "majority@4", steps=samples, prompt=10, generated=40),
        answered("1", 1, "greedy", prompt=10, generated=10),
        answered("1", 1, "reflect", prompt=20, generated=19, steps=[step("answer", "8", 1)]),
        answered("1", 1, "best-of-2", prompt=30, generated=40, steps=samples[:2]),
    ]
    strategies = measured(rows)["strategies"]
    assert "majority_at_equal_tokens" not in strategies["majority@4"]
    assert strategies["greedy"]["majority_at_equal_tokens"]["k"] == 1
    equal = strategies["reflect"]["majority_at_equal_tokens"]
    assert (equal["k"], equal["tokens"], equal["accuracy"]["value"]) == (3, 40, 0.0), "9 has two votes of three"
    assert equal["difference"]["value"] == 1
    assert "majority_at_equal_tokens" not in strategies["best-of-2"], "no vote of so many was run"


def test_right_answers_are_one_answer_to_the_vote_however_they_are_spelled():
    spelled = [("0.5", 1), ("3", 0), ("1/2", 1), ("3", 0), ("\\frac12", 1)]
    samples = [step("answer", answer, reward) for answer, reward in spelled]
    rows = [
        answered("1", 1, "majority@5", steps=samples, prompt=10, generated=50),
        answered("1", 1, "greedy", prompt=10, generated=50),
    ]
    equal = measured(rows)["strategies"]["greedy"]["majority_at_equal_tokens"]
    assert (equal["k"], equal["difference"]["value"]) == (5, 0)


def test_reflections_that_could_not_be_graded_leave_the_report_whole():
    reflect = measured([reflected("1", None, "right")])["strategies"]["reflect"]
    assert reflect["solver_accuracy"] is None and reflect["measured_gain"]["value"] is None


def test_models_are_compared_on_the_same_questions():
    rows = [answered(str(i), int(i < 8)) for i in range(10)]
    rows += [answered(str(i), int(i < 4), model="baseline") for i in range(10)]
    rows += [reflected(str(i), 0, "wrong", 1) for i in range(10)]
    comparison = summarise(rows)["comparison"]
    greedy = comparison["differences"]["greedy"]
    assert greedy["value"] == pytest.approx(0.4)
    assert greedy["low"] < 0.4 < greedy["high"]
    assert greedy["p_value"] == pytest.approx(2 / 2**4)
    assert list(comparison["differences"]) == ["greedy"], "the baseline did not reflect"
    assert {name: cell["value"] for name, cell in comparison["cells"].items()} == {
        "baseline, without reflection": 0.4,
        "model, without reflection": 0.8,
        "model, with reflection": 1.0,
    }


@pytest.mark.parametrize("reason", ["bad_gold", "no_reward"])
def test_what_could_not_be_graded_is_left_out_and_counted(reason):
    rows = [answered("1", 1), answered("2", None, reason=reason), answered("3", 0)]
    greedy = measured(rows)["strategies"]["greedy"]
    assert (greedy["accuracy"]["value"], greedy["accuracy"]["n"], greedy["ungraded"]) == (0.5, 2, 1)
    page = markdown({"suite": "s", "models": {}, **summarise(rows)})
    assert "Answers of greedy that could not be graded, and are left out: 1." in page and "verifier" not in page


@pytest.mark.parametrize("reason", ["timeout", "crash", "error: RecursionError"])
def test_an_answer_on_which_the_verifier_failed_is_wrong_and_counted(reason):
    rows = [answered("1", 1), answered("2", None, reason=reason)]
    greedy = measured(rows)["strategies"]["greedy"]
    assert (greedy["accuracy"]["value"], greedy["ungraded"], greedy["verifier_failed"]) == (0.5, 0, 1)
    assert "Answers of greedy that made the verifier fail, and are wrong: 1." in markdown(
        {"suite": "s", "models": {}, **summarise(rows)}
    )
    steps = [step("answer", "a", reason=reason), step("judge", verdict="right"), step("revise", "b", 1)]
    reflect = measured([answered("1", 1, "reflect", steps=steps)])["strategies"]["reflect"]
    assert reflect["flips"]["wrong_to_right"] == 1 and reflect["judge_precision"] == 0


def test_variants_of_one_problem_are_worth_no_more_than_it():
    """Alike ones narrow no interval and make no difference surer."""

    def asked(variants):
        ours = [answered(f"{i}/{v}", int(i < 8), group=str(i)) for i in range(10) for v in range(variants)]
        return ours + [{**row, "model": "baseline", **graded(int(int(row["group"]) < 3))} for row in ours]

    once, often = asked(1), asked(10)
    assert measured(often)["strategies"]["greedy"]["accuracy"] == measured(once)["strategies"]["greedy"]["accuracy"]
    assert measured(often)["by_source"] == measured(once)["by_source"]
    assert summarise(often)["comparison"] == summarise(once)["comparison"]


def test_probes_count_accepts_by_label():
    def probe(id, kind, label, verdict):
        base = {"model": "model", "part": "probe", "strategy": "judge", "seed": 0, "id": id, "question": id}
        return {**base, "kind": kind, "label": label, "verdict": verdict, "probability": None}

    rows = [
        probe("1", "empty, alone", "wrong", "right"),
        probe("2", "empty, alone", "wrong", None),
        probe("3", "order, added", "right", "right"),
        probe("4", "order, added", "right", None),
        probe("5", "order, added", "wrong", "wrong"),
    ]
    probes = measured(rows)["probes"]
    assert probes["false_accept"]["value"] == pytest.approx(1 / 3)
    assert probes["true_accept"]["value"] == 0.5
    assert "true_accept" not in probes["by_kind"]["empty, alone"]


def test_the_same_words_about_another_picture_are_another_question():
    """Those about the same one are no more than one."""
    base = {"model": "model", "strategy": "judge", "seed": 0, "question": "How many are red?", "probability": None}
    point = {**base, "part": "pointwise", "label": "right", "verdict": "right"}
    pair = {**base, "part": "pairwise", "source": "", "prefers_right": True, "consistent": True}
    probe = {**point, "part": "probe", "kind": "empty"}
    rows = [{**row, "id": name, "images": [name]} for row in (point, pair, probe) for name in ("a.png", "b.png")]
    rows += [{**row, "id": "again"} for row in rows]
    of = measured(rows)
    for interval in (of["pointwise"]["accuracy"], of["pairwise"]["accuracy"], of["probes"]["true_accept"]):
        assert interval["n"] == 2


def test_pairs_are_told_apart_by_source_and_every_source_counts_the_same():
    pairs = [("a", True, True), ("a", True, False), ("a", False, True), ("a", True, True), ("b", None, None)]
    rows = [
        {
            **{"model": "model", "part": "pairwise", "strategy": "judge", "seed": 0, "id": str(i), "question": str(i)},
            **{"source": source, "prefers_right": right, "probability": 0.9, "consistent": consistent},
        }
        for i, (source, right, consistent) in enumerate(pairs)
    ]
    pairwise = measured(rows)["pairwise"]
    assert pairwise["accuracy"]["value"] == 3 / 5
    assert pairwise["mean_over_sources"] == (3 / 4 + 0) / 2
    assert pairwise["order_consistency"]["value"] == 3 / 4
    assert pairwise["by_source"]["a"]["right_in_both_orders"] == 2 / 4
    page = markdown({"suite": "s", "models": {"model": "m"}, **summarise(rows)})
    assert "| all | 5 | 60.0 %" in page and "| a | 4 | 75.0 %" in page and "| mean over the sources |  | 37.5 %" in page
    (lone,) = [
        line for line in markdown({"suite": "s", "models": {}, **summarise(rows[:4])}).splitlines() if "75.0" in line
    ]
    assert lone.startswith("| all | 4 |")


def test_the_page_says_only_what_was_measured():
    results = {"suite": "mine", "models": {"model": "m"}, **summarise([answered("1", 1)])}
    page = markdown(json.loads(json.dumps(results)))
    assert "| greedy | 100.0 % (20.7 to 100.0) | 15 | 5 |" in page
    for absent in ("Reflection", "judges one", "probe", "baseline"):
        assert absent not in page


def test_rewards_on_a_scale_of_their_own_give_shares_and_means():
    rewards = {"correct": 5.0, "wrong": -1.0, "unparsed": 0.0}
    ours, theirs = ["correct", "correct", "wrong", "correct"], ["wrong", "unparsed", "wrong", "correct"]
    rows = [
        answered(str(i), rewards[reason], model=model, reason=reason)
        for model, reasons in (("model", ours), ("baseline", theirs))
        for i, reason in enumerate(reasons)
    ]
    results = summarise(rows)
    greedy = results["models_measured"]["model"]["strategies"]["greedy"]
    assert greedy["accuracy"]["value"] == 0.75 and greedy["accuracy"]["high"] <= 1
    assert greedy["reward"]["value"] == greedy["mean_reward_over_sources"] == 3.5
    difference = results["comparison"]["differences"]["greedy"]
    assert difference["value"] == 0.5 and difference["reward"]["value"] == 2.75
    page = markdown({"suite": "s", "models": {}, **results})
    assert "| greedy | 75.0 % (30.1 to 95.4) | 3.500 (0.560 to 6.440) | 15 | 5 |  |" in page
    assert "| greedy | +2.750 (" in page and "469" not in page


def test_mean_rewards_that_are_accuracies_are_not_shown():
    page = markdown({"suite": "s", "models": {}, **summarise([answered("1", 1), answered("2", 0)])})
    assert "mean reward" not in page
