"""A measurement: who takes turns, who is to be near to whom, ratios and bars; and how it becomes a command.

    @measurement("lora", model=None, num_inference_steps=4)
    def lora(report: Report, job: Job, rank: int = 16) -> None:
        bars = (Bar("ours", over="theirs", at_most=0.7), Bar(figure="psnr_db", at_least=70.0))
        contestants, near = {"ours": ..., "theirs": ...}, {"ours": "theirs"}
        ratios = [("seconds", "theirs")]
        report.compare("a part", Comparison(contestants=contestants, near=near, ratios=ratios, bars=bars))

A report is where and when something was measured and what came out, in one dated JSON file and a few printed lines. A
part of it is {"peers": figures by contestant, "bars": verdicts}, and has "rates" where shares of them are asked for.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import psutil

from tintype.bench.figures import (
    Table,
    Verdict,
    bar_lines,
    figure_value,
    file_psnr_db,
    share_lines,
    summary,
    table_lines,
    verdict,
)
from tintype.bench.job import Job
from tintype.bench.options import command_help, options_of, parameters_of
from tintype.bench.rates import PRODUCTS, RATES, Stage, add_shares
from tintype.bench.runner import Contestant, Peer, Schedule, measure
from tintype.engine import cpu_name, instruction_sets, processor_kind
from tintype.files import write_text

PACKAGE = Path(__file__).resolve().parent
DISTRIBUTIONS = (
    "tintype", "numpy", "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-webgpu", "torch",
    "diffusers", "transformers", "triton", "nvidia-cudnn-cu13", "openvino", "nncf", "stable-diffusion-cpp-python",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """What a contestant's figure must reach, or its ratio to another's; of `None` the worst of all that have it.

    over: another, or several, of which the least that was measured counts. less: is taken off before a ratio. It is
    judged as far as those it names were measured.
    """

    who: str | None = None
    figure: str = "seconds"
    over: str | Sequence[str] | None = field(default=None, kw_only=True)
    less: float = field(default=0.0, kw_only=True)
    statistic: str = field(default="median", kw_only=True)
    at_most: float | None = field(default=None, kw_only=True)
    at_least: float | None = field(default=None, kw_only=True)
    what: str | None = field(default=None, kw_only=True)  # in place of the names

    def judge(self, table: Table) -> list[Verdict]:
        others = {self.over} if isinstance(self.over, str) else set(self.over or ())
        if self.who not in (None, *table) or (others and not others & table.keys()):
            return []
        over = f" over {self.over if isinstance(self.over, str) else 'the best peer'}" if others else ""
        what = self.what or f"{self.who or 'the worst'}{over}, {self.figure}"
        return [verdict(what, self._value(table, others), at_most=self.at_most, at_least=self.at_least)]

    def _value(self, table: Table, others: set[str]) -> float | None:
        worst = self._end(table, table if self.who is None else (self.who,), min if self.at_most is None else max)
        if not others or worst is None:
            return worst
        theirs = self._end(table, others & table.keys(), min)
        return (worst - self.less) / theirs if theirs else None

    def _end(self, table: Table, names: Iterable[str], end: Callable[..., float | None]) -> float | None:
        values = [figure_value(table[name].get(self.figure), self.statistic) for name in names]
        return end((value for value in values if value is not None), default=None)


def _read_bars() -> dict[str, list[Bar]]:
    """Of bars.json, by what is measured: whatever is promised of names that are known before."""
    said = json.loads((PACKAGE / "bars.json").read_text(encoding="utf-8"))
    return {name: [Bar(**bar) for bar in bars] for name, bars in said.items()}


BARS = _read_bars()


def judge(bars: Iterable[Bar], table: Table) -> list[Verdict]:
    return [each for bar in bars for each in bar.judge(table)]


def add_ratios(table: Mapping[str, dict[str, Any]], ratios: Iterable[tuple[str, str]]) -> None:
    """Give each contestant its figure over a reference's, where both have it; their medians."""
    for figure, reference in ratios:
        whole = figure_value(table.get(reference, {}).get(figure))
        for figures in table.values() if whole else ():
            value = figure_value(figures.get(figure))
            if value is not None and whole:
                figures.setdefault("ratios", {})[f"{figure} over {reference}"] = round(value / whole, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """near: by contestant, whose answers its own are compared with, in dB; score: what else is told of such answers.
    ratios: figures and references. stages: what is told of the machine's rates, which are measured by so many
    `threads`; int8: see `rates.add_shares`."""

    contestants: Mapping[str, Contestant]
    near: Mapping[str, str] = field(default_factory=dict)
    score: Callable[[Sequence[Path]], Mapping[str, Any]] = lambda files: {}
    ratios: Sequence[tuple[str, str]] = ()
    bars: Sequence[Bar] = ()
    stages: Mapping[str, Stage] = field(default_factory=dict)
    threads: int | None = None
    int8: Collection[str] = ()
    resident: bool = False  # all stay open from the first round to the last
    least_rounds: int = 1

    def run(self, schedule: Schedule, scratch: Path) -> dict[str, Any]:
        """Measure; scratch: a folder for answers that are compared."""
        rounds = max(schedule.rounds, self.least_rounds)
        schedule = dataclasses.replace(schedule, rounds=rounds, resident=self.resident)
        contestants, files = dict(self.contestants), {}
        for number, name in enumerate(sorted({*self.near, *self.near.values()})):
            contestants[name], files[name] = contestants[name].saving(scratch / f"{number}")
        if self.stages:
            contestants = {RATES: Peer(RATES, Job(products=PRODUCTS, threads=self.threads)), **contestants}
        table = {name: made.figures() for name, made in measure(contestants, schedule).items()}
        part: dict[str, Any] = {}
        if self.stages:
            part["rates"] = {name: each for name, each in table.pop(RATES).items() if name.endswith("/s")}
            add_shares(table, self.stages, part["rates"], self.int8)
        for name, reference in self.near.items():
            each_db = [file_psnr_db(*pair) for pair in zip(files[reference], files[name], strict=True)]
            table[name] |= {"psnr_db": {**summary(each_db), "each": each_db}, **self.score(files[name])}
        add_ratios(table, self.ratios)
        return {"peers": table, "bars": judge(self.bars, table), **part}


def machine_facts(threads: int | None) -> dict[str, Any]:
    """The machine, its load when the run began, versions, threads and date: without these a figure means nothing."""
    return {
        "machine": platform.node(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "processor_kind": processor_kind(),
        "instruction_sets": sorted(instruction_sets()),
        "cores": {"logical": os.cpu_count(), "physical": psutil.cpu_count(logical=False)},
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": load_average(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {each.name: each.version for each in metadata.distributions() if each.name in DISTRIBUTIONS},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def load_average() -> list[float]:
    """Work that waited for a core over 1, 5 and 15 minutes; a quiet machine shows well under one."""
    return [round(value, 2) for value in psutil.getloadavg()]


def measurement(
    name: str, *, group: click.Group | None = None, rounds: int = 3, threads: int | None = 2, patience: float = 0.0,
    help: str | None = None, cls: type[click.Command] = click.Command, passed_on: Callable[..., Any] | None = None,
    **job: Any,
) -> Callable[[Callable[..., None]], click.Command]:  # fmt: skip
    """A command of a function, which is given a report to fill and what was chosen: see `options`.

    name: of the report; behind its dash, of the command in a group. rounds, threads and patience: their defaults; job:
    those of its job's fields that may be chosen. cls: of the command. passed_on: what else is chosen is passed on to.
    """
    shared = (
        click.option("--rounds", "--repeats", "rounds", type=click.IntRange(1), default=rounds, show_default=True,
                     help="Rounds of turns, behind each median."),
        click.option("--threads", type=click.IntRange(1), default=threads, show_default=True,
                     help="The same for every runtime."),
        click.option("--lock", type=click.Path(dir_okay=False, path_type=Path), help="Is locked during each turn."),
        click.option("--patience", type=click.FloatRange(0.0), default=patience, show_default=True,
                     help="Seconds that a picture or call may take to be had without others disturbing it."),
        click.option("--results", type=click.Path(path_type=Path), help="The folder that the figures go to."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout."),
    )  # fmt: skip

    def decorate(measure: Callable[..., None]) -> click.Command:
        taken = parameters_of(measure, passed_on)

        def run(
            rounds: int, lock: Path | None, patience: float, results: Path | None, as_json: bool, **chosen: Any
        ) -> None:
            plan = {"rounds": rounds, **{each: value for each, value in chosen.items() if not isinstance(value, Path)}}
            schedule = Schedule(rounds=rounds, lock=lock, patience_seconds=patience)
            if "job" in taken:
                fields = {field: chosen.pop("bundle" if field == "model" else field) for field in job}
                chosen["job"] = Job(threads=chosen["threads"], **fields)
            with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
                report = Report(name, schedule, Path(scratch), results, plan)
                measure(report, **{each: value for each, value in chosen.items() if each in taken})
            report["machine"]["load_average_at_end"] = load_average()
            write_text(report.path(), json.dumps(report, indent=1) + "\n")
            lines = [json.dumps(report)] if as_json else [*report.lines, f"written to {report.path()}"]
            click.echo("\n".join(lines))

        for option in reversed((*options_of(taken, job), *shared)):
            run = option(run)
        command = click.command(name.rpartition("-")[2], cls=cls, help=command_help(help or measure.__doc__))(run)
        if group is not None:
            group.add_command(command)
        return command

    return decorate


class Report(dict[str, Any]):
    """What was measured where, when and how (`plan`), in parts, and `lines` that are printed.

    Its file is named after when, where and what was measured (`names`), in bench/results of a checkout or in the folder
    given (`results`). scratch: a folder that lasts as long as the measurement.
    """

    def __init__(
        self, name: str, schedule: Schedule, scratch: Path, results: Path | None, plan: Mapping[str, Any]
    ) -> None:
        super().__init__(machine=machine_facts(plan["threads"]), plan=plan, parts={})
        self.names, self.lines, self.schedule, self.scratch = [name], list[str](), schedule, scratch
        checkout = (PACKAGE.parent / "pyproject.toml").is_file()
        self._results = results or (PACKAGE / "results" if checkout else Path.cwd())

    def compare(self, title: str, comparison: Comparison, **facts: Any) -> None:
        self.add(title, comparison.run(self.schedule, self.scratch), **facts)

    def judge(self, title: str, table: Table, bars: Iterable[Bar], **facts: Any) -> None:
        self.add(title, {"peers": table, "bars": judge(bars, table)}, **facts)

    def add(self, title: str, part: Mapping[str, Any], **facts: Any) -> None:
        """Keep a part, with what else is known, and print its table and bars."""
        self["parts"][title] = {**part, **facts}
        peers = part["peers"]
        self.lines += [*table_lines(peers, title), *share_lines(peers, title), *bar_lines(part["bars"])]

    def path(self, suffix: str = ".json") -> Path:
        machine = re.sub(r"[^A-Za-z0-9.-]+", "-", self["machine"]["machine"]) or "machine"
        stamp = re.sub(r"[-:]|\+.*", "", self["machine"]["date"])
        return self._results / f"{stamp}-{machine}-{'-'.join(dict.fromkeys(self.names))}{suffix}"
