"""How near two devices' pictures are: the same requests on each of them, postcard, several prompts and seeds.

    tintype bench parity DEVICE [--prompts 12] [--seeds 1] [--num-inference-steps 20]

Each is drawn on the device as the bundle asks for it, twice, since the same bytes are promised. The processor's own
`balanced` picture is compared too, which says what rounding to 8 bits costs.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import tintype
from tintype.bench.comparison import Bar, Comparison, outside_bars
from tintype.bench.job import PROMPT, Job
from tintype.bench.measurement import Report, count_option, measurement
from tintype.bench.peers import ROWS, graph_options
from tintype.bench.runner import Changes, Peer, Schedule
from tintype.cli.options import PROVIDERS
from tintype.engine import open_role, resolve_provider
from tintype.models.postcard.gallery import PROMPTS, SEED

# Prompts that postcard is undecided about: a small difference in the first steps makes another picture.
UNDECIDED = ("a city at night in the rain", "a snowy mountain with a cabin", "a desert with a cactus at dusk")
PICTURE_GATE_DB = 45.0
SAME_DB = 200.0  # of equal arrays


@measurement(
    "parity",
    click.argument("device", type=click.Choice(PROVIDERS[1:])),
    click.option("--prompts", type=click.IntRange(1, len(PROMPTS)), default=len(PROMPTS), show_default=True),
    count_option("--seeds", default=1, help="Pictures of each prompt."),
    count_option("--num-inference-steps", default=20),
    rounds=1,
    threads=None,
    help=__doc__,
)
def main(report: Report, device: str, prompts: int, seeds: int, num_inference_steps: int, threads: int | None) -> None:
    resolve_provider(device)
    report.names.append(device)
    job = Job(num_inference_steps=num_inference_steps, threads=threads, guidance_scale=None)
    asked = (*PROMPTS[:prompts], *UNDECIDED)
    report.compare("parity", comparison(device, asked, seeds, job), prompts=asked)


def comparison(device: str, prompts: Sequence[str], seeds: int, job: Job) -> Comparison:
    """Pictures in the order of the prompts, seeds within: near to the processor's, and to the device's own again."""
    requests = [{"prompt": prompt, "seed": SEED + number} for prompt in prompts for number in range(seeds)]
    drawn, again, processor, balanced = f"on {device}", f"on {device} again", "the processor", "the processor, balanced"
    return Comparison(
        contestants={
            processor: _peer(job, requests, device="cpu"),
            balanced: _peer(job, requests, device="cpu", exactness="balanced"),
            drawn: _peer(job, requests, device=device),
            again: _peer(job, requests, device=device),
        },
        near={drawn: processor, balanced: processor, again: drawn},
        bars=[_near_bar(drawn), _same_bar(again), *outside_bars(drawn)],
    )


def _peer(
    job: Job, requests: Sequence[Changes], environment: Mapping[str, str] | None = None, **fields: str | None
) -> Peer:
    job = dataclasses.replace(job, **fields)  # type: ignore[arg-type]
    return Peer("tintype", job, warm_ups=(), requests=requests, environment=environment)


def _near_bar(name: str) -> Bar:
    what = f"{name}: dB to the processor, the farthest picture"
    return Bar(name, "psnr_db", statistic="smallest", at_least=PICTURE_GATE_DB, what=what)


def _same_bar(name: str) -> Bar:
    return Bar(name, "psnr_db", statistic="smallest", at_least=SAME_DB, what=f"{name}: the same bytes, which is 200 dB")


def check(device: str, *, steps: int = 20, size: int | None = None) -> dict[str, Any]:
    """Whether a device draws postcard's picture as the processor does, exactly, and the same bytes twice, with heavy
    nodes on it. steps, size: smaller than postcard's own, to try it."""
    resolve_provider(device)
    job = Job(num_inference_steps=steps, width=size, height=size, guidance_scale=None)
    requests = [{"prompt": PROMPT, "seed": SEED}]
    peers = {"the processor": _peer(job, requests, device="cpu", exactness="exact")}
    near: dict[str, str] = {}
    bars = []
    for exactness in ("exact", "balanced"):
        again, uncaptured = f"{exactness} again", f"{exactness} without CUDA graphs"
        peers[exactness] = peers[again] = _peer(job, requests, device=device, exactness=exactness)
        near |= {exactness: "the processor", again: exactness}
        bars.append(_near_bar(exactness))
        # Balanced builds on CUDA normalize with atomic sums; there the figure is told and not judged.
        bars += [_same_bar(again)] if exactness == "exact" else []
        if device == "cuda":
            off = {"TINTYPE_CUDA_GRAPHS": "0"}
            peers[uncaptured] = _peer(job, requests, off, device=device, exactness=exactness)
            near[uncaptured] = exactness
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
        part = Comparison(contestants=peers, near=near, bars=bars).run(Schedule(rounds=1), Path(scratch))
    return {**part, "placement": {exactness: placement(device, exactness) for exactness in ("exact", "balanced")}}


def placement(device: str, exactness: str) -> dict[str, dict[str, int]]:
    """By role of a small guided picture, nodes by provider. Opening refuses a heavy node off the device."""
    bundle = tintype.open_bundle("postcard")
    side, nodes = bundle.manifest.size.minimum, {}
    for role, rows in ROWS.items():
        job = Job(role=role, width=side, height=side, batch_size=rows, exactness=exactness)
        with open_role(bundle, role, resolve_provider(device), options=graph_options(job)) as session:
            nodes[role] = {name: sum(counts.values()) for name, counts in session.placement.nodes.items()}
    return nodes
