"""What lasts: decodes in strips beside the whole, hundreds of pictures in one process, processes killed at any moment.

tintype bench memory strips BUNDLE [--role vae_encoder] [--sizes 512x512,1024x1024] [--strip-mib 4,8]
tintype bench memory pictures [BUNDLE]     # resident memory after the tenth and after the last
tintype bench memory kills [BUNDLE]        # builds and loads broken off; the next start has to work
"""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import click
import numpy as np

from tintype.bench.command import read_timings
from tintype.bench.figures import draw_budgets, file_psnr_db, new_figure, verdict
from tintype.bench.job import Job, generate_arguments, plan_arguments
from tintype.bench.measurement import BARS, Bar, Comparison, Report, measurement
from tintype.bench.options import EMBEDDED, Several, Size, Sizes, command_help
from tintype.bench.peers import graph_build
from tintype.bench.process import Run, run_process, tintype_command
from tintype.bench.runner import Answer, Command, Peer, measure
from tintype.bundle import open_bundle
from tintype.engine import read_strips

MIB = 2**20
SIZES = tuple(Size(side, side) for side in (512, 768, 1024))
TENTH = 10
NEAR_DB = 60.0  # each cache has builds of its own, whose kernels may be others: exact pictures, not the same bytes
KILLED_BETWEEN = (0.05, 1.0)  # of how long an undisturbed start takes
HANGS_SECONDS = 600.0  # a start that takes longer
CACHES = 5
BUDGETS_PROMPT = "a lighthouse on a cliff in the evening"
MOST_PASSES = 7  # in which plans settle
UNLIMITED = "no budget"
GIVEN = """Budgets in MiB with commas between, beside the smallest, in place of a spread; each may be followed by a
colon and the most time it may take, the time without a budget being 1: 1024:1.5,2048:1.15."""
Plan = dict[str, Any]


@click.group(help=command_help(__doc__))
def memory() -> None:
    pass


@measurement("memory-strips", rounds=1, group=memory, model=EMBEDDED)
def strips(
    report: Report, job: Job, role: Annotated[str, click.Choice(["vae_decoder", "vae_encoder"])] = "vae_decoder",
    sizes: Sizes = SIZES,
    strip_mib: Annotated[Sequence[float], Several(click.FLOAT)] = (4, 8, 16, 32, 64),
    calls: Annotated[int, "In each process."] = 2,
) -> None:  # fmt: skip
    """What a decode in strips costs in time and saves in memory, beside the whole: twice in a process of its own, the
    first time as for one picture, with all weights to be mapped. --role vae_encoder: the way back."""
    for size in sizes:
        whole = replace(job, role=role, width=size.width, height=size.height, exactness="exact")
        jobs = {"whole": whole, **{f"{mib:g}MiB": replace(whole, strip_bytes=int(mib * MIB)) for mib in strip_mib}}
        facts = {name: read_strips(graph_build(each)) for name, each in jobs.items()}  # makes the builds, too
        cut = {name: fact.stages for name, fact in facts.items() if fact is not None}
        peers = {name: Peer("tintype", each, warm_ups=(), requests=[{}] * calls) for name, each in jobs.items()}
        near = {name: "whole" for name in jobs if name != "whole"}
        ratios = (("seconds", "whole"), ("processor_seconds", "whole"))
        counts = {name: [len(list(stage.strips())) for stage in stages] for name, stages in cut.items()}
        comparison = Comparison(contestants=peers, near=near, ratios=ratios)
        report.compare(str(size), comparison, role=role, strips_a_stage=counts)


@measurement("endurance-pictures", rounds=1, threads=None, group=memory, model=EMBEDDED, memory=None)
def pictures(
    report: Report, job: Job, count: Annotated[int, click.IntRange(20), "Pictures."] = 200, steps: int = 4
) -> None:
    """Make pictures of one shape, then of shapes and batches that alternate, in one process."""
    job, table = replace(job, num_inference_steps=steps, device="cpu"), {}
    manifest = open_bundle(job.model).manifest
    default, limits = manifest.default_request, manifest.size
    usual = {"width": default.width, "height": default.height}
    wide = {**usual, "width": min(default.width + limits.multiple, limits.maximum)}
    shapes = {"one shape": [usual], "three shapes": [usual, wide, {**usual, "count": 2, "batch_size": 2}]}
    peers = {
        name: Peer("tintype", job, warm_ups=(), requests=[each[number % len(each)] for number in range(count)])
        for name, each in shapes.items()
    }
    for name, made in measure(peers, report.schedule).items():
        resident = [answer["rss_bytes"] for answer in made.answers]
        growth = round(growth_of(resident, len(shapes[name])), 4)
        table[name] = {**made.figures(), "shapes": shapes[name], "every_tenth_rss": resident[::10], "growth": growth}
    report.judge("pictures", table, BARS["memory pictures"])


