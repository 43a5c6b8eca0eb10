"""Predictions mean what their papers say; guidance is linear, and rescaled as diffusers rescales it."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.errors import BundleError
from tintype.sampling import PREDICTION_TYPES, denoised_from, guide, model_input, prediction_from, rescale_guidance

SHAPE = (3, 4, 6, 5)
SIGMAS = (0.03, 1.0, 14.6, 4096.0)


def normals(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_each_prediction_of_a_known_picture_gives_it_back(sigma: float) -> None:
    image, noise = normals(1), normals(2)
    latents = image + sigma * noise
    alpha = 1.0 / np.hypot(1.0, sigma)
    predictions = {
        "epsilon": noise,
        "v_prediction": (alpha * noise - alpha * sigma * image).astype(np.float32),
        "sample": image,
    }
    for kind, prediction in predictions.items():
        denoised = denoised_from(prediction, latents.astype(np.float32), sigma, kind)
        assert denoised.dtype == np.float32
        np.testing.assert_allclose(denoised, image, atol=1e-6 * max(1.0, sigma), rtol=1e-5)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_prediction_and_its_denoised_latents_stand_for_each_other(kind: str, sigma: float) -> None:
    prediction, latents = normals(3), normals(4) * np.float32(np.hypot(1.0, sigma))
    again = prediction_from(denoised_from(prediction, latents, sigma, kind), latents, sigma, kind)
    np.testing.assert_allclose(again, prediction, atol=1e-5 * max(1.0, 1.0 / sigma), rtol=0)


def test_an_unknown_prediction_type_names_the_near_ones() -> None:
    for function in (denoised_from, prediction_from):
        with pytest.raises(BundleError, match="v_prediction"):
            function(normals(1), normals(2), 1.0, "v-prediction")


@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
def test_the_model_sees_unit_variance(sigma: float) -> None:
    seen = model_input(normals(1) + np.float32(sigma) * normals(2), sigma)
    assert seen.dtype == np.float32
    assert seen.std() == pytest.approx(1.0, abs=0.15)


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional() -> None:
    conditional, unconditional = normals(1), normals(2)
    np.testing.assert_allclose(guide(conditional, unconditional, 1.0), conditional, atol=1e-6)
    np.testing.assert_array_equal(guide(conditional, unconditional, 0.0), unconditional)
    np.testing.assert_allclose(
        guide(conditional, unconditional, 7.5), unconditional + 7.5 * (conditional - unconditional), atol=1e-6
    )
    assert guide(conditional, unconditional, 7.5).dtype == np.float32


def test_rescaling_by_nothing_changes_nothing_and_wholly_gives_the_conditional_contrast() -> None:
    conditional = normals(1)
    guided = guide(conditional, normals(2), 7.5)
    np.testing.assert_array_equal(rescale_guidance(guided, conditional, 0.0), guided)
    whole = rescale_guidance(guided, conditional, 1.0)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole.std(axis=(1, 2, 3)), conditional.std(axis=(1, 2, 3)), rtol=1e-5)


def test_rescaling_a_flat_prediction_leaves_it() -> None:
    flat = np.full(SHAPE, 0.5, dtype=np.float32)
    np.testing.assert_array_equal(rescale_guidance(flat, normals(1), 0.7), flat)


def test_each_picture_is_rescaled_by_itself() -> None:
    conditional = normals(1)
    guided = guide(conditional, normals(2), 7.5)
    together = rescale_guidance(guided, conditional, 0.7)
    alone = rescale_guidance(guided[1:2], conditional[1:2], 0.7)
    np.testing.assert_array_equal(together[1:2], alone)


@pytest.mark.reference
@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescaled_guidance_is_what_torch_computes(rescale: float) -> None:
    # As in diffusers' pipelines, whose modules take half a minute to import on a busy machine.
    torch = pytest.importorskip("torch")
    conditional = torch.from_numpy(normals(1))
    guided = torch.from_numpy(guide(normals(1), normals(2), 7.5))
    axes = list(range(1, guided.ndim))
    contrast = conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    theirs = rescale * (guided * contrast) + (1 - rescale) * guided
    ours = rescale_guidance(guided.numpy(), conditional.numpy(), rescale)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5, rtol=0)
