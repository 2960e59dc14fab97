import base64
import hashlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
from clock import steps_of
from hypothesis import given
from hypothesis import strategies as st
from image_files import BAD, FORMATS, claiming, encoded, noise, png

from spark_rl.images import decode, fetch, held, open_image, read, reference, suffix_of
from spark_rl.types import Image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPARK_RL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def refusal(value, folder: Path, **keywords) -> str:
    with pytest.raises(ValueError) as caught:
        reference(value, folder, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixels(picture: PIL.Image.Image) -> list:
    return np.asarray(picture).tolist()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------------------ ways to give one


def test_whatever_way_an_image_is_given_it_is_the_same_one(tmp_path):
    data, url = png(), f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    path = put(tmp_path, "a.png", data)
    values = ["a.png", path, str(path), data, {"bytes": data, "path": "b.png"}, {"bytes": None, "path": "a.png"}, url]
    found = [reference(value, tmp_path) for value in values]
    assert len({image.sha256 for image in found}) == 1
    assert {pixels(open_image(image)) == pixels(noise()) for image in found} == {True}
    assert all(os.path.isabs(image.path) for image in found)
    assert reference("a.png", tmp_path).path == reference(f"../{tmp_path.name}/a.png", tmp_path).path == str(path)


def test_a_path_may_follow_file(tmp_path):
    """As it is, or quoted as in addresses; what is there as it is comes first."""
    plain, quoted = put(tmp_path, "a b#1.png", png(0)), put(tmp_path, "a%20b#1.png", png(1))
    assert reference(f"file://{plain}", tmp_path).path == reference("file://a b#1.png", tmp_path).path == str(plain)
    assert reference({"path": f"file://{quoted}"}, tmp_path).path == str(quoted)
    quoted.unlink()
    assert reference(f"FILE://{quoted}", tmp_path).path == str(plain)
    assert refusal("file:///no/a.png", tmp_path).startswith("the image /no/a.png cannot be read (No such file")


def test_a_data_url_may_stay_in_memory(cache):
    for start in ("data:image/png;base64,", "DATA:;base64,"):
        url = start + base64.b64encode(png()).decode()
        image = held(url)
        assert pixels(open_image(image)) == pixels(noise()) and image.sha256 == hashlib.sha256(png()).hexdigest()
    assert not cache.exists()
    for value in ("a.png", "http://example.org/a.png", 'drawn:{"size":[8,8],"marks":[]}', ""):
        with pytest.raises(ValueError, match="an image must be a data URL"):
            held(value)


def test_a_pil_image_is_kept_as_it_looks(tmp_path):
    for picture in (noise(), noise().convert("L"), noise().convert("CMYK"), noise().convert("RGBA")):
        kept = open_image(reference(picture, tmp_path))
        assert kept.mode == "RGB" and pixels(kept) == pixels(picture.convert("RGB"))
    assert "an image given as a PIL image has pixels of the kind 'F'" in refusal(noise().convert("F"), tmp_path)


def test_bytes_are_kept_once_under_their_content(tmp_path, cache):
    image = reference(png(), tmp_path)
    (kept,) = files(cache)
    assert kept == cache / image.sha256[:2] / f"{image.sha256}.png" and str(kept) == image.path
    changed = kept.stat().st_mtime_ns
    assert reference({"bytes": png()}, tmp_path) == image and kept.stat().st_mtime_ns == changed
    kept.write_bytes(b"half")
    assert reference(png(), tmp_path) == image and kept.read_bytes() == png()


@pytest.mark.parametrize("format", FORMATS)
def test_the_kept_file_has_the_suffix_of_its_format(tmp_path, format):
    data = encoded(noise(), format)
    assert Path(reference(data, tmp_path).path).suffix == f".{FORMATS[format]}"
    assert suffix_of(data[:16]) == FORMATS[format]


def test_what_begins_like_no_image_has_no_suffix():
    others = (encoded(noise(), "PPM"), b"RIFF0000WAVEfmt ", b"version https://git-lfs", b"<svg>", b"\x89PN", b"")
    assert [suffix_of(head[:16]) for head in others] == [None] * len(others)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_RL_CACHE", str(put(tmp_path, "file", b"") / "below"))
    assert "(Not a directory); set SPARK_RL_CACHE to another folder" in refusal(png(), tmp_path)


def test_many_processes_keep_the_same_image(tmp_path, cache):
    code = "import sys; from pathlib import Path; from spark_rl.images import reference; "
    code += "print(reference(Path(sys.argv[1]).read_bytes(), Path()))"
    path = put(tmp_path, "a.png", png())
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({process.communicate()[0] for process in running}) == 1
    assert len(files(cache)) == 1


def test_a_file_is_decoded_once_until_it_changes(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(read, "decoded", lambda data: decoded.append(data) or decode.decoded(data))
    path = put(tmp_path, "a.png", png())
    first = [reference("a.png", tmp_path) for _ in range(3)]
    assert len(decoded) == 1 and len(set(first)) == 1
    path.write_bytes(png(1))
    os.utime(path, ns=(1, 1))
    assert reference("a.png", tmp_path) != first[0] and len(decoded) == 2


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_one_sentence_whether_it_is_a_file_or_bytes(tmp_path, cache, name):
    data, words = BAD[name]
    path = put(tmp_path, name, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal(name, tmp_path).startswith(f"the image {path} {words}")
        assert refusal(data, tmp_path).startswith(f"an image given as bytes {words}")
        assert refusal({"bytes": data, "path": "there.png"}, tmp_path).startswith(f"the image there.png {words}")
        with pytest.raises(ValueError, match=name):
            open_image(Image(str(path), read.hashlib.sha256(data).hexdigest()))
    assert files(cache) == []


def test_a_bomb_costs_neither_time_nor_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for side in (8_001, 9_000, 20_000, 2**31 - 1):
        bomb = claiming(side, side)
        assert "more than 64 million pixels" in refusal(bomb, tmp_path)
        assert steps_of(lambda bomb=bomb: refusal(bomb, tmp_path)) < 5e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.png", "nowhere.png cannot be read (No such file or directory); check the path"),
        (".", "is a folder; give the path of an image file"),
        ("/dev/zero", "the image /dev/zero is no regular file"),
        ("a\0b.png", r"a\x00b.png' cannot be read (embedded null byte)"),
        ("two\nlines.png", r"two\nlines.png' cannot be read"),
        ("\ud800.png", r"\ud800.png' cannot be read"),
        ("x" * 300, "cannot be read (File name too long)"),
        ("", "an image must be a path, bytes, a mapping of 'bytes' or 'path', or a data URL, not ''; change it"),
        (None, "not 'None'"),
        (7, "not '7'"),
        ({}, "not '{}'"),
        ({"bytes": "aGVsbG8="}, "an image must be a path, bytes"),
        ({"bytes": b""}, "an image given as bytes is empty"),
        ("data:image/png;base64,?", "the data URL 'data:image/png;base64,?' holds no base64"),
        ("data:image/png,abc", "is not of the form data:image/png;base64,...; correct it"),
        ("data:image/png;base64,aGVsbG8=", "an image given as a data URL is no image in a format that is read"),
        ("https://example.org/a.png", "https://example.org/a.png is an address, and none is fetched; give a file (or"),
        ("HTTP://example.org/a.png", "data.allow_image_urls=true"),
    ],
)
def test_what_is_no_image_is_one_sentence(tmp_path, value, words):
    assert words in refusal(value, tmp_path)


def test_a_file_that_is_too_heavy_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_BYTES", 2**20)
    path = put(tmp_path, "heavy.png", png())
    os.truncate(path, 2**20 + 1)
    assert "heavy.png has 1 MiB, more than 1; make it smaller" in refusal("heavy.png", tmp_path)
    assert "an image given as bytes has 1 MiB, more than 1" in refusal(path.read_bytes(), tmp_path)


def test_a_file_that_was_changed_or_removed_is_noticed(tmp_path):
    path = put(tmp_path, "a.png", png())
    image = reference("a.png", tmp_path)
    path.write_bytes(png(1))
    with pytest.raises(ValueError, match=r"a\.png is not what it was when it was first read; put the file back"):
        open_image(image)
    path.unlink()
    with pytest.raises(ValueError, match=r"a\.png cannot be read \(No such file or directory\)"):
        open_image(image)


@pytest.mark.parametrize("size", [(50, 40), (1600, 8), (8, 1599), (3000, 17)])
def test_the_blank_of_an_image_has_its_shape_and_may_be_shown_where_it_may(tmp_path, size):
    blank = read.blank(reference(encoded(noise(*size)), tmp_path))
    (width, height), scale = open_image(blank).size, min(1, 1024 / max(size))
    assert (width, height) == pytest.approx((size[0] * scale, size[1] * scale), abs=1)
    assert max(width, height) <= decode.MAX_RATIO * min(width, height)


@given(st.binary(max_size=200), st.sampled_from(list(FORMATS)), st.integers(0, 400))
def test_whatever_the_bytes_are_it_is_an_image_or_a_sentence(tmp_path_factory, data, format, at):
    good = encoded(noise(10, 10), format)
    spoiled = good[:at] + data + good[at + len(data) :]
    try:
        reference(spoiled, tmp_path_factory.getbasetemp())
    except ValueError as error:
        assert str(error).startswith("an image given as bytes ") and "\n" not in str(error)


# ------------------------------------------------------------------------------------------------ pictures


def opened(data: bytes, folder: Path) -> PIL.Image.Image:
    picture = open_image(reference(data, folder))
    assert picture.mode == "RGB"
    return picture


def test_a_plain_picture_is_not_copied_and_a_callers_is_not_turned(tmp_path):
    picture = decode.opened(png())
    assert decode.loaded(picture) is picture
    callers = noise(40, 24)
    callers.getexif()[0x0112] = 6
    assert open_image(reference(callers, tmp_path)).size == (24, 40)
    assert callers.size == (40, 24) and callers.getexif()[0x0112] == 6


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, format, orientation):
    upright = PIL.Image.new("RGB", (40, 24), "red")
    upright.paste("blue", (0, 0, 20, 12))
    turns = PIL.Image.Transpose
    stored_as = {
        1: [],
        2: [turns.FLIP_LEFT_RIGHT],
        3: [turns.ROTATE_180],
        4: [turns.FLIP_TOP_BOTTOM],
        5: [turns.TRANSPOSE],
        6: [turns.ROTATE_90],
        7: [turns.TRANSVERSE],
        8: [turns.ROTATE_270],
    }
    stored = upright
    for turn in stored_as[orientation]:
        stored = stored.transpose(turn)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    picture = opened(encoded(stored, format, exif=exif, quality=95), tmp_path)
    assert picture.size == (40, 24)
    difference = np.abs(np.asarray(picture).astype(int) - np.asarray(upright).astype(int))
    assert np.median(difference) < 20


