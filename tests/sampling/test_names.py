"""The names of A1111, ComfyUI, stable-diffusion.cpp and diffusers lead to one sampler each, and to one spacing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tintype.errors import RequestError
from tintype.record.a1111 import A1111_SAMPLERS, A1111_SPACINGS
from tintype.request import Request
from tintype.sampling import SAMPLER_ALIASES, SAMPLERS, SPACING_ALIASES, SPACINGS, sampler_named, spacing_named
from tintype.sampling.refused import REFUSED_SAMPLERS, REFUSED_SPACINGS


@dataclasses.dataclass(frozen=True)
class Refused:
    """A name that isn't done here."""

    why: str  # words of the reason


BACKWARDS, FLOW, OTHER_NOISE = Refused("from a picture to noise"), Refused("flow matching"), Refused("other noise")
DISTILLED, TOKENS, OF_ONE_MODEL = Refused("distilled model alone"), Refused("tokens"), Refused("one model alone")
UNPLANNED = Refused("no plan could say")

# Every name of each: what it is here, or why it isn't. A1111 1.10, ComfyUI's KSampler of 2026, stable-diffusion.cpp's
# --sampling-method and what its server takes besides, every scheduler that diffusers 0.42 exports.
A1111 = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2S a": "dpmpp_2s_a",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "Euler a": "euler_a",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm2",
    "DPM2 a": "dpm2_a",
    "Restart": "restart",
    "DDIM": "ddim",
    "DDIM CFG++": "euler_cfg_pp",
    "DPM++ 2M SDE Heun": "dpmpp_2m_sde_heun",
    "DPM fast": "dpm_fast",
    "DPM adaptive": UNPLANNED,
    "PLMS": "pndm",
    "UniPC": "unipc",
    "LCM": "lcm",
}
COMFYUI = {
    "euler": "euler",
    "euler_cfg_pp": "euler_cfg_pp",
    "euler_ancestral": "euler_a",
    "euler_ancestral_cfg_pp": "euler_a_cfg_pp",
    "heun": "heun",
    "heunpp2": "heunpp2",
    "exp_heun_2_x0": "exp_heun_2_x0",
    "exp_heun_2_x0_sde": "exp_heun_2_x0_sde",
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a",
    "lms": "lms",
    "dpm_fast": "dpm_fast",
    "dpm_adaptive": UNPLANNED,
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "dpmpp_2s_ancestral_cfg_pp": "dpmpp_2s_a_cfg_pp",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_cfg_pp": "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun": "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu": "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "ipndm": "ipndm",
    "ipndm_v": "ipndm_v",
    "deis": "deis",
    "res_multistep": "res_multistep",
    "res_multistep_cfg_pp": "res_multistep_cfg_pp",
    "res_multistep_ancestral": "res_multistep_a",
    "res_multistep_ancestral_cfg_pp": "res_multistep_a_cfg_pp",
    "gradient_estimation": "gradient_estimation",
    "gradient_estimation_cfg_pp": "gradient_estimation_cfg_pp",
    "er_sde": "er_sde",
    "seeds_2": "seeds_2",
    "seeds_3": "seeds_3",
    "sa_solver": "sa_solver",
    "sa_solver_pece": "sa_solver_pece",
    "ddim": "ddim",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc_bh2",
}
STABLE_DIFFUSION_CPP = {
    "euler": "euler",
    "euler_a": "euler_a",
    "heun": "heun",
    "dpm2": "dpm2",
    "dpm++2s_a": "dpmpp_2s_a",
    "dpm++2m": "dpmpp_2m",
    "dpm++2mv2": Refused("no number of steps"),
    "ipndm": "ipndm",
    "ipndm_v": "ipndm_v",
    "lcm": "lcm",
    "ddim_trailing": "ddim",
    "tcd": "tcd",
    "res_multistep": "res_multistep",
    "res_2s": "res_2s",
    "er_sde": "er_sde",
    "euler_cfg_pp": "euler_cfg_pp",
    "euler_a_cfg_pp": "euler_a_cfg_pp",
    "euler_ge": "gradient_estimation",
    "dpm++2m_sde": "dpmpp_2m_sde",
    "dpm++2m_sde_bt": "dpmpp_2m_sde",
    "lms": "lms",
    "k_euler_a": "euler_a",
    "k_euler": "euler",
    "k_heun": "heun",
    "k_dpm_2": "dpm2",
    "k_dpmpp_2m": "dpmpp_2m",
    "dpm++ 2m sde gpu": "dpmpp_2m_sde",
    "k_dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "k_res_multistep": "res_multistep",
    "k_res_2s": "res_2s",
    "k_euler_cfg_pp": "euler_cfg_pp",
    "k_euler_a_cfg_pp": "euler_a_cfg_pp",
}
DIFFUSERS = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "LMSDiscreteScheduler": "lms",
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "IPNDMScheduler": "ipndm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "UniPCMultistepScheduler": "unipc",
    "SASolverScheduler": "sa_solver",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "DDIMInverseScheduler": BACKWARDS,
    "DPMSolverMultistepInverseScheduler": BACKWARDS,
    "FlowMatchEulerDiscreteScheduler": FLOW,
    "FlowMatchHeunDiscreteScheduler": FLOW,
    "FlowMatchLCMScheduler": FLOW,
    "FlowMapEulerDiscreteScheduler": FLOW,
    "LTXEulerAncestralRFScheduler": FLOW,
    "PiflowScheduler": FLOW,
    "MiniMaxH3Scheduler": FLOW,
    "HeliosScheduler": FLOW,
    "HeliosDMDScheduler": FLOW,
    "RFD4ProteinaScheduler": FLOW,
    "EDMEulerScheduler": OTHER_NOISE,
    "EDMDPMSolverMultistepScheduler": OTHER_NOISE,
    "CosineDPMSolverMultistepScheduler": OTHER_NOISE,
    "KarrasVeScheduler": OTHER_NOISE,
    "ScoreSdeVeScheduler": OTHER_NOISE,
    "ScoreSdeVpScheduler": OTHER_NOISE,
    "CMStochasticIterativeScheduler": DISTILLED,
    "ConsistencyDecoderScheduler": DISTILLED,
    "SCMScheduler": DISTILLED,
    "AmusedScheduler": TOKENS,
    "BlockRefinementScheduler": TOKENS,
    "DiscreteDDIMScheduler": TOKENS,
    "EntropyBoundScheduler": TOKENS,
    "VQDiffusionScheduler": TOKENS,
    "CogVideoXDDIMScheduler": OF_ONE_MODEL,
    "CogVideoXDPMScheduler": OF_ONE_MODEL,
    "DDPMWuerstchenScheduler": OF_ONE_MODEL,
    "UnCLIPScheduler": OF_ONE_MODEL,
    "RePaintScheduler": Refused("around a mask"),
}
# A1111's schedule types, ComfyUI's schedulers, stable-diffusion.cpp's.
SCHEDULES: dict[str, str | Refused | None] = {
    "Automatic": None,
    "Uniform": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "exponential",
    "SGM Uniform": "sgm_uniform",
    "SGMUniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": "ays",
    "Simple": "simple",
    "Normal": "normal",
    "DDIM": "leading",
    "Beta": "beta",
    "sgm_uniform": "sgm_uniform",
    "ddim_uniform": "leading",
    "linear_quadratic": "linear_quadratic",
    "kl_optimal": "kl_optimal",
    "discrete": "normal",
    "ays": "ays",
    "gits": Refused("searched for one model"),
    "smoothstep": "smoothstep",
    "lcm": Refused("by themselves"),
    "bong_tangent": "bong_tangent",
    "ltx2": FLOW,
    "logit_normal": FLOW,
    "flux2": FLOW,
    "flux": FLOW,
}
ELSEWHERE: list[tuple[str, str | Refused]] = [
    (name, ours) for table in (A1111, COMFYUI, STABLE_DIFFUSION_CPP, DIFFUSERS) for name, ours in table.items()
]


