"""Noise -> latents, one step at a time: the denoiser's graph, guided, under a sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tintype.arrays import Arrays, Latents
from tintype.errors import NumericError
from tintype.families.base import Conditioning
from tintype.families.reuse import reuse_of
from tintype.graphs.bound import not_finite
from tintype.image.decode import demand_shape
from tintype.sampling import SAMPLERS, Denoised, NoiseSource, Step
from tintype.stages.context import Context
from tintype.stages.control import Controls
from tintype.stages.features import Features
from tintype.stages.reuse import KeptValues
from tintype.stages.start import Start
from tintype.trust.memorisation import StepNorms
from tintype.uses import GraphUse


def denoise(ctx: Context, conditioning: Conditioning, batch: range, start: Start, noise: NoiseSource) -> Iterator[Step]:
    """The sampler's steps for one batch of pictures, whose finished latents are then the last of `ctx.latents`."""
    latents = start.latents
    denoiser = Denoiser(ctx, conditioning, len(latents), start.channels)
    ctx.norms[batch] = denoiser.norms
    steps = SAMPLERS[ctx.request.sampler](denoiser, latents, ctx.schedule, noise, start.after_step)
    with ctx.graphs.phase(*denoiser.uses, *denoiser.control_uses):
        while True:
            in_graph = ctx.graphs.run_seconds
            with ctx.clock.counting("denoise"), _blaming_loras(ctx):
                step = next(steps, None)
            ctx.clock.graph_seconds += ctx.graphs.run_seconds - in_graph
            if step is None:
                break
            ctx.clock.steps += 1
            denoiser.step = step.index + 1
            if not np.isfinite(step.latents).all():
                with _blaming_loras(ctx):
                    raise not_finite(f"the denoiser, in step {step.index + 1} of {step.total},")
            latents = step.latents
            yield step
            if step.index + 1 == ctx.schedule.stops_after:
                break
        ctx.look_at_device()
    ctx.loras.release("denoiser")
    ctx.keep(batch, ctx.schedule.to_model_space(latents))


@contextmanager
def _blaming_loras(ctx: Context) -> Iterator[None]:
    """What isn't finite may come of what LoRAs add: their names and weights stand in the fix."""
    try:
        yield
    except NumericError as error:
        told = ", ".join(f"{lora.name} of {lora.weight:g}" for lora in ctx.request.loras if not lora.is_idle)
        if not told:
            raise
        fix = f"give the LoRAs smaller weights ({told}); if it stays so without them, {error.fix}"
        raise error.with_fix(fix) from None