@pytest.mark.parametrize(
    ("picture", "format", "colour"),
    [
        (PIL.Image.new("L", (9, 9), 100), "PNG", (100, 100, 100)),
        (PIL.Image.new("1", (9, 9), 1), "PNG", (255, 255, 255)),
        (PIL.Image.new("1", (9, 9), 1), "TIFF", (255, 255, 255)),
        (PIL.Image.new("RGB", (9, 9), (1, 2, 3)).convert("P", palette=PIL.Image.Palette.ADAPTIVE), "PNG", (1, 2, 3)),
        (PIL.Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (PIL.Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (PIL.Image.new("RGBA", (9, 9), (255, 0, 0, 255)), "PNG", (255, 0, 0)),
        (PIL.Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (PIL.Image.new("RGBA", (9, 9), (0, 0, 0, 51)), "PNG", (204, 204, 204)),
        (PIL.Image.new("RGBA", (9, 9), (0, 0, 0, 51)), "TIFF", (204, 204, 204)),
        (PIL.Image.new("LA", (9, 9), (0, 0)), "PNG", (255, 255, 255)),
        (PIL.Image.fromarray(np.full((9, 9), 65535, np.uint16)), "PNG", (255, 255, 255)),
        (PIL.Image.fromarray(np.full((9, 9), 257 * 100, np.uint16)), "PNG", (100, 100, 100)),
        (PIL.Image.fromarray(np.full((9, 9), 257 * 100, np.uint16)), "TIFF", (100, 100, 100)),
    ],
    ids=lambda value: getattr(value, "mode", str(value)),
)
def test_every_kind_of_pixels_becomes_its_colour(tmp_path, picture, format, colour):
    found = opened(encoded(picture, format), tmp_path).getpixel((4, 4))
    assert max(abs(a - b) for a, b in zip(found, colour, strict=True)) <= 1


@pytest.mark.parametrize(
    ("picture", "transparency"),
    [
        (PIL.Image.new("P", (9, 9), 0), 0),
        (PIL.Image.new("L", (9, 9), 7), 7),
        (PIL.Image.new("RGB", (9, 9), (1, 2, 3)), (1, 2, 3)),
        (PIL.Image.fromarray(np.full((9, 9), 300, np.uint16)), 300),
    ],
    ids=lambda value: getattr(value, "mode", str(value)),
)
def test_a_colour_that_is_declared_transparent_is_white(tmp_path, picture, transparency):
    data = encoded(picture, transparency=transparency)
    assert opened(data, tmp_path).getpixel((4, 4)) == (255, 255, 255)


def test_a_phones_jpeg_with_a_preview_is_its_first_picture(tmp_path):
    data = encoded(noise(), "MPO", save_all=True, append_images=[noise(seed=1)])
    assert pixels(opened(data, tmp_path)) == pixels(opened(encoded(noise(), "JPEG"), tmp_path))


def test_a_drawing_is_drawn_where_it_is_opened(tmp_path, monkeypatch):
    def draw(path: str) -> PIL.Image.Image:
        if path != "drawn:a red disc":
            raise ValueError("the drawing is unknown")
        return PIL.Image.new("RGB", (32, 32), "red")

    module = ModuleType("spark_rl.images.drawn")
    module.draw = draw
    monkeypatch.setitem(sys.modules, "spark_rl.images.drawn", module)
    image = reference("drawn:a red disc", tmp_path)
    assert image == Image("drawn:a red disc", read.hashlib.sha256(b"drawn:a red disc").hexdigest())
    assert open_image(image).getpixel((0, 0)) == (255, 0, 0)
    assert refusal("drawn:nothing", tmp_path) == "the drawing is unknown"


# ------------------------------------------------------------------------------------------------ addresses


class _Site(BaseHTTPRequestHandler):
    """/png: an image. /large: more than is read. /slow: a byte now and then. All others: not found."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path in ("/png", "/large", "/slow") else 404)
        self.end_headers()
        if self.path == "/png":
            self.wfile.write(png())
        elif self.path == "/large":
            self.wfile.write(b"\0" * 2**20)
        elif self.path == "/slow":
            for _ in range(2_000):
                self.wfile.write(b"\0")
                self.wfile.flush()
                time.sleep(0.05)
            self.asked.append("all of it")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_address_is_fetched_once_if_that_is_allowed(tmp_path, site):
    found = [reference(f"{site}/png", tmp_path, allow_urls=True) for _ in range(2)]
    assert found == [reference(png(), tmp_path)] * 2 and _Site.asked.count("/png") == 1


def test_what_is_fetched_is_bounded_in_size_and_time(tmp_path, site, monkeypatch):
    monkeypatch.setattr(read, "MAX_BYTES", 2**18)
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    assert "/large has 0 MiB, more than 0; make it smaller" in refusal(f"{site}/large", tmp_path, allow_urls=True)
    assert "cannot be fetched (not whole after 0 s)" in refusal(f"{site}/slow", tmp_path, allow_urls=True)
    assert "all of it" not in _Site.asked, "which takes 100 seconds"


def test_an_address_that_gives_nothing_is_one_sentence(tmp_path, site):
    assert "cannot be fetched (HTTP Error 404" in refusal(f"{site}/nothing", tmp_path, allow_urls=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = "cannot be fetched (<urlopen error [Errno 111] Connection refused>); check the address, or give a file"
    assert words in refusal(f"http://127.0.0.1:{port}/a.png", tmp_path, allow_urls=True)
