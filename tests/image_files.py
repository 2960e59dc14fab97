"""Small images as bytes, good ones and such as must be refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image

FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def noise(width: int = 50, height: int = 40, seed: int = 0) -> PIL.Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def encoded(picture: PIL.Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def png(seed: int = 0) -> bytes:
    """A good image, another one for every seed."""
    return encoded(noise(seed=seed))


def claiming(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animated(format: str) -> bytes:
    return encoded(noise(), format, save_all=True, append_images=[noise(seed=1)])


BAD: dict[str, tuple[bytes, str]] = {
    "truncated.png": (png()[:3000], "is cut short or damaged (image file is truncated); write the file again"),
    "truncated.jpg": (encoded(noise(), "JPEG")[:-30], "is cut short or damaged (image file is truncated"),
    "text.png": (b"<html>not found</html>", "is no image in a format that is read; save it as PNG, JPEG, WEBP, GIF, B"),
    "empty.png": (b"", "is empty; write the file again"),
    "pixel.png": (encoded(noise(1, 1)), "has 1x1 pixels, and a side below 8 shows nothing"),
    "strip.png": (encoded(PIL.Image.new("L", (1700, 8))), "has 1700x8 pixels, longer than 200:1; crop it"),
    "huge.png": (claiming(20_000, 20_000), "has more than 64 million pixels; make it smaller"),
    "large.png": (claiming(10_000, 10_000), "has more than 64 million pixels; make it smaller"),
    "moving.gif": (animated("GIF"), "has several frames; save the one that is meant"),
    "moving.png": (animated("PNG"), "has several frames"),
    "moving.webp": (animated("WEBP"), "has several frames"),
    "pages.tif": (animated("TIFF"), "has several frames"),
    "float.tif": (encoded(noise().convert("F"), "TIFF"), "has pixels of the kind 'F', which is not read; save it in 8"),
    "lab.tif": (encoded(PIL.Image.new("LAB", (9, 9)), "TIFF"), "has pixels of the kind 'LAB'"),
    "pixmap.png": (encoded(noise(), "PPM"), "is no image in a format that is read"),
}
"""By file name: the bytes, and words of what must be said."""
