import itertools

import pytest
import torch

from spark_rl.embedded.habits import BASE, MAKERS, mixture
from spark_rl.embedded.pictures import picture_problems
from spark_rl.embedded.vision_build import (
    ALL_KINDS,
    IMAGE_PAD,
    STAGES,
    VISION_END,
    VISION_START,
    Encoder,
    build_image_processor,
    build_model,
    build_tokenizer,
)
from spark_rl.prompts import Prompts
from spark_rl.types import IMAGE
from spark_rl.verify import box


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def encoder(tokenizer) -> Encoder:
    return Encoder(tokenizer, build_image_processor())


def test_numbers_and_what_stands_around_an_image_are_single_tokens(tokenizer):
    for text in (*map(str, range(100)), box("")[:-1], IMAGE_PAD, VISION_START, VISION_END):
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def test_an_image_takes_one_token_a_cell(encoder):
    for level, cells in ((1, 9), (2, 16), (3, 25)):
        (problem,) = itertools.islice(picture_problems("train", 0, levels=(level,)), 1)
        ids = encoder.prompt(Prompts().question(problem.question), problem.image.path)
        assert ids.count(encoder.image_pad) == cells


def test_content_in_parts_renders_as_text_with_the_image_in_it_does(tokenizer):
    text = f"before {IMAGE} after"
    before, after = text.split(IMAGE)
    parts = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": after}]

    def rendered(content) -> str:
        turns = [{"role": "user", "content": content}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    assert rendered(parts) == rendered(text).replace(IMAGE, VISION_START + IMAGE_PAD + VISION_END)


def test_prompts_are_short_and_judges_see_the_picture(encoder):
    stream = mixture(picture_problems("pretrain", 0), BASE, ALL_KINDS, 0)
    for _, problem, sample in itertools.islice(stream, 300):
        encoded = encoder.sample(sample, problem.image.path)
        assert encoded.paths == (problem.image.path,)
        assert encoded.ids[: encoded.learned.index(True)] == encoder.prompt(sample[0], problem.image.path)
        assert len(encoded.ids) < 300


def test_every_stage_draws_kinds_that_exist():
    assert all(stage.shares.keys() <= MAKERS.keys() for stage in STAGES)


def test_a_new_model_is_small_and_sees(tokenizer, encoder):
    model = build_model(tokenizer, seed=0).eval()
    assert sum(p.numel() for p in model.parameters()) < 1_100_000
    (problem,) = itertools.islice(picture_problems("validation", 0), 1)
    ids = torch.tensor([encoder.prompt(Prompts().question(problem.question), problem.image.path)])
    features = encoder.images([problem.image.path])

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        is_image = torch.eq(ids, encoder.image_pad).int()
        with torch.no_grad():
            inputs = features | {"pixel_values": pixels}
            return model(input_ids=ids, mm_token_type_ids=is_image, **inputs).logits[0, -1]

    assert not torch.allclose(logits(features["pixel_values"]), logits(torch.ones_like(features["pixel_values"])))
