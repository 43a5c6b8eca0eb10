"""The names that samplers and spacings go by elsewhere, and the one by which each is known and recorded here.

In upper or lower case, with any signs between the words and `++` for `pp`: "DPM++ 2M Karras", "dpmpp_2m_sde_gpu" and
"EulerDiscreteScheduler" are all names of something. A sampler's may end in a spacing's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tintype.errors import RequestError, near_names
from tintype.sampling.refused import REFUSED_SAMPLERS, REFUSED_SPACINGS
from tintype.sampling.respacing import SPACINGS
from tintype.sampling.samplers import SAMPLERS

_MOST_CHARS = 60

# Those of A1111 (and its older ones, k_...), ComfyUI, stable-diffusion.cpp, and diffusers' schedulers, where they are
# more than a canonical name with other signs. diffusers' DPMSolverMultistepScheduler is dpmpp_2m by its own defaults.
SAMPLER_ALIASES: dict[str, tuple[str, ...]] = {
    "euler": ("k_euler", "EulerDiscreteScheduler"),
    "euler_a": ("euler_ancestral", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
    "heun": ("k_heun", "HeunDiscreteScheduler"),
    "dpm2": ("k_dpm_2", "KDPM2DiscreteScheduler"),
    "dpm2_a": ("dpm_2_ancestral", "k_dpm_2_a", "k_dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
    "lms": ("k_lms", "LMSDiscreteScheduler"),
    "ddim": ("DDIMScheduler", "DDIMParallelScheduler"),
    "ddpm": ("DDPMScheduler", "DDPMParallelScheduler"),
    "pndm": ("plms", "PNDMScheduler"),
    "ipndm": ("IPNDMScheduler",),
    "deis": ("DEISMultistepScheduler",),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler",),
    "dpmpp_2s_a": ("dpmpp_2s_ancestral", "k_dpmpp_2s_a", "k_dpmpp_2s_ancestral"),
    "dpmpp_2m": ("k_dpmpp_2m", "DPMSolverMultistepScheduler"),
    "dpmpp_2m_sde": ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde_bt", "k_dpmpp_2m_sde", "k_dpmpp_2m_sde_gpu"),  # of other noise
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde_heun_gpu",),
    "dpmpp_3m_sde": ("dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde"),
    "dpmpp_sde": ("dpmpp_sde_gpu", "k_dpmpp_sde", "DPMSolverSDEScheduler"),
    "unipc": ("uni_pc", "UniPCMultistepScheduler"),
    "unipc_bh2": ("uni_pc_bh2",),
    "sa_solver": ("SASolverScheduler",),
    "res_multistep": ("k_res_multistep",),
    "res_multistep_a": ("res_multistep_ancestral",),
    "res_2s": ("k_res_2s",),
    "gradient_estimation": ("euler_ge",),
    "lcm": ("LCMScheduler",),
    "tcd": ("TCDScheduler",),
    "euler_cfg_pp": ("ddim_cfg_pp", "k_euler_cfg_pp"),  # DDIM's is the same step
    "euler_a_cfg_pp": ("euler_ancestral_cfg_pp", "k_euler_a_cfg_pp"),
    "dpmpp_2s_a_cfg_pp": ("dpmpp_2s_ancestral_cfg_pp",),
    "res_multistep_a_cfg_pp": ("res_multistep_ancestral_cfg_pp",),
}
SPACING_ALIASES: dict[str, tuple[str, ...]] = {
    "leading": ("ddim", "ddim_uniform"),
    "karras": ("ka", "use_karras_sigmas"),
    "exponential": ("polyexponential", "use_exponential_sigmas"),  # the same with the exponent that it has everywhere
    "beta": ("use_beta_sigmas",),
    "normal": ("uniform", "discrete"),
    "ays": ("align_your_steps",),
}
AUTOMATIC = ("automatic", "default")


def sampler_named(name: object) -> tuple[str, str | None]:
    """A sampler's canonical name, and that of the spacing that its name ends in. RequestError for an unknown one."""
    squeezed = _squeezed(name)
    if squeezed in _SAMPLERS:
        return _SAMPLERS[squeezed], None
    for ending, spacing in _SPACINGS.items():
        if squeezed.endswith(ending) and squeezed.removesuffix(ending) in _SAMPLERS:
            return _SAMPLERS[squeezed.removesuffix(ending)], spacing
    if squeezed in _REFUSED_SAMPLERS:
        raise RequestError(f"the sampler {name!r} isn't done here", fix=_REFUSED_SAMPLERS[squeezed])
    raise _unknown("sampler", name, SAMPLERS)


def spacing_named(name: object) -> str | None:
    """A spacing's canonical name; None for "automatic", which asks for none. RequestError for an unknown one."""
    squeezed = _squeezed(name)
    if squeezed in AUTOMATIC:
        return None
    if squeezed in _REFUSED_SPACINGS:
        raise RequestError(f"the sigmas {name!r} aren't done here", fix=_REFUSED_SPACINGS[squeezed])
    if squeezed not in _SPACINGS:
        raise _unknown("sigmas", name, SPACINGS)
    return _SPACINGS[squeezed]


def _squeezed(name: object) -> str:
    if not isinstance(name, str) or len(name) > _MOST_CHARS:
        return ""
    return re.sub("[^a-z0-9]", "", name.casefold().replace("++", "pp"))


def _index(canonical: tuple[str, ...], aliases: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {_squeezed(alias): name for name in canonical for alias in (name, *aliases.get(name, ()))}


def _unknown(field: str, name: object, known: Iterable[str]) -> RequestError:
    if not isinstance(name, str):
        return RequestError(
            f"{field} should be a name, and this is of type {type(name).__name__}", fix=near_names("", known)
        )
    shown = name[:_MOST_CHARS]
    return RequestError(f"there is no {field} {shown!r}", fix=near_names(shown.casefold().replace("++", "pp"), known))


_SAMPLERS = _index(tuple(SAMPLERS), SAMPLER_ALIASES)
_SPACINGS = _index(SPACINGS, SPACING_ALIASES)
_REFUSED_SAMPLERS = {_squeezed(name): why for name, why in REFUSED_SAMPLERS.items()}
_REFUSED_SPACINGS = {_squeezed(name): why for name, why in REFUSED_SPACINGS.items()}
