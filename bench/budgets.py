"""Memory budgets kept: from the smallest that is feasible to none at all, what was promised and what was used.

    python -m tintype.bench.budgets BUNDLE --sizes 512x512,768x768 --budgets 20

For each budget `tintype plan` makes and measures what it needs, then `tintype generate` runs in a process of its own.
Its peak is the most that it had resident (VmHWM), as the system tells, with what it had of a device's own memory.
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
from PIL import Image

from tintype.bench.figures import Verdict, bar_lines, picture_psnr_db, verdict
from tintype.bench.options import Sizes, command_help, count_option, results_option, threads_option
from tintype.bench.process import Run, run_process, tintype_command
from tintype.bench.report import Report
from tintype.bench.runner import Answer, Command, Measured, Schedule, measure
from tintype.bundle import open_bundle

PREDICTED = 0.10  # how far a prediction may be off, of what was measured
SAME_DB = 60.0
PROMPT = "a lighthouse on a cliff in the evening"
MIB = 2**20
MOST_PASSES = 6  # in which plans settle

Plan = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is measured. budgets: how many; given: budgets in bytes, beside the smallest, in place of a spread.

    slowest: by budget the most time it may take, the time without a budget being 1.
    """

    bundle: Path
    budgets: int
    rounds: int
    given: tuple[int, ...] = ()
    slowest: Mapping[int, float] = field(default_factory=dict)
    options: tuple[str, ...] = ()  # of `tintype plan` and `tintype generate` alike

    def plan(self, budget: int | None, size: str) -> Plan:
        """Within a budget, built and measured; `plan` is None where it is refused, with `message` and `least_bytes`."""
        command = tintype_command("plan", str(self.bundle), "--json", *self._options(budget, size))
        answer: Plan = json.loads(run_process(command, refusable=True).stdout)
        if "error" not in answer:
            return answer
        if "least_bytes" not in answer["error"]:
            raise click.ClickException(f"tintype plan failed: {answer['error']['message']}")
        return {"plan": None, **answer["error"]}

    def picture(self, budget: int | None, size: str, path: Path) -> Command:
        """A picture within a budget, to a file."""
        asked = (PROMPT, "--model", str(self.bundle), "-o", str(path), "--seed", "7", "--json")
        return Command(tintype_command("generate", *asked, *self._options(budget, size)), output=path, read=_read)

    def _options(self, budget: int | None, size: str) -> list[str]:
        return ["--size", size, *self.options, *([] if budget is None else ["--memory", str(budget)])]


def _read(run: Run) -> Answer:
    """Memory without children: one that still had to build is no part of the budget."""
    timings = json.loads(run.stdout)["timings"]
    seconds = {name: round(value, 3) for name, value in timings.items() if name.endswith("_seconds")}
    return {"peak_rss_bytes": run.own_peak_bytes, "device_bytes": timings["device_bytes"], **seconds}


def measure_size(sweep: Sweep, size: str) -> dict[str, Any]:
    """A row for each budget, none at all first, and the bars."""
    unlimited = _possible(sweep.plan(None, size), None)
    smallest = smallest_budget(lambda budget: sweep.plan(budget, size))
    largest = max(unlimited["peak_bytes"], unlimited["warm_bytes"])
    wanted = spread(smallest, int(largest * 1.05), sweep.budgets)
    if sweep.given:
        wanted = (smallest, *(budget for budget in sweep.given if budget > smallest))
    plans = settled(lambda: {budget: _possible(sweep.plan(budget, size), budget) for budget in wanted})
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
        paths = {budget: Path(scratch) / f"{budget}.png" for budget in (None, *wanted)}
        commands = {str(budget): sweep.picture(budget, size, path) for budget, path in paths.items()}
        measured = measure(commands, Schedule(rounds=sweep.rounds))
        pictures = {budget: np.asarray(Image.open(path)) for budget, path in paths.items()}
    whole = _seconds(measured[str(None)])
    table = [
        _row(budget, unlimited if budget is None else plans[budget], measured[str(budget)], whole)
        | {"psnr_db": round(picture_psnr_db(pictures[None], picture), 2)}
        for budget, picture in pictures.items()
    ]
    return {"smallest_budget_bytes": smallest, "budgets": table, "bars": judge(table, sweep.slowest)}


def _possible(answer: Plan, budget: int | None) -> Plan:
    if answer["plan"] is None:
        raise click.ClickException(f"no plan within {_name(budget)}: {answer['message']}")
    return dict(answer["plan"])


def smallest_budget(plan: Callable[[int], Plan]) -> int:
    """The smallest budget in bytes that a plan is found for, as the refusal of an impossible one names it."""
    least = MIB
    while (answer := plan(least))["plan"] is None:
        least = max(least + MIB, int(answer["least_bytes"]))
    return least


