"""What ways to skip a part of the denoiser's work save, and how far they lead from the picture that skips nothing.

    tintype bench skipping
    tintype bench skipping FOLDER --count 1 --ways whole,deepcache-3,gate-0.4

Every way draws the same prompts with the same seeds. Of postcard these are held-out prompts that state all there is to
see, and accuracy is the share of it that the judge, who was trained on renders alone, finds in the pictures (torch).
psnr_db is of each picture to the whole one; a picture may well be another and as good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from tintype.bench.comparison import Comparison, add_ratios
from tintype.bench.figures import file_psnr_db, summary
from tintype.bench.job import PROMPT, Job
from tintype.bench.measurement import Report, count_option, folder_argument, measurement, names_option
from tintype.bench.runner import Peer
from tintype.bundle import open_bundle

WHOLE, EMBEDDED = "whole", "postcard"
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


@measurement(
    "skipping",
    folder_argument("bundle", cache="../cache", required=False),
    names_option("--ways", WAYS),
    count_option("--count", default=100, help="Pictures in each way."),
    count_option("--num-inference-steps", default=20),
    click.option("--guidance-scale", type=float, help="[default: the model's own]"),
    click.option("--provider", "device", default="cpu", show_default=True, help="As in tintype generate."),
    rounds=1,
    help=__doc__,
)
def main(report: Report, bundle: Path | None, ways: Sequence[str], count: int, **fields: Any) -> None:
    model = EMBEDDED if bundle is None else str(bundle)
    job = Job(model=model, **fields)
    prompts, scenes = ([PROMPT] * count, None) if bundle else _held_out(count)
    requests = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(prompts)]
    contestants, files = {}, dict[str, list[Path]]()
    for name in dict.fromkeys((WHOLE, *ways)):
        peer = Peer("tintype", dataclasses.replace(job, more=WAYS[name]), requests=requests)
        contestants[name], files[name] = peer.saving(report.scratch / name)
    part = Comparison(contestants=contestants).run(report.schedule, report.scratch)
    for name, figures in part["peers"].items():
        each_db = [file_psnr_db(*pair) for pair in zip(files[WHOLE], files[name], strict=True)]
        figures["psnr_db"] = summary(each_db)
        if scenes is not None:
            figures |= _judged(files[name], scenes)
    add_ratios(part["peers"], [("denoise_seconds", WHOLE), ("seconds", WHOLE)])
    report.names.append(open_bundle(model).name)
    report.add("skipping", part, ways={name: dict(WAYS[name]) for name in contestants})


def _held_out(count: int) -> tuple[Sequence[str], Sequence[Any]]:
    from tintype.models.postcard.evaluate import fixed_prompts

    prompts, scenes = zip(*fixed_prompts(count), strict=True)
    return prompts, scenes


def _judged(files: Sequence[Path], scenes: Sequence[Any]) -> dict[str, Any]:
    from tintype.models.postcard.evaluate import score_pictures

    scores = score_pictures(np.stack([np.load(file) for file in files]), scenes)
    accuracy: Any = scores["accuracy"]
    return {"accuracy": accuracy["mean"], "accuracy_of": accuracy, "standard_error": scores["standard_error"]}
