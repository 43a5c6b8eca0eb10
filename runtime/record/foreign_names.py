"""Samplers and schedules as A1111, ComfyUI and stable-diffusion.cpp name them together -> ours."""

from __future__ import annotations

from dataclasses import dataclass

from tintype.errors import RequestError
from tintype.sampling import names
from tintype.sampling.layout import LAYOUTS

# What A1111 takes where its schedule is Automatic.
_AUTOMATIC = {
    "dpm2": "karras",
    "dpm2_a": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2s_a": "karras",
    "restart": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_3m_sde": "exponential",
}
_PLAIN = "normal"  # k-diffusion's own, which its samplers take where nothing is said
_WITHOUT_SCHEDULE = (
    "ddim",
    "ddpm",
    "pndm",
    "unipc",
    "unipc_bh2",
    "sa_solver",
    "lcm",
)  # not k-diffusion's: the checkpoint's own is nearest


@dataclass(frozen=True, slots=True)
class NamedSampler:
    """What a name stands for here; None is the model's default."""

    sampler: str | None
    sigmas: str | None
    left_out: tuple[str, ...] = ()  # a sentence each


def sampler_named(name: str, schedule: str | None = None) -> NamedSampler:
    """The sampler and spacing of another tool's names. Older ones end in the schedule: DPM++ 2M Karras."""
    said = name[:100] if schedule is None else f"{name[:100]}, {schedule[:100]}"
    try:
        sampler, ending = names.sampler_named(name)
    except RequestError:
        return NamedSampler(None, None, (f"the sampler {said}: the model's default is taken",))
    automatic = schedule is not None and schedule.strip().casefold() in names.AUTOMATIC
    if automatic or (schedule is None and ending is None):
        plain = None if sampler in _WITHOUT_SCHEDULE else _AUTOMATIC.get(sampler, _PLAIN) if automatic else _PLAIN
        return NamedSampler(sampler, plain if plain in LAYOUTS[sampler].spacings else None)
    try:
        wanted = ending if schedule is None else names.spacing_named(schedule)
    except RequestError:
        wanted = None
    if wanted in LAYOUTS[sampler].spacings:
        return NamedSampler(sampler, wanted)
    return NamedSampler(sampler, None, (f"the schedule of {said}: the model's default is taken",))
