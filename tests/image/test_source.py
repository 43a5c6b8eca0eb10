"""Whatever a user brings becomes an upright, opaque sRGB picture, or an error that says what to do."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tintype.errors import RequestError
from tintype.image.source import MAX_PIXELS, open_picture, picture_bytes_hash

SIZE = (24, 16)


def colours(size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth, of many colours, and alike in no mirroring or turn."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, np.full_like(across, 90)], axis=-1).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(source: object, **options: str) -> np.ndarray:
    picture = open_picture(source, **options)  # type: ignore[arg-type]
    assert type(picture) is Image.Image
    assert picture.mode == "RGB"
    assert picture.info == {}
    return np.asarray(picture).astype(int)


def refusal(source: object, **options: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        open_picture(source, **options)  # type: ignore[arg-type]
    assert caught.value.fix
    assert "Traceback" not in str(caught.value)
    return caught.value


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing of it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# What is taken


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "gif", "ppm", "tga", "jp2"])
def test_a_file_of_any_common_format_gives_its_pixels(tmp_path, suffix):
    image = colours() if suffix != "gif" else colours().quantize(64)
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(image, tmp_path / f"x.{suffix}", **options)
    np.testing.assert_array_equal(pixels(path), np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(pixels(str(path)), pixels(path))


def test_a_picture_of_one_pixel_is_a_picture(tmp_path):
    assert pixels(saved(Image.new("RGB", (1, 1), "red"), tmp_path / "x.png")).tolist() == [[[255, 0, 0]]]


def test_a_file_is_closed_and_may_go(tmp_path):
    path = saved(colours(), tmp_path / "x.png")
    descriptors = Path("/proc/self/fd")  # Linux's; elsewhere, Windows alone minds a file that goes while it is open
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    picture = open_picture(path)
    assert before == (len(list(descriptors.iterdir())) if descriptors.exists() else 0)
    path.unlink()
    assert picture.tobytes() == colours().tobytes()


def test_a_picture_of_pillows_is_taken_and_left_as_it_was():
    image = colours()
    image.info["transparency"] = (0, 0, 90)
    before = image.tobytes(), dict(image.info)
    assert pixels(image, background="red")[0, 0].tolist() == [255, 0, 0]
    assert (image.tobytes(), image.info) == before


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_picture_stands_upright_whatever_its_exif_says(tmp_path, orientation, suffix):
    upright = colours((64, 40))
    undo = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]  # the transposition from upright to stored
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    path = saved(stored, tmp_path / f"x.{suffix}", exif=exif, **options)
    once = open_picture(path)
    assert once.size == (64, 40)
    assert np.abs(pixels(once) - np.asarray(upright)).max() <= (8 if suffix == "jpg" else 0)
    with Image.open(path) as lazy:
        np.testing.assert_array_equal(pixels(lazy), pixels(path))


@pytest.mark.parametrize("orientation", [0, 9, 77, -1])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation & 0xFFFF
    assert open_picture(saved(colours(), tmp_path / "x.png", exif=exif)).size == SIZE


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00"])
def test_damaged_exif_does_not_harm_a_picture(tmp_path, exif):
    assert open_picture(saved(colours(), tmp_path / "x.jpg", exif=exif)).size == SIZE


def test_what_was_opened_once_opens_again_as_it_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    once = open_picture(saved(colours(), tmp_path / "x.png", exif=exif))
    assert open_picture(once).tobytes() == once.tobytes()


# Transparency


@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("#000000", 0), ("grey", 128)])
def test_transparency_is_laid_over_the_background(tmp_path, background, expected):
    image = colours().convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[0], [255]], 8, axis=0).repeat(24, axis=1).astype(np.uint8)))
    found = pixels(saved(image, tmp_path / "x.png"), background=background)
    assert set(found[:8].ravel()) == {expected}
    np.testing.assert_array_equal(found[8:], np.asarray(colours())[8:])


def test_half_of_a_pixel_shows_half_of_the_background():
    assert pixels(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), background="blue").tolist() == [[[128, 0, 127]]]


def test_grey_with_alpha_is_laid_over_the_background(tmp_path):
    path = saved(Image.merge("LA", (Image.new("L", (2, 1), 10), Image.new("L", (2, 1), 0))), tmp_path / "x.png")
    assert pixels(path, background="#010203").tolist() == [[[1, 2, 3]] * 2]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_with_transparency_is_laid_over_the_background(tmp_path, transparency, suffix):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.frombytes(bytes([0, 1, 2]))
    options = {"transparency": transparency if suffix == "png" else 1}
    path = saved(image, tmp_path / f"x.{suffix}", **options)
    assert pixels(path, background="black").tolist() == [[[255, 0, 0], [0, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 0)])
def test_one_colour_that_is_transparent_is_laid_over_the_background(tmp_path, mode, colour):
    path = saved(Image.new(mode, (2, 2), colour), tmp_path / "x.png", transparency=colour)
    assert set(pixels(path, background="white").ravel()) == {255}


def test_a_palette_with_an_alpha_channel_is_laid_over_the_background():
    image = colours().convert("P").convert("PA")
    image.putalpha(0)
    assert set(pixels(image, background="white").ravel()) == {255}


@pytest.mark.parametrize("background", ["no-such", "", "#12", "#ffffff80", "rgb(300,0,0)", None, 7, (1, 2, 3)])
def test_a_background_that_is_no_colour_is_refused_even_when_nothing_is_transparent(background):
    assert "#ffffff" in refusal(colours(), background=background).fix


# Colours and depths


def test_grey_bilevel_and_palette_become_rgb(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = pixels(saved(Image.fromarray(grey), tmp_path / "grey.png"))
    np.testing.assert_array_equal(found, grey[:, :, np.newaxis].repeat(3, axis=2))
    bilevel = Image.fromarray(grey > 99)
    assert bilevel.mode == "1"
    np.testing.assert_array_equal(pixels(saved(bilevel, tmp_path / "x.png"))[:, :, 0], (grey > 99) * 255)
    palette = colours().quantize(16)
    np.testing.assert_array_equal(pixels(palette), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    image = colours((64, 40))
    path = saved(image.convert("CMYK"), tmp_path / f"x.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    assert np.abs(pixels(path) - np.asarray(image)).mean() < 4


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "RGBa"])
def test_rarer_modes_become_rgb(mode):
    image = colours().convert("RGBA").convert(mode) if mode == "RGBa" else colours().convert(mode)
    assert np.abs(pixels(image) - np.asarray(colours())).mean() < 4


DEEP = np.array([[0, 128, 129, 256, 32768, 65535]], np.uint16)
DEEP_BYTES = [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(tmp_path, suffix):
    path = saved(Image.fromarray(DEEP), tmp_path / f"x.{suffix}")
    assert pixels(path)[0, :, 0].tolist() == DEEP_BYTES


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "<i4")])
def test_sixteen_bits_of_grey_in_any_order_of_bytes_are_scaled(mode, dtype):
    image = Image.frombytes(mode, (6, 1), DEEP.astype(dtype).tobytes())
    assert pixels(image)[0, :, 0].tolist() == DEEP_BYTES


def test_the_grey_that_is_transparent_counts_in_sixteen_bits_too():
    image = Image.fromarray(DEEP)
    image.info["transparency"] = 32768
    assert pixels(image, background="red")[0, 4].tolist() == [255, 0, 0]
    assert pixels(image, background="red")[0, 3].tolist() == [1, 1, 1]


def test_floats_of_pillows_are_zero_to_one():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert image.mode == "F"
    assert pixels(image)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("bad", [-1, 65536])
def test_greys_beyond_sixteen_bits_are_refused(bad):
    assert "65535" in refusal(Image.fromarray(np.array([[bad]], np.int32))).fix


def wide_gamut() -> bytes:
    """An RGB profile whose red and green are another's: sRGB's, with two of its primaries exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    for index in range(struct.unpack_from(">I", profile, 128)[0]):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        tags[name] = offset, size
    red, green = (tags[name][0] for name in (b"rXYZ", b"gXYZ"))
    profile[red : red + 20], profile[green : green + 20] = profile[green : green + 20], profile[red : red + 20]
    return bytes(profile)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_profile_that_is_not_srgb_is_followed(tmp_path, suffix):
    path = saved(Image.new("RGB", (8, 8), (250, 40, 10)), tmp_path / f"x.{suffix}", icc_profile=wide_gamut())
    np.testing.assert_allclose(pixels(path).mean((0, 1)), (40, 250, 10), atol=4)


