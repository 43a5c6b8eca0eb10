"""`tintype bench`: measure, print a few lines, and keep everything in a dated JSON file with the machine's name.

cold = first ever on this machine (graphs are built, kernels not timed), first = a fresh process with its builds cached,
steady = the second picture and later ones of one process, its kernels timed before (`tintype build`).
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tintype.bench.figures import Table, Verdict, add_ratios, bar_lines, judge_outside, judge_ratios, table_lines
from tintype.bench.job import PROMPT, Job, build_arguments, generate_arguments
from tintype.bench.options import count_option, json_option, patience_option, results_option, threads_option
from tintype.bench.process import Run, imported_modules, tintype_command
from tintype.bench.report import Report
from tintype.bench.runner import Answer, Command, Measured, Peer, Schedule, measure
from tintype.cli.options import Size

MEASURES = ("help", "fresh", "steady", "peers")
HELP_BAR_SECONDS = 0.3
NEVER_IMPORTED = frozenset({"torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript"})
BALANCED = "tintype-balanced"  # beside tintype as the bundle asks for it
PEERS = ("tintype", BALANCED, "diffusers", "onnxruntime")
COLUMNS = {
    "seconds": "{:.3f} s",
    "bar_seconds": "bar {} s",
    "ratio_to_tintype": "{:.2f}x",
    "steps_per_second": "{:.1f} steps/s",
    "denoise_seconds": "loop {:.3f} s",
    "loop_ratio_to_tintype": "{:.2f}x",
    "peak_rss_bytes": "peak {:,.0f} MiB",
}
LOOP_BAR = 0.7  # of plain onnxruntime's, on the same exported graphs, which round activations as `balanced` does


@click.command()
@click.argument("measures", nargs=-1, type=click.Choice(MEASURES))
@click.option("--model", default="postcard", show_default=True, help="A bundle's folder, or an embedded name.")
@click.option(
    "--checkpoint", type=click.Path(exists=True, file_okay=False), help="What the bundle came from, for diffusers."
)
@click.option("--prompt", default=PROMPT, show_default=True)
@count_option("--num-inference-steps", default=20)
@click.option("--guidance-scale", type=float, default=7.5, show_default=True)
@click.option("--size", type=Size(), help="Pixels, as in 512x512 [default: the model's own].")
@threads_option(None)
@count_option("--repeats", default=5, help="Runs behind each median.")
@patience_option(0.0)
@results_option
@json_option
def bench(
    measures: tuple[str, ...],
    size: tuple[int, int] | None,
    repeats: int,
    patience_seconds: float,
    results: Path | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Measure latency and memory on this machine.

    MEASURES: help (the command's start), fresh (a picture from a new process: cold, and with builds cached),
    steady (pictures in one process), peers (beside diffusers and plain onnxruntime; extra: peers). Without any:
    help, fresh and steady.
    """
    width, height = size or (None, None)
    job = Job(width=width, height=height, **fields)
    chosen = measures or MEASURES[:3]
    facts = {"job": dataclasses.asdict(job), "repeats": repeats}
    with Report(chosen, results, threads=job.threads, as_json=as_json, **facts) as report:
        for name in dict.fromkeys(chosen):
            click.echo(f"measuring {name} ...", err=True)
            report[name] = FUNCTIONS[name](job, repeats, patience_seconds)
        if "peers" in report:
            report["peer_bars"] = judge_peers(report["peers"])
        report.lines = summary_lines(report)


def measure_help(job: Job, repeats: int, patience_seconds: float = 0.0) -> dict[str, Any]:
    """`tintype --help`, from spawn to exit; the first one reads the files from disk and compiles them."""
    schedule = Schedule(rounds=max(repeats, 9), patience_seconds=patience_seconds)
    command = Command(tintype_command("--help"), opens_cold=True)
    seconds = measure({"help": command}, schedule)["help"].figures()["seconds"]
    return {"seconds": seconds, "bar_seconds": HELP_BAR_SECONDS, "within_bar": seconds["median"] <= HELP_BAR_SECONDS}


def measure_fresh(job: Job, repeats: int, patience_seconds: float = 0.0) -> dict[str, Any]:
    """`tintype generate`, from spawn to the file on disk: cold once, then first `repeats` times."""
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as folder:
        cold, first = fresh_commands(job, Path(folder))
        (ever,) = measure({"cold": cold}, Schedule(rounds=1))["cold"].answers
        made = measure({"first": first}, Schedule(rounds=repeats, patience_seconds=patience_seconds))["first"]
        modules = imported_modules(generate_arguments(job, Path(folder) / "picture.png"), first.environment)
    figures = made.figures()
    return {
        "cold": {"seconds": round(ever["seconds"], 4), "peak_rss_bytes": ever["peak_rss_bytes"]},
        "first": {
            **{name: figures[name] for name in ("seconds", "peak_rss_bytes", "others_share") if name in figures},
            "steps_per_second": _steps_per_second(job, made),
        },
        "imported_heavy": sorted(modules & NEVER_IMPORTED),
        "torch_imported": "torch" in modules,
        "timings": made.answers[-1]["timings"],
    }


