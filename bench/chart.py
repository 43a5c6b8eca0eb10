"""A chart of a result file: time beside exactness and memory for every contestant, or time against memory by budget.

    tintype bench chart RESULT.json -o chart.png [--part "unet 512x512"]

Exactness is dB to the contestant that has none, the reference. Memory is the most that a process had resident, mapped
files included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from PIL import Image

from tintype.bench.figures import Table, figure_value
from tintype.bench.options import command_help
from tintype.errors import InstallError, RequestError

MIB, GIB = 2**20, 2**30
OURS, THEIRS = "#b4431a", "#4a5a6a"
LABEL_POINTS, GAP_POINTS = 9, 7  # a label's height, and how far it is from the middle of its point
COLOURS = 64  # of a PNG
# Where a label may stand, the best first: how it is aligned, and how many gaps it is moved right and up.
PLACES = (
    ("left", "center", 1, 0), ("right", "center", -1, 0), ("left", "bottom", 0.7, 0.5), ("right", "bottom", -0.7, 0.5),
    ("left", "top", 0.7, -0.5), ("right", "top", -0.7, -0.5), ("center", "bottom", 0, 1), ("center", "top", 0, -1),
)  # fmt: skip
Point = tuple[str, float, float]  # a name at seconds and another figure
Parts = Mapping[str, Mapping[str, Any]]  # of a result file, by title


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


def draw_peers(machine: Mapping[str, Any], parts: Parts, path: Path) -> None:
    """A row a part: each contestant at its seconds, by how exact it is and by what it holds in memory."""
    caption = f"{machine['cpu']} ({machine['processor_kind']}), threads: {machine['threads']}, {machine['date'][:10]}"
    figure, labels = new_figure(len(parts), 2, (5, 3)), []
    figure.suptitle(caption, fontsize=LABEL_POINTS, color=THEIRS)
    for left, right, (title, part) in zip(figure.axes[::2], figure.axes[1::2], parts.items(), strict=True):
        (exact, reference), held = exactness_of(part["peers"]), memory_of(part["peers"])
        left.set(title=f"{title}: exactness", ylabel="dB to the reference")
        right.set(title=f"{title}: memory", ylabel="peak memory, GiB")
        labels += [(left, draw_points(left, exact, reference)), (right, draw_points(right, held))]
    figure.draw_without_rendering()  # where labels go depends on where all else is
    for place, points in labels:
        label(place, points)
    save(figure, path)


def exactness_of(peers: Table) -> tuple[list[Point], str | None]:
    """Contestants at the farthest of their answers, in dB. The reference is put above all of them."""
    known = {name: figure_value(figures.get("psnr_db"), "smallest") for name, figures in peers.items()}
    values = [value for value in known.values() if value is not None]
    reference = next((name for name, value in known.items() if value is None), None) if values else None
    heights = {**known, **({reference: max(values) * 1.1} if reference else {})}
    return _points(peers, heights), reference


def memory_of(peers: Table) -> list[Point]:
    """Contestants at the most that their processes held, in GiB."""
    held = {name: figure_value(figures.get("peak_rss_bytes")) for name, figures in peers.items()}
    return _points(peers, {name: value / GIB for name, value in held.items() if value is not None})


def _points(peers: Table, heights: Mapping[str, float | None]) -> list[Point]:
    times = {name: figure_value(figures.get("seconds")) for name, figures in peers.items()}
    found = ((name, times[name], height) for name, height in heights.items())
    return [(name, time, height) for name, time, height in found if time is not None and height is not None]


def draw_points(axes: Any, points: Sequence[Point], reference: str | None = None) -> list[Point]:
    """Points, which are returned as they are to be labelled. reference: whose height says nothing."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("seconds, left is faster")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.margins(x=0.15)
    for name, seconds, height in points:
        colour = OURS if name.startswith("tintype") else THEIRS
        axes.plot(seconds, height, "o", ms=7, color=colour, mfc="none" if name == reference else colour)
    axes.set_ylim(0, 1.15 * max((height for *_, height in points), default=1.0))
    return [(f"{each[0]} (reference)" if each[0] == reference else each[0], *each[1:]) for each in points]


def label(axes: Any, points: Sequence[Point]) -> None:
    """Each name beside its point, where it lies on no other name or point and within the axes, as far as one can."""
    from matplotlib.transforms import Bbox

    space, taken = axes.get_window_extent(), []
    for point in points:
        x, y = axes.transData.transform(point[1:])
        taken.append(Bbox.from_bounds(x - GAP_POINTS, y - GAP_POINTS, 2 * GAP_POINTS, 2 * GAP_POINTS))
    for name, seconds, height in points:
        colour = OURS if name.startswith("tintype") else THEIRS
        tried: list[tuple[int, int, Any, Any]] = []  # overlaps, place, label, box
        for across, up, right, above in PLACES:
            words = axes.annotate(
                name, (seconds, height), (right * GAP_POINTS, above * GAP_POINTS), textcoords="offset points",
                ha=across, va=up, fontsize=LABEL_POINTS, color=colour,
            )  # fmt: skip
            words.set_in_layout(False)
            box = words.get_window_extent()
            outside = box.x0 < space.x0 or box.x1 > space.x1 or box.y1 > space.y1 or box.y0 < space.y0
            tried.append((box.count_overlaps(taken) + 10 * outside, len(tried), words, box))
        _, chosen, _, box = min(tried, key=lambda each: each[:2])
        taken.append(box)
        for _, number, words, _ in tried:
            if number != chosen:
                words.remove()


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
        draw_peers(report["machine"], parts, out)
    click.echo(f"written to {out}")
