"""Inpainting models of 9 channels: what their bundles may be, what they refuse, how often they encode, and records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import tintype
from tintype.bundle import open_bundle
from tintype.engine import Session
from tintype.errors import BundleError, RecordError, RequestError
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.request import Request, resolve
from tintype.run import Run, take_all
from tintype.sampling import unchanged
from tintype.stages import denoise

SIZE = (64, 64)
ASKED = {"seed": 3, "num_inference_steps": 4, "sampler": "euler"}


def picture(colour: str = "teal") -> Image.Image:
    made = Image.new("RGB", SIZE, colour)
    ImageDraw.Draw(made).ellipse((10, 20, 50, 60), fill="orange")
    return made


def mask() -> Image.Image:
    made = Image.new("L", SIZE, 0)
    ImageDraw.Draw(made).rectangle((13, 9, 41, 50), fill=255)
    return made


def with_channels(manifest: Any, *counts: Any, encoder: bool = True) -> Any:
    """The manifest with a denoiser for each count of channels, as variants, and with an encoder."""
    (full,) = manifest.graphs["denoiser"].values()
    variants = {}
    for index, count in enumerate(counts):
        ports = tuple(
            dataclasses.replace(port, shape=(port.shape[0], count, *port.shape[2:])) if port.name == "sample" else port
            for port in full.inputs
        )
        variants["full" if index == 0 else f"other{index}"] = dataclasses.replace(full, inputs=ports)
    graphs = {**manifest.graphs, "denoiser": variants}
    if encoder:
        graphs["vae_encoder"] = manifest.graphs["vae_decoder"]
    return dataclasses.replace(manifest, graphs=graphs)


# Manifests


def test_a_denoiser_may_take_a_mask_and_a_masked_picture_too(manifest, hand_made, remake):
    assert not manifest.is_inpainting
    assert not with_channels(manifest, 4).is_inpainting
    assert with_channels(manifest, 9).is_inpainting
    remake(hand_made, graphs=with_channels(manifest, 9).graphs)
    assert open_bundle(hand_made).manifest.is_inpainting


@pytest.mark.parametrize("counts", [(5,), (8,), (10,), (12,), (4, 9), (9, 4)], ids=str)
def test_other_counts_of_channels_are_refused(edit, hand_made, counts):
    def change(value: Any) -> None:
        (full,) = value["graphs"]["denoiser"].values()
        inputs = [full["inputs"][0], *full["inputs"][1:]]
        value["graphs"]["denoiser"] = {
            name: {**full, "inputs": [{**inputs[0], "shape": ["batch", count, "height", "width"]}, *inputs[1:]]}
            for name, count in zip(("full", "shallow"), counts, strict=False)
        }
        value["graphs"]["vae_encoder"] = value["graphs"]["vae_decoder"]

    edit(change)
    with pytest.raises(BundleError, match=f"takes {' and '.join(map(str, sorted(counts)))} channels"):
        open_bundle(hand_made)


def test_a_masked_picture_needs_an_encoder(edit, hand_made):
    def change(value: Any) -> None:
        value["graphs"]["denoiser"]["full"]["inputs"][0]["shape"][1] = 9

    edit(change)
    with pytest.raises(BundleError, match="vae_encoder"):
        open_bundle(hand_made)


# Requests


@pytest.mark.parametrize(
    ("fields", "missing", "fix"),
    [
        ({}, "no image and no mask", "--image FILE and --mask FILE"),
        ({"image": picture()}, "no mask", "--mask FILE"),
    ],
    ids=["words", "image"],
)
def test_a_picture_and_a_mask_are_demanded(manifest, fields, missing, fix):
    with pytest.raises(RequestError, match=missing) as caught:
        resolve(Request(prompt="", **fields), with_channels(manifest, 9))
    assert fix in caught.value.fix
    resolve(Request(prompt="", **fields), manifest)


def test_given_noise_and_a_mask_without_a_picture_are_refused(manifest):
    inpainting = with_channels(manifest, 9)
    with pytest.raises(RequestError, match="no image and no mask"):
        resolve(Request(prompt="", latents=np.zeros((1, 4, 16, 16), np.float32)), inpainting)
    with pytest.raises(RequestError, match="without a picture"):
        resolve(Request(prompt="", mask=mask()), inpainting)


def test_margins_are_a_mask(manifest):
    asked = Request(prompt="", image=picture(), outpaint="0,0,32,0", width=96, height=64)
    request = resolve(asked, with_channels(manifest, 9))
    assert request.inputs.mask is not None
    assert request.inputs.mask[:, 64:].all()
    assert request.strength == 1.0


def test_a_mask_that_is_nowhere_half_white_is_refused(manifest):
    dim = Image.new("L", SIZE, 127)
    resolve(Request(prompt="", image=picture(), mask=dim), manifest)
    with pytest.raises(RequestError, match="half white"):
        resolve(Request(prompt="", image=picture(), mask=dim), with_channels(manifest, 9))


# Runs


@pytest.fixture(scope="module")
def pipeline(inpainting_bundle: Path):
    with tintype.load(inpainting_bundle, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The samples that the VAE's encoder is called with."""
    run, samples = Session.run, []

    def watched(self: Session, inputs: Any) -> Any:
        if set(inputs) == {"sample"}:
            samples.append(inputs["sample"].copy())
        return run(self, inputs)

    monkeypatch.setattr(Session, "run", watched)
    return samples


