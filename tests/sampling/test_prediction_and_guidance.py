"""Predictions mean what their papers say; guidance is linear, and rescaled as diffusers rescales it."""

from __future__ import annotations

import numpy as np
import pytest

from tintype.errors import RequestError
from tintype.sampling import (
    PARAMETRIZATIONS,
    ClassifierFreeGuidance,
    Denoised,
    Interval,
    PictureGuidance,
    Unguided,
)
from tintype.sampling.guidance import guide, rescale_guidance
from tintype.sampling.parametrization import EPSILON, V_PREDICTION, Flow, Parametrization
from tintype.sampling.step import model_input

SHAPE = (3, 4, 6, 5)
SIGMAS = (0.03, 1.0, 14.6, 4096.0)


KINDS: dict[str, Parametrization] = {**PARAMETRIZATIONS, "flow": Flow()}


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
        "flow": noise - image,
    }
    assert predictions.keys() == KINDS.keys()
    for kind, prediction in predictions.items():
        denoised = KINDS[kind].denoised(prediction, latents.astype(np.float32), sigma)
        assert denoised.dtype == np.float32
        np.testing.assert_allclose(denoised, image, atol=1e-6 * max(1.0, sigma), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_prediction_and_its_denoised_latents_stand_for_each_other(kind: str, sigma: float) -> None:
    prediction, latents = normals(3), normals(4) * np.float32(np.hypot(1.0, sigma))
    again = KINDS[kind].prediction(KINDS[kind].denoised(prediction, latents, sigma), latents, sigma)
    np.testing.assert_allclose(again, prediction, atol=1e-5 * max(1.0, 1.0 / sigma), rtol=0)


def test_what_words_change_is_conditional_less_unconditional() -> None:
    neither, picture, both = normals(1), normals(2), normals(3)
    guidance = ClassifierFreeGuidance(scale=9.0, rescale=0.7)
    np.testing.assert_array_equal(guidance.difference({0: neither, 1: picture}), picture - neither)
    assert guidance.difference({1: picture}) is None, "outside of an interval"
    assert Unguided().difference({0: neither}) is None
    edited = PictureGuidance(scale=9.0, picture_scale=1.5)
    np.testing.assert_array_equal(edited.difference({0: neither, 1: picture, 2: both}), both - picture)
    parts = ClassifierFreeGuidance(scale=9.0, weights=(1.0, 0.5))
    away = (picture - neither) + (both - neither) * np.float32(0.5)
    np.testing.assert_allclose(parts.difference({0: neither, 1: picture, 2: both}), away, atol=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_flow_model_sees_and_is_told_what_it_was_trained_on(sigma: float) -> None:
    t = sigma / (1.0 + sigma)
    image, noise = normals(1), normals(2)
    seen = Flow().model_input(image + np.float32(sigma) * noise, sigma)
    np.testing.assert_allclose(seen, (1.0 - t) * image + t * noise, atol=1e-5, rtol=0)
    assert seen.dtype == np.float32
    assert Flow().timestep(sigma, scheduled=-1.0) == pytest.approx(1000.0 * t)
    assert Flow(1.0).timestep(sigma, scheduled=-1.0) == pytest.approx(t)


@pytest.mark.parametrize("kind", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_the_others_see_unit_variance_and_are_told_the_schedules_timestep(kind: Parametrization) -> None:
    np.testing.assert_array_equal(kind.model_input(normals(1), 3.0), model_input(normals(1), 3.0))
    assert kind.timestep(3.0, 801.5) == 801.5


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


@pytest.mark.parametrize("kind", [EPSILON, V_PREDICTION], ids=["epsilon", "v_prediction"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_predictions_are_combined_before_they_become_pictures(kind: Parametrization, rescale: float) -> None:
    guidance = ClassifierFreeGuidance(scale=5.0, rescale=rescale)
    assert guidance.active(0.0) == guidance.active(0.99) == (0, 1)
    negative, positive, latents = normals(1), normals(2), normals(3)
    denoised = guidance.combine({0: negative, 1: positive}, lambda output: kind.denoised(output, latents, 2.0))
    guided = rescale_guidance(guide(positive, negative, 5.0), positive, rescale)
    np.testing.assert_array_equal(denoised.guided, kind.denoised(guided, latents, 2.0))
    np.testing.assert_array_equal(denoised.unconditional, kind.denoised(negative, latents, 2.0))


def test_without_guidance_there_is_one_branch_and_one_picture() -> None:
    assert Unguided().active(0.5) == (0,)
    denoised = Unguided().combine({0: normals(1)}, lambda output: output * 2)
    assert denoised.guided is denoised.unconditional
    np.testing.assert_array_equal(denoised.guided, normals(1) * 2)


def test_outside_its_interval_guidance_takes_the_prompt_alone() -> None:
    guidance = ClassifierFreeGuidance(scale=5.0, rescale=0.7, interval=Interval.parse("0.2,0.8"))
    steps = {index: guidance.active(index / 10) for index in range(10)}
    assert [index for index, branches in steps.items() if branches == (0, 1)] == [2, 3, 4, 5, 6, 7]
    assert {branches for index, branches in steps.items() if index not in range(2, 8)} == {(1,)}
    alone: Denoised = guidance.combine({1: normals(1)}, lambda output: output * 2)
    np.testing.assert_array_equal(alone.guided, normals(1) * 2)
    assert alone.guided is alone.unconditional


@pytest.mark.parametrize(("text", "interval"), [("0,1", (0.0, 1.0)), (" .25 , 1.", (0.25, 1.0)), ("0.0,0.3", (0, 0.3))])
def test_an_interval_is_two_shares(text: str, interval: tuple[float, float]) -> None:
    assert Interval.parse(text) == Interval(*interval)


@pytest.mark.parametrize(
    "text",
    ["", "0.2", "0.8,0.2", "0.5,0.5", "-0.1,0.5", "0.2,1.1", "0.2,0.8,0.9", "a,b", "nan,1", "0,1e0", "٠,1", "0," * 99],
)
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"as in 0\.2,0\.8"):
        Interval.parse(text)


@pytest.mark.reference
def test_an_interval_covers_the_steps_that_diffusers_guides() -> None:
    """Where shares of the steps are whole steps; between them diffusers rounds down, and we up."""
    guiders = pytest.importorskip("diffusers.guiders")
    for steps, start, stop in [(10, 0.2, 0.8), (20, 0.0, 0.45), (5, 0.4, 1.0), (4, 0.0, 1.0)]:
        theirs = guiders.ClassifierFreeGuidance(guidance_scale=5.0, start=start, stop=stop)
        guided = []
        for index in range(steps):
            theirs.set_state(step=index, num_inference_steps=steps, timestep=None)
            guided.append(theirs.num_conditions == 2)
        assert guided == [Interval(start, stop).covers(index / steps) for index in range(steps)]
