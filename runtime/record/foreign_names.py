"""Samplers and schedules as A1111, ComfyUI and stable-diffusion.cpp name them -> ours."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tintype.sampling import SAMPLERS, SPACINGS
from tintype.sampling.spacing import LAYOUTS

# By a name without capitals, blanks and marks. Names that nothing here bears yet are refused by `sampler_named`.
_SAMPLERS = {
    "euler": "euler",
    "eulera": "euler_a",
    "eulerancestral": "euler_a",
    "heun": "heun",
    "ddim": "ddim",
    "ddpm": "ddpm",
    "plms": "pndm",
    "pndm": "pndm",
    "dpm2": "dpm2",
    "dpm2a": "dpm2_a",
    "dpm2ancestral": "dpm2_a",
    "dpmpp2m": "dpmpp_2m",
    "dpmpp2msde": "dpmpp_2m_sde",
    "dpmpp2msdegpu": "dpmpp_2m_sde",
    "dpmpp2sa": "dpmpp_2s_a",
    "dpmpp2sancestral": "dpmpp_2s_a",
    "dpmpp3msde": "dpmpp_3m_sde",
    "dpmpp3msdegpu": "dpmpp_3m_sde",
    "dpmppsde": "dpmpp_sde",
    "dpmppsdegpu": "dpmpp_sde",
    "unipc": "unipc",
    "unipcbh2": "unipc",
    "lms": "lms",
    "lcm": "lcm",
    "tcd": "tcd",
    "deis": "deis",
    "ipndm": "ipndm",
    "restart": "restart",
    "resmultistep": "res_multistep",
    "eulercfgpp": "euler_cfg_pp",
    "euleracfgpp": "euler_a_cfg_pp",
    "eulerancestralcfgpp": "euler_a_cfg_pp",
    "dpmpp2mcfgpp": "dpmpp_2m_cfg_pp",
}
_SPACINGS = {
    "uniform": "linspace",
    "normal": "linspace",
    "discrete": "linspace",
    "karras": "karras",
    "exponential": "exponential",
    "sgmuniform": "sgm_uniform",
    "simple": "simple",
    "beta": "beta",
    "kloptimal": "kl_optimal",
    "alignyoursteps": "ays",
    "ays": "ays",
    "linearquadratic": "linear_quadratic",
    "leading": "leading",
    "trailing": "trailing",
    "linspace": "linspace",
}
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
_PLAIN = "linspace"  # k-diffusion's own, which its samplers take where nothing is said
_WITHOUT_SCHEDULE = ("ddim", "ddpm", "pndm", "unipc", "lcm")  # not k-diffusion's: the checkpoint's own is nearest


@dataclass(frozen=True, slots=True)
class NamedSampler:
    """What a name stands for here; None is the model's default."""

    sampler: str | None
    sigmas: str | None
    left_out: tuple[str, ...] = ()  # a sentence each


def sampler_named(name: str, schedule: str | None = None) -> NamedSampler:
    """The sampler and spacing of another tool's names. Older ones end in the schedule: DPM++ 2M Karras."""
    key = _key(name)
    ending = next((each for each in _SPACINGS if key not in _SAMPLERS and key.endswith(each)), None)
    if ending is not None:
        key = key.removesuffix(ending)
        schedule = schedule or ending
    sampler = _SAMPLERS.get(key)
    if sampler not in SAMPLERS:
        said = name if schedule is None else f"{name}, {schedule}"
        return NamedSampler(None, None, (f"the sampler {said[:100]}: the model's default is taken",))
    automatic = schedule is not None and _key(schedule) == "automatic"
    if sampler in _WITHOUT_SCHEDULE and (automatic or schedule is None):
        return NamedSampler(sampler, None)
    wanted = _AUTOMATIC.get(sampler, _PLAIN) if automatic else _SPACINGS.get(_key(schedule or _PLAIN))
    if wanted in SPACINGS and wanted in LAYOUTS[sampler].spacings:
        return NamedSampler(sampler, wanted)
    if automatic or schedule is None:
        return NamedSampler(sampler, None)
    return NamedSampler(sampler, None, (f"the schedule {schedule[:100]} of {sampler}: the model's default is taken",))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name[:100].lower().replace("++", "pp"))
