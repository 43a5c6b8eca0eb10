"""Tintype beside other runtimes at the real size of Stable Diffusion 1.5, random weights: graphs and whole pictures.

pip install 'tintype[cpu,export,peers,peers-cpu]'
tintype bench sd15 make FOLDER        # once: weights in every runtime's form, about 20 GB
tintype bench sd15 graphs FOLDER      # one UNet call, one decode, at several sizes
tintype bench sd15 picture FOLDER     # 20 steps with guidance, from prompt to pixels
tintype bench sd15 make TURBO --shape sd-turbo     # the same of one that draws in one step; or sdxs, sdxl-turbo:
tintype bench sd15 picture TURBO --num-inference-steps 1 --guidance-scale 1 --decoder tiny
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import click

from tintype.bench.job import Job, build_arguments, plan_arguments
from tintype.bench.measurement import BARS, Comparison, Report, measurement
from tintype.bench.options import Folder, Names, NewFolder, PictureSize, Size, Sizes, command_help, several
from tintype.bench.peers import SDCPP, float_bundle
from tintype.bench.rates import STAGES, graph_stage, picture_stages, tried_layers
from tintype.bench.runner import Peer, Schedule
from tintype.memory.budget import parse_memory

REFERENCE = "onnxruntime-f32"
EXACT, BALANCED = "tintype-exact", "tintype-balanced"
WITHIN = "tintype-within"  # exact, within a budget of memory
COMPILED = "torch.compile"
MAPPED = "tintype-mapped"  # exact, without larger weights (Winograd's) and prepacked copies: the one to open fast
# The worker, bundle, source of weights, and exactness or precision of each contestant, in the forms that `make` leaves.
SOURCES: dict[str, tuple[str, str, str, str | None]] = {
    "openvino-f32": ("openvino", "fp32", "openvino-f32", None),
    "openvino-bf16": ("openvino", "fp32", "openvino-f32", "bf16"),  # what it takes by itself where a processor has it
    "openvino-int8": ("openvino", "fp32", "openvino-int8", None),
    REFERENCE: ("onnxruntime", "fp32", "checkpoint", None),
    SDCPP: (SDCPP, "fp32", "sdcpp", None),
    EXACT: ("tintype", "fp32", "checkpoint", "exact"),
    WITHIN: ("tintype", "fp32", "checkpoint", "exact"),
    MAPPED: ("tintype", "fp32", "checkpoint", "exact"),
    BALANCED: ("tintype", "int8", "checkpoint", "balanced"),
    "diffusers": ("diffusers", "fp32", "checkpoint", None),
    COMPILED: ("diffusers", "fp32", "checkpoint", None),
}
INT8 = ("openvino-int8", BALANCED)  # whose products are of integers, most of them
ROLES = {"unet": "denoiser", "vae": "vae_decoder"}
PARTS = ("checkpoint", "fp32", "int8", "openvino-f32", "openvino-int8", "sdcpp")
GRAPH_PEERS = ("openvino-f32", "openvino-bf16", "openvino-int8", REFERENCE)
PICTURE_PEERS = ("openvino-f32", "openvino-int8", SDCPP, "diffusers", COMPILED)
SIZES = (Size(512, 512), Size(512, 768), Size(384, 640))
EXACTNESS = ("exact", "balanced")
FEW_REQUESTS = 3  # of such pictures, in each round
FEW_STEPS = 4  # at most: pictures whose first one counts too, see `picture`
ONE_STEP = {"num_inference_steps": 1, "projected_steps": None}

Exactness = Annotated[Names, several(EXACTNESS)]
Fewer = Annotated[int | None, click.IntRange(2), "Fewer, then projected: of every peer, or of stable-diffusion.cpp."]


@click.group(help=command_help(__doc__))
def sd15() -> None:
    pass


_measurement = functools.partial(measurement, patience=60.0, group=sd15)


def sd15_job(folder: Path, name: str, size: Size, threads: int | None, **fields: Any) -> Job:
    """A contestant's job; the size is pixels, width first."""
    _, bundle, source, exactness = SOURCES[name]
    model = float_bundle(folder) if bundle == "fp32" else folder / bundle
    return Job(
        model=str(model), checkpoint=str(folder / source), width=size.width, height=size.height,
        threads=threads, exactness=exactness, sampler="euler", **fields,
    )  # fmt: skip


def graph_contestants(
    folder: Path, graph: str, size: Size, *, exactness: Exactness = EXACTNESS,
    peers: Annotated[Names, several(GRAPH_PEERS)] = GRAPH_PEERS, threads: int | None = 2,
    calls: Annotated[int, "Timed in each round."] = 2,
) -> dict[str, Peer]:  # fmt: skip
    """Every runtime with one graph, ours of builds that are timed. Two calls warm up: pools of memory take their final
    size in them."""
    ours = [*(f"tintype-{each}" for each in exactness), *([MAPPED] if graph == "unet" and "exact" in exactness else [])]
    contestants = {}
    for name in (*peers, *ours):
        job = sd15_job(folder, name, size, threads, role=ROLES[graph], mapped=name == MAPPED, timed=True)
        timed: dict[str, Any] = {"warm_ups": [{}] * 2, "requests": [{}] * calls}
        contestants[name] = Peer(SOURCES[name][0], job, opens_cold=name in ours, **timed)
    return contestants


