"""Images in engine and update: the same tokens, losses and gradients as the model's own forward, five families."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from vision import FAMILIES, image_file, save_vision_model

from spark_rl.config import ModelConfig
from spark_rl.images import open_image, shrunk
from spark_rl.models import prefixes, processor
from spark_rl.models.load import load_model, load_tokenizer
from spark_rl.models.packed_row import Prefix
from spark_rl.models.prefixes import prompt_classes
from spark_rl.models.processor import ImageProcessor, load_image_processor
from spark_rl.models.vision import Vision, freeze_vision, vision_modules
from spark_rl.prompts import ChatRenderer
from spark_rl.rollout.engine import Request
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.forward import GroupBatch, GroupLogProbs, collate
from spark_rl.types import IMAGE, Image


@dataclass
class Loaded:
    model: Any
    tokenizer: Any
    images: ImageProcessor
    renderer: ChatRenderer
    folder: Path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    known: dict[str, Loaded] = {}

    def load(family: str) -> Loaded:
        if family not in known:
            folder = save_vision_model(family, tmp_path_factory.mktemp(family))
            config = ModelConfig(path=str(folder))
            tokenizer = load_tokenizer(config)
            images = load_image_processor(config, tokenizer)
            model = load_model(config)
            with torch.no_grad():  # so that no greedy path goes through an image token
                model.get_output_embeddings().weight[model.config.image_token_id] = 0
            known[family] = Loaded(model, tokenizer, images, ChatRenderer(tokenizer, images=images), folder)
        return known[family]

    return load


def prompts(of: Loaded) -> list[tuple[str, tuple[Image, ...]]]:
    """A text, one image, two images among words, and the same image once more."""
    first, second = image_file(of.folder, 1, 48, 40), image_file(of.folder, 2, 24, 16)
    return [
        ("What is 2+2?", ()),
        (f"{IMAGE}How many are red?", (first,)),
        (f"Is {IMAGE} larger than {IMAGE}? Say so.", (first, second)),
        (f"Is this right? {IMAGE} Three.", (first,)),
    ]


def encoded(of: Loaded) -> list[tuple[list[int], tuple[Image, ...]]]:
    return [(of.renderer.encode([{"role": "user", "content": c}], i), i) for c, i in prompts(of)]


def batch_of(of: Loaded, seed: int = 0, odd: int | None = None) -> GroupBatch:
    """Groups of the prompts, with completions of several lengths; `odd` is a token that one of them begins with."""
    generator = torch.Generator().manual_seed(seed)
    taken = encoded(of)
    lengths = [(3, 5), (4,), (1, 6, 2), (2, 2)]
    completions = [
        [torch.randint(8, 60, (n,), generator=generator).tolist() for n in of_prompt] for of_prompt in lengths
    ]
    if odd is not None:
        completions[1][0][0] = odd
    vision = Vision(of.model, of.images)
    images = vision.read([ids for ids, _ in taken], [shown for _, shown in taken])
    return collate([(ids, group) for (ids, _), group in zip(taken, completions, strict=True)], 0, None, images)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_the_processor(loaded, family):
    of = loaded(family)
    for content, images in prompts(of):
        if not images:
            continue
        parts = of.renderer._content(content)
        text = of.images.processor.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        pictures = [open_image(image) for image in images]
        given = pictures if family == "llava_onevision" else [pictures]  # see the next test
        expected = of.images.processor(images=given, text=[text], add_special_tokens=False)["input_ids"][0]
        assert of.renderer.encode([{"role": "user", "content": content}], images) == list(expected)


def test_each_of_several_images_is_taken_as_if_alone(loaded):
    """LLaVA-OneVision's processor does so with a flat list of images. Of lists, one a prompt, as its chat template
    gives them, it reduces each of several images to one crop: 16 tokens and a newline here."""
    of = loaded("llava_onevision")
    content, images = prompts(of)[2]
    ids = of.renderer.encode([{"role": "user", "content": content}], images)
    num_tokens = [of.images.prepare(image).num_tokens for image in images]
    assert ids.count(of.images.image_token_id) == sum(num_tokens) > 2 * 17
    pictures, text = [open_image(image) for image in images], " ".join([of.images.placeholder] * 2)
    for shown, expected in ((pictures, sum(num_tokens)), ([pictures], 2 * 17)):
        made = of.images.processor(images=shown, text=[text])["input_ids"][0]
        assert list(made).count(of.images.image_token_id) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_have_the_models_own_log_probabilities(loaded, family):
    of = loaded(family)
    for implementation in ("shared", "plain"):
        module = GroupLogProbs(copy.deepcopy(of.model), implementation)
        assert module.self_check(batch_of(of), tolerance=1e-4) is None, implementation


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_the_plain_forward(loaded, family):
    of, gradients, losses = loaded(family), {}, {}
    for implementation in ("shared", "plain"):
        model = copy.deepcopy(of.model)
        batch = batch_of(of)
        logps_RT = GroupLogProbs(model, implementation)(batch).logps_RT
        weight_RT = torch.linspace(-1, 1, logps_RT.numel()).view_as(logps_RT)
        loss = (logps_RT * weight_RT).sum() / logps_RT.numel()
        loss.backward()
        losses[implementation] = loss.detach()
        gradients[implementation] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(losses["shared"], losses["plain"], atol=1e-5, rtol=1e-5)
    assert gradients["shared"].keys() == gradients["plain"].keys()
    assert any("vis" in name for name in gradients["shared"])
    scale = max(gradient.abs().max() for gradient in gradients["plain"].values())
    for name, gradient in gradients["plain"].items():
        torch.testing.assert_close(gradients["shared"][name] / scale, gradient / scale, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_before_images_has_the_plain_gradient(loaded, family):
    of, gradients = loaded(family), []
    for implementation in ("shared", "plain"):
        module = GroupLogProbs(copy.deepcopy(of.model), implementation)
        batch = batch_of(of)
        if implementation == "shared":
            prefix = Prefix(encoded(of)[0][0][:5])
            (states,) = module([prefix.ids])
            prefix.states = {layer: tuple(x.detach().requires_grad_() for x in pair) for layer, pair in states.items()}
        for last in (False, True):
            if implementation == "shared":
                batch = replace(batch, prefix=prefix, ends_prefix=last)
            logps_RT = module(batch).logps_RT
            (logps_RT * torch.linspace(-1, 1, logps_RT.numel()).view_as(logps_RT)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
    ours, plain = gradients
    assert (ours - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shares", [True, False])
def test_greedy_tokens_are_those_of_generate(loaded, family, shares, monkeypatch):
    of = loaded(family)
    monkeypatch.setattr("spark_rl.rollout.transformers_engine.can_share", lambda model: shares)
    taken = encoded(of)
    requests = [
        Request(str(i), tuple(ids), n=2, max_new_tokens=8, temperature=0.0, images=images)
        for i, (ids, images) in enumerate(taken)
    ]
    engine = TransformersEngine(of.model, of.tokenizer, images=of.images)
    made = engine.generate(requests)
    vision = Vision(of.model, of.images)
    for (ids, images), completions in zip(taken, made, strict=True):
        input_ids = torch.tensor([ids])
        read = vision.read([ids], [images])
        extra = read.stock(of.model, input_ids, [0]) if read else {}
        if read and read.blocks is not None:
            extra["token_type_ids"] = extra.pop("mm_token_type_ids", (input_ids == of.images.image_token_id).long())
        out = of.model.generate(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), do_sample=False, max_new_tokens=8, **extra
        )
        expected = out[0, len(ids) :].tolist()
        for completion in completions:
            assert completion.token_ids == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_before_images_may_be_computed_once(loaded, family, every_prefix, monkeypatch):
    of = loaded(family)
    taken = encoded(of)
    requests = [
        Request(str(i), tuple(ids), 2, 8, temperature=i % 2, images=images) for i, (ids, images) in enumerate(taken)
    ]
    before = Vision(of.model, of.images).before_images([ids for ids, _ in taken])
    (each,) = prompt_classes([ids for ids, _ in taken], before)
    assert 5 <= each.length <= min(before) < len(taken[1][0])
    engine = TransformersEngine(of.model, of.tokenizer, images=of.images)
    made = engine.generate(requests)
    assert engine.shares
    monkeypatch.setattr(prefixes, "_FIXED", 10**6)
    for ours, theirs in zip(made, engine.generate(requests), strict=True):
        assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]


def test_an_image_token_that_was_sampled_is_no_image(loaded):
    of = loaded("qwen2_5_vl")
    batch = batch_of(of, odd=of.images.image_token_id)
    assert GroupLogProbs(copy.deepcopy(of.model), "shared").self_check(batch, tolerance=1e-4) is None


def test_an_image_token_that_was_typed_is_no_image(loaded):
    of = loaded("qwen2_5_vl")
    image = image_file(of.folder, 1, 48, 40)
    ids = of.renderer.encode([{"role": "user", "content": f"{IMAGE}<|image_pad|> is a token"}], (image,))
    assert ids.count(of.images.image_token_id) == of.images.prepare(image).num_tokens
    plain = of.renderer.encode([{"role": "user", "content": "<|image_pad|> is a token"}])
    assert of.images.image_token_id not in plain


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_may_leave_the_expansion_to_others(loaded, family):
    """A placeholder for each image, as vLLM takes prompts; a typed one is text in both."""
    of = loaded(family)
    mark = of.tokenizer.encode(of.images.placeholder, add_special_tokens=False)
    for content, images in [*prompts(of), (f"{IMAGE}no {of.images.placeholder} here", prompts(of)[1][1])]:
        message = [{"role": "user", "content": content}]
        ids = of.renderer.encode(message, images, expand=False)
        assert sum(ids[i : i + len(mark)] == mark for i in range(len(ids))) == len(images)
        text = of.tokenizer.decode(of.renderer.encode(message, images))
        for image in images:
            text = text.replace(of.images.expand(image), of.images.placeholder, 1)
        assert of.tokenizer.decode(ids) == text


def counted(monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> list[Any]:
    """The arguments of the calls of a method, which is called as before."""
    method, calls = getattr(target, name), list[Any]()

    @functools.wraps(method)
    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append((*args, *kwargs.values()))
        return method(*args, **kwargs)

    monkeypatch.setattr(target, name, noted)
    return calls


def test_what_is_written_of_an_image_outlives_its_pixels(loaded, monkeypatch):
    """A step measures its prompts, renders them, generates and updates, and its images may be more than are kept."""
    of = loaded("qwen2_5_vl")
    files = [image_file(of.folder, 10 + i, 24, 16 + 8 * i) for i in range(4)]
    images = ImageProcessor(of.images.processor, of.images.image_token_id, of.images.max_pixels)
    monkeypatch.setattr(processor, "_CACHE_BYTES", 2 * images.prepare(files[3]).num_bytes)
    prepared = counted(monkeypatch, images, "_prepare")
    expected = [images.expand(file) for file in files]
    assert len(prepared) == 3 and len(set(map(len, expected))) == 4
    assert [images.expand(file) for file in files * 2] == expected * 2
    assert len(prepared) == 3
    for file, text in zip(files, expected, strict=True):
        assert text.count(images.placeholder) == images.prepare(file).num_tokens
        kept = [prepared.num_bytes for prepared in images._kept.values()]
        assert sum(kept) == images._kept_bytes <= processor._CACHE_BYTES
    assert 3 < len(prepared) <= 7


def test_texts_of_images_are_forgotten_in_the_end(loaded, monkeypatch):
    of = loaded("qwen2_5_vl")
    monkeypatch.setattr(processor, "_REMEMBERED", 2)
    images = ImageProcessor(of.images.processor, of.images.image_token_id, of.images.max_pixels)
    for seed in range(5):
        assert images.expand(image_file(of.folder, seed, 24, 16))
        assert len(images._texts) <= 2


@given(short=st.integers(8, 80), ratio=st.floats(1, 200), max_pixels=st.integers(784, 2**20), upright=st.booleans())
@example(short=75, ratio=200.0, max_pixels=2**20, upright=False)
@example(short=29, ratio=1.0, max_pixels=785, upright=False)
@example(short=29, ratio=1.0, max_pixels=840, upright=True)
def test_a_picture_that_is_made_smaller_is_made_no_longer_a_strip(short, ratio, max_pixels, upright):
    """The check of the data lets 200:1 pass, and Qwen's processor refuses more."""
    long = int(short * ratio)
    picture = PIL.Image.new("L", (short, long) if upright else (long, short))
    sides = shrunk(picture, max_pixels).size
    new_short, new_long = sides if upright else sides[::-1]
    assert new_long * short <= long * new_short
    assert new_long * new_short <= max(max_pixels, long * short) and (new_long, new_short) <= (long, short)
    if long * short > max_pixels:
        assert max_pixels - 2 * new_long <= new_long * new_short <= max_pixels


