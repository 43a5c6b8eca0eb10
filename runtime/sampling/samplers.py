"""The samplers by name: a registry is a dict."""

from __future__ import annotations

from tintype.sampling.ddim import ddim, ddpm, pndm
from tintype.sampling.dpm import dpmpp_2m, dpmpp_2m_sde, dpmpp_sde
from tintype.sampling.euler import euler, euler_a, heun
from tintype.sampling.lcm import lcm
from tintype.sampling.step import Sampler
from tintype.sampling.unipc import unipc

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "ddim": ddim,
    "ddpm": ddpm,
    "pndm": pndm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_sde": dpmpp_sde,
    "unipc": unipc,
    "lcm": lcm,
}
