"""Tintype beside other runtimes at the real size of Stable Diffusion 1.5, random weights: graphs and whole pictures.

    pip install 'tintype[cpu,export,peers-cpu]'
    python -m tintype.bench.sd15 make FOLDER        # once: weights in every runtime's form, about 20 GB
    python -m tintype.bench.sd15 graphs FOLDER      # one UNet call, one decode, at several sizes
    python -m tintype.bench.sd15 picture FOLDER     # 20 steps with guidance, from prompt to pixels

Peers: OpenVINO in fp32 and after NNCF's quantization, ONNX Runtime as it comes, stable-diffusion.cpp (which pip builds
from source: that takes a C++ compiler and minutes). Each runs in a process of its own; they take turns, round by
round, and figures are medians. Results go to bench/results as JSON with the machine, the bars and whether each was met.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tintype.bench import bars, sd15_graphs, sd15_picture
from tintype.bench.machine import load_average, machine_facts
from tintype.bench.report import default_results_folder, write_report
from tintype.bench.sd15_graphs import GraphsPlan, measure_graphs
from tintype.bench.sd15_make import PARTS
from tintype.bench.sd15_make import make as make_parts
from tintype.bench.sd15_picture import PicturePlan, measure_picture

EXACTNESS = ("exact", "balanced")


class Names(click.ParamType):
    """Several of some names with commas between, as in unet,vae; "none" is none of them."""

    name = "names"

    def __init__(self, known: tuple[str, ...]) -> None:
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        found = () if value == "none" else tuple(value.split(","))
        for name in found:
            if name not in self._known:
                self.fail(f"{name!r} isn't one of {', '.join(self._known)}", param, ctx)
        return found


class Sizes(click.ParamType):
    """Sizes in pixels with commas between, as in 512x512,384x640."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        if isinstance(value, tuple):
            return value
        found = []
        for text in value.split(","):
            width, _, height = text.partition("x")
            if not (width.isdigit() and height.isdigit() and int(width) % 64 == int(height) % 64 == 0):
                self.fail(f"{text!r} isn't a size in multiples of 64, such as 512x768", param, ctx)
            found.append((int(width), int(height)))
        return tuple(found)


def _measuring(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every measurement takes."""
    options = (
        click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path)),
        click.option("--exactness", type=Names(EXACTNESS), default=",".join(EXACTNESS), show_default=True),
        click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds of turns."),
        click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="For every runtime."),
        click.option(
            "--lock", type=click.Path(dir_okay=False, path_type=Path), help="Locked while a peer has its turn."
        ),
        click.option(
            "--patience",
            "patience_seconds",
            type=click.FloatRange(min=0.0),
            default=60.0,
            show_default=True,
            help="Seconds that a picture or call may take to be had without other processes disturbing it.",
        ),
        click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="Where the figures go."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(help=(__doc__ or "").replace("\n\n    pip", "\n\n\b\n    pip"))
def main() -> None:
    pass


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--parts", type=Names(tuple(PARTS)), default=",".join(PARTS), show_default=True)
def make(folder: Path, parts: tuple[str, ...]) -> None:
    """Make the weights in every runtime's form; what is there already is kept."""
    click.echo(json.dumps({"made_seconds": make_parts(folder, parts)}))


@main.command()
@_measuring
@click.option("--graphs", type=Names(tuple(sd15_graphs.ROLES)), default="unet,vae", show_default=True)
@click.option("--sizes", type=Sizes(), default="512x512,512x768,384x640", show_default=True, help="Width x height.")
@click.option("--peers", type=Names(sd15_graphs.PEERS), default=",".join(sd15_graphs.PEERS), show_default=True)
@click.option("--calls", type=click.IntRange(min=1), default=2, show_default=True, help="Timed in each round.")
def graphs(repeats: int, results: Path | None, **chosen: Any) -> None:
    """Time one call of each graph at each size, batch 1."""
    plan = GraphsPlan(rounds=repeats, **chosen)
    report = _report("graphs", plan, plan.folder, lambda: measure_graphs(plan))
    path = write_report(report, results or default_results_folder(), ("sd15-graphs",))
    _say([*sd15_graphs.summary_lines(report["graphs"]), *bars.lines(sd15_graphs.all_bars(report["graphs"]))], path)


@main.command()
@_measuring
@click.option("--size", "sizes", type=Sizes(), default="512x512", show_default=True, help="Width x height.")
@click.option("--num-inference-steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--peers", type=Names(sd15_picture.PEERS), default=",".join(sd15_picture.PEERS), show_default=True)
@click.option("--measured-steps", type=click.IntRange(min=2), help="Fewer for every peer, then projected.")
@click.option("--sdcpp-steps", type=click.IntRange(min=2), help="Fewer for stable-diffusion.cpp, then projected.")
def picture(repeats: int, results: Path | None, sizes: tuple[tuple[int, int], ...], **chosen: Any) -> None:
    """Time whole pictures, guidance on."""
    if len(sizes) != 1:
        raise click.UsageError("a picture has one size")
    plan = PicturePlan(rounds=repeats, size=sizes[0], **chosen)
    report = _report("picture", plan, plan.folder, lambda: measure_picture(plan))
    path = write_report(report, results or default_results_folder(), ("sd15-picture",))
    _say([*sd15_picture.summary_lines(report["picture"]), *bars.lines(report["picture"]["bars"])], path)


def _report(name: str, plan: GraphsPlan | PicturePlan, folder: Path, measure: Callable[[], Any]) -> dict[str, Any]:
    """The machine, the plan and what was measured. Builds are kept beside the weights unless told otherwise."""
    os.environ.setdefault("TINTYPE_CACHE", str(folder.resolve() / "cache"))
    absent = [part for part in PARTS if not (folder / part).is_dir()]
    if absent:
        click.echo(f"{folder} lacks {', '.join(absent)}; a peer that needs them will say so", err=True)
    told = {key: value for key, value in dataclasses.asdict(plan).items() if key not in ("folder", "lock")}
    report: dict[str, Any] = {"machine": machine_facts(plan.threads), "plan": told}
    report[name] = measure()
    report["machine"]["load_average_at_end"] = load_average()
    return report


def _say(lines: list[str], path: Path) -> None:
    for line in lines:
        click.echo(line)
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
