"""The way from noise to picture, planned before the first step: which noise levels, which timesteps. Pure values.

A schedule belongs to one sampler, since the samplers of diffusers lay their timesteps differently even under the same
name. sigma is the noise level of the runtime's latents (image + sigma * noise); for a model trained with alphas_cumprod
a, sigma^2 = (1 - a) / a.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents
from tintype.errors import RequestError, near_names
from tintype.sampling.layout import LAYOUTS, Layout, fast_orders
from tintype.sampling.respacing import BY_TIMESTEP, SPACINGS
from tintype.sampling.scheduler_config import SchedulerConfig
from tintype.sampling.spacing import (
    Spaced,
    sigmas_by_stride,
    sigmas_of,
    spaced_timesteps,
    timesteps_for,
    timesteps_of,
    with_restarts,
)

# Zero terminal SNR means an infinite sigma. Samplers by sigma start where diffusers starts them; samplers by timestep,
# which compute with alpha itself, start so high that no trace of the picture is left in float32.
_LOWEST_ALPHA_BY_SIGMA = 2.0**-24
_LOWEST_ALPHA_BY_TIMESTEP = 1e-16

# Samplers that add as much noise as they are told to, and what they are best told: of tcd its authors say 0.3.
ETAS = {"ddim": 0.0, "tcd": 0.3}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Everything a sampler needs to know but the model, the latents and the noise."""

    sampler: str
    spacing: str
    config: SchedulerConfig
    timesteps: NDArray[np.float64]  # (n,), what the model is told at each step
    sigmas: NDArray[np.float64]  # (n + 1,), the noise level of each step, and where the last one lands
    sigmas_from: NDArray[np.float64]  # (n,), where each step is reckoned from; sigmas[:-1] but for pndm's second
    # (n,), where each step lands; sigmas[1:] but for ddim and pndm, and where restart then adds noise
    sigmas_to: NDArray[np.float64]
    initial_scale: float  # latents to start with = noise * initial_scale
    variance_exploding: bool  # the last latents are the picture as they are, whatever noise is left in them
    eta: float = 0.0  # of ddim and tcd: the share of fresh noise, 0 none .. 1 all
    skipped: int = 0  # steps of the whole way that it leaves out, as it begins with a picture
    stops_after: int | None = None  # steps after which another model goes on
    orders: tuple[int, ...] | None = None  # of steps that call the model as often; None: as the sampler's layout says
    training_sigmas: NDArray[np.float64]  # (num_train_timesteps,), rising

    @property
    def total(self) -> int:
        """How many steps the sampler yields; pndm has one more than was asked for, from two up."""
        return len(self.timesteps)

    @property
    def steps_taken(self) -> int:
        """How many of them are taken before another model goes on, if any does."""
        return self.total if self.stops_after is None else self.stops_after

    def steps_before(self, share: float) -> int:
        """How many steps lie before a share of the way from noise to picture, as diffusers counts it by timesteps."""
        return steps_before(self.config, self.timesteps, share)

    @property
    def model_calls(self) -> int:
        """How often the sampler calls the model over all its steps."""
        return sum(self.calls_in(index) for index in range(self.total))

    def calls_in(self, index: int) -> int:
        """How often it calls the model in one step."""
        if self.orders is not None:
            return self.orders[index]
        layout = LAYOUTS[self.sampler]
        ahead = self.sigmas[index + 1 : index + 1 + layout.looks_ahead]
        stages = layout.stages if self.sigmas[index + 1] > 0.0 else 1
        return stages + int(np.count_nonzero(ahead)) + (layout.calls_again and index > 0)

    def progress(self, index: int) -> float:
        """The share of the way from noise to picture that lies before a step, 0 to below 1.

        The whole way has all the steps that were asked for; those that a picture to begin with spares lie before.
        """
        return (self.skipped + index) / (self.skipped + self.total)

    def timestep_of(self, sigma: float) -> float:
        """The (fractional) training timestep with this noise level, by interpolating log sigma."""
        return float(timesteps_of(np.array([sigma]), self.training_sigmas)[0])

    def sigma_of(self, timestep: float) -> float:
        """The noise level of a (fractional) training timestep, by interpolating sigma."""
        return float(sigmas_of(np.array([timestep]), self.training_sigmas)[0])

    def to_model_space(self, latents: Latents) -> Latents:
        """The sampler's last latents as the decoder wants them (before / scaling_factor).

        A schedule that ends above sigma 0 leaves its last noise in; the variance preserving schedulers decode what the
        model would see.
        """
        return latents if self.scale_of_last == 1.0 else latents / self.scale_of_last

    @property
    def scale_of_last(self) -> float:
        """Of the sampler's last latents over those that are decoded."""
        return 1.0 if self.variance_exploding else math.hypot(1.0, float(self.sigmas[-1]))


