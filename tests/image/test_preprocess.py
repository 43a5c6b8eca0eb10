"""What a ControlNet is shown: edges where they are, and nothing that isn't in the picture."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from tintype.errors import RequestError
from tintype.image.preprocess import PREPROCESSORS, demand_preprocessor, preprocess


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def edges(values: np.ndarray, asked: str = "canny") -> np.ndarray:
    found = np.asarray(preprocess(picture(values), asked))
    assert np.array_equal(found[:, :, 0], found[:, :, 2])
    assert set(np.unique(found)) <= {0, 255}
    return found[:, :, 0] > 0


@pytest.mark.parametrize("axis", [0, 1])
def test_a_step_is_one_line_as_wide_as_a_pixel(axis):
    values = np.zeros((20, 30))
    np.moveaxis(values, axis, 0)[9:] = 200
    found = np.moveaxis(edges(values), axis, 0)
    assert found.any(axis=1).sum() == 1
    assert found[8].all() or found[9].all()


def test_a_square_has_a_closed_outline_and_a_plain_field_none():
    values = np.zeros((40, 40))
    values[10:30, 10:30] = 255
    found = edges(values)
    inside, outside = found[13:27, 13:27], found.copy()
    outside[8:32, 8:32] = False
    assert not inside.any()
    assert not outside.any()
    assert 70 <= found.sum() <= 90
    assert not edges(np.full((16, 16), 90)).any()


def test_weak_edges_count_where_they_touch_strong_ones():
    values = np.zeros((24, 60))
    values[12:] = np.linspace(20, 120, 60)  # a step that grows: its gradient is four times its height
    both = edges(values, "canny:100-400")
    strong = edges(values, "canny:400-400")
    assert 0 < strong.sum() < both.sum()
    apart = values.copy()
    apart[:, 28:34] = 0  # nothing joins the weak half any more
    assert edges(apart, "canny:100-400")[:, :26].sum() < both[:, :26].sum()


def test_a_diagonal_is_found_whole():
    rows, columns = np.mgrid[:48, :48]
    for values in ((rows > columns) * 200, (rows + columns > 48) * 200):
        found = edges(values)
        assert found[4:-4].any(axis=1).all()
        assert found.sum() < 2.2 * 48


def test_the_others_are_what_they_say():
    random = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    image = Image.fromarray(random)
    np.testing.assert_array_equal(np.asarray(preprocess(image, "invert")), 255 - random)
    grey = np.asarray(preprocess(image, "grey"))
    assert np.ptp(grey, axis=2).max() == 0
    soft = np.asarray(preprocess(image, "blur:2"), np.float64)
    assert soft.std() < random.std() / 2
    assert abs(soft.mean() - random.mean()) < 2
    coarse = np.asarray(preprocess(image, "tile:8"), np.float64)
    means = random.reshape(3, 8, 4, 8, 3).mean(axis=(1, 3))
    assert np.abs(coarse.reshape(3, 8, 4, 8, 3).mean(axis=(1, 3)) - means).max() < 25
    assert np.array_equal(np.asarray(preprocess(image, "tile:1")), random)


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 17)], ids=str)
def test_any_size_comes_back_as_it_was(name, size):
    made = preprocess(Image.new("RGB", size, "red"), name)
    assert (made.size, made.mode) == (size, "RGB")


def test_a_spiral_of_weak_edges_ends_soon():
    """Each of its points is joined to the next one alone."""
    from tintype.image.preprocess import _joined

    side, weak = 300, np.zeros((300, 300), bool)
    for ring in range(0, side // 2 - 2, 4):
        low, high = ring, side - 1 - ring
        weak[low, max(0, low - 4) : high] = weak[low:high, high] = weak[high, low : high + 1] = True
        weak[low + 4 : high, low] = True
    strong = np.zeros_like(weak)
    strong[0, 0] = True
    started = time.perf_counter()
    found = _joined(strong, weak)
    assert found.sum() > 1000
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "asked", ["", "depth", "canny:", "canny:1", "canny:5-2", "canny:1-9999", "grey:3", "blur:-1", "x" * 99]
)
def test_what_is_no_preprocessor_is_refused(asked):
    with pytest.raises(RequestError) as refusal:
        demand_preprocessor(asked)
    assert refusal.value.fix
