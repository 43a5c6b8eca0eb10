"""Noise -> latents, one step at a time: the denoiser's graph, guided, under a sampler."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tintype.arrays import Arrays, Latents
from tintype.families.base import Conditioning
from tintype.graphs.resident import not_finite
from tintype.sampling import (
    SAMPLERS,
    NoiseSource,
    Step,
    denoised_from,
    guide,
    model_input,
    rescale_guidance,
)
from tintype.stages.context import Context
from tintype.stages.start import Start


def denoise(ctx: Context, conditioning: Conditioning, batch: range, start: Start, noise: NoiseSource) -> Iterator[Step]:
    """The sampler's steps for one batch of pictures, whose finished latents are then the last of `ctx.latents`."""
    latents = start.latents
    denoiser = Denoiser(ctx, conditioning, len(latents), start.inpainting)
    steps = SAMPLERS[ctx.request.sampler](denoiser, latents, ctx.schedule, noise, start.after_step)
    with ctx.graphs.phase(denoiser.use):
        while True:
            in_graph = ctx.graphs.run_seconds
            with ctx.clock.counting("denoise"):
                step = next(steps, None)
            ctx.clock.graph_seconds += ctx.graphs.run_seconds - in_graph
            if step is None:
                break
            ctx.clock.steps += 1
            denoiser.step = step.index + 1
            if not np.isfinite(step.latents).all():
                raise not_finite(f"the denoiser, in step {step.index + 1} of {step.total},")
            latents = step.latents
            yield step
        ctx.look_at_device()
    ctx.keep(batch, ctx.schedule.to_model_space(latents))


class Denoiser:
    """Noisy latents -> denoised latents, for one batch of one run; what a sampler calls `denoise`."""

    def __init__(
        self, ctx: Context, conditioning: Conditioning, pictures: int, inpainting: Latents | None = None
    ) -> None:
        """pictures: how many are denoised together. inpainting: further channels for each of them, see `Start`."""
        self.use = ctx.use("denoiser", pictures)
        self.step = 0  # of the sampler's, how many are done
        self._ctx = ctx
        self._inpainting = None if inpainting is None else np.repeat(inpainting, pictures, axis=0)
        branches = self.use.branches
        split = ctx.graphs.plan.split_guidance  # a call for each branch in place of one for all
        rows = [slice(index, index + 1) for index in range(branches)] if split else [slice(None)]
        self._held: list[Arrays] = [
            {name: np.repeat(values[part], pictures, axis=0) for name, values in conditioning.items()} for part in rows
        ]
        ports = ctx.bundle.graph(self.use.ref.role, self.use.ref.variant).inputs
        timestep = next(port for port in ports if port.name == "timestep")
        self._timestep_type, self._timestep_shape = np.dtype(timestep.dtype), timestep.shape

    def __call__(self, latents: Latents, sigma: float, timestep: float) -> Latents:
        """Latents at noise level sigma, (batch, channels, height, width) -> what the model takes the pictures to be."""
        sample = model_input(latents, sigma)
        if self._inpainting is not None:
            sample = np.concatenate([sample, self._inpainting], axis=1)
        prediction = self._guided(sample, timestep)
        return denoised_from(prediction, latents, sigma, self._ctx.bundle.manifest.prediction_type)

    def _guided(self, sample: Latents, timestep: float) -> Latents:
        """The model's prediction; with guidance one call on a batch twice as large, or two calls."""
        request, branches = self._ctx.request, self.use.branches
        sample = np.concatenate([sample] * (branches // len(self._held)))
        predictions = [self._predict(held, sample, timestep) for held in self._held]
        prediction = predictions[0] if len(predictions) == 1 else np.concatenate(predictions)
        if branches == 1:
            return prediction
        unconditional, conditional = np.split(prediction, 2)
        guided = guide(conditional, unconditional, request.guidance_scale)
        if request.guidance_rescale == 0:
            return guided
        return rescale_guidance(guided, conditional, request.guidance_rescale)

    def _predict(self, held: Arrays, sample: Latents, timestep: float) -> Latents:
        shape = tuple(len(sample) if isinstance(size, str) else size for size in self._timestep_shape)
        inputs = {
            "sample": sample.astype(np.float32, copy=False),
            "timestep": np.full(shape, timestep, dtype=self._timestep_type),
        }
        number, total = self.step + 1, self._ctx.schedule.total
        outputs = self._ctx.graphs.call(
            self.use,
            inputs,
            held=held,
            who=f"the denoiser, in step {number} of {total},",
            since=f" from step {number} on",
        )
        return outputs["out_sample"].astype(np.float32, copy=False)
