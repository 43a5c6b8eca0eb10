"""How near two devices draw, and how fast a GPU does beside diffusers."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import click

import tintype
from tintype.bench.job import PROMPT, Job
from tintype.bench.measurement import BARS, Bar, Comparison, Report, measurement
from tintype.bench.options import Names, NewFolder, several
from tintype.bench.peers import graph_options, picture_rows
from tintype.bench.process import run_process, tintype_command, used_bytes
from tintype.bench.runner import Changes, Peer, Schedule
from tintype.bench.shapes import SHAPES
from tintype.cli.options import PROVIDERS
from tintype.engine import gpus, open_role, resolve_provider
from tintype.models.postcard.gallery import PROMPTS, SEED

# Prompts that postcard is undecided about: a small difference in the first steps makes another picture.
UNDECIDED = ("a city at night in the rain", "a snowy mountain with a cabin", "a desert with a cactus at dusk")
EXACTNESS = ("exact", "balanced")
NEAR = "{}: dB to the processor, the farthest picture", 45.0
SAME = "{}: the same bytes, which is 200 dB", 200.0
OURS, COMPILED, PLAIN = "tintype", "torch.compile", "diffusers"
PEERS = (PLAIN, COMPILED)
FIGURES = ("seconds_a_step", "seconds", "device_peak_bytes")


@measurement("parity", rounds=1, threads=None, num_inference_steps=20)
def parity(
    report: Report, device: Annotated[str, click.argument("device", type=click.Choice(PROVIDERS[1:]))], job: Job,
    prompts: Annotated[int, click.IntRange(1, len(PROMPTS))] = len(PROMPTS),
    seeds: Annotated[int, "Pictures of each prompt."] = 1,
) -> None:  # fmt: skip
    """How near two devices' pictures are: the same requests on each of them, postcard, several prompts and seeds.

        tintype bench parity DEVICE [--prompts 12] [--seeds 1] [--num-inference-steps 20]

    Each is drawn on the device as the bundle asks for it, twice, since the same bytes are promised. The processor's own
    `balanced` picture is compared too, which says what rounding to 8 bits costs.
    """
    resolve_provider(device)
    report.names.append(device)
    asked = (*PROMPTS[:prompts], *UNDECIDED)
    report.compare("parity", parity_comparison(device, asked, seeds, job), prompts=asked)


def parity_comparison(device: str, prompts: Sequence[str], seeds: int, job: Job) -> Comparison:
    """Pictures in the order of the prompts, seeds within: near to the processor's, and to the device's own again."""
    requests = [{"prompt": prompt, "seed": SEED + number} for prompt in prompts for number in range(seeds)]
    drawn, again, processor = f"on {device}", f"on {device} again", "the processor"
    contestants = {
        processor: _peer(job, requests, "cpu"),
        "the processor, balanced": _peer(job, requests, "cpu", exactness="balanced"),
        drawn: _peer(job, requests, device),
        again: _peer(job, requests, device),
    }
    near = {drawn: processor, "the processor, balanced": processor, again: drawn}
    outside = Bar(drawn, "outside_share", at_most=0.03, what=f"{drawn}, share of the loop outside the graph")
    bars = [_bar(drawn, *NEAR), _bar(again, *SAME), outside]
    return Comparison(contestants=contestants, near=near, bars=bars)


def _peer(job: Job, requests: Sequence[Changes], device: str, captures: bool = True, **fields: Any) -> Peer:
    """Pictures with the model's own guidance. captures: on CUDA, graphs of a build of one shape."""
    job = dataclasses.replace(job, guidance_scale=None, device=device, **fields)
    environment = None if captures else {"TINTYPE_CUDA_GRAPHS": "0"}
    return Peer("tintype", job, warm_ups=(), requests=requests, environment=environment)


def _bar(name: str, what: str, least_db: float) -> Bar:
    return Bar(name, "psnr_db", statistic="smallest", at_least=least_db, what=what.format(name))


def check(device: str, *, steps: int = 20, size: int | None = None) -> Comparison:
    """Whether a device draws postcard's picture as the processor does, exactly, and the same bytes twice. steps, size:
    smaller than postcard's own, to try it."""
    resolve_provider(device)
    job, requests = Job(num_inference_steps=steps, width=size, height=size), [{"prompt": PROMPT, "seed": SEED}]
    peers, near = {"the processor": _peer(job, requests, "cpu", exactness="exact")}, dict[str, str]()
    for exactness in EXACTNESS:
        again, uncaptured = f"{exactness} again", f"{exactness} without CUDA graphs"
        peers[exactness] = peers[again] = _peer(job, requests, device, exactness=exactness)
        near |= {exactness: "the processor", again: exactness}
        if device == "cuda":
            peers[uncaptured] = _peer(job, requests, device, captures=False, exactness=exactness)
            near[uncaptured] = exactness
    # Balanced builds on CUDA normalize with atomic sums; whether they are the same again is told and not judged.
    bars = [_bar("exact", *NEAR), _bar("exact again", *SAME), _bar("balanced", *NEAR)]
    return Comparison(contestants=peers, near=near, bars=bars)


