"""Tintype beside other runtimes at the real size of Stable Diffusion 1.5, random weights: graphs and whole pictures.

    pip install 'tintype[cpu,export,peers-cpu]'
    python -m tintype.bench.sd15 make FOLDER        # once: weights in every runtime's form, about 20 GB
    python -m tintype.bench.sd15 graphs FOLDER      # one UNet call, one decode, at several sizes
    python -m tintype.bench.sd15 picture FOLDER     # 20 steps with guidance, from prompt to pixels
    python -m tintype.bench.sd15 cold FOLDER        # the first picture ever beside later ones

Peers: OpenVINO in fp32 and after NNCF's quantization, ONNX Runtime as it comes, stable-diffusion.cpp (which pip builds
from source: that takes a C++ compiler and minutes).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tintype.bench import sd15_graphs, sd15_picture
from tintype.bench.figures import all_bars, bar_lines, table_lines
from tintype.bench.options import (
    Names,
    Sizes,
    command_help,
    count_option,
    lock_option,
    patience_option,
    results_option,
    threads_option,
)
from tintype.bench.report import Report
from tintype.bench.runner import Schedule
from tintype.bench.sd15_make import PARTS
from tintype.bench.sd15_make import make as make_parts

EXACTNESS = ("exact", "balanced")


def _with(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every measurement takes, and its own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = (
            click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path)),
            click.option("--exactness", type=Names(EXACTNESS), default=",".join(EXACTNESS), show_default=True),
            count_option("--repeats", "rounds", default=3, help="Rounds of turns."),
            threads_option(2),
            lock_option,
            patience_option(60.0),
            results_option,
        )
        for option in reversed((*shared, *options)):
            command = option(command)
        return command

    return decorate


def _peers(known: tuple[str, ...]) -> Callable[..., Any]:
    return click.option("--peers", type=Names(known), default=",".join(known), show_default=True)


def _one_size(_context: click.Context, _option: click.Parameter, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    if len(sizes) != 1:
        raise click.UsageError("a picture has one size")
    return sizes[0]


_size = click.option(
    "--size", type=Sizes(), default="512x512", show_default=True, callback=_one_size, help="Width x height."
)
_steps = count_option("--num-inference-steps", default=20)


@click.group(help=command_help(__doc__))
def main() -> None:
    pass


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--parts", type=Names(PARTS), default=",".join(PARTS), show_default=True)
def make(folder: Path, parts: tuple[str, ...]) -> None:
    """Make the weights in every runtime's form; what is there already is kept."""
    click.echo(json.dumps({"made_seconds": make_parts(folder, parts)}))


@main.command()
@_with(
    click.option("--graphs", type=Names(sd15_graphs.ROLES), default="unet,vae", show_default=True),
    click.option("--sizes", type=Sizes(), default="512x512,512x768,384x640", show_default=True, help="Width x height."),
    _peers(sd15_graphs.PEERS),
    count_option("--calls", default=2, help="Timed in each round."),
)
def graphs(**chosen: Any) -> None:
    """Time one call of each graph at each size, batch 1."""
    with _report("graphs", chosen) as report:
        schedule, folder = _schedule(chosen), chosen.pop("folder")
        roles, sizes, calls = (chosen.pop(name) for name in ("graphs", "sizes", "calls"))
        report["graphs"] = {
            f"{graph} {size[0]}x{size[1]}": sd15_graphs.measure_graph(
                graph, sd15_graphs.graph_jobs(folder, graph, size, **chosen), schedule, calls
            )
            for graph in roles
            for size in sizes
        }
        _say(report, report["graphs"], sd15_graphs.COLUMNS)


@main.command()
@_with(
    _size,
    _steps,
    _peers(sd15_picture.PEERS),
    count_option("--measured-steps", default=None, least=2, help="Fewer for every peer, then projected."),
    count_option("--sdcpp-steps", default=None, least=2, help="Fewer for stable-diffusion.cpp, then projected."),
)
def picture(**chosen: Any) -> None:
    """Time whole pictures, guidance on."""
    with _report("picture", chosen) as report:
        schedule, steps = _schedule(chosen), chosen["num_inference_steps"]
        report["picture"] = sd15_picture.measure_picture(sd15_picture.peer_jobs(**chosen), schedule, steps)
        report.lines = table_lines(report["picture"]["peers"], sd15_picture.COLUMNS)
        report.lines += bar_lines(report["picture"]["bars"])


@main.command()
@_with(_size, _steps, count_option("--later", default=2, help="Later pictures in each round."))
def cold(later: int, **chosen: Any) -> None:
    """Time the first picture ever, the first of a second process, and later ones; nothing is built before."""
    with _report("cold", chosen) as report:
        schedule, jobs = _schedule(chosen), sd15_picture.peer_jobs(peers=(), **chosen)
        report["cold"] = sd15_picture.measure_cold(jobs, schedule, later)
        _say(report, report["cold"], sd15_picture.COLUMNS)


def _report(name: str, chosen: dict[str, Any]) -> Report:
    """The machine and what was chosen. Builds are kept beside the weights unless told otherwise."""
    folder, results = chosen["folder"], chosen.pop("results")
    os.environ.setdefault("TINTYPE_CACHE", str(folder.resolve() / "cache"))
    absent = [part for part in PARTS if not (folder / part).is_dir()]
    if absent:
        click.echo(f"{folder} lacks {', '.join(absent)}; a peer that needs them will say so", err=True)
    plan = {key: value for key, value in chosen.items() if key not in ("folder", "lock")}
    return Report((f"sd15-{name}",), results, threads=chosen["threads"], plan=plan)


def _schedule(chosen: dict[str, Any]) -> Schedule:
    """Takes its options out of those that were chosen."""
    rounds, lock, patience = (chosen.pop(name) for name in ("rounds", "lock", "patience_seconds"))
    return Schedule(rounds=rounds, lock=lock, patience_seconds=patience)


def _say(report: Report, parts: dict[str, Any], columns: dict[str, str]) -> None:
    for title, part in parts.items():
        report.lines += table_lines(part["peers"], columns, f"{title:<17} ")
    report.lines += bar_lines(all_bars(parts))


if __name__ == "__main__":
    main()
