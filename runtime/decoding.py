"""Decoding that doesn't give up: whole, then in smaller and smaller pieces, and the latents are never lost.

The pieces are strips, which are the same picture; for a decoder that cannot be cut they are tiles, which nearly are.
What was tried last stays in the record, because it decides the bytes; a record is decoded as it says and not otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tintype.arrays import Latents, Pixels
from tintype.clock import StageClock
from tintype.errors import MemoryBudgetError, RecordError, UncutError
from tintype.image.decode import to_image
from tintype.image.tiles import Tiling
from tintype.latents import SavedLatents
from tintype.memory.holding import Holding, strips
from tintype.memory.plan import Arrangement
from tintype.record import arrangement_of, differences
from tintype.result import Picture, Result

if TYPE_CHECKING:
    from tintype.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Way:
    """One way to decode."""

    tiling: Tiling | None = None  # None is the whole picture
    holding: Holding | None = None  # None is as the arrangement has it

    def arrange(self, arrangement: Arrangement) -> Arrangement:
        if self.holding is None:
            return arrangement
        return dataclasses.replace(arrangement, holdings={**arrangement.holdings, "vae_decoder": self.holding})

    @property
    def words(self) -> str:
        if self.holding is not None:
            return f"in {self.holding.words}"
        return "whole" if self.tiling is None else f"in tiles of {self.tiling.tile} latent cells"


Decode = Callable[[Latents, Way], Pixels]

AS_ARRANGED = Way()
# Tried in turn. Tiles are in latent cells and overlap by a quarter: from an eighth on, a seam is no steeper than the
# rest of the picture, and more only costs time.
TILES = tuple(Way(Tiling(tile, tile // 4)) for tile in (64, 32, 16))
ALL_WAYS = (AS_ARRANGED, *(Way(holding=strips(mib)) for mib in (32, 8, 4)), *TILES)


def ways_to_decode(arrangement: Arrangement) -> tuple[Way, ...]:
    """What is tried in turn, from what the arrangement has on."""
    held = arrangement.holding("vae_decoder").strip_mib
    if held is None:
        return ALL_WAYS
    # It can be cut, or there would be no such plan.
    return (AS_ARRANGED, *(way for way in ALL_WAYS if way.holding is not None and (way.holding.strip_mib or 0) < held))


def decode_somehow(
    decode: Decode, latents: Latents, ways: Sequence[Way], make_room: Callable[[], None]
) -> tuple[Pixels, Way]:
    """The pictures, and the first of `ways` that memory was enough for. make_room: called before each new try.

    Raises MemoryBudgetError when it was enough for none. Once memory ran out, ways that the decoder can't go are left
    out; where it can run in strips, tiles are not tried after them.
    """
    side = max(latents.shape[2:])
    useful = [way for way in ways if way.tiling is None or way.tiling.tile < side or way is ways[0]]
    failure: Exception | None = None
    last = useful[0]
    for way in useful:
        if way.tiling is not None and last.holding is not None:
            break  # strips ran, and tiles need no less than the smallest of them
        if failure is not None:
            make_room()
        try:
            return decode(latents, way), way
        except (MemoryBudgetError, MemoryError) as error:
            failure, last = error, way
        except UncutError:
            if failure is None:
                raise
    how = "" if last == AS_ARRANGED else f", even {last.words}"
    raise MemoryBudgetError(
        f"there was not enough memory to decode the picture{how}: {_reason(failure)}",
        fix="its latents are kept: save them with Run.save_latents(FILE), close other programs, "
        "then tintype generate --from-latents FILE",
    ) from None


def resume_pictures(
    pipeline: Pipeline, saved: SavedLatents, *, anyway: bool = False
) -> Generator[Picture, None, Result]:
    """The pictures of saved latents: each decoded whole, or in pieces where memory runs out again; returns them all."""
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
    pictures = []
    ways = ways_to_decode(arrangement)
    for index, record in enumerate(saved.records):
        told_again: list[str] = []
        decode = functools.partial(
            pipeline.decode,
            exactness=record.request.exactness,
            arrangement=arrangement,
            note=told_again.append,
        )
        with clock.counting("decode"):
            pixels, way = decode_somehow(decode, saved.latents[index : index + 1], ways, pipeline.close)
        ways = ways[ways.index(way) :]
        made_with = pipeline.circumstances(record.request, record.picture, way.tiling, way.arrange(arrangement))
        told = record.made_with if reasons else made_with  # a picture in pieces has another build of the decoder
        said = tuple(dict.fromkeys((*record.notes, *notes, *told_again)))
        finished = dataclasses.replace(record, made_with=told, tiling=way.tiling, notes=said)
        pictures.append(Picture(record.picture, to_image(pixels[0]), finished))
        timings = clock.timings()  # without what the caller does with the last picture
        yield pictures[-1]
    return Result(
        images=tuple(picture.image for picture in pictures),
        records=tuple(picture.record for picture in pictures),
        latents=saved.latents,
        timings=timings,
    )


def _reason(error: Exception | None) -> str:
    if isinstance(error, MemoryBudgetError):
        return error.message
    return str(error) or "the system gave none"
