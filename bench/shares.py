"""What of the machine's own rates each stage of a picture reaches: products in GFLOP/s, a copy in GB/s.

Both are of the canonical graph, the same for every runtime: kernels that compute with fewer operations (Winograd's) may
be above 1, and one that keeps values in a cache moves fewer bytes. The rates are measured in turn with what is timed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tintype.bench.figures import Table, figure_value
from tintype.bench.job import Job
from tintype.bench.peers import graph_dims
from tintype.bench.runner import Peer
from tintype.bundle import open_bundle
from tintype.engine import graph_bytes, graph_operations

RATES = "rates"  # the contestant that measures them
# Rows, inner, columns of linear layers in SD 1.5 at 512x512, from the first level to the last.
PRODUCTS = ((4096, 320, 320), (4096, 320, 1280), (4096, 1280, 320), (1024, 640, 2560), (256, 1280, 5120))
STAGES = {"text_encoder": "encode", "text_encoder_2": "encode", "denoiser": "denoise", "vae_decoder": "decode"}
PICTURE_FIGURES = {"encode": "encode_seconds", "denoise": "seconds_a_step", "decode": "decode_seconds"}


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass of a stage. figure: which of a contestant's are its seconds. operations: by operator."""

    figure: str
    operations: Mapping[str, int]
    moved_bytes: int


def graph_stage(job: Job, figure: str = "seconds") -> Stage:
    """A call of a job's graph."""
    graph, dims = open_bundle(job.model).graph_path(job.role or "denoiser"), graph_dims(job)
    return Stage(figure, graph_operations(graph, dims), graph_bytes(graph, dims))


def picture_stages(job: Job) -> dict[str, Stage]:
    """Of a picture: all words, a step, a decode; with guidance words and steps are of two rows."""
    manifest, found = open_bundle(job.model).manifest, dict[str, Stage]()
    scale = manifest.default_request.guidance_scale if job.guidance_scale is None else job.guidance_scale
    for role in filter(STAGES.get, manifest.graph_names):
        rows, name = 1 if scale == 1.0 or role == "vae_decoder" else 2, STAGES[role]
        stage = graph_stage(dataclasses.replace(job, role=role, batch_size=rows), PICTURE_FIGURES[name])
        if other := found.get(name):  # XL's second text encoder
            operations = dict(Counter(stage.operations) + Counter(other.operations))
            stage = Stage(stage.figure, operations, stage.moved_bytes + other.moved_bytes)
        found[name] = stage
    return found


def rates_peer(threads: int | None, **fields: Any) -> Peer:
    return Peer(RATES, Job(products=PRODUCTS, threads=threads), **fields)


def product_rate(rates: Table, precision: str, statistic: str = "median") -> float:
    """GFLOP/s of the product that is the fastest."""
    return max(each[statistic] for name, each in rates.items() if name.startswith(precision))


def add_shares(
    table: Mapping[str, dict[str, Any]], stages: Mapping[str, Stage], rates: Table, int8: Collection[str] = ()
) -> None:
    """Give each contestant its `shares` by stage, as far as it tells the stage's seconds. int8: whose products are of
    integers; theirs are held against the rate of such."""
    copied = rates["copy GB/s"]["median"]
    for who, figures in table.items():
        precision = "int8" if who in int8 else "fp32"
        rate = product_rate(rates, precision)
        for name, stage in stages.items():
            if seconds := figure_value(figures.get(stage.figure)):
                gflops = sum(stage.operations.values()) / seconds / 1e9
                figures.setdefault("shares", {})[name] = {
                    "gflops": round(gflops, 1),
                    "of_products": round(gflops / rate, 4),
                    "products_gflops": rate,
                    "precision": precision,
                    "of_copy": round(stage.moved_bytes / seconds / copied / 1e9, 4),
                    "copy_gbytes": copied,
                }
