import itertools
import re
from pathlib import Path

import pytest
import yaml
from factories import make_config
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from spark_rl.config import Config, config_from, load_config, load_inference, merge, parse_override
from spark_rl.types import Role


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None = None, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ presets


def test_paper_preset_is_what_the_paper_says():
    config = load_config(overrides=["preset=paper"])
    assert (config.rollout.groups_per_step, config.rollout.num_generations) == (64, 8)
    roles = config.roles
    assert (roles.pointwise.share + roles.pairwise.share) / roles.answer.share == 32 / 64
    assert roles.reflection.share / roles.answer.share == 32 / 64
    assert (config.rollout.max_new_tokens, config.rollout.temperature) == (768, 1.0)
    loss, train, recycle = config.loss, config.train, config.recycle
    assert (loss.clip_low, loss.clip_high, loss.kl_coef) == (0.2, 0.2, 0.001)
    assert (loss.aggregation, loss.advantage_scale) == ("dapo", "group")
    assert (train.learning_rate, train.schedule, train.min_lr_ratio, train.warmup_ratio) == (5e-7, "cosine", 0.1, 0.03)
    assert (train.betas, train.max_grad_norm) == ((0.9, 0.95), 1.0)
    assert (recycle.schedule, recycle.pair_rate, recycle.max_depth) == ("alternating", 0.7, 1)
    assert not recycle.balanced and not recycle.both_orders and recycle.keep_right_share == 0


def test_spark_preset_is_ours():
    config = load_config(overrides=["preset=spark"])
    assert config.recycle.schedule == "cobatched"
    assert config.recycle.balanced and config.recycle.both_orders
    assert config.recycle.keep_right_share > 0 and config.recycle.max_depth == 2
    assert config.slots() == {Role.ANSWER: 32, Role.POINTWISE: 16, Role.PAIRWISE: 8, Role.REFLECTION: 8}


def test_grpo_preset_recycles_nothing():
    config = load_config(overrides=["preset=grpo"])
    assert config.slots() == {Role.ANSWER: 64, Role.POINTWISE: 0, Role.PAIRWISE: 0, Role.REFLECTION: 0}


def test_without_a_preset_nothing_is_recycled_either():
    assert load_config().slots()[Role.ANSWER] == load_config().rollout.groups_per_step


def test_a_setting_of_the_answer_role_leaves_its_share_alone():
    assert load_config(overrides=["roles.answer.max_new_tokens=9"]).roles.answer.share == 1.0


def test_overrides_beat_the_file_and_the_file_beats_the_preset(tmp_path):
    path = write(tmp_path, "preset: paper\nrollout: {num_generations: 4, max_new_tokens: 100}\n")
    config = load_config(path, ["rollout.max_new_tokens=50", "train.betas=[0.8, 0.99]"])
    assert config.preset == "paper"
    assert config.loss.kl_coef == 0.001  # preset
    assert config.rollout.num_generations == 4  # file over preset
    assert config.rollout.max_new_tokens == 50  # override over file
    assert config.train.betas == (0.8, 0.99)
    assert load_config(path, ["preset=grpo"]).loss.kl_coef == 0.0


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.steps=5", ["'trian'", "did you mean 'train'"]),
        ("train.stesp=5", ["'train.stesp'", "did you mean 'steps'"]),
        ("loss.klcoef=0.1", ["'loss.klcoef'", "did you mean 'kl_coef'"]),
        ("roles.judge.share=0.5", ["'roles.judge'", "known here: answer, pointwise, pairwise, reflection"]),
        ("roles.pairwise.shares=0.5", ["'roles.pairwise.shares'", "did you mean 'share'"]),
        ("preset=sparc", ["'sparc'", "grpo, paper, spark"]),
        ("preset=[spark]", ["grpo, paper, spark"]),
        ("train.steps=0", ["train.steps", "greater than or equal to 1", "not 0"]),
        ("train.steps=many", ["train.steps", "integer", "not 'many'"]),
        ("rollout.num_generations=1", ["rollout.num_generations", "2"]),
        ("rollout.temperature=0", ["rollout.temperature", "greater than 0"]),
        ("loss.aggregation=mean", ["loss.aggregation", "'grpo', 'dapo' or 'dr_grpo'", "not 'mean'"]),
        ("roles.answer.share=0.5", ["add up to 0.5", "make them add up to 1"]),
        ("train=5", ["train", "not 5"]),
        ("train.steps", ["'train.steps'", "section.key=value"]),
        ("=5", ["section.key=value"]),
        ("train.betas=[0.9", ["train.betas=[0.9", "not valid YAML"]),
        ("train.output=a: b: c", ["train.output", "not valid YAML"]),
    ],
)
def test_a_bad_override_is_one_sentence_that_names_the_key(override, words):
    message = refusal(None, override)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {steps: 5\n", ["not valid YAML"]),
        ("- train\n", ["mapping of sections"]),
        ("just words\n", ["mapping of sections"]),
        ("train: {stesp: 5}\n", ["unknown key 'train.stesp'", "'steps'"]),
        ("1: 2\n", ["1"]),
        ("train:\n", ["train", "None"]),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path, text, words):
    path = write(tmp_path, text)
    message = refusal(path)
    assert message.startswith(f"{path}:")
    assert all(word in message for word in words), message


