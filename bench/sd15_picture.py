"""Whole pictures at the size of Stable Diffusion 1.5: beside OpenVINO and stable-diffusion.cpp, and the first ever."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tintype.bench.command import fresh_commands
from tintype.bench.figures import Table, Verdict, add_ratios, judge_outside, judge_ratios, summary, verdict
from tintype.bench.job import Job, build_arguments
from tintype.bench.runner import Measured, Peer, Schedule, measure

SDCPP = "stable-diffusion.cpp"
PEERS = ("openvino-f32", "openvino-int8", SDCPP)
# The worker, bundle, source of weights and exactness of each contestant, in the forms that `make` leaves.
SOURCES: dict[str, tuple[str, str, str, str | None]] = {
    "openvino-f32": ("openvino", "fp32", "openvino-f32", None),
    "openvino-int8": ("openvino", "fp32", "openvino-int8", None),
    SDCPP: (SDCPP, "fp32", "sdcpp", None),
    "tintype-exact": ("tintype", "fp32", "checkpoint", "exact"),
    "tintype-balanced": ("tintype", "int8", "checkpoint", "balanced"),
}
RATIO_BARS = (
    ("tintype-exact", "openvino-f32", 0.70),
    ("tintype-balanced", "openvino-f32", 0.50),
    ("tintype-balanced", "openvino-int8", 1.0),
    ("tintype-exact", SDCPP, 0.35),
    ("tintype-balanced", SDCPP, 0.35),
)
COLD_TIMES, COLD_SECONDS = 1.5, 10.0  # a first picture takes at most so many times a later one, and so much more
COLUMNS = {
    "seconds": "{:8.2f} s a picture",
    "seconds_a_step": "{:.2f} s a step",
    "ratio_to_openvino-f32": "{:.2f}x OpenVINO f32",
    "projected_from_steps": "projected from {} steps",
}


def picture_job(folder: Path, name: str, size: tuple[int, int], steps: int, threads: int | None) -> Job:
    """A contestant's job; the size is pixels, width first."""
    _, bundle, source, exactness = SOURCES[name]
    width, height = size
    return Job(
        model=str(folder / bundle), checkpoint=str(folder / source), num_inference_steps=steps, width=width,
        height=height, threads=threads, sampler="euler", exactness=exactness,
    )  # fmt: skip


def peer_jobs(
    folder: Path, *, size: tuple[int, int] = (512, 512), num_inference_steps: int = 20, peers: Sequence[str] = PEERS,
    exactness: Sequence[str] = ("exact", "balanced"), measured_steps: int | None = None, sdcpp_steps: int | None = None,
    threads: int | None = 2,
) -> dict[str, Job]:  # fmt: skip
    """Every contestant's job. measured_steps: fewer for every peer, and sdcpp_steps for stable-diffusion.cpp."""
    steps = dict.fromkeys((*peers, *(f"tintype-{each}" for each in exactness)), measured_steps or num_inference_steps)
    if SDCPP in steps:
        steps[SDCPP] = sdcpp_steps or steps[SDCPP]
    return {name: picture_job(folder, name, size, count, threads) for name, count in steps.items()}


def measure_picture(jobs: dict[str, Job], schedule: Schedule, steps: int) -> dict[str, Any]:
    """One picture a peer and round, after one of a single step that warms up; ours of builds that are timed.

    steps: of the whole picture. A peer whose job has fewer, because it takes minutes, is projected: what it took
    outside the loop, and its seconds a step times the picture's steps (`projected_from_steps`).
    """
    measured = measure({name: contestant(name, job) for name, job in jobs.items()}, schedule)
    table = {name: picture_figures(made, jobs[name].num_inference_steps, steps) for name, made in measured.items()}
    for reference in PEERS:
        add_ratios(table, reference, f"ratio_to_{reference}")
    return {"peers": table, "bars": judge(table)}


def contestant(name: str, job: Job) -> Peer:
    """A warm-up picture of stable-diffusion.cpp would cost minutes and gain nothing: it keeps no pools or caches."""
    kind = SOURCES[name][0]
    warm_ups = () if name == SDCPP else ({"num_inference_steps": 1},)
    return Peer(kind, job, warm_ups=warm_ups, build=build_arguments(job) if kind == "tintype" else ())


def picture_figures(made: Measured, steps: int, wanted: int) -> dict[str, Any]:
    """A peer's figures; seconds of a picture of `wanted` steps, projected where it was given others."""
    figures = made.figures()
    a_step = [answer["denoise_seconds"] / steps for answer in made.answers]
    figures["seconds_a_step"] = summary(a_step)
    if steps != wanted:
        outside = [answer["seconds"] - answer["denoise_seconds"] for answer in made.answers]
        figures["measured_seconds"] = figures["seconds"]
        figures["seconds"] = summary([rest + wanted * step for rest, step in zip(outside, a_step, strict=True)])
        figures["projected_from_steps"] = steps
    return figures


def judge(table: Table) -> list[Verdict]:
    """The bars of whole pictures, as far as their peers were measured, and of the loop's own cost."""
    return judge_ratios(RATIO_BARS, table) + judge_outside(table)


def measure_cold(jobs: dict[str, Job], schedule: Schedule, later: int) -> dict[str, Any]:
    """The first picture ever of each job, from spawn to file with a cache that is empty in each round; the same with
    what that built; and `later` pictures in one process. Nobody timed the kernels."""
    report = {}
    for name, job in jobs.items():
        with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
            first, second = fresh_commands(job, Path(scratch))
            process = Peer("tintype", job, requests=[{}] * later, environment=second.environment)
            measured = measure({"first ever": first, "second process": second, "later": process}, schedule)
        table = {title: made.figures() for title, made in measured.items()}
        report[name] = {"peers": table, "bars": judge_cold(table)}
    return report


def judge_cold(table: Table) -> list[Verdict]:
    """The bar of a first picture, by medians."""
    first, later = (table[name]["seconds"]["median"] for name in ("first ever", "later"))
    most = round(COLD_TIMES * later + COLD_SECONDS, 4)
    return [verdict(f"first picture ever, {COLD_TIMES} x later + {COLD_SECONDS:g} s", first, at_most=most)]
