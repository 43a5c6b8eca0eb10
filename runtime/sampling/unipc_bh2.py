"""UniPC as ComfyUI sets it, whatever a checkpoint says of it. Pure steps over float32 arrays."""

from __future__ import annotations

import dataclasses

from tintype.arrays import Latents
from tintype.sampling.noise import NoiseSource
from tintype.sampling.schedule import Schedule
from tintype.sampling.step import AfterStep, Denoise, Steps, unchanged
from tintype.sampling.unipc import unipc


def unipc_bh2(
    denoise: Denoise, latents: Latents, schedule: Schedule, noise: NoiseSource, after_step: AfterStep = unchanged
) -> Steps:
    """UniPC of the third order with B(h) = e^h - 1 (Zhao et al. 2023, arXiv 2302.04867), its last steps of lower order.

    As ComfyUI's uni_pc_bh2, which stops at sigma 0.001 where this goes to 0.
    """
    config = dataclasses.replace(schedule.config, solver_order=3, solver_type="bh2", lower_order_final=True)
    return unipc(denoise, latents, dataclasses.replace(schedule, config=config), noise, after_step)
