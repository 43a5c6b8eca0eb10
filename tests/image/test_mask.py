"""What is white is made new, and nothing else changes by one bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tintype.errors import RequestError
from tintype.image.mask import demand_same_size, hard_cells, hide, keep_outside, mask_cells, open_mask, prepare_mask

GREYS = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))


def spot(size: int = 101) -> Image.Image:
    """One white pixel in the middle."""
    image = Image.new("L", (size, size))
    image.putpixel((size // 2, size // 2), 255)
    return image


def strokes(paint: tuple[int, ...], paper: tuple[int, ...]) -> Image.Image:
    image = Image.new("RGBA", (8, 8), paper)
    ImageDraw.Draw(image).rectangle((2, 2, 5, 5), fill=paint)
    return image


DRAWN = np.pad(np.full((4, 4), 255), 2)


# Where a mask comes from


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_a_grey_mask_is_its_own_levels(tmp_path, mode):
    GREYS.convert(mode).save(tmp_path / "x.png")
    mask = open_mask(tmp_path / "x.png")
    assert (mask.mode, mask.info) == ("L", {})
    np.testing.assert_array_equal(mask, GREYS)


@pytest.mark.parametrize(
    ("paint", "paper"),
    [
        ((255, 255, 255, 255), (0, 0, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0, 0)),  # alpha alone draws
        ((255, 0, 0, 255), (0, 0, 0, 0)),  # transparent paper lost its colour
        ((255, 0, 0, 255), (255, 0, 0, 0)),
        ((255, 255, 255, 255), (0, 0, 0, 255)),  # opaque
        ((255, 255, 255, 255), (255, 255, 255, 0)),
    ],
)
def test_what_a_brush_left_is_white_however_it_was_saved(tmp_path, paint, paper):
    strokes(paint, paper).save(tmp_path / "x.png")
    np.testing.assert_array_equal(open_mask(tmp_path / "x.png"), DRAWN)


def test_black_and_white_strokes_on_nothing_are_what_they_show():
    image = strokes((255, 255, 255, 255), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((2, 2, 3, 5), fill=(0, 0, 0, 255))
    expected = DRAWN.copy()
    expected[2:6, 2:4] = 0
    np.testing.assert_array_equal(open_mask(image), expected)


def test_an_opaque_black_mask_is_empty_and_not_full():
    mask = open_mask(Image.new("RGBA", (4, 4), "black"))
    assert mask.getextrema() == (0, 0)


@pytest.mark.parametrize("array", [DRAWN > 0, DRAWN.astype(np.uint8), (DRAWN / 255).astype(np.float32)])
def test_an_array_is_a_mask(array):
    np.testing.assert_array_equal(open_mask(array), DRAWN)


def test_a_mask_is_upright_and_a_wrong_one_is_called_a_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (8, 4), 255).save(tmp_path / "x.png", exif=exif)
    assert open_mask(tmp_path / "x.png").size == (4, 8)
    with pytest.raises(RequestError, match="the mask"):
        open_mask(np.zeros((2, 2), np.int64))


# Growing and blurring


def test_a_mask_as_it_is_becomes_zero_to_one():
    mask = prepare_mask(GREYS)
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, np.asarray(GREYS, np.float32) / np.float32(255))
    assert mask.max() == 1.0


@pytest.mark.parametrize("grow", [1, 2, 3, 4, 7, 16, 33, 50])
def test_a_spot_grows_to_nearly_a_disc(grow):
    mask = prepare_mask(spot(), grow=grow)
    down, across = np.mgrid[-50:51, -50:51]
    distance = np.hypot(down, across)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert mask[50, 50 - grow] == mask[50, 50 + grow] == mask[50 - grow, 50] == mask[50 + grow, 50] == 1
    assert (mask[distance <= grow * 0.97] == 1).all()  # no holes
    assert (mask[distance > grow * (1.45 if grow < 4 else 1.25)] == 0).all()
    for other in (mask[::-1], mask[:, ::-1], mask.T):
        np.testing.assert_array_equal(other, mask)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 300)])
def test_the_farthest_growth_of_a_small_mask_is_all_of_it(size):
    assert prepare_mask(Image.new("L", size, 255), grow=256).min() == 1
    mask = Image.new("L", size)
    mask.putpixel((0, 0), 255)
    grown = prepare_mask(mask, grow=256)
    assert grown.shape == size[::-1]
    assert (grown[:200] == 1).all()


@pytest.mark.parametrize("grow", [1, 2, 5, 9])
def test_narrowing_is_growing_of_the_black(grow):
    shape = Image.new("L", (64, 48))
    ImageDraw.Draw(shape).ellipse((10, 5, 50, 40), fill=255)
    inverted = Image.fromarray(255 - np.asarray(shape))
    np.testing.assert_array_equal(prepare_mask(shape, grow=-grow), 1 - prepare_mask(inverted, grow=grow))


def test_narrowing_does_not_eat_from_the_border_of_the_picture():
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    narrow = prepare_mask(mask, grow=-4)
    assert (narrow[:, :12] == 1).all()
    assert (narrow[:, 12:] == 0).all()


def test_what_was_grown_and_narrowed_covers_what_was_there():
    image = Image.fromarray(np.where(np.random.default_rng(0).random((64, 64)) > 0.98, 255, 0).astype(np.uint8))
    grown = Image.fromarray((prepare_mask(image, grow=6) * 255).astype(np.uint8))
    assert (prepare_mask(grown, grow=-6) >= prepare_mask(image)).all()


def test_a_blur_is_a_gaussian_after_the_growth():
    mask = Image.new("L", (101, 101))
    mask.paste(255, (0, 0, 50, 101))
    blurred = prepare_mask(mask, blur=8.0)[50]
    assert (np.diff(blurred) <= 0).all()
    assert blurred[0] == 1
    assert blurred[-1] == 0
    assert abs(blurred[50 - 8] - 0.841) < 0.03  # one radius inside: the normal distribution's
    assert abs(blurred[50 + 7] - 0.159) < 0.03
    expected = mask.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.GaussianBlur(2))
    np.testing.assert_allclose(prepare_mask(mask, grow=1, blur=2)[20:80], np.asarray(expected)[20:80] / 255, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (64, 64)])
def test_the_widest_blur_leaves_a_white_mask_white(size):
    assert prepare_mask(Image.new("L", size, 255), blur=256).min() > 0.99


def test_an_empty_mask_is_an_error_that_says_so():
    with pytest.raises(RequestError) as caught:
        prepare_mask(Image.new("L", (8, 8)), grow=4)
    assert "empty" in caught.value.message
    assert "white" in caught.value.fix


@pytest.mark.parametrize("options", [{"grow": -3}, {"blur": 200.0}])
def test_a_mask_of_which_nothing_is_left_is_an_error(options):
    with pytest.raises(RequestError) as caught:
        prepare_mask(spot(), **options)
    assert "less" in caught.value.fix


@pytest.mark.parametrize("grow", [257, -257, 1.5, 10**400, "4", None, True])
def test_a_growth_out_of_range_is_refused(grow):
    with pytest.raises(RequestError) as caught:
        prepare_mask(spot(), grow=grow)
    assert "-256 to 256" in caught.value.fix


@pytest.mark.parametrize("blur", [-0.5, 256.5, float("nan"), float("inf"), "4", None, True])
def test_a_blur_out_of_range_is_refused(blur):
    with pytest.raises(RequestError) as caught:
        prepare_mask(spot(), blur=blur)
    assert "0 to 256" in caught.value.fix


def test_numbers_of_numpys_are_numbers():
    np.testing.assert_array_equal(
        prepare_mask(GREYS, grow=np.int8(-1), blur=np.float32(2)), prepare_mask(GREYS, grow=-1, blur=2)
    )


# On the latents' grid, and on its picture


def test_a_cell_is_the_mean_of_its_pixels():
    mask = np.zeros((16, 24), np.float32)
    mask[:8, :4] = 1
    cells = mask_cells(mask, 8)
    assert cells.dtype == np.float32
    assert cells.tolist() == [[0.5, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("cell", [1, 2, 4, 8])
def test_cells_of_nothing_and_of_everything_are_exact(cell):
    assert (mask_cells(np.ones((8, 16), np.float32), cell) == 1).all()
    assert (mask_cells(np.zeros((8, 16), np.float32), cell) == 0).all()
    np.testing.assert_array_equal(mask_cells(np.eye(8, dtype=np.float32), 1), np.eye(8))


@pytest.mark.parametrize("cell", [0, -8, 5, 16])
def test_a_mask_without_whole_cells_is_refused(cell):
    with pytest.raises(RequestError):
        mask_cells(np.ones((8, 16), np.float32), cell)


def test_a_mask_of_another_size_names_both():
    demand_same_size(Image.new("L", (8, 4)), Image.new("RGB", (8, 4)))
    with pytest.raises(RequestError, match=r"8x4.*4x8"):
        demand_same_size(Image.new("L", (8, 4)), Image.new("RGB", (4, 8)))


def test_outside_the_original_stays_and_inside_all_is_new_bit_for_bit():
    every = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).astype(np.uint8)  # every pair of bytes
    original, made = every[:, :, [0, 0, 1]], every[:, :, [1, 1, 0]]
    zeros, ones = np.zeros((256, 256), np.float32), np.ones((256, 256), np.float32)
    np.testing.assert_array_equal(keep_outside(original, made, zeros), original)
    np.testing.assert_array_equal(keep_outside(original, made, ones), made)
    half = keep_outside(original, made, ones / 2).astype(int)
    assert np.abs(half - (original.astype(int) + made) / 2).max() <= 0.5


@pytest.mark.parametrize("share", np.linspace(0, 1, 11).tolist())
def test_a_blend_lies_between_both_and_nowhere_wraps(share):
    random = np.random.default_rng(0)
    original, made = random.integers(0, 256, (2, 16, 16, 3), np.uint8)
    before = original.copy(), made.copy()
    blend = keep_outside(original, made, np.full((16, 16), share, np.float32))
    assert blend.dtype == np.uint8
    assert (blend >= np.minimum(original, made)).all()
    assert (blend <= np.maximum(original, made)).all()
    np.testing.assert_array_equal((original, made), before)


def test_pictures_of_other_sizes_are_not_put_together():
    picture, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32)
    for wrong in [(picture[:1], picture, mask), (picture, picture[:, :1], mask), (picture, picture, mask[:1])]:
        with pytest.raises(RequestError):
            keep_outside(*wrong)


# For a model that knows no half


def test_a_hard_cell_is_its_first_pixel_at_half():
    mask = np.zeros((8, 12), np.float32)
    mask[0, 0] = 0.5
    mask[0, 4] = np.float32(127) / np.float32(255)
    mask[1:4, 9:12] = 1  # misses the first pixel
    mask[4:, 4:8] = np.float32(128) / np.float32(255)
    cells = hard_cells(mask, 4)
    assert cells.dtype == np.float32
    assert cells.tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(RequestError):
        hard_cells(mask, 5)


def test_what_is_made_new_is_hidden_behind_grey():
    samples = np.linspace(-1, 1, 2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    hidden = hide(samples, np.array([[0.5, 0.49], [1, 0]], np.float32))
    assert hidden.dtype == np.float32
    assert not hidden[:, :, :, 0].any()
    np.testing.assert_array_equal(hidden[:, :, :, 1], samples[:, :, :, 1])
