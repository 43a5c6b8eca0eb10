"""One call of the UNet and of the VAE's decoder, in each runtime, on the same weights: the bars of single graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tintype.bench.bars import RatioBar, verdict
from tintype.bench.job import GraphJob, RatesJob
from tintype.bench.peer_graphs import graph_dims
from tintype.bench.rates import PRODUCTS
from tintype.bench.tried import limits, tried_layers
from tintype.bench.turns import Seat, Taken, take_turns
from tintype.bundle import open_bundle
from tintype.engine.build.graph import graph_operations
from tintype.export import psnr_db

ROLES = {"unet": "denoiser", "vae": "vae_decoder"}
REFERENCE = "onnxruntime-f32"
PEERS = ("openvino-f32", "openvino-int8", REFERENCE)
EXACT_DB = 70.0
MAPPED = "tintype-mapped"  # exact, without larger weights (Winograd's) and prepacked copies: the one to open fast
OPEN_SECONDS, OPEN_BYTES = 1.0, 300 * 2**20
WARM_UPS = 2  # calls: pools of memory take their final size in the first two

RATIO_BARS = {
    "unet": (
        RatioBar("tintype-exact", "openvino-f32", 0.70),
        RatioBar("tintype-balanced", "openvino-f32", 0.50),
        RatioBar("tintype-balanced", "openvino-int8", 1.0),
    ),
    "vae": (
        RatioBar("tintype-exact", "openvino-f32", 0.65),
        RatioBar("tintype-balanced", "openvino-int8", 1.0),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphsPlan:
    """What is measured; sizes are pixels, width first."""

    folder: Path
    graphs: tuple[str, ...] = tuple(ROLES)
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (512, 768), (384, 640))
    exactness: tuple[str, ...] = ("exact", "balanced")
    peers: tuple[str, ...] = PEERS
    rounds: int = 3
    calls: int = 2  # timed in each round
    threads: int | None = 2
    lock: Path | None = None
    patience_seconds: float = 0.0  # for each call to be had without other processes disturbing it
    pixels_a_cell: int = 8
    embedding: int = 768  # numbers a token


def measure_graphs(plan: GraphsPlan) -> dict[str, Any]:
    """A table for each graph and size, with the bars, what was tried for each layer, and the machine's own rates."""
    report: dict[str, Any] = {}
    for graph in plan.graphs:
        for width, height in plan.sizes:
            report[f"{graph} {width}x{height}"] = _measure_one(plan, graph, width, height)
    return report


