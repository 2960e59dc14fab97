"""Where the images of a row stand in its texts, and back again.

In a text, `<image>` is a marker if the row has images: one for each, in order, or none at all, which puts the images
first. In a row without images it is text. In a message that is a list of parts the parts say it all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_rl.images import reference
from spark_rl.types import IMAGE, Image, Message, in_parts, with_markers, without_images

MARKER = "<image>"
Content = str | list[dict[str, str]]
_KEYS = ("image", "image_url", "url", "path")
"""Where an image part has its image, if it does not leave it to the row's column."""


def listed(column: Any) -> list[Any]:
    """The values of a column of images, which may hold one or a list of them."""
    if column is None or column == "":
        return []
    return list(column) if isinstance(column, list | tuple) else [column]


def images_of(row: Mapping[str, Any]) -> list[Any]:
    """What a row gives as its images: in `images`, or in `image`, as many sets have it that hold one a row.

    Raises:
        ValueError: the two differ; the reason alone.
    """
    several, single = listed(row.get("images")), listed(row.get("image"))
    if several and single and several != single:
        raise ValueError("has both 'images' and 'image'; keep one")
    return several or single


def asked_to_judge(question: str, row: Mapping[str, Any], folder: Path) -> tuple[str, tuple[Image, ...]]:
    """The question of a row to judge, with `IMAGE` for each of its images, and these, whose paths begin at `folder`.

    Raises:
        ValueError: an image cannot be used, or there are not as many places for them; the reason alone.
    """
    images = tuple(reference(value, folder) for value in images_of(row))
    return placed_in_question(question, len(images)), images


def placed(messages: Sequence[Message], column: Sequence[Any]) -> tuple[list[Message], list[Any]]:
    """Messages of text alone, with `IMAGE` for each image, and the images' values in that order.

    Raises:
        ValueError: the images are not as many as the places for them; the reason alone.
    """
    read = [from_parts(message["content"]) for message in messages]
    texts = [text for text, _ in read]
    if own := [value for _, values in read for value in values]:
        values = completed(own, column)
    else:
        values = list(column)
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        texts = _marked(texts, last, len(values), "'prompt'")
    turns: list[Message] = [{**m, "content": text} for m, text in zip(messages, texts, strict=True)]
    if any(IMAGE in turn["content"] for turn in turns if turn["role"] == "system"):
        raise ValueError("has an image in its system message; move it to a user's turn")
    return turns, values


def placed_in_question(question: Any, num_images: int) -> str:
    """The bare question, which is about the images of the prompt, with `IMAGE` for each.

    Raises:
        ValueError: there are not as many places for them; the reason alone.
    """
    text, own = from_parts(question)
    if not own:
        return _marked([text], 0, num_images, "'question'")[0]
    if len(own) != num_images or any(value is not None for value in own):
        raise ValueError(
            f"the number of images is {num_images}, and that of image parts in 'question' is {len(own)}; give as many, "
            "each as {'type': 'image'} alone"
        )
    return text


def written(texts: Sequence[str]) -> list[Content]:
    """The texts of a prompt as rows hold them, so that they read back as the same: with markers where images stand, or
    as parts where somebody typed a marker."""
    if any(MARKER in text for text in texts):
        return [in_parts(text) if IMAGE in text else text for text in texts]
    return [with_markers(text) for text in texts]


def written_columns(prompt: Sequence[Message], question: str, images: Sequence[Image]) -> dict[str, Any]:
    """The columns `prompt`, `question` and, if there are any, `images` of a row that reads back as these."""
    contents = written([message["content"] for message in prompt])
    turns = [{**message, "content": content} for message, content in zip(prompt, contents, strict=True)]
    return {"prompt": turns, **written_question(question, images)}


def written_question(question: str, images: Sequence[Image]) -> dict[str, Any]:
    """The columns `question` and, if there are any, `images` of such a row."""
    columns: dict[str, Any] = {"question": written([question])[0]}
    return columns | ({"images": [image.path for image in images]} if images else {})


def from_parts(content: Any) -> tuple[str, list[Any]]:
    """The text of a message's content, with `IMAGE` for each image part, and what the parts have as their images (None
    where they leave that to the row's column). Whatever else the text holds stands for no image.

    Raises:
        ValueError: a part is of neither kind; the reason alone.
    """
    if isinstance(content, str):
        return without_images(content), []
    pieces: list[str] = []
    values: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(without_images(part["text"]))
        elif kind in ("image", "image_url"):
            values.append(_own(part))
            pieces.append(IMAGE)
        else:
            raise ValueError(
                "has a part of a message that is neither {'type': 'text', 'text': ...} nor {'type': 'image'}: "
                f"{part!r:.40}; change it"
            )
    return "".join(pieces), values


def completed(own: Sequence[Any], column: Sequence[Any]) -> list[Any]:
    """The parts' own values, and those of the column for the parts without.

    Raises:
        ValueError: they are not as many; the reason alone.
    """
    num_open = sum(value is None for value in own)
    if num_open != len(column):
        raise ValueError(
            f"the number of images in the column is {len(column)}, and that of image parts without an image of their "
            f"own is {num_open}; give as many"
        )
    left = iter(column)
    return [next(left) if value is None else value for value in own]


def _own(part: Mapping[str, Any]) -> Any:
    value = next((part[key] for key in _KEYS if part.get(key) is not None), None)
    return value.get("url") if isinstance(value, Mapping) and "url" in value else value


def _marked(texts: list[str], last: int, num_images: int, field: str) -> list[str]:
    """Texts with `IMAGE` for their markers, or at the beginning of the text at `last`."""
    found = sum(text.count(MARKER) for text in texts)
    if num_images and not found:
        return [*texts[:last], f"{IMAGE}\n" * num_images + texts[last], *texts[last + 1 :]]
    if num_images and found != num_images:
        raise ValueError(
            f"the number of images is {num_images}, and that of {MARKER} in {field} is {found}; write it once for each "
            "image, or never, which puts them first"
        )
    return [text.replace(MARKER, IMAGE) for text in texts] if num_images else texts