def test_the_longest_strip_that_may_be_is_one_for_the_processor_too(loaded):
    images = loaded("qwen2_5_vl").images
    picture = PIL.Image.new("RGB", (15_000, 75))
    assert ImageProcessor(images.processor, images.image_token_id, 2**20).prepare_picture(picture).num_tokens


def test_all_but_the_language_model_is_frozen_whatever_it_is_called():
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": 64, **small}
    with torch.device("meta"):
        model = transformers.Idefics3ForConditionalGeneration(
            transformers.Idefics3Config(text_config=text, vision_config=small, pad_token_id=0)
        )
    freeze_vision(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    of_text = {name for name, _ in model.named_parameters() if name.startswith(("model.text_model.", "lm_head."))}
    assert frozen == dict(model.named_parameters()).keys() - of_text
    assert all(any(part in name for name in frozen) for part in ("vision_model", "connector"))


def test_a_language_model_that_is_no_part_of_its_own_cannot_be_trained_alone():
    with torch.device("meta"):
        model = transformers.ChameleonForConditionalGeneration(
            transformers.ChameleonConfig(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                vocab_size=64,
                vocabulary_map={"<image>": 3},
                vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1},
            )
        )
    with pytest.raises(ValueError, match=r"Chameleon.*set model.freeze_vision=false"):
        freeze_vision(model)
    assert vision_modules(model) == []


