"""Arguments and options that several commands have, and help."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

EMBEDDED = "postcard"
Option = Callable[..., Any]


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


def folder_argument(*, exists: bool = True) -> Option:
    """A folder; builds are kept in it unless told otherwise."""

    def convert(_context: click.Context, _parameter: click.Parameter, folder: Path) -> Path:
        os.environ.setdefault("TINTYPE_CACHE", str((folder / "cache").resolve()))
        return folder

    return click.argument("folder", type=click.Path(exists=exists, file_okay=False, path_type=Path), callback=convert)


def bundle_argument() -> Option:
    """A bundle's folder, beside which builds are kept unless told otherwise; or the name of an embedded one."""

    def convert(_context: click.Context, _parameter: click.Parameter, bundle: str) -> str:
        if Path(bundle).is_dir():
            os.environ.setdefault("TINTYPE_CACHE", str(Path(bundle).resolve().with_name("cache")))
        return bundle

    return click.argument("bundle", default=EMBEDDED, callback=convert)


def command_help(text: str | None) -> str:
    """A docstring as click's help: its commands stay one a line."""
    return inspect.cleandoc(text or "").replace("\n\n    ", "\n\n\b\n    ")