def test_a_file_that_is_missing_a_folder_or_no_text_says_so(tmp_path):
    assert "nothing.yaml: cannot be read" in refusal(tmp_path / "nothing.yaml")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00train")
    assert "not valid YAML" in refusal(tmp_path / "binary.yaml")


def test_every_mistake_is_told_at_once():
    message = refusal(None, "train.stesp=5", "loss.clip_low=2")
    assert "train.stesp" in message and "loss.clip_low" in message


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_config(write(tmp_path, "# nothing yet\n")) == Config()


def test_a_step_without_questions_is_refused():
    shares = [f"roles.{role}.share={share}" for role, share in (("answer", 0), ("pairwise", 1))]
    assert "nothing to recycle" in refusal(None, *shares)


def test_a_config_can_not_be_changed_after_validation():
    with pytest.raises(ValueError, match="frozen"):
        Config().train.steps = 5


# ------------------------------------------------------------------------------------------------ slots and roles

weights = st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(lambda w: w[0] > 0)


def slots_of(weights: list[int], groups: int, **recycle: bool) -> dict[Role, int]:
    """The slots, where no role with a share is left without one (which is refused)."""
    roles = {role.value: {"share": weight / sum(weights)} for role, weight in zip(Role, weights, strict=True)}
    try:
        return make_config(roles=roles, rollout={"groups_per_step": groups}, recycle=recycle).slots()
    except ValueError as error:
        assert "too little" in str(error)
        assume(False)
        raise


