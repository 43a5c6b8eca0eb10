"""The families by the name that a manifest gives, which is one of them."""

from __future__ import annotations

from tintype.bundle.manifest import XL
from tintype.families.base import Family
from tintype.families.stable_diffusion import StableDiffusion
from tintype.families.stable_diffusion_xl import StableDiffusionXL

FAMILIES: dict[str, Family] = {"stable-diffusion": StableDiffusion(), XL: StableDiffusionXL()}


def family_of(name: str) -> Family:
    return FAMILIES[name]
