"""Tintype on a GPU beside diffusers in float16, with SDPA and with torch.compile, on random weights of real shapes.

    make bench-gpu                                # an environment of its own, then everything below; hours, 30 GB
    python -m tintype.bench.gpu FOLDER [--shapes sd15,sdxl,sdxl-turbo] [--device cuda]
    python -m tintype.bench.gpu FOLDER --shapes tiny --device cpu --peers diffusers    # to try it without a GPU

Nothing of this has been run on a GPU yet.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tintype.bench.device_memory import used_bytes
from tintype.bench.figures import Verdict, all_bars, bar_lines, judge_ratios, summary, table_lines, verdict
from tintype.bench.job import Job
from tintype.bench.options import Names, command_help, count_option, json_option, results_option
from tintype.bench.parity import check
from tintype.bench.report import Report
from tintype.bench.runner import Changes, Measured, Peer, Schedule, measure
from tintype.bench.shapes import SHAPES
from tintype.engine import gpus

OURS, COMPILED, PLAIN = "tintype", "torch.compile", "diffusers"
PEERS = (PLAIN, COMPILED)
STEP_BAR, PICTURE_BAR, MEMORY_BAR = 0.8, 0.8, 0.7  # of torch.compile's
JUDGED = "sd15"  # the shape that the bars of time are for
WARM_STEPS = 2
COLUMNS = {
    "milliseconds_a_step": "{:8.1f} ms a step",
    "seconds": "{:7.2f} s a picture",
    "cold_seconds": "first {:.1f} s",
    "device_peak_bytes": "{:,.0f} MiB of the device",
}


@click.command(help=command_help(__doc__))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shapes", type=Names(SHAPES), default="sd15,sdxl,sdxl-turbo", show_default=True)
@click.option("--device", default="cuda", show_default=True, help="Tintype's provider and torch's device.")
@click.option("--peers", type=Names(PEERS), default=",".join(PEERS), show_default=True)
@count_option("--rounds", default=3)
@count_option("--pictures", default=2, help="Timed in each round.")
@count_option("--steps", default=None, least=2, help="In place of each shape's own.")
@click.option("--compile-mode", default="max-autotune", show_default=True, help="Of torch.compile.")
@count_option("--threads", default=None, help="On a processor.")
@click.option("--checks/--no-checks", default=True, show_default=True, help="Compare postcard with the processor's.")
@results_option
@json_option
def main(folder: Path, checks: bool, results: Path | None, as_json: bool, **chosen: Any) -> None:
    folder = folder.resolve()
    os.environ.setdefault("TINTYPE_CACHE", str(folder / "cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    cards = {"gpus": [dataclasses.asdict(card) for card in gpus()], "used_bytes_before": used_bytes()}
    facts = {"threads": chosen["threads"], "as_json": as_json, "gpu": cards, "plan": chosen}
    with Report(("gpu",), results, **facts) as report:
        if checks:
            click.echo(f"comparing {chosen['device']} with the processor", err=True)
            report["checks"] = check(chosen["device"])
        for cache in ("cache", "inductor"):  # so that the first picture is a first picture
            shutil.rmtree(folder / cache, ignore_errors=True)
        report["shapes"] = {}
        for shape in chosen["shapes"]:
            ensure_bundle(folder, shape)
            report["shapes"][shape] = measure_shape(shape, peers_of(folder, shape, **chosen), chosen["rounds"])
            report.lines += table_lines(report["shapes"][shape]["peers"], COLUMNS, f"{shape:<11} ")
        report.lines += bar_lines([*report.get("checks", {}).get("bars", ()), *all_bars(report["shapes"])])


def ensure_bundle(folder: Path, shape: str) -> None:
    """The random bundle of a shape, made in a process of its own where it is missing."""
    if not (folder / shape).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        click.echo(f"making {folder / shape}", err=True)
        command = [sys.executable, "-m", "tintype.bench.make_sdxl", str(folder / shape), "--shape", shape]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode != 0:
            raise click.ClickException(f"{folder / shape} could not be made; what it said is above")


def peers_of(
    folder: Path, name: str, *, peers: Sequence[str] = PEERS, device: str = "cuda", steps: int | None = None,
    pictures: int = 2, compile_mode: str = "max-autotune", threads: int | None = None, **_: Any,
) -> dict[str, Peer]:  # fmt: skip
    """Every contestant for one shape."""
    shape = SHAPES[name]
    job = Job(
        model=str(folder / name), num_inference_steps=steps or shape.steps, width=shape.side,
        height=shape.side, guidance_scale=shape.guidance_scale, sampler=shape.sampler, threads=threads, device=device,
        exactness="balanced",
    )  # fmt: skip
    compiled = dataclasses.replace(job, compile=compile_mode)
    jobs = {OURS: ("tintype", job), PLAIN: ("diffusers", job), COMPILED: ("diffusers", compiled)}
    warm_ups: Sequence[Changes] = ({"num_inference_steps": WARM_STEPS},)
    requests: Sequence[Changes] = [{}] * pictures
    return {
        peer: Peer(kind, chosen, warm_ups=warm_ups, requests=requests, opens_cold=True)
        for peer, (kind, chosen) in jobs.items()
        if peer in (OURS, *peers)
    }


def measure_shape(name: str, peers: Mapping[str, Peer], rounds: int) -> dict[str, Any]:
    """A table of the contestants, our ratios to each, and the bars."""
    steps = {peer: contestant.job.num_inference_steps for peer, contestant in peers.items()}  # type: ignore[union-attr]
    measured = measure(peers, Schedule(rounds=rounds))
    table = {peer: peer_figures(made, steps[peer]) for peer, made in measured.items()}
    return {"peers": table, "ratios": ratios(table), "bars": judge(name, table)}


def peer_figures(made: Measured, steps: int) -> dict[str, Any]:
    """A contestant's figures, with milliseconds a step."""
    a_step = summary([1000 * answer["denoise_seconds"] / steps for answer in made.answers])
    return {**made.figures(), "milliseconds_a_step": a_step}


def ratios(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Our step, picture and memory over each peer's."""
    ours, found = table[OURS], {}
    for peer, figures in table.items():
        if peer != OURS:
            medians = ("milliseconds_a_step", "seconds")
            found[peer] = {name: round(ours[name]["median"] / figures[name]["median"], 4) for name in medians}
            memory = memory_ratio(ours, figures)
            found[peer] |= {} if memory is None else {"device_peak_bytes": round(memory, 4)}
    return found


def memory_ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
    """Of the device's memory; None where nobody told it."""
    known = ours["device_peak_bytes"] and theirs["device_peak_bytes"]
    return float(ours["device_peak_bytes"] / theirs["device_peak_bytes"]) if known else None


def judge(shape: str, table: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """The bars of one shape, as far as the peer they are against was measured."""
    if COMPILED not in table:
        return []
    bars = []
    for what, most in (("milliseconds_a_step", STEP_BAR), ("seconds", PICTURE_BAR)) if shape == JUDGED else ():
        named = {f"{peer}, {what}": figures for peer, figures in table.items()}
        bars += judge_ratios([(f"{OURS}, {what}", f"{COMPILED}, {what}", most)], named, what)
    memory = memory_ratio(table[OURS], table[COMPILED])
    return [*bars, verdict(f"{OURS} over {COMPILED}, the device's memory", memory, at_most=MEMORY_BAR)]


if __name__ == "__main__":
    main()
