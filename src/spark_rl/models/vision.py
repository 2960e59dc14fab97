"""What the forward of a vision-language model needs for prompts that hold images.

An image's features are computed once, for all prompts and completions that show it, and handed to the model's own
forward, which puts them in the places of the image tokens. Positions of image tokens have three axes in some families
(Qwen-VL); in others the tokens of one image see each other in both directions (Gemma 3).

Shape suffixes: P tokens of a prompt, A axes of its positions, R rows, L tokens of a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from spark_rl.models.load import unwrap
from spark_rl.models.processor import ImageProcessor, PreparedImage
from spark_rl.types import Image


@dataclass(slots=True)
class PromptImages:
    """The images of a batch of prompts, each one once."""

    images: list[PreparedImage]
    of_prompt: list[list[int]]
    """For each prompt, its images among `images`, in order."""
    lengths: list[int]
    """Tokens of each prompt."""
    positions: list[np.ndarray] | None
    """Of each prompt, [A, P]; None where they are 0, 1, 2, ..."""
    image_token_id: int
    blocks: list[np.ndarray] | None
    """Of each prompt, [P]: a number for the tokens of each image, which see each other both ways, and -1 for text;
    None where attention is causal throughout."""

    def tensors(self, device: torch.device | str, order: Sequence[int] | None = None) -> dict[str, Tensor]:
        """What the vision tower reads, of each image once, or of those that these prompts show, as often as they do.

        Names and shapes are those of the model's processor, with all images along the first axis: Qwen-VL's
        `pixel_values` are [patches, pixels of one], Gemma 3's [crops, C, H, W], LLaVA's [images, crops, C, H, W].

        Args:
            order: prompts, by number.

        Raises:
            ValueError: there is no image among these prompts.
        """
        numbers = range(len(self.images)) if order is None else [i for b in order for i in self.of_prompt[b]]
        names = self.images[0].tensors
        return {name: _joined([self.images[i].tensors[name] for i in numbers]).to(device) for name in names}

    def features(self, body: Any, order: Sequence[int] | None = None) -> dict[str, Any]:
        """The argument of the model's forward that holds the features of all prompts' images.

        They are [image tokens of all rows, D], row after row, D the language model's hidden size; so are those that
        Qwen3-VL adds to the outputs of its first layers.

        Args:
            body: the model without its head.
            order: the prompts of the forward's rows; by default each prompt once.

        Raises:
            AttributeError, IndexError, RuntimeError: the model is of another make, or has fewer features of an image
                than its processor makes image tokens.
        """
        device = next(body.parameters()).device
        counts = [image.num_tokens for image in self.images]
        starts = np.cumsum(counts) - counts
        shown = [i for b in (range(len(self.of_prompt)) if order is None else order) for i in self.of_prompt[b]]
        taken = [np.arange(starts[i], starts[i] + counts[i]) for i in shown]
        index = torch.from_numpy(np.concatenate([np.empty(0, int), *taken])).to(device)
        out = body.get_image_features(**_accepted(body.get_image_features, self.tensors(device)), return_dict=True)
        out.pooler_output = _rows(out.pooler_output, index)
        if getattr(out, "deepstack_features", None) is not None:
            out.deepstack_features = [_rows(layer, index) for layer in out.deepstack_features]
        return {"mm_encoder_outputs": {"image": out}}

    def stock(self, model: Any, input_ids: Tensor, order: Sequence[int]) -> dict[str, Tensor]:
        """The arguments of the model's own forward for rows of these prompts, as transformers' processors make them."""
        tensors = self.tensors(input_ids.device, order)
        tensors["mm_token_type_ids"] = torch.eq(input_ids, self.image_token_id).long()
        return _accepted(model.forward, tensors)

    def left_padded(self, order: Sequence[int], own: int, device: torch.device | str) -> dict[str, Tensor]:
        """Positions [R, L] or [A, R, L], and token types [R, L] where they count, of rows that run their own copies of
        the prompts `order`, padded on the left, and go on for `own` tokens."""
        width = max(self.lengths[b] for b in order)

        def position(b: int) -> np.ndarray:
            of_prompt = np.arange(self.lengths[b]) if self.positions is None else self.positions[b]
            of_own = np.broadcast_to(of_prompt.max() + 1 + np.arange(own), (*of_prompt.shape[:-1], own))
            padding = np.zeros((*of_prompt.shape[:-1], width - self.lengths[b]), int)
            return np.concatenate([padding, of_prompt, of_own], axis=-1)

        values = {"position_ids": torch.from_numpy(np.stack([position(b) for b in order], axis=-2)).to(device)}
        if self.blocks is not None:
            types = [np.pad(self.blocks[b] >= 0, (width - self.lengths[b], own)) for b in order]
            values["token_type_ids"] = torch.from_numpy(np.stack(types).astype(int)).to(device)
        return values


class Vision:
    """Reads the images of prompts for one model."""

    def __init__(self, model: Any, images: ImageProcessor) -> None:
        model = unwrap(model)
        self.images, self.body = images, model.base_model
        self.image_token_id = images.image_token_id
        self._has_blocks = "token_type_ids" in inspect.signature(self.body.forward).parameters
        self._blank: PreparedImage | None = None

    def read(
        self, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[Image]], always: bool = False
    ) -> PromptImages | None:
        """The images of these prompts; None if there are none.

        Args:
            always: run the vision tower on a blank image if there are none, since other processes run theirs, too.

        Raises:
            ValueError: an image cannot be loaded.
        """
        unlike = {image.sha256: image for shown in images for image in shown}
        number = {sha256: i for i, sha256 in enumerate(unlike)}
        of_prompt = [[number[image.sha256] for image in shown] for shown in images]
        prepared = [self.images.prepare(image) for image in unlike.values()]
        if not prepared:
            if not always:
                return None
            self._blank = self._blank or self.images.prepare_picture(PIL.Image.new("RGB", (56, 56)))
            prepared = [self._blank]
        is_image = [np.asarray(ids) == self.image_token_id for ids in prompts]
        positions = None
        if hasattr(self.body, "get_rope_index"):
            positions = [
                self._positions(ids, mask, [prepared[i] for i in shown])
                for ids, mask, shown in zip(prompts, is_image, of_prompt, strict=True)
            ]
        blocks = [_blocks(mask) for mask in is_image] if self._has_blocks else None
        return PromptImages(prepared, of_prompt, [len(ids) for ids in prompts], positions, self.image_token_id, blocks)

    def before_images(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """How many tokens of each prompt stand before its first image token: all, if it has none."""
        return [list(ids).index(self.image_token_id) if self.image_token_id in ids else len(ids) for ids in prompts]

    def _positions(self, ids: Sequence[int], is_image: np.ndarray, shown: Sequence[PreparedImage]) -> np.ndarray:
        """Positions [A, P] of a prompt as the model itself counts them: image tokens [P] by row and column."""
        if not shown:
            return np.broadcast_to(np.arange(len(ids)), (3, len(ids)))
        position_A1P, _ = self.body.get_rope_index(
            torch.tensor([list(ids)]),
            mm_token_type_ids=torch.from_numpy(is_image.astype(int))[None],
            image_grid_thw=torch.cat([image.tensors["image_grid_thw"] for image in shown]),
        )
        position_AP: np.ndarray = position_A1P[:, 0].numpy()
        return position_AP


def image_token_id(model: Any) -> int | None:
    """The token that stands for an image's feature; None for a language model."""
    token: int | None = getattr(model.config, "image_token_id", None)
    return token


