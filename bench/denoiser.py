"""What LoRAs cost of the denoiser's time, and what skipping a part of its work saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from tintype.bench.job import PROMPT, Job, build_arguments
from tintype.bench.measurement import BARS, Comparison, Report, measurement
from tintype.bench.options import EMBEDDED, Names, several
from tintype.bench.runner import Peer
from tintype.bundle import Bundle, open_bundle
from tintype.engine import adaptable_shapes
from tintype.uses import LAYERS, GraphRef

WHOLE = "whole"
WAYS: Mapping[str, Mapping[str, Any]] = {
    WHOLE: {},
    "interval-0.2-0.8": {"guidance_interval": "0.2,0.8"},
    "interval-0-0.5": {"guidance_interval": "0,0.5"},
    "gate-0.4": {"gate_start": 0.4},
    "gate-0.6": {"gate_start": 0.6},
    "deepcache-2": {"cache_interval": 2},
    "deepcache-2-inner": {"cache_interval": 2, "cache_branch": 2},
    "deepcache-3": {"cache_interval": 3},
    "deepcache-3-inner": {"cache_interval": 3, "cache_branch": 2},
    "deepcache-5": {"cache_interval": 5},
    "merging-0.3": {"token_merging": 0.3},
    "merging-0.5": {"token_merging": 0.5},
    "deepcache-2-interval": {"cache_interval": 2, "guidance_interval": "0.2,0.8"},
}
WITHOUT = "without"
SPREAD = 0.01  # of a pair's numbers


@measurement("skipping", rounds=1, model=EMBEDDED, num_inference_steps=20, guidance_scale=None, device="cpu")
def skipping(
    report: Report, job: Job, ways: Annotated[Names, several(WAYS)] = tuple(WAYS),
    count: Annotated[int, "Pictures in each way."] = 100,
) -> None:  # fmt: skip
    """What ways to skip a part of the denoiser's work save, and how far they lead from the picture that skips nothing.

        tintype bench skipping
        tintype bench skipping FOLDER --count 1 --ways whole,deepcache-3,gate-0.4

    Every way draws the same prompts with the same seeds. Of postcard these are held-out prompts, and accuracy is the
    share of what they state that the judge finds in the pictures (torch). psnr_db is of each picture to the whole one.
    """
    prompts, score = held_out(count) if job.model == EMBEDDED else ([PROMPT] * count, lambda files: {})
    requests = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(prompts)]
    asked = {name: dict(WAYS[name]) for name in (WHOLE, *ways)}
    contestants = {name: Peer("tintype", replace(job, more=way), requests=requests) for name, way in asked.items()}
    ratios, near = [("denoise_seconds", WHOLE), ("seconds", WHOLE)], dict.fromkeys(asked, WHOLE)
    report.names.append(open_bundle(job.model).name)
    comparison = Comparison(contestants=contestants, near=near, score=score, ratios=ratios)
    report.compare("skipping", comparison, ways=asked)


def held_out(count: int) -> tuple[Sequence[str], Callable[[Sequence[Path]], dict[str, Any]]]:
    """Postcard's prompts that state all there is to see, and what tells how much of it pictures of them show."""
    from tintype.models.postcard.evaluate import fixed_prompts, score_pictures

    prompts, scenes = zip(*fixed_prompts(count), strict=True)

    def score(files: Sequence[Path]) -> dict[str, Any]:
        told: Any = score_pictures(np.stack([np.load(file) for file in files]), scenes)
        accuracy, error = told["accuracy"], told["standard_error"]
        return {"accuracy": accuracy["mean"], "accuracy_of": accuracy, "standard_error": error}

    return prompts, score


@measurement("lora", model=EMBEDDED, num_inference_steps=4, guidance_scale=None, exactness=None)
def lora(report: Report, job: Job, layers: Annotated[Names, several(LAYERS)] = LAYERS, rank: int = 16) -> None:
    """What a LoRA of random numbers costs while a picture is drawn: the denoiser's seconds with it, over those without.

        tintype bench lora
        tintype bench lora FOLDER/int8 --exactness balanced --num-inference-steps 2

    LoRAs are of all layers of a kind: queries, keys, values and outputs of attentions; what else transformers consist
    of; every linear layer and convolution. Kernels are timed before.
    """
    opened = open_bundle(job.model)
    contestants = {WITHOUT: Peer("tintype", job, build=build_arguments(job))}
    for kind in layers:
        file = str(write_lora(opened, report.scratch / f"{kind}.safetensors", kind, rank))
        build = (*build_arguments(job), "--lora", file)
        contestants[kind] = Peer("tintype", replace(job, more={"loras": [file]}), build=build)
    ratios = [("denoise_seconds", WITHOUT)]
    report.names.append(opened.name)
    report.compare("lora", Comparison(contestants=contestants, ratios=ratios, bars=BARS["lora"]))


def write_lora(bundle: Bundle, path: Path, kind: str, rank: int) -> Path:
    """A LoRA by diffusers' names, of random numbers, for all layers of a bundle's denoiser up to that kind."""
    from safetensors.numpy import save_file

    known, random = adaptable_shapes(bundle, GraphRef("denoiser")), np.random.default_rng(0)
    tensors = {}
    for name, (outputs, inputs, *kernel) in known.shapes.items():
        if LAYERS.index(known.among[name]) <= LAYERS.index(kind):
            for part, shape in (("A", (rank, inputs, *kernel)), ("B", (outputs, rank, *(1 for _ in kernel)))):
                numbers = random.standard_normal(shape, np.float32) * np.float32(SPREAD)
                tensors[f"unet.{name}.lora_{part}.weight"] = numbers
    save_file(tensors, path)
    return path
