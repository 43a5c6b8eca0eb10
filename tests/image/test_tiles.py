"""Tiles cover an image once, fade into one another, and show no edge."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tintype.bundle import open_bundle
from tintype.engine import graph_session
from tintype.errors import RequestError
from tintype.image.decode import decode_samples, to_pixels
from tintype.image.encode import encode_pixels, of_image
from tintype.image.tiles import Tiling, fades, run_tiled
from tintype.models.postcard.world import Scene, render


@pytest.mark.parametrize("cells", [1, 15, 16, 17, 28, 29, 64, 100, 129])
@pytest.mark.parametrize("tiling", [Tiling(16, 0), Tiling(16, 4), Tiling(16, 15), Tiling(16, 4, multiple=4)])
def test_tiles_of_one_length_cover_a_side_and_overlap_enough(cells, tiling):
    side = cells * tiling.multiple
    spans = tiling.spans(side)
    assert spans[0].start == 0
    assert spans[-1].stop == side
    assert len({len(span) for span in spans}) == 1
    assert all(before.stop - after.start >= tiling.overlap for before, after in itertools.pairwise(spans))
    assert all(span.start % tiling.multiple == 0 for span in spans)


@pytest.mark.parametrize("factor", [Fraction(8), Fraction(1), Fraction(1, 4)])
@pytest.mark.parametrize("overlap", [0, 4, 8, 12])
def test_at_every_place_the_tiles_count_one_together(factor, overlap):
    spans = Tiling(16, overlap, multiple=4).spans(52)
    total = np.zeros(int(52 * factor))
    for span, count in zip(spans, fades(spans, factor), strict=True):
        assert count.min() > 0
        total[int(span.start * factor) : int(span.stop * factor)] += count
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_the_fade_is_linear():
    first, second = fades([range(16), range(12, 28)], Fraction(1))
    np.testing.assert_allclose(first[12:], [0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(second[:4], [0.125, 0.375, 0.625, 0.875])
    assert set(first[:12]) == set(second[4:]) == {1.0}


@pytest.mark.parametrize("cells", [(8, 8), (40, 16), (17, 53), (64, 64)])
@pytest.mark.parametrize("factor", [4, 1, Fraction(1, 4)])
def test_a_graph_that_looks_at_each_cell_alone_gives_the_same_in_tiles(cells, factor):
    multiple = 1 if factor >= 1 else 4
    size = [side * multiple for side in cells]

    def graph(image):
        if factor < 1:
            height, width = image.shape[2] // 4, image.shape[3] // 4
            return image.reshape(1, 3, height, 4, width, 4).mean((3, 5))
        return image.repeat(factor, 2).repeat(factor, 3) * 2

    image = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
    found = run_tiled(graph, image, Tiling(16, 4, multiple=multiple))
    np.testing.assert_allclose(found, graph(image), rtol=1e-5, atol=1e-6)


def test_no_tile_is_larger_than_asked_for():
    seen = set()

    def graph(image):
        seen.add(image.shape)
        return image

    run_tiled(graph, np.zeros((1, 4, 40, 100), np.float32), Tiling(32, 8))
    assert seen == {(1, 4, 32, 32)}


@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(0, 0, 1), (8, 8, 1), (8, -1, 1), (9, 2, 4), (8, 2, 0)])
def test_tiles_that_cover_nothing_are_refused(tile, overlap, multiple):
    with pytest.raises(RequestError, match="tiles"):
        Tiling(tile, overlap, multiple)


def decoded(*arguments, **options):
    """Pictures, 0..255."""
    return np.concatenate([to_pixels(samples) for samples in decode_samples(*arguments, **options)])


@pytest.fixture(scope="module")
def decode():
    """postcard's decoder as it was exported: latents -> pixels, whole or in tiles."""
    bundle = open_bundle("postcard")
    with graph_session(bundle.graph_path("vae_decoder")) as decoder:

        def decode(latents, tiling=None):
            return decoded(
                lambda latent_sample: decoder.run({"latent_sample": latent_sample})["sample"],
                latents,
                scaling_factor=bundle.manifest.scaling_factor,
                shift_factor=bundle.manifest.shift_factor,
                cell=bundle.manifest.vae_scale_factor,
                tiling=tiling,
            )

        yield decode


