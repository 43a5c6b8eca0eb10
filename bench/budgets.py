"""Memory budgets kept: from the smallest that is feasible to none at all, what was promised and what was used.

    python -m tintype.bench.budgets BUNDLE --sizes 512x512,768x768 --budgets 20

For each budget `tintype plan` makes and measures what it needs, then `tintype generate` runs in a process of its own.
Its peak is the most that it had resident (VmHWM), as the system tells, with what it had of a device's own memory.
Reported: peak <= budget, peak against the plan's, seconds against the plan's and against no budget, and how near the
picture is to the one without a budget.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tintype.bench.bars import lines, verdict
from tintype.bench.figures import picture_psnr_db
from tintype.bench.machine import load_average, machine_facts
from tintype.bench.process import run_process, tintype_command
from tintype.bench.report import default_results_folder, write_report
from tintype.bench.sd15 import Sizes
from tintype.bundle import open_bundle

PREDICTED = 0.10  # how far a prediction may be off, of what was measured
SAME_DB = 60.0
PROMPT = "a lighthouse on a cliff in the evening"
MIB = 2**20
MOST_PASSES = 6  # in which plans settle

Plans = dict[int, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is measured. budgets: how many; given: budgets in bytes, beside the smallest, in place of a spread.

    slowest: by budget the most time it may take, the time without a budget being 1.
    """

    bundle: Path
    sizes: tuple[tuple[int, int], ...]
    budgets: int
    given: tuple[int, ...] = ()
    slowest: Mapping[int, float] = field(default_factory=dict)
    steps: int = 2
    rounds: int = 1
    exactness: str = "exact"
    threads: int = 2
    provider: str = "cpu"


def measure_sweep(sweep: Sweep) -> dict[str, Any]:
    """A table by size, with its bars."""
    return {f"{width}x{height}": _measure_size(sweep, width, height) for width, height in sweep.sizes}


def _measure_size(sweep: Sweep, width: int, height: int) -> dict[str, Any]:
    unlimited = plan_for(sweep, width, height, None)
    smallest = smallest_budget(sweep, width, height)
    largest = max(unlimited["peak_bytes"], unlimited["again_bytes"])
    wanted = spread(smallest, int(largest * 1.05), sweep.budgets)
    if sweep.given:
        wanted = (smallest, *(budget for budget in sweep.given if budget > smallest))
    plans = settled(lambda: {budget: plan_for(sweep, width, height, budget) for budget in wanted})
    rows: dict[int | None, list[dict[str, Any]]] = {budget: [] for budget in (None, *wanted)}
    pictures: dict[int | None, NDArray[np.uint8]] = {}
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
        for _ in range(sweep.rounds):
            for budget, seen in rows.items():
                path = Path(scratch) / "picture.png"
                seen.append(_generate(sweep, width, height, budget, path))
                pictures[budget] = np.asarray(Image.open(path))
                click.echo(f"{width}x{height} {_told(budget)}: {seen[-1]}", err=True)
    table = [
        _row(budget, plans.get(budget) if budget is not None else unlimited, rows, pictures)  # type: ignore[arg-type]
        for budget in rows
    ]
    return {"smallest_budget_bytes": smallest, "budgets": table, "bars": judge(table, sweep.slowest)}


def settled(make: Callable[[], Plans]) -> Plans:
    """Plans that making them again does not change: what one measures may make another one better."""
    plans = make()
    for _ in range(MOST_PASSES):
        before, plans = plans, make()
        if all(_decided(plans[budget]) == _decided(before[budget]) for budget in plans):
            return plans
    raise click.ClickException(f"the plans still change after being made {MOST_PASSES + 1} times")


