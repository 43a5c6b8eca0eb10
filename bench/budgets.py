"""Memory budgets kept: from the smallest that is feasible to none at all, what was promised and what was used.

    tintype bench budgets BUNDLE --sizes 512x512,768x768 --budgets 20

For each budget `tintype plan` makes and measures what it needs, then `tintype generate` runs in a process of its own.
Its peak is the most that it had resident (VmHWM), as the system tells, with what it had of a device's own memory.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from tintype.bench.chart import draw_budgets, new_figure
from tintype.bench.command import read_timings
from tintype.bench.comparison import Bar, Comparison
from tintype.bench.job import Job, generate_arguments, plan_arguments
from tintype.bench.measurement import Report, count_option, folder_argument, measurement, sizes_option
from tintype.bench.process import Run, run_process, tintype_command
from tintype.bench.runner import Answer, Command
from tintype.bundle import open_bundle

PROMPT = "a lighthouse on a cliff in the evening"
MIB = 2**20
MOST_PASSES = 6  # in which plans settle
UNLIMITED = "no budget"
BARS = (
    Bar(figure="used", statistic="largest", at_most=1.0, what="most of a budget that was used"),
    Bar(figure="prediction_off", statistic="largest", at_most=0.10, what="worst prediction of a peak"),
    Bar(figure="psnr_db", statistic="smallest", at_least=60.0, what="worst picture, dB"),
)

Plan = dict[str, Any]


@measurement(
    "budgets",
    folder_argument("bundle", cache="../cache"),
    sizes_option("512x512"),
    count_option("--budgets", default=20, least=2, help="How many, spread evenly."),
    click.option(
        "--given",
        default="",
        help="Budgets in MiB with commas between, beside the smallest, in place of a spread; each may be followed by a "
        "colon and the most time it may take, the time without a budget being 1: 1024:1.5,2048:1.15.",
    ),
    count_option("--steps", default=2, help="Denoising steps."),
    click.option("--exactness", type=click.Choice(["exact", "balanced"]), default="exact", show_default=True),
    click.option(
        "--provider", "device", default="cpu", show_default=True, help="What computes, as in tintype generate."
    ),
    rounds=1,
    help=__doc__,
)
def main(
    report: Report, bundle: Path, sizes: Sequence[tuple[int, int]], budgets: int, given: str, steps: int, **fields: Any
) -> None:
    new_figure()  # its lack is told before hours of measuring
    wanted, slowest = given_budgets(given)
    report.names.append(open_bundle(bundle).name)
    usual = Job(model=str(bundle), prompt=PROMPT, num_inference_steps=steps, guidance_scale=None, **fields)
    for width, height in sizes:
        job = dataclasses.replace(usual, width=width, height=height)
        plans = settled_plans(job, budgets, wanted)
        report.compare(f"{width}x{height}", comparison(job, plans, slowest, report.scratch), plans=plans)
    draw_budgets(report.names[-1], report["parts"], report.path(".svg"))


def settled_plans(job: Job, count: int, given: Sequence[int]) -> dict[str, Plan]:
    """By a budget's name what was planned within it, none at all first, then the smallest; those given or a spread."""
    unlimited = possible(job, None)
    smallest = smallest_budget(lambda budget: plan(within(job, budget)))
    wanted = (smallest, *(budget for budget in given if budget > smallest))
    if not given:
        wanted = spread(smallest, int(max(unlimited["peak_bytes"], unlimited["warm_bytes"]) * 1.05), count)
    return {UNLIMITED: unlimited, **settled(lambda: {budget_name(each): possible(job, each) for each in wanted})}


def within(job: Job, budget: int | None) -> Job:
    return dataclasses.replace(job, memory=None if budget is None else str(budget))


def plan(job: Job) -> Plan:
    """Within a job's memory, built and measured; `plan` is None where it is refused, with `message`, `least_bytes`."""
    answer: Plan = json.loads(run_process(tintype_command(*plan_arguments(job)), refusable=True).stdout)
    if "error" not in answer:
        return answer
    if "least_bytes" not in answer["error"]:
        raise click.ClickException(f"tintype plan failed: {answer['error']['message']}")
    return {"plan": None, **answer["error"]}


def possible(job: Job, budget: int | None) -> Plan:
    """A plan with the budget it is within. ClickException where there is none."""
    answer = plan(within(job, budget))
    if answer["plan"] is None:
        raise click.ClickException(f"no plan within {budget_name(budget)}: {answer['message']}")
    return {**answer["plan"], "budget_bytes": budget}


def smallest_budget(plan: Callable[[int], Plan]) -> int:
    """The smallest budget in bytes that a plan is found for, as the refusal of an impossible one names it."""
    least = MIB
    while (answer := plan(least))["plan"] is None:
        least = max(least + MIB, int(answer["least_bytes"]))
    return least


def settled(make: Callable[[], dict[str, Plan]]) -> dict[str, Plan]:
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


def comparison(job: Job, plans: Mapping[str, Plan], slowest: Mapping[str, float], scratch: Path) -> Comparison:
    """A picture within each budget. slowest: by a budget's name the most time, that without a budget being 1."""
    commands = {}
    for name, planned in plans.items():
        picture = scratch / f"{name}.png"
        arguments = generate_arguments(within(job, planned["budget_bytes"]), picture, marked=False)
        read = functools.partial(read_peak, job, planned)
        commands[name] = Command(tintype_command(*arguments), output=picture, read=read)
    times = [Bar(name, "total_seconds", over=UNLIMITED, at_most=most) for name, most in slowest.items()]
    return Comparison(
        contestants=commands,
        near={name: UNLIMITED for name in plans if name != UNLIMITED},
        ratios=[("total_seconds", UNLIMITED)],
        bars=[*times, *BARS],
    )


def read_peak(job: Job, planned: Plan, run: Run) -> Answer:
    """A run's peak beside its budget and its plan. Memory without children: one that had to build is no part of it."""
    timings, budget = read_timings(job, run), planned["budget_bytes"]
    peak = (run.own_peak_bytes or 0) + timings["device_bytes"]
    off = abs(planned["peak_bytes"] - peak) / peak
    return {**timings, "peak_rss_bytes": peak, "used": budget and peak / budget, "prediction_off": off}


def spread(smallest: int, largest: int, count: int) -> tuple[int, ...]:
    """Budgets from the smallest to the largest, each larger by one factor."""
    return tuple(int(number) for number in np.geomspace(smallest, max(smallest, largest), count))


def given_budgets(text: str) -> tuple[tuple[int, ...], dict[str, float]]:
    """Bytes of each budget in `1024,2048:1.15`, and by a budget's name the time it may take where a colon says so."""
    entries = [each.partition(":") for each in text.split(",") if each]
    try:
        slowest = {budget_name(int(mib) * MIB): float(most) for mib, _, most in entries if most}
        return tuple(int(mib) * MIB for mib, _, _ in entries), slowest
    except ValueError:
        raise click.UsageError(f"{text!r} are no budgets: give them as in 1024,2048:1.15") from None


def budget_name(budget: int | None) -> str:
    return UNLIMITED if budget is None else f"{budget / MIB:,.1f} MiB".replace(".0 ", " ")
