"""From what data, users and servers give as an image to a reference, and from a reference to a picture."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import io
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import PIL.Image

from spark_rl.images.cache import keep
from spark_rl.images.decode import ImageError, decoded, loaded
from spark_rl.images.fetch import fetch
from spark_rl.types import Image

MAX_BYTES = 64 * 2**20
"""Of a file; a photo at the limit of pixels has about half."""
_REMEMBERED = 2**17
"""Files and addresses that a process need not look at again, about 400 bytes of memory each."""
_BYTES, _DATA = "an image given as bytes", "an image given as a data URL"
_DRAWN, _URL_START, _FILE = "drawn:", "data:", "file://"
_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)


def reference(value: Any, folder: Path, *, allow_urls: bool = False) -> Image:
    """The reference to an image that is given as a path (relative ones are in `folder`) or `file://` and a path,
    bytes, a PIL image, a mapping of `bytes` and `path` as Hub image columns have it, or a data URL. What is no file
    becomes one.

    Any path that this process can read is looked at: values that strangers send must be checked before.

    Args:
        allow_urls: whether http(s) addresses are fetched.

    Raises:
        ImageError: it is no image that can be used; the sentence names the image, but not where it was given.
    """
    if not isinstance(value, Mapping):
        return _reference(value, folder, allow_urls)
    data, path = value.get("bytes"), value.get("path")
    if isinstance(data, bytes):
        return _kept(data, named(path) if path else _BYTES)
    if data is None and isinstance(path, str):
        return _reference(path, folder, allow_urls)
    raise _unknown(value)


def held(url: str) -> Image:
    """The reference to an image that strangers give as a data URL, and in no other way: it stays in memory, so that
    nothing of theirs is written, and no path or address of theirs is looked at.

    Raises:
        ImageError: it is no data URL, or no image that can be used.
    """
    if not url[:16].lower().startswith(_URL_START):
        raise ImageError(f"an image must be a data URL (data:image/png;base64,...), not {url[:40]!r}; change it")
    data = from_data_url(url)
    _decoded(data, _DATA)
    return Image(url, hashlib.sha256(data).hexdigest())


def _reference(value: Any, folder: Path, allow_urls: bool) -> Image:
    if isinstance(value, str):
        start = value[:16].lower()
        if value.startswith(_DRAWN):
            return _drawing(value)
        if start.startswith(_URL_START):
            return _kept(from_data_url(value), _DATA)
        if start.startswith(("http://", "https://")):
            if not allow_urls:
                raise ImageError(
                    f"{named(value)} is an address, and none is fetched; give a file (or, for a run, set "
                    "data.allow_image_urls=true)"
                )
            return _fetched(value)
        if start.startswith(_FILE):
            value = _path_of_url(value, folder)
    if isinstance(value, str | Path) and str(value).strip():
        return _of_file(Path(os.path.abspath(folder.expanduser() / Path(value).expanduser())))
    if isinstance(value, bytes | bytearray):
        return _kept(bytes(value), _BYTES)
    if isinstance(value, PIL.Image.Image):
        return _kept(_as_png(value), "an image given as a PIL image")
    raise _unknown(value)


def _path_of_url(url: str, folder: Path) -> str:
    """As it stands after `file://`, as data for Qwen models have it, unless only the unquoted path is there."""
    path = url[len(_FILE) :]
    return path if os.path.exists(folder.expanduser() / path) else unquote(path)


def _unknown(value: object) -> ImageError:
    kinds = "a path, bytes, a mapping of 'bytes' or 'path', or a data URL"
    return ImageError(f"an image must be {kinds}, not {str(value)[:40]!r}; change it")


def open_image(image: Image) -> PIL.Image.Image:
    """The picture, in RGB and upright.

    Raises:
        ImageError: the file is gone, another one by now, or cannot be used.
    """
    if image.path.startswith(_DRAWN):
        from spark_rl.images.drawn import draw

        return draw(image.path)
    if _DATA_URL.match(image.path):
        return _decoded(from_data_url(image.path), _DATA)
    name = named(image.path)
    data = _read(Path(image.path))
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise ImageError(f"{name} is not what it was when it was first read; put the file back, or begin anew")
    return _decoded(data, name)


def named(path: object) -> str:
    """What sentences call the image: on one line, and short, whatever the path holds."""
    text = str(path)[:300]
    return f"the image {text if text.isprintable() else ascii(text)}"


def _decoded(data: bytes, name: str) -> PIL.Image.Image:
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name} {_too_heavy(len(data))}")
    try:
        return decoded(data)
    except ImageError as error:
        raise ImageError(f"{name} {error}") from None


def blank(image: Image) -> Image:
    """A white drawing in place of the image, of the same shape: the control for what is said without looking.

    Raises:
        ImageError: as `open_image`.
    """
    from spark_rl.images.drawn import MAX_SIDE, drawing

    sides = open_image(image).size
    scale = min(1.0, MAX_SIDE / max(sides))
    width, height = (min(MAX_SIDE, math.ceil(side * scale)) for side in sides)  # no longer a strip than the image
    return _drawing(drawing(width, height, []))


# ------------------------------------------------------------------------------------------------ files


def _of_file(path: Path) -> Image:
    """A file that is known by its size and time is not read again."""
    status = _status(path)
    return _decoded_file(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(_REMEMBERED)
def _decoded_file(path: str, size: int, mtime_ns: int) -> Image:
    data = _read(Path(path))
    _decoded(data, named(path))
    return Image(path, hashlib.sha256(data).hexdigest())


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # the latter: a null byte, or what is no text
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise ImageError(f"{named(path)} is {kind}; give the path of an image file")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"{named(path)} {_too_heavy(status.st_size)}")
    return status


def _read(path: Path) -> bytes:
    _status(path)
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> ImageError:
    reason = getattr(error, "strerror", None) or str(error)
    return ImageError(f"{named(path)} cannot be read ({reason}); check the path")


def _too_heavy(num_bytes: int) -> str:
    return f"has {num_bytes / 2**20:.0f} MiB, more than {MAX_BYTES // 2**20}; make it smaller"


# ------------------------------------------------------------------------------------------------ what is no file


def _kept(data: bytes, name: str) -> Image:
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name} {_too_heavy(len(data))}")
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        return Image(str(keep(data, sha256)), sha256)
    except ImageError as error:
        raise ImageError(f"{name} {error}") from None


def from_data_url(url: str) -> bytes:
    """The file that a data URL holds.

    Raises:
        ImageError: it is not of that form.
    """
    if not (start := _DATA_URL.match(url)):
        raise ImageError(f"the data URL {url[:40]!r} is not of the form data:image/png;base64,...; correct it")
    try:
        return base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the data URL {url[:40]!r} holds no base64 ({error}); write it again") from None


@functools.lru_cache(_REMEMBERED)
def _fetched(url: str) -> Image:
    name = named(url)
    try:
        data = fetch(url, MAX_BYTES)
    except ImageError as error:
        raise ImageError(f"{name} {error}") from None
    return _kept(data, name)


def _as_png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    try:
        loaded(picture).save(buffer, "PNG", compress_level=1)
    except ImageError as error:
        raise ImageError(f"an image given as a PIL image {error}") from None
    return buffer.getvalue()


@functools.lru_cache(_REMEMBERED)
def _drawing(path: str) -> Image:
    from spark_rl.images.drawn import draw

    try:
        draw(path)
    except ValueError as error:
        raise ImageError(str(error)) from None
    return Image(path, hashlib.sha256(path.encode()).hexdigest())
