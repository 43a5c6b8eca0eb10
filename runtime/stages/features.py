"""What T2I-Adapters give the denoiser: features of their pictures, made once a run, weighed and added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tintype.arrays import Arrays, Latents, Samples
from tintype.families.t2i_adapter import Part, adapters, sizes_of
from tintype.image.decode import demand_shape
from tintype.request.control import ControlFacts
from tintype.stages.context import Context
from tintype.stages.control import shown_picture
from tintype.uses import ADAPTER_PICTURE, adapter_feature

if TYPE_CHECKING:
    from PIL.Image import Image


class Features:
    """The T2I-Adapters of a run; none where nothing is adapted."""

    def __init__(self, ctx: Context, pictures: int) -> None:
        """pictures: how many are denoised together."""
        uses = [use for use in ctx.uses_for(pictures) if use.features]
        self._parts = adapters(ctx.request, ctx.schedule) if uses else ()
        self._facts: tuple[ControlFacts, ...] = tuple(facts for facts, _, _ in self._parts)
        self._steps = ctx.schedule.steps_taken
        for use in uses:  # before any adapter is called, in case what it gives goes nowhere in this model
            ctx.graphs.demand_build(use)
        if self._parts and ctx.features is None:
            ctx.features = adapter_features(ctx, self._parts)
        self._features = ctx.features or ()
        self._sums: dict[int, tuple[tuple[int, ...], Arrays]] = {}  # by rows, what was last given

    def at(self, step: int, rows: int) -> tuple[tuple[int, ...], Arrays]:
        """Those that have a part in a step, counted from 0, and what the denoiser takes of them for so many rows: the
        same arrays for as long as they are the same."""
        if not self._parts:
            return (), {}
        active = tuple(index for index, facts in enumerate(self._facts) if facts.is_on(step, self._steps))
        if rows not in self._sums or self._sums[rows][0] != active:
            self._sums[rows] = (active, self._sum(active, rows))
        return self._sums[rows]

    def _sum(self, active: tuple[int, ...], rows: int) -> Arrays:
        found = {}
        for place, feature in enumerate(self._features[0]):
            total = np.zeros_like(feature)
            for index in active:
                total += self._features[index][place] * np.float32(self._facts[index].weight)
            found[adapter_feature(place)] = np.repeat(total, rows, axis=0)
        return found


def adapter_features(ctx: Context, parts: Sequence[Part]) -> tuple[tuple[Latents, ...], ...]:
    """What each T2I-Adapter makes of its picture, the outermost feature first: (1, channels, height, width)."""
    uses = {use.ref: use for use in ctx.uses}
    sizes, found = sizes_of(ctx.request, parts), []
    with ctx.clock.counting("encode"), ctx.graphs.phase(*{uses[net.ref] for _, _, net in parts}):
        for facts, given, net in parts:
            pixels = _pixels(shown_picture(ctx, facts, given), net.manifest.picture_channels)
            who = f"the T2I-Adapter {net.name}"
            outputs = ctx.graphs.call(uses[net.ref], {ADAPTER_PICTURE: pixels}, who=who)
            features = [outputs[adapter_feature(place)].astype(np.float32, copy=False) for place in range(len(sizes))]
            for feature, size in zip(features, sizes, strict=True):
                demand_shape(who, feature, (1, *size))
            found.append(tuple(features))
    return tuple(found)


def _pixels(picture: Image, channels: int) -> Samples:
    """(1, channels, height, width), 0 to 1; what takes one channel sees a grey picture."""
    values = np.asarray(picture.convert("L") if channels == 1 else picture, np.float32)
    pixels = values.reshape(1, picture.height, picture.width, channels).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels / np.float32(255.0))