@pytest.mark.parametrize(("name", "canonical"), ELSEWHERE)
def test_a_name_of_elsewhere_is_a_sampler_of_here_or_refused_with_its_reason(
    name: str, canonical: str | Refused
) -> None:
    for spelled in (name, name.upper(), f" {name.lower()} "):
        if isinstance(canonical, str):
            assert sampler_named(spelled) == (canonical, "trailing" if name == "ddim_trailing" else None)
        else:
            with pytest.raises(RequestError, match="isn't done here") as caught:
                sampler_named(spelled)
            assert canonical.why in caught.value.fix


def test_a_sampler_that_no_plan_could_hold_is_refused_for_another() -> None:
    with pytest.raises(RequestError) as caught:
        sampler_named("DPM adaptive")
    assert "dpm_fast" in caught.value.fix


def test_what_is_refused_is_in_the_tables() -> None:
    """So that no refusal outlives what it refuses."""
    refused = {name for name, ours in ELSEWHERE if isinstance(ours, Refused)}
    assert {*REFUSED_SAMPLERS} == refused - {"DPM adaptive"}
    assert {*REFUSED_SPACINGS} == {name for name, ours in SCHEDULES.items() if isinstance(ours, Refused)}


@pytest.mark.reference
def test_the_table_has_every_scheduler_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    names = {*diffusers.schedulers.__all__, *dir(diffusers)}  # the latter has those too that lack a package here
    assert {name for name in names if name.endswith("Scheduler")} == DIFFUSERS.keys()