def make_schedule(
    config: SchedulerConfig,
    sampler: str,
    num_inference_steps: int,
    spacing: str | None = None,
    *,
    eta: float = 0.0,
    strength: float = 1.0,
    denoising_start: float | None = None,
    family: str | None = None,
) -> Schedule:
    """Plan a sampler's steps on a checkpoint's noise schedule, as the diffusers scheduler of that sampler does.

    sampler: a name in SAMPLERS. num_inference_steps: from 1. spacing: a name in SPACINGS, or None for what the
    checkpoint's config says; `respacing` has those that are no timestep spacings. eta: fresh noise of the samplers in
    ETAS. strength: the share of the steps, the last ones, that are taken, as diffusers counts them: of a picture to
    begin with less is left the higher it is. denoising_start: the share of the way that another model has gone before,
    as diffusers counts it. family: a manifest's, for which ays has sigmas. RequestError for what cannot be done.
    """
    if sampler not in LAYOUTS:
        raise RequestError(f"there is no sampler called {sampler!r}", fix=near_names(sampler, LAYOUTS))
    layout = LAYOUTS[sampler]
    name, base = _choose_spacing(config, sampler, layout, spacing)
    _check(config, sampler, layout, num_inference_steps, name, eta, denoising_start)
    by_sigma = layout.spacings == SPACINGS or layout.counts_calls
    floor = _LOWEST_ALPHA_BY_SIGMA if by_sigma else _LOWEST_ALPHA_BY_TIMESTEP
    training_sigmas = _training_sigmas(config, floor)

    def spaced(steps: int) -> Spaced:
        return timesteps_for(config, layout, steps, name, base, training_sigmas, family)

    way = _way(config, layout, spaced, num_inference_steps, strength, denoising_start, training_sigmas)
    start = float(way.sigmas[:-1].max())
    plain_start = layout.variance_exploding and base in ("linspace", "trailing")
    return Schedule(
        sampler=sampler,
        spacing=name,
        config=config,
        timesteps=way.timesteps,
        sigmas=way.sigmas,
        sigmas_from=way.sigmas_from,
        sigmas_to=way.sigmas_to,
        initial_scale=start if plain_start else math.hypot(1.0, start),
        variance_exploding=layout.variance_exploding,
        eta=eta,
        skipped=way.skipped,
        orders=way.orders,
        training_sigmas=training_sigmas,
    )


def steps_before(config: SchedulerConfig, timesteps: NDArray[np.float64], share: float) -> int:
    """How many steps lie before a share of the way, by their timesteps."""
    return int((timesteps >= round(config.num_train_timesteps * (1 - share))).sum())


class _Way(NamedTuple):
    """The fields of a Schedule by these names."""

    timesteps: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    sigmas_from: NDArray[np.float64]
    sigmas_to: NDArray[np.float64]
    skipped: int
    orders: tuple[int, ...] | None = None


def _way(
    config: SchedulerConfig,
    layout: Layout,
    spaced: Callable[[int], Spaced],
    steps: int,
    strength: float,
    denoising_start: float | None,
    training_sigmas: NDArray[np.float64],
) -> _Way:
    """spaced: timesteps and sigmas of so many steps of the whole way."""
    if layout.restarts:
        timesteps, sigmas, lands = with_restarts(steps, spaced, training_sigmas)
    else:
        timesteps, sigmas = spaced(steps)
        lands = sigmas[1:]
    last = _last_sigma(config, layout, training_sigmas)
    skipped = steps - _taken(steps, strength)
    stride = config.num_train_timesteps // steps
    if layout.begins_twice:
        timesteps = np.insert(timesteps, 1, timesteps[1:2])
    if denoising_start is not None:
        skipped = steps_before(config, timesteps, denoising_start)
    timesteps, sigmas = timesteps[skipped:], sigmas[skipped:]
    if layout.counts_calls:
        highest = float(sigmas[0]) if skipped else float(training_sigmas[-1])
        return _fast_way(len(sigmas), highest, skipped, training_sigmas)
    if layout.by_stride:
        sigmas_from, sigmas_to = sigmas_by_stride(layout, timesteps, stride, last, training_sigmas)
        sigmas = sigmas_of(timesteps, training_sigmas)
    else:
        sigmas_from, sigmas_to = sigmas, np.append(lands[skipped:], last)
    return _Way(timesteps, np.append(sigmas, last), sigmas_from, sigmas_to, skipped)


