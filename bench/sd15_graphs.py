"""One call of the UNet and of the VAE's decoder, in each runtime, on the same weights: the bars of single graphs."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tintype.bench.figures import Table, Verdict, add_ratios, judge_ratios, psnr_db, verdict
from tintype.bench.job import GraphJob, RatesJob
from tintype.bench.peer_graphs import graph_build, graph_dims
from tintype.bench.peer_rates import PRODUCTS
from tintype.bench.runner import Measured, Peer, Schedule, measure
from tintype.bundle import open_bundle
from tintype.cli.build import by_kind
from tintype.engine import AS_IS, graph_bytes, graph_operations, read_report

ROLES = {"unet": "denoiser", "vae": "vae_decoder"}
REFERENCE = "onnxruntime-f32"
PEERS = ("openvino-f32", "openvino-int8", REFERENCE)
EXACT_DB = 70.0
MAPPED = "tintype-mapped"  # exact, without larger weights (Winograd's) and prepacked copies: the one to open fast
OPEN_SECONDS, OPEN_BYTES = 1.0, 300 * 2**20
MIB = 2**20

# Runtime, folder and exactness of each contestant.
SOURCES: dict[str, tuple[str, str, str | None]] = {
    "openvino-f32": ("openvino", "openvino-f32", None),
    "openvino-int8": ("openvino", "openvino-int8", None),
    REFERENCE: ("onnxruntime", "fp32", None),
    "tintype-exact": ("tintype", "fp32", "exact"),
    MAPPED: ("tintype", "fp32", "exact"),
    "tintype-balanced": ("tintype", "int8", "balanced"),
}
RATIO_BARS = {
    "unet": (
        ("tintype-exact", "openvino-f32", 0.70),
        ("tintype-balanced", "openvino-f32", 0.50),
        ("tintype-balanced", "openvino-int8", 1.0),
    ),
    "vae": (("tintype-exact", "openvino-f32", 0.65), ("tintype-balanced", "openvino-int8", 1.0)),
}
COLUMNS = {
    "seconds": "{:7.3f} s",
    "ratio_to_openvino-f32": "{:.2f}x OpenVINO f32",
    "psnr_db": "{:.1f} dB",
    "peak_rss_bytes": "peak {:,.0f} MiB",
}


def graph_jobs(
    folder: Path, graph: str, size: tuple[int, int], *, exactness: Sequence[str] = ("exact", "balanced"),
    peers: Sequence[str] = PEERS, threads: int | None = 2, pixels_a_cell: int = 8, embedding: int = 768,
) -> dict[str, GraphJob]:  # fmt: skip
    """Every runtime's job for one graph; the size is pixels, width first. Ours are of builds that are timed."""
    ours = [f"tintype-{each}" for each in exactness]
    if graph == "unet" and "exact" in exactness:
        ours.append(MAPPED)
    return {
        name: GraphJob(
            runtime=runtime, model=str(folder / source), role=ROLES[graph], height=size[1] // pixels_a_cell,
            width=size[0] // pixels_a_cell, embedding=embedding, threads=threads, exactness=each, mapped=name == MAPPED,
            timed=True,
        )
        for name in (*peers, *ours)
        for runtime, source, each in [SOURCES[name]]
    }  # fmt: skip


def measure_graph(graph: str, jobs: Mapping[str, GraphJob], schedule: Schedule, calls: int) -> dict[str, Any]:
    """A table with its bars, what was tried for each layer, and the machine's own rates. calls: timed in each round."""
    ours = {name: job for name, job in jobs.items() if job.runtime == "tintype"}
    threads = next(iter(jobs.values())).threads
    rates_peer = Peer("rates", RatesJob(products=PRODUCTS, threads=threads), requests=[{}] * calls)
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
        paths = {name: Path(scratch) / f"{name}.npy" for name in jobs}
        saving = {name: dataclasses.replace(job, output=str(paths[name])) for name, job in jobs.items()}
        peers = {name: contestant(job, calls) for name, job in saving.items()}
        measured = measure({"rates": rates_peer, **peers}, schedule)
        rates = measured.pop("rates").figures()
        table = tabulate(measured, {name: np.load(path) for name, path in paths.items()})
    counts = {}
    for job in list(ours.values())[:1]:  # of the canonical graph, the same for every runtime
        counts = graph_operations(open_bundle(job.model).graph_path(job.role), graph_dims(job))
        for figures in table.values():
            figures["gflops"] = round(sum(counts.values()) / figures["seconds"]["median"] / 1e9, 1)
    layers = {name: tried_layers(job) for name, job in ours.items()}
    return {
        "peers": table,
        "tried": {
            name: {"limits": limits(ours[name], rows, counts, rates), "layers": rows} for name, rows in layers.items()
        },
        "gigaoperations": {operator: round(number / 1e9, 2) for operator, number in counts.items()},
        "rates": {name: value for name, value in rates.items() if name.endswith("/s")},
        "bars": judge(graph, table),
    }


