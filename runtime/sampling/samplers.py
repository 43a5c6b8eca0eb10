"""The samplers by name: a registry is a dict, and what each of them is."""

from __future__ import annotations

from typing import Protocol

from tintype.arrays import Latents
from tintype.sampling.cfg_pp import dpmpp_2m_cfg_pp, euler_a_cfg_pp, euler_cfg_pp
from tintype.sampling.cfg_pp_2s import dpmpp_2s_a_cfg_pp
from tintype.sampling.cfg_pp_res import res_multistep_a_cfg_pp, res_multistep_cfg_pp
from tintype.sampling.ddim import ddim, ddpm, pndm
from tintype.sampling.dpm import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_sde
from tintype.sampling.dpm2 import dpm2, dpm2_a, dpmpp_2s_a
from tintype.sampling.dpm_fast import dpm_fast
from tintype.sampling.dpm_sde import dpmpp_2m_sde_heun, dpmpp_3m_sde
from tintype.sampling.er_sde import er_sde
from tintype.sampling.euler import euler, euler_a, heun
from tintype.sampling.exp_heun import exp_heun_2_x0, exp_heun_2_x0_sde, res_2s
from tintype.sampling.gradient_estimation import gradient_estimation, gradient_estimation_cfg_pp
from tintype.sampling.heunpp import heunpp2
from tintype.sampling.lcm import lcm
from tintype.sampling.multistep import deis, ipndm, ipndm_v, lms
from tintype.sampling.noise import NoiseSource
from tintype.sampling.res import res_multistep, res_multistep_a
from tintype.sampling.restart import restart
from tintype.sampling.sa_solver import sa_solver
from tintype.sampling.sa_solver_pece import sa_solver_pece
from tintype.sampling.schedule import Schedule
from tintype.sampling.seeds import seeds_2, seeds_3
from tintype.sampling.step import AfterStep, Denoise, Steps, unchanged
from tintype.sampling.tcd import tcd
from tintype.sampling.unipc import unipc
from tintype.sampling.unipc_bh2 import unipc_bh2


class Sampler(Protocol):
    """A sampler turns noise into a picture step by step; the caller owns progress and may stop between steps.

    `latents` are at the schedule's first sigma (noise * schedule.initial_scale where there is no picture to begin
    with), `denoise` maps (latents, sigma, timestep) to what the model takes the picture to be, `noise` is drawn from
    only where the method is stochastic, `after_step` may change what a step gave. No sampler writes into what it was
    given.
    """

    def __call__(
        self,
        denoise: Denoise,
        latents: Latents,
        schedule: Schedule,
        noise: NoiseSource,
        after_step: AfterStep = unchanged,
    ) -> Steps: ...


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "heunpp2": heunpp2,
    "exp_heun_2_x0": exp_heun_2_x0,
    "exp_heun_2_x0_sde": exp_heun_2_x0_sde,
    "dpm2": dpm2,
    "dpm2_a": dpm2_a,
    "lms": lms,
    "ddim": ddim,
    "ddpm": ddpm,
    "pndm": pndm,
    "ipndm": ipndm,
    "ipndm_v": ipndm_v,
    "deis": deis,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2s_a": dpmpp_2s_a,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_sde": dpmpp_sde,
    "unipc": unipc,
    "unipc_bh2": unipc_bh2,
    "sa_solver": sa_solver,
    "sa_solver_pece": sa_solver_pece,
    "res_multistep": res_multistep,
    "res_multistep_a": res_multistep_a,
    "res_2s": res_2s,
    "gradient_estimation": gradient_estimation,
    "er_sde": er_sde,
    "seeds_2": seeds_2,
    "seeds_3": seeds_3,
    "dpm_fast": dpm_fast,
    "restart": restart,
    "lcm": lcm,
    "tcd": tcd,
    "euler_cfg_pp": euler_cfg_pp,
    "euler_a_cfg_pp": euler_a_cfg_pp,
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
    "dpmpp_2s_a_cfg_pp": dpmpp_2s_a_cfg_pp,
    "res_multistep_cfg_pp": res_multistep_cfg_pp,
    "res_multistep_a_cfg_pp": res_multistep_a_cfg_pp,
    "gradient_estimation_cfg_pp": gradient_estimation_cfg_pp,
}
# Those that draw fresh noise on their way (others only where they are told an eta).
RENOISING = frozenset(
    ("euler_a", "dpm2_a", "ddpm", "dpmpp_2s_a", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "dpmpp_sde",
     "exp_heun_2_x0_sde", "sa_solver", "sa_solver_pece", "seeds_2", "seeds_3", "res_multistep_a", "er_sde", "restart",
     "lcm", "tcd", "euler_a_cfg_pp", "dpmpp_2s_a_cfg_pp", "res_multistep_a_cfg_pp")
)  # fmt: skip
CFG_PP = frozenset(name for name in SAMPLERS if name.endswith("_cfg_pp"))  # guided by scales of 0 to 1
