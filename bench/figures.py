"""Figures: medians, because a shared machine makes outliers in one direction only; how near arrays are; bars; lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tintype.arrays import psnr_db

Verdict = dict[str, Any]
Table = Mapping[str, Mapping[str, Any]]  # figures by contestant

COLUMNS = {  # what is printed, in this order; medians of summaries, MiB of bytes
    "seconds": "{:.3f} s",
    "projected_from_steps": "projected from {:.0f} steps",
    "seconds_a_step": "{:.4f} s a step",
    "denoise_seconds": "loop {:.3f} s",
    "cold_seconds": "first {:.1f} s",
    "psnr_db": "{:.1f} dB",
    "accuracy": "{:.3f} right",
    "found": "{:.3f} found",
    "payload_read": "{:.3f} payload read",
    "signs": "{:.3f} of the signs",
    "share_blocked": "{:.3f} blocked",
    "total_variation": "{:.3f} from the shares",
    "by_chance": "{:.3f} by chance",
    "peak_rss_bytes": "peak {:,.0f} MiB",
    "together_peak_bytes": "{:,.0f} MiB with children",
    "device_peak_bytes": "{:,.0f} MiB of the device",
}


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Median, smallest and largest of the runs, in the unit they came in, and how many there were."""
    known = {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}
    return {**{name: round(value, 4) for name, value in known.items()}, "runs": len(values)}


def figure_value(figure: Any, statistic: str = "median") -> float | None:
    """A number, or a statistic of a summary."""
    value = figure[statistic] if isinstance(figure, Mapping) else figure
    return None if value is None or not math.isfinite(value) else value


def picture_psnr_db(reference: NDArray[np.uint8], picture: NDArray[np.uint8]) -> float:
    """How near a picture is to another, of 0..255; 200 where they are the same."""
    return psnr_db(reference, picture, 255.0)


def file_psnr_db(reference: Path, other: Path) -> float:
    """The same of two files, arrays (.npy) or pictures; samples of 8 bits are a picture's."""
    load = np.load if reference.suffix == ".npy" else lambda file: np.asarray(Image.open(file))
    whole, part = load(reference), load(other)
    return round(psnr_db(whole, part, 255.0 if whole.dtype == np.uint8 else None), 2)


def verdict(what: str, value: float | None, *, at_most: float | None = None, at_least: float | None = None) -> Verdict:
    """A figure beside what it must reach. A value that isn't there, or isn't a number, meets no bar."""
    value = figure_value(value)
    met = value is not None and (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    bars = {name: bar for name, bar in (("at_most", at_most), ("at_least", at_least)) if bar is not None}
    return {"what": what, "value": None if value is None else round(value, 4), **bars, "met": met}


def table_lines(table: Table, title: str = "") -> Iterator[str]:
    """A line for each contestant: those figures that it has, and its ratios to others."""
    for name, figures in table.items():
        cells = []
        for key, form in COLUMNS.items():
            if (value := figure_value(figures.get(key))) is not None:
                cells.append(form.format(value / 2**20 if key.endswith("_bytes") else value))
        cells += [f"{key} {value:.2f}" for key, value in figures.get("ratios", {}).items()]
        yield f"{title:<17} {name:<21} {', '.join(cells)}"


def share_lines(table: Table, title: str = "") -> Iterator[str]:
    """A line for each stage of each contestant: what it reaches of the machine's own rates."""
    for name, figures in table.items():
        for stage, told in figures.get("shares", {}).items():
            of_products, of_copy = (f"{100 * told[share]:.0f} % of" for share in ("of_products", "of_copy"))
            products = f"{of_products} {told['products_gflops']:.0f} GFLOP/s ({told['precision']})"
            yield f"{title:<17} {name:<21} {stage}: {products}, {of_copy} {told['copy_gbytes']:.0f} GB/s"


def bar_lines(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """Bars as people read them, one a line."""
    for entry in verdicts:
        bar = f"<= {entry['at_most']}" if "at_most" in entry else f">= {entry['at_least']}"
        value = "not measured" if entry["value"] is None else f"{entry['value']:.3g}"
        yield f"{'met   ' if entry['met'] else 'MISSED'} {entry['what']:<44} {value} (bar {bar})"
