"""How a measurement becomes a command: options that all take, its own, and a report that it fills.

@measurement("budgets", sizes_option("512x512"), help=__doc__)
def main(report: Report, scratch: Path, schedule: Schedule, *, sizes: Sequence[tuple[int, int]]) -> None:
    report.add("512x512", Comparison(...).run(scratch))
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from tintype.bench.report import Report
from tintype.bench.runner import Schedule

Option = Callable[..., Any]


class Names(click.ParamType):
    """Several of some names with commas between, as in unet,vae; "none" is none of them."""

    name = "names"

    def __init__(self, known: Iterable[str]) -> None:
        self._known = tuple(known)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else () if value == "none" else tuple(value.split(","))
        for name in names:
            if name not in self._known:
                self.fail(f"{name!r} isn't one of {', '.join(self._known)}", param, ctx)
        return names


class Sizes(click.ParamType):
    """Sizes in pixels with commas between, width first, as in 512x512,384x640; or one."""

    name = "sizes"

    def __init__(self, *, one: bool = False) -> None:
        self._one = one

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        sizes = []
        for text in value.split(","):
            found = re.fullmatch(r"(\d+)x(\d+)", text)
            if found is None or any(int(side) % 64 for side in found.groups()):
                self.fail(f"{text!r} isn't a size in multiples of 64, such as 512x768", param, ctx)
            sizes.append((int(found[1]), int(found[2])))
        if self._one and len(sizes) != 1:
            self.fail("a picture has one size", param, ctx)
        return sizes[0] if self._one else tuple(sizes)


def names_option(name: str, known: Iterable[str], default: str | None = None) -> Option:
    """All of the known ones by default."""
    known = tuple(known)
    return click.option(name, type=Names(known), default=default or ",".join(known), show_default=True)


def sizes_option(default: str) -> Option:
    return click.option("--sizes", type=Sizes(), default=default, show_default=True, help="Width x height.")


def count_option(*names: str, default: int | None, least: int = 1, help: str | None = None) -> Option:
    return click.option(*names, type=click.IntRange(min=least), default=default, show_default=True, help=help)


results_option = click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), help="The folder that the figures go to."
)


def folder_argument(name: str, *, cache: str = "cache", exists: bool = True) -> Option:
    """A folder; builds are kept beside what lies in it unless told otherwise. cache: where, from the folder."""

    def convert(_context: click.Context, _parameter: click.Parameter, folder: Path) -> Path:
        os.environ.setdefault("TINTYPE_CACHE", str((folder / cache).resolve()))
        return folder

    return click.argument(name, type=click.Path(exists=exists, file_okay=False, path_type=Path), callback=convert)


def command_help(text: str | None) -> str:
    """A module's docstring as click's help: its commands stay one a line."""
    return (text or "").replace("\n\n    ", "\n\n\b\n    ")


def measurement(
    name: str,
    *options: Option,
    rounds: int = 3,
    threads: int | None = 2,
    patience: float = 0.0,
    help: str | None = None,
) -> Callable[[Callable[..., None]], click.Command]:
    """A command of a function, which is given a report to fill, a folder that is removed, a schedule, and what was
    chosen. name: of the report. rounds, threads and patience: their defaults."""
    shared = (
        count_option("--rounds", "--repeats", "rounds", default=rounds, help="Rounds of turns, behind each median."),
        count_option("--threads", default=threads, help="The same for every runtime."),
        click.option(
            "--lock",
            type=click.Path(dir_okay=False, path_type=Path),
            help="A file that is locked while one has its turn.",
        ),
        click.option(
            "--patience",
            type=click.FloatRange(min=0.0),
            default=patience,
            show_default=True,
            help="Seconds that a picture or call may take to be had without other processes disturbing it.",
        ),
        results_option,
        click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout."),
    )

    def decorate(measure: Callable[..., None]) -> click.Command:
        def run(
            rounds: int, lock: Path | None, patience: float, results: Path | None, as_json: bool, **chosen: Any
        ) -> None:
            schedule = Schedule(rounds=rounds, lock=lock, patience_seconds=patience)
            plan = {"rounds": rounds, **{each: value for each, value in chosen.items() if not isinstance(value, Path)}}
            facts = {"results": results, "threads": chosen["threads"], "as_json": as_json, "plan": plan}
            with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch, Report(name, **facts) as report:
                measure(report, Path(scratch), schedule, **chosen)

        for option in reversed((*options, *shared)):
            run = option(run)
        return click.command(name, help=command_help(help or measure.__doc__))(run)

    return decorate