@pytest.mark.parametrize("shares", [True, False])
def test_an_image_is_prepared_and_encoded_once(loaded, monkeypatch, shares):
    """Four prompts show two images four times, with several completions each."""
    of = loaded("qwen2_5_vl")
    monkeypatch.setattr("spark_rl.rollout.transformers_engine.can_share", lambda model: shares)
    images = ImageProcessor(of.images.processor, of.images.image_token_id, of.images.max_pixels)
    of = replace(of, model=copy.deepcopy(of.model), images=images, renderer=ChatRenderer(of.tokenizer, images=images))
    prepared = counted(monkeypatch, images, "_prepare")
    encoded_pixels = counted(monkeypatch, of.model.base_model, "get_image_features")
    patches = 4 * (6 * 5 + 3 * 2)  # of 48x40 and of 24x16 pixels, four a token
    requests = [Request(str(i), tuple(ids), 2, 4, images=shown) for i, (ids, shown) in enumerate(encoded(of))]
    TransformersEngine(of.model, of.tokenizer, images=images).generate(requests)
    batch = batch_of(of)
    GroupLogProbs(of.model, "shared" if shares else "plain")(batch)
    assert len(prepared) == 2
    assert [pixels.shape[0] for pixels, *_ in encoded_pixels] == [patches, patches]
    assert batch.images.of_prompt == [[], [0], [0, 1], [0]]