def measure_graph(graph: str, contestants: Mapping[str, Peer], schedule: Schedule, scratch: Path) -> dict[str, Any]:
    """A part with what was tried for each layer, and what of the machine's own rates a call reaches."""
    some = next(iter(contestants.values())).job
    near = {name: REFERENCE for name in contestants if REFERENCE in contestants and name != REFERENCE}
    name, stage = STAGES[ROLES[graph]], graph_stage(some)
    part = Comparison(
        contestants=contestants,
        near=near,
        ratios=(("seconds", "openvino-f32"), ("seconds", "openvino-int8")),
        bars=[bar for bar in BARS[f"sd15 {graph}"] if near or bar.figure != "psnr_db"],
        stages={name: stage},
        threads=some.threads,
        int8=INT8,
    ).run(schedule, scratch)
    for figures in part["peers"].values():
        figures["gflops"] = figures["shares"][name]["gflops"]
    ours = {name: peer.job for name, peer in contestants.items() if peer.kind == "tintype"}
    operations = {operator: round(number / 1e9, 2) for operator, number in stage.operations.items()}
    tried = {name: tried_layers(job, stage, part["rates"]) for name, job in ours.items()}
    return {**part, "gigaoperations": operations, "tried": tried}


def picture_contestants(
    folder: Path, *, exactness: Exactness = EXACTNESS,
    size: Annotated[Size, PictureSize(), "Width x height."] = SIZES[0], num_inference_steps: int = 20,
    guidance_scale: Annotated[float, "1 is none, as of few-step models."] = 7.5,
    decoder: Annotated[str, click.Choice(("full", "tiny"))] = "full",
    peers: Annotated[Names, several(PICTURE_PEERS)] = PICTURE_PEERS, measured_steps: Fewer = None,
    sdcpp_steps: Fewer = None, threads: int | None = 2,
    budget: Annotated[str | None, "Of memory, as in 2300MiB: adds Tintype within it, exact."] = None,
) -> dict[str, Peer]:  # fmt: skip
    """Every runtime with whole pictures, each of other words and saved, after one of a single step; ours of builds that
    are timed, but within a budget of what it plans. Of few steps the one before is whole too, and tells what the first
    takes with loading.

    measured_steps: fewer for every peer, and sdcpp_steps for stable-diffusion.cpp; times are projected. A warm-up of
    that would cost minutes and gain nothing: it keeps no pools or caches. What others compile is kept in the folder's
    cache, and made before. Raises RequestError where the budget is no size.
    """
    if budget:
        parse_memory(budget)
    contestants, few = {}, num_inference_steps <= FEW_STEPS
    for name in (*peers, *(f"tintype-{each}" for each in exactness), *([WITHIN] if budget else [])):
        steps = (sdcpp_steps if name == SDCPP else None) or measured_steps or num_inference_steps
        job, kind = sd15_job(
            folder, name, size, threads, guidance_scale=guidance_scale, num_inference_steps=steps, whole=True,
            projected_steps=num_inference_steps, decoder=decoder, compile="default" if name == COMPILED else None,
            memory=budget if name == WITHIN else None,
        ), SOURCES[name][0]  # fmt: skip
        made_by = plan_arguments if job.memory else build_arguments
        contestants[name] = Peer(
            kind, job, warm_ups=({},) if few else () if name == SDCPP else (ONE_STEP,),
            requests=[{}] * (FEW_REQUESTS if few else 1), build=made_by(job) if kind == "tintype" else (),
            opens_cold=kind == "openvino" or name == COMPILED,
            environment={"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache" / "inductor")},
        )  # fmt: skip
    return contestants


def picture_comparison(contestants: Mapping[str, Peer]) -> Comparison:
    ratios, some = [("seconds", reference) for reference in PICTURE_PEERS], next(iter(contestants.values())).job
    shares: dict[str, Any] = {"stages": picture_stages(some), "threads": some.threads, "int8": INT8}
    bars = BARS["sd15 few steps" if (some.projected_steps or 0) <= FEW_STEPS else "sd15 picture"]
    bars = [*bars, *(replace(bar, who=WITHIN) for bar in bars if bar.who == EXACT and bar.over)]
    return Comparison(contestants=contestants, ratios=ratios, bars=bars, **shares)


@_measurement("sd15-make", rounds=1, threads=None)
def make(
    report: Report, folder: NewFolder, parts: Annotated[Names, several(PARTS)] = PARTS,
    shape: Annotated[str, click.Choice(("sd15", "sd-turbo", "sdxs", "sdxl-turbo", "tiny", "tiny-xl"))] = "sd15",
    damage_seconds: Annotated[float, "What export may take to see int8's cost."] = 1.0,
) -> None:  # fmt: skip
    """Make the weights in every runtime's form; what is there already is kept. Tells what each took, exports too."""
    from tintype.bench.make_sdxl import make_parts  # torch, which nothing else here needs

    report.judge("make", make_parts(folder, parts, damage_seconds, shape), BARS["sd15 make"])


@_measurement("sd15-graphs", passed_on=graph_contestants)
def graphs(
    report: Report, folder: Folder, graphs: Annotated[Names, several(ROLES)] = tuple(ROLES),
    sizes: Sizes = SIZES, **chosen: Any,
) -> None:  # fmt: skip
    """Time one call of each graph at each size, batch 1."""
    for graph, size in itertools.product(graphs, sizes):
        contestants = graph_contestants(folder, graph, size, **chosen)
        part = measure_graph(graph, contestants, report.schedule, report.scratch)
        report.add(f"{graph} {size}", part)


@_measurement("sd15-picture", passed_on=picture_contestants)
def picture(report: Report, folder: Folder, **chosen: Any) -> None:
    """Time whole pictures; a latent consistency model's are of 4 steps without guidance. Of at most 4 the first one of
    a process counts too, from the start of loading, and each figure is held against the best peer's."""
    report.compare("picture", picture_comparison(picture_contestants(folder, **chosen)))