def _decided(plan: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a plan is, without figures, which differ a little between processes."""
    stages = ((stage["role"], stage["held"], stage["split_guidance"]) for stage in plan["stages"])
    return (plan["resident_together"], *stages)


def spread(smallest: int, largest: int, count: int) -> tuple[int, ...]:
    """Budgets from the smallest to the largest, each larger by one factor."""
    return tuple(int(number) for number in np.geomspace(smallest, max(smallest, largest), count))


def judge(table: Sequence[Mapping[str, Any]], slowest: Mapping[int, float] | None = None) -> list[dict[str, Any]]:
    """The bars that every budget has to meet, and those of time that some have."""
    budgeted = [row for row in table if row["budget_bytes"] is not None]
    timed = [(row, (slowest or {}).get(row["budget_bytes"])) for row in budgeted]
    times = [
        verdict(f"time within {_told(row['budget_bytes'])} over no budget", row["ratio_to_no_budget"], at_most=most)
        for row, most in timed
        if most is not None
    ]
    return [
        *times,
        verdict("most of a budget that was used", max(row["used"] for row in budgeted), at_most=1.0),
        verdict("worst prediction of a peak", max(row["prediction_off"] for row in budgeted), at_most=PREDICTED),
        verdict("worst picture, dB", min(row["psnr_db"] for row in budgeted), at_least=SAME_DB),
    ]


def given_budgets(text: str) -> tuple[tuple[int, ...], dict[int, float]]:
    """Bytes of each budget in `1024,2048:1.15`, and by budget the time it may take where a colon says so."""
    told = [each.partition(":") for each in text.split(",") if each]
    try:
        slowest = {int(mib) * MIB: float(most) for mib, _, most in told if most}
        return tuple(int(mib) * MIB for mib, _, _ in told), slowest
    except ValueError:
        raise click.UsageError(f"{text!r} are no budgets: give them as in 1024,2048:1.15") from None


def smallest_budget(sweep: Sweep, width: int, height: int) -> int:
    """The smallest budget in bytes that a plan is found for, as the refusal of an impossible one names it."""
    least = MIB
    while True:
        done = _plan_or_refusal(sweep, width, height, least)
        if done["plan"] is not None:
            return least
        least = max(least + MIB, int(done["least_bytes"]))


def plan_for(sweep: Sweep, width: int, height: int, budget: int | None) -> dict[str, Any]:
    """The plan within a budget, built and measured."""
    found = _plan_or_refusal(sweep, width, height, budget)
    if found["plan"] is None:
        raise click.ClickException(f"no plan within {_told(budget)}: {found['message']}")
    return dict(found["plan"])


def _plan_or_refusal(sweep: Sweep, width: int, height: int, budget: int | None) -> dict[str, Any]:
    """`plan`, or None with the refusal's `message` and `least_bytes`."""
    command = _plan_command(sweep, width, height, budget)
    done = run_process(command, refusable=True)
    answer = json.loads(done.stdout)
    if "error" not in answer:
        return {"plan": answer["plan"]}
    if "least_bytes" not in answer["error"]:
        raise click.ClickException(f"{' '.join(command[:3])} failed: {answer['error']['message']}")
    return {"plan": None, **answer["error"]}


def _plan_command(sweep: Sweep, width: int, height: int, budget: int | None) -> list[str]:
    command = [*tintype_command(), "plan", str(sweep.bundle), "--json", *_common(sweep, width, height)]
    return command if budget is None else [*command, "--memory", str(budget)]


def _common(sweep: Sweep, width: int, height: int) -> list[str]:
    said = {
        "--size": f"{width}x{height}",
        "--num-inference-steps": sweep.steps,
        "--exactness": sweep.exactness,
        "--threads": sweep.threads,
        "--provider": sweep.provider,
    }
    return [str(word) for pair in said.items() for word in pair]


def _generate(sweep: Sweep, width: int, height: int, budget: int | None, path: Path) -> dict[str, Any]:
    command = [*tintype_command(), "generate", PROMPT, "--model", str(sweep.bundle), "-o", str(path), "--seed", "7"]
    command += ["--json", *_common(sweep, width, height)]
    command += [] if budget is None else ["--memory", str(budget)]
    run = run_process(command, with_children=False)  # a child that still had to build is no part of the budget
    timings = json.loads(run.stdout)["timings"]
    seconds = {name: round(value, 3) for name, value in timings.items() if name.endswith("_seconds")}
    return {"peak_rss_bytes": run.peak_rss_bytes, "device_bytes": timings["device_bytes"], **seconds}


def _row(
    budget: int | None,
    plan: Mapping[str, Any],
    rows: Mapping[int | None, list[dict[str, Any]]],
    pictures: Mapping[int | None, NDArray[np.uint8]],
) -> dict[str, Any]:
    peak = max(row["peak_rss_bytes"] + row["device_bytes"] for row in rows[budget])
    seconds = median(row["total_seconds"] for row in rows[budget])
    whole = median(row["total_seconds"] for row in rows[None])
    held = {stage["role"]: stage["held"] + " split" * stage["split_guidance"] for stage in plan["stages"]}
    return {
        "budget_bytes": budget,
        "peak_bytes": peak,
        "planned_peak_bytes": plan["peak_bytes"],
        "used": round(peak / budget, 4) if budget is not None else None,
        "prediction_off": round(abs(plan["peak_bytes"] - peak) / peak, 4),
        "seconds": round(seconds, 3),
        "planned_seconds": plan["seconds"],
        "ratio_to_no_budget": round(seconds / whole, 4),
        "psnr_db": round(picture_psnr_db(pictures[None], pictures[budget]), 2),
        "held": held,
        "resident_together": plan["resident_together"],
        "runs": rows[budget],
    }


def _told(budget: int | None) -> str:
    return "no budget" if budget is None else f"{budget / MIB:,.0f} MiB"


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Seconds against budget, a line a size, as an SVG or PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for size, part in report["sizes"].items():
        rows = sorted((row["peak_bytes"] / MIB, row["ratio_to_no_budget"]) for row in part["budgets"])
        axes.plot(*zip(*rows, strict=True), marker="o", label=size)
    axes.set(xscale="log", xlabel="peak memory of the process, MiB", ylabel="time against no budget")
    axes.set_title(report["bundle"])
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sizes", type=Sizes(), default="512x512", show_default=True, help="Width x height, pixels.")
@click.option("--budgets", type=click.IntRange(min=2), default=20, show_default=True, help="How many, spread evenly.")
@click.option(
    "--given",
    default="",
    help="Budgets in MiB with commas between, beside the smallest, in place of a spread; each may be followed by a "
    "colon and the most time it may take, the time without a budget being 1: 1024:1.5,2048:1.15.",
)
@click.option("--steps", type=click.IntRange(min=1), default=2, show_default=True, help="Denoising steps.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each budget, in turn."
)
@click.option("--exactness", type=click.Choice(["exact", "balanced"]), default="exact", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--provider", default="cpu", show_default=True, help="What computes, as in tintype generate.")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="Where the figures go.")
def main(given: str, results: Path | None, **chosen: Any) -> None:
    budgets, slowest = given_budgets(given)
    sweep = Sweep(given=budgets, slowest=slowest, **chosen)
    os.environ.setdefault("TINTYPE_CACHE", str(sweep.bundle.resolve().parent / "cache"))
    report: dict[str, Any] = {"machine": machine_facts(sweep.threads), "bundle": open_bundle(sweep.bundle).name}
    report["plan"] = {"steps": sweep.steps, "rounds": sweep.rounds, "exactness": sweep.exactness}
    report["provider"] = sweep.provider
    report["sizes"] = measure_sweep(sweep)
    report["machine"]["load_average_at_end"] = load_average()
    path = write_report(report, results or default_results_folder(), ("budgets", report["bundle"]))
    plot(report, path.with_suffix(".svg"))
    for size, part in report["sizes"].items():
        click.echo("\n".join([size, *lines(part["bars"])]))
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
