"""Figures: medians, because a shared machine makes outliers in one direction only; dB; verdicts; lines; and charts.

    tintype bench chart RESULT.json -o chart.png [--part "unet 512x512"]

draws time beside exactness and memory for every contestant, or time against memory by budget. Exactness is dB to the
contestant that has none, the reference, which is drawn hollow. Memory is the most that a process had resident, mapped
files included.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from tintype.arrays import psnr_db
from tintype.bench.options import command_help
from tintype.errors import InstallError, RequestError

Verdict = dict[str, Any]
Table = Mapping[str, Mapping[str, Any]]  # figures by contestant
MIB, GIB = 2**20, 2**30
COLOURS = 64  # of a PNG
Points = dict[str, tuple[float, float]]  # seconds and another figure, by contestant
Parts = Mapping[str, Mapping[str, Any]]  # of a result file, by title

COLUMNS = {  # what is printed, in this order; medians of summaries, MiB of bytes
    "seconds": "{:.3f} s",
    "projected_from_steps": "projected from {:.0f} steps",
    "seconds_a_step": "{:.4f} s a step",
    "denoise_seconds": "loop {:.3f} s",
    "first_seconds": "first {:.3f} s",
    "cold_seconds": "cold {:.1f} s",
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


def file_psnr_db(reference: Path, other: Path) -> float:
    """How near two files are, arrays (.npy) or pictures; samples of 8 bits are a picture's."""
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


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 4)) -> Any:
    """matplotlib's, with axes; size: inches of each. Raises InstallError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InstallError("a chart is drawn by matplotlib, which is missing", fix="pip install matplotlib") from None
    figure = Figure((size[0] * columns, size[1] * rows), layout="constrained")
    figure.subplots(rows, columns)
    return figure


def save(figure: Any, path: Path) -> None:
    """As an SVG, or a PNG of few colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    if path.suffix == ".png":
        Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS).save(path, optimize=True)


def draw_budgets(title: str, parts: Parts, path: Path) -> None:
    """Time against the peak, a line a size."""
    figure = new_figure()
    (axes,) = figure.axes
    for size, part in parts.items():
        rows = [(each["peak_rss_bytes"] / MIB, *each["ratios"].values()) for each in part["peers"].values()]
        axes.plot(*zip(*sorted(rows), strict=True), marker="o", label=size)
    axes.set(xscale="log", xlabel="peak memory of the process, MiB", ylabel="time against no budget", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save(figure, path)


def peers_figure(machine: Mapping[str, Any], parts: Parts) -> Any:
    """A row a part: each contestant (ours are round) at its seconds, by how exact it is and what it holds in memory."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    figure = new_figure(len(parts), 2, (5, 3))
    names = list(dict.fromkeys(name for part in parts.values() for name in part["peers"]))
    caption = f"{machine['cpu']} ({machine['processor_kind']}), threads: {machine['threads']}, {machine['date'][:10]}"
    figure.suptitle(caption, fontsize="small")
    for left, right, (title, part) in zip(figure.axes[::2], figure.axes[1::2], parts.items(), strict=True):
        exact, reference = exactness_of(part["peers"])
        left.set(title=f"{title}: exactness", ylabel="dB to the reference")
        right.set(title=f"{title}: memory", ylabel="peak memory, GiB")
        for axes, points, hollow in ((left, exact, reference), (right, memory_of(part["peers"]), None)):
            for name, point in points.items():
                marker, colour = "o" if name.startswith("tintype") else "s", f"C{names.index(name)}"
                axes.plot(*point, marker, color=colour, mfc="none" if name == hollow else colour, label=name)
            axes.set(xscale="log", xlabel="seconds, left is faster", ylim=(0, None))
            axes.xaxis.set(major_locator=MaxNLocator(6), major_formatter="{x:g}", minor_locator=NullLocator())
            axes.grid(alpha=0.25)
    handles = {line.get_label(): line for axes in figure.axes[::-1] for line in axes.get_lines()}
    known = [name for name in names if name in handles]
    figure.legend([handles[name] for name in known], known, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def exactness_of(peers: Table) -> tuple[Points, str | None]:
    """Contestants at the farthest of their answers, in dB. The reference is put above all of them."""
    known = {name: figure_value(figures.get("psnr_db"), "smallest") for name, figures in peers.items()}
    values = [value for value in known.values() if value is not None]
    reference = next((name for name, value in known.items() if value is None), None) if values else None
    return _points(peers, {**known, **({reference: max(values) * 1.1} if reference else {})}), reference


def memory_of(peers: Table) -> Points:
    """Contestants at the most that their processes held, in GiB."""
    held = {name: figure_value(figures.get("peak_rss_bytes")) for name, figures in peers.items()}
    return _points(peers, {name: value / GIB for name, value in held.items() if value is not None})


def _points(peers: Table, heights: Mapping[str, float | None]) -> Points:
    times = {name: figure_value(figures.get("seconds")) for name, figures in peers.items()}
    both = ((name, times[name], height) for name, height in heights.items())
    return {name: (time, height) for name, time, height in both if time is not None and height is not None}


@click.command(help=command_help(__doc__))
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .png or .svg.")
@click.option("--part", "chosen", multiple=True, help="Of those in the file [default: all].")
def chart(result: Path, out: Path, chosen: tuple[str, ...]) -> None:
    try:
        report = json.loads(result.read_text(encoding="utf-8"))
        parts = {title: report["parts"][title] for title in chosen or report["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        fix = "give a result of bench sd15 or budgets, of November 28th 2026 or later, and parts that are in it"
        raise RequestError(f"{result} can't be drawn: it has no {error}", fix=fix) from None
    if any("plans" in part for part in parts.values()):
        draw_budgets(result.stem, parts, out)
    else:
        save(peers_figure(report["machine"], parts), out)
    click.echo(f"written to {out}")