@given(weights=weights, groups=st.integers(1, 300))
def test_slots_are_the_shares_by_largest_remainder(weights, groups):
    exact = {role: weight * groups / sum(weights) for role, weight in zip(Role, weights, strict=True)}
    remainders = sorted((round(x % 1, 6) for x in exact.values()), reverse=True)
    assume(all(a - b > 0 or a == b == 0 for a, b in itertools.pairwise(remainders)))  # ties are free
    slots = slots_of(weights, groups, balanced=False, both_orders=False)
    assert sum(slots.values()) == groups
    short = groups - sum(weight * groups // sum(weights) for weight in weights)
    up = set(sorted(Role, key=lambda role: weights[list(Role).index(role)] * groups % sum(weights))[4 - short :])
    for role, weight in zip(Role, weights, strict=True):
        assert slots[role] == weight * groups // sum(weights) + (role in up)


@given(weights=weights, groups=st.integers(1, 1000))
def test_slots_fill_the_step_never_serve_an_absent_role_and_hold_whole_couples(weights, groups):
    slots = slots_of(weights, groups)
    assert sum(slots.values()) == groups
    assert slots[Role.POINTWISE] % 2 == slots[Role.PAIRWISE] % 2 == 0
    for role, weight in zip(Role, weights, strict=True):
        assert abs(slots[role] - weight * groups / sum(weights)) < 3
        assert slots[role] == 0 or weight > 0


@pytest.mark.parametrize(
    "override",
    ["train.learning_rate=.inf", "train.max_grad_norm=.inf", "loss.kl_coef=.nan", "recycle.right_at=.nan",
     "train.betas=[0.9, .nan]", "rollout.temperature=.inf"],
)  # fmt: skip
def test_a_number_that_is_none_is_refused(override):
    assert "finite" in refusal(None, override) and override.partition("=")[0] in refusal(None, override)


def test_a_beta_of_one_would_never_move():
    assert "train.betas.1: input should be less than 1" in refusal(None, "train.betas=[0.9, 1.0]")
    assert load_config(overrides=["train.betas=[0, 0.999]"]).train.betas == (0, 0.999)


def test_a_share_that_gives_no_slot_is_refused():
    with pytest.raises(ValueError, match=r"roles\.pairwise\.share is 0\.1, .* raise rollout"):
        make_config(roles={"answer": {"share": 0.9}, "pairwise": {"share": 0.1}}, rollout={"groups_per_step": 10})


def test_roles_fall_back_on_the_rollout_section():
    pointwise = {"num_generations": 4, "max_new_tokens": 10, "temperature": 0.5}
    config = make_config(
        rollout={"num_generations": 6, "max_new_tokens": 99, "temperature": 0.9}, roles={"pointwise": pointwise}
    )
    for role, expected in ((Role.POINTWISE, (4, 10, 0.5)), (Role.ANSWER, (6, 99, 0.9))):
        assert (config.num_generations(role), config.max_new_tokens(role), config.temperature(role)) == expected


# ------------------------------------------------------------------------------------------------ dump, merge, docs


@pytest.mark.parametrize("preset", [None, "paper", "spark", "grpo"])
def test_a_dumped_config_loads_back_equal(tmp_path, preset):
    overrides = [
        *([f"preset={preset}"] if preset else []),
        "train.output=some/where else",
        "train.learning_rate=3e-7",
        "model.chat_template=chat.jinja",
        "model.chat_template_kwargs={enable_thinking: false}",
        "data.system='Say: \"no\" # not a comment'",
        'rollout.stop=["\\n\\n", "é: {x}"]',
        "roles.pointwise.num_generations=4",
        "roles.pointwise.temperature=0.7",
    ]
    config = load_config(overrides=overrides)
    assert config.train.learning_rate == 3e-7 and config.rollout.stop == ["\n\n", "é: {x}"]
    again = load_config(write(tmp_path, config.dump()))
    assert again == config
    assert again.dump() == config.dump()


def test_a_dump_says_every_key():
    def keys(section: type[BaseModel]) -> dict:
        nested = {name: field.annotation for name, field in section.model_fields.items()}
        return {k: keys(v) if isinstance(v, type) and issubclass(v, BaseModel) else None for k, v in nested.items()}

    def same_keys(values: dict, known: dict) -> bool:
        return values.keys() == known.keys() and all(same_keys(values[k], v) for k, v in known.items() if v)

    assert same_keys(yaml.safe_load(Config().dump()), keys(Config))


nested = st.recursive(
    st.integers(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict))


def leaves(values: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for key, value in values.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


@given(base=nested, over=nested)
def test_merge_keeps_all_of_over_and_what_it_leaves_of_base(base, over):
    merged = leaves(merge(base, over))
    for path, value in leaves(over).items():
        assert merged[path] == value
    for path, value in leaves(base).items():
        touched = any(path[: len(other)] == other or other[: len(path)] == path for other in leaves(over))
        if not touched and path in merged:
            assert merged[path] == value
    assert merged.keys() <= leaves(base).keys() | leaves(over).keys()
    assert merge(base, {}) == base and merge({}, over) == over


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", {"a": {"b": 1}}),
        ("a=true", {"a": True}),
        (" a.b = x=y ", {"a": {"b": "x=y"}}),
        ("a.b=", {"a": {"b": None}}),
        ("a.b=[1, two]", {"a": {"b": [1, "two"]}}),
    ],
)
def test_override_values_are_yaml(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (r"Result:\s*(.+)", r"Result:\s*(.+)"),
        (r"Result: (.+)", r"Result: (.+)"),
        (r"####\s*(.+)", r"####\s*(.+)"),
        (r"\[(.+)\] # end", r"\[(.+)\] # end"),
        (r"[Rr]esult (\d+)", r"[Rr]esult (\d+)"),
        (r"*(.+)*", r"*(.+)*"),
        ("17", "17"),
        ("'#### (.+)'", "#### (.+)"),
        ('"a\\tb"', "a\tb"),
        ("~", None),
    ],
)
def test_overrides_of_texts_are_no_yaml_unless_they_are_quoted(value, text):
    assert load_config(None, [f"data.answer_pattern={value}"]).data.answer_pattern == text
    if text:
        assert load_inference([f"data.answer_format={value}"]).data.answer_format == text