def placement(device: str, exactness: str) -> dict[str, dict[str, int]]:
    """By role of a small guided picture, nodes by provider. Opening refuses a heavy node off the device."""
    bundle = tintype.open_bundle("postcard")
    side, nodes = bundle.manifest.size.minimum, {}
    for role, rows in picture_rows(Job()).items():
        job = Job(role=role, width=side, height=side, batch_size=rows, exactness=exactness)
        with open_role(bundle, role, resolve_provider(device), options=graph_options(job)) as session:
            nodes[role] = {name: sum(counts.values()) for name, counts in session.placement.nodes.items()}
    return nodes


def peers_of(
    folder: Path, name: str, *, device: Annotated[str, "Tintype's provider and torch's device."] = "cuda",
    peers: Annotated[Names, several(PEERS)] = PEERS, pictures: Annotated[int, "Timed in each round."] = 2,
    steps: Annotated[int | None, click.IntRange(2), "In place of each shape's own."] = None,
    compile_mode: Annotated[str, "Of torch.compile."] = "max-autotune", threads: int | None = None,
) -> dict[str, Peer]:  # fmt: skip
    """Every contestant for one shape."""
    shape = SHAPES[name]
    job = Job(
        model=str(folder / name), num_inference_steps=steps or shape.steps, width=shape.side,
        height=shape.side, guidance_scale=shape.guidance_scale, sampler=shape.sampler, threads=threads, device=device,
        exactness="balanced",
    )  # fmt: skip
    jobs = {OURS: job, PLAIN: job, COMPILED: dataclasses.replace(job, compile=compile_mode)}
    warm_ups: Sequence[Changes] = [{"num_inference_steps": 2}]
    return {
        peer: Peer(
            OURS if peer == OURS else PLAIN, jobs[peer], warm_ups=warm_ups, requests=[{}] * pictures, opens_cold=True
        )
        for peer in jobs
        if peer in (OURS, *peers)
    }


def gpu_comparison(shape: str, contestants: Mapping[str, Peer]) -> Comparison:
    """Of one shape; of those without bars of their own the device's memory is judged."""
    ratios = [(figure, peer) for peer in PEERS for figure in FIGURES]
    return Comparison(contestants=contestants, ratios=ratios, bars=BARS.get(f"gpu {shape}", BARS["gpu"]))


@measurement("gpu", threads=None, passed_on=peers_of)
def gpu(
    report: Report, folder: NewFolder,
    shapes: Annotated[Names, several(SHAPES)] = ("sd15", "sdxl", "sdxl-turbo"),
    checks: Annotated[bool, "Compare postcard with the processor's."] = True, **chosen: Any,
) -> None:  # fmt: skip
    """Tintype on a GPU beside diffusers in float16, with SDPA and with torch.compile, on random weights of real shapes.

        make bench-gpu                                # an environment of its own, then everything below; hours, 30 GB
        tintype bench gpu FOLDER [--shapes sd15,sdxl,sdxl-turbo] [--device cuda]
        tintype bench gpu FOLDER --shapes tiny --device cpu --peers diffusers    # to try it without a GPU

    Nothing of this has been run on a GPU yet.
    """
    folder = folder.resolve()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    report["gpu"] = {"gpus": [dataclasses.asdict(card) for card in gpus()], "used_bytes_before": used_bytes()}
    if checks:
        click.echo(f"comparing {chosen['device']} with the processor", err=True)
        placements = {exactness: placement(chosen["device"], exactness) for exactness in EXACTNESS}
        part = check(chosen["device"]).run(Schedule(rounds=1), report.scratch)
        report.add("checks", part, placement=placements)
    for cache in ("cache", "inductor"):  # so that the first picture is a first picture
        shutil.rmtree(folder / cache, ignore_errors=True)
    for shape in shapes:
        if not (folder / shape).is_dir():
            click.echo(f"making {folder / shape}", err=True)
            run_process(tintype_command("bench", "make-sdxl", str(folder / shape), "--shape", shape))
        report.compare(shape, gpu_comparison(shape, peers_of(folder, shape, **chosen)))
