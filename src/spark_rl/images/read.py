"""From what data, users and servers give as an image to a reference, and from a reference to a picture.

A file is decoded once before it is referred to: a broken image is found before a run begins, not in its middle. Sizes
are read from the header first, so that a small file cannot unfold into gigabytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps

from spark_rl.types import Image

MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6
"""Of an image as it comes, 192 MB once it is decoded; `model.max_pixels` is what a model is shown."""
MIN_SIDE = 8
"""Pixels; less shows nothing."""
MAX_RATIO = 200
"""Of the longer side to the shorter one; more is refused by Qwen's image processors."""
DRAWN = "drawn:"
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I;16",
    "I;16B",
    "I;16L",
    "I",
)
_URL = re.compile(r"https?://", re.I)
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,(.*)", re.I | re.S)


def reference(value: Any, folder: Path, *, allow_urls: bool = False) -> Image:
    """The reference to an image that is given as a path (relative ones are in `folder`), bytes, a PIL image, a mapping
    of `bytes` and `path` as Hub image columns have it, or a data URL. What is no file becomes one, in the cache.

    Args:
        allow_urls: fetch http and https addresses.

    Raises:
        ValueError: it is no image that can be used; the reason alone, since the caller knows the place.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, PIL.Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        value = buffer.getvalue()
    if isinstance(value, str) and value.startswith(DRAWN):
        return _drawn(value)
    if isinstance(value, str) and (found := _DATA_URL.fullmatch(value)):
        try:
            value = base64.b64decode(found[1], validate=True)
        except binascii.Error:
            raise ValueError("a data URL is not valid base64; encode the image again") from None
    elif isinstance(value, str) and _URL.match(value):
        if not allow_urls:
            raise ValueError(
                f"{value[:100]} is an address, and images are not fetched unless data.allow_image_urls=true; download "
                "it, or set that"
            )
        value = _fetched(value)
    if isinstance(value, bytes):
        return _stored(value)
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("an image must be a path, bytes, or a data URL; give one of these")
    path = Path(os.path.abspath(folder / Path(value).expanduser()))
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise ValueError(f"the image {path} cannot be read ({_reason(error)}); check the path") from None
    return Image(str(path), _checked(str(path), stat.st_size, stat.st_mtime_ns))


def open_image(image: Image) -> PIL.Image.Image:
    """The picture, in RGB and upright.

    Raises:
        ValueError: the file is gone or another one by now.
    """
    if image.path.startswith(DRAWN):
        from spark_rl.images.drawn import draw

        return draw(image.path)
    content = _content(image.path)
    if hashlib.sha256(content).hexdigest() != image.sha256:
        raise ValueError(f"the image {image.path} is another one than when it was first read; put it back")
    return _picture(content, image.path)


def _drawn(path: str) -> Image:
    image = Image(path, hashlib.sha256(path.encode()).hexdigest())
    open_image(image)
    return image


@lru_cache(maxsize=100_000)
def _checked(path: str, size: int, changed: int) -> str:
    """The digest of a file that holds a usable image; one of the same size and time is not read again."""
    content = _content(path)
    _picture(content, path)
    return hashlib.sha256(content).hexdigest()


def _content(path: str) -> bytes:
    try:
        if (size := os.path.getsize(path)) > MAX_FILE_BYTES:
            raise ValueError(f"the image {path} has {size} bytes, more than {MAX_FILE_BYTES}; make it smaller")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"the image {path} cannot be read ({_reason(error)}); check the path") from None


def _picture(content: bytes, place: str) -> PIL.Image.Image:
    """The picture in a file's bytes, in RGB and upright."""
    if not content:
        raise ValueError(f"the image {place} is empty; save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL's guard against large images: ours is stricter
            picture = PIL.Image.open(io.BytesIO(content), formats=_FORMATS)
    except PIL.Image.DecompressionBombError:
        raise ValueError(f"the image {place} has more than {MAX_PIXELS} pixels; make it smaller") from None
    except (OSError, ValueError, SyntaxError):
        raise ValueError(f"the image {place} is no {', '.join(_FORMATS)} file; convert it") from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"the image {place} has {width}x{height} pixels, more than {MAX_PIXELS}; make it smaller")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"the image {place} has {width}x{height} pixels; a side needs {MIN_SIDE} at least and at most {MAX_RATIO} "
            "times the other"
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise ValueError(f"the image {place} has {picture.n_frames} frames; save the one that is meant")  # type: ignore[attr-defined]
    if picture.mode not in _MODES:
        raise ValueError(f"the image {place} has the mode {picture.mode!r}, which is not known here; save it as RGB")
    try:
        picture.load()
        return _in_rgb(PIL.ImageOps.exif_transpose(picture))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"the image {place} is broken ({_reason(error)}); save or copy it again") from None


def _in_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Transparent pixels become white; 16 bits a pixel become 8."""
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, "white")
        return PIL.Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _stored(content: bytes) -> Image:
    """A file for bytes, named by their digest, so that the same image is kept once."""
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"an image has {len(content)} bytes, more than {MAX_FILE_BYTES}; make it smaller")
    digest = hashlib.sha256(content).hexdigest()
    cache = Path(os.environ.get("SPARK_RL_CACHE") or Path.home() / ".cache" / "spark-rl")
    path = cache.absolute() / "images" / digest[:2] / digest
    if not path.exists():
        _picture(content, "in the row")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            raise ValueError(
                f"an image cannot be kept in {path.parent} ({_reason(error)}); set SPARK_RL_CACHE to another folder"
            ) from None
    return Image(str(path), digest)


def _fetched(address: str) -> bytes:
    import httpx

    try:
        with httpx.stream("GET", address, timeout=30, follow_redirects=True) as answer:
            answer.raise_for_status()
            content = b""
            for block in answer.iter_bytes():
                content += block
                if len(content) > MAX_FILE_BYTES:
                    raise ValueError(f"{address[:100]} has more than {MAX_FILE_BYTES} bytes; make it smaller")
            return content
    except httpx.HTTPError as error:
        raise ValueError(f"{address[:100]} cannot be fetched ({_reason(error)}); download it") from None


def _reason(error: BaseException) -> str:
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(said.split()) or type(error).__name__
