"""A larger canvas keeps its picture, and its mask says what is new."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tintype.errors import RequestError
from tintype.image.canvas import Margins, extend
from tintype.image.mask import prepare_mask

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


@pytest.mark.parametrize("text", ["64,0,32,1", " 64, 0 ,32,1 ", "064,0,32,01"])
def test_margins_are_read_as_they_are_typed(text):
    assert Margins.parse(text) == Margins(64, 0, 32, 1)


@pytest.mark.parametrize(
    "text",
    [
        *("", "64", "64,0,64", "1,2,3,4,5", "0,0,0,0", "-1,0,0,0", "+1,0,0,0", "1.5,0,0,0", "a,b,c,d"),
        *("1,,2,3", "1_0,0,0,0", "٣,0,0,0", "1;2;3;4", "64 0 64 0", "9" * 5000 + ",0,0,0"),
    ],
)
def test_what_is_no_four_margins_is_refused(text):
    with pytest.raises(RequestError) as caught:
        Margins.parse(text)
    assert "64,0,64,0" in caught.value.fix
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("sides", [(0, 0, 0, 0), (-1, 0, 0, 9), (1.5, 0, 0, 0), ("1", 0, 0, 0), (True, 0, 0, 0)])
def test_margins_that_exist_are_sound(sides):
    with pytest.raises(RequestError):
        Margins(*sides)


@pytest.mark.parametrize(
    "margins", [Margins(8, 4, 16, 2), Margins(0, 0, 1, 0), Margins(0, 200, 0, 0), Margins(99, 0, 99, 0)]
)
@pytest.mark.parametrize("overlap", [0, 1, 8])
def test_the_picture_keeps_its_bytes_and_the_mask_is_what_is_new(margins, overlap):
    canvas, mask = extend(NOISE, margins, overlap=overlap)
    left, top, right, bottom = margins.left, margins.top, margins.right, margins.bottom
    assert (canvas.mode, mask.mode) == ("RGB", "L")
    assert canvas.size == mask.size == (60 + left + right, 40 + top + bottom)
    assert canvas.crop((left, top, left + 60, top + 40)).tobytes() == NOISE.tobytes()
    expected = np.zeros((40, 60), np.uint8)
    for margin, strip in (
        (left, expected[:, :overlap]),
        (top, expected[:overlap]),
        (right, expected[:, 60 - overlap :]),
        (bottom, expected[40 - overlap :]),
    ):
        strip[:] = 255 if margin else strip
    expected = np.pad(expected, ((top, bottom), (left, right)), constant_values=255)
    np.testing.assert_array_equal(mask, expected)
    assert prepare_mask(mask).max() == 1


@pytest.mark.parametrize("margins", [Margins(16, 16, 16, 16), Margins(100, 150, 0, 0)])
def test_one_colour_goes_on_everywhere(margins):
    canvas, _ = extend(Image.new("RGB", (20, 20), (9, 99, 199)), margins)
    assert canvas.getcolors() == [(canvas.width * canvas.height, (9, 99, 199))]


@pytest.mark.parametrize(
    ("margins", "edge", "turn"),
    [
        (Margins(0, 0, 20, 0), np.s_[:, -1], lambda canvas: canvas[:, 60:].swapaxes(0, 1)),
        (Margins(20, 0, 0, 0), np.s_[:, 0], lambda canvas: canvas[:, 19::-1].swapaxes(0, 1)),
        (Margins(0, 0, 0, 20), np.s_[-1], lambda canvas: canvas[40:]),
        (Margins(0, 20, 0, 0), np.s_[0], lambda canvas: canvas[19::-1]),
    ],
)
def test_the_mirrored_edge_fades_to_its_mean(margins, edge, turn):
    """Outwards: the first row is nearly the edge itself, and the outermost is of one colour, the edge's mean."""
    pixels = np.asarray(NOISE)
    added = turn(np.asarray(extend(NOISE, margins)[0])).astype(float)
    along = pixels[edge].astype(float)
    mean = along.mean(axis=0)
    assert np.abs(added[-1] - mean).max() <= 1
    assert np.abs(added[0] - (along + (mean - along) / 20)).max() <= 1
    spread = added.std(axis=1).mean(axis=1)
    assert spread[0] > 4 * spread[15]


@pytest.mark.parametrize("margins", [Margins(1, 0, 0, 0), Margins(7, 300, 5, 2)])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (2, 1)])
def test_a_picture_smaller_than_its_margins_is_mirrored_as_often_as_it_takes(size, margins):
    canvas, mask = extend(NOISE.crop((0, 0, *size)), margins, overlap=0)
    assert canvas.size == mask.size == (size[0] + margins.left + margins.right, size[1] + margins.top + margins.bottom)
    kept = (margins.left, margins.top, margins.left + size[0], margins.top + size[1])
    assert canvas.crop(kept).tobytes() == NOISE.crop((0, 0, *size)).tobytes()


@pytest.mark.parametrize(
    ("margins", "overlap"), [(Margins(4, 0, 4, 0), 30), (Margins(4, 0, 0, 0), 60), (Margins(1, 1, 1, 1), -1)]
)
def test_an_overlap_that_leaves_nothing_of_the_picture_is_refused(margins, overlap):
    with pytest.raises(RequestError) as caught:
        extend(NOISE, margins, overlap=overlap)
    assert "60x40" in caught.value.message


def test_a_canvas_of_too_many_pixels_is_refused_before_it_is_made():
    with pytest.raises(RequestError, match="67,108,864"):
        extend(NOISE, Margins.parse("999999999,0,999999999,0"))


def test_the_picture_that_was_given_stays_as_it_was():
    before = NOISE.tobytes()
    extend(NOISE, Margins(9, 9, 9, 9))
    assert NOISE.tobytes() == before