def settled(make: Callable[[], dict[int, Plan]]) -> dict[int, Plan]:
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


def _seconds(made: Measured) -> float:
    return median(answer["total_seconds"] for answer in made.answers)


def _row(budget: int | None, plan: Plan, made: Measured, whole_seconds: float) -> dict[str, Any]:
    peak = max(answer["peak_rss_bytes"] + answer["device_bytes"] for answer in made.answers)
    return {
        "budget_bytes": budget,
        "peak_bytes": peak,
        "planned_peak_bytes": plan["peak_bytes"],
        "used": round(peak / budget, 4) if budget is not None else None,
        "prediction_off": round(abs(plan["peak_bytes"] - peak) / peak, 4),
        "seconds": round(_seconds(made), 3),
        "planned_seconds": plan["seconds"],
        "ratio_to_no_budget": round(_seconds(made) / whole_seconds, 4),
        "held": {stage["role"]: stage["held"] + " split" * stage["split_guidance"] for stage in plan["stages"]},
        "resident_together": plan["resident_together"],
        "runs": made.answers,
    }


def judge(table: Sequence[Mapping[str, Any]], slowest: Mapping[int, float] | None = None) -> list[Verdict]:
    """The bars that every budget has to meet, and those of time that some have."""
    rows = {row["budget_bytes"]: row for row in table if row["budget_bytes"] is not None}
    return [
        *(
            verdict(f"time within {_name(budget)} over no budget", rows[budget]["ratio_to_no_budget"], at_most=most)
            for budget, most in (slowest or {}).items()
            if budget in rows
        ),
        verdict("most of a budget that was used", max(row["used"] for row in rows.values()), at_most=1.0),
        verdict("worst prediction of a peak", max(row["prediction_off"] for row in rows.values()), at_most=PREDICTED),
        verdict("worst picture, dB", min(row["psnr_db"] for row in rows.values()), at_least=SAME_DB),
    ]


def given_budgets(text: str) -> tuple[tuple[int, ...], dict[int, float]]:
    """Bytes of each budget in `1024,2048:1.15`, and by budget the time it may take where a colon says so."""
    entries = [each.partition(":") for each in text.split(",") if each]
    try:
        slowest = {int(mib) * MIB: float(most) for mib, _, most in entries if most}
        return tuple(int(mib) * MIB for mib, _, _ in entries), slowest
    except ValueError:
        raise click.UsageError(f"{text!r} are no budgets: give them as in 1024,2048:1.15") from None


def _name(budget: int | None) -> str:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


@click.command(help=command_help(__doc__))
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sizes", type=Sizes(), default="512x512", show_default=True, help="Width x height, pixels.")
@count_option("--budgets", default=20, least=2, help="How many, spread evenly.")
@click.option(
    "--given",
    default="",
    help="Budgets in MiB with commas between, beside the smallest, in place of a spread; each may be followed by a "
    "colon and the most time it may take, the time without a budget being 1: 1024:1.5,2048:1.15.",
)
@count_option("--steps", default=2, help="Denoising steps.")
@count_option("--rounds", default=1, help="Runs of each budget, in turn.")
@click.option("--exactness", type=click.Choice(["exact", "balanced"]), default="exact", show_default=True)
@threads_option(2)
@click.option("--provider", default="cpu", show_default=True, help="What computes, as in tintype generate.")
@results_option
def main(
    bundle: Path, sizes: tuple[tuple[int, int], ...], budgets: int, given: str, rounds: int, results: Path | None,
    steps: int, **chosen: Any,
) -> None:  # fmt: skip
    os.environ.setdefault("TINTYPE_CACHE", str(bundle.resolve().parent / "cache"))
    asked = {"num-inference-steps": steps, **chosen}
    options = tuple(str(word) for name, value in asked.items() for word in (f"--{name}", value))
    wanted, slowest = given_budgets(given)
    sweep = Sweep(bundle=bundle, budgets=budgets, rounds=rounds, given=wanted, slowest=slowest, options=options)
    name, plan = open_bundle(bundle).name, {"steps": steps, "rounds": rounds, "exactness": chosen["exactness"]}
    facts = {"bundle": name, "plan": plan, "provider": chosen["provider"], "sizes": {}}
    with Report(("budgets", name), results, threads=chosen["threads"], **facts) as report:
        for width, height in sizes:
            size = f"{width}x{height}"
            report["sizes"][size] = measure_size(sweep, size)
            report.lines += [size, *bar_lines(report["sizes"][size]["bars"])]
        plot(report, report.path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
