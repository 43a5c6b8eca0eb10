"""Which kernel does each kind of layer of a build, and why it won: from the build's own report, without onnx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tintype.kernels.graph.priors import AS_IS

FASTEST, ALLOWED = "the fastest", "the fastest that is allowed"
SMALLER, UNKNOWN = "nearly as fast as the fastest, with smaller weights", "nothing like it was timed"


def explained(report: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON: how kernels were chosen (`by`: timed or priors, of which processor), each kind of layer that has more
    ways than one, how often what has only one (`always`) was put in, and the operators that no kernel does (`others`).

    A way's milliseconds are None where nothing was timed here; its `times` are those of the layer as it is.
    """
    chosen = {choice["chosen"] for choice in report.get("choices", ())}
    kernels = report.get("kernels", {})
    return {
        "by": "timed" if report.get("timed") else "priors",
        "priors": report.get("priors"),
        "layers": [_layer(members, timed=bool(report.get("timed"))) for members in by_kind(report.get("choices", ()))],
        "always": {name: count for name, count in kernels.items() if name not in chosen},
        "others": dict(report.get("others", {})),
    }


def by_kind(choices: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Choices for layers of one kind that were the same, together; in the order of the first of each."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for choice in choices:
        kinds.setdefault((choice["layer"], choice["chosen"]), []).append(choice)
    return list(kinds.values())


def _layer(members: list[dict[str, Any]], *, timed: bool) -> dict[str, Any]:
    """One kind of layer, by the first of them; its ways from the fastest on."""
    first = members[0]
    as_is, refused = first["ways"][AS_IS]["seconds"], first.get("refused", {})
    ways = {
        name: {
            "milliseconds": way["seconds"] * 1e3 if timed else None,
            "times": round(way["seconds"] / as_is, 4),
            "weight_bytes": way["weight_bytes"],
            "psnr_db": way["psnr_db"],
            "refused": refused.get(name),
        }
        for name, way in sorted(first["ways"].items(), key=lambda item: item[1]["seconds"])
    }
    faster = list(ways)[: list(ways).index(first["chosen"])]
    if len(ways) == 1:
        why = UNKNOWN
    elif not faster:
        why = FASTEST
    else:
        why = ALLOWED if all(name in refused for name in faster) else SMALLER
    return {"layer": first["layer"], "count": len(members), "chosen": first["chosen"], "why": why, "ways": ways}
