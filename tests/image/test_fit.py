"""A picture meets the size of a request, and a picture alone gives a size that the model makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from tintype.bundle.manifest import SizeLimits
from tintype.errors import RequestError
from tintype.image.fit import FITS, fit, size_for

SIZES = [(64, 64), (64, 48), (1, 1), (3, 200), (200, 3), (65, 97)]


def ramp(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, across], axis=-1).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", SIZES)
def test_a_picture_of_one_colour_stays_it_at_every_size(size, target, how, mode):
    image = Image.new(mode, size, "#646464")
    fitted = fit(image, *target, how)
    assert fitted.size == target
    assert fitted.mode == mode
    assert set(np.asarray(fitted).ravel()) == {100}


@pytest.mark.parametrize("how", FITS)
def test_a_picture_of_that_size_comes_back_untouched(how):
    image = ramp((40, 24))
    assert fit(image, 40, 24, how) is image


@pytest.mark.parametrize("how", FITS)
def test_without_a_change_of_aspect_every_fit_is_the_same(how):
    image = ramp((40, 24))
    assert fit(image, 80, 48, how).tobytes() == image.resize((80, 48), Image.Resampling.LANCZOS).tobytes()


def test_a_crop_without_scaling_is_the_middle_bit_for_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    cropped = fit(Image.fromarray(pixels), 20, 20, "crop")
    np.testing.assert_array_equal(np.asarray(cropped), pixels[:, 5:25])


def test_a_crop_keeps_the_middle_of_the_longer_side_and_all_of_the_shorter():
    cropped = np.asarray(fit(ramp((200, 100)), 50, 50, "crop")).astype(int)
    assert np.abs(cropped[25, [0, -1], 0] - [64, 191]).max() <= 3
    assert np.abs(cropped[[0, -1], 25, 1] - [0, 255]).max() <= 3


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (30, 29)])
def test_padding_without_scaling_keeps_the_picture_and_repeats_its_edge(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    padded = np.asarray(fit(Image.fromarray(pixels), 30, 30, "pad"))
    left, top = (30 - size[0]) // 2, (30 - size[1]) // 2
    np.testing.assert_array_equal(padded[top : top + size[1], left : left + size[0]], pixels)
    if size[0] < 30:
        assert (padded[:, -1] == padded[:, left + size[0] - 1]).all()
    if size[1] < 30:
        assert (padded[0] == padded[top]).all()


def test_padding_keeps_the_whole_picture():
    padded = np.asarray(fit(ramp((200, 100)), 50, 50, "pad")).astype(int)
    assert np.abs(padded[25, [0, -1], 0] - [0, 255]).max() <= 4
    assert np.abs(padded[[0, -1], 25, 1] - [0, 255]).max() <= 4


def test_stretching_keeps_the_corners():
    stretched = np.asarray(fit(ramp((200, 100)), 50, 50, "stretch")).astype(int)
    assert np.abs(stretched[[0, 0, -1, -1], [0, -1, 0, -1], :2] - [(0, 0), (255, 0), (0, 255), (255, 255)]).max() <= 4


def test_a_mask_can_be_fitted_without_new_greys():
    mask = Image.fromarray(np.repeat([[0, 255]], 8, axis=0).repeat(4, axis=1).astype(np.uint8))
    fitted = fit(mask, 64, 96, "stretch", resample=Image.Resampling.NEAREST)
    assert set(np.asarray(fitted).ravel()) == {0, 255}


@pytest.mark.parametrize("how", ["cover", "", None, "Crop"])
def test_a_fit_that_is_none_is_refused_with_those_there_are(how):
    with pytest.raises(RequestError) as caught:
        fit(ramp((4, 4)), 8, 8, how)
    assert "crop" in caught.value.fix


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_a_size_of_nothing_is_refused(size):
    with pytest.raises(RequestError):
        fit(ramp((4, 4)), *size, "crop")


EIGHTS = SizeLimits(multiple=8, minimum=64, maximum=1024)
SIXTY_FOURS = SizeLimits(multiple=64, minimum=256, maximum=2048)


@pytest.mark.parametrize("image_size", [(512, 512), (64, 64), (640, 384), (256, 1024)])
def test_a_size_that_the_model_makes_is_taken_as_it_is(image_size):
    assert size_for(image_size, (512, 512), EIGHTS) == image_size


@pytest.mark.parametrize(
    ("image_size", "limits", "expected"),
    [
        ((4000, 3000), EIGHTS, (592, 440)),
        ((3000, 4000), EIGHTS, (440, 592)),
        ((6000, 4000), EIGHTS, (624, 416)),
        ((6000, 4000), SIXTY_FOURS, (576, 384)),
        ((1024, 1024), EIGHTS, (512, 512)),
        ((100, 100), EIGHTS, (512, 512)),
        ((63, 63), EIGHTS, (512, 512)),
        ((1, 100_000), EIGHTS, (64, 1024)),
        ((100_000, 1), SIXTY_FOURS, (1024, 256)),
    ],
)
def test_another_picture_gets_its_aspect_at_the_default_area(image_size, limits, expected):
    assert size_for(image_size, (512, 512), limits) == expected


@pytest.mark.parametrize(
    "limits",
    [
        EIGHTS,
        SIXTY_FOURS,
        SizeLimits(multiple=1, minimum=1, maximum=200),
        SizeLimits(multiple=48, minimum=48, maximum=720),
    ],
)
def test_no_allowed_size_errs_less(limits):
    """Against every size there is, by the rule that `size_for` states."""
    side = min(512, limits.maximum) // limits.multiple * limits.multiple
    sides = range(limits.minimum, limits.maximum + 1, limits.multiple)
    allowed = [(w, h) for w in sides for h in sides if w * h <= side * side]
    wide, high = np.array(allowed, float).T
    for width, height in np.random.default_rng(0).integers(1, 5000, (100, 2)).tolist():
        errors = np.abs(np.log(wide * height / (high * width))) + np.log(side * side / (wide * high)) / 2
        chosen = size_for((width, height), (side, side), limits)
        assert chosen in allowed or chosen == (width, height)
        if chosen != (width, height):
            assert errors[allowed.index(chosen)] <= errors.min() + 1e-9


@pytest.mark.parametrize("ratio", np.linspace(0.5, 2, 31).round(3).tolist())
def test_common_ratios_lose_little_of_aspect_and_area(ratio):
    size = size_for((round(3000 * ratio), 3000), (512, 512), EIGHTS)
    assert abs(math.log(size[0] / size[1] / ratio)) < 0.02
    assert 0.94 * 512 * 512 <= math.prod(size) <= 512 * 512


def test_a_size_that_was_chosen_stays():
    for image_size in [(4000, 3000), (777, 1234), (1, 9)]:
        size = size_for(image_size, (512, 512), EIGHTS)
        assert size_for(size, (512, 512), EIGHTS) == size


def test_a_picture_of_no_pixels_gives_no_size():
    with pytest.raises(RequestError):
        size_for((0, 5), (512, 512), EIGHTS)
