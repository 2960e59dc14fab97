"""The image side of a vision-language model's processor: a picture to placeholder text and to tensors.

transformers' processors do both at once for a whole prompt. Here it is done image by image, once for all the prompts
that show it, and the text is left to `ChatRenderer`, which knows what is quoted.
"""

from __future__ import annotations

import shutil
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import cached_file, is_torchvision_available

from spark_rl.config import ModelConfig
from spark_rl.images import named, open_image, shrunk
from spark_rl.models.folder import source
from spark_rl.types import Image

_CACHE_BYTES = 2**29
"""Prepared images that are kept for the steps to come: a group's image comes back in judge and reflection prompts."""
_REMEMBERED = 2**17
"""Images whose texts are kept, which all prompts are measured by: about 200 bytes of memory each."""
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "text_replacement_offsets")
_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json")
"""What a processor is saved in beside the tokenizer."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the model takes it."""

    text: str
    """What its placeholder expands to in the prompt."""
    num_tokens: int
    """Image tokens in it, hence features of the image."""
    tensors: dict[str, Tensor]
    """`pixel_values` and whatever else of it the model's vision tower reads."""

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class ImageProcessor:
    """Prepares the images of one vision-language model, and keeps the latest ones.

    Args:
        processor: of transformers, with an image processor and a tokenizer.
        image_token_id: the token that stands for a feature.
        max_pixels: larger images are made smaller first, in proportion.
    """

    def __init__(self, processor: Any, image_token_id: int, max_pixels: int) -> None:
        self.processor, self.image_token_id, self.max_pixels = processor, image_token_id, max_pixels
        self.placeholder: str = processor.image_token
        """What chat templates write in an image's place."""
        self._kept: OrderedDict[str, PreparedImage] = OrderedDict()
        self._kept_bytes = 0
        self._texts: dict[str, str] = {}

    def expand(self, image: Image) -> str:
        """What the image's placeholder becomes in the text of a prompt: as many image tokens as it has features.

        Raises:
            ValueError: the image cannot be loaded.
        """
        return self._texts.get(image.sha256) or self.prepare(image).text

    def prepare(self, image: Image) -> PreparedImage:
        """The image for the model; raises what `expand` raises."""
        if image.sha256 in self._kept:
            self._kept.move_to_end(image.sha256)
            return self._kept[image.sha256]
        prepared = self._prepare(image)
        self._kept[image.sha256] = prepared
        self._kept_bytes += prepared.num_bytes
        if len(self._texts) >= _REMEMBERED:
            del self._texts[next(iter(self._texts))]
        self._texts[image.sha256] = sys.intern(prepared.text)  # kilobytes, and the same for all images of a size
        while self._kept_bytes > _CACHE_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return prepared

    def _prepare(self, image: Image) -> PreparedImage:
        picture = open_image(image)
        try:
            return self.prepare_picture(picture)
        except ValueError as error:
            raise ValueError(f"the model's processor refuses {named(image.path)} ({error})") from None

    def prepare_picture(self, picture: PIL.Image.Image) -> PreparedImage:
        """A picture for the model."""
        picture = shrunk(picture, self.max_pixels)
        made = self.processor(
            images=[picture], text=[self.placeholder], return_tensors="pt", return_text_replacement_offsets=True
        )
        ((replacement,),) = made["text_replacement_offsets"]
        tensors = {name: value for name, value in made.items() if name not in _OF_TEXT}
        num_tokens = int((made["input_ids"] == self.image_token_id).sum())
        return PreparedImage(replacement["replacement"], num_tokens, tensors)


def is_vision_language(config: ModelConfig) -> bool:
    """Whether the model takes images: transformers has it as an image-text-to-text model.

    Raises:
        ValueError: there is no readable config.
    """
    return type(_read_config(config)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_image_processor(config: ModelConfig, tokenizer: Any) -> ImageProcessor | None:
    """What prepares the model's images, around the tokenizer that is loaded already; None for a language model.

    Raises:
        ValueError: a vision-language model comes without a usable processor.
    """
    settings = _read_config(config)
    if type(settings) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return None
    path, options = source(config)
    try:
        loader: Any = AutoProcessor
        if not is_torchvision_available():
            loader = _without_videos(PROCESSOR_MAPPING[type(settings)])
        processor = loader.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
        raise ValueError(f"model.path: the processor of {path!r} cannot be loaded ({reason})") from None
    if getattr(processor, "image_processor", None) is None or getattr(processor, "image_token", None) is None:
        raise ValueError(
            f"model.path: {path!r} is a vision-language model, but its processor has no image processor; copy "
            "preprocessor_config.json (or processor_config.json) of the original model"
        )
    if processor.chat_template and config.chat_template is None:
        tokenizer.chat_template = processor.chat_template
    return ImageProcessor(processor, settings.image_token_id, config.max_pixels)


def copy_processor(config: ModelConfig, folder: Path) -> None:
    """Copy the files of the model's processor, as they were, into a folder that the trained model is saved to."""
    path, _ = source(config)
    for name in _FILES:
        found = cached_file(
            path,
            name,
            revision=config.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            shutil.copyfile(found, folder / name)


def _read_config(config: ModelConfig) -> Any:
    path, options = source(config)
    try:
        return AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
        raise ValueError(f"model.path: the config of {path!r} cannot be read ({reason})") from None


def _without_videos(kind: Any) -> Any:
    """The processor class without its video processor, which needs torchvision."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in kind.get_attributes() if name != "video_processor"]

    return type(kind.__name__, (kind,), {"get_attributes": classmethod(get_attributes), "__module__": kind.__module__})
