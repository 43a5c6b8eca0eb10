"""Figures: medians, because a shared machine makes outliers in one direction only; how near arrays are; bars; lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Verdict = dict[str, Any]
Table = Mapping[str, Mapping[str, Any]]  # figures by contestant
OUTSIDE_BAR = 0.03  # of a denoising loop, spent outside the graphs


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Median, smallest and largest of the runs, in the unit they came in, and how many there were."""
    return {
        "median": round(statistics.median(values), 4),
        "smallest": round(min(values), 4),
        "largest": round(max(values), 4),
        "runs": len(values),
    }


def psnr_db(reference: NDArray[Any], other: NDArray[Any], span: float | None = None) -> float:
    """How near an array is to its reference, whose own range is the span unless it is given; 200 where they are equal,
    -inf where `other` isn't finite."""
    error = float(np.mean((reference.astype(np.float64) - other) ** 2))
    span = float(np.ptp(reference)) if span is None else span
    if error == 0.0:
        return 200.0
    return 10 * math.log10(span**2 / error) if span and math.isfinite(error) else -math.inf


def picture_psnr_db(reference: NDArray[np.uint8], picture: NDArray[np.uint8]) -> float:
    """How near a picture is to another, of 0..255; 200 where they are the same."""
    return psnr_db(reference, picture, 255.0)


def verdict(what: str, value: float | None, *, at_most: float | None = None, at_least: float | None = None) -> Verdict:
    """A figure beside what it must reach. A value that isn't there, or isn't a number, meets no bar."""
    value = None if value is None or not math.isfinite(value) else value
    met = value is not None and (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    bars = {name: bar for name, bar in (("at_most", at_most), ("at_least", at_least)) if bar is not None}
    return {"what": what, "value": None if value is None else round(value, 4), **bars, "met": met}


def judge_ratios(bars: Iterable[tuple[str, str, float]], table: Table, figure: str = "seconds") -> list[Verdict]:
    """Medians of one contestant over those of another, each at most so much; as far as both are in the table."""
    medians = {name: figures[figure]["median"] for name, figures in table.items()}
    return [
        verdict(f"{ours} over {theirs}", medians[ours] / medians[theirs], at_most=at_most)
        for ours, theirs, at_most in bars
        if ours in medians and theirs in medians
    ]


def add_ratios(
    table: Mapping[str, dict[str, Any]], reference: str, name: str, figure: str = "seconds", digits: int = 4
) -> None:
    """Give each contestant its median over the reference's, under that name, where the reference was measured."""
    whole = table[reference][figure]["median"] if reference in table else None
    for figures in table.values() if whole is not None else ():
        figures[name] = round(figures[figure]["median"] / whole, digits)


def table_lines(table: Table, columns: Mapping[str, str], title: str = "") -> list[str]:
    """A line for each contestant: those figures that it has, each in its format; medians of summaries, MiB of bytes."""
    lines = []
    for name, figures in table.items():
        cells = []
        for key, form in columns.items():
            value = figures.get(key)
            value = value["median"] if isinstance(value, Mapping) else value
            if value is not None:
                cells.append(form.format(value / 2**20 if key.endswith("_bytes") else value))
        lines.append(f"{title}{name:<21} {', '.join(cells)}")
    return lines


def judge_outside(table: Table) -> list[Verdict]:
    """The bar of what of a denoising loop is spent outside the graphs, for whoever tells it."""
    return [
        verdict(f"{name}, share of the loop outside the graph", share["median"], at_most=OUTSIDE_BAR)
        for name, figures in table.items()
        if (share := figures.get("outside_share")) is not None
    ]


def bar_lines(verdicts: Iterable[Verdict]) -> list[str]:
    """Bars as people read them, one a line."""
    lines = []
    for entry in verdicts:
        bar = f"<= {entry['at_most']}" if "at_most" in entry else f">= {entry['at_least']}"
        value = "not measured" if entry["value"] is None else f"{entry['value']:.3g}"
        lines.append(f"{'met   ' if entry['met'] else 'MISSED'} {entry['what']:<44} {value} (bar {bar})")
    return lines


def all_bars(parts: Mapping[str, Any]) -> list[Verdict]:
    """Every bar of a report's parts, with the part's name in front."""
    return [{**bar, "what": f"{title}: {bar['what']}"} for title, part in parts.items() for bar in part["bars"]]
