"""How `tintype build --explain` and `tintype plan --explain` say which kernels a graph is computed by, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def explanation(explained: Mapping[str, Any]) -> Iterator[str]:
    """Lines for people of what `engine.explained` tells of a build: each way of each kind of layer, * the chosen one.

    Where `by` is None there is no build yet: `held` says how the plan has the graph, `processor` whose priors count.
    """
    if explained["by"] is None:
        kind = explained["processor"]
        how = "put in wherever they match" if kind is None else f"chosen by priors, timed on {kind} processors"
        yield f"  not built yet, planned as {explained['held']}; the first picture builds it, its kernels {how}"
        return
    timed, priors = explained["by"] == "timed", explained["priors"]
    if explained["layers"]:
        unit, how = ("ms", "timed here") if timed else ("times", f"by {_of(priors)}, in times of the layer as it is")
        yield f"  {how}; * was chosen"
        yield f"  {'layer':<40} {'count':>5}   {'way':<22} {unit:>9} {'weights, MiB':>13} {'dB':>6}"
    else:
        yield "  no layer here has more than one way"
    for row in explained["layers"]:
        lead = f"  {row['layer']:<40} {row['count']:>5}"
        for name, way in row["ways"].items():
            mark, cost = "*" if name == row["chosen"] else " ", way["milliseconds"] if timed else way["times"]
            figures = f"{cost:9.3f} {way['weight_bytes'] / 2**20:13.2f} {way['psnr_db']:6.0f}"
            why = row["why"] if name == row["chosen"] else way["refused"] or ""
            yield f"{lead:<48} {mark} {name:<22} {figures}  {why}".rstrip()
            lead = ""
    for what, counts in (
        ("the only kernel, put in wherever it matches", explained["always"]),
        ("no kernel, as ONNX Runtime does it", explained["others"]),
    ):
        if counts:
            yield f"  {what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}"


def _of(priors: Mapping[str, Any] | None) -> str:
    return "priors" if priors is None else f"priors of {priors['processor']}, threads: {priors['threads']}"
