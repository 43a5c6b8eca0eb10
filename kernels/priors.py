"""Which way to do a layer is likely the fastest: by what was timed on processors of each kind, without timing anything.

`priors.json` holds, by kind of processor and number of threads, layers as `python -m tintype.bench.priors` timed them:
each with its kind, its size, and for each way the seconds, the bytes a weight takes, and how near it is to the layer as
it is. A layer is taken to do as the timed one of its kind does whose size is nearest.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

FILE = "priors.json"
DEFAULT = "avx2"
# What a kind of processor that nobody has timed is likest to, by how wide its vectors and how dear its products are.
LIKEST: Mapping[str, str] = {
    "sse2": "sse4.2",
    "neon": "avx2",
    "neon-dotprod": "avx512-vnni",
}


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

    def nearest(self, kind: str, size: Sequence[int]) -> Row | None:
        """The timed layer of that kind whose size is nearest; None where there is none."""
        alike = [row for row in self.rows if row.kind == kind]
        return min(alike, key=lambda row: _distance(row.size, size), default=None)


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
    stored = json.loads(resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
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
