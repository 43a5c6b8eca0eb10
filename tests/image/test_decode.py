"""Latents become 0..255 as in diffusers; NaN never becomes a black picture."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.errors import NumericError
from tintype.image.decode import decode_samples, to_image, to_pixels


def test_black_grey_and_white():
    samples = np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32).reshape(1, 1, 1, 5).repeat(3, axis=1)
    assert to_pixels(samples)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.reference
def test_pixels_are_those_of_diffusers():
    torch = pytest.importorskip("torch")
    image_processor = pytest.importorskip("diffusers.image_processor")
    samples = np.random.default_rng(0).normal(0, 0.8, (2, 3, 16, 24)).astype(np.float32)
    theirs = image_processor.VaeImageProcessor().postprocess(torch.from_numpy(samples), output_type="pil")
    ours = [to_image(pixels) for pixels in to_pixels(samples)]
    for one, other in zip(ours, theirs, strict=True):
        assert one.tobytes() == other.tobytes()


def test_latents_are_scaled_and_decoded_one_by_one():
    seen = []

    def decoder(latents):
        seen.append(latents.copy())
        return np.zeros((1, 3, 8, 8), np.float32)

    latents = np.arange(3 * 4 * 2 * 2, dtype=np.float32).reshape(3, 4, 2, 2)
    made = decode_samples(decoder, latents, cell=4, scaling_factor=0.5, shift_factor=1.0)
    pixels = np.concatenate([to_pixels(samples) for samples in made])
    assert pixels.shape == (3, 8, 8, 3)
    np.testing.assert_allclose(np.concatenate(seen), latents / 0.5 + 1.0)
    assert {part.dtype for part in seen} == {np.dtype(np.float32)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_pixel_that_is_no_number_is_an_error(bad):
    def decoder(latents):
        samples = np.zeros((1, 3, 8, 8), np.float32)
        samples[0, 1, 3, 3] = bad
        return samples

    with pytest.raises(NumericError, match="decoder"):
        list(decode_samples(decoder, np.zeros((1, 4, 2, 2), np.float32), cell=4, scaling_factor=1.0, shift_factor=0.0))