def contestant(job: GraphJob, calls: int) -> Peer:
    """It warms up with two calls: pools of memory take their final size in them."""
    return Peer("graph", job, warm_ups=[{}] * 2, requests=[{}] * calls, opens_cold=job.runtime == "tintype")


def tabulate(measured: Mapping[str, Measured], outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each peer's figures, its ratios to OpenVINO, and how near its answer is to plain ONNX Runtime's in fp32."""
    table = {name: made.figures() for name, made in measured.items()}
    for reference in ("openvino-f32", "openvino-int8"):
        add_ratios(table, reference, f"ratio_to_{reference}")
    for name, figures in table.items():
        if name != REFERENCE and name in outputs and REFERENCE in outputs:
            figures["psnr_db"] = round(psnr_db(outputs[REFERENCE], outputs[name]), 2)
    return table


def judge(graph: str, table: Table) -> list[Verdict]:
    """The bars of one graph, as far as their peers were measured."""
    bars = judge_ratios(RATIO_BARS[graph], table)
    for name in ("tintype-exact", MAPPED):
        if name in table and REFERENCE in table:
            near = table[name].get("psnr_db")
            bars.append(verdict(f"{name}, dB to the canonical graph", near, at_least=EXACT_DB))
    if MAPPED in table:
        mapped, what = table[MAPPED], f"{MAPPED} (exact, no Winograd)"
        bars.append(verdict(f"{what}, seconds to open", mapped["load_seconds"]["median"], at_most=OPEN_SECONDS))
        opened = mapped["opened_anonymous_bytes"]
        bars.append(verdict(f"{what}, anonymous bytes once open", opened, at_most=OPEN_BYTES))
    return bars


def tried_layers(job: GraphJob) -> list[dict[str, Any]]:
    """By kind of layer, the longest first: how many there are, and what each way took on this machine when its build
    was timed."""
    rows = [_kind(members) for members in by_kind(read_report(graph_build(job)).get("choices", ()))]
    return sorted(rows, key=lambda row: -row["milliseconds_together"])


def _kind(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Layers of one kind, of which the first one's times stand for all."""
    first, chosen = members[0], members[0]["chosen"]
    return {
        "layer": first["layer"],
        "count": len(members),
        "chosen": chosen,
        "milliseconds_together": round(sum(each["ways"][chosen]["seconds"] for each in members) * 1e3, 2),
        "ways": {
            name: {
                "milliseconds": round(way["seconds"] * 1e3, 3),
                "weights_mib": round(way["weight_bytes"] / MIB, 2),
                "psnr_db": way["psnr_db"],
            }
            for name, way in sorted(first["ways"].items(), key=lambda item: item[1]["seconds"])
        },
    }


def limits(
    job: GraphJob, layers: Sequence[Mapping[str, Any]], operations: Mapping[str, int], rates: Mapping[str, Any]
) -> dict[str, float]:
    """Seconds that a call is made of, and seconds that its parts would take at the rates measured in the same run.

    operations: of the canonical graph, by operator. rates: as `peer_rates` tells them, summarized. Winograd's kernels
    compute with fewer operations than the canonical graph, and so may be below what that would take.
    """
    products = [rate for name, rate in rates.items() if name.startswith("fp32") and name.endswith("GFLOP/s")]
    moved = graph_bytes(open_bundle(job.model).graph_path(job.role), graph_dims(job))
    seconds = {
        "layers_as_chosen_seconds": sum(row["milliseconds_together"] for row in layers) / 1e3,
        "layers_as_is_seconds": sum(row["count"] * row["ways"][AS_IS]["milliseconds"] for row in layers) / 1e3,
        "bytes_moved": float(moved),
        "bytes_moved at the copy rate, seconds": moved / rates["copy GB/s"]["median"] / 1e9,
    }
    for name, figure in (("best", "largest"), ("median", "median")):
        rate = max(each[figure] for each in products)
        for operator, count in operations.items():
            seconds[f"{operator} at the {name} product rate, seconds"] = count / rate / 1e9
    return {name: round(value, 4) for name, value in seconds.items()}
