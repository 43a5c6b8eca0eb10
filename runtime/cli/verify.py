"""`tintype verify`: what pictures say of how they were made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintype.cli.options import json_option
from tintype.cli.say import say, say_json
from tintype.errors import RequestError, TintypeError
from tintype.files import is_there

if TYPE_CHECKING:
    from tintype import Pipeline
    from tintype.trust.credential_reading import Credentials
    from tintype.trust.verify import Reader, Verification

FOUND, UNREAD, NOTHING = 0, 1, 3  # exit codes
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif")  # looked at in a folder


@click.command()
@click.argument("picture", type=click.Path(path_type=Path))
@click.option(
    "--watermark-key", type=click.Path(path_type=Path), help="An operator's key, to read what its marks say too."
)
@click.option(
    "--trust",
    type=click.Path(path_type=Path),
    help="Certificates (PEM) of the authorities whose word for a signer you take [default: nobody's].",
)
@click.option("--trustmark", type=click.Path(path_type=Path), help="The folder of TrustMark's own ONNX files.")
@click.option("--model", help="That may have drawn it, by --code-noise: its name, or its bundle's folder.")
@json_option
@click.pass_context
def verify(
    context: click.Context,
    /,
    picture: Path,
    watermark_key: Path | None,
    trust: Path | None,
    trustmark: Path | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Say whether PICTURE, or each picture in a folder, was made by Tintype.

    A watermark lies in the pixels and outlasts saving as JPEG, cutting and resizing; a record lies beside them, and
    anybody can write or remove it; content credentials are signed (extra: c2pa). --trustmark and --model read two
    layers more. Exit codes: 0 something is found, 3 nothing is, 1 a picture can't be read, or its credentials don't
    hold.
    """
    from tintype.trust.verify import Reader

    with contextlib.ExitStack() as opened:
        pipeline = None if model is None else opened.enter_context(_loaded(model))
        reader = Reader.of(watermark_key, trust, trustmark, pipeline)
        codes = {_verify(path, reader, as_json) for path in _pictures(picture)}
    context.exit(next(code for code in (UNREAD, FOUND, NOTHING) if code in codes))


def _loaded(model: str) -> Pipeline:
    from tintype import load
    from tintype.cli.converted import runnable

    return load(runnable(model), credentials=False)


def _pictures(path: Path) -> Iterator[Path]:
    if not (is_there(path) and path.is_dir()):
        yield path
        return
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
    if not found:
        raise RequestError(f"there is no picture in {path}", fix="name a folder with pictures, or a picture")
    yield from found


def _verify(path: Path, reader: Reader, as_json: bool) -> int:
    """Say what one picture says; its exit code."""
    try:
        found = reader.read(path)
    except TintypeError as error:
        if as_json:
            say_json({"file": str(path), "error": {"message": error.message, "fix": error.fix}})
        else:
            say(f"{path}: {error.message}", err=True)
            say(f"  fix: {error.fix}", err=True)
        return UNREAD
    if as_json:
        say_json({"file": str(path), **_as_json(found)})
    else:
        for line in _lines(found):
            say(f"{path}: {line}")
    if found.credentials.state == "invalid":
        return UNREAD
    return FOUND if found.found else NOTHING


def _as_json(found: Verification) -> dict[str, Any]:
    record = None if found.record is None else found.record.as_written()
    others = {
        name: None if (reading := getattr(found, name)) is None else asdict(reading)
        for name in ("trustmark", "coded_noise")
    }
    return {"watermark": asdict(found.watermark), "record": record, "credentials": asdict(found.credentials), **others}


def _lines(found: Verification) -> Iterator[str]:
    mark, record = found.watermark, found.record
    if mark.found:
        yield f"watermark: probably made by Tintype (confidence {mark.confidence:.6f})"
        if mark.payload is None:
            yield f"watermark: its payload can't be read: {mark.key}"
        else:
            yield f"watermark: by installation {mark.maker}, key {mark.key}, payload {mark.payload}"
        if mark.shows_the_same is False:
            yield "watermark: made for a picture that showed something else: this one was cut, or the mark was moved"
        done = [
            f"scaled by {mark.scale:g}" if mark.scale not in (None, 1.0) else "",
            f"turned by {mark.turn_degrees:g} degrees" if mark.turn_degrees else "",
            "mirrored" if mark.is_mirrored else "",
        ]
        if any(done):
            yield f"since then: {', '.join(filter(None, done))}"
    yield from _further_lines(found)
    if record is not None:
        private = "private: its words and its seed are left out"
        told = private if record.withheld else f"seed {record.seed}: {record.request.prompt}"
        yield f"record: {record.made_with.bundle}, {told}"
        if record.deal is not None and not record.withheld:
            words = ", ".join(each.word for each in record.deal.words)
            yield f"dealt: {words}; it was asked for with: {record.deal.prompt}"
    yield from _credential_lines(found.credentials)
    if not found.found and found.credentials.state == "none":
        yield "nothing found, which doesn't say that nobody made it"


def _further_lines(found: Verification) -> Iterator[str]:
    mark, noise = found.trustmark, found.coded_noise
    if mark is not None and mark.found:
        whose = "somebody else's" if mark.maker is None else f"by installation {mark.maker}"
        yield f"TrustMark {mark.variant}: {whose}, {mark.schema} {mark.payload} (confidence {mark.confidence:.6f})"
    if noise is not None and noise.found:
        yield f"coded noise: probably drawn by this model (confidence {noise.confidence:.6f}), key {noise.key}"
        yield f"coded noise: by an installation whose number ends in {noise.payload}"


def _credential_lines(found: Credentials) -> Iterator[str]:
    if found.state == "none":
        return
    who = found.signer or "somebody without a name"
    said = {
        "valid": f"they hold; signed by {who}",
        "untrusted": f"they hold; signed by {who}, for whom nobody vouches",
        "invalid": f"they don't hold: {', '.join(found.problems) or 'the signature'}",
        "unread": f"there are some, not read: {', '.join(found.problems)}; {found.fix}",
    }
    yield f"content credentials: {said[found.state]}"
    if found.made_with is not None or found.actions:
        yield f"content credentials: made with {found.made_with or '?'}: {', '.join(found.actions)}"
    if found.watermark_bound is not None:
        same = "the watermark is the one that was signed" if found.watermark_bound else "another watermark was signed"
        yield f"content credentials: {same}"
    for each in found.ingredients:
        about = "without credentials" if each.state == "none" else f"whose credentials were {each.state}"
        wrong = f": {', '.join(each.problems)}" if each.problems else ""
        yield f"content credentials: made from {each.title!r}, {about}{wrong}"
