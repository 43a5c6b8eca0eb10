"""A chart of a result file: time beside exactness and memory for every contestant, or time against memory by budget.

    tintype bench chart RESULT.json -o chart.png [--part "unet 512x512"]

Exactness is dB to the contestant that has none, the reference, which is drawn hollow. Memory is the most that a process
had resident, mapped files included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from PIL import Image

from tintype.bench.figures import Table, figure_value
from tintype.bench.options import command_help
from tintype.errors import InstallError, RequestError

MIB, GIB = 2**20, 2**30
COLOURS = 64  # of a PNG
Points = dict[str, tuple[float, float]]  # seconds and another figure, by contestant
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