class Denoiser:
    """Noisy latents -> what the model takes the pictures to be, for a batch of a run; what samplers call `denoise`."""

    def __init__(
        self, ctx: Context, conditioning: Conditioning, pictures: int, channels: tuple[Latents, ...] | None = None
    ) -> None:
        """pictures: how many are denoised together. channels: further ones by branch, see `Start`."""
        self.uses = tuple(use for use in ctx.uses_for(pictures) if use.ref.role == "denoiser")
        self.step = 0  # of the sampler's, how many are done
        self.norms = StepNorms()  # of what the words change at each of them
        self._ctx = ctx
        self._conditioning, self._pictures = conditioning, pictures
        self._reuse = reuse_of(ctx.request)
        self._features = Features(ctx, pictures)
        self._controls = Controls(ctx, pictures)
        self._kept = KeptValues(blends=self._reuse is not None and self._reuse.blends)
        # By the branches of a call: wordings and LoRAs' weights at the last step, and what it is told of them.
        self._said: dict[tuple[int, ...], tuple[tuple[int, ...], Arrays]] = {}
        self._held: dict[tuple[int, ...], tuple[tuple[Any, ...], Arrays]] = {}
        self._channels = tuple(each.repeat(pictures // len(each), axis=0) for each in channels or ())
        ports = ctx.bundle.graph(self.uses[0].ref.role, self.uses[0].ref.variant).inputs
        timestep = next(port for port in ports if port.name == "timestep")
        self._timestep_type, self._timestep_shape = np.dtype(timestep.dtype), timestep.shape

    @property
    def control_uses(self) -> tuple[GraphUse, ...]:
        """Of the ControlNets that are called with it."""
        return self._controls.uses

    def __call__(self, latents: Latents, sigma: float, timestep: float) -> Denoised:
        """latents: (pictures, channels, height, width), at noise level sigma."""
        ctx, parametrization = self._ctx, self._ctx.parametrization
        sample = parametrization.model_input(latents, sigma)
        progress = ctx.schedule.progress(self.step)
        active = ctx.guidance.active(progress)
        takes = self._reuse is not None and self._reuse.takes(active, progress)
        predictions = self._predictions(active, sample, parametrization.timestep(sigma, timestep), takes=takes)
        difference = ctx.guidance.difference(predictions)
        if difference is not None:
            self.norms.observe(self.step, difference)
        return ctx.guidance.combine(
            predictions, lambda prediction: parametrization.denoised(prediction, latents, sigma)
        )

    def _predictions(
        self, active: tuple[int, ...], sample: Latents, timestep: float, *, takes: bool
    ) -> dict[int, Latents]:
        """By branch; all in one call, or each in a call of its own where the plan has guidance split.

        takes: over what the last whole call gave of its inner values.
        """
        uses = [use for use in self.uses if use.takes == takes]
        if not takes:
            self._kept.clear()
        if self._ctx.graphs.plan.split_guidance:
            return {branch: self._call(uses[0], (branch,), active, sample, timestep) for branch in active}
        use = next(use for use in uses if use.branches == len(active))
        outputs = self._call(use, active, active, sample, timestep)
        return dict(zip(active, np.split(outputs, len(active)), strict=True))

    def _call(
        self, use: GraphUse, branches: tuple[int, ...], active: tuple[int, ...], sample: Latents, timestep: float
    ) -> Latents:
        """branches: of the active ones those of this call."""
        residuals = self._controls.residuals(branches, sample, timestep, self.step, self._words)
        sample = np.concatenate([self._with_channels(sample, branch) for branch in branches])
        shape = tuple(len(sample) if isinstance(size, str) else size for size in self._timestep_shape)
        inputs = {
            "sample": sample.astype(np.float32, copy=False),
            "timestep": np.full(shape, timestep, dtype=self._timestep_type),
            **(self._kept.given(branches, active) if use.takes else {}),
            **residuals,
        }
        number, total = self.step + 1, self._ctx.schedule.total
        outputs = self._ctx.graphs.call(
            use,
            inputs,
            held=self._held_by(branches),
            who=f"the denoiser, in step {number} of {total},",
            since=f" from step {number} on",
        )
        prediction = outputs["out_sample"].astype(np.float32, copy=False)
        if use.cut is not None and not use.takes:
            self._kept.keep(branches, {name: values for name, values in outputs.items() if name != "out_sample"})
        latent = (len(sample), self._ctx.bundle.manifest.latent_channels, *sample.shape[2:])
        demand_shape("the denoiser", prediction, latent)  # numpy would stretch one that is smaller
        return prediction

    def _with_channels(self, sample: Latents, branch: int) -> Latents:
        return np.concatenate([sample, self._channels[branch]], axis=1) if self._channels else sample

    def _words(self, branches: tuple[int, ...]) -> tuple[tuple[int, ...], Arrays]:
        """The wordings of branches at this step and their embeddings: the same mapping again while these stay."""
        wordings = self._ctx.prompts.at(branches, self.step)
        before, words = self._said.get(branches, (None, {}))
        if before != wordings:
            self._ctx.graphs.release(words)  # so that there is never more than one set for a call
            words = {
                name: np.repeat(values[list(wordings)], self._pictures, axis=0)
                for name, values in self._conditioning.items()
            }
            if self._ctx.seen is not None:
                words |= self._ctx.seen.inputs([self._ctx.branches[branch] for branch in branches], self._pictures)
            self._said[branches] = (wordings, words)
        return wordings, words

    def _held_by(self, branches: tuple[int, ...]) -> Arrays:
        """What the denoiser is told of branches: the same mapping again while words, LoRAs and features stay the
        same."""
        progress = self._ctx.schedule.progress(self.step)
        wordings, words = self._words(branches)
        adapted, features = self._features.at(self.step, len(branches) * self._pictures)
        if not self._ctx.loras.by_role and not features:
            return words
        with self._ctx.graphs.cancellable():  # what DoRAs scale is measured when it is first asked for
            told = (wordings, self._ctx.loras.weights("denoiser", progress), adapted)
        before, held = self._held.get(branches, (None, {}))
        if before != told:
            self._ctx.graphs.release(held)
            held = {**words, **self._ctx.loras.inputs("denoiser", progress), **features}
            self._held[branches] = (told, held)
        return held
