"""The families by the name that a manifest gives, which is one of them."""

from __future__ import annotations

from tintype.bundle.manifest import PIX2PIX, REFINER, XL
from tintype.families.base import Family
from tintype.families.instruct_pix2pix import InstructPix2Pix
from tintype.families.stable_diffusion import StableDiffusion
from tintype.families.stable_diffusion_xl import StableDiffusionXL
from tintype.families.stable_diffusion_xl_refiner import StableDiffusionXLRefiner

FAMILIES: dict[str, Family] = {
    "stable-diffusion": StableDiffusion(),
    XL: StableDiffusionXL(),
    REFINER: StableDiffusionXLRefiner(),
    PIX2PIX: InstructPix2Pix(),
}


def family_of(name: str) -> Family:
    return FAMILIES[name]
