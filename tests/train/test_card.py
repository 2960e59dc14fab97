"""The model card: metadata that the Hub can read, honest numbers, and code that runs."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from factories import make_config
from huggingface_hub import ModelCard
from typer.testing import CliRunner
from vision import picture, save_vision_model

from spark_rl.cli import app
from spark_rl.config import Config, ModelConfig, config_from, load_config
from spark_rl.images import reference
from spark_rl.models.folder import resolve_path
from spark_rl.models.load import load_tokenizer
from spark_rl.models.processor import load_image_processor
from spark_rl.prompts import ChatRenderer
from spark_rl.train.card import model_card
from spark_rl.types import IMAGE, Role

HELD_OUT = {"data": {"train": ["org/questions", "data/*.jsonl"], "validation": ["embedded:validation"]}}
SHARES = {"answer": {"share": 0.5}, "pointwise": {"share": 0.25}, "pairwise": {"share": 0.25}}
BEFORE = {"answer_accuracy": 0.25, "n_answer": 40, "pointwise_balanced_accuracy": 0.5, "n_pointwise": 12, "n": 52}
AFTER = {"answer_accuracy": 0.75, "n_answer": 40, "pointwise_balanced_accuracy": 0.625, "n_pointwise": 12, "n": 52}


def summary(**changes: Any) -> dict[str, Any]:
    values = {"before": BEFORE, "after": AFTER, "steps": 7, "final_from_step": 7, "wall_seconds": 7200.0}
    return values | changes


def card(config: Config, **more: Any) -> ModelCard:
    """The card as the Hub's library reads it."""
    return ModelCard(model_card(config, more.pop("summary", summary()), **more))


def test_the_metadata_is_what_the_hub_wants() -> None:
    found = card(config_from({**HELD_OUT, "roles": SHARES, "model": {"path": "org/base-1B"}})).data
    assert found.base_model == "org/base-1B"
    assert (found.library_name, found.pipeline_tag) == ("transformers", "text-generation")
    assert found.datasets == ["org/questions"]
    assert {"spark-rl", "llm-as-a-judge", "reward-model"} <= set(found.tags or [])


def test_the_revision_of_a_base_of_the_hub_is_named() -> None:
    hub = {"path": "org/base-1B", "revision": "v1", "commit": "a" * 40}
    config = config_from({"model": {"path": "org/base-1B@v1"}})
    made = card(config, environment={"python": "3", "packages": {}, "model": hub})
    assert f"Trained from `org/base-1B` (revision `v1`, commit `{'a' * 40}`) by" in made.text
    assert made.data.base_model == "org/base-1B"


def test_a_local_base_and_a_run_without_judges_claim_nothing() -> None:
    made = card(make_config())
    assert made.data.base_model is None and made.data.datasets is None
    assert "llm-as-a-judge" not in (made.data.tags or [])
    assert "# A solver\n" in made.text and "judges" not in made.text.partition("Every setting")[0]


def test_before_and_after_of_every_role_with_their_numbers() -> None:
    last = {"step": 7, "pointwise/yes_rate": 0.9, "pointwise/label_rate": 0.5, "pointwise/balanced_accuracy": 0.55}
    text = card(config_from({**HELD_OUT, "roles": SHARES}), last_step=last).text
    assert "| answer_accuracy | 0.250 | 0.750 | 40 |" in text
    assert "| pointwise_balanced_accuracy | 0.500 | 0.625 | 12 |" in text
    assert "| pointwise | yes_rate | 0.900 |" in text
    assert "was not measured" not in text and "| n |" not in text


def test_it_says_when_nothing_was_measured() -> None:
    text = card(make_config(), summary=summary(before={"n": 0, "by_source": {}}, after={"n": 0, "by_source": {}})).text
    assert "No held-out questions were given" in text
    assert "| metric |" not in text


