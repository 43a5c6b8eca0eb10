"""How a measurement becomes a command: options that all take, its own, and a report that it fills.

    @measurement("budgets", sizes_option("512x512"), help=__doc__)
    def main(report: Report, sizes: Sequence[tuple[int, int]], threads: int | None) -> None:
        report.compare("512x512", Comparison(...))

A report is where and when something was measured and what came out, in one dated JSON file and a few printed lines.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import psutil

from tintype.bench.comparison import Bar, Comparison, judge
from tintype.bench.figures import Table, bar_lines, share_lines, table_lines
from tintype.bench.runner import Schedule
from tintype.engine import cpu_name, instruction_sets, processor_kind
from tintype.errors import TintypeError
from tintype.files import write_text

Option = Callable[..., Any]

PACKAGE = Path(__file__).resolve().parent
DISTRIBUTIONS = (
    "tintype", "numpy", "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-webgpu", "torch",
    "diffusers", "transformers", "triton", "nvidia-cudnn-cu13", "openvino", "nncf", "stable-diffusion-cpp-python",
)  # fmt: skip


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


class Several(click.ParamType):
    """Things of a type with commas between, as in 512x512,384x640; "none" is none of them."""

    name = "several"

    def __init__(self, item: click.ParamType) -> None:
        self._item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self._item.convert(text, param, ctx) for text in value.split(",") if value != "none")


class PictureSize(click.ParamType):
    """Pixels, width first, as in 512x768."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        size = re.fullmatch(r"(\d+)x(\d+)", str(value))
        if size is None or int(size[1]) % 64 or int(size[2]) % 64:
            self.fail(f"{value!r} isn't a size in multiples of 64, such as 512x768", param, ctx)
        return int(size[1]), int(size[2])


def names_option(name: str, known: Iterable[str], default: str | None = None) -> Option:
    """All of the known ones by default."""
    kind = Several(click.Choice(tuple(known)))
    return click.option(name, type=kind, default=default or ",".join(known), show_default=True)


def sizes_option(default: str) -> Option:
    kind = Several(PictureSize())
    return click.option("--sizes", type=kind, default=default, show_default=True, help="Width x height, pixels.")


def count_option(*names: str, default: int | None, least: int = 1, help: str | None = None) -> Option:
    return click.option(*names, type=click.IntRange(min=least), default=default, show_default=True, help=help)


def folder_argument(name: str, *, cache: str = "cache", exists: bool = True, required: bool = True) -> Option:
    """A folder; builds are kept beside what lies in it unless told otherwise. cache: where, from the folder."""

    def convert(_context: click.Context, _parameter: click.Parameter, folder: Path | None) -> Path | None:
        if folder is not None:
            os.environ.setdefault("TINTYPE_CACHE", str((folder / cache).resolve()))
        return folder

    kind = click.Path(exists=exists, file_okay=False, path_type=Path)
    return click.argument(name, type=kind, callback=convert, required=required)


def command_help(text: str | None) -> str:
    """A module's docstring as click's help: its commands stay one a line."""
    return (text or "").replace("\n\n    ", "\n\n\b\n    ")


def measurement(
    name: str, *options: Option, group: click.Group | None = None, rounds: int = 3, threads: int | None = 2,
    patience: float = 0.0, help: str | None = None, cls: type[click.Command] = click.Command,
) -> Callable[[Callable[..., None]], click.Command]:  # fmt: skip
    """A command of a function, which is given a report to fill and what was chosen.

    name: of the report; behind its dash, of the command in a group. rounds, threads and patience: their defaults.
    cls: of the command.
    """
    shared = (
        count_option("--rounds", "--repeats", "rounds", default=rounds, help="Rounds of turns, behind each median."),
        count_option("--threads", default=threads, help="The same for every runtime."),
        click.option("--lock", type=click.Path(dir_okay=False, path_type=Path), help="Is locked during each turn."),
        click.option(
            "--patience", type=click.FloatRange(min=0.0), default=patience, show_default=True,
            help="Seconds that a picture or call may take to be had without other processes disturbing it.",
        ),
        click.option("--results", type=click.Path(path_type=Path), help="The folder that the figures go to."),
        click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout."),
    )  # fmt: skip

    def decorate(measure: Callable[..., None]) -> click.Command:
        def run(
            rounds: int, lock: Path | None, patience: float, results: Path | None, as_json: bool, **chosen: Any
        ) -> None:
            schedule = Schedule(rounds=rounds, lock=lock, patience_seconds=patience)
            plan = {"rounds": rounds, **{each: value for each, value in chosen.items() if not isinstance(value, Path)}}
            facts = {"results": results, "threads": chosen["threads"], "as_json": as_json, "plan": plan}
            with Report(name, schedule=schedule, **facts) as report:
                measure(report, **chosen)

        for option in reversed((*options, *shared)):
            run = option(run)
        command = click.command(name.rpartition("-")[2], cls=cls, help=command_help(help or measure.__doc__))(run)
        if group is not None:
            group.add_command(command)
        return command

    return decorate


class Report(dict[str, Any]):
    """A `with` block that fills it; left without an error, it is written and its `lines` are printed.

    The file is named after when, where and what was measured (`names`), in bench/results of a checkout or in the folder
    given. What the runtime refuses, such as a device that isn't here, is said in its own words and without a traceback.
    Until then there is a folder, `scratch`.
    """

    def __init__(
        self, *names: str, schedule: Schedule, results: Path | None = None, threads: int | None = None,
        as_json: bool = False, **facts: Any,
    ) -> None:  # fmt: skip
        super().__init__(machine=machine_facts(threads), **facts, parts={})
        self.lines: list[str] = []
        self.names, self.schedule = list(names), schedule
        checkout = (PACKAGE.parent / "pyproject.toml").is_file()
        self._results, self._as_json = results or (PACKAGE / "results" if checkout else Path.cwd()), as_json
        self._scratch = tempfile.TemporaryDirectory(prefix="tintype-bench-")
        self.scratch = Path(self._scratch.name)

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

    def __enter__(self) -> Report:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        self._scratch.cleanup()
        if isinstance(error, TintypeError):
            raise click.ClickException(str(error)) from error
        if error is not None:
            return
        self["machine"]["load_average_at_end"] = load_average()
        write_text(self.path(), json.dumps(self, indent=1) + "\n")
        lines = [json.dumps(self)] if self._as_json else [*self.lines, f"written to {self.path()}"]
        click.echo("\n".join(lines))
