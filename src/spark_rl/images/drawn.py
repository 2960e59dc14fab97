"""Drawings: images that are described, not stored. `drawn:{"size":[64,64],"marks":[["disc",4,4,8,"red"]]}` is one.

A drawing is its description, so it needs no file, it is the same on every machine, and two of the same description are
the same image. Marks are drawn in order on white, without anti-aliasing; lengths are in pixels, `x` and `y` are those
of a mark's upper left corner, and colours are PIL's names or `#rrggbb`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import PIL.Image
import PIL.ImageColor
import PIL.ImageDraw
import PIL.ImageFont

from spark_rl.images.decode import MAX_RATIO

PREFIX = "drawn:"
"""How the path of a drawing begins."""
MAX_SIDE = 1024
"""Pixels."""

Mark = Sequence[int | str]
"""Its name (see `_MARKS`), its numbers and its colour: `["rectangle", x, y, width, height, "red"]`."""
Canvas = PIL.ImageDraw.ImageDraw


def drawing(width: int, height: int, marks: Sequence[Mark]) -> str:
    """The path of a drawing; equal drawings have equal paths."""
    return PREFIX + json.dumps(
        {"size": [width, height], "marks": [list(mark) for mark in marks]}, separators=(",", ":")
    )


def draw(path: str) -> PIL.Image.Image:
    """The picture that a `drawn:` path describes, in RGB.

    Raises:
        ValueError: the description is no drawing.
    """
    try:
        description = json.loads(path.removeprefix(PREFIX))
        width, height = description["size"]
        marks = [(str(name), values) for name, *values in description["marks"]]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError(
            f'the drawing {_short(path)} is not described as {{"size": [width, height], "marks": [...]}}'
        ) from None
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (width, height)):
        raise ValueError(f"the drawing {_short(path)} has a size that is not of two whole numbers from 1 to {MAX_SIDE}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"the drawing {_short(path)} is longer than {MAX_RATIO}:1")
    image = PIL.Image.new("RGB", (width, height), "white")
    canvas = PIL.ImageDraw.Draw(image)
    canvas.fontmode = "1"
    for name, values in marks:
        if name not in _MARKS:
            raise ValueError(f"the drawing {_short(path)} has a mark {name!r}; known are {', '.join(_MARKS)}")
        types, put = _MARKS[name]
        if tuple(map(type, values)) != types or not all(0 <= v <= MAX_SIDE for v in values if isinstance(v, int)):
            raise ValueError(f"the drawing {_short(path)} has a {name} with other values than it needs: {values}")
        try:
            PIL.ImageColor.getrgb(values[-1])
        except ValueError:
            raise ValueError(f"the drawing {_short(path)} has no colour by the name of {values[-1]!r}") from None
        put(canvas, *values)
    return image


def _short(path: str) -> str:
    return path if len(path) <= 80 else f"{path[:77]}..."


def _rectangle(canvas: Canvas, x: int, y: int, width: int, height: int, colour: str) -> None:
    if width and height:
        canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)


def _disc(canvas: Canvas, x: int, y: int, diameter: int, colour: str) -> None:
    if diameter:
        canvas.ellipse((x, y, x + diameter - 1, y + diameter - 1), fill=colour)


def _triangle(canvas: Canvas, x: int, y: int, width: int, height: int, colour: str) -> None:
    """Standing on its base, with its tip in the middle."""
    canvas.polygon(((x, y + height - 1), (x + width // 2, y), (x + width - 1, y + height - 1)), fill=colour)


def _corner(canvas: Canvas, x: int, y: int, width: int, height: int, colour: str) -> None:
    """A triangle with its right angle at the lower left."""
    canvas.polygon(((x, y), (x, y + height - 1), (x + width - 1, y + height - 1)), fill=colour)


def _text(canvas: Canvas, x: int, y: int, text: str, colour: str) -> None:
    """In PIL's own bitmap font, 6 by 11 pixels a character."""
    try:
        canvas.text((x, y), text, fill=colour, font=PIL.ImageFont.load_default_imagefont())
    except UnicodeEncodeError:
        raise ValueError(f"a drawing cannot write {text!r}: its font has Latin letters alone") from None


_MARKS: dict[str, tuple[tuple[type, ...], Callable[..., None]]] = {
    "rectangle": ((int, int, int, int, str), _rectangle),
    "disc": ((int, int, int, str), _disc),
    "triangle": ((int, int, int, int, str), _triangle),
    "corner": ((int, int, int, int, str), _corner),
    "text": ((int, int, str, str), _text),
}
"""What can be drawn: the types of its values, and how."""
