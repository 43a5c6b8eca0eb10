"""Tintype on a GPU beside diffusers in float16, with SDPA and with torch.compile, on random weights of real shapes.

    make bench-gpu                                # an environment of its own, then everything below; hours, 30 GB
    python -m tintype.bench.gpu FOLDER [--shapes sd15,sdxl,sdxl-turbo] [--device cuda]
    python -m tintype.bench.gpu FOLDER --shapes tiny --device cpu --peers diffusers    # to try it without a GPU

First whether the device draws what the processor draws (postcard, see `gpu_checks`). Then each shape's bundle is made
where it is missing, and the peers take turns, each in a process of its own: milliseconds a step, seconds a picture,
the most memory of the device (nvidia-smi, beyond what it held before), and what the first picture ever costs: builds
and compilation, with empty caches. Results go to bench/results as JSON with the machine, the bars and whether each was
met. Nothing of this has been run on a GPU yet.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tintype.bench.bars import RatioBar, lines, verdict
from tintype.bench.device_memory import used_bytes
from tintype.bench.figures import summary
from tintype.bench.gpu_checks import check
from tintype.bench.job import PROMPT, Job
from tintype.bench.machine import load_average, machine_facts
from tintype.bench.report import default_results_folder, told_plainly, write_report
from tintype.bench.sd15 import Names
from tintype.bench.shapes import SHAPES
from tintype.bench.turns import Seat, Taken, take_turns

OURS, COMPILED, PLAIN = "tintype", "torch.compile", "diffusers"
PEERS = (PLAIN, COMPILED)
STEP_BAR, PICTURE_BAR, MEMORY_BAR = 0.8, 0.8, 0.7  # of torch.compile's
JUDGED = "sd15"  # the shape that the bars of time are for
WARM_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """What is measured. steps: in place of each shape's own."""

    folder: Path
    shapes: tuple[str, ...] = ("sd15", "sdxl", "sdxl-turbo")
    device: str = "cuda"
    peers: tuple[str, ...] = PEERS
    rounds: int = 3
    pictures: int = 2  # timed in each round
    steps: int | None = None
    compile_mode: str = "max-autotune"
    threads: int | None = None


def measure(plan: GpuPlan) -> dict[str, Any]:
    """By shape a table of the peers and the bars."""
    for cache in ("cache", "inductor"):  # so that the first picture is a first picture
        shutil.rmtree(plan.folder / cache, ignore_errors=True)
    report = {}
    for name in plan.shapes:
        ensure_bundle(plan.folder, name)
        taken = take_turns(seats_of(plan, name), plan.rounds, plan.pictures)
        table = {peer: peer_figures(turns, _steps(plan, name)) for peer, turns in taken.items()}
        report[name] = {"peers": table, "ratios": ratios(table), "bars": judge(name, table)}
    return report


def ensure_bundle(folder: Path, shape: str) -> Path:
    """The random bundle of a shape, made in a process of its own where it is missing."""
    bundle = folder / shape
    if not bundle.is_dir():
        click.echo(f"making {bundle}", err=True)
        command = [sys.executable, "-m", "tintype.bench.make_sdxl", str(bundle), "--shape", shape]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode != 0:
            raise click.ClickException(f"{bundle} could not be made; what it said is above")
    return bundle


def seats_of(plan: GpuPlan, name: str) -> dict[str, Seat]:
    """Every peer's job for one shape."""
    shape = SHAPES[name]
    job = Job(
        model=str(plan.folder / name),
        prompt=PROMPT,
        num_inference_steps=_steps(plan, name),
        guidance_scale=shape.guidance_scale,
        width=shape.side,
        height=shape.side,
        threads=plan.threads,
        sampler=shape.sampler,
        exactness="balanced",
        device=plan.device,
    )
    jobs = {
        OURS: ("tintype", job),
        PLAIN: ("diffusers-gpu", job),
        COMPILED: ("diffusers-gpu", dataclasses.replace(job, compile=plan.compile_mode)),
    }
    return {
        peer: Seat(kind, chosen, warm_steps=WARM_STEPS, opens_cold=True)
        for peer, (kind, chosen) in jobs.items()
        if peer == OURS or peer in plan.peers
    }


def peer_figures(turns: Taken, steps: int) -> dict[str, Any]:
    """A peer's figures, with milliseconds a step."""
    figures = turns.figures()
    figures["milliseconds_a_step"] = summary([1000 * answer["denoise_seconds"] / steps for answer in turns.answers])
    return figures


