"""The strategies: what each asks and chooses, what it costs, and that a budget is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from factories import make_example
from hypothesis import given
from hypothesis import strategies as st
from scripted import Script, ScriptedEngine, pieces, says, scripted

from spark_rl.config import JudgeConfig, SolveConfig
from spark_rl.infer import ChatModel, Judge, Solution, Solver
from spark_rl.infer.strategies import STRATEGIES, parse_strategy
from spark_rl.prompts import Prompts
from spark_rl.rollout.engine import Request
from spark_rl.types import IMAGE, Example, Image, Role
from spark_rl.verify import VerifierPool, box

Said = str | tuple[str, float]
NAMES = [name.removesuffix("k") + "6" * name.endswith("k") for name in STRATEGIES]


@pytest.fixture(scope="module", autouse=True)
def pool() -> Iterator[VerifierPool]:
    with VerifierPool() as made:
        yield made


def role_of(prompt: str) -> Role:
    marks = {
        "Is the final answer of this response": Role.POINTWISE,
        "Exactly one of the two": Role.PAIRWISE,
        "An earlier response": Role.REFLECTION,
    }
    return next((role for mark, role in marks.items() if mark in prompt), Role.ANSWER)


def by_role(**scripts: Script) -> Script:
    """Another script for each role."""
    return lambda prompt, i, request: scripts[role_of(prompt)](prompt, i, request)


def answers(*given: str | None) -> Script:
    """Sample `i` gives the `i`-th answer, or none."""
    return lambda prompt, i, request: "I do not know." if given[i] is None else f"Try {i}: {box(str(given[i]))}"


def approves(**chances: float) -> Script:
    """A judge to whom an answer `7` is right with probability `_7`, and others with `others`."""

    def script(prompt: str, i: int, request: Request) -> Said:
        known = [p for answer, p in chances.items() if box(answer.strip("_")) in prompt]
        chance = known[0] if known else chances["others"]
        return says("Yes", chance) if chance > 0.5 else says("No", 1 - chance)

    return script


def prefers(*ranking: str) -> Script:
    """A judge who knows for sure; unranked answers come last."""

    def script(prompt: str, i: int, request: Request) -> Said:
        first, second = ([*(box(answer) in part for answer in ranking), True] for part in prompt.split("Response B:"))
        return says("A" if first.index(True) <= second.index(True) else "B")

    return script


def solve(
    strategy: str, script: Script, pool: VerifierPool, example: Example | None = None, **settings: Any
) -> tuple[Solution, ScriptedEngine]:
    model, engine = scripted(script)
    (solution,) = Solver(model, pool, SolveConfig.model_validate(settings)).solve([example or make_example()], strategy)
    return solution, engine


def kinds(solution: Solution) -> str:
    """The kinds of its steps by their first letters."""
    return "".join(step.kind[0] for step in solution.steps)


# ------------------------------------------------------------------------------------------------ one answer


@pytest.mark.parametrize(("strategy", "temperature"), [("greedy", 0.0), ("sample", 0.7)])
def test_greedy_and_sample(strategy: str, temperature: float, pool: VerifierPool) -> None:
    solution, engine = solve(strategy, answers("3"), pool, temperature=0.7)
    assert (solution.answer, solution.text, kinds(solution)) == ("3", f"Try 0: {box('3')}", "a")
    ((request,),) = engine.calls
    assert (request.n, request.temperature, request.messages) == (1, temperature, make_example().prompt)


@pytest.mark.parametrize("strategy", NAMES)
def test_images_of_the_question_are_shown_whatever_is_asked(strategy: str, pool: VerifierPool) -> None:
    model, engine = scripted(noisy)
    question, images = f"Is {IMAGE} as large as {IMAGE}?", (Image("/1.png", "1"), Image("/2.png", "2"))
    example = Example("q", Prompts().question(question), question, "7", images=images)
    Solver(model, pool, SolveConfig(), seed=3).solve([example], strategy)
    assert {request.images for call in engine.calls for request in call} == {images}
    assert {prompt.count(IMAGE) for prompt in engine.prompts} == {2}


def in_turn(*replies: str) -> Script:
    """Each call says the next of these."""
    left = iter(replies)
    return lambda prompt, i, request: next(left)


@pytest.mark.parametrize(
    ("first", "verdicts", "revisions", "settings", "answer", "steps"),
    [
        ("5", ["Yes"], [], {}, "5", "aj"),
        ("5", ["No"], ["3"], {}, "3", "ajr"),
        ("5", ["Hm"], [], {}, "5", "aj"),
        ("5", ["No"], [None], {}, "5", "ajr"),
        ("5", ["No", "No"], ["4", "3"], {"rounds": 2}, "3", "ajrjr"),
        ("5", ["No", "Yes"], ["4"], {"rounds": 3}, "4", "ajrj"),
        ("5", ["No"], ["5.0"], {"rounds": 3}, "5.0", "ajr"),
        ("5", [], ["3", "3"], {"rounds": 3, "revise": "always"}, "3", "arr"),
        (None, [], ["3"], {}, "3", "ar"),
        (None, [], ["3"], {"accept": "preferred"}, "3", "ar"),
        ("5", ["No"], ["3"], {"accept": "preferred"}, "3", "ajrc"),
        ("3", ["No"], ["5"], {"accept": "preferred"}, "3", "ajrc"),
        ("5", ["No"], ["5"], {"accept": "preferred"}, "5", "ajr"),
    ],
)
def test_reflect(
    first: str | None,
    verdicts: list[str],
    revisions: list[str | None],
    settings: dict[str, Any],
    answer: str,
    steps: str,
    pool: VerifierPool,
) -> None:
    script = by_role(
        answer=answers(first),
        pointwise=in_turn(*[box(verdict) for verdict in verdicts]),
        reflection=in_turn(*["?" if each is None else box(each) for each in revisions]),
        pairwise=prefers("3"),
    )
    solution, engine = solve("reflect", script, pool, **{"accept": "always", **settings})
    assert (solution.answer, kinds(solution)) == (answer, steps)
    assert (solution.prompt_tokens, solution.generated_tokens) == engine.cost
    shown = [prompt for prompt in engine.prompts if role_of(prompt) is Role.REFLECTION]
    assert all(make_example().question in prompt for prompt in shown)
    assert not shown or ("I do not know." if first is None else box(first)) in shown[0]


# ------------------------------------------------------------------------------------------------ of k samples


def test_majority_counts_answers_that_are_equal_to_the_verifier(pool: VerifierPool) -> None:
    solution, engine = solve("majority@6", answers("7", "1/2", None, "7", "0.5", ".50"), pool)
    assert (solution.answer, solution.text, kinds(solution)) == ("1/2", f"Try 1: {box('1/2')}", "aaaaaa")
    assert [[request.n for request in call] for call in engine.calls] == [[6]]
    exact = make_example(verifier="exact")
    assert solve("majority@6", answers("7", "1/2", None, "7", "0.5", ".50"), pool, exact)[0].answer == "7"
    assert solve("majority@2", answers("8", "7"), pool)[0].answer == "8", "of equally many the first"
    nothing = solve("majority@2", answers(None, None), pool)[0]
    assert (nothing.answer, nothing.text) == (None, "I do not know.")


@pytest.mark.parametrize(
    ("verifier", "metadata", "given", "answer"),
    [
        ("spark_rl.evaluate.rules:any_of", {"accepted": ["7"]}, ("5", "7", "5.0", "5"), "5"),
        ("spark_rl.evaluate.rules:any_of", {"accepted": ["7"]}, ("5", "7", "7.0", "7"), "7"),
        ("numeric", {"tolerance": 1}, ("3", "7", "7.5", "8"), "7"),
        ("numeric", {}, ("3", "7 cm", "7"), "7 cm"),
        ("choice", {}, ("B", "A. 7", "A"), "A. 7"),
        ("choice", {}, ("B", "A", "A. 7"), "A"),
        ("reasoning_gym", {"dataset": "countdown", "entry": {}}, ("5", "7", "7.0"), "7"),
        ("trl:rewards:boxed", {"solution": "7"}, ("5", "7", "7.0"), "7"),
        ("self", {}, ("5", "7", "7.0"), "7"),
    ],
)
def test_the_gold_takes_no_part_in_a_vote(
    verifier: str, metadata: dict[str, Any], given: Sequence[str], answer: str, pool: VerifierPool
) -> None:
    """Wherever a verifier reads it from."""
    question = make_example(verifier=verifier, metadata=metadata)
    assert solve(f"majority@{len(given)}", answers(*given), pool, question)[0].answer == answer


@pytest.mark.parametrize(
    ("strategy", "given", "chances", "answer", "num_judged"),
    [
        ("best-of-4", ("7", "8", "8", "8"), {"_7": 0.9, "others": 0.6}, "7", 2),
        ("best-of-4", ("7", "8", "8", None), {"others": 0.6}, "8", 2),
        ("best-of-3", ("7", "8", "8"), {"_7": 0.9 + 1e-9, "others": 0.9}, "8", 2),  # such is the rounding of batches
        ("best-of-2", (None, "8"), {"others": 0.1}, "8", 1),
        ("best-of-2", (None, None), {}, None, 0),
        ("weighted-vote@4", ("7", "8", "8", "8"), {"_7": 0.9, "others": 0.4}, "8", 2),
        ("weighted-vote@4", ("7", "8", "8", "8"), {"_7": 0.9, "others": 0.2}, "7", 2),
        ("weighted-vote@2", (None, None), {}, None, 0),
    ],
)
def test_samples_are_judged_once_for_each_answer(
    strategy: str,
    given: Sequence[str | None],
    chances: dict[str, float],
    answer: str | None,
    num_judged: int,
    pool: VerifierPool,
) -> None:
    solution, engine = solve(strategy, by_role(answer=answers(*given), pointwise=approves(**chances)), pool)
    assert solution.answer == answer
    assert kinds(solution) == "a" * len(given) + "j" * num_judged
    judged = [prompt for prompt in engine.prompts if role_of(prompt) is Role.POINTWISE]
    assert len(judged) == num_judged == len(set(judged))


def test_the_whole_of_a_response_is_judged_where_it_is_shown(pool: VerifierPool) -> None:
    def judged(prompt: str, i: int, request: Request) -> Said:
        return says("Yes", 0.9) if "Try 2" in prompt else says("No", 0.6)

    model, engine = scripted(by_role(answer=answers("7", "8", "8"), pointwise=judged))
    judge = Judge(model, JudgeConfig(view="reasoning"))
    (solution,) = Solver(model, pool, judge=judge).solve([make_example()], "best-of-3")
    assert solution.text == f"Try 2: {box('8')}"
    assert len(engine.calls[1]) == 3


# ------------------------------------------------------------------------------------------------ tournament


def duels(engine: ScriptedEngine) -> list[list[tuple[int, int]]]:
    """The answers that met, by round, each in the order in which they were shown."""
    rounds = []
    for call in engine.calls[1:]:
        parts = [prompt.split("Response B:") for prompt in (request.messages[-1]["content"] for request in call)]
        rounds.append([tuple(int(part.split(r"\boxed{")[1].split("}")[0]) for part in pair) for pair in parts])
    return rounds  # type: ignore[return-value]


@given(
    ranking=st.permutations("23456"),
    votes=st.lists(st.sampled_from("23456"), min_size=6, max_size=6),
    comparisons=st.none() | st.integers(1, 12),
)
def test_a_tournament_is_swiss(
    pool: VerifierPool, ranking: list[str], votes: list[str], comparisons: int | None
) -> None:
    script = by_role(answer=answers(*votes), pairwise=prefers(*ranking))
    solution, engine = solve("tournament@6", script, pool, comparisons=comparisons)
    num = len(set(votes))
    rounds = duels(engine)
    for met in rounds:
        pairs = {frozenset(pair) for pair in met}
        assert {pair[::-1] for pair in met} == set(met), "each in both orders"
        assert sum(map(len, pairs)) == len(frozenset().union(*pairs)), "nobody twice in a round"
    met = [frozenset(pair) for of_round in rounds for pair in of_round]
    assert all(met.count(pair) == 2 for pair in met), "nobody meets another again"
    limit = comparisons or 2 * num
    assert len(met) / 2 <= min(limit, num * (num - 1) / 2)
    if limit >= num * (num - 1) / 2 and num < 4:
        assert len(met) / 2 == num * (num - 1) / 2
    assert (solution.prompt_tokens, solution.generated_tokens) == engine.cost


@pytest.mark.parametrize(
    ("votes", "pairwise", "settings", "answer"),
    [
        ("8887", prefers("7"), {}, "7"),  # (1/4 + 1) / 2 against (3/4 + 0) / 2
        ("2222222345", prefers("3", "5"), {"comparisons": 2}, "3"),  # 5 beats 2, which has most of the votes
        ("2222345", prefers("3"), {}, "3"),
        ("2222345", lambda prompt, i, request: "Hm.", {}, "2"),
        ("2222345", lambda prompt, i, request: box("A"), {}, "2"),
        ("8887", prefers("7"), {"prior": 0}, "7"),
        ("8887", prefers("7"), {"prior": 5}, "8"),
    ],
)
def test_who_wins(votes: str, pairwise: Script, settings: dict[str, Any], answer: str, pool: VerifierPool) -> None:
    script = by_role(answer=answers(*votes), pairwise=pairwise)
    assert solve(f"tournament@{len(votes)}", script, pool, **settings)[0].answer == answer


def test_first_meet_whose_outcome_is_least_certain(pool: VerifierPool) -> None:
    script = by_role(answer=answers(*"2222233334"), pairwise=prefers("2"))
    _, engine = solve("tournament@10", script, pool, comparisons=1)
    assert {frozenset(pair) for pair in duels(engine)[0]} == {frozenset({2, 3})}, "5 votes to 4, not 4 to 1"


@pytest.mark.parametrize("given", [("7", "7", "7.0"), (None, "7", None), (None, None, None)])
def test_one_answer_needs_no_tournament(given: Sequence[str | None], pool: VerifierPool) -> None:
    solution, engine = solve("tournament@3", by_role(answer=answers(*given)), pool)
    assert solution.answer == ("7" if "7" in given else None)
    assert len(engine.calls) == 1


# ------------------------------------------------------------------------------------------------ any strategy


def noisy(prompt: str, i: int, request: Request) -> Said:
    """Any reply that suits the role, or none, by the prompt, the sample and the noise that the request is given."""
    rng = random.Random(f"{prompt}/{i}/{request.seed if request.temperature else ''}")
    words = {Role.POINTWISE: ["Yes", "No"], Role.PAIRWISE: ["A", "B"]}.get(role_of(prompt), [*"1234"])
    said = rng.choice([*words, None])
    return "Hm." if said is None else (f"{'so ' * rng.randint(0, 9)}{box(said)}", rng.random())


@given(strategy=st.sampled_from(NAMES), seed=st.integers(0, 99), rounds=st.integers(1, 3))
def test_tokens_are_those_of_the_requests(pool: VerifierPool, strategy: str, seed: int, rounds: int) -> None:
    model, engine = scripted(noisy)
    (solution,) = Solver(model, pool, SolveConfig(rounds=rounds), seed=seed).solve([make_example()], strategy)
    assert (solution.prompt_tokens, solution.generated_tokens) == engine.cost
    assert solution.tokens == sum(engine.cost)
    assert len(solution.steps) <= len([reply for replies in engine.replies for reply in replies])


@given(order=st.permutations(range(4)), strategy=st.sampled_from(NAMES), limit=st.sampled_from([None, 300]))
def test_a_solution_depends_on_its_question_alone(
    pool: VerifierPool, order: list[int], strategy: str, limit: int | None
) -> None:
    solver = Solver(scripted(noisy)[0], pool, SolveConfig(max_tokens=limit))
    examples = [make_example(number) for number in range(4)]
    together = solver.solve(examples, strategy)
    assert [solver.solve([example], strategy)[0] for example in examples] == together
    assert solver.solve([examples[i] for i in order], strategy) == [together[i] for i in order]


@given(strategy=st.sampled_from(NAMES), limit=st.integers(1, 400), seed=st.integers(0, 9))
def test_a_budget_is_exceeded_by_prompts_of_one_round_only(
    pool: VerifierPool, strategy: str, limit: int, seed: int
) -> None:
    solution, engine = solve(strategy, noisy, pool, make_example(seed), max_tokens=limit, rounds=3)
    assert (solution.prompt_tokens, solution.generated_tokens) == engine.cost
    assert solution.generated_tokens <= limit
    assert solution.tokens <= limit + sum(len(pieces(request.messages[-1]["content"])) for request in engine.calls[-1])
    assert not solution.no_room


@pytest.mark.parametrize("strategy", ["majority@8", "best-of-8", "weighted-vote@8", "tournament@8"])
def test_fewer_answers_are_sampled_where_the_budget_is_short(strategy: str, pool: VerifierPool) -> None:
    """The prompt has 33 tokens, a reply 8, a judge's prompt about 110."""
    script = by_role(answer=answers(*"72727272"), pointwise=approves(others=0.6), pairwise=prefers("7"))
    cost, sampled = {}, {}
    for limit in (1, 60, 150, 300, 2000):
        solution, _ = solve(strategy, script, pool, max_tokens=limit)
        cost[limit], sampled[limit] = solution.tokens, kinds(solution).count("a")
        unparsed = [step for step in solution.steps if step.kind != "answer" and step.probability is None]
        assert limit < 300 or not unparsed, "enough is left for verdicts"
    assert sampled[1] == 1 and sampled[2000] == 8
    assert sorted(sampled.values()) == list(sampled.values())
    assert 1 < sampled[150 if strategy == "majority@8" else 300] < 8


