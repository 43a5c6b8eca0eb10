"""Which way to do a layer is likely the fastest: by what was timed on processors of each kind, without timing anything.

`priors.json` holds, by kind of processor and number of threads, layers as `tintype bench priors` timed them:
each with its kind, its size, and for each way the seconds, the bytes a weight takes, and how near it is to the layer as
it is. A layer is taken to do as the timed ones of its kind do whose sizes are nearest.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

PACKAGE, FILE = "tintype.kernels", "priors.json"
DEFAULT = "avx2"
# What a kind of processor that nobody has timed is likest to, by how wide its vectors and how dear its products are.
LIKEST: Mapping[str, str] = {
    "sse2": "sse4.2",
    "avx512": "avx2",
    "neon": "avx2",
    "neon-dotprod": "avx512-vnni",
}


NEAREST = 4  # timed layers that are asked for another one, each by how near it is: one may have been disturbed
OWN_WEIGHT = 0.25  # squared octaves within which sizes count as the same
AS_IS = "as_is"  # a layer as it is in the graph, as ONNX Runtime's own optimizer does it


@dataclass(frozen=True, slots=True)
class Timed:
    """One way to do a layer: seconds, bytes that it holds for each weight of the layer, and PSNR in dB."""

    seconds: float
    bytes_a_weight: float
    psnr_db: float


@dataclass(frozen=True, slots=True)
class Row:
    """A layer that was timed. size: what its work grows with, see `choice.Layer`."""

    kind: str
    size: tuple[int, ...]
    ways: Mapping[str, Timed]


@dataclass(frozen=True, slots=True)
class Priors:
    """What was timed on one kind of processor with one number of threads."""

    processor: str
    threads: int
    rows: tuple[Row, ...]

    def likely(self, kind: str, size: Sequence[int]) -> dict[str, Timed]:
        """What each way of a layer of that kind and size likely takes, in times of the layer as it is; empty where no
        layer of its kind was timed."""
        alike = sorted((row for row in self.rows if row.kind == kind), key=lambda row: _distance(row.size, size))
        found = {}
        for name in dict.fromkeys(name for row in alike for name in row.ways):
            rows = [row for row in alike if name in row.ways][:NEAREST]
            weights = [1 / (OWN_WEIGHT + _distance(row.size, size)) for row in rows]
            logs = [math.log(row.ways[name].seconds / row.ways[AS_IS].seconds) for row in rows]
            mean = sum(w * log for w, log in zip(weights, logs, strict=True)) / sum(weights)
            nearest = rows[0].ways[name]
            found[name] = Timed(math.exp(mean), nearest.bytes_a_weight, nearest.psnr_db)
        return found


def priors_for(processor: str, threads: int, abilities: Collection[str] = ()) -> Priors:
    """The table for a kind of processor (`machine.processor_kind`) and a number of threads, or the one likest to it.

    abilities: what the processor has shown; with `mixed_products` AVX2 has VNNI too, which numpy does not tell.
    """
    tables = all_priors()
    if processor == "avx2" and "mixed_products" in abilities:
        processor = "avx512-vnni"
    timed = {table.processor for table in tables}
    kind = next((each for each in (processor, LIKEST.get(processor), DEFAULT) if each in timed), None)
    alike = [table for table in tables if table.processor == kind]
    return min(alike, key=lambda table: abs(math.log(table.threads / threads)), default=Priors(processor, threads, ()))


@functools.cache
def all_priors() -> tuple[Priors, ...]:
    """Every table that comes with the package."""
    stored = json.loads(resources.files(PACKAGE).joinpath(FILE).read_text(encoding="utf-8"))
    return tuple(
        Priors(
            table["processor"],
            table["threads"],
            tuple(
                Row(kind, tuple(size), {name: Timed(*numbers) for name, numbers in ways.items()})
                for kind, size, ways in table["rows"]
            ),
        )
        for table in stored["tables"]
    )


def _distance(first: Sequence[int], second: Sequence[int]) -> float:
    return sum(math.log2(a / b) ** 2 for a, b in zip(first, second, strict=True))
