"""A record as A1111 writes its parameters under a picture, which other tools read."""

from __future__ import annotations

import json

from tintype.record.provenance import Provenance
from tintype.request import ResolvedRequest

A1111_KEY = "parameters"

A1111_SAMPLERS = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "heunpp2": "HeunPP2",
    "exp_heun_2_x0": "Exp Heun 2 x0",
    "exp_heun_2_x0_sde": "Exp Heun 2 x0 SDE",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "lms": "LMS",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "ipndm": "IPNDM",
    "ipndm_v": "IPNDM_V",
    "deis": "DEIS",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "unipc_bh2": "UniPC BH2",
    "sa_solver": "SA-Solver",
    "sa_solver_pece": "SA-Solver PECE",
    "res_multistep": "Res Multistep",
    "res_multistep_a": "Res Multistep Ancestral",
    "res_2s": "Res 2S",
    "gradient_estimation": "Gradient Estimation",
    "er_sde": "ER SDE",
    "seeds_2": "SEEDS 2",
    "seeds_3": "SEEDS 3",
    "dpm_fast": "DPM fast",
    "restart": "Restart",
    "lcm": "LCM",
    "tcd": "TCD",
    "euler_cfg_pp": "Euler CFG++",
    "euler_a_cfg_pp": "Euler a CFG++",
    "dpmpp_2m_cfg_pp": "DPM++ 2M CFG++",
    "dpmpp_2s_a_cfg_pp": "DPM++ 2S a CFG++",
    "res_multistep_cfg_pp": "Res Multistep CFG++",
    "res_multistep_a_cfg_pp": "Res Multistep Ancestral CFG++",
    "gradient_estimation_cfg_pp": "Gradient Estimation CFG++",
}
A1111_SPACINGS = {
    "ays": "Align Your Steps",
    "bong_tangent": "Bong Tangent",
    "kl_optimal": "KL Optimal",
    "linear_quadratic": "Linear Quadratic",
    "sgm_uniform": "SGM Uniform",
}  # the others are written as they are here, with a capital
A1111_NOISE = {"philox": "NV", "torch-cpu": "CPU", "numpy": "numpy"}


def parameters_text(request: ResolvedRequest, made_with: Provenance, seed: int) -> str:
    """The request as A1111 writes it under a picture."""
    facts = {
        "Steps": request.num_inference_steps,
        "Sampler": A1111_SAMPLERS.get(request.sampler, request.sampler),
        "Schedule type": _spacing(request.sigmas) if request.sigmas else None,
        "CFG scale": f"{request.guidance_scale:g}",
        "CFG Rescale": f"{request.guidance_rescale:g}" if request.guidance_rescale else None,
        "Image CFG scale": f"{request.image_guidance_scale:g}" if request.image_guidance_scale else None,
        "CFG Interval": request.guidance_interval,
        "Seed": seed,
        "Denoising strength": f"{request.strength:g}" if request.image or request.hires else None,
        "Hires upscale": f"{request.hires.factor:g}" if request.hires else None,
        "Refiner": made_with.refiner.bundle if made_with.refiner else None,
        "Refiner switch at": None if request.refiner_start is None else f"{request.refiner_start:g}",
        "Clip skip": request.clip_skip + 1 if request.clip_skip else None,
        "Size": f"{request.width}x{request.height}",
        "Model hash": made_with.bundle_hash[:10],
        "Model": made_with.bundle,
        "RNG": A1111_NOISE[request.noise],
        "Version": f"tintype {made_with.tintype}",
    }
    tags = "".join(f" <lora:{lora.name}:{lora.weight:g}>" for lora in request.loras)
    lines = [f"{request.prompt}{tags}"]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in facts.items() if value is not None))
    return "\n".join(lines)


def _spacing(name: str) -> str:
    return A1111_SPACINGS.get(name, name.capitalize())


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',\n:"') else text
