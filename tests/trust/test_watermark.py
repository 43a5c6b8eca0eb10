"""A watermark costs little, is read after what people do to pictures, and is found in nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tintype.bench.pictures import Picture, as_jpeg, photograph
from tintype.trust.detect import THRESHOLD, detect, soft_bits
from tintype.trust.embed import MOST_DB, Marked, embed
from tintype.trust.pattern import BINS, BITS, PUBLIC_KEY, pattern_of
from tintype.trust.payload import Payload, payload_of_hex, read_payload, shows_the_same
from tintype.trust.search import THRESHOLD as SEARCH_THRESHOLD
from tintype.trust.search import search
from tintype.trust.verify import ANOTHER, read_watermark

pytestmark = pytest.mark.slow

MAKER = 0xBADCAB
SIZES = [(128, 128), (160, 200), (256, 384), (520, 300), (1100, 1030)]


@pytest.fixture(scope="module")
def marked() -> tuple[Picture, Marked]:
    picture = photograph(3, (512, 512))
    made = embed(picture, MAKER)
    assert made is not None
    return picture, made


def psnr_db(one: Picture, other: Picture) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_mark_is_read_and_costs_no_more_than_is_said(size: tuple[int, int], seed: int) -> None:
    picture = photograph(seed, size)
    made = embed(picture, MAKER)
    assert made is not None
    assert made.pixels.shape == picture.shape
    assert psnr_db(picture, made.pixels) >= MOST_DB - 0.05
    assert made.psnr_db == pytest.approx(psnr_db(picture, made.pixels), abs=0.01)
    reading = read_watermark(made.pixels, [PUBLIC_KEY])
    assert reading.found
    if made.is_read or min(size) > 128:  # one tile alone may be too little for all of the payload
        assert (reading.payload, reading.maker, reading.key) == (made.payload.hex, "badcab", "public")
        assert reading.shows_the_same
    assert reading.confidence > 1 - 1e-6


def test_the_same_picture_gets_the_same_mark(marked: tuple[Picture, Marked]) -> None:
    again = embed(marked[0], MAKER)
    assert again is not None
    assert np.array_equal(again.pixels, marked[1].pixels)


def _noisy(picture: Picture) -> Picture:
    noise = np.random.default_rng(0).normal(0, 0.05 * 255, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _filtered(kind: ImageFilter.Filter) -> Callable[[Picture], Picture]:
    return lambda picture: np.asarray(Image.fromarray(picture).filter(kind))


def _resized(side: int, back: int) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(small.resize((back, back), Image.Resampling.BICUBIC))

    return change


EDITS: dict[str, Callable[[Picture], Picture]] = {
    "jpeg-50": lambda picture: as_jpeg(picture, 50),
    "jpeg-25": lambda picture: as_jpeg(picture, 25),
    "noise": _noisy,
    "cut-to-a-quarter": lambda picture: picture[100:356, 77:333],
    "half-erased": lambda picture: np.concatenate([picture[:, :256], np.zeros_like(picture[:, 256:])], axis=1),
    "median": _filtered(ImageFilter.MedianFilter(5)),
    "blur": _filtered(ImageFilter.GaussianBlur(2)),
    "brighter": lambda picture: np.clip(picture * 1.4, 0, 255).astype(np.uint8),
    "grey": lambda picture: np.asarray(Image.fromarray(picture).convert("L").convert("RGB")),
    "quarter-and-back": _resized(128, 512),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_mark_outlasts_usual_edits(marked: tuple[Picture, Marked], name: str) -> None:
    edited = EDITS[name](marked[1].pixels)
    assert detect(edited).score > THRESHOLD
    assert detect(EDITS[name](marked[0])).score < THRESHOLD  # it is the mark that is found


def _turned(degrees: float) -> Callable[[Picture], Picture]:
    return lambda picture: np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BICUBIC))


GEOMETRIES: dict[str, tuple[Callable[[Picture], Picture], float, float, bool]] = {
    "turned": (_turned(-9), 1.0, 9.0, False),
    "smaller": (_resized(358, 358), 0.7, 0.0, False),
    "larger": (_resized(700, 700), 1.37, 0.0, False),
    "mirrored": (lambda picture: picture[:, ::-1], 1.0, 0.0, True),
    "mirrored-turned-jpeg": (lambda picture: as_jpeg(_turned(-4)(picture[:, ::-1]), 60), 1.0, 4.0, True),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_mark_is_found_again_in_another_geometry(marked: tuple[Picture, Marked], name: str) -> None:
    change, scale, turn, is_mirrored = GEOMETRIES[name]
    edited = np.ascontiguousarray(change(marked[1].pixels))
    assert detect(edited).score < THRESHOLD
    match, geometry = search(edited)
    assert match.score > SEARCH_THRESHOLD
    assert geometry.scale == pytest.approx(scale, rel=0.01)
    assert abs(np.degrees(geometry.turn)) == pytest.approx(turn, abs=0.3)
    assert geometry.is_mirrored == is_mirrored
    assert read_payload(soft_bits(match, pattern_of())) == marked[1].payload


def _text() -> Picture:
    page = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(page)
    for row in range(0, 400, 12):
        draw.text((5, row), "what a page says, line by line, again and again and again", fill="black")
    return np.asarray(page)


NOT_OURS: dict[str, Callable[[], Picture]] = {
    "flat": lambda: np.full((300, 300, 3), 77, np.uint8),
    "black": lambda: np.zeros((128, 128, 3), np.uint8),
    "noise": lambda: np.random.default_rng(5).integers(0, 256, (512, 512, 3)).astype(np.uint8),
    "gradient": lambda: np.broadcast_to(np.linspace(0, 255, 512).astype(np.uint8)[:, None, None], (512, 512, 3)),
    "chessboard": lambda: np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((16, 16)))[..., None].repeat(3, 2) * 255,
    "stripes": lambda: (np.indices((512, 512)).sum(0) % 8 * 36)[..., None].repeat(3, 2),
    "text": _text,
    "one-pixel": lambda: np.zeros((1, 1, 3), np.uint8),
    "thin": lambda: photograph(1, (900, 900))[:20],
    **{f"scenery-{seed}": (lambda seed=seed: photograph(seed, (384, 384))) for seed in range(8)},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_nothing_is_found_where_nothing_is(name: str) -> None:
    picture = np.ascontiguousarray(NOT_OURS[name]()).astype(np.uint8)
    assert not read_watermark(picture, [PUBLIC_KEY]).found


@pytest.mark.parametrize("name", ["flat", "black", "noise", "gradient", "chessboard", "text"])
def test_every_picture_can_be_marked(name: str) -> None:
    picture = np.ascontiguousarray(NOT_OURS[name]()).astype(np.uint8)
    made = embed(picture, MAKER)
    assert made is not None
    assert psnr_db(picture, made.pixels) >= MOST_DB - 0.05
    assert detect(made.pixels).score > THRESHOLD


def test_a_small_picture_has_none() -> None:
    assert embed(photograph(1, (127, 500)), MAKER) is None
    assert not read_watermark(photograph(1, (127, 127)), [PUBLIC_KEY]).found


def test_nothing_changes_where_nothing_may() -> None:
    picture, where = photograph(6, (256, 256)), np.zeros((256, 256), np.float32)
    assert embed(picture, MAKER, where=where) is None
    where[:, 100:] = 1.0
    made = embed(picture, MAKER, where=where)
    assert made is not None
    assert np.array_equal(made.pixels[:, :100], picture[:, :100])
    assert detect(made.pixels).score > THRESHOLD


def test_an_operators_payload_is_read_with_the_operators_key_alone() -> None:
    picture, key = photograph(8, (384, 384)), b"a key of thirty-two random bytes"
    made = embed(picture, MAKER, key=key)
    assert made is not None
    theirs, ours = read_watermark(made.pixels, [PUBLIC_KEY]), read_watermark(made.pixels, [key, PUBLIC_KEY])
    assert (theirs.found, theirs.payload, theirs.key) == (True, None, ANOTHER)
    assert (ours.found, ours.payload) == (True, made.payload.hex)
    assert ours.key not in (None, "public", ANOTHER)


def test_another_keys_bits_are_never_a_payload() -> None:
    random = np.random.default_rng(1)
    assert all(read_payload(random.normal(size=BITS)) is None for _ in range(20_000))


def test_a_mark_that_was_moved_tells_itself_mostly(marked: tuple[Picture, Marked]) -> None:
    residual = marked[1].pixels.astype(np.int16) - marked[0]
    told = []
    for seed in range(20, 32):
        forged = np.clip(photograph(seed, (512, 512)) + residual, 0, 255).astype(np.uint8)
        reading = read_watermark(forged, [PUBLIC_KEY])
        told.append(reading.shows_the_same is not True)
    assert sum(told) >= 8


@pytest.mark.parametrize("payload", [Payload(1, 0), Payload(2**24 - 1, 255), Payload(0xABCDEF, 0x5A)])
def test_a_payload_comes_back_from_its_bits_and_from_its_digits(payload: Payload) -> None:
    soft = np.where(payload.bits(), 3.0, -3.0)
    assert read_payload(soft) == payload
    soft[[3, 17, 40]] *= -0.1  # misread, and barely
    assert read_payload(soft) == payload
    assert payload_of_hex(payload.hex) == payload
    assert shows_the_same(Payload(1, 0), np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("text", ["", "0" * 12, "f" * 12, "0x1234567890", "78b89f9cbfcd", "78b89f9cbf"])
def test_what_is_no_payload_is_told(text: str) -> None:
    assert payload_of_hex(text) is None


def test_the_pattern_is_the_same_everywhere() -> None:
    pattern = pattern_of()
    assert BINS == 1026
    assert pattern.sync[:6].tolist() == [0, 3, 5, 6, 10, 14]
    assert pattern.bits[:2, :4].tolist() == [[42, 138, 160, 269], [65, 112, 214, 258]]
    assert pattern.sync_phases[0] == pytest.approx(-0.39778313 + 0.91747946j, abs=1e-6)
    assert len(set(pattern.sync) | set(pattern.bits.ravel())) == len(pattern.sync) + pattern.bits.size
    tile = pattern.tile(np.zeros(BITS, bool), np.ones(BITS), (0, 0))
    assert tile.std() == pytest.approx(1.0, abs=1e-4)
    turned = pattern.tile(np.zeros(BITS, bool), np.ones(BITS), (5, 120))
    assert np.allclose(turned, np.roll(tile, (5, 120), (0, 1)), atol=1e-4)
