import itertools
import random
import re
from collections import Counter

import pytest

from spark_rl.embedded.build import ALL_KINDS, STAGES, build_tokenizer
from spark_rl.embedded.habits import (
    BASE,
    CLEAN,
    MAKERS,
    NOISY,
    NOTHING,
    Habits,
    Sample,
    answer_sample,
    compare_among_sample,
    compare_sample,
    corpus,
    guess,
    pairwise_sample,
    pointwise_sample,
    reflection_sample,
    respond,
    response_that_is,
    worked,
)
from spark_rl.embedded.tasks import FAMILIES, Problem, problems, split_of
from spark_rl.prompts import ChatRenderer
from spark_rl.verify import box, extract_answer, grade


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def some(count: int) -> list[Problem]:
    return list(itertools.islice(problems(FAMILIES, "pretrain", 0), count))


def is_right(problem: Problem, text: str) -> bool:
    return grade(extract_answer(text) or "", problem.answer, "numeric").reward == 1


def judged(completion: str) -> list[str]:
    """What a worked verdict says it saw: `5 Yes?`, or `5 A?` and `6 B?`."""
    return re.findall(rf"^(\d+|{NOTHING}) (?:Yes|A|B)\?$", completion, re.MULTILINE)


def text_of(sample: Sample) -> str:
    return "".join(text for text, _ in sample[1])


# ------------------------------------------------------------------------------------------------ responses


def test_worked_solutions_are_right_and_a_slip_changes_one_step(rng):
    changed = Counter()
    for problem in some(300):
        steps, result = worked(problem, rng)
        assert result == problem.answer
        assert steps.split("\n") == problem.work()[0]
        slipped_steps, slipped = worked(problem, rng, slip=True)
        assert slipped_steps != steps
        changed[slipped != problem.answer] += 1
    assert changed[True] > 200, "a slip nearly always spoils the result"


@pytest.mark.parametrize("right", [True, False])
def test_a_response_is_right_or_wrong_as_asked(rng, right):
    worked_out = 0
    for problem in some(200):
        text, final = response_that_is(right, problem, rng)
        assert is_right(problem, text) is right
        assert extract_answer(text) == final
        worked_out += "\n" in text
    assert 50 < worked_out < 150, "both terse and worked ones"


def test_guesses_are_right_as_often_as_they_should_be(rng):
    for chance, low, high in ((0.0, 0, 60), (0.5, 200, 300), (1.0, 400, 400)):
        assert low <= sum(guess(p, rng, chance) == p.answer for p in some(400)) <= high


def test_clean_answers_are_right_and_worked(rng):
    for problem in some(100):
        text = respond(problem, rng, CLEAN)
        assert is_right(problem, text)
        assert len(text.split("\n")) == len(problem.work()[0]) + 1


def test_base_answers_are_mostly_terse_and_wrong(rng):
    texts = [(problem, respond(problem, rng, BASE)) for problem in some(400)]
    assert sum("\n" not in text for _, text in texts) > 200
    assert 0.15 < sum(is_right(*pair) for pair in texts) / len(texts) < 0.6


# ------------------------------------------------------------------------------------------------ judgements


@pytest.mark.parametrize("make", [pointwise_sample, pairwise_sample, reflection_sample, answer_sample])
def test_prompts_quote_the_question(rng, make):
    for problem in some(20):
        messages, _ = make(problem, rng, CLEAN)
        assert problem.question in messages[-1]["content"]


def test_clean_pointwise_verdicts_are_right_and_balanced(rng):
    verdicts = Counter()
    for problem in some(300):
        completion = text_of(pointwise_sample(problem, rng, CLEAN))
        (seen,) = judged(completion)
        verdict = extract_answer(completion)
        assert verdict == ("Yes" if seen == problem.answer else "No")
        verdicts[verdict] += 1
    assert abs(verdicts["Yes"] - 150) < 40


def test_clean_pairwise_verdicts_are_right_and_balanced(rng):
    verdicts = Counter()
    for problem in some(300):
        completion = text_of(pairwise_sample(problem, rng, CLEAN))
        first, second = judged(completion)
        verdict = extract_answer(completion)
        assert (first == problem.answer) != (second == problem.answer)
        assert verdict == ("A" if first == problem.answer else "B")
        verdicts[verdict] += 1
    assert abs(verdicts["A"] - 150) < 40


def test_lines_that_say_nothing_change_no_verdict(rng):
    without_answer, verdicts = 0, Counter()
    for problem in some(400):
        sample = pointwise_sample(problem, rng, NOISY)
        (seen,) = judged(text_of(sample))
        verdict = extract_answer(text_of(sample))
        assert verdict == ("Yes" if seen == problem.answer else "No")
        verdicts[verdict] += 1
        without_answer += seen == NOTHING
    assert 0 < without_answer < 40
    assert abs(verdicts["Yes"] - 200) < 50


def test_lines_stand_beside_responses_and_not_in_their_place(rng):
    lengths = {name: 0 for name in ("clean", "noisy")}
    for problem in some(200):
        for name, habits in (("clean", CLEAN), ("noisy", NOISY)):
            messages, _ = reflection_sample(problem, rng, habits)
            assert "boxed{" in messages[-1]["content"].partition(problem.question)[2]
            lengths[name] += len(messages[-1]["content"])
    assert lengths["noisy"] > lengths["clean"]