def test_a_profile_is_followed_under_transparency(tmp_path):
    image = Image.new("RGBA", (2, 1), (250, 40, 10, 255))
    image.putpixel((1, 0), (250, 40, 10, 0))
    path = saved(image, tmp_path / "x.png", icc_profile=wide_gamut())
    found = pixels(path, background="#ff0000")
    np.testing.assert_allclose(found[0], [(40, 250, 10), (255, 0, 0)], atol=4)


def test_srgb_changes_no_bit(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(colours(), tmp_path / "x.png", icc_profile=profile)
    np.testing.assert_array_equal(pixels(path), np.asarray(colours()))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("profile", [b"", b"garbage", "cut", "lab"])
def test_a_profile_of_which_nothing_can_be_made_is_left(mode, profile):
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB" if profile == "lab" else "sRGB")).tobytes()
    image = colours().convert(mode)
    image.info["icc_profile"] = made[:200] if profile == "cut" else made if profile == "lab" else profile
    np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


def test_without_littlecms_colours_are_left(monkeypatch):
    def missing(*_: object) -> None:
        raise ImportError("no _imagingcms")

    image = colours()
    image.info["icc_profile"] = wide_gamut()
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", missing)
    np.testing.assert_array_equal(pixels(image), np.asarray(colours()))


# Arrays


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "f2", "<f4", ">f4", "f8"])
def test_arrays_of_every_depth_and_layout_give_the_same_picture(channels, dtype):
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, *channels))
    if channels == (4,):
        levels[:, :, 3] = 255
    scale = {"u1": 1, "u2": 257}.get(dtype.lstrip("<>"), 1 / 255)
    array = (levels * scale).astype(dtype)
    expected = levels[:, :, np.newaxis] if not channels else levels
    expected = expected[:, :, :3] if channels == (4,) else expected
    np.testing.assert_array_equal(pixels(array), np.broadcast_to(expected, (5, 7, 3)))