def _measure_one(plan: GraphsPlan, graph: str, width: int, height: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
        seats = seats_of(plan, graph, width, height, Path(scratch))
        taken = take_turns(seats, plan.rounds, plan.calls, plan.lock, plan.patience_seconds)
        rates = taken.pop("rates").figures()
        outputs = {path.stem: np.load(path) for path in Path(scratch).glob("*.npy")}
    table = tabulate(taken, outputs)
    counts = count_operations(graph_job(seats[f"tintype-{plan.exactness[0]}"])) if plan.exactness else {}
    for figures in table.values() if counts else ():
        figures["gflops"] = round(sum(counts.values()) / figures["seconds"]["median"] / 1e9, 1)
    tried = {name: tried_layers(graph_job(seats[name])) for name in table if seats[name].opens_cold}
    return {
        "peers": table,
        "tried": {
            name: {"limits": limits(graph_job(seats[name]), layers, counts, rates), "layers": layers}
            for name, layers in tried.items()
        },
        "gigaoperations": {operator: round(number / 1e9, 2) for operator, number in counts.items()},
        "rates": {name: value for name, value in rates.items() if name.endswith("/s")},
        "bars": judge(graph, table),
    }


def seats_of(plan: GraphsPlan, graph: str, width: int, height: int, outputs: Path) -> dict[str, Seat]:
    """Every runtime's job for one graph at one size, and the rates."""
    sources = {
        "openvino-f32": ("openvino", "openvino-f32", None),
        "openvino-int8": ("openvino", "openvino-int8", None),
        REFERENCE: ("onnxruntime", "fp32", None),
        "tintype-exact": ("tintype", "fp32", "exact"),
        MAPPED: ("tintype", "fp32", "exact"),
        "tintype-balanced": ("tintype", "int8", "balanced"),
    }
    ours = [f"tintype-{exactness}" for exactness in plan.exactness]
    if graph == "unet" and "exact" in plan.exactness:
        ours.append(MAPPED)
    seats = {"rates": Seat("rates", RatesJob(products=PRODUCTS, threads=plan.threads))}
    for name in (*plan.peers, *ours):
        runtime, folder, exactness = sources[name]
        job = GraphJob(
            runtime=runtime,
            model=str(plan.folder / folder),
            role=ROLES[graph],
            height=height // plan.pixels_a_cell,
            width=width // plan.pixels_a_cell,
            embedding=plan.embedding,
            threads=plan.threads,
            exactness=exactness,
            mapped=name == MAPPED,
            output=str(outputs / f"{name}.npy"),
        )
        seats[name] = Seat("graph", job, warm_ups=WARM_UPS, opens_cold=runtime == "tintype")
    return seats


def graph_job(seat: Seat) -> GraphJob:
    if not isinstance(seat.job, GraphJob):
        raise TypeError(f"{seat.kind} runs no graph")
    return seat.job


def count_operations(job: GraphJob) -> dict[str, int]:
    """What one call of the job's canonical graph computes, by operator; the same for every runtime."""
    return graph_operations(open_bundle(job.model).graph_path(job.role), graph_dims(job))


def tabulate(taken: Mapping[str, Taken], outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each peer's figures, its ratios to OpenVINO, and how near its answer is to plain ONNX Runtime's in fp32."""
    table = {name: turns.figures() for name, turns in taken.items()}
    for name, figures in table.items():
        for reference in ("openvino-f32", "openvino-int8"):
            if reference in table:
                ratio = figures["seconds"]["median"] / table[reference]["seconds"]["median"]
                figures[f"ratio_to_{reference}"] = round(ratio, 4)
        if name != REFERENCE and name in outputs and REFERENCE in outputs:
            figures["psnr_db"] = round(psnr_db(outputs[REFERENCE], outputs[name]), 2)
    return table


def judge(graph: str, table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bars of one graph, as far as their peers were measured."""
    medians = {name: figures["seconds"]["median"] for name, figures in table.items()}
    found = [judged for bar in RATIO_BARS[graph] if (judged := bar.judge(medians)) is not None]
    for name in ("tintype-exact", MAPPED):
        if name in table and REFERENCE in table:
            near = table[name].get("psnr_db")
            found.append(verdict(f"{name}, dB to the canonical graph", near, at_least=EXACT_DB))
    if MAPPED in table:
        mapped = table[MAPPED]
        what = f"{MAPPED} (exact, no Winograd)"
        found.append(verdict(f"{what}, seconds to open", mapped["load_seconds"]["median"], at_most=OPEN_SECONDS))
        opened = mapped["opened_anonymous_bytes"]
        found.append(verdict(f"{what}, anonymous bytes once open", opened, at_most=OPEN_BYTES))
    return found


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """A line a peer."""
    said = []
    for title, part in report.items():
        for name, figures in part["peers"].items():
            ratio, near = figures.get("ratio_to_openvino-f32"), figures.get("psnr_db")
            said.append(
                f"{title:<13} {name:<17} {figures['seconds']['median']:7.3f} s"
                + (f"  {ratio:.2f}x OpenVINO f32" if ratio is not None else "")
                + (f"  {near:.1f} dB" if near is not None else "")
                + (f"  peak {figures['peak_rss_bytes'] / 2**30:.2f} GiB" if figures["peak_rss_bytes"] else "")
            )
    return said


def all_bars(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every bar of a report, with its graph and size in front."""
    return [{**bar, "what": f"{title}: {bar['what']}"} for title, part in report.items() for bar in part["bars"]]
