"""A picture becomes latents: what the decoder makes of them is that picture, and the budget holds there too."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import tintype
from tintype.errors import MemoryBudgetError, RequestError
from tintype.memory.mode import PACKED
from tintype.stages.decode import decode_in

pytestmark = pytest.mark.slow

SIDE = 512


def psnr_db(reference, other, span):
    error = float(np.mean((np.asarray(reference, np.float64) - other) ** 2))
    return 200.0 if error == 0 else 10 * np.log10(span**2 / error)


@pytest.fixture(scope="module")
def made():
    """A picture of postcard's, with the latents that it was decoded from."""
    with tintype.load("postcard", provider="cpu") as pipeline:
        return pipeline.generate("a red sailboat on a calm sea at sunset", seed=7, exactness="exact")


@pytest.fixture(scope="module")
def large(made):
    return made.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def test_a_picture_comes_back_from_its_latents(made):
    with tintype.load("postcard", provider="cpu") as pipeline:
        latents = pipeline.encode_picture(made.image, exactness="exact")
        again = decode_in(pipeline.context(made.record.request), latents, PACKED)
    assert latents.dtype == np.float32
    assert latents.shape == made.latents.shape
    assert psnr_db(made.image, again[0], 255) >= 30.0
    # Far nearer to those that the picture was made from than any other latents of that spread would be.
    assert np.corrcoef(made.latents.ravel(), latents.ravel())[0, 1] >= 0.95


def test_any_mode_of_pillows_is_a_picture(made):
    with tintype.load("postcard", provider="cpu") as pipeline:
        grey = made.image.convert("L")
        np.testing.assert_array_equal(pipeline.encode_picture(grey), pipeline.encode_picture(grey.convert("RGB")))


def test_a_size_that_the_model_cannot_make_is_refused(made):
    with (
        tintype.load("postcard", provider="cpu") as pipeline,
        pytest.raises(RequestError, match="width"),
    ):
        pipeline.encode_picture(made.image.crop((0, 0, 127, 128)))


@pytest.mark.memory  # budgets count what this process has, which other tests before it change
def test_within_a_budget_the_latents_are_the_same_and_the_plan_tells_the_trade(large):
    with tintype.load("postcard", provider="cpu") as pipeline:
        whole = pipeline.plan_encoding(SIDE, SIDE, exactness="exact")
        latents = pipeline.encode_picture(large, exactness="exact")
    assert [stage.role for stage in whole.stages] == ["vae_encoder"]
    assert whole.measured
    with tintype.load("postcard", provider="cpu", memory="64GiB") as pipeline:
        roomy = pipeline.plan_encoding(SIDE, SIDE, exactness="exact")
        pipeline.memory = 2**20
        with pytest.raises(MemoryBudgetError) as refusal:
            pipeline.encode_picture(large, exactness="exact")
        pipeline.memory = budget = refusal.value.least_bytes
        plan = pipeline.plan_encoding(SIDE, SIDE, exactness="exact")
        pipeline.generate("a lighthouse", num_inference_steps=1, width=64, height=64)  # what it leaves open has to go
        found = pipeline.encode_picture(large, exactness="exact")
        pipeline.generate("a lighthouse", num_inference_steps=1, width=64, height=64)
    assert "vae_encoder" in refusal.value.message
    assert plan.stages[0].mode.kind == "strips"
    assert plan.most_bytes <= budget
    assert plan.peak_bytes - plan.base_bytes < roomy.peak_bytes - roomy.base_bytes  # the process's own share changes
    assert plan.stages[0].seconds > 0
    assert psnr_db(latents, found, float(np.ptp(latents))) >= 60.0


@pytest.mark.parametrize("way", [(), ("--memory", "2GiB")])
def test_the_command_plans_it_too(way):
    asked = ["plan", "postcard", "--encode", "--size", "64x64", "--provider", "cpu", *way]
    done = subprocess.run(
        [sys.executable, "-m", "tintype", *asked, "--json"], capture_output=True, text=True, check=True
    )
    (stage,) = json.loads(done.stdout)["plan"]["stages"]
    assert stage["role"] == "vae_encoder"
    assert stage["calls"] == 1


@pytest.mark.parametrize("option", ["--count", "--batch-size", "--num-inference-steps", "--guidance-scale"])
def test_what_only_pictures_from_words_have_is_refused_beside_it(option):
    asked = ["plan", "postcard", "--encode", option, "3"]
    done = subprocess.run([sys.executable, "-m", "tintype", *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"leave out {option}" in done.stderr