@pytest.fixture(scope="module")
def latents():
    """By side, latents of pictures of 256 and 512 pixels, larger than any that postcard was trained on."""
    bundle = open_bundle("postcard")
    scene, made = Scene("night", "clear", "mountains", "house", "yellow", "middle", "large"), {}
    with graph_session(bundle.graph_path("vae_encoder")) as encoder:
        for side in (256, 512):
            picture, _ = render(scene, np.random.default_rng(8), side)
            made[side] = encode_pixels(
                lambda sample: encoder.run({"sample": sample})["latent_parameters"],
                of_image(Image.fromarray(picture)),
                scaling_factor=bundle.manifest.scaling_factor,
                shift_factor=bundle.manifest.shift_factor,
            )
    return made


@pytest.fixture(scope="module")
def whole(decode, latents):
    """The pictures, decoded whole."""
    return {side: levels(decode(each)) for side, each in latents.items()}


def levels(pixels):
    return pixels[0].astype(np.float64)


def psnr_db(one, other):
    return 10 * np.log10(255**2 / np.mean((one - other) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize(("side", "tile", "overlap"), [(256, 48, 8), (256, 48, 16), (512, 96, 16), (512, 96, 32)])
def test_tiles_of_three_quarters_are_near_the_whole(decode, latents, whole, side, tile, overlap):
    tiled = levels(decode(latents[side], Tiling(tile, overlap)))
    print(f"{side}: tile {tile}, overlap {overlap}: {psnr_db(whole[side], tiled):.1f} dB")
    assert psnr_db(whole[side], tiled) >= 40.0


@pytest.mark.slow
@pytest.mark.parametrize(("side", "tile", "overlap"), [(256, 32, 8), (512, 64, 16), (512, 32, 8), (512, 48, 12)])
def test_no_seam_is_steeper_than_the_error_around_it(decode, latents, whole, side, tile, overlap):
    """A seam is a row that its neighbours are not like; that all of them rise where the picture does is none."""
    tiling = Tiling(tile, overlap)
    error = levels(decode(latents[side], tiling)) - whole[side]
    spans = tiling.spans(latents[side].shape[-1])
    edges = {span.start * 4 for span in spans[1:]} | {span.stop * 4 for span in spans[:-1]}
    for axis in (0, 1):
        steps = np.abs(np.diff(error, axis=axis)).mean(axis=(1 - axis, 2))
        elsewhere = np.delete(steps, [edge - 1 for edge in edges])
        for edge in edges:
            seam, around = steps[edge - 1], np.delete(steps[edge - 5 : edge + 4], 4)
            print(f"{side}/{tile}/{overlap} at {edge}: seam {seam:.2f}, around {np.median(around):.2f}")
            assert seam <= 2.0 * np.median(around)
            assert seam <= elsewhere.max()


def test_an_encoder_takes_tiles_too():
    picture = np.linspace(-1, 1, 128, dtype=np.float32) * np.ones((1, 3, 128, 1), np.float32)
    with graph_session(open_bundle("postcard").graph_path("vae_encoder")) as encoder:

        def encode(image):
            return encoder.run({"sample": image})["latent_parameters"]

        whole = encode(picture)
        tiled = run_tiled(encode, picture, Tiling(96, 32, multiple=4))
    assert tiled.shape == whole.shape
    mean, other = whole[:, :4], tiled[:, :4]
    assert 20 * np.log10(np.ptp(mean) / np.sqrt(np.mean((mean - other) ** 2))) >= 25.0


def test_a_picture_is_decoded_in_tiles_one_after_another():
    shapes = []

    def decoder(latents):
        shapes.append(latents.shape)
        return latents[:, :3].repeat(4, 2).repeat(4, 3)

    latents = np.random.default_rng(0).uniform(-1, 1, (2, 4, 24, 24)).astype(np.float32)
    whole = decoded(decoder, latents, cell=4, scaling_factor=1.0, shift_factor=0.0)
    shapes.clear()
    tiled = decoded(decoder, latents, cell=4, scaling_factor=1.0, shift_factor=0.0, tiling=Tiling(16, 4))
    assert set(shapes) == {(1, 4, 16, 16)}
    np.testing.assert_allclose(whole.astype(int), tiled.astype(int), atol=1)
