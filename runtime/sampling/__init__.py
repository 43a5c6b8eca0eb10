"""Noise, schedules, samplers and guidance: numpy only, pure functions, randomness passed in.

    config = SchedulerConfig.from_json(scheduler_config)
    sampler, spacing = sampler_named("DPM++ 2M Karras")  # "dpmpp_2m", "karras"; `names` has what else they are called
    schedule = make_schedule(config, sampler, 20, spacing)
    noise = noise_source("philox", [seed])
    latents = noise.draw((1, 4, 64, 64)) * schedule.initial_scale
    for step in SAMPLERS[sampler](denoise, latents, schedule, noise): ...
    picture = decode(schedule.to_model_space(step.latents) / scaling_factor)

where denoise(latents, sigma, timestep) runs the model, by a `Parametrization`, for the branches that a `Guidance` has
active, and returns what that combines them to.
"""

from __future__ import annotations

from tintype.sampling.cfg_pp import CFG_PP_GUIDANCE
from tintype.sampling.guidance import ClassifierFreeGuidance, Guidance, Interval, PictureGuidance, Unguided
from tintype.sampling.names import SAMPLER_ALIASES, SPACING_ALIASES, sampler_named, spacing_named
from tintype.sampling.noise import NOISE_MODES, NoiseSource, noise_source
from tintype.sampling.parametrization import PARAMETRIZATIONS, Parametrization
from tintype.sampling.respacing import SPACINGS
from tintype.sampling.reuse import DeepCache, Gate, Reuse
from tintype.sampling.samplers import CFG_PP, RENOISING, SAMPLERS, Sampler
from tintype.sampling.schedule import ETAS, Schedule, make_schedule
from tintype.sampling.scheduler_config import SchedulerConfig
from tintype.sampling.step import AfterStep, Denoise, Denoised, Step, Steps, unchanged

__all__ = [
    "CFG_PP",
    "CFG_PP_GUIDANCE",
    "ETAS",
    "NOISE_MODES",
    "PARAMETRIZATIONS",
    "RENOISING",
    "SAMPLERS",
    "SAMPLER_ALIASES",
    "SPACINGS",
    "SPACING_ALIASES",
    "AfterStep",
    "ClassifierFreeGuidance",
    "DeepCache",
    "Denoise",
    "Denoised",
    "Gate",
    "Guidance",
    "Interval",
    "NoiseSource",
    "Parametrization",
    "PictureGuidance",
    "Reuse",
    "Sampler",
    "Schedule",
    "SchedulerConfig",
    "Step",
    "Steps",
    "Unguided",
    "make_schedule",
    "noise_source",
    "sampler_named",
    "spacing_named",
    "unchanged",
]