@pytest.mark.parametrize(
    ("name", "sampler", "spacing"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 3M SDE Karras", "dpmpp_3m_sde", "karras"),
        ("LMS Karras", "lms", "karras"),
        ("k_dpm_2_a_ka", "dpm2_a", "karras"),
        ("Euler Align Your Steps", "euler", "ays"),
        ("Euler SGM Uniform", "euler", "sgm_uniform"),
        ("ddim_trailing", "ddim", "trailing"),
    ],
)
def test_a_samplers_name_may_end_in_a_spacings(name: str, sampler: str, spacing: str) -> None:
    assert sampler_named(name) == (sampler, spacing)


@pytest.mark.parametrize(("name", "spacing"), SCHEDULES.items())
def test_a_spacing_of_elsewhere_is_one_of_here_or_refused_with_its_reason(
    name: str, spacing: str | Refused | None
) -> None:
    if isinstance(spacing, Refused):
        with pytest.raises(RequestError, match="aren't done here") as caught:
            spacing_named(name)
        assert spacing.why in caught.value.fix
    else:
        assert spacing_named(name) == spacing


def test_a_canonical_name_is_its_own_and_an_alias_is_of_one_alone() -> None:
    assert [sampler_named(name) for name in SAMPLERS] == [(name, None) for name in SAMPLERS]
    assert [spacing_named(name) for name in SPACINGS] == list(SPACINGS)
    assert SAMPLER_ALIASES.keys() <= SAMPLERS.keys()
    assert SPACING_ALIASES.keys() <= set(SPACINGS)
    for name, aliases in SAMPLER_ALIASES.items():
        assert {sampler_named(alias) for alias in aliases} == {(name, None)}
    for name, aliases in SPACING_ALIASES.items():
        assert {spacing_named(alias) for alias in aliases} == {name}


def test_the_readme_and_the_help_name_each() -> None:
    readme = (Path(__file__).parents[2] / "runtime" / "README.md").read_text(encoding="utf-8")
    options = {option.name: option.metadata["help"] for option in dataclasses.fields(Request) if option.metadata}
    for text, quote in ((readme, "`"), (options["sampler"], "")):
        assert [name for name in SAMPLERS if not re.search(rf"(?<!\w){quote}{name}{quote}(?!\w)", text)] == []
    for text, quote in ((readme, "`"), (options["sigmas"], "")):
        assert [name for name in SPACINGS if not re.search(rf"(?<!\w){quote}{name}{quote}(?!\w)", text)] == []


def test_what_a_record_writes_for_a1111_is_read_as_what_it_was() -> None:
    for name, written in A1111_SAMPLERS.items():
        assert sampler_named(written) == (name, None)
    for name, written in A1111_SPACINGS.items():
        assert spacing_named(written) == name


@pytest.mark.parametrize(
    "name", ["", "++", "karras karras", "x" * 10**6, 3, None, b"euler", ["euler"]], ids=lambda name: repr(name)[:20]
)
def test_what_is_no_name_is_refused_in_a_line(name: object) -> None:
    for read in (sampler_named, spacing_named):
        with pytest.raises(RequestError) as caught:
            read(name)
        assert len(str(caught.value)) < 1000
        assert caught.value.fix
