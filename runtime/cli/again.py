"""Pictures that were made before: made again from a record, or finished from latents that were kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintype.cli.contradictions import refuse_contradictions
from tintype.cli.converted import runnable
from tintype.cli.making import Way, check_writable, finish, new_path, save_each, tell
from tintype.cli.progress import StepBar, spinner
from tintype.errors import MemoryBudgetError, RecordError

if TYPE_CHECKING:
    from tintype import Pipeline, Record, Run

# Of what a record has hashes.
FROM_INPUTS = (
    "image", "mask", "latents", "loras", "lora_dir", "embeddings", "control", "ip_adapter", "image_encoder",
    "image_prompts",
)  # fmt: skip


def whole_record(picture: Path, prompt: str | None, fields: Mapping[str, Any], context: click.Context) -> Record:
    """The record of a picture; of a private one with the words and the seed that were typed.

    What a record already says, giving it once more could only contradict it.
    """
    from tintype import read_record
    from tintype.record.private import OF_REQUEST

    record = read_record(picture)
    said = {"prompt", "size", "memory", "variation_of", *fields} - {*FROM_INPUTS}
    if record.withheld is None:
        refuse_contradictions(context, "--from-record", said)
        return record
    refuse_contradictions(context, "--from-record", said - {*OF_REQUEST})
    if prompt is None or fields["seed"] is None:
        record.demand_whole()
    return record.revealed(prompt or "", fields["seed"] or 0, fields["negative_prompt"] or "")


def reproduce(record: Record, way: Way) -> None:
    """The picture of a record, with the bundle, device and thread count that it names unless others are given."""
    output = way.output or new_path(record.request, record.seed)
    with StepBar() as bar, _load_as_in(record, way) as pipeline:
        result = finish(_promised(pipeline, record, way), {record.picture: output}, bar, output, way)
    tell(result, [output], way)


def resume(file: Path, way: Way) -> None:
    """The pictures of latents that were kept, with the bundle, device and thread count of their records."""
    from tintype.events import picture_paths
    from tintype.record.latents_file import read_latents

    saved = read_latents(file)
    first = saved.records[0]
    output = way.output or new_path(first.request, first.seed, len(saved.records))
    paths = picture_paths(output, len(saved.records))
    places = {record.picture: path for record, path in zip(saved.records, paths, strict=True)}
    check_writable(paths)
    with spinner("decoding"), _load_as_in(first, way) as pipeline:
        try:
            result = save_each(pipeline.resume_pictures(saved, anyway=way.force, **way.inputs), places)
        except RecordError as error:
            if not error.reasons:
                raise
            raise error.with_fix("use what made them, or try all the same with --force") from None
        except MemoryBudgetError as error:
            raise error.with_fix("close other programs, then give the same command") from None
    tell(result, paths, way)


def _load_as_in(record: Record, way: Way) -> Pipeline:
    from tintype import load

    made_with = record.made_with
    return load(
        _bundle_of(record) if way.model is None else runnable(way.model),
        provider=made_with.target if way.provider == "auto" else way.provider,
        memory=way.memory,
        threads=made_with.threads if way.threads is None else way.threads,
        refiner=_refiner_of(record) if way.refiner is None else way.refiner,
        **way.operator,
    )


def _promised(pipeline: Pipeline, record: Record, way: Way) -> Run:
    try:
        return pipeline.reproduce_steps(record, anyway=way.force, **way.inputs)
    except RecordError as error:
        if not error.reasons:
            raise
        raise error.with_fix("use what made it, or try all the same with --force") from None


def _bundle_of(record: Record) -> str:
    name = record.made_with.bundle
    if not _is_here(name):
        raise RecordError(f"the picture was made with the bundle {name!r}", fix="say where it is: --model FOLDER")
    return name


def _refiner_of(record: Record) -> str | None:
    known = record.made_with.refiner
    if known is not None and not _is_here(known.bundle):
        raise RecordError(f"the picture was refined by {known.bundle!r}", fix="say where it is: --refiner FOLDER")
    return None if known is None else known.bundle


def _is_here(name: str) -> bool:
    """Whether a model is found by its name, which a stranger may have written."""
    from tintype.bundle import EMBEDDED
    from tintype.bundle.library import library_bundle

    return name in EMBEDDED or library_bundle(name) is not None
