"""Whole pictures at the size of Stable Diffusion 1.5: Tintype, the same loop over OpenVINO, stable-diffusion.cpp.

A peer may be given fewer steps than the picture has, where it takes minutes; then its picture is what it took outside
the loop and its seconds a step times the picture's steps, and the report says so (`projected_from_steps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintype.bench.bars import RatioBar, verdict
from tintype.bench.figures import summary
from tintype.bench.job import PROMPT, Job
from tintype.bench.peers import OUTSIDE_BAR
from tintype.bench.turns import Seat, Taken, take_turns

SDCPP = "stable-diffusion.cpp"
PEERS = ("openvino-f32", "openvino-int8", SDCPP)
WARM_STEPS = 1

RATIO_BARS = (
    RatioBar("tintype-exact", "openvino-f32", 0.70),
    RatioBar("tintype-balanced", "openvino-f32", 0.50),
    RatioBar("tintype-balanced", "openvino-int8", 1.0),
    RatioBar("tintype-exact", SDCPP, 0.35),
    RatioBar("tintype-balanced", SDCPP, 0.35),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePlan:
    """What is measured; the size is pixels, width first."""

    folder: Path
    size: tuple[int, int] = (512, 512)
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    exactness: tuple[str, ...] = ("exact", "balanced")
    peers: tuple[str, ...] = PEERS
    measured_steps: int | None = None  # of each peer's picture; None: all of them
    sdcpp_steps: int | None = None  # of stable-diffusion.cpp's; None: as many as the others
    rounds: int = 3
    threads: int | None = 2
    lock: Path | None = None
    patience_seconds: float = 0.0  # for each picture to be had without other processes disturbing it


def measure_picture(plan: PicturePlan) -> dict[str, Any]:
    """One picture a peer and round, after one of a single step that warms up."""
    seats = seats_of(plan)
    taken = take_turns(seats, plan.rounds, 1, plan.lock, plan.patience_seconds)
    table = {
        name: picture_figures(turns, _steps(seats[name]), plan.num_inference_steps) for name, turns in taken.items()
    }
    for figures in table.values():
        for reference in plan.peers:
            ratio = figures["seconds"]["median"] / table[reference]["seconds"]["median"]
            figures[f"ratio_to_{reference}"] = round(ratio, 4)
    return {"peers": table, "bars": judge(table)}


def seats_of(plan: PicturePlan) -> dict[str, Seat]:
    """Every runtime's job, on the forms that `make` left in the folder."""
    kinds = {
        "openvino-f32": ("openvino", "fp32", "openvino-f32", None),
        "openvino-int8": ("openvino", "fp32", "openvino-int8", None),
        SDCPP: (SDCPP, "fp32", "sdcpp", None),
        "tintype-exact": ("tintype", "fp32", "checkpoint", "exact"),
        "tintype-balanced": ("tintype", "int8", "checkpoint", "balanced"),
    }
    seats = {}
    for name in (*plan.peers, *(f"tintype-{exactness}" for exactness in plan.exactness)):
        kind, bundle, source, exactness = kinds[name]
        fewer = (plan.sdcpp_steps if name == SDCPP else None) or plan.measured_steps
        job = Job(
            model=str(plan.folder / bundle),
            checkpoint=str(plan.folder / source),
            prompt=PROMPT,
            num_inference_steps=fewer or plan.num_inference_steps,
            guidance_scale=plan.guidance_scale,
            width=plan.size[0],
            height=plan.size[1],
            threads=plan.threads,
            sampler="euler",
            exactness=exactness,
        )
        # A warm-up picture of stable-diffusion.cpp would cost minutes and gain nothing: it keeps no pools or caches.
        seats[name] = Seat(kind, job, warm_steps=WARM_STEPS, warm_ups=int(name != SDCPP), opens_cold=kind == "tintype")
    return seats


def picture_figures(turns: Taken, steps: int, wanted: int) -> dict[str, Any]:
    """A peer's figures; seconds of a picture of `wanted` steps, projected where it was given others."""
    figures = turns.figures()
    a_step = [answer["denoise_seconds"] / steps for answer in turns.answers]
    figures["seconds_a_step"] = summary(a_step)
    if steps != wanted:
        outside = [answer["seconds"] - answer["denoise_seconds"] for answer in turns.answers]
        figures["measured_seconds"] = figures["seconds"]
        figures["seconds"] = summary([rest + wanted * step for rest, step in zip(outside, a_step, strict=True)])
        figures["projected_from_steps"] = steps
    return figures


def judge(table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bars of whole pictures, as far as their peers were measured, and of the loop's own cost."""
    medians = {name: figures["seconds"]["median"] for name, figures in table.items()}
    found = [judged for bar in RATIO_BARS if (judged := bar.judge(medians)) is not None]
    for name, figures in table.items():
        if "outside_share" in figures:
            share = figures["outside_share"]["median"]
            found.append(verdict(f"{name}, share of the loop outside the graph", share, at_most=OUTSIDE_BAR))
    return found


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """A line a peer."""
    said = []
    for name, figures in report["peers"].items():
        projected = figures.get("projected_from_steps")
        ratio = figures.get("ratio_to_openvino-f32")
        said.append(
            f"{name:<21} {figures['seconds']['median']:8.2f} s a picture, "
            f"{figures['seconds_a_step']['median']:.2f} s a step"
            + (f", {ratio:.2f}x OpenVINO f32" if ratio is not None else "")
            + (f" (projected from {projected} steps)" if projected is not None else "")
        )
    return said


def _steps(seat: Seat) -> int:
    assert isinstance(seat.job, Job)
    return seat.job.num_inference_steps
