"""What was made before, made again or finished: whether it can be promised, and the pictures of latents that waited."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

from tintype.errors import RecordError
from tintype.events import Picture
from tintype.record import Record
from tintype.record.latents_file import SavedLatents
from tintype.record.provenance import mismatches, nondeterminism
from tintype.request import Request
from tintype.stages.context import Context
from tintype.stages.decode import decode
from tintype.stages.finish import provenance, provenance_of, to_picture


def request_of(record: Record) -> Request:
    """The request of a record, as somebody would ask for it again."""
    return Request(**{name: getattr(record.request, name) for name in Request.__dataclass_fields__})


def demand_promise(ctx: Context, record: Record) -> None:
    """Raises RecordError, naming each reason, when a run can't promise the bytes of a record's picture."""
    made_with, here = record.made_with, provenance(ctx.bundle, ctx.graphs.all, record.made_with.builds)
    # Builds last: one that isn't there yet has to be made before it can be compared.
    reasons = nondeterminism(made_with, record.request.exactness) + mismatches(made_with, here)
    reasons = reasons or mismatches(made_with, provenance_of(ctx, record.picture, ctx.decode_modes[0]))
    if reasons:
        raise RecordError(
            f"the same picture can't be promised: {'; '.join(reasons)}",
            fix="use what made it, or let it try anyway; the picture may then differ",
            reasons=tuple(reasons),
        )


def demand_home(ctx: Context, record: Record) -> None:
    """Raises RecordError, naming each reason, when latents with this record were made elsewhere."""
    reasons = mismatches(record.made_with, provenance_of(ctx, record.picture))
    if reasons:
        raise RecordError(
            f"these latents belong elsewhere: {'; '.join(reasons)}",
            fix="use what made them, or let it try anyway; the picture may then differ",
            reasons=tuple(reasons),
        )


def finish_saved(ctx: Context, saved: SavedLatents, foreign: tuple[str, ...]) -> Generator[Picture]:
    """The pictures of saved latents: each decoded whole, or in pieces where memory runs out again.

    foreign: why they belong elsewhere.
    """
    about = (f"its latents come from elsewhere: {'; '.join(foreign)}",) if foreign else ()
    for index, record in enumerate(saved.records):
        begun = len(ctx.warnings)
        pixels, mode = decode(ctx, saved.latents[index : index + 1])
        # A picture in pieces has another build of the decoder.
        made_with = record.made_with if foreign else provenance_of(ctx, record.picture, mode)
        notes = tuple(dict.fromkeys((*record.notes, *about, *ctx.warnings[begun:])))
        yield to_picture(pixels, dataclasses.replace(record, made_with=made_with, tiling=mode.tiling, notes=notes))
