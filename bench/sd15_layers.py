"""What a call of our graphs is made of: each layer's ways as its build timed them; limits by the machine's rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tintype.bench.figures import Table
from tintype.bench.graphs import graph_build, graph_dims
from tintype.bench.job import Job
from tintype.bundle import open_bundle
from tintype.cli.build import by_kind
from tintype.engine import AS_IS, graph_bytes, graph_operations, read_report


def layer_facts(jobs: Mapping[str, Job], table: Mapping[str, dict[str, Any]], rates: Table) -> dict[str, Any]:
    """Operations of the canonical graph, the same for every runtime, and what was tried for each layer of our builds.

    jobs: ours. The table's contestants are given their `gflops`. rates: as `peer_rates` tells them, summarized.
    """
    if not jobs:
        return {}
    some = next(iter(jobs.values()))
    graph = open_bundle(some.model).graph_path(some.role or "")
    operations, moved = graph_operations(graph, graph_dims(some)), graph_bytes(graph, graph_dims(some))
    for figures in table.values():
        figures["gflops"] = round(sum(operations.values()) / figures["seconds"]["median"] / 1e9, 1)
    layers = {name: tried_layers(job) for name, job in jobs.items()}
    return {
        "gigaoperations": {operator: round(number / 1e9, 2) for operator, number in operations.items()},
        "tried": {
            name: {"limits": limits(rows, operations, moved, rates), "layers": rows} for name, rows in layers.items()
        },
    }


def tried_layers(job: Job) -> list[dict[str, Any]]:
    """By kind of layer, the longest first: how many there are, and what each way took on this machine when its build
    was timed, of the first one."""
    rows = [
        {
            "layer": members[0]["layer"],
            "count": len(members),
            "chosen": members[0]["chosen"],
            "milliseconds_together": round(sum(each["ways"][each["chosen"]]["seconds"] for each in members) * 1e3, 2),
            "ways": dict(sorted(members[0]["ways"].items(), key=lambda way: way[1]["seconds"])),
        }
        for members in by_kind(read_report(graph_build(job)).get("choices", ()))
    ]
    return sorted(rows, key=lambda row: -row["milliseconds_together"])


def limits(
    layers: Sequence[Mapping[str, Any]], operations: Mapping[str, int], moved_bytes: int, rates: Table
) -> dict[str, float]:
    """Seconds that a call is made of, and seconds that its parts would take at the rates measured in the same run.

    Winograd's kernels compute with fewer operations than the canonical graph, and so may be below what that would take.
    """
    products = [rate for name, rate in rates.items() if name.startswith("fp32") and name.endswith("GFLOP/s")]
    seconds = {
        "layers_as_chosen_seconds": sum(row["milliseconds_together"] for row in layers) / 1e3,
        "layers_as_is_seconds": sum(row["count"] * row["ways"][AS_IS]["seconds"] for row in layers),
        "bytes_moved": float(moved_bytes),
        "bytes_moved at the copy rate, seconds": moved_bytes / rates["copy GB/s"]["median"] / 1e9,
    }
    for name, figure in (("best", "largest"), ("median", "median")):
        rate = max(each[figure] for each in products)
        for operator, count in operations.items():
            seconds[f"{operator} at the {name} product rate, seconds"] = count / rate / 1e9
    return {name: round(value, 4) for name, value in seconds.items()}