def sections(section: type[BaseModel], path: str = "") -> list[tuple[str, type[BaseModel]]]:
    inner = [(f"{path}{name}.", f.annotation) for name, f in section.model_fields.items()]
    found = [s for p, a in inner if isinstance(a, type) and issubclass(a, BaseModel) for s in sections(a, p)]
    return [(path, section), *found]


def test_every_knob_is_documented():
    for path, section in sections(Config)[1:]:
        for name, field in section.model_fields.items():
            assert re.match(r"\S+", field.description or ""), f"{path}{name} has no docstring"


def test_a_mapping_is_validated_like_a_file():
    assert config_from({"train": {"steps": 3}}).train.steps == 3
    with pytest.raises(ValueError, match=r"here: train\.steps: "):
        config_from({"train": {"steps": -3}}, where="here")


def test_a_key_in_the_wrong_section_is_shown_its_place():
    assert "did you mean 'train.learning_rate'" in refusal(None, "learning_rate=1")
    assert "did you mean 'rollout.max_new_tokens'" in refusal(None, "train.max_new_tokens=1")


def test_one_text_is_a_list_of_one():
    config = load_config(overrides=["train.trackers=tensorboard", "rollout.stop=END", "data.train=a.jsonl"])
    assert config.train.trackers == ["tensorboard"] and config.rollout.stop == ["END"]
    assert [source.path for source in config.data.train] == ["a.jsonl"]


def test_the_first_rows_of_a_training_file_can_be_held_out():
    assert "size" in refusal(None, "data.train=a.jsonl", "data.validation=a.jsonl")
    load_config(None, ["data.train=a.jsonl", "data.validation={path: a.jsonl, size: 9}"])


@pytest.mark.parametrize("depth", [90, 200, 3000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_what_is_nested_deeply_is_one_sentence(tmp_path, depth, pair):
    """Also what YAML can still read, but no checkpoint could hold."""
    path, inner = tmp_path / "run.yaml", "1"
    opening, closing = ("[", "]") if pair == "[]" else ("{a: ", "}")
    path.write_text(f"model: {{chat_template_kwargs: {{a: {opening * depth}{inner}{closing * depth}}}}}")
    override = f"model.chat_template_kwargs.a={opening * depth}{inner}{closing * depth}"
    if depth < 100:
        assert load_config(path) == load_config(None, [override])
        load_config(path).dump()
        return
    for load, place in ((lambda: load_config(path), path), (lambda: load_config(None, [override]), "override model")):
        with pytest.raises(ValueError, match="is nested more than 100 levels deep") as caught:
            load()
        assert str(caught.value).startswith(str(place)) and len(str(caught.value)) < 300


def test_yaml_that_holds_itself_is_one_sentence(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {chat_template_kwargs: {a: &a [*a]}}")
    with pytest.raises(ValueError, match="is nested more than 100 levels deep"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("path", ["org/name@v1.0", "name@v1.0"])
def test_a_revision_may_stand_behind_the_id_of_a_model(path):
    for config in (load_config(None, [f"model.path={path}"]), load_inference(model={"path": path})):
        assert (config.model.path, config.model.revision, config.model.name) == (path[:-5], "v1.0", path)
    again = load_config(None, [f"model.path={path}", "model.revision=v1.0"])
    assert again == load_config(None, [f"model.path={path[:-5]}", "model.revision=v1.0"])
    with pytest.raises(ValueError, match=r"names the revision 'v1\.0', and model\.revision is 'v2'; give one"):
        load_config(None, [f"model.path={path}", "model.revision=v2"])


@pytest.mark.parametrize("path", ["./a@b", "runs/x/final", "a/b/c@d", "http://user@host:8000/v1", "/data/a@b"])
def test_what_is_no_id_keeps_its_path(path):
    assert load_inference(model={"path": path}).model.path == path


def test_a_folder_with_such_a_name_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name@v1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ["model.path=org/name@v1"]).model.revision is None


def test_a_server_has_its_revision():
    with pytest.raises(ValueError, match=r"model\.revision is 'v1', but http://x has loaded its model already"):
        load_inference(["model.revision=v1"], model={"path": "http://x"})