def growth_of(resident: list[int], period: int) -> float:
    """How much the last pictures hold more than those from the tenth on, the largest of each shape in turn."""
    return max(resident[-period:]) / max(resident[TENTH - 1 : TENTH - 1 + period]) - 1


@measurement("endurance-kills", rounds=1, threads=None, group=memory, model=EMBEDDED, memory=None)
def kills(
    report: Report, job: Job, count: Annotated[int, "Processes killed while at it."] = 50,
    seed: Annotated[int, click.INT] = 0,
) -> None:  # fmt: skip
    """Kill a process and its children at a random moment of its first picture; then the next one has to make one."""
    job, folder = replace(job, num_inference_steps=2, exactness="exact", device="cpu"), report.scratch
    table, rows = {"undisturbed": start(job, folder, "undisturbed")}, list[dict[str, Any]]()
    moments, failures = random.Random(seed), 0
    while sum(row["was_running"] for row in rows) < count:
        cache = f"cache-{len(rows) % CACHES}"  # each is hit again where it was left
        rows.append(start(job, folder, cache, table["undisturbed"]["seconds"] * moments.uniform(*KILLED_BETWEEN)))
        if not rows[-1]["was_running"]:  # all is built: from the beginning
            failures += rows[-1]["exit_code"] != 0
            shutil.rmtree(folder / cache, ignore_errors=True)  # one that failed at once made none
    for cache in (f"cache-{number}" for number in range(min(CACHES, count))):
        table[cache] = start(job, folder, cache)
        near = file_psnr_db(folder / "undisturbed.png", folder / f"{cache}.png")
        left = [path.name for path in (folder / cache).rglob(".partial-*")]
        table[cache] |= {"psnr_db": near, "left": left}
        failures += near < NEAR_DB or bool(left)
    bar = verdict("next starts that failed, gave another picture or left something", failures, at_most=0)
    report.add("kills", {"peers": table, "bars": [bar]}, killed=rows)


def start(job: Job, folder: Path, cache: str, kill_after: float | None = None) -> dict[str, Any]:
    """A picture from a fresh process on a cache of its own; killed after so many seconds, whether it was at it."""
    command = tintype_command(*generate_arguments(job, folder / f"{cache}.png", marked=False))
    run = run_process(command, {"TINTYPE_CACHE": str(folder / cache)}, kill_after=kill_after or HANGS_SECONDS)
    if kill_after is None and run.exit_code != 0:
        raise click.ClickException(f"a start after a kill failed: {run.stderr.strip()[-400:]}")
    return {"seconds": round(run.seconds, 3), "was_running": run.was_killed, "exit_code": run.exit_code}


@measurement("budgets", rounds=1, model=EMBEDDED, exactness="exact", device="cpu")
def budgets(
    report: Report, job: Job, sizes: Sizes = SIZES[:1],
    budgets: Annotated[int, click.IntRange(2), "How many, spread evenly."] = 20,
    given: Annotated[str, GIVEN] = "",
    steps: Annotated[int, "Denoising steps."] = 2,
) -> None:  # fmt: skip
    """Memory budgets kept: from the smallest that is feasible to none at all, what was promised and what was used.

        tintype bench budgets BUNDLE --sizes 512x512,768x768 --budgets 20

    For each budget `tintype plan` makes and measures what it needs, then `tintype generate` runs in a process of its
    own. Its peak is the most that it had resident (VmHWM), with what it had of a device's own memory.
    """
    new_figure()  # its lack is told before hours of measuring
    wanted = given_budgets(given)
    report.names.append(open_bundle(job.model).name)
    job = replace(job, prompt=BUDGETS_PROMPT, num_inference_steps=steps, guidance_scale=None)
    for size in sizes:
        sized = replace(job, width=size.width, height=size.height)
        plans = settled_plans(sized, budgets, wanted)
        report.compare(str(size), comparison(sized, plans, wanted, report.scratch), plans=plans)
    draw_budgets(report.names[-1], report["parts"], report.path(".svg"))


