"""What the processor can do at best, in the same run as the graphs: GFLOP/s of single products, GB/s of a copy.

A product is one node of ONNX Runtime: MatMul in fp32, DynamicQuantizeMatMul in int8. Quantizing the input counts to
the latter's time, as it does in a graph. A multiplication and an addition are two operations, in int8 too. Beside them
what a call of our graphs is made of: each layer's ways as its build timed them, and what it would take at these rates.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from tintype.bench.figures import Table
from tintype.bench.job import Job
from tintype.bench.peers import graph_build, plain_session
from tintype.bench.shares import Stage, product_rate
from tintype.bench.worker import Figures
from tintype.engine import AS_IS, by_kind, read_report

COPIED_BYTES = 256 * 2**20
CALLS = 5


class RatesPeer:
    """A "picture" measures every product, each in a session that is alone: threads of one that is open spin on."""

    def __init__(self, job: Job) -> None:
        """Nothing is loaded before."""

    def picture(self, seed: int, job: Job) -> Figures:
        threads, random, figures = job.threads or 1, np.random.default_rng(0), {}
        for rows, inner, columns in job.products:
            x, weight = (random.standard_normal(shape, np.float32) for shape in ((rows, inner), (inner, columns)))
            for kind, model in (("fp32", float_product(weight)), ("int8", int8_product(weight))):
                run = functools.partial(plain_session(model, threads).run, None, {"x": x})
                rate = 2e-9 * rows * inner * columns / median_seconds(run)
                figures[f"{kind} {rows}x{inner}x{columns} GFLOP/s"] = round(rate, 1)
                del run
        return {**figures, "copy GB/s": round(copy_rate(threads, COPIED_BYTES), 2)}


def float_product(weight: NDArray[np.float32]) -> bytes:
    """y = x weight, as a model."""
    return graph_of("y = MatMul(x, w)", ["rows", len(weight)], {"w": weight}).SerializeToString()


def int8_product(weight: NDArray[np.float32]) -> bytes:
    """The same with int8 weights, one scale a column; x is quantized as it comes."""
    integers, scale = rounded(weight)
    constants: dict[str, NDArray[Any]] = {"w": integers.astype(np.int8), "s": scale}
    node = "y = com.microsoft.DynamicQuantizeMatMul(x, w, s)"
    return graph_of(node, ["rows", len(weight)], constants).SerializeToString()


def rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers of -127..127, and a scale for each column."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return np.rint(weight / scale), scale


def graph_of(nodes: str, shape: list[int | str], constants: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """A model from x to y of nodes in ONNX's own notation."""
    opsets = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>'
    model = parser.parse_model(f"{opsets} layer (float[{','.join(map(str, shape))}] x) => (float[] y) {{ {nodes} }}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    return model


def copy_rate(threads: int, size: int) -> float:
    """GB/s that memory moves, read and written bytes together, in a copy by so many threads."""
    source = np.ones(size, dtype=np.uint8)
    target = np.zeros(size, dtype=np.uint8)  # touched, so that no page is missing later
    edges = np.linspace(0, size, threads + 1, dtype=np.int64)
    parts = [slice(int(start), int(end)) for start, end in itertools.pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        copy = lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))  # noqa: E731
        return 2e-9 * size / median_seconds(copy)


def median_seconds(run: Callable[[], Any]) -> float:
    """Of several calls, after one that warms up."""
    run()
    return statistics.median(timeit.repeat(run, number=1, repeat=CALLS))


def layer_facts(jobs: Mapping[str, Job], stage: Stage, rates: Table) -> dict[str, Any]:
    """Operations of a call, the same for every runtime, and what was tried for each layer of our builds' jobs."""
    layers = {name: tried_layers(job) for name, job in jobs.items()}
    return {
        "gigaoperations": {operator: round(number / 1e9, 2) for operator, number in stage.operations.items()},
        "tried": {name: {"limits": limits(rows, stage, rates), "layers": rows} for name, rows in layers.items()},
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


def limits(layers: Sequence[Mapping[str, Any]], stage: Stage, rates: Table) -> dict[str, float]:
    """Seconds that a call is made of, and seconds that its parts would take at the rates measured in the same run.

    Winograd's kernels compute with fewer operations than the canonical graph, and so may be below what that would take.
    """
    seconds = {
        "layers_as_chosen_seconds": sum(row["milliseconds_together"] for row in layers) / 1e3,
        "layers_as_is_seconds": sum(row["count"] * row["ways"][AS_IS]["seconds"] for row in layers),
        "bytes_moved": float(stage.moved_bytes),
        "bytes_moved at the copy rate, seconds": stage.moved_bytes / rates["copy GB/s"]["median"] / 1e9,
    }
    for name, statistic in (("best", "largest"), ("median", "median")):
        rate = product_rate(rates, "fp32", statistic)
        for operator, count in stage.operations.items():
            seconds[f"{operator} at the {name} product rate, seconds"] = count / rate / 1e9
    return {name: round(value, 4) for name, value in seconds.items()}
