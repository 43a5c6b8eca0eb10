"""A bundle is refused whole when anything isn't so: what it says of itself, of its sizes and of its noise."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deadline import deadline

from tintype.bounds import MAX_GRAPHS, MAX_SCHEDULER_BYTES
from tintype.bundle import file_facts, manifest_digest, open_bundle, read_manifest, write_manifest
from tintype.bundle.bundle import _parse_manifest
from tintype.bundle.manifest import FAMILIES, Manifest
from tintype.errors import BundleError, RequestError
from tintype.families.registry import FAMILIES as REGISTERED
from tintype.image.decode import decode_samples
from tintype.sampling import SAMPLERS, SPACINGS, SchedulerConfig, make_schedule

POSTCARD = Path(__file__).parents[2] / "models/postcard/bundle"


def refused(folder: Path, *words: str) -> None:
    with deadline(), pytest.raises(BundleError) as caught:
        open_bundle(folder)
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert caught.value.fix


# The digest


def test_a_manifest_with_any_bit_flipped_is_refused_or_the_same() -> None:
    path, chance = POSTCARD / "tintype.json", random.Random(0)
    text = path.read_bytes()
    whole = _parse_manifest(path, text, Manifest)
    for place in chance.sample(range(len(text) * 8), 2000):
        flipped = bytearray(text)
        flipped[place // 8] ^= 1 << place % 8
        try:
            assert _parse_manifest(path, bytes(flipped), Manifest) == whole
        except BundleError:
            continue


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("0.48938825534647673", "0.48938825534647671"[:-1] + "9"),
        ('"v_prediction"', '"epsilon"'),
        ('"guidance_scale": 5.0', '"guidance_scale": 7.0'),
        ('"num_inference_steps": 20', '"num_inference_steps": 28'),
        ('"dpmpp_2m"', '"euler"'),
        ('"pad_token_id": 981', '"pad_token_id": 980'),
        ('"exactness": "exact"', '"exactness": "balanced"'),
        ('"shift_factor": 0.0', '"shift_factor": 0.5'),
        ('"cost": {}', '"cost": {"a": 1}'),
    ],
)
def test_a_manifest_that_says_something_else_than_its_digest(what: str, other: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(POSTCARD, tmp_path / "bundle"))
    text = (folder / "tintype.json").read_text()
    assert what in text
    (folder / "tintype.json").write_text(text.replace(what, other, 1))
    refused(folder, "digest")


def test_a_digest_is_of_what_is_said_and_not_of_how_it_is_written(hand_made: Path) -> None:
    value = json.loads((hand_made / "tintype.json").read_text())
    assert value["digest"] == manifest_digest(value) == manifest_digest(dict(reversed(value.items())))
    (hand_made / "tintype.json").write_text(json.dumps(value, indent=7, sort_keys=True))
    manifest = open_bundle(hand_made).manifest
    del value["digest"]
    (hand_made / "tintype.json").write_text(json.dumps(value))
    assert open_bundle(hand_made).manifest == manifest  # as older ones are


@pytest.mark.parametrize("digest", [None, 0, "", "0" * 64, [], {}])
def test_a_digest_that_is_none(digest: object, hand_made: Path) -> None:
    value = json.loads((hand_made / "tintype.json").read_text())
    (hand_made / "tintype.json").write_text(json.dumps({**value, "digest": digest}))
    refused(hand_made, "digest")


# Facts


@pytest.mark.parametrize("family", ["flux", "stable-diffusion-3", "Stable-Diffusion", "stable-diffusion "])
def test_an_unknown_family(family: str, hand_made: Path, edit: Callable[..., None]) -> None:
    edit(lambda value: value.update(family=family))
    refused(hand_made, "family", family)


def test_the_families_that_a_manifest_may_name_are_those_that_there_are() -> None:
    assert tuple(REGISTERED) == FAMILIES


@pytest.mark.parametrize("precision", ["int2", "int3", "fp8", "FP32", ""])
def test_an_unknown_precision(precision: str, hand_made: Path, edit: Callable[..., None]) -> None:
    edit(lambda value: value["graphs"]["denoiser"]["full"].update(precision=precision))
    refused(hand_made, "precision")


def _port(value: dict[str, Any], role: str, kind: str, index: int = 0) -> dict[str, Any]:
    port: dict[str, Any] = value["graphs"][role]["full"][kind][index]
    return port


SHAPES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "8 of 4": (lambda value: value.update(vae_scale_factor=8), "vae_scale_factor"),
    "2 of 4": (lambda value: value.update(vae_scale_factor=2), "vae_scale_factor"),
    "1 of 4": (lambda value: value.update(vae_scale_factor=1), "vae_scale_factor"),
    "numbers": (
        lambda value: (
            _port(value, "vae_decoder", "inputs").update(shape=[1, 4, 8, 8]),
            _port(value, "vae_decoder", "outputs").update(shape=[1, 3, 64, 32]),
        ),
        "vae_decoder",
    ),
    "no picture": (lambda value: _port(value, "vae_decoder", "outputs").update(shape=["batch", 3]), "vae_decoder"),
    "grey": (lambda value: _port(value, "vae_decoder", "outputs")["shape"].__setitem__(1, 1), "3"),
    "predictions": (lambda value: _port(value, "denoiser", "outputs")["shape"].__setitem__(1, 3), "denoiser"),
    "prediction of half": (
        lambda value: _port(value, "denoiser", "outputs")["shape"].__setitem__(2, "height/2"),
        "denoiser",
    ),
    "means": (lambda value: _port(value, "vae_encoder", "outputs")["shape"].__setitem__(1, 4), "vae_encoder"),
    "timesteps": (lambda value: _port(value, "denoiser", "inputs", 1).update(shape=[2**24, 2**24]), "timestep"),
    "tokens": (lambda value: value["tokenizer"].update(max_length=76), "tokens"),
    "endless sum": (
        lambda value: _port(value, "denoiser", "inputs")["shape"].__setitem__(2, "1" + "+1" * 1000),
        "letters",
    ),
    "type": (lambda value: _port(value, "denoiser", "inputs", 1).update(dtype="object"), "type"),
    "graphs": (
        lambda value: value["graphs"].update({str(n): value["graphs"]["denoiser"] for n in range(MAX_GRAPHS)}),
        "graphs",
    ),
    "parity": (lambda value: value.update(parity=value["parity"] * 1000), "parity"),
    "scaling": (lambda value: value.update(scaling_factor=1e-300), "scaling_factor"),
    "shift": (lambda value: value.update(shift_factor=-1e300), "shift_factor"),
}


@pytest.mark.parametrize(("how", "word"), SHAPES.values(), ids=SHAPES.keys())
def test_graphs_that_do_not_fit_what_the_manifest_says(
    how: Callable[[dict[str, Any]], Any], word: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(POSTCARD, tmp_path / "bundle"))
    value = json.loads((folder / "tintype.json").read_text())
    how(value)
    value["digest"] = manifest_digest(value)
    (folder / "tintype.json").write_text(json.dumps(value))
    refused(folder, "tintype.json", word)


@pytest.mark.parametrize("name", ["sampler", "sigmas"])
def test_a_default_request_that_nothing_here_can_do(name: str, hand_made: Path, edit: Callable[..., None]) -> None:
    edit(lambda value: value["default_request"].update({name: "dreaming"}))
    refused(hand_made, "dreaming")


def test_a_decoder_that_gives_another_size_than_promised_gives_no_picture() -> None:
    latents = np.zeros((1, 4, 8, 8), np.float32)
    for shape in ((1, 3, 64, 64), (1, 3, 16, 16), (1, 1, 32, 32), (2, 3, 32, 32), (1, 3, 32)):
        made = decode_samples(
            lambda _, shape=shape: np.zeros(shape, np.float32), latents, cell=4, scaling_factor=1.0, shift_factor=0.0
        )
        with pytest.raises(BundleError, match="the manifest promises 1x3x32x32"):
            next(made)


@pytest.mark.slow
def test_ports_that_agree_with_a_factor_that_is_not_the_graphs(tmp_path: Path) -> None:
    """The manifest fits itself, and the decoder doesn't fit it: nothing tells before it has run."""
    import tintype

    folder = Path(shutil.copytree(POSTCARD, tmp_path / "bundle"))
    text = (folder / "tintype.json").read_text().replace("4*height", "8*height").replace("4*width", "8*width")
    value = json.loads(text.replace("height/4", "height/8").replace("width/4", "width/8"))
    value["vae_scale_factor"] = 8
    value["digest"] = manifest_digest(value)
    (folder / "tintype.json").write_text(json.dumps(value))
    with tintype.load(folder, provider="cpu") as pipeline, pytest.raises(BundleError, match="1x3x128x128"):
        pipeline.generate("a house", seed=1, num_inference_steps=1, width=128, height=128)


