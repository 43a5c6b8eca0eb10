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

# As each of them spells those that are done here; "" for none of its own.
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
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a",
    "lms": "lms",
    "dpm_fast": "dpm_fast",
    "dpm_adaptive": "",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
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
    "res_multistep_ancestral": "res_multistep_a",
    "ddim": "ddim",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "er_sde": "er_sde",
    "gradient_estimation": "",
    "res_multistep_cfg_pp": "",
    "seeds_2": "",
    "sa_solver": "",
}
STABLE_DIFFUSION_CPP = {
    "euler": "euler",
    "euler_a": "euler_a",
    "heun": "heun",
    "dpm2": "dpm2",
    "dpm++2s_a": "dpmpp_2s_a",
    "dpm++2m": "dpmpp_2m",
    "dpm++2mv2": "",
    "ipndm": "ipndm",
    "lcm": "lcm",
    "tcd": "tcd",
    "res_multistep": "res_multistep",
}
DIFFUSERS = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "LMSDiscreteScheduler": "lms",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "IPNDMScheduler": "ipndm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}
ELSEWHERE = [
    (name, ours) for table in (A1111, COMFYUI, STABLE_DIFFUSION_CPP, DIFFUSERS) for name, ours in table.items()
]


@pytest.mark.parametrize(("name", "canonical"), ELSEWHERE)
def test_a_name_of_elsewhere_is_a_sampler_of_here_or_refused(name: str, canonical: str) -> None:
    for spelled in (name, name.upper(), f" {name.lower()} "):
        if canonical:
            assert sampler_named(spelled) == (canonical, None)
        else:
            with pytest.raises(RequestError):
                sampler_named(spelled)


def test_a_sampler_that_no_plan_could_hold_is_refused_with_its_reason() -> None:
    for name in ("dpm_adaptive", "DPM adaptive"):
        with pytest.raises(RequestError, match="isn't done here") as caught:
            sampler_named(name)
        assert "dpm_fast" in caught.value.fix


@pytest.mark.reference
def test_every_scheduler_of_that_name_is_in_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    assert DIFFUSERS.keys() <= set(dir(diffusers))


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


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        ("Automatic", None),
        ("Uniform", "normal"),
        ("Karras", "karras"),
        ("Polyexponential", "exponential"),
        ("SGM Uniform", "sgm_uniform"),
        ("SGMUniform", "sgm_uniform"),
        ("KL Optimal", "kl_optimal"),
        ("Align Your Steps", "ays"),
        ("Simple", "simple"),
        ("Normal", "normal"),
        ("DDIM", "leading"),
        ("ddim_uniform", "leading"),
        ("Beta", "beta"),
        ("linear_quadratic", "linear_quadratic"),
        ("discrete", "normal"),
    ],
)
def test_a_spacing_of_elsewhere_is_one_of_here(name: str, spacing: str | None) -> None:
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
