"""Coded noise: how often it is found in postcard's pictures, by sampler and edit, and whether it costs any quality.

    tintype bench coded-noise [--pictures 40] [--judged 300] [--samplers dpmpp_2m,euler]

Prompts are those by which postcard is judged, each picture with a seed of its own. `signs` is the share of the starting
noise's signs that come back, half of them being chance; found is at fewer than one false alarm in a million. Beside
them pictures that were drawn without, looked into with the key. The judge (torch) reads the attributes of pictures of
the same prompts and seeds, drawn with and without.
"""

from __future__ import annotations

from typing import Any

import click
import numpy as np
from PIL import Image

from tintype.bench.comparison import Bar
from tintype.bench.measurement import Report, count_option, measurement
from tintype.bench.pictures import as_jpeg
from tintype.bench.watermark import Attack, levels
from tintype.models.postcard.evaluate import fixed_prompts, score_pictures
from tintype.pipeline import Pipeline, load
from tintype.sampling import noise_source
from tintype.stages.invert import inversion_request, starting_noise
from tintype.trust.coded_noise import NoiseCoder, read
from tintype.trust.pattern import PUBLIC_KEY

EDITS: dict[str, Attack] = {
    "nothing": lambda picture, random: picture,
    "JPEG 50": lambda picture, random: as_jpeg(picture, 50),
    "JPEG 25": lambda picture, random: as_jpeg(picture, 25),
    "brightness": levels(lambda picture, random: picture * random.uniform(0.5, 2.0)),
    "noise of 5 %": levels(lambda picture, random: picture + random.normal(0, 0.05 * 255, picture.shape)),
}
USUAL = ("dpmpp_2m", "euler", "ddim", "unipc", "euler_cfg_pp", "heun")


@measurement(
    "coded-noise",
    count_option("--pictures", default=40, help="Of each sampler."),
    count_option("--judged", default=300, help="Pictures with, and as many without."),
    click.option("--samplers", default=",".join(USUAL), show_default=True),
    rounds=1,
    threads=1,
    help=__doc__,
)
def main(report: Report, pictures: int, judged: int, samplers: str, threads: int) -> None:
    table: dict[str, dict[str, Any]] = {}
    prompts, scenes = zip(*fixed_prompts(max(pictures, judged)), strict=True)
    with load("postcard", provider="cpu", threads=threads) as pipeline:
        for sampler in samplers.split(","):
            table |= _found(pipeline, sampler, prompts[:pictures])
        plain = [_drawn(pipeline, prompt, seed, code_noise=False) for seed, prompt in enumerate(prompts[:judged])]
        coded = [_drawn(pipeline, prompt, seed, code_noise=True) for seed, prompt in enumerate(prompts[:judged])]
        alarms = [_read(pipeline, picture)[0] for picture in plain[:pictures]]
    table["drawn without"] = {"found": float(np.mean(alarms))}
    scores: dict[str, Any] = {
        name: score_pictures(np.stack(each), scenes[:judged]) for name, each in (("without", plain), ("with", coded))
    }
    means = {name: score["accuracy"]["mean"] for name, score in scores.items()}
    table["quality"] = {"lost": means["without"] - means["with"], **means}
    error = float(np.hypot(*(score["standard_error"] for score in scores.values())))
    bars = (Bar("drawn without", "found", at_most=0.0), Bar("quality", "lost", at_most=2 * error))
    report.judge("coded noise", table, bars, judged=scores)


def _found(pipeline: Pipeline, sampler: str, prompts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    made = [_drawn(pipeline, prompt, seed, code_noise=True, sampler=sampler) for seed, prompt in enumerate(prompts)]
    rows = {}
    for name, edit in EDITS.items():
        random = np.random.default_rng(1)
        read_back = [_read(pipeline, edit(picture, random), seed) for seed, picture in enumerate(made)]
        found, signs = (float(np.mean(each)) for each in zip(*read_back, strict=True))
        rows[f"{sampler}, {name}"] = {"found": found, "signs": round(signs, 4)}
    return rows


def _drawn(pipeline: Pipeline, prompt: str, seed: int, **fields: Any) -> np.ndarray:
    return np.asarray(pipeline.generate(prompt, seed=seed, **fields).image)


def _read(pipeline: Pipeline, picture: np.ndarray, seed: int = 0) -> tuple[bool, float]:
    """Whether it is found, and says who drew it; and the share of its signs that are right."""
    request = inversion_request(Image.fromarray(picture), pipeline.bundle.manifest)
    noise = starting_noise(pipeline.context(pipeline.resolve(request)))
    told = NoiseCoder(pipeline.marker.maker).coded(noise_source("philox", [seed]).draw(noise.shape), [seed])
    reading = read(noise, [PUBLIC_KEY])
    is_right = reading.payload in (None, f"{pipeline.marker.maker & 0xFF:02x}")
    return reading.found and is_right, float(np.mean(np.sign(told) == np.sign(noise)))
