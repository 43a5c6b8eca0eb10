"""In which pieces a picture is decoded: whole, in strips, which are the same picture, or in tiles, which nearly are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tintype.image.tiles import Tiling
from tintype.memory.mode import Mode, strips
from tintype.memory.plan import ExecutionPlan
from tintype.uses import GraphUse

DECODER = "vae_decoder"


@dataclass(frozen=True, slots=True)
class DecodeMode:
    """One way to decode."""

    tiling: Tiling | None = None  # None is the whole picture
    holding: Mode | None = None  # None is as the plan has it

    def within(self, plan: ExecutionPlan) -> ExecutionPlan:
        """The plan with the decoder held this way."""
        if self.holding is None:
            return plan
        return dataclasses.replace(plan, holdings={**plan.holdings, DECODER: self.holding})

    def cut(self, use: GraphUse) -> GraphUse:
        """The decoder's use of a picture's latents, or of their tiles, which are all of one shape."""
        if self.tiling is None:
            return use
        sides = {name: min(use.dims[name], self.tiling.tile) for name in ("height", "width")}
        return dataclasses.replace(use, dims={**use.dims, **sides})

    @property
    def words(self) -> str:
        if self.holding is not None:
            return f"in {self.holding.words}"
        return "whole" if self.tiling is None else f"in tiles of {self.tiling.tile} latent cells"


PLANNED = DecodeMode()
# Tried in turn. Tiles are in latent cells and overlap by a quarter: from an eighth on, a seam is no steeper than the
# rest of the picture, and more only costs time.
TILES = tuple(DecodeMode(Tiling(tile, tile // 4)) for tile in (64, 32, 16))
FALLBACKS = (PLANNED, *(DecodeMode(holding=strips(mib)) for mib in (32, 8, 4)), *TILES)


def decode_modes(plan: ExecutionPlan) -> tuple[DecodeMode, ...]:
    """What is tried in turn, from what the plan has on."""
    held = plan.holding(DECODER).strip_mib
    if held is None:
        return FALLBACKS
    # It can be cut, or there would be no such plan.
    return (PLANNED, *(mode for mode in FALLBACKS if mode.holding is not None and (mode.holding.strip_mib or 0) < held))
