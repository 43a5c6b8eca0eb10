"""Options that several commands share, and the types that click doesn't have."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from tintype.errors import RequestError
from tintype.trust.choices import Operator

if TYPE_CHECKING:
    from tintype import Request
    from tintype.request import RequestFields

PROVIDERS = ("auto", "cpu", "cuda", "webgpu", "directml", "openvino", "coreml", "qnn", "tensorrt-rtx")


class Size(click.ParamType[tuple[int, int]]):
    """WIDTHxHEIGHT in pixels; whether a model can make that size is the request's business."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*([+-]?\d{1,18})\s*[xX]\s*([+-]?\d{1,18})\s*", str(value))
        if found is None:
            raise RequestError(
                f"--size {str(value)[:40]!r} is no size", fix="give width and height in pixels, as in 512x384"
            )
        return int(found[1]), int(found[2])


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def provider_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--provider",
        type=click.Choice(PROVIDERS),
        default="auto",
        show_default=True,
        help="The device; a named one is used or it is an error.",
    )(command)


def threads_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--threads", type=click.IntRange(min=1), help="Threads for the processor [default: one a physical core]."
    )(command)


def operator_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Of `trust.choices.Operator`, passed on as `operator`."""
    names = [field.name for field in dataclasses.fields(Operator)]

    @functools.wraps(command)
    def with_operator(*given: Any, **options: Any) -> Any:
        chosen = {name: options.pop(name) for name in names}
        if options.pop("no_credentials"):
            if chosen["credentials"] is not None:
                raise RequestError(
                    "--credentials and --no-credentials contradict each other", fix="leave one of them out"
                )
            chosen["credentials"] = False
        return command(*given, operator=chosen, **options)

    decorated: Callable[..., Any] = with_operator
    for option in (
        click.option(
            "--safety",
            help="An ONNX file that judges pictures and blocks some: FILE or FILE=THRESHOLD.",
        ),
        click.option(
            "--deal",
            type=click.Path(path_type=Path),
            help="Words that are dealt to prompts which leave them open, by shares: a file (runtime/DEAL.md).",
        ),
        click.option(
            "--trustmark",
            type=click.Path(path_type=Path),
            help="The folder of TrustMark's own ONNX files, for a second mark beside the watermark.",
        ),
        click.option("--no-credentials", is_flag=True, help="Leave content credentials out."),
        click.option(
            "--credentials",
            metavar="CERT.pem,KEY.pem",
            help="Who signs pictures' content credentials (extra: c2pa) [default: auto, this computer's certificate].",
        ),
        click.option("--accept-licence", is_flag=True, help="Accept the model's licence, which is kept; once will do."),
        click.option(
            "--policy", help="Words that no picture may be asked for with: a file (runtime/POLICY.md), or strict."
        ),
        click.option(
            "--watermark-key",
            type=click.Path(path_type=Path),
            help="A file, mode 0600, whose bytes carry the payload of watermarks [default: the key that anybody has].",
        ),
    ):
        decorated = option(decorated)
    return decorated


def memory_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--memory", help="The most that the process may hold, as in 2GiB; auto is what is free [default: no budget]."
    )(command)


def _at_most_once(context: click.Context, option: click.Parameter, given: tuple[Any, ...]) -> Any:
    """The one file of an option that takes one: of several click would take the last, and say nothing."""
    if len(given) > 1:
        name = option.opts[0]
        raise RequestError(f"{name} is given {len(given)} times, and a picture has one", fix=f"give one {name}")
    return given[0] if given else None


def request_options(*names: str, leave_out: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for fields of `Request`, as its table has them; all of them unless some are named. What isn't typed is
    not passed on, so that the request's own default holds."""
    from tintype.request.fields import Request

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(Request)):
            if "help" not in field.metadata or field.name in leave_out or (names and field.name not in names):
                continue
            kind, each = field.metadata["kind"], field.metadata["each"]
            is_file = kind is Path or field.name == "image_encoder"
            name = each or field.name.replace("_", "-")
            shown = "" if field.default in (None, ()) else f" [default: {field.default}]"
            option = click.option(
                f"--{name}/--no-{name}" if kind is bool else f"--{name}",
                field.name,
                type=click.Path(path_type=Path) if kind is Path else kind,
                default=None,
                multiple=each is not None or is_file,
                callback=_at_most_once if is_file and each is None else None,
                help=f"{field.metadata['help']}{'' if kind is bool else shown}",
            )
            command = option(command)
        return command

    return decorate


def asked(size: tuple[int, int] | None, fields: Mapping[str, Any], prompt: str = "") -> Request:
    """A request of what was typed: `fields` by name, None where nothing was."""
    from tintype import Request

    given: dict[str, Any] = {"prompt": prompt, **typed(size, fields)}
    return Request(**given)


def typed(size: tuple[int, int] | None, fields: Mapping[str, Any]) -> RequestFields:
    """The fields of a request that were typed, and no others."""
    given = {**fields, **({} if size is None else {"width": size[0], "height": size[1]})}
    return cast("RequestFields", {name: value for name, value in given.items() if value not in (None, ())})


def human_bytes(count: int) -> str:
    """1536 -> '1.5 KiB'."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
