"""Records are believed in nothing: what nobody could have asked for is refused, in little time and memory."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import psutil
import pytest

import tintype
from tintype.engine import most_threads
from tintype.errors import RecordError, RequestError, TintypeError
from tintype.record import parse_record
from tintype.record.latents_file import read_latents, save_latents
from tintype.request.image_prompts import ImagePromptFacts, IPAdapterFacts
from tintype.request.inputs import InitImage, Mask

PROMPT = "a red sailboat on a calm sea at sunset"
ASKED = {"seed": 3, "num_inference_steps": 2, "width": 64, "height": 64}
HASH = "0" * 64
IMAGE = {
    "sha256": HASH, "width": 64, "height": 64, "strength": 0.5, "fit": "crop", "background": "white"
}  # fmt: skip

ADAPTER = IPAdapterFacts(name="x", sha256=HASH, encoder="x", encoder_hash=HASH)
PICTURE = ImagePromptFacts(image=HASH, weight=1.0)

# What a record's request is made to say.
LIES = {
    "count": {"count": 10**9},
    "count 0": {"count": 0},
    "steps": {"num_inference_steps": 10**9},
    "no steps": {"num_inference_steps": 0},
    "seed": {"seed": -1},
    "sampler": {"sampler": "\x1b]52;c;AAAA\x07"},
    "spacing": {"sigmas": "junk"},
    "noise": {"noise": "junk"},
    "exactness": {"exactness": "junk"},
    "batch 0": {"batch_size": 0},
    "batch -1": {"batch_size": -1},
    "batch": {"batch_size": 10**30},
    "guidance": {"guidance_scale": 1e30},
    "rescale": {"guidance_rescale": -3.0},
    "eta": {"eta": 7.0},
    "width": {"width": 10**9},
    "odd width": {"width": 63},
    "latents": {"latents": "../../etc/passwd"},
    "strength": {"image": InitImage(**{**IMAGE, "strength": 8.0})},
    "fit": {"image": InitImage(**{**IMAGE, "fit": "junk"})},
    "background": {"image": InitImage(**{**IMAGE, "background": "\x1b[2J"})},
    "picture's size": {"image": InitImage(**{**IMAGE, "width": -1})},
    "picture's hash": {"image": InitImage(**{**IMAGE, "sha256": "x"})},
    "parent": {"image": InitImage(**{**IMAGE, "parent": "x" * 64})},
    "margins": {"image": InitImage(**{**IMAGE, "outpaint": "9" * 40})},
    "mask alone": {"mask": Mask(sha256=HASH, grow=0, blur=0.0, keep_outside="model")},
    "mask": {
        "image": InitImage(**IMAGE), "mask": Mask(sha256=HASH, grow=10**9, blur=0.0, keep_outside="model"),
    },
    "image prompts alone": {"image_prompts": (PICTURE,)},
    "adapter alone": {"ip_adapter": ADAPTER},
    "image prompts": {"ip_adapter": ADAPTER, "image_prompts": (PICTURE,) * 10**4},
    "image prompt's weight": {
        "ip_adapter": ADAPTER, "image_prompts": (dataclasses.replace(PICTURE, weight=1e30),),
    },
    "image prompt's hash": {"ip_adapter": ADAPTER, "image_prompts": (dataclasses.replace(PICTURE, image="x"),)},
    "image prompt's mask": {"ip_adapter": ADAPTER, "image_prompts": (dataclasses.replace(PICTURE, mask="../x"),)},
    "adapter's name": {
        "ip_adapter": dataclasses.replace(ADAPTER, name="\x1b[2J"), "image_prompts": (PICTURE,),
    },
    "adapter's hash": {"ip_adapter": dataclasses.replace(ADAPTER, sha256=""), "image_prompts": (PICTURE,)},
    "outside": {
        "image": InitImage(**IMAGE), "mask": Mask(sha256=HASH, grow=0, blur=0.0, keep_outside="junk"),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def made(pipeline):
    return pipeline.generate(PROMPT, **ASKED)


@pytest.fixture
def cheaply():
    """What is refused takes no memory that stays, and none to speak of at its most."""
    before = psutil.Process().memory_info().rss
    yield
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


@pytest.mark.parametrize("lie", LIES)
def test_a_request_that_nobody_could_make_is_refused(pipeline, made, cheaply, lie, tmp_path):
    record = dataclasses.replace(made.record, request=dataclasses.replace(made.record.request, **LIES[lie]))
    with pytest.raises(RecordError, match="asks for what"):
        pipeline.reproduce(record)
    path = save_latents(tmp_path / "x.latents.safetensors", made.latents, [record])
    with pytest.raises(TintypeError) as caught:
        pipeline.resume(read_latents(path))
    assert isinstance(caught.value, RecordError) or "width" in lie  # latents of another size belong to another bundle


HIRES = {"factor": 2.0, "width": 64, "height": 64, "strength": 0.5, "upscale": "latent"}


@pytest.mark.parametrize(
    "lie", [{"factor": 3.0}, {"factor": 1e9}, {"width": 32}, {"strength": -1.0}, {"upscale": "junk"}], ids=str
)
def test_an_enlarged_picture_that_contradicts_its_size_is_refused(pipeline, made, lie):
    honest = pipeline.resolve(tintype.Request(prompt=PROMPT, hires=2.0, **ASKED))
    hires = dataclasses.replace(honest.hires, **lie)
    record = dataclasses.replace(made.record, request=dataclasses.replace(honest, hires=hires))
    with pytest.raises(RecordError, match="asks for what"):
        pipeline.reproduce(record)


MODES = [
    {"vae_decoder": f"tiles of {10**30} cells, 4 shared"},
    {"vae_decoder": "tiles of 8 cells, 8 shared"},
    {"denoiser": "tiles of 8 cells, 2 shared"},
    {"denoiser": f"segments of {10**30} MiB"},
    {"denoiser": "segments of 0 MiB"},
    {"vae_decoder": "strips of -4 MiB"},
    {"denoiser": "\x1b[2J"},
]


@pytest.mark.parametrize("modes", MODES, ids=str)
def test_a_way_to_hold_a_graph_that_no_plan_has_is_refused(pipeline, made, modes):
    made_with = dataclasses.replace(made.record.made_with, modes=modes)
    with pytest.raises(RecordError):
        pipeline.reproduce(dataclasses.replace(made.record, made_with=made_with), anyway=True)


def test_tiles_of_the_first_version_without_bounds_are_refused(pipeline, made):
    value = json.loads(made.record.texts()["tintype"]) | {"record_version": 1}
    value["tiling"] = {"tile": 10**30, "overlap": 1, "multiple": 1}
    with pytest.raises(RecordError):
        pipeline.reproduce(parse_record(json.dumps(value)))


def test_records_in_no_order_are_refused(pipeline, made, tmp_path):
    two = pipeline.generate(PROMPT, count=2, **ASKED)
    for records in ((two.records[0], two.records[0]), two.records[::-1]):
        path = save_latents(tmp_path / "x.latents.safetensors", two.latents, records)
        with pytest.raises(RecordError, match="order"):
            pipeline.resume(read_latents(path))


def test_each_of_several_records_is_held_to_this_machine(pipeline, tmp_path):
    two = pipeline.generate(PROMPT, count=2, **ASKED)
    foreign = dataclasses.replace(two.records[1].made_with, bundle_hash="cd" * 32)
    records = (two.records[0], dataclasses.replace(two.records[1], made_with=foreign))
    path = save_latents(tmp_path / "x.latents.safetensors", two.latents, records)
    with pytest.raises(RecordError, match="another bundle"):
        pipeline.resume(read_latents(path))


@pytest.mark.parametrize("threads", [0, -1, 3000, 10**30, True, 1.5, "2"])
def test_threads_that_never_end_are_refused(tiny_bundle, threads):
    with pytest.raises(RequestError, match="threads"):
        tintype.load(tiny_bundle, provider="cpu", threads=threads)
    assert 64 <= most_threads() < 3000 or most_threads() % 4 == 0


def test_what_a_caller_writes_into_a_step_changes_no_picture(pipeline, made):
    run = pipeline.steps(PROMPT, **ASKED)
    for step in run:
        step.latents[:] = 1e3
        step.denoised[:] = np.nan
    assert run.result.image.tobytes() == made.image.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        run.result.latents[:] = 0
