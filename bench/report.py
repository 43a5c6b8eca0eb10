"""A report: where and when something was measured, what came out, in one dated JSON file and a few printed lines."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import psutil

from tintype.bench.figures import bar_lines, table_lines
from tintype.engine import cpu_name, instruction_sets, processor_kind
from tintype.errors import TintypeError

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
        "versions": {each: version for each in DISTRIBUTIONS if (version := _version(each)) is not None},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def load_average() -> list[float] | None:
    """Work that waited for a core over 1, 5 and 15 minutes; a quiet machine shows well under one."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


class Report(dict[str, Any]):
    """A `with` block that fills it; left without an error, it is written and its `lines` are printed.

    The file is named after when, where and what was measured, in bench/results of a checkout or in the folder given.
    What the runtime refuses, such as a device that isn't here, is said in its own words and without a traceback.
    """

    def __init__(
        self, *names: str, results: Path | None = None, threads: int | None = None, as_json: bool = False, **facts: Any
    ) -> None:
        super().__init__(machine=machine_facts(threads), **facts, parts={})
        self.lines: list[str] = []
        self.names = list(names)
        self._results, self._as_json = results or default_results_folder(), as_json

    def add(self, title: str, part: Mapping[str, Any], **facts: Any) -> None:
        """Keep a part, with what else is known, and print its table and bars."""
        self["parts"][title] = {**part, **facts}
        self.lines += [*table_lines(part["peers"], title), *bar_lines(part["bars"])]

    def path(self, suffix: str = ".json") -> Path:
        machine = re.sub(r"[^A-Za-z0-9.-]+", "-", self["machine"]["machine"]) or "machine"
        stamp = re.sub(r"[-:]|\+.*", "", self["machine"]["date"])
        return self._results / f"{stamp}-{machine}-{'-'.join(dict.fromkeys(self.names))}{suffix}"

    def __enter__(self) -> Report:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        if isinstance(error, TintypeError):
            raise click.ClickException(str(error)) from error
        if error is not None:
            return
        self["machine"]["load_average_at_end"] = load_average()
        self.path().parent.mkdir(parents=True, exist_ok=True)
        self.path().write_text(json.dumps(self, indent=1) + "\n", encoding="utf-8")
        lines = [json.dumps(self)] if self._as_json else [*self.lines, f"written to {self.path()}"]
        click.echo("\n".join(lines))


def default_results_folder() -> Path:
    """bench/results of the checkout that this module lies in, else the current folder."""
    package = Path(__file__).resolve().parent
    return package / "results" if (package.parent / "pyproject.toml").is_file() else Path.cwd()