@pytest.mark.parametrize("strategy", ["reflect", "majority@3", "best-of-3", "weighted-vote@3", "tournament@3"])
def test_on_a_real_model_company_and_order_change_nothing(
    embedded: ChatModel, strategy: str, pool: VerifierPool
) -> None:
    solver = Solver(embedded, pool, SolveConfig(rounds=2))
    questions = ["What is 3+4?", "What is 12*3?", "What is 25-7?"]
    examples = [make_example(i, prompt=Prompts().question(q), question=q) for i, q in enumerate(questions)]

    def facts(solutions: Sequence[Solution]) -> list[Any]:
        return [(each.answer, each.text, each.tokens, [step.text for step in each.steps]) for each in solutions]

    together = facts(solver.solve(examples, strategy))
    assert facts(solver.solve(examples[::-1], strategy)) == together[::-1]
    assert facts(solver.solve(examples[:1], strategy)) == together[:1]


def test_a_question_that_fills_the_context_says_so(embedded: ChatModel, pool: VerifierPool) -> None:
    long = make_example(prompt=Prompts().question("What is 1+1? " * 500), question="What is 1+1? " * 500)
    for strategy in NAMES:
        nothing, fine = Solver(embedded, pool).solve([long, make_example(3)], strategy)
        assert (nothing.no_room, nothing.answer, nothing.text, nothing.tokens) == (True, None, "", 0)
        assert not fine.no_room


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(("name", "k"), [("greedy", 1), ("reflect", 1), ("majority@2", 2), ("best-of-16", 16)])
def test_names(name: str, k: int) -> None:
    assert parse_strategy(name)[1] == k


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gredy", "did you mean 'greedy'?"),
        ("majorty@8", "did you mean 'majority@8'?"),
        ("majority", "did you mean 'majority@8'?"),
        ("majority@1", "did you mean 'majority@8'?"),
        ("best-of@4", "did you mean 'best-of-8'?"),
        ("best_of_4", "did you mean 'best-of-8'?"),
        ("reflect@3", "did you mean 'reflect'?"),
        ("majority@k", "with any number of samples from 2 on"),
        ("", "Known are greedy, sample, reflect, majority@8"),
        ("mcts", "Known are"),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match="unknown strategy") as refused:
        parse_strategy(name)
    assert hint in str(refused.value)