# Noise


def scheduler(hand_made: Path, remake: Callable[..., None], text: str) -> None:
    (hand_made / "scheduler/scheduler_config.json").write_text(text)
    remake(hand_made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        '{"beta_start": 1e999}',
        '{"beta_start": NaN}',
        '{"prediction_type": "v_prediction"}',
        '{"a": 1, "a": 1}',
        '{"a": "' + "x" * MAX_SCHEDULER_BYTES + '"}',
    ],
    ids=lambda text: text[:20],
)
def test_a_schedulers_file_that_is_none(text: str, hand_made: Path, remake: Callable[..., None]) -> None:
    scheduler(hand_made, remake, text)
    refused(hand_made)


HOSTILE_NOISE: list[dict[str, Any]] = [
    {"beta_start": 10**400},
    {"beta_end": 10**30},
    {"beta_start": 1e-300, "beta_end": 1e-300},
    {"beta_start": 1e-9, "beta_end": 1e-9},
    {"beta_start": 0.9, "beta_end": 0.99},
    {"beta_start": 0.9999999, "beta_end": 0.9999999},
    {"beta_start": 0, "beta_end": 1},
    {"beta_start": -1.0},
    {"num_train_timesteps": 10**18},
    {"num_train_timesteps": 2**63},
    {"num_train_timesteps": 10_000, "beta_end": 0.5},
    {"num_train_timesteps": 1},
    {"num_train_timesteps": 2, "trained_betas": [0.5, 0.0]},
    {"num_train_timesteps": 2, "trained_betas": [10**400, 0.5]},
    {"num_train_timesteps": 2, "trained_betas": [1e-30, 1e-30]},
    {"num_train_timesteps": 2, "trained_betas": [1e-30, 1e-30], "rescale_betas_zero_snr": True},
    {"num_train_timesteps": 3, "trained_betas": [0.999999999] * 3},
    {"num_train_timesteps": 10_000, "beta_schedule": "squaredcos_cap_v2"},
    {"beta_start": 1e-300, "beta_end": 1e-300, "rescale_betas_zero_snr": True},
    {"timestep_scaling": 0},
    {"timestep_scaling": -1.0},
    {"timestep_scaling": 1e300},
    {"timestep_scaling": 10**400},
    {"original_inference_steps": 10**30},
    {"steps_offset": 10**30},
]