def _fast_way(calls: int, highest: float, skipped: int, training_sigmas: NDArray[np.float64]) -> _Way:
    """Steps of several calls, even in log sigma, from a noise level to training's least. skipped: calls before it."""
    orders = tuple(fast_orders(calls))
    lowest = min(float(training_sigmas[0]), highest / 2)  # a way of one call at the least noise goes somewhere too
    sigmas = np.geomspace(highest, lowest, len(orders) + 1)
    share = round(skipped * len(orders) / calls)
    return _Way(timesteps_of(sigmas[:-1], training_sigmas), sigmas, sigmas[:-1], sigmas[1:], share, orders)


def _taken(steps: int, strength: float) -> int:
    """How many steps are taken of a picture to begin with."""
    taken = min(int(steps * strength), steps)
    if taken < 1:
        raise RequestError(
            f"a strength of {strength:g} of {steps} steps leaves no step to take",
            fix=f"give a strength of {math.ceil(100 / steps) / 100:g} or more, or more steps",
        )
    return taken


def _choose_spacing(config: SchedulerConfig, sampler: str, layout: Layout, spacing: str | None) -> tuple[str, str]:
    """The spacing's name, and the timestep spacing under it."""
    base = config.timestep_spacing or layout.default_spacing
    if spacing is None:
        for name, wanted in (
            ("karras", config.use_karras_sigmas),
            ("exponential", config.use_exponential_sigmas),
            ("beta", config.use_beta_sigmas),
        ):
            if wanted and name in layout.spacings:
                return name, base
        return (base if layout.spacings else sampler), base
    if spacing not in SPACINGS:
        raise RequestError(f"there is no spacing called {spacing!r}", fix=near_names(spacing, SPACINGS))
    if not layout.spacings:
        raise RequestError(
            f"{sampler} cannot be spaced {spacing!r}", fix=f"leave the spacing out: {sampler} has its own"
        )
    if spacing not in layout.spacings:
        raise RequestError(
            f"{sampler} cannot be spaced {spacing!r}",
            fix=f"choose one of {', '.join(layout.spacings)}, or another sampler such as euler or dpmpp_2m",
        )
    return spacing, (spacing if spacing in BY_TIMESTEP else base)


def _check(
    config: SchedulerConfig,
    sampler: str,
    layout: Layout,
    steps: int,
    name: str,
    eta: float,
    denoising_start: float | None,
) -> None:
    most = config.num_train_timesteps
    if layout.grid == "intervals" and name in ("leading", "linspace"):
        most -= 1
    if layout.grid == "lcm":
        most = config.original_inference_steps
    if not 1 <= steps <= most:
        raise RequestError(f"{sampler} cannot take {steps} steps with this model", fix=f"ask for 1 to {most} steps")
    if name in BY_TIMESTEP:
        highest = float(spaced_timesteps(config, layout, steps, name).max())
        if highest >= config.num_train_timesteps:
            raise RequestError(
                f"{steps} steps with {name} spacing start at timestep {highest:.0f}, and the model's last is "
                f"{config.num_train_timesteps - 1}",
                fix="ask for fewer steps, or for trailing spacing",
            )
    if not 0.0 <= eta <= 1.0:
        raise RequestError(f"eta = {eta} is out of range", fix="use a number from 0 to 1")
    if denoising_start is not None and layout.counts_calls:
        raise RequestError(f"{sampler} can't go on for a refiner", fix="choose another sampler, such as euler")
    if eta and sampler not in ETAS:
        raise RequestError(f"{sampler} has no eta", fix=f"leave eta out, or use the sampler {' or '.join(ETAS)}")


def _training_sigmas(config: SchedulerConfig, lowest_alpha: float) -> NDArray[np.float64]:
    alphas = config.alphas_cumprod
    if config.rescale_betas_zero_snr:
        alphas = np.maximum(alphas, np.float32(lowest_alpha))
    return np.sqrt((np.float32(1) - alphas) / alphas).astype(np.float64)


def _last_sigma(config: SchedulerConfig, layout: Layout, training_sigmas: NDArray[np.float64]) -> float:
    """Where the last step lands: the picture, or the least noise of training where the checkpoint asks for that."""
    if layout.alpha_to_one is not None:
        to_one = layout.alpha_to_one if config.set_alpha_to_one is None else config.set_alpha_to_one
        return 0.0 if to_one else float(training_sigmas[0])
    stops_early = layout.may_stop_early and config.final_sigmas_type == "sigma_min"
    return float(training_sigmas[0]) if stops_early else 0.0
