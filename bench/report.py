"""A report on disk: one dated JSON file with the machine's name, in bench/results of a checkout; and refusals."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from tintype.errors import TintypeError


def default_results_folder() -> Path:
    """bench/results of the checkout that this module lies in, else the current folder."""
    package = Path(__file__).resolve().parent
    is_checkout = (package.parent / "pyproject.toml").is_file()
    return package / "results" if is_checkout else Path.cwd()


def write_report(report: dict[str, Any], folder: Path, measured: Sequence[str]) -> Path:
    """Write it, named after when, where and what was measured; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = re.sub(r"[^A-Za-z0-9.-]+", "-", report["machine"]["machine"]) or "machine"
    stamp = re.sub(r"[-:]|\+.*", "", report["machine"]["date"])
    path = folder / f"{stamp}-{machine}-{'-'.join(dict.fromkeys(measured))}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """What the runtime refuses, such as a device that isn't there, in its own words and without a traceback."""
    try:
        yield
    except TintypeError as error:
        raise click.ClickException(str(error)) from error
