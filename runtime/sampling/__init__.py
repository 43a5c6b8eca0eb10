"""Noise, schedules, samplers and guidance: numpy only, pure functions, randomness passed in.

    config = SchedulerConfig.from_json(scheduler_config)
    schedule = make_schedule(config, "dpmpp_2m", 20, "karras")
    noise = noise_source("philox", [seed])
    latents = noise.draw((1, 4, 64, 64)) * schedule.initial_scale
    for step in SAMPLERS["dpmpp_2m"](denoise, latents, schedule, noise): ...
    picture = decode(schedule.to_model_space(step.latents) / scaling_factor)

where denoise(latents, sigma, timestep) runs the model on model_input(latents, sigma) and returns
denoised_from(prediction, latents, sigma, config.prediction_type).
"""

from __future__ import annotations

from tintype.sampling.guidance import guide, rescale_guidance
from tintype.sampling.noise import NOISE_MODES, NoiseSource, noise_source
from tintype.sampling.prediction import PREDICTION_TYPES, denoised_from, prediction_from
from tintype.sampling.samplers import SAMPLERS, Sampler
from tintype.sampling.schedule import Schedule, make_schedule
from tintype.sampling.scheduler_config import SchedulerConfig
from tintype.sampling.spacing import SPACINGS
from tintype.sampling.step import AfterStep, Denoise, Step, Steps, model_input, unchanged

__all__ = [
    "NOISE_MODES",
    "PREDICTION_TYPES",
    "SAMPLERS",
    "SPACINGS",
    "AfterStep",
    "Denoise",
    "NoiseSource",
    "Sampler",
    "Schedule",
    "SchedulerConfig",
    "Step",
    "Steps",
    "denoised_from",
    "guide",
    "make_schedule",
    "model_input",
    "noise_source",
    "prediction_from",
    "rescale_guidance",
    "unchanged",
]