def ratios(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Tintype's step, picture and memory over each peer's."""
    found = {}
    for peer, figures in table.items():
        if peer != OURS:
            ours = table[OURS]
            found[peer] = {
                name: round(ours[name]["median"] / figures[name]["median"], 4)
                for name in ("milliseconds_a_step", "seconds")
            }
            if ours["device_peak_bytes"] and figures["device_peak_bytes"]:
                found[peer]["device_peak_bytes"] = round(ours["device_peak_bytes"] / figures["device_peak_bytes"], 4)
    return found


def judge(shape: str, table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bars of one shape, as far as the peer they are against was measured."""
    if COMPILED not in table:
        return []
    found = []
    if shape == JUDGED:
        for what, bar in (("milliseconds_a_step", STEP_BAR), ("seconds", PICTURE_BAR)):
            medians = {f"{peer}, {what}": figures[what]["median"] for peer, figures in table.items()}
            judged = RatioBar(f"{OURS}, {what}", f"{COMPILED}, {what}", bar).judge(medians)
            found += [judged] if judged is not None else []
    memory = {peer: figures["device_peak_bytes"] for peer, figures in table.items()}
    ratio = memory[OURS] / memory[COMPILED] if memory[OURS] and memory[COMPILED] else None
    found.append(verdict(f"{OURS} over {COMPILED}, the device's memory", ratio, at_most=MEMORY_BAR))
    return found


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """A line a peer and shape."""
    said = []
    for shape, part in report.items():
        for peer, figures in part["peers"].items():
            held = figures["device_peak_bytes"]
            said.append(
                f"{shape:<11} {peer:<14} {figures['milliseconds_a_step']['median']:8.1f} ms a step, "
                f"{figures['seconds']['median']:7.2f} s a picture, first {figures['cold_seconds']:.1f} s, "
                + ("device memory unknown" if held is None else f"{held / 2**30:.2f} GiB of the device")
            )
    return said


def gpu_facts() -> dict[str, Any]:
    """The cards, and what the first one held before anything was measured."""
    from tintype.engine import gpus

    return {"gpus": [dataclasses.asdict(card) for card in gpus()], "used_bytes_before": used_bytes()}


def _steps(plan: GpuPlan, name: str) -> int:
    return plan.steps if plan.steps is not None else SHAPES[name].steps


@click.command(help=(__doc__ or "").replace("\n\n    make", "\n\n\b\n    make"))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shapes", type=Names(tuple(SHAPES)), default="sd15,sdxl,sdxl-turbo", show_default=True)
@click.option("--device", default="cuda", show_default=True, help="Tintype's provider and torch's device.")
@click.option("--peers", type=Names(PEERS), default=",".join(PEERS), show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--pictures", type=click.IntRange(min=1), default=2, show_default=True, help="Timed in each round.")
@click.option("--steps", type=click.IntRange(min=2), help="In place of each shape's own.")
@click.option("--compile-mode", default="max-autotune", show_default=True, help="Of torch.compile.")
@click.option("--threads", type=click.IntRange(min=1), help="On a processor.")
@click.option("--checks/--no-checks", default=True, show_default=True, help="Compare postcard with the processor's.")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="Where the figures go.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout.")
def main(folder: Path, checks: bool, results: Path | None, as_json: bool, **chosen: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plan = GpuPlan(folder=folder.resolve(), **chosen)
    os.environ.setdefault("TINTYPE_CACHE", str(plan.folder / "cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(plan.folder / "inductor"))
    told = {name: value for name, value in dataclasses.asdict(plan).items() if name != "folder"}
    report: dict[str, Any] = {"machine": machine_facts(plan.threads), "gpu": gpu_facts(), "plan": told}
    if checks:
        click.echo(f"comparing {plan.device} with the processor", err=True)
        with told_plainly():
            report["checks"] = check(plan.device)
    report["shapes"] = measure(plan)
    report["machine"]["load_average_at_end"] = load_average()
    path = write_report(report, results or default_results_folder(), ("gpu",))
    if as_json:
        click.echo(json.dumps(report))
        return
    bars = [*report.get("checks", {}).get("bars", ()), *_all_bars(report["shapes"])]
    for line in [*summary_lines(report["shapes"]), *lines(bars)]:
        click.echo(line)
    click.echo(f"written to {path}")


def _all_bars(shapes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**bar, "what": f"{shape}: {bar['what']}"} for shape, part in shapes.items() for bar in part["bars"]]


if __name__ == "__main__":
    main()