def fresh_commands(job: Job, folder: Path) -> tuple[Command, Command]:
    """A picture from a fresh process, as a user asks for it: with nothing built, and with what that one built."""
    picture, cache = folder / "picture.png", folder / "cache"
    command = tintype_command(*generate_arguments(job, picture))
    first = Command(command, output=picture, read=_timings, environment={"TINTYPE_CACHE": str(cache)})
    return dataclasses.replace(first, anew=cache), first


def _timings(run: Run) -> Answer:
    timings = json.loads(run.stdout)["timings"]
    return {"timings": timings, "denoise_seconds": timings["denoise_seconds"]}


def measure_steady(job: Job, repeats: int, patience_seconds: float = 0.0) -> dict[str, Any]:
    """Pictures in one process after the first: seconds each, steps a second, and the process's peak memory."""
    schedule = Schedule(rounds=repeats, resident=True, patience_seconds=patience_seconds)
    made = measure({"tintype": Peer("tintype", job, build=build_arguments(job))}, schedule)["tintype"]
    figures = made.figures()
    return {
        "load_seconds": made.loads[0],
        "opening_seconds": round(made.warm[0]["seconds"], 4),
        "seconds": figures["seconds"],
        "steps_per_second": _steps_per_second(job, made),
        "peak_rss_bytes": figures["peak_rss_bytes"],
    }


def measure_peers(
    job: Job, repeats: int, patience_seconds: float = 0.0, names: tuple[str, ...] = PEERS
) -> dict[str, dict[str, Any]]:
    """Whole pictures from each runtime, one after another in each round; ratios are peer over tintype, by medians."""
    balanced = dataclasses.replace(job, exactness="balanced")
    ours = {"tintype": job, BALANCED: balanced}
    peers = {name: Peer("tintype", ours[name], build=build_arguments(ours[name])) for name in names if name in ours}
    peers = {name: peers.get(name) or Peer(name, job) for name in names}
    measured = measure(peers, Schedule(rounds=repeats, resident=True, patience_seconds=patience_seconds))
    table = {name: _peer_figures(made) for name, made in measured.items()}
    add_ratios(table, "tintype", "ratio_to_tintype", digits=3)
    add_ratios(table, "tintype", "loop_ratio_to_tintype", "denoise_seconds", digits=3)
    return table


def _peer_figures(made: Measured) -> dict[str, Any]:
    figures = made.figures()
    kept = ("seconds", "denoise_seconds", "peak_rss_bytes", "outside_share", "others_share")
    return {"load_seconds": made.loads[0], **{name: figures[name] for name in kept if name in figures}}


def judge_peers(table: Table) -> list[Verdict]:
    """The bars of a denoising loop: beside plain onnxruntime's, and what of it is spent outside the graphs."""
    loops = {f"{name}'s loop": figures for name, figures in table.items()}
    bar = (f"{BALANCED}'s loop", "onnxruntime's loop", LOOP_BAR)
    return judge_ratios([bar], loops, "denoise_seconds") + judge_outside({"tintype": table["tintype"]})


def _steps_per_second(job: Job, made: Measured) -> float:
    return round(job.num_inference_steps / statistics.median(each["denoise_seconds"] for each in made.answers), 2)


FUNCTIONS: dict[str, Callable[[Job, int, float], dict[str, Any]]] = {
    "help": measure_help,
    "fresh": measure_fresh,
    "steady": measure_steady,
    "peers": measure_peers,
}


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The figures that people ask for first, one a line."""
    machine, fresh = report["machine"], report.get("fresh", {})
    lines = [f"{machine['cpu']}, {machine['cores']['physical']} cores, load {machine['load_average']}"]
    rows = {
        "tintype --help": report.get("help"), "cold": fresh.get("cold"), "first": fresh.get("first"),
        "steady": report.get("steady"), **report.get("peers", {}),
    }  # fmt: skip
    lines += table_lines({name: figures for name, figures in rows.items() if figures is not None}, COLUMNS)
    if fresh:
        lines.append(f"torch imported        {'yes' if fresh['torch_imported'] else 'no'}")
    return lines + bar_lines(report.get("peer_bars", ()))
