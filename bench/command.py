"""`tintype bench`: measure, print a few lines, and keep everything in a dated JSON file with the machine's name."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tintype.bench.job import PROMPT, Job
from tintype.bench.report import default_results_folder, write_report
from tintype.cli.options import Size, human_bytes

MEASURES = ("help", "fresh", "steady", "peers")


@click.command()
@click.argument("measures", nargs=-1, type=click.Choice(MEASURES))
@click.option("--model", default="postcard", show_default=True, help="A bundle's folder, or an embedded name.")
@click.option(
    "--checkpoint", type=click.Path(exists=True, file_okay=False), help="What the bundle came from, for diffusers."
)
@click.option("--prompt", default=PROMPT, show_default=True)
@click.option("--num-inference-steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--guidance-scale", type=float, default=7.5, show_default=True)
@click.option("--size", type=Size(), help="Pixels, as in 512x512 [default: the model's own].")
@click.option("--threads", type=click.IntRange(min=1), help="The same for every runtime.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs behind each median.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0.0),
    default=0.0,
    show_default=True,
    help="Seconds that a peer's picture may take to be had without other processes disturbing it.",
)
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="The folder that the figures go to.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object on stdout.")
def bench(
    measures: tuple[str, ...],
    model: str,
    checkpoint: str | None,
    prompt: str,
    num_inference_steps: int,
    guidance_scale: float,
    size: tuple[int, int] | None,
    threads: int | None,
    repeats: int,
    patience: float,
    results: Path | None,
    as_json: bool,
) -> None:
    """Measure latency and memory on this machine.

    MEASURES: help (the command's start), fresh (a picture from a new process: cold, and with builds cached),
    steady (pictures in one process), peers (beside diffusers and plain onnxruntime; extra: peers). Without any:
    help, fresh and steady.
    """
    width, height = size or (None, None)
    job = Job(
        model=model,
        checkpoint=checkpoint,
        prompt=prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        width=width,
        height=height,
        threads=threads,
    )
    chosen = measures or MEASURES[:3]
    report = _measure(chosen, job, repeats, patience)
    path = write_report(report, results or default_results_folder(), chosen)
    if as_json:
        click.echo(json.dumps(report))
        return
    for line in summary_lines(report):
        click.echo(line)
    click.echo(f"written to {path}")


def _measure(chosen: tuple[str, ...], job: Job, repeats: int, patience: float = 0.0) -> dict[str, Any]:
    from tintype.bench.machine import load_average, machine_facts
    from tintype.bench.measures import measure_fresh, measure_help, measure_steady
    from tintype.bench.peers import judge_peers, measure_peers

    functions: dict[str, Callable[[Job, int], dict[str, Any]]] = {
        "help": measure_help,
        "fresh": measure_fresh,
        "steady": measure_steady,
        "peers": functools.partial(measure_peers, patience_seconds=patience),
    }
    report: dict[str, Any] = {"machine": machine_facts(job.threads), "job": dataclasses.asdict(job), "repeats": repeats}
    for name in dict.fromkeys(chosen):
        click.echo(f"measuring {name} ...", err=True)
        report[name] = functions[name](job, repeats)
    if "peers" in report:
        report["peer_bars"] = judge_peers(report["peers"])
    report["machine"]["load_average_at_end"] = load_average()
    return report


def summary_lines(report: dict[str, Any]) -> list[str]:
    """The figures that people ask for first, one a line."""
    machine = report["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']['physical']} cores, load {machine['load_average']}"]
    if "help" in report:
        lines.append(
            f"tintype --help        {report['help']['seconds']['median']:.3f} s (bar {report['help']['bar_seconds']} s)"
        )
    if "fresh" in report:
        fresh, steps = report["fresh"], report["job"]["num_inference_steps"]
        lines.append(f"{steps} steps, cold        {fresh['cold']['seconds']:.2f} s, {_rss(fresh['cold'])}")
        lines.append(f"{steps} steps, first       {fresh['first']['seconds']['median']:.2f} s, {_rss(fresh['first'])}")
        lines.append(f"torch imported        {'yes' if fresh['torch_imported'] else 'no'}")
    if "steady" in report:
        steady = report["steady"]
        lines.append(
            f"steady                {steady['seconds']['median']:.2f} s a picture, "
            f"{steady['steps_per_second']:.1f} steps/s, {_rss(steady)}"
        )
    for name, figures in report.get("peers", {}).items():
        seconds, loop = figures["seconds"]["median"], figures["denoise_seconds"]["median"]
        lines.append(
            f"{name:<21} {seconds:.2f} s a picture, {figures['ratio_to_tintype']:.2f}x; "
            f"loop {loop:.3f} s, {figures['loop_ratio_to_tintype']:.2f}x; {_rss(figures)}"
        )
    if "peers" in report:
        from tintype.bench.bars import lines as bar_lines

        lines += bar_lines(report["peer_bars"])
    return lines


def _rss(figures: dict[str, Any]) -> str:
    peak = figures["peak_rss_bytes"]
    return "peak unknown" if peak is None else f"peak {human_bytes(peak)}"
