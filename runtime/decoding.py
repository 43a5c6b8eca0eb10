"""Decoding that doesn't give up: whole, then in smaller and smaller tiles, and the latents are never lost.

What was tried last stays in the record, because tiles show in the bytes; a record is decoded as it says and not
otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tintype.clock import StageClock
from tintype.errors import MemoryBudgetError, RecordError
from tintype.image.decode import Latents, Pixels, to_image
from tintype.image.tiles import Tiling
from tintype.latents import SavedLatents
from tintype.record import arrangement_of, differences
from tintype.result import Result

if TYPE_CHECKING:
    from tintype.pipeline import Pipeline

Decode = Callable[[Latents, Tiling | None], Pixels]

# Tried in turn, in latent cells; None is the whole picture. The overlap is a quarter: from an eighth on, a seam is
# no steeper than the rest of the picture, and more only costs time.
TILINGS: tuple[Tiling | None, ...] = (None, Tiling(64, 16), Tiling(32, 8), Tiling(16, 4))


def decode_somehow(
    decode: Decode, latents: Latents, tilings: Sequence[Tiling | None], make_room: Callable[[], None]
) -> tuple[Pixels, Tiling | None]:
    """The pictures, and the first of `tilings` that memory was enough for. make_room: called before each new try.

    Raises MemoryBudgetError when it was enough for none.
    """
    side = max(latents.shape[2:])
    useful = [tiling for tiling in tilings if tiling is None or tiling.tile < side or tiling is tilings[0]]
    failure: Exception | None = None
    for tiling in useful:
        if failure is not None:
            make_room()
        try:
            return decode(latents, tiling), tiling
        except (MemoryBudgetError, MemoryError) as error:
            failure = error
    last = useful[-1]
    how = "" if last is None else f", even in tiles of {last.tile} latent cells"
    raise MemoryBudgetError(
        f"there was not enough memory to decode the picture{how}: {_reason(failure)}",
        fix="its latents are kept: save them with Run.save_latents(FILE), close other programs, "
        "then tintype generate --from-latents FILE",
    ) from None


def resume(pipeline: Pipeline, saved: SavedLatents, *, anyway: bool = False) -> Result:
    """The pictures of saved latents: decoded whole, or in tiles where memory runs out again."""
    saved.check(pipeline.bundle.manifest)
    first = saved.records[0]
    arrangement = arrangement_of(first.made_with)
    reasons = differences(first, pipeline.circumstances(first.request, first.picture, None, arrangement))
    planned = pipeline.planned(first.request)
    if planned is not None:
        arrangement = planned.arrangement
    if reasons and not anyway:
        raise RecordError(
            f"these latents belong elsewhere: {'; '.join(reasons)}",
            fix="use what made them, or let it try anyway; the picture may then differ",
        )
    notes = (f"its latents come from elsewhere: {'; '.join(reasons)}",) if reasons else ()
    clock = StageClock(lambda: pipeline.load_seconds)
    images, records = [], []
    tilings: Sequence[Tiling | None] = TILINGS
    with clock.counting("decode"):
        for index, record in enumerate(saved.records):
            told_again: list[str] = []
            decode = functools.partial(
                pipeline.decode,
                exactness=record.request.exactness,
                arrangement=arrangement,
                note=told_again.append,
            )
            pixels, tiling = decode_somehow(decode, saved.latents[index : index + 1], tilings, pipeline.close)
            tilings = TILINGS[TILINGS.index(tiling) :]
            images.append(to_image(pixels[0]))
            made_with = pipeline.circumstances(record.request, record.picture, tiling, arrangement)
            told = record.made_with if reasons else made_with  # a picture in tiles has another build of the decoder
            said = tuple(dict.fromkeys((*record.notes, *notes, *told_again)))
            records.append(dataclasses.replace(record, made_with=told, tiling=tiling, notes=said))
    return Result(images=tuple(images), records=tuple(records), latents=saved.latents, timings=clock.timings())


def _reason(error: Exception | None) -> str:
    if isinstance(error, MemoryBudgetError):
        return error.message
    return str(error) or "the system gave none"
