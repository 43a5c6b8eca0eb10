"""Whether a refactoring cost anything: a commit and this tree measured in turn, round by round, with what they draw.

    python tests/same/speed.py COMMIT [--tree FOLDER] [--measures help,fresh,steady,budgets] [--bundle FOLDER]

help: the command's start. fresh: a picture from a new process, cold (nothing built) and first (builds cached). steady:
pictures of one process, kernels timed. budgets: pictures within each. With a bundle, a call of its denoiser too, in
pictures without guidance. Both sides draw from the commit's own postcard, each with a cache of its own. The commit may
be of any layout whose `tintype` generates, builds and plans.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import click
from same import ROOT, check_out, lay_out

from tintype.bench.command import read_timings
from tintype.bench.job import Job, build_arguments, generate_arguments, plan_arguments
from tintype.bench.measurement import Bar, Comparison, Report, measurement
from tintype.bench.options import Names, Several, several
from tintype.bench.process import run_process
from tintype.bench.runner import Command, Contestant, Peer

WORKER = str(Path(__file__).with_name("speed_worker.py"))
SIDES = ("before", "after")
MEASURES = ("help", "fresh", "steady", "budgets")
UNCHANGED = 1.05  # times as much as before is noise
NEAR_DB = 60.0  # kernels are chosen by what each side measures


@dataclass(frozen=True)
class Side:
    """One of the two: its packages in `folder`/site, and its cache beside them."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder / "site"), "TINTYPE_CACHE": str(self.folder / "cache")}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "tintype", *arguments]

    def run(self, *arguments: str) -> str:
        return run_process(self.command(*arguments), self.environment).stdout

    def fresh(self, name: str, job: Job, anew: Path | None = None) -> Command:
        """A process that draws; anew: with that folder as its cache, which is empty each time."""
        output, can_leave_out = self.folder / f"{name}.png", "--no-watermark" in self.run("generate", "--help")
        command = self.command(*generate_arguments(job, output, marked=not can_leave_out))
        environment = self.environment | ({"TINTYPE_CACHE": str(anew)} if anew else {})
        return Command(command, output, anew, lambda run: read_timings(job, run), environment=environment)

    def steady(self, job: Job) -> Peer:
        """Pictures of one process by the public API, which both sides have."""
        self.run(*build_arguments(job))
        return Peer("tintype", job, program=("-P", WORKER), requests=[{}] * 2, environment=self.environment)


def comparison(pairs: Mapping[str, Sequence[Contestant]], *more_figures: str, **fields: Any) -> Comparison:
    """The two sides of each pair, with bars: each figure after over before, and how near they draw."""
    contestants = {f"{what} {side}": each for what, two in pairs.items() for side, each in zip(SIDES, two, strict=True)}
    figures = (*more_figures, "seconds", "peak_rss_bytes")
    bars = [Bar(f"{what} after", each, over=f"{what} before", at_most=UNCHANGED) for what in pairs for each in figures]
    drawn = [what for what, two in pairs.items() if isinstance(two[1], Command) and two[1].output is not None]
    bars += [Bar(f"{what} after", "psnr_db", at_least=NEAR_DB) for what in drawn]
    near = {f"{what} after": f"{what} before" for what in drawn}
    return Comparison(contestants=contestants, near=near, bars=bars, **fields)


def comparisons(
    sides: Sequence[Side], measures: Sequence[str], job: Job, bundle: Path | None, budgets: Sequence[int]
) -> Iterator[tuple[str, Comparison]]:
    """One for each of what is to be measured, made ready as it is reached."""
    if "help" in measures:
        starts = [Command(side.command("--help"), environment=side.environment) for side in sides]
        yield "help", comparison({"--help": starts}, least_rounds=9)
    if "fresh" in measures:
        for side in sides:
            side.run(*generate_arguments(job, side.folder / "building.png"))
        cold = [side.fresh("cold", job, anew=side.folder / "empty") for side in sides]
        yield "fresh", comparison({"cold": cold, "first": [side.fresh("first", job) for side in sides]})
    if "steady" in measures:
        yield "steady", comparison({"picture": [side.steady(job) for side in sides]}, resident=True)
    if bundle is not None:
        call = dataclasses.replace(job, model=str(bundle.resolve()), guidance_scale=1.0, num_inference_steps=2)
        yield "call", comparison({"picture": [side.steady(call) for side in sides]}, "call_seconds", resident=True)
    if "budgets" in measures:
        within = {f"{mib} MiB": dataclasses.replace(job, memory=f"{mib}MiB") for mib in budgets}
        for planned in (*within.values(), *within.values()):  # what one measures may make another better
            for side in sides:
                side.run(*plan_arguments(planned))
        yield "budgets", comparison({name: [side.fresh(name, within[name]) for side in sides] for name in within})


@measurement("before-after", rounds=5, help=__doc__)
def main(
    report: Report, threads: int, commit: Annotated[str, click.argument("commit")],
    tree: Annotated[Path, click.Path(exists=True, path_type=Path), "[default: this checkout]"] = ROOT,
    measures: Annotated[Names, several(MEASURES)] = MEASURES,
    bundle: Annotated[Path | None, click.Path(exists=True, path_type=Path), "Whose denoiser is called."] = None,
    budgets: Annotated[Sequence[int], Several(click.INT), "MiB."] = (150, 200, 300), steps: int = 20,
) -> None:  # fmt: skip
    source, sides = report.scratch / "source", [Side(report.scratch / name) for name in SIDES]
    check_out(commit, source)
    for side, packages in zip(sides, (source, tree.resolve()), strict=True):
        lay_out(packages, side.folder / "site")
    model = str(source / "models/postcard/bundle")
    job = Job(model=model, num_inference_steps=steps, threads=threads, device="cpu", exactness="exact")
    for title, compared in comparisons(sides, measures, job, bundle, budgets):
        report.compare(title, compared, commit=commit)


if __name__ == "__main__":
    main()