def read_back(model: Any, ids: Tensor) -> Tensor:
    """Sampled ids as they go on as input: an image token among them is no image, and is read as padding."""
    token = image_token_id(model)
    if token is None:
        return ids
    return ids.masked_fill(ids == token, model.config.get_text_config().pad_token_id or 0)


def vision_modules(model: Any) -> list[torch.nn.Module]:
    """The vision tower and what projects its features: all but the part that words go into and come out of. None of a
    language model, or where that is no part of its own."""
    embeddings, parts = model.get_input_embeddings(), list(model.base_model.children())
    if image_token_id(model) is None or embeddings in parts:
        return []
    words = {embeddings, model.get_output_embeddings()}
    return [part for part in parts if words.isdisjoint(part.modules())]


def freeze_vision(model: Any) -> None:
    """Train the language model alone.

    Raises:
        ValueError: a vision-language model has nothing beside it.
    """
    parts = vision_modules(model)
    if not parts and image_token_id(model) is not None:
        raise ValueError(
            f"model.freeze_vision: {type(model).__name__} has no vision tower apart from its language model; set "
            "model.freeze_vision=false"
        )
    for part in parts:
        part.requires_grad_(False)


def num_patches(model: Any, image: PreparedImage) -> int:
    """Patches that the vision tower cuts an image into. Processors give them one by one, or the pixels of its crops."""
    pixels = image.tensors["pixel_values"]
    if pixels.dim() < 4:
        return pixels.shape[:-1].numel()
    size = getattr(model.config.vision_config, "patch_size", 14)
    return pixels[..., 0, :, :].numel() // (size**2 if isinstance(size, int) else size[0] * size[1])


def _accepted(function: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    known = set(inspect.signature(function).parameters) - {"batch_num_images"}  # each image is taken as if alone
    return {name: value for name, value in tensors.items() if name in known}


def _joined(tensors: list[Tensor]) -> Tensor:
    """One after the other; those of unlike numbers of crops [1, crops, C, H, W] are padded with empty ones."""
    most = max(tensor.shape[1:2] for tensor in tensors)
    if tensors[0].dim() == 5:
        tensors = [torch.cat([t, t.new_zeros(1, most[0] - t.shape[1], *t.shape[2:])], dim=1) for t in tensors]
    return torch.cat(tensors)


def _rows(features: Any, index: Tensor) -> Any:
    """The features at `index` of all images together, in the form in which models take them: a tensor [tokens, hidden],
    or a tuple of such."""
    together = torch.cat([each.flatten(0, -2) for each in features])[index]
    return together if isinstance(features, Tensor) else (together,)


def _blocks(is_image: np.ndarray) -> np.ndarray:
    """The number [P] of the image that each token is of, counted in the prompt, and -1 for text. Image tokens without
    text between them are of one image, as the models' own masks have it."""
    starts = is_image & ~np.concatenate([[False], is_image[:-1]])
    return np.where(is_image, np.cumsum(starts) - 1, -1)
