"""What ControlNets give the denoiser at each call: residuals, weighed and added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Arrays, Latents
from tintype.bundle.controlnet import ControlNet
from tintype.families.control import controlled, controlnets, residual_shapes, strengths
from tintype.image.decode import demand_shape
from tintype.image.fit import fit
from tintype.image.preprocess import RESIZE, preprocess
from tintype.request.control import ControlFacts, ControlInput
from tintype.stages.context import Context
from tintype.uses import CONTROLNET, CONTROLNET_PICTURE

if TYPE_CHECKING:
    from PIL.Image import Image

# Branches -> their wordings at this step, and what the denoiser is told of them.
Words = Callable[[tuple[int, ...]], tuple[tuple[int, ...], Arrays]]


class Controls:
    """The ControlNets of a run, for batches of so many pictures; none where nothing controls it."""

    def __init__(self, ctx: Context, pictures: int) -> None:
        self._ctx, self._pictures = ctx, pictures
        is_controlled = any(use.residuals for use in ctx.uses)
        found = controlnets(ctx.request) if is_controlled else ()
        self._parts = [_Part(facts, net, _condition(ctx, facts, given)) for facts, given, net in found]
        uses = ctx.uses_for(pictures)
        self.uses = tuple(use for use in uses if use.ref.role == CONTROLNET)
        for use in uses:
            if use.residuals:  # before any of them is called, in case what they give goes nowhere in this model
                ctx.graphs.demand_build(use)

    def residuals(self, branches: tuple[int, ...], sample: Latents, timestep: float, step: int, words: Words) -> Arrays:
        """What the denoiser takes beside its own inputs for a call of these branches, in a step counted from 0.

        sample: (pictures, channels, height, width), as the denoiser sees it. words: what branches are told.
        """
        if not self._parts:
            return {}
        height, width = sample.shape[2:]
        shapes = residual_shapes(self._parts[0].net, len(branches) * self._pictures, height, width)
        total: dict[str, NDArray[np.float32]] = {}
        for part in self._parts:
            if not part.facts.weight or not part.facts.is_on(step, self._ctx.schedule.steps_taken):
                continue
            told = controlled(self._ctx.request, part.net, self._ctx.branches, branches)
            if not told:
                continue
            outputs = self._call(part, told, sample, timestep, step, words)
            self._add(total, outputs, part, _rows(branches, told, self._pictures), shapes)
        return {name: total.get(name, np.zeros(shape, np.float32)) for name, shape in shapes.items()}

    def _call(
        self, part: _Part, told: tuple[int, ...], sample: Latents, timestep: float, step: int, words: Words
    ) -> Arrays:
        net, split = part.net, self._ctx.graphs.plan.split_guidance
        use = next(use for use in self.uses if use.ref == net.ref and (split or use.branches == len(told)))
        port = next(port for port in net.manifest.graph.inputs if port.name == "timestep")
        shape = tuple(len(told) * self._pictures if isinstance(size, str) else size for size in port.shape)
        number = step + 1
        return self._ctx.graphs.call(
            use,
            {
                "sample": np.concatenate([sample] * len(told)).astype(np.float32, copy=False),
                "timestep": np.full(shape, timestep, dtype=np.dtype(port.dtype)),
            },
            held=self._held(part, told, words),
            who=f"the ControlNet {net.name}, in step {number} of {self._ctx.schedule.total},",
            since=f" from step {number} on",
        )

    def _held(self, part: _Part, told: tuple[int, ...], words: Words) -> Arrays:
        """What a ControlNet is told of branches: the same arrays for as long as their words stay the same."""
        wordings, arrays = words(told)
        before, held = part.held.get(told, (None, {}))
        if before != wordings:
            self._ctx.graphs.release(held)
            held = {name: values for name, values in arrays.items() if name in part.net.manifest.inputs}
            held[CONTROLNET_PICTURE] = np.repeat(part.condition, len(told) * self._pictures, axis=0)
            part.held[told] = (wordings, held)
        return held

    def _add(
        self,
        total: dict[str, NDArray[np.float32]],
        outputs: Arrays,
        part: _Part,
        rows: NDArray[np.int64],
        shapes: Mapping[str, tuple[int, int, int, int]],
    ) -> None:
        """Add what a ControlNet gave for some rows of a call to what others gave."""
        weights = strengths(part.facts, part.net, guess=self._ctx.request.control_guess)
        for (name, shape), weight in zip(shapes.items(), weights, strict=True):
            given = outputs[name].astype(np.float32, copy=False)
            demand_shape(f"the ControlNet {part.facts.model}", given, (len(rows), *shape[1:]))
            if part.net.manifest.pooled:
                given = given.mean(axis=(2, 3), keepdims=True)
            if weight != 1.0:
                given = given * np.float32(weight)
            if name not in total and given.shape == shape:
                total[name] = given
                continue
            if name not in total:
                total[name] = np.zeros(shape, np.float32)
            total[name] = np.require(total[name], requirements="W")
            total[name][rows] += given


@dataclass(slots=True)
class _Part:
    """One ControlNet of a request."""

    facts: ControlFacts
    net: ControlNet
    condition: NDArray[np.float32]  # (1, 3, height, width), 0 to 1
    held: dict[tuple[int, ...], tuple[tuple[int, ...], Arrays]] = field(default_factory=dict)


def shown_picture(ctx: Context, facts: ControlFacts, given: ControlInput) -> Image:
    """A picture as what it controls by is shown it: RGB, at the size that is drawn."""
    how = "stretch" if facts.preprocess == RESIZE else facts.fit
    picture = fit(given.picture, ctx.request.width, ctx.request.height, how)
    return picture if facts.preprocess is None else preprocess(picture, facts.preprocess)


def _condition(ctx: Context, facts: ControlFacts, given: ControlInput) -> NDArray[np.float32]:
    """A picture as its ControlNet takes it."""
    pixels = np.asarray(shown_picture(ctx, facts, given), np.float32)[np.newaxis].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels / np.float32(255.0))


def _rows(branches: tuple[int, ...], told: tuple[int, ...], pictures: int) -> NDArray[np.int64]:
    """Of a call of these branches, the rows of those that are told."""
    starts = np.array([branches.index(branch) * pictures for branch in told], np.int64)
    return (starts[:, np.newaxis] + np.arange(pictures)).ravel()