@pytest.mark.parametrize(("strength", "calls"), [(0.75, 2), (1.0, 1)])
def test_the_encoder_is_called_as_often_as_was_planned(pipeline, encoded, strength, calls):
    asked = {"image": picture(), "mask": mask(), "strength": strength, "count": 3, "batch_size": 2, **ASKED}
    request = pipeline.resolve(Request(prompt="a house", **asked))
    (use,) = [use for use in pipeline.model.uses(request) if use.ref.role == "vae_encoder"]
    assert (use.calls, use.opens) == (calls, 1)
    pipeline.generate("a house", **asked)
    assert len(encoded) == calls
    hidden = encoded[-1][0, :, 9:51, 13:42]
    assert not hidden.any()  # grey
    assert encoded[-1].any()


def test_nothing_is_put_back_after_a_step(pipeline, monkeypatch):
    starts = []
    real = denoise.Denoiser

    def watched(ctx: Any, conditioning: Any, pictures: int, inpainting: Any) -> Any:
        starts.append(inpainting)
        return real(ctx, conditioning, pictures, inpainting)

    monkeypatch.setattr(denoise, "Denoiser", watched)
    samplers = {"euler": lambda *args: _assert_unchanged(samplers_before["euler"], *args)}
    samplers_before = dict(denoise.SAMPLERS)
    monkeypatch.setattr(denoise, "SAMPLERS", {**samplers_before, **samplers})
    pipeline.generate("a house", image=picture(), mask=mask(), **ASKED)
    ((channels, *_),) = starts  # by branch
    assert channels.shape == (1, 5, 16, 16)
    assert channels.dtype == np.float32
    assert set(np.unique(channels[:, 0])) == {0.0, 1.0}


def _assert_unchanged(sampler: Any, denoiser: Any, latents: Any, schedule: Any, noise: Any, after_step: Any) -> Any:
    assert after_step is unchanged
    return sampler(denoiser, latents, schedule, noise, after_step)


def test_pictures_are_the_same_alone_and_together(pipeline):
    asked = {"image": picture(), "mask": mask(), "strength": 0.75, "count": 2, **ASKED}
    alone = pipeline.generate("a house", **asked)
    together = pipeline.generate("a house", batch_size=2, **asked)
    assert alone.images[0].tobytes() != alone.images[1].tobytes()
    for one, other in zip(alone.images, together.images, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_the_picture_is_kept_outside_where_that_is_asked_for(pipeline):
    made = pipeline.generate("a house", image=picture(), mask=mask(), keep_outside="exact", **ASKED).image
    outside = np.asarray(mask()) == 0
    np.testing.assert_array_equal(np.asarray(made)[outside], np.asarray(picture())[outside])
    assert made.tobytes() != picture().tobytes()


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_record_gives_the_same_bytes_again(pipeline, strength):
    asked = {"image": picture(), "mask": mask(), "strength": strength, "mask_blur": 2.0, "count": 2, **ASKED}
    made = pipeline.generate("a house", **asked)
    for image, record in zip(made.images, made.records, strict=True):
        again = pipeline.reproduce(record, image=picture(), mask=mask())
        assert again.image.tobytes() == image.tobytes()
        assert again.records == (record,)


def test_a_record_is_not_made_of_other_inputs(pipeline):
    record = pipeline.generate("a house", image=picture(), mask=mask(), **ASKED).record
    with pytest.raises(RecordError, match="a mask"):
        pipeline.reproduce(record, image=picture())
    with pytest.raises(RecordError):
        pipeline.reproduce(record, image=picture("navy"), mask=mask())


def test_words_alone_are_refused_before_anything_is_opened(pipeline):
    for make in (pipeline.generate, pipeline.plan, pipeline.steps):
        with pytest.raises(RequestError, match="no image and no mask"):
            make("a house")


def test_a_picture_alone_is_encoded_all_the_same(pipeline):
    assert pipeline.encode_picture(picture()).shape == (1, 4, 16, 16)
    assert [stage.role for stage in pipeline.plan_encoding(build=False).stages] == ["vae_encoder"]


def test_a_call_for_each_prompt_gives_the_same_picture(pipeline):
    asked = Request(prompt="a house", image=picture(), mask=mask(), strength=0.5, count=3, batch_size=2, **ASKED)
    together = pipeline.generate(asked)
    plan = ExecutionPlan(split_guidance=True, keep=False)
    ctx = pipeline.context(pipeline.resolve(asked), plan)
    split = take_all(Run(ctx, picture_steps(ctx)).events())
    for one, other in zip(together.images, split.images, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_a_plan_counts_every_call_of_the_encoder(pipeline):
    asked = {"image": picture(), "mask": mask(), **ASKED}
    stages = [pipeline.plan("a house", build=False, strength=strength, **asked).stages for strength in (0.5, 1.0)]
    calls = [{stage.role: stage.calls for stage in each}["vae_encoder"] for each in stages]
    assert calls == [2, 1]
