import json

import pytest

from spark_rl.images.drawn import draw, drawing

WHITE, RED = (255, 255, 255), (255, 0, 0)


def described(**changes) -> str:
    return "drawn:" + json.dumps({"size": [8, 8], "marks": []} | changes)


def test_marks_are_drawn_in_order_and_nothing_else_is():
    image = draw(drawing(16, 8, [("rectangle", 1, 2, 3, 4, "blue"), ("rectangle", 1, 2, 3, 4, "red")]))
    assert (image.mode, image.size) == ("RGB", (16, 8))
    pixels = {(x, y) for x in range(16) for y in range(8) if image.getpixel((x, y)) != WHITE}
    assert pixels == {(x, y) for x in (1, 2, 3) for y in (2, 3, 4, 5)}
    assert {image.getpixel(at) for at in pixels} == {RED}


@pytest.mark.parametrize(
    ("mark", "inside", "outside"),
    [
        (("disc", 2, 2, 10, "#ff0000"), [(7, 7), (3, 5)], [(2, 2), (12, 12)]),
        (("triangle", 2, 2, 10, 10, "red"), [(7, 3), (2, 11), (11, 11)], [(3, 3), (11, 3)]),
        (("corner", 2, 2, 10, 10, "red"), [(2, 3), (2, 11), (11, 11)], [(11, 3), (9, 5)]),
    ],
)
def test_each_form_covers_what_it_should(mark, inside, outside):
    image = draw(drawing(16, 16, [mark]))
    assert all(image.getpixel(at) == RED for at in inside)
    assert all(image.getpixel(at) == WHITE for at in outside)


def test_different_digits_look_different():
    pictures = {draw(drawing(16, 16, [("text", 5, 2, digit, "black")])).tobytes() for digit in "0123456789ABCD"}
    assert len(pictures) == 14


def test_no_pixel_is_between_two_colours():
    marks = [("text", 0, 0, "A7", "red"), ("disc", 15, 1, 9, "red"), ("triangle", 1, 15, 9, 9, "red")]
    assert {colour for _, colour in draw(drawing(32, 32, marks)).getcolors()} == {WHITE, RED}


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("drawn:", "described"),
        ("drawn:[]", "described"),
        ("drawn:{}", "described"),
        (described(size=8), "described"),
        (described(marks=[[]]), "described"),
        (described(size=[0, 8]), "size"),
        (described(size=[8, 10**6]), "size"),
        (described(size=[8.5, 8]), "size"),
        (described(size=[1000, 4]), "longer than 200:1"),
        (described(marks=[["star", 1, 1, "red"]]), "known are rectangle"),
        (described(marks=[["disc", 1, 1, "red"]]), "disc"),
        (described(marks=[["disc", 1, 1, -4, "red"]]), "disc"),
        (described(marks=[["disc", 1, 1, 10**9, "red"]]), "disc"),
        (described(marks=[["disc", 1, 1, 4, "no such colour"]]), "colour"),
        (described(marks=[["text", 1, 1, "漢", "red"]]), "Latin"),
    ],
)
def test_what_is_no_drawing_is_refused_in_a_sentence(path, word):
    with pytest.raises(ValueError, match=word) as caught:
        draw(path)
    assert "\n" not in str(caught.value)
