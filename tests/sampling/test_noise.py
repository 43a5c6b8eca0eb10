"""Noise is the same everywhere: bit for bit what torch, A1111 and numpy draw, whatever the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tintype.errors import RequestError
from tintype.sampling import NOISE_MODES, noise_source
from tintype.sampling.philox import philox_4x32
from tintype.sampling.torch_cpu import fused_multiply_add

SEEDS = (0, 1, 7, 2**31, 2**32 - 1, 2**40 + 3, 2**64 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "digits-of-pi"],
)
def test_philox_passes_the_known_answers_of_its_authors(counter: list[int], key: int, expected: list[int]) -> None:
    words = philox_4x32(np.array(counter, dtype=np.uint32)[:, None], key)
    assert words[:, 0].tolist() == expected


def test_philox_draws_what_a_cuda_generator_draws() -> None:
    # torch.randn(3, 4, generator=torch.Generator("cuda").manual_seed(0)), as A1111's documentation prints it.
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    drawn = noise_source("philox", [0]).draw((1, 3, 4))[0]
    # The printed values were made with a 2 pi of full precision; curand's is float32.
    np.testing.assert_allclose(drawn, expected, atol=4e-7, rtol=0)


def plain_philox(seed: int, offset: int, count: int) -> np.ndarray:
    """Philox and Box-Muller one value at a time, in Python's own integers and floats."""
    values = []
    angle_scale = float(np.float32(2.3283064e-10 * 6.2831855))
    for index in range(count):
        c, k = [offset, 0, index, 0], [seed & 0xFFFFFFFF, seed >> 32]
        for _ in range(10):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        radius = math.sqrt(-2.0 * math.log(c[0] * 2.0**-32 + 2.0**-33))
        values.append(radius * math.sin(c[1] * angle_scale + angle_scale / 2))
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize("seed", SEEDS)
def test_philox_is_the_plain_formula_draw_after_draw(seed: int) -> None:
    source = noise_source("philox", [seed])
    for offset, count in enumerate((5, 64, 3)):
        np.testing.assert_array_equal(source.draw((1, count))[0], plain_philox(seed, offset, count))


@pytest.mark.reference
@pytest.mark.parametrize("seed", SEEDS)
def test_torch_cpu_is_torch_bit_for_bit(seed: int) -> None:
    torch = pytest.importorskip("torch")
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("torch draws other last bits on this processor")
    generator = torch.Generator().manual_seed(seed)
    source = noise_source("torch-cpu", [seed])
    # Short draws, lengths that are and aren't multiples of 16, latents, and short draws with a spare value between.
    for count in (3, 16, 5, 17, 31, 1, 4 * 64 * 64, 2, 4 * 33 * 41, 15, 33, 7, 16):
        theirs = torch.randn(count, generator=generator).numpy()
        ours = source.draw((1, count))[0]
        np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.reference
def test_torch_cpu_draws_a_picture_as_torch_shapes_it() -> None:
    torch = pytest.importorskip("torch")
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("torch draws other last bits on this processor")
    drawn = noise_source("torch-cpu", [5, 6]).draw((2, 4, 9, 7))
    for picture, seed in zip(drawn, (5, 6), strict=True):
        theirs = torch.randn((4, 9, 7), generator=torch.Generator().manual_seed(seed)).numpy()
        np.testing.assert_array_equal(picture, theirs)


def test_torch_cpu_is_torch_bit_for_bit_as_recorded() -> None:
    # torch 2.13.0: torch.randn(20, generator=torch.Generator().manual_seed(2024)), so that this holds without torch.
    recorded = [
        0xBF9CF549,
        0xBC189D2F,
        0x3FC55EE1,
        0xBEEE6C3F,
        0x3FEDA8F7,
        0x3FFD216D,
        0xBEDD438D,
        0x3FAEF09B,
        0x3F368C29,
        0xBEC61D7D,
        0xBE81C7C9,
        0xBFD57158,
        0x3F7F05DE,
        0x3F70675C,
        0x3FB5169D,
        0x3F2263D5,
        0xBD9F0468,
        0xBF8F0BA3,
        0xBF25EA37,
        0x3F272BF4,
    ]
    drawn = noise_source("torch-cpu", [2024]).draw((1, 20))[0]
    assert drawn.view(np.uint32).tolist() == recorded


def test_numpy_is_a_pcg64_generator() -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    source = noise_source("numpy", [3])
    for shape in ((1, 4, 5, 5), (1, 3)):
        np.testing.assert_array_equal(source.draw(shape), generator.standard_normal(shape, dtype=np.float32))


@pytest.mark.parametrize("mode", NOISE_MODES)
def test_a_pictures_noise_does_not_depend_on_its_batch(mode: str) -> None:
    together = noise_source(mode, [4, 5, 6])
    alone = noise_source(mode, [5])
    for _ in range(3):
        np.testing.assert_array_equal(together.draw((3, 4, 6, 5))[1], alone.draw((1, 4, 6, 5))[0])


@pytest.mark.parametrize("mode", NOISE_MODES)
def test_noise_is_standard_normal_and_fresh_at_each_draw(mode: str) -> None:
    source = noise_source(mode, [1])
    first, second = source.draw((1, 4, 64, 64)), source.draw((1, 4, 64, 64))
    assert first.dtype == np.float32
    for values in (first, second):
        assert abs(values.mean()) < 0.03
        assert abs(values.std() - 1.0) < 0.03
        assert np.isfinite(values).all()
    assert abs((first * second).mean()) < 0.03


@pytest.mark.parametrize("mode", NOISE_MODES)
def test_nothing_drawn_is_an_empty_array(mode: str) -> None:
    assert noise_source(mode, [1]).draw((1, 4, 0, 8)).shape == (1, 4, 0, 8)


def test_an_unknown_noise_names_the_near_ones() -> None:
    with pytest.raises(RequestError, match="torch-cpu"):
        noise_source("torch", [1])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(RequestError, match="out of range"):
        noise_source("philox", [seed])


def test_noise_for_another_number_of_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 pictures"):
        noise_source("philox", [1]).draw((2, 4, 8, 8))


def test_a_fused_multiply_add_rounds_once() -> None:
    generator = np.random.Generator(np.random.PCG64(1))
    a, b, c = (generator.standard_normal(2000).astype(np.float32) for _ in range(3))
    c[:1000] = -(a[:1000] * b[:1000])  # where the sum cancels, only the product's lost digits are left
    exact = [float(x) * float(y) for x, y in zip(a, b, strict=True)]
    fused = fused_multiply_add(a, b, c)
    assert fused.dtype == np.float32
    expected = [np.float32(math.fsum([product, float(z)])) for product, z in zip(exact, c, strict=True)]
    np.testing.assert_array_equal(fused, np.array(expected))
    # One half of a float32's last place and a little more: a second rounding would lose the little.
    x, y, z = np.array([1 + 2**-12], dtype=np.float32), np.float32(1 + 2**-12), np.float32(2**-24 * 2.0**-30)
    assert fused_multiply_add(x, y, z)[0] == np.nextafter(np.float32(1 + 2**-11), np.float32(2))
