"""How each sampler lays its timesteps, as the scheduler of that sampler does in diffusers. Pure values.

A spacing of the same name is laid differently by different samplers, so each has a layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from tintype.sampling.respacing import BY_TIMESTEP, SPACINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a sampler's timesteps lie.

    grid: "points" puts n timesteps on the line, both ends included; "intervals" puts n + 1 and goes to sigma 0 from
    the last but one; "lcm" takes from the timesteps a consistency model was distilled on.
    """

    grid: str = "points"
    whole: bool = False  # timesteps are whole numbers: tables are indexed, not interpolated
    variance_exploding: bool = False  # starts from sigma * noise rather than from unit variance; ends without rescaling
    spacings: tuple[str, ...] = SPACINGS
    default_spacing: str = "linspace"
    counts_calls: bool = False  # takes so many calls as steps are asked for, in steps of several; ends at least noise
    by_stride: bool = False  # lands on t - T // n, not on the list's next timestep
    begins_twice: bool = False  # calls the model at its second timestep twice, to redo the first step
    looks_ahead: int = (
        0  # how often it calls the model once more in a step: at so many next sigmas, where they aren't 0
    )
    stages: int = 1  # how often it calls the model in a step that doesn't end at sigma 0
    calls_again: bool = False  # calls the model once more in all steps but the first, for what it corrected
    restarts: bool = False  # goes back to more noise on the way
    alpha_to_one: bool | None = None  # set_alpha_to_one says where it ends, and this where that is missing; None: 0
    may_stop_early: bool = False  # honours final_sigmas_type
    rounds_karras: bool = False  # karras timesteps are whole numbers, whatever others are
    cuts_cosine_timesteps: bool = False  # on a cosine schedule, karras timesteps are cut off, not rounded


def fast_orders(calls: int) -> list[int]:
    """The order of each of dpm_fast's steps, which is how often it calls the model (Lu et al. 2022, section 3.4)."""
    steps = calls // 3 + 1
    return [3] * (steps - 2) + [2, 1] if calls % 3 == 0 else [3] * (steps - 1) + [calls % 3]


_EULER = Layout(variance_exploding=True, may_stop_early=True)
_EXPLODING = Layout(variance_exploding=True)
_LOOKING_AHEAD = Layout(variance_exploding=True, looks_ahead=1)
_DPM2 = Layout(variance_exploding=True, looks_ahead=1, rounds_karras=True)
_DPM = Layout(grid="intervals", whole=True, may_stop_early=True, cuts_cosine_timesteps=True)
_INTERVALS = Layout(grid="intervals", whole=True, may_stop_early=True)

LAYOUTS: dict[str, Layout] = {
    "euler": _EULER,
    "euler_a": _EXPLODING,
    "heun": _LOOKING_AHEAD,
    "heunpp2": Layout(variance_exploding=True, looks_ahead=2),
    "exp_heun_2_x0": _LOOKING_AHEAD,
    "exp_heun_2_x0_sde": _LOOKING_AHEAD,
    "dpm2": _DPM2,
    "dpm2_a": _DPM2,
    "lms": _EXPLODING,
    "ddim": Layout(whole=True, spacings=BY_TIMESTEP, default_spacing="leading", by_stride=True, alpha_to_one=True),
    "ddpm": Layout(whole=True, spacings=BY_TIMESTEP, default_spacing="leading"),
    "pndm": Layout(
        whole=True,
        spacings=BY_TIMESTEP,
        default_spacing="leading",
        by_stride=True,
        begins_twice=True,
        alpha_to_one=False,
    ),
    "ipndm": _EXPLODING,
    "ipndm_v": _EXPLODING,
    "deis": _INTERVALS,
    "dpmpp_2s": _INTERVALS,
    "dpmpp_2s_a": _LOOKING_AHEAD,
    "dpmpp_2m": _DPM,
    "dpmpp_2m_sde": _DPM,
    "dpmpp_2m_sde_heun": _DPM,
    "dpmpp_3m_sde": _DPM,
    "dpmpp_sde": _LOOKING_AHEAD,
    "unipc": _INTERVALS,
    "unipc_bh2": _INTERVALS,
    "sa_solver": _INTERVALS,
    "sa_solver_pece": Layout(variance_exploding=True, calls_again=True),
    "res_multistep": _EXPLODING,
    "res_multistep_a": _EXPLODING,
    "res_2s": _LOOKING_AHEAD,
    "gradient_estimation": _EXPLODING,
    "er_sde": _EXPLODING,
    "seeds_2": _LOOKING_AHEAD,
    "seeds_3": Layout(variance_exploding=True, stages=3),
    "dpm_fast": Layout(variance_exploding=True, spacings=(), counts_calls=True),
    "restart": Layout(variance_exploding=True, looks_ahead=1, restarts=True),
    "lcm": Layout(grid="lcm", whole=True, spacings=(), default_spacing="leading"),
    "tcd": Layout(grid="lcm", whole=True, spacings=(), default_spacing="leading", alpha_to_one=False),
    "euler_cfg_pp": _EULER,
    "euler_a_cfg_pp": _EXPLODING,
    "dpmpp_2m_cfg_pp": _DPM,
    "dpmpp_2s_a_cfg_pp": _LOOKING_AHEAD,
    "res_multistep_cfg_pp": _EXPLODING,
    "res_multistep_a_cfg_pp": _EXPLODING,
    "gradient_estimation_cfg_pp": _EXPLODING,
}