def test_data_versions_and_changes_on_the_way() -> None:
    text = card(
        config_from(HELD_OUT),
        data={
            "train": [{"source": "org/questions", "rows": 7473, "skipped": {"too_long": 3}, "fingerprint": "x"}],
            "validation": [{"source": "a|b\nc", "rows": 10, "skipped": 0}],
        },
        environment={"python": "3.12", "device": "cuda:0", "processes": 8, "packages": {"torch": "2.13.0"}},
        resumes=[{"step": 3, "changes": {"train.learning_rate": [1e-6, 1e-5]}}],
    ).text
    assert "| train | org/questions | 7473 | 3 too long |" in text
    assert "| validation | a\\|b c | 10 | 0 |" in text
    assert "torch 2.13.0" in text and "8 process(es) on cuda:0" in text
    assert "| changed after step 3 | train.learning_rate: 1e-06 to 1e-05 |" in text
    assert "2509.22624" in text and "Liu, Ziyu" in text


def test_the_config_is_whole_and_cannot_break_out_of_its_block(tmp_path: Path) -> None:
    config = config_from({"data": {"system": "```\n</details>\n---\n# Not a title"}, "train": {"push_to_hub": "me/x"}})
    made = card(config)
    block = re.search(r"<summary>Every setting</summary>\n\n(`{4,})\n(.*?)\n\1\n", made.text, re.DOTALL)
    assert block is not None
    (tmp_path / "config.yaml").write_text(block[2])
    assert load_config(tmp_path / "config.yaml") == config
    assert made.data.to_dict() == card(make_config()).data.to_dict()


@pytest.mark.parametrize("system", [None, 'Be "brief".\nPlease.'])
@pytest.mark.parametrize("roles", [{}, SHARES, {"answer": {"share": 0.5}, "pairwise": {"share": 0.5}}])
def test_the_code_of_the_card_runs(roles: dict[str, Any], system: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = {"enable_thinking": False}
    config = config_from(
        {
            "roles": roles,
            "model": {"chat_template_kwargs": kwargs},
            "data": {"system": system},
            "rollout": {"max_new_tokens": 40},
            "train": {"output": "RUN"},
        }
    )
    block = re.search(r"(`{3,})python\n(.*?)\n\1\n", card(config).text, re.DOTALL)
    assert block is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block[2].replace("RUN/final", resolve_path("embedded")), {})
    judged = any(Role(role).is_judge for role in roles)
    assert printed.getvalue().count("\\boxed{") >= 1 + judged


@pytest.fixture
def picture_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """The card of a vision-language model that lies in `RUN/final` of the current folder, with a picture."""
    monkeypatch.chdir(tmp_path)
    picture(0).save("picture.png")
    config = {"roles": SHARES, "rollout": {"max_new_tokens": 9}, "train": {"output": "RUN"}, "data": {"system": "Hi."}}
    return card(config_from(config), takes_images=True)


def test_the_code_of_a_vision_language_models_card_runs(picture_card: ModelCard) -> None:
    """Of a family whose processor needs no torchvision, which is not here."""
    assert picture_card.data.pipeline_tag == "image-text-to-text"
    save_vision_model("gemma3", Path("RUN/final"))
    block = re.search(r"(`{3,})python\n(.*?)\n\1\n", picture_card.text, re.DOTALL)
    assert block is not None and "AutoModelForImageTextToText" in block[2]
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(block[2], names)
    asked: dict[str, Any] = {}
    names["model"].generate = lambda **inputs: asked.update(inputs) or inputs["input_ids"]
    parts = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "\nHow many?"}]
    names["ask"]([{"role": "user", "content": parts}])
    settings = ModelConfig(path="RUN/final")
    tokenizer = load_tokenizer(settings)
    renderer = ChatRenderer(tokenizer, {}, load_image_processor(settings, tokenizer))
    turn = {"role": "user", "content": f"{IMAGE}\nHow many?"}
    assert asked["input_ids"][0].tolist() == renderer.encode([turn], [reference("picture.png", Path())])
    assert "pixel_values" in asked


def test_the_commands_of_a_vision_language_models_card_need_no_torchvision(picture_card: ModelCard) -> None:
    save_vision_model("qwen2_5_vl", Path("RUN/final"))
    block = re.search(r"(`{3,})bash\n(.*?)\n\1\n", picture_card.text, re.DOTALL)
    assert block is not None
    solved, judged = (
        CliRunner().invoke(app, [*shlex.split(line)[1:], "engine.max_new_tokens=9"]) for line in block[2].splitlines()
    )
    assert (solved.exit_code, judged.exit_code) == (0, 0), solved.output + judged.output
