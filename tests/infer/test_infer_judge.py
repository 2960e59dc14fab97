"""The judge: what it is shown, what its words come to, and that neither order nor company changes it."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import pytest
from factories import question_group
from hypothesis import given
from hypothesis import strategies as st
from image_files import png
from scripted import Script, ScriptedEngine, pieces, says, scripted

from spark_rl.config import JudgeConfig, RecycleConfig
from spark_rl.images import reference
from spark_rl.infer import ChatModel, Judge, Preference, Verdict
from spark_rl.recycle import recycle
from spark_rl.recycle.recycler import Bundle
from spark_rl.rollout.engine import Request
from spark_rl.types import IMAGE, Image, Role
from spark_rl.verify import box

QUESTION = "What is 3+4?"
RIGHT, WRONG = f"3+4=7, so {box('7')}", f"It must be {box('8')}"


def judge_of(script: Script, **settings: object) -> tuple[Judge, ScriptedEngine]:
    model, engine = scripted(script)
    return Judge(model, JudgeConfig.model_validate(settings)), engine


def reads(*replies: str | tuple[str, float]) -> Script:
    """Sample `i` says the `i`-th of these."""
    return lambda prompt, i, request: replies[i]


# ------------------------------------------------------------------------------------------------ one response


@pytest.mark.parametrize(
    ("reply", "verdict", "probability"),
    [
        (says("Yes", 0.8), "right", 0.8),
        (says("No", 0.8), "wrong", 0.2),
        (says("Yes", 0.1), "right", 0.500001),  # it was given: what else was likely may mean the same
        (says("No", 0.1), "wrong", 0.499999),
        (says("Yes"), "right", 1.0),  # no log-probabilities
        (says("No"), "wrong", 0.0),
        (f"First {box('Yes')}, but no: {box('No')}", "wrong", 0.0),
        (box("(yes)"), "right", 1.0),
        (box(r"\text{No}."), "wrong", 0.0),
        (f"<think>{box('Yes')}</think> I cannot tell.", None, None),
        (f"<think>{box('Yes')}", None, None),
        (says("Maybe", 0.9), None, None),
        ("Yes", None, None),
        ("", None, None),
    ],
)
def test_a_verdict_is_the_word_in_the_box_and_its_probability(
    reply: str | tuple[str, float], verdict: str | None, probability: float | None
) -> None:
    judge, engine = judge_of(reads(reply))
    judgement = judge.score(QUESTION, RIGHT)
    assert judgement.columns() == {"verdict": verdict, "probability": pytest.approx(probability)}
    assert judgement.text == (reply if isinstance(reply, str) else reply[0])
    assert not judgement.no_room
    assert [request.temperature for request in engine.calls[0]] == [0.0]


@pytest.mark.parametrize(
    ("replies", "verdict", "probability"),
    [
        ([says("Yes")] * 3 + [says("No")], "right", 3 / 4),
        ([says("Yes"), says("No"), "Well.", says("No")], "wrong", 1 / 3),
        ([says("Yes"), says("No")], "wrong", 1 / 2),
        ([says("Yes", 0.9), says("No", 0.6)], "right", (0.9 + 0.4) / 2),
        (["Well."] * 2, None, None),
    ],
)
def test_sampled_judgements_are_averaged(
    replies: Sequence[str | tuple[str, float]], verdict: str | None, probability: float | None
) -> None:
    judge, engine = judge_of(reads(*replies), samples=len(replies), temperature=0.7)
    assert judge.score(QUESTION, RIGHT).columns() == {
        "verdict": verdict,
        "probability": pytest.approx(probability, abs=1e-6),
    }
    assert [(request.n, request.temperature) for request in engine.calls[0]] == [(len(replies), 0.7)]


# ------------------------------------------------------------------------------------------------ two responses


def picks(wanted: str, probability: float | None = None) -> Script:
    """Prefers the response with this answer, wherever it stands."""

    def script(prompt: str, i: int, request: Request) -> str | tuple[str, float]:
        first, second = prompt.split("Response B:")
        return says("A" if box(wanted) in first else "B" if box(wanted) in second else "C", probability)

    return script


def test_the_better_one_is_preferred_in_both_orders() -> None:
    judge, engine = judge_of(picks("7", 0.9))
    preference = judge.compare(QUESTION, WRONG, RIGHT)
    assert preference.columns() == {"preferred": "b", "probability": pytest.approx(0.1), "consistent": True}
    assert len(engine.calls) == 1
    shown = [[prompt.index(box(answer)) for answer in "78"] for prompt in engine.prompts]
    assert sorted(seven < eight for seven, eight in shown) == [False, True]
    assert preference.texts == (f"So: {box('B')}", f"So: {box('A')}")


@pytest.mark.parametrize(
    ("first_order", "second_order", "preferred", "probability", "consistent"),
    [
        (says("A"), says("B"), "a", 1.0, True),
        (says("B"), says("A"), "b", 0.0, True),
        (says("A"), says("A"), None, 0.5, False),
        (says("A", 0.7), says("A", 0.7), None, 0.5, False),
        (says("A", 0.9), says("A", 0.6), "a", 0.65, False),
        (says("A"), "Well.", "a", 1.0, None),
        ("Well.", says("C"), None, None, None),
    ],
)
def test_both_orders_come_to_one_preference(
    first_order: str | tuple[str, float],
    second_order: str | tuple[str, float],
    preferred: str | None,
    probability: float | None,
    consistent: bool | None,
) -> None:
    def script(prompt: str, i: int, request: Request) -> str | tuple[str, float]:
        return first_order if prompt.index(box("7")) < prompt.index(box("8")) else second_order

    judge, _ = judge_of(script)
    columns = judge.compare(QUESTION, RIGHT, WRONG).columns()
    assert columns == {"preferred": preferred, "probability": pytest.approx(probability), "consistent": consistent}


def noisy(prompt: str, i: int, request: Request) -> str | tuple[str, float]:
    """Any verdict or none, by the prompt, the sample and the noise that the request is given."""
    rng = random.Random(f"{prompt}/{i}/{request.seed}")
    words = ["Yes", "No"] if "Is the final answer" in prompt else ["A", "B"]
    return says(rng.choice([*words, "Well."]), rng.random())


@given(seed=st.integers(0, 99), a=st.integers(0, 5), b=st.integers(0, 5), samples=st.sampled_from([1, 3]))
def test_swapping_the_two_swaps_the_preference(seed: int, a: int, b: int, samples: int) -> None:
    judge = Judge(scripted(noisy)[0], JudgeConfig(samples=samples), seed=seed)
    texts = [f"I say {box(str(each))}" for each in (a, b)]
    straight, swapped = judge.compare(QUESTION, *texts), judge.compare(QUESTION, *reversed(texts))
    assert straight == (swapped if a == b else swapped.swapped())


# ------------------------------------------------------------------------------------------------ what is shown


def test_the_view() -> None:
    thought = f"<think>Is it 9?</think> 3+4=7, so {box('7')}"
    by_view = {view: Judge(scripted(noisy)[0], JudgeConfig(view=view)) for view in ("answer", "reasoning")}
    assert by_view["answer"].view(thought) == box("7")
    assert by_view["reasoning"].view(thought) == f"3+4=7, so {box('7')}"
    assert by_view["answer"].view("I do not know.") == "I do not know.", "there is no answer to show alone"
    assert by_view["answer"].view("<think>Hm") == ""
    short = Judge(scripted(noisy)[0], JudgeConfig(view="reasoning", max_response_chars=10))
    assert "characters left out" in short.view("x" * 50)


def test_it_is_asked_as_in_training() -> None:
    """For each item that the recycler makes, with its template and view."""
    groups = [question_group(number, (number + 1, number, number + 1, None)) for number in range(8)]
    seen = set()
    for share, view in ((0.0, "answer"), (1.0, "reasoning")):
        config = RecycleConfig(reasoning_view=share, items_per_group=2)
        for bundle in recycle(groups, config, seed=0, step=1).bundles:
            task, texts = bundle[0], [response.text for response in bundle[0].shown]
            if not task.role.is_judge or (task.role is Role.POINTWISE and is_mixed(bundle)):
                continue
            judge, engine = judge_of(noisy, view=view, **{f"{task.role}_template": task.template})
            (judge.score if task.role is Role.POINTWISE else judge.compare)(task.example.question, *texts)
            assert task.messages in [request.messages for request in engine.calls[0]]
            seen.add((task.template, view, is_mixed(bundle)))
    points, pairs = ("pointwise-1", "pointwise-2", "pointwise-3"), ("pairwise-1", "pairwise-2")
    views = ("answer", "reasoning")
    assert seen == {
        *((template, view, False) for template in (*points, *pairs) for view in views),
        *((template, view, True) for template in pairs for view in views),
    }


def is_mixed(bundle: Bundle) -> bool:
    """Whether only some of the responses have an answer, so that all are shown whole."""
    return any(response.extracted is None for task in bundle for response in task.shown)


# ------------------------------------------------------------------------------------------------ many


def test_many_are_one_call_and_cost_what_they_cost() -> None:
    judge, engine = judge_of(noisy)
    items = [(f"What is {i}+4?", RIGHT) for i in range(5)]
    told: list[tuple[int, int]] = []
    judge.score_all(items, progress=lambda *n: told.append(n))
    judge.compare_all([(question, RIGHT, WRONG) for question, _ in items])
    assert [len(call) for call in engine.calls] == [5, 10]
    assert told == [(0, 5), (5, 5)]
    assert (judge.spent.prompt_tokens, judge.spent.generated_tokens) == engine.cost
    assert judge.score_all([]) == []


def by_twos(judge: Judge, items: Sequence[tuple[str, str]]) -> list[Verdict]:
    return [verdict for i in range(0, len(items), 2) for verdict in judge.score_all(items[i : i + 2])]


@given(st.permutations(range(6)), st.sampled_from([1, 4]))
def test_a_judgement_depends_on_the_item_alone(order: list[int], samples: int) -> None:
    judge = Judge(scripted(noisy)[0], JudgeConfig(samples=samples))
    items = [(QUESTION, f"I say {box(str(i % 4))}") for i in range(6)]  # two of them twice
    together = judge.score_all(items)
    assert by_twos(judge, items) == together
    assert judge.score_all([items[i] for i in order]) == [together[i] for i in order]
    assert together[:2] == together[4:]


@pytest.mark.parametrize("samples", [1, 2])
def test_so_it_does_with_a_real_model(embedded: ChatModel, samples: int) -> None:
    judge = Judge(embedded, JudgeConfig(samples=samples))
    items = [(f"What is {i}+{j}?", box(str(i + j + i % 2))) for i in (3, 14) for j in (5, 60)]
    together = judge.score_all(items)
    assert any(verdict.verdict for verdict in together)
    for again in (judge.score_all(items[::-1])[::-1], by_twos(judge, items)):
        assert [(each.verdict, each.text) for each in again] == [(each.verdict, each.text) for each in together]
        for one, other in zip(again, together, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_what_does_not_fit_says_so(embedded: ChatModel) -> None:
    judge = Judge(embedded, JudgeConfig(view="reasoning"))
    long = "1+1=2. " * 500
    assert judge.score(QUESTION, long) == Verdict(None, None, "", no_room=True)
    assert judge.compare(QUESTION, long, RIGHT) == Preference(None, None, None, ("", ""), no_room=True)
    assert judge.spent.total == 0


# ------------------------------------------------------------------------------------------------ images

RED, BLUE = Image("/red.png", "1"), Image("/blue.png", "2")


def test_the_judge_sees_the_images_of_the_question() -> None:
    judge, engine = judge_of(reads(says("Yes")))
    seen = f"Is {IMAGE} larger than {IMAGE}?"
    judge.compare_all([(seen, RIGHT, WRONG, (RED, BLUE)), (QUESTION, RIGHT, WRONG)])
    assert [request.images for request in engine.calls[0]] == [(RED, BLUE), (RED, BLUE), (), ()]
    assert [prompt.count(IMAGE) for prompt in engine.prompts] == [2, 2, 0, 0]
    judge.score_all([(seen, RIGHT, (RED, BLUE)), (QUESTION, RIGHT)])
    assert [request.images for request in engine.calls[1]] == [(RED, BLUE), ()]


def test_images_without_a_place_come_first() -> None:
    judge, engine = judge_of(reads(says("Yes")))
    judge.score(QUESTION, RIGHT, (RED, BLUE))
    assert f"{IMAGE}\n{IMAGE}\n{QUESTION}" in engine.prompts[0]


def test_images_are_given_as_what_one_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file by its path, its bytes, a data URL or a reference is one and the same; one image needs no list."""
    monkeypatch.setenv("SPARK_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = png()
    Path("0.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    same = ["0.png", Path("0.png"), data, url, {"bytes": data}, reference("0.png", tmp_path)]
    judge, engine = judge_of(reads(says("Yes")))
    for one in (*same, PIL.Image.open("0.png")):
        for images in ([one], (one,), one):
            judge.score(QUESTION, RIGHT, images=images)
            judge.compare(QUESTION, RIGHT, WRONG, images=images)
    judge.score_all([(QUESTION, RIGHT, ["0.png"]), (QUESTION, RIGHT)])
    shown = [[image.sha256 for image in request.images] for call in engine.calls for request in call]
    by_content = [each[0] for each in shown[:-1]]
    assert shown[-1] == [] and all(len(each) == 1 for each in shown[:-1])
    assert set(by_content[: 9 * len(same)]) == {hashlib.sha256(data).hexdigest()}


def test_a_marker_is_a_place_if_there_are_images(tmp_path: Path) -> None:
    judge, engine = judge_of(reads(says("Yes")), view="reasoning")
    judge.score("Is <image> above <image>?", f"<image> is {box('7')}", (RED, BLUE))
    judge.score("What is <image>?", RIGHT)
    assert f"Is {IMAGE} above {IMAGE}?" in engine.prompts[0] and engine.prompts[0].count(IMAGE) == 2
    assert "What is <image>?" in engine.prompts[1]
    with pytest.raises(ValueError, match="the number of images is 1, and that of <image> in 'question' is 2; write"):
        judge.score("Is <image> above <image>?", RIGHT, RED)
    with pytest.raises(ValueError, match=r"gone\.png cannot be read"):
        judge.compare(QUESTION, RIGHT, WRONG, tmp_path / "gone.png")


def test_what_stands_for_an_image_in_a_text_is_none() -> None:
    judge, engine = judge_of(reads(says("Yes")), view="reasoning")
    judge.score(f"What is {IMAGE}?", RIGHT)
    judge.score(f"What is {IMAGE}?", f"{IMAGE} is {box('7')}", (RED,))
    assert [prompt.count(IMAGE) for prompt in engine.prompts] == [0, 1]


def test_noise_depends_on_the_images_and_not_on_their_files() -> None:
    judge, engine = judge_of(reads(says("Yes")))
    moved = Image("/moved.png", RED.sha256)
    for images in ((), (RED,), (BLUE,), (moved,)):
        judge.score(QUESTION, RIGHT, images)
        judge.compare(QUESTION, RIGHT, WRONG, images)
        judge.compare(QUESTION, WRONG, RIGHT, images)
    points, pairs, swapped = ([call[0].seed for call in engine.calls[i::3]] for i in range(3))
    for seeds in (points, pairs):
        assert seeds[1] == seeds[3]
        assert len(set(seeds)) == 3
    assert pairs == swapped


def test_a_cut_judgement_is_unparsed() -> None:
    whole = says("Yes")
    assert isinstance(whole, str)
    model, _ = scripted(reads(whole), max_new_tokens=len(pieces(whole)) - 1)
    assert Judge(model).score(QUESTION, RIGHT).verdict is None