def test_an_array_seen_backwards_is_taken_as_it_reads():
    array = np.asarray(colours())[::-1, ::-1]
    np.testing.assert_array_equal(pixels(array), array)


def test_a_picture_does_not_change_when_its_array_does():
    array = np.zeros((4, 4, 3), np.uint8)
    picture = open_picture(array)
    array[:] = 255
    assert picture.getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2), (3, 8, 8), (1, 4, 4, 3), (0, 4), (4, 0, 3)])
def test_an_array_of_another_shape_is_refused(shape):
    refusal(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.full((2, 2), np.nan, np.float32),
        np.full((2, 2), np.inf),
        np.full((2, 2), 1.01),
        np.full((2, 2), -0.01),
        np.full((2, 2, 3), 200.0),
        np.zeros((2, 2), np.int64),
        np.zeros((2, 2), np.int8),
        np.zeros((2, 2), np.uint32),
        np.zeros((2, 2), bool),
        np.zeros((2, 2), complex),
        np.full((2, 2), None),
        np.full((2, 2), "x"),
    ],
    ids=lambda array: f"{array.dtype}-{array.flat[0]}",
)
def test_an_array_of_anything_else_is_one_clear_error(array):
    assert "divide" in refusal(array, what="mask").fix


# What is refused


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_an_animation_is_refused_as_a_file_and_as_a_picture(tmp_path, suffix):
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(frames[0], tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert "frame" in refusal(path).fix
    with Image.open(path) as image:
        assert "frame" in refusal(image).fix
        image.seek(1)
        assert pixels(image.copy())[0, 0].tolist() == [0, 0, 255]  # the fix works


def test_a_photograph_with_a_preview_is_no_animation(tmp_path):
    preview = Image.new("RGB", (8, 8))
    path = saved(colours((64, 40)), tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[preview])
    assert open_picture(path).size == (64, 40)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_file_that_was_cut_short_is_refused(tmp_path, suffix, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = saved(noise.quantize(256) if suffix == "gif" else noise, tmp_path / f"x.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in refusal(path).message


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    refusal(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp", "jp2", "tga"])
def test_flipped_bytes_give_a_picture_or_a_refusal(tmp_path, suffix):
    content = saved(colours(), tmp_path / f"x.{suffix}").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(damaged), 4):
            damaged[place] = random.integers(256)
        (tmp_path / "y").write_bytes(damaged)
        with contextlib.suppress(RequestError):
            open_picture(tmp_path / "y")


@pytest.mark.parametrize(
    ("width", "height"), [(2**13 + 1, 2**13), (10_000, 9_000), (2**30, 2**30), (MAX_PIXELS + 1, 1)]
)
def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch, width, height):
    (tmp_path / "x.png").write_bytes(png_of(width, height))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    assert "67,108,864" in refusal(tmp_path / "x.png").message


def test_a_picture_of_the_most_pixels_gets_as_far_as_its_pixels(tmp_path):
    (tmp_path / "x.png").write_bytes(png_of(2**13, 2**13))
    assert "cannot be read" in refusal(tmp_path / "x.png").message


def test_an_array_or_a_picture_with_too_many_pixels_is_refused():
    array = np.broadcast_to(np.uint8(0), (2**13, 2**13 + 1, 3))
    assert "8,193x8,192" in refusal(array).message
    assert "8,193x8,192" in refusal(Image.new("1", (2**13 + 1, 2**13))).message


def test_a_picture_without_pixels_is_refused():
    assert "0x5" in refusal(Image.new("RGB", (0, 5))).message


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "no.png").message == f"there is no file {tmp_path / 'no.png'}"
    assert "download" in refusal("https://example.org/x.png").fix
    assert "folder" in refusal(tmp_path).message
    assert "folder" in refusal("").message


def test_names_that_no_file_can_have_are_refused_briefly():
    assert len(refusal("data:image/png;base64," + "A" * 10_000).message) < 400
    refusal("a\0b.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = saved(colours(), tmp_path / "x.png")
    path.chmod(0)
    assert "who may read" in refusal(path).fix


def test_a_drawing_that_another_program_would_run_is_refused(tmp_path):
    assert "PNG" in refusal(saved(colours(), tmp_path / "x.eps")).fix


@pytest.mark.parametrize("source", [None, 7, b"x.png", io.BytesIO(), ["x.png"], object()])
def test_a_source_of_another_kind_is_refused(source):
    assert refusal(source, what="mask").message == f"the mask cannot be a {type(source).__name__}"


def test_a_closed_picture_is_refused(tmp_path):
    image = Image.open(saved(colours(), tmp_path / "x.png"))
    image.close()
    refusal(image)


# What a record keeps


def test_a_hash_is_of_mode_size_and_pixels(tmp_path):
    picture = open_picture(saved(colours(), tmp_path / "x.png"))
    assert picture_bytes_hash(picture) == picture_bytes_hash(open_picture(saved(colours(), tmp_path / "x.bmp")))
    others = [picture.convert("L"), picture.transpose(Image.Transpose.ROTATE_180)]
    others += [Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2)), Image.new("L", (6, 3))]
    assert len({picture_bytes_hash(image) for image in [picture, *others]}) == 6
    assert len(picture_bytes_hash(picture)) == 64