@pytest.mark.parametrize("config", HOSTILE_NOISE, ids=str)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_that_makes_no_sense_is_refused_or_every_sampler_can_do_with_it(
    config: dict[str, Any], zero_snr: bool
) -> None:
    usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            known = SchedulerConfig.from_json({**usual, "rescale_betas_zero_snr": zero_snr, **config})
        except BundleError:
            return
        for sampler in SAMPLERS:
            try:
                schedule = make_schedule(known, sampler, 2)
            except RequestError:
                continue
            assert np.isfinite(schedule.sigmas).all()
            assert np.isfinite(schedule.timesteps).all()
        for spacing, steps in itertools.product(SPACINGS, (1, 25)):
            for sampler in ("euler", "dpmpp_2m", "restart"):
                with contextlib.suppress(RequestError):
                    schedule = make_schedule(known, sampler, steps, spacing)
                    assert np.isfinite([*schedule.sigmas, *schedule.timesteps]).all()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
        {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_the_noise_of_real_models_passes(config: dict[str, Any]) -> None:
    SchedulerConfig.from_json(config)


def test_a_scheduler_that_predicts_something_else_than_the_manifest_says(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(POSTCARD, tmp_path / "bundle"))
    manifest = dataclasses.replace(read_manifest(folder)[0], prediction_type="epsilon", files=file_facts(folder))
    write_manifest(folder, manifest)
    refused(folder, "v_prediction", "epsilon")
