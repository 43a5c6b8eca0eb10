"""SEEDS: the reverse equation with its noise, by exponential stages within a step. Pure steps over float32 arrays."""

from __future__ import annotations

from tintype.arrays import Latents
from tintype.sampling.exponential import staged_steps
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Steps, unchanged


def seeds_2(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """SEEDS-2 (Gonzalez et al. 2023, arXiv 2305.14267, algorithm 2, predicting pictures, as ComfyUI's seeds_2).

    Two model calls a step, one for the last; it goes to what was denoised halfway.
    """
    return staged_steps(denoise, latents, schedule, noise, after_step, places=(1 / 2,), eta=1.0, midpoint=True)


def seeds_3(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """SEEDS-3 (the same, algorithm 3, as ComfyUI's seeds_3): three model calls a step, one for the last."""
    return staged_steps(denoise, latents, schedule, noise, after_step, places=(1 / 3, 2 / 3), eta=1.0)
