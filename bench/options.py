"""A command's options, each of a parameter of its function: the default, and the type and a word of help as annotated.

    def lora(report: Report, job: Job, layers: Annotated[Names, several(LAYERS)] = LAYERS, rank: int = 16) -> None:

An annotation may hold a click.argument or click.option instead. Whole numbers are counts, from 1 on. `job` stands for
the fields of a job that `measurement` is given by keyword, with their defaults.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import click

EMBEDDED = "postcard"
OWN = "[default: the model's own]"
Option = Callable[..., Any]
Names = Sequence[str]


class Several(click.ParamType):
    """Things of a type with commas between, as in 512x512,384x640; "none" is none of them."""

    name = "several"

    def __init__(self, item: click.ParamType) -> None:
        self._item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self._item.convert(text, param, ctx) for text in value.split(",") if value != "none")


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class PictureSize(click.ParamType):
    """As in 512x768."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        size = re.fullmatch(r"(\d+)x(\d+)", str(value))
        if size is None or int(size[1]) % 64 or int(size[2]) % 64:
            self.fail(f"{value!r} isn't a size in multiples of 64, such as 512x768", param, ctx)
        return Size(int(size[1]), int(size[2]))


def several(known: Iterable[str]) -> Several:
    return Several(click.Choice(tuple(known)))


def _cached_beside(_context: click.Context, parameter: click.Parameter, place: Any) -> Any:
    """Builds are kept in a folder that is measured in, or beside a bundle's, unless told otherwise."""
    if parameter.name == "folder" or Path(place).is_dir():
        cache = Path(place) / ("cache" if parameter.name == "folder" else "../cache")
        os.environ.setdefault("TINTYPE_CACHE", str(cache.resolve()))
    return place


_NEW = click.Path(file_okay=False, path_type=Path)
_THERE = click.Path(exists=True, file_okay=False, path_type=Path)
Folder = Annotated[Path, click.argument("folder", type=_THERE, callback=_cached_beside)]
NewFolder = Annotated[Path, click.argument("folder", type=_NEW, callback=_cached_beside)]
Sizes = Annotated[Sequence[Size], Several(PictureSize()), "Width x height, pixels."]
JOB = {  # fields of a job; its model is a bundle's folder, or the name of an embedded one
    "model": Annotated[str, click.argument("bundle", default=EMBEDDED, callback=_cached_beside)],
    "num_inference_steps": int,
    "guidance_scale": Annotated[float, OWN],
    "exactness": Annotated[str, click.Choice(["exact", "balanced"]), OWN],
    "device": Annotated[str, click.option("--provider", "device", default="cpu", show_default=True)],
    "memory": Annotated[str, "A budget, as in 1GiB [default: none]."],
}
TYPES = {int: click.IntRange(min=1), float: click.FLOAT, str: click.STRING, Path: click.Path(path_type=Path)}


def parameters_of(measure: Callable[..., None], passed_on: Callable[..., Any] | None) -> dict[str, inspect.Parameter]:
    """A function's own, and those by keyword of one that it passes them on to."""
    found = dict(inspect.signature(measure, eval_str=True).parameters)
    if passed_on is not None:
        more = inspect.signature(passed_on, eval_str=True).parameters.values()
        found |= {each.name: each for each in more if each.kind is each.KEYWORD_ONLY}
    return {name: each for name, each in found.items() if each.kind is not each.VAR_KEYWORD}


def options_of(parameters: Mapping[str, inspect.Parameter], job: Mapping[str, Any]) -> Iterator[Option]:
    """Those of parameters and of a job's fields, in their order."""
    for name, parameter in parameters.items():
        if name == "job":
            yield from (_option(field, JOB[field], default) for field, default in job.items())
        elif name not in ("report", "threads"):
            yield _option(name, parameter.annotation, parameter.default)


def _option(name: str, annotation: Any, default: Any) -> Option:
    kind, *more = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    for option in (each for each in more if callable(each) and not isinstance(each, click.ParamType)):
        return option
    flag = f"--{name}/--no-{name}" if default is True else f"--{name.replace('_', '-')}"
    kind = next((each for each in get_args(kind) if each is not NoneType), kind)
    kind = next((each for each in more if isinstance(each, click.ParamType)), TYPES.get(kind))
    default = ",".join(map(str, default)) if type(default) is tuple else default
    default = str(default) if isinstance(default, Size) else default
    is_flag, is_shown = isinstance(default, bool) or None, default not in (None, False, "")
    help = next((each for each in more if isinstance(each, str) and (each is not OWN or default is None)), None)
    return click.option(flag, name, type=kind, is_flag=is_flag, default=default, show_default=is_shown, help=help)


def command_help(text: str | None) -> str:
    """A docstring as click's help: its commands stay one a line."""
    return inspect.cleandoc(text or "").replace("\n\n    ", "\n\n\b\n    ")