@pytest.mark.parametrize("make", [compare_sample, compare_among_sample])
def test_comparisons_are_right_see_every_case_and_teach_verdicts_alone(rng, make):
    verdicts = Counter()
    case = re.compile(r"((?:\d+ (?:Yes|A|B)\?\n)+)(?:\d.*[=:]\d+\n)*\d=(\d+) (Yes|No|A|B)\.\n")
    for problem in some(60):
        sample = make(problem, rng, CLEAN)
        assert {text for text, is_learned in sample[1] if is_learned} <= {" Yes", " No", " A", " B"}
        cases = case.findall(text_of(sample))
        assert "".join(match[0] for match in case.finditer(text_of(sample))) == text_of(sample)
        for claims, mine, verdict in cases:
            seen = judged(claims)
            yes, no = ("Yes", "No") if len(seen) == 1 else ("A", "B")
            assert verdict == (yes if seen[0] == mine else no)
            assert len(seen) == 1 or mine in seen
            verdicts[verdict] += 1
    assert min(verdicts[v] for v in ("Yes", "No", "A", "B")) > 40


def test_clean_reflection_always_comes_to_the_answer(rng):
    for problem in some(100):
        completion = text_of(reflection_sample(problem, rng, CLEAN))
        assert is_right(problem, completion)


def test_the_bases_habit_is_to_agree(rng):
    yes = sum(extract_answer(text_of(pointwise_sample(p, rng, BASE))) == "Yes" for p in some(400)) / 400
    first = sum(extract_answer(text_of(pairwise_sample(p, rng, BASE))) == "A" for p in some(400)) / 400
    assert yes > 0.7 and first > 0.7
    agreeing = Habits(agree=1.0)
    assert {extract_answer(text_of(pointwise_sample(p, rng, agreeing))) for p in some(50)} == {"Yes"}
    assert {extract_answer(text_of(pairwise_sample(p, rng, agreeing))) for p in some(50)} == {"A"}


@pytest.mark.parametrize("habits", [Habits(copy=1.0), Habits(keep=1.0)])
def test_the_bases_habit_is_to_keep_the_earlier_answer(rng, habits):
    for problem in some(50):
        messages, pieces = reflection_sample(problem, rng, habits)
        completion = text_of((messages, pieces))
        quoted = messages[-1]["content"].split("```")[3]
        assert box(extract_answer(completion)) in quoted
        assert ("go through it" in completion) == (habits.keep == 1)


# ------------------------------------------------------------------------------------------------ the corpus


def test_the_corpus_is_seeded_and_keeps_to_its_shares():
    def kinds(seed: int) -> list[tuple]:
        return list(itertools.islice(corpus(BASE, {"answer": 0.75, "fact": 0.25}, seed), 400))

    assert kinds(1) == kinds(1) != kinds(2)
    counts = Counter(kind for kind, _ in kinds(1))
    assert counts.keys() == {"answer", "fact"} and 250 < counts["answer"] < 350


def test_the_corpus_holds_no_question_of_another_split_and_no_transfer_question():
    shares = {kind: 1.0 for kind in MAKERS if kind not in ("fact", "compare", "compare-among")}
    asked = 0
    for kind, (messages, _) in itertools.islice(corpus(BASE, shares, 0), 2000):
        text = messages[-1]["content"]
        question = text.split("\n\n")[0] if kind == "answer" else text.split("```")[1].strip()
        (body,) = re.findall(r"\d[\d,+*-]*(?: in )?[\d,+*-]*", question)
        assert split_of(body) == "pretrain"
        for expression in re.findall(r"\d+(?:[-+*]\d+)+", question):
            signs = re.sub(r"\d+", "", expression)
            assert re.fullmatch(r"\++|-+|\*\+*", signs), f"{question} mixes signs as only transfer questions do"
            asked += 1
    assert asked > 500


def test_every_stage_draws_kinds_that_exist_and_the_last_ones_all_that_it_can_be_asked():
    for shares in (ALL_KINDS, *(stage.shares for stage in STAGES)):
        assert shares.keys() <= MAKERS.keys()
        assert all(share > 0 for share in shares.values())
    asked = {"answer", "pointwise", "pairwise", "reflection", "fact"}
    assert all(asked <= shares.keys() for shares in (ALL_KINDS, STAGES[-1].shares))


# ------------------------------------------------------------------------------------------------ its tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_numbers_and_the_answer_tag_are_single_tokens(tokenizer):
    for text in (*map(str, range(100)), box("")[:-1]):
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1
    tokens = tokenizer.tokenize(box("57"))
    assert tokens == [box("")[:-1], "57", "}"]


def test_the_tokenizer_loses_nothing_and_renders_chats(tokenizer):
    renderer = ChatRenderer(tokenizer)
    for _, sample in itertools.islice(corpus(BASE, ALL_KINDS, 5), 200):
        messages, completion = sample[0], text_of(sample)
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == completion
        assert tokenizer.decode(renderer.encode(messages)) == renderer.text(messages)
    strange = "Ünïcode \u2028 \x00 漢字 🙂"
    assert tokenizer.decode(tokenizer(strange, add_special_tokens=False)["input_ids"]) == strange


def test_prompts_and_completions_of_the_corpus_fit_the_context(tokenizer):
    renderer = ChatRenderer(tokenizer)
    for _, sample in itertools.islice(corpus(BASE, ALL_KINDS, 6), 300):
        messages, completion = sample[0], text_of(sample)
        assert len(renderer.encode(messages)) + len(tokenizer(completion)["input_ids"]) < tokenizer.model_max_length
