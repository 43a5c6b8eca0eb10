"""Options that several measurements take, and what may be written in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click


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
    """Sizes in pixels with commas between, as in 512x512,384x640."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, int], ...]:
        if isinstance(value, tuple):
            return value
        for text in value.split(","):
            if not (re.fullmatch(r"\d+x\d+", text) and all(int(side) % 64 == 0 for side in text.split("x"))):
                self.fail(f"{text!r} isn't a size in multiples of 64, such as 512x768", param, ctx)
        width_height = (text.split("x") for text in value.split(","))
        return tuple((int(width), int(height)) for width, height in width_height)


def count_option(*names: str, default: int | None, least: int = 1, help: str | None = None) -> Callable[..., Any]:
    return click.option(*names, type=click.IntRange(min=least), default=default, show_default=True, help=help)


def threads_option(default: int | None) -> Callable[..., Any]:
    return count_option("--threads", default=default, help="The same for every runtime.")


results_option = click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), help="The folder that the figures go to."
)
lock_option = click.option(
    "--lock", type=click.Path(dir_okay=False, path_type=Path), help="A file that is locked while one has its turn."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout.")


def patience_option(default: float) -> Callable[..., Any]:
    return click.option(
        "--patience",
        "patience_seconds",
        type=click.FloatRange(min=0.0),
        default=default,
        show_default=True,
        help="Seconds that a picture or call may take to be had without other processes disturbing it.",
    )


def command_help(text: str | None) -> str:
    """A module's docstring as click's help: its commands stay one a line."""
    return (text or "").replace("\n\n    ", "\n\n\b\n    ")
