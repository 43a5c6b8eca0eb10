"""`tintype bench`: measure, print a few lines, and keep everything in a dated JSON file with the machine's name.

cold = first ever on this machine (graphs are built, kernels not timed), first = a fresh process with its builds cached,
later = the second picture and later ones of one process with those; steady = such pictures, kernels timed before
(`tintype build`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import click

from tintype.bench.figures import verdict
from tintype.bench.job import PROMPT, Job, build_arguments, generate_arguments, with_steps
from tintype.bench.measurement import BARS, Comparison, Report, measurement
from tintype.bench.options import EMBEDDED
from tintype.bench.process import Run, imported_modules, tintype_command
from tintype.bench.rates import picture_stages
from tintype.bench.runner import Answer, Command, Contestant, Peer
from tintype.bundle import open_bundle
from tintype.cli.options import Size
from tintype.errors import RequestError, near_names

MEASURES = ("help", "fresh", "steady", "peers")
NEVER_IMPORTED = frozenset({"torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript"})
BALANCED = "tintype-balanced"  # beside tintype as the bundle asks for it
PEERS = ("tintype", BALANCED, "diffusers", "onnxruntime")
OTHERS = {  # commands with options of their own, and the module that each is in
    "budgets": "memory", "chart": "figures", "coded-noise": "marks", "gpu": "devices", "lora": "denoiser",
    "make-sdxl": "make_sdxl", "memory": "memory", "parity": "devices", "priors": "rates", "sd15": "sd15",
    "skew": "prompts", "skipping": "denoiser", "watermark": "marks", "words": "prompts",
}  # fmt: skip


def other_command(name: str) -> click.Command:
    """One of OTHERS: a function of its name."""
    return getattr(import_module(f"tintype.bench.{OTHERS[name]}"), name.replace("-", "_"))  # type: ignore[no-any-return]


class WithOthers(click.Command):
    """A command of which some words, as its first, are others."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        names = (*MEASURES, *OTHERS)
        if args and not args[0].startswith("-") and args[0] not in names:
            raise RequestError(f"{args[0]!r} is nothing that bench measures", fix=near_names(args[0], names))
        if not args or args[0] not in OTHERS:
            return super().make_context(info_name, args, parent, **extra)
        return other_command(args[0]).make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


@measurement(
    "bench", rounds=5, threads=None, cls=WithOthers, num_inference_steps=20, guidance_scale=7.5, exactness=None
)
def bench(
    report: Report, job: Job,
    measures: Annotated[Sequence[str], click.argument("measures", nargs=-1, type=click.Choice(MEASURES))],
    model: Annotated[str, "A bundle's folder, or an embedded name."] = EMBEDDED,
    checkpoint: Annotated[str | None, click.Path(exists=True, file_okay=False), "What it came from."] = None,
    prompt: str = PROMPT,
    size: Annotated[tuple[int, int] | None, Size(), "Pixels, as in 512x512 [default: the model's own]."] = None,
    fast: Annotated[bool, "The model's fast denoiser, with its own steps and guidance."] = False,
) -> None:  # fmt: skip
    """Measure latency and memory on this machine.

    MEASURES: help (the command's start), fresh (a picture from a new process: cold, with builds cached, and later
    ones), steady (pictures in one process), peers (beside diffusers and plain onnxruntime; extra: peers). Without any:
    help, fresh and steady. Commands of their own, as in tintype bench skew --help: budgets, chart, coded-noise,
    gpu, lora, make-sdxl, memory, parity, priors, sd15, skew, skipping, watermark, words.
    """
    width, height = size or (None, None)
    job = dataclasses.replace(job, model=model, checkpoint=checkpoint, prompt=prompt, width=width, height=height)
    if fast:
        usual = open_bundle(model).manifest.defaults(fast=True)
        job = dataclasses.replace(
            job, num_inference_steps=usual.num_inference_steps, guidance_scale=usual.guidance_scale,
            sampler=usual.sampler, more={"fast": True},
        )  # fmt: skip
    report.names = list(dict.fromkeys(measures or MEASURES[:3]))
    for name in report.names:
        click.echo(f"measuring {name} ...", err=True)
        part = comparison(name, job, report.scratch).run(report.schedule, report.scratch)
        if name == "fresh":
            cache = {"TINTYPE_CACHE": str(report.scratch / "cache")}  # what `first` drew with
            modules = imported_modules(generate_arguments(job, report.scratch / "picture.png"), cache)
            heavy = verdict("modules of torch, diffusers, onnx", len(modules & NEVER_IMPORTED), at_most=0)
            part |= {"imported": sorted(modules), "bars": [*part["bars"], heavy]}
        report.add(name, part)


def comparison(name: str, job: Job, scratch: Path) -> Comparison:
    """What one of MEASURES compares. help: from spawn to exit, the first with files from disk, which it compiles."""
    if name == "help":
        start = Command(tintype_command("--help"), opens_cold=True)
        return Comparison(contestants={"tintype --help": start}, bars=BARS[name], least_rounds=9)
    if name == "fresh":  # as a user asks for it, who has timed no kernels: cold with nothing built in each round
        picture, cache = scratch / "picture.png", {"TINTYPE_CACHE": str(scratch / "cache")}
        command, read = tintype_command(*generate_arguments(job, picture)), functools.partial(read_timings, job)
        first = Command(command, output=picture, read=read, environment=cache)
        cold = dataclasses.replace(first, anew=scratch / "cache")
        later = Peer("tintype", job, requests=[{}] * 2, environment=cache)
        return Comparison(contestants={"cold": cold, "first": first, "later": later}, bars=BARS[name])
    if name == "steady":
        return Comparison(contestants={"tintype": ours(job)}, resident=True, **shares(job))
    contestants: dict[str, Contestant] = {each: Peer(each, job) for each in PEERS}
    contestants |= {"tintype": ours(job), BALANCED: ours(dataclasses.replace(job, exactness="balanced"))}
    ratios = (("seconds", "tintype"), ("denoise_seconds", "tintype"))
    return Comparison(contestants=contestants, ratios=ratios, bars=BARS[name], resident=True, **shares(job))


def shares(job: Job) -> dict[str, Any]:
    """What of the machine's rates each stage reaches; the exported int8 graphs have integer products unless exact."""
    bundle = open_bundle(job.model)
    rounding = bundle.graph("denoiser").precision == "int8"
    usual = (job.exactness or bundle.manifest.default_request.exactness) == "balanced"
    int8 = (BALANCED, "onnxruntime", *(["tintype"] if usual else [])) if rounding else ()
    return {"stages": picture_stages(job), "threads": job.threads, "int8": int8}


def ours(job: Job) -> Peer:
    """Pictures in one process after the first, its kernels timed."""
    return Peer("tintype", job, build=build_arguments(job))


def read_timings(job: Job, run: Run) -> Answer:
    """What `tintype generate --json` tells of its time, and what it had of a device's memory."""
    timings = json.loads(run.stdout)["timings"]
    told = {name: value for name, value in timings.items() if name.endswith("_seconds") or name == "device_bytes"}
    return with_steps(told, job)