def settled_plans(job: Job, count: int, given: Collection[int]) -> dict[str, Plan]:
    """By a budget's name what was planned within it, none at all first, then the smallest; those given or a spread."""
    unlimited, smallest = possible(job, None), MIB
    while isinstance(least := plan(job, smallest), int):
        smallest = max(smallest + MIB, least)
    wanted = (smallest, *(budget for budget in given if budget > smallest))
    if not given:
        wanted = spread(smallest, int(max(unlimited["peak_bytes"], unlimited["warm_bytes"]) * 1.05), count)
    return {UNLIMITED: unlimited, **settled(lambda: {budget_name(each): possible(job, each) for each in wanted})}


def plan(job: Job, budget: int | None) -> Plan | int:
    """Within so many bytes, built and measured; where it is refused, the least budget that the refusal names."""
    command = tintype_command(*plan_arguments(replace(job, memory=str(budget) if budget else None)))
    answer = json.loads(run_process(command, refusable=True).stdout)
    if "error" not in answer:
        return {**answer["plan"], "budget_bytes": budget}
    if "least_bytes" not in answer["error"]:
        raise click.ClickException(f"tintype plan failed: {answer['error']['message']}")
    return int(answer["error"]["least_bytes"])


def possible(job: Job, budget: int | None) -> Plan:
    """A plan with the budget it is within. ClickException where there is none."""
    if isinstance(made := plan(job, budget), int):
        raise click.ClickException(f"no plan within {budget_name(budget)}, which needs {budget_name(made)}")
    return made


def settled(make: Callable[[], dict[str, Plan]]) -> dict[str, Plan]:
    """Plans that making them again does not change, but for figures, which differ a little between processes: what one
    measures may make another one better."""
    before = None
    for _ in range(MOST_PASSES):
        plans = make()
        held = [[(each["role"], each["held"], each["split_guidance"]) for each in p["stages"]] for p in plans.values()]
        decided = [*zip((each["resident_together"] for each in plans.values()), held, strict=True)]
        if decided == before:
            return plans
        before = decided
    raise click.ClickException(f"the plans still change after being made {MOST_PASSES} times")


def comparison(job: Job, plans: Mapping[str, Plan], given: Mapping[int, float | None], scratch: Path) -> Comparison:
    """A picture within each budget. given: by bytes the most time, that without a budget being 1, or None."""
    commands = {}
    for name, planned in plans.items():
        picture, budget = scratch / f"{name}.png", planned["budget_bytes"]
        arguments = generate_arguments(replace(job, memory=str(budget) if budget else None), picture, marked=False)
        command, read = tintype_command(*arguments), functools.partial(read_peak, job, planned)
        commands[name] = Command(command, output=picture, read=read)
    slowest = {budget_name(budget): most for budget, most in given.items() if most is not None}
    times = [Bar(name, "total_seconds", over=UNLIMITED, at_most=most) for name, most in slowest.items()]
    near, ratios = {name: UNLIMITED for name in plans if name != UNLIMITED}, [("total_seconds", UNLIMITED)]
    return Comparison(contestants=commands, near=near, ratios=ratios, bars=[*times, *BARS["budgets"]])


def read_peak(job: Job, planned: Plan, run: Run) -> Answer:
    """A run's peak beside its budget and its plan. Memory without children: one that had to build is no part of it."""
    timings, budget = read_timings(job, run), planned["budget_bytes"]
    peak = (run.own_peak_bytes or 0) + timings["device_bytes"]
    off = abs(planned["peak_bytes"] - peak) / peak
    return {**timings, "peak_rss_bytes": peak, "used": budget and peak / budget, "prediction_off": off}


def spread(smallest: int, largest: int, count: int) -> tuple[int, ...]:
    """Budgets from the smallest to the largest, each larger by one factor."""
    return tuple(int(number) for number in np.geomspace(smallest, max(smallest, largest), count))


def given_budgets(text: str) -> dict[int, float | None]:
    """Bytes of each budget in `1024,2048:1.15`, and the time it may take where a colon says so."""
    entries = [each.partition(":") for each in text.split(",") if each]
    try:
        return {int(mib) * MIB: float(most) if most else None for mib, _, most in entries}
    except ValueError:
        raise click.UsageError(f"{text!r} are no budgets: give them as in 1024,2048:1.15") from None


def budget_name(budget: int | None) -> str:
    return UNLIMITED if budget is None else f"{budget / MIB:,.1f} MiB".replace(".0 ", " ")
