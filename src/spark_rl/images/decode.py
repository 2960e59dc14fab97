"""From the bytes of a file to a picture in RGB: what is too large or says nothing is refused by its header."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
"""The formats that are read, by PIL's name, with their suffixes."""
MAX_PIXELS = 64_000_000
"""A file of a few kilobytes may claim to be larger, and would take gigabytes of memory once decoded."""
MIN_SIDE = 8
"""Pixels; less says nothing, and is a tracking pixel or a mistake."""
MAX_RATIO = 200
"""Of the longer side to the shorter one; what models make of a longer strip is one patch high."""
_SIXTEEN_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}
_READ = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA", "RGBa"} | _SIXTEEN_BITS
"""Kinds of pixels (PIL's modes)."""
_TOO_LARGE = f"has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller"


class ImageError(ValueError):
    """An image that cannot be used."""


def suffix_of(head: bytes) -> str | None:
    """The suffix for a file that begins with these bytes (16 are enough); None if it is of no format that is read."""
    PIL.Image.init()
    accepts = ((suffix, PIL.Image.OPEN[format][1]) for format, suffix in FORMATS.items())
    return next((suffix for suffix, accept in accepts if accept and accept(head)), None)


def opened(data: bytes) -> PIL.Image.Image:
    """The image with its header read and no pixel decoded.

    Raises:
        ImageError: it is none that can be used; the reason alone.
    """
    if not data:
        raise ImageError("is empty; write the file again")
    try:
        with warnings.catch_warnings(action="ignore"):  # of large images, which are refused here, and of odd headers
            picture = PIL.Image.open(io.BytesIO(data), formats=tuple(FORMATS))
    except PIL.UnidentifiedImageError:
        raise ImageError(f"is no image in a format that is read; save it as {_listed()}") from None
    except PIL.Image.DecompressionBombError:  # it has a limit of its own, and a higher one
        raise ImageError(_TOO_LARGE) from None
    except Exception as error:  # whatever the readers of the formats raise on nonsense
        raise _damaged(error) from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(_TOO_LARGE)
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"has {width}x{height} pixels, and a side below {MIN_SIDE} shows nothing; give a larger one, or remove it"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"has {width}x{height} pixels, longer than {MAX_RATIO}:1; crop it")
    return picture


def decoded(data: bytes) -> PIL.Image.Image:
    """The picture in RGB, upright, on white where it is transparent.

    Raises:
        ImageError: it is none that can be used; the reason alone.
    """
    return loaded(opened(data))


def loaded(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The pixels of an opened image, as `decoded` gives them.

    Raises:
        ImageError: there are none, or several frames of them; the reason alone.
    """
    try:
        if picture.format != "MPO" and getattr(picture, "is_animated", False):  # MPO: a phone's JPEG with a preview
            raise ImageError("has several frames; save the one that is meant as an image of its own")
        with warnings.catch_warnings(action="ignore"):
            picture.load()
            return _in_rgb(picture)
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(error) from None


def shrunk(picture: PIL.Image.Image, max_pixels: int) -> PIL.Image.Image:
    """The picture with at most `max_pixels`, and no longer a strip than it was: a processor may refuse such."""
    if picture.width * picture.height <= max_pixels:
        return picture
    short, long = sorted(picture.size)
    new_short = min(math.ceil((max_pixels * short / long) ** 0.5), math.isqrt(max_pixels))
    new_long = min(max_pixels // new_short, long * new_short // short)
    return picture.resize((new_long, new_short) if picture.width > picture.height else (new_short, new_long))


def _in_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode not in _READ:
        raise ImageError(f"has pixels of the kind {picture.mode!r}, which is not read; save it in 8-bit RGB")
    if picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1:  # what is upright would be copied as well
        picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode in _SIXTEEN_BITS:  # PIL would cut off what is above 255
        values = np.asarray(picture).astype(np.uint32)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        if "transparency" in picture.info:
            grey[values == picture.info["transparency"]] = 255
        return PIL.Image.fromarray(grey).convert("RGB")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    picture = picture.convert("RGBA")
    canvas = PIL.Image.new("RGB", picture.size, "white")
    canvas.paste(picture, mask=picture.getchannel("A"))
    return canvas


def _listed() -> str:
    *others, last = FORMATS
    return f"{', '.join(others)} or {last}"


def _damaged(error: Exception) -> ImageError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return ImageError(f"is cut short or damaged ({reason}); write the file again")
