"""The table of what a user may ask for: options of the command line, keywords in Python and checks follow from it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from tintype.errors import RequestError, near_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tintype.adapters.facts import Lora
    from tintype.image.source import Source
    from tintype.request.control import GivenControl
    from tintype.request.embeddings import GivenEmbeddings
    from tintype.request.image_prompts import GivenImagePrompts

GivenLora: TypeAlias = "Lora | str | os.PathLike[str] | tuple[str | os.PathLike[str], float]"
GivenLatents: TypeAlias = "NDArray[Any] | str | os.PathLike[str]"


class InputFields(TypedDict, total=False):
    """What a request begins with beside words and seeds."""

    image: Source | None
    mask: Source | None
    latents: GivenLatents | None
    loras: Sequence[GivenLora]
    lora_dir: str | os.PathLike[str] | None
    embeddings: GivenEmbeddings
    control: GivenControl
    ip_adapter: str | os.PathLike[str] | None
    image_encoder: str | os.PathLike[str] | None
    image_prompts: GivenImagePrompts


class RequestFields(InputFields, total=False):
    """The fields of a Request but its prompt, for calls that take them by name."""

    negative_prompt: str | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float | None
    image_guidance_scale: float | None
    guidance_interval: str | None
    cache_interval: int
    cache_branch: int
    gate_start: float | None
    token_merging: float
    width: int | None
    height: int | None
    seed: int | None
    sampler: str | None
    sigmas: str | None
    eta: float | None
    noise: str
    count: int
    batch_size: int
    exactness: str | None
    clip_skip: int
    strength: float | None
    fit: str
    background: str
    mask_grow: int
    mask_blur: float
    keep_outside: str
    outpaint: str | None
    control_preprocess: str | None
    control_guess: bool
    hires: float | None
    hires_strength: float
    hires_upscale: str
    refiner_start: float | None
    fast: bool
    decoder: str
    encoder: str
    watermark: bool
    private: bool
    code_noise: bool


def _option(text: str, kind: type = str, *, each: str | None = None) -> dict[str, Any]:
    """What the command line says of a field of `Request`. kind: what is typed there, a file for a Path.

    each: the option's name, where it is given once for each of the field's values.
    """
    return {"help": text, "kind": kind, "each": each}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything a user may choose; None is the bundle's default, and for `seed` a new one each time.

    The one table of fields: the command line's options are made of it, and tests hold `RequestFields` and what a record
    keeps to it.
    """

    prompt: str
    negative_prompt: str | None = field(default=None, metadata=_option("What should not be in the picture."))
    num_inference_steps: int | None = field(
        default=None, metadata=_option("Denoising steps; more is slower and finer.", int)
    )
    guidance_scale: float | None = field(
        default=None,
        metadata=_option(
            "How closely to follow the words; 1 turns guidance off [default: the model's own; 0.6 with CFG++].",
            float,
        ),
    )
    # Lin et al. 2023, section 3.4.
    guidance_rescale: float | None = field(
        default=None, metadata=_option("0 to 1; tames high guidance [default: the model's own].", float)
    )
    # Brooks et al. 2023, formula 3.
    image_guidance_scale: float | None = field(
        default=None,
        metadata=_option("For InstructPix2Pix: how closely to follow the picture [default: the model's own].", float),
    )
    # Kynkäänniemi et al. 2024; counted as diffusers' guiders count it.
    guidance_interval: str | None = field(
        default=None,
        metadata=_option(
            "Guide between these shares of the steps alone, as in 0.2,0.8; the others take half the time."
        ),
    )
    # Ma et al. 2023 (DeepCache).
    cache_interval: int = field(
        default=1,
        metadata=_option("Compute the denoiser's deep part in every so many-th call alone, and keep it between.", int),
    )
    cache_branch: int = field(
        default=0,
        metadata=_option("The skip connection at which what is kept enters: 0 skips most, and changes most.", int),
    )
    # Zhang et al. 2024 (T-GATE).
    gate_start: float | None = field(
        default=None,
        metadata=_option(
            "The share of the steps after which cross-attentions keep what they gave and guidance ends.", float
        ),
    )
    # Bolya & Hoffman 2023 (ToMe for Stable Diffusion).
    token_merging: float = field(
        default=0.0,
        metadata=_option("The share of tokens, 0 to 0.75, that the finest self-attentions merge into others.", float),
    )
    width: int | None = None  # pixels
    height: int | None = None
    seed: int | None = field(
        default=None, metadata=_option("The same seed, the same picture [default: a new one each time].", int)
    )
    sampler: str | None = field(
        default=None,
        metadata=_option(
            "euler, euler_a, heun, heunpp2, exp_heun_2_x0, exp_heun_2_x0_sde, dpm2, dpm2_a, lms, ddim, ddpm, pndm, "
            "ipndm, ipndm_v, deis, dpmpp_2s, dpmpp_2s_a, dpmpp_2m, dpmpp_2m_sde, dpmpp_2m_sde_heun, "
            "dpmpp_3m_sde, dpmpp_sde, unipc, unipc_bh2, sa_solver, sa_solver_pece, res_multistep, res_multistep_a, "
            "res_2s, gradient_estimation, er_sde, seeds_2, seeds_3, dpm_fast, restart, lcm, tcd; and by CFG++ "
            "euler_cfg_pp, euler_a_cfg_pp, dpmpp_2m_cfg_pp, dpmpp_2s_a_cfg_pp, res_multistep_cfg_pp, "
            "res_multistep_a_cfg_pp, gradient_estimation_cfg_pp. Names of other tools will do: 'DPM++ 2M Karras'."
        ),
    )
    sigmas: str | None = field(
        default=None,
        metadata=_option(
            "Spacing of the steps: leading, trailing, linspace, karras, exponential, beta, normal, sgm_uniform, "
            "simple, kl_optimal, linear_quadratic, smoothstep, bong_tangent, ays [default: the model's own]."
        ),
    )
    eta: float | None = field(
        default=None,
        metadata=_option("For ddim and tcd: 0 to 1, fresh noise in each step [default: 0; 0.3 for tcd].", float),
    )
    noise: str = field(default="philox", metadata=_option("Where noise comes from: philox, torch-cpu, numpy."))
    count: int = field(default=1, metadata=_option("Pictures to make, seeds counting up: x-1.png, x-2.png.", int))
    # Faster on some devices, and part of what makes the bytes.
    batch_size: int = field(default=1, metadata=_option("Pictures denoised together.", int))
    exactness: str | None = field(
        default=None,
        metadata=_option(
            "exact keeps what the bundle's graphs compute; balanced may also round the inputs of its int8 layers "
            "[default: the model's own]."
        ),
    )
    # As diffusers' pipelines count, and as there for the prompt alone.
    clip_skip: int = field(
        default=0,
        metadata=_option("Of the text encoder's last layers, how many to leave out; A1111's count is one more.", int),
    )
    image: Source | None = field(default=None, metadata=_option("A picture to begin with.", Path))
    strength: float | None = field(
        default=None, metadata=_option("How much of it changes, 0 to 1 [default: 0.75; 1 with a mask].", float)
    )
    fit: str = field(default="crop", metadata=_option("How it comes to the size that is made: crop, pad, stretch."))
    background: str = field(default="white", metadata=_option("The colour behind what is transparent in it."))
    mask: Source | None = field(
        default=None, metadata=_option("A picture of the same size: what is white is made new.", Path)
    )
    mask_grow: int = field(default=0, metadata=_option("Pixels by which the white grows; below 0 it shrinks.", int))
    mask_blur: float = field(default=0.0, metadata=_option("Pixels over which the mask's edge fades.", float))
    keep_outside: str = field(
        default="model",
        metadata=_option("Outside the mask: model draws it again, which leaves no seam; exact keeps every byte."),
    )
    outpaint: str | None = field(default=None, metadata=_option("Pixels to add around it: left,top,right,bottom."))
    latents: GivenLatents | None = field(
        default=None,
        metadata=_option(
            "Noise to begin with, a .npy of (count, channels, height / 8, width / 8) or what the model has.", Path
        ),
    )
    loras: Sequence[GivenLora] = field(
        default=(),
        metadata=_option(
            "A LoRA, LoCon, LoHa, LoKr or DoRA, again for more: FILE, FILE=0.8, FILE=0.8@0.2-0.7 from and to which "
            "share of the steps, FILE=0.8,down=0.5,text=0 in which parts.",
            each="lora",
        ),
    )
    lora_dir: str | os.PathLike[str] | None = field(
        default=None, metadata=_option("Where those lie that the prompt names, as in <lora:NAME:0.8>.", Path)
    )
    # Gal et al. 2022 (textual inversion).
    embeddings: GivenEmbeddings = field(
        default=(),
        metadata=_option(
            "A .safetensors file of textual inversion: its word draws what it was trained on. Again for more.",
            Path,
            each="embedding",
        ),
    )
    # Zhang et al. 2023 (ControlNet), Mou et al. 2023 (T2I-Adapter).
    control: GivenControl = field(
        default=(),
        metadata=_option(
            "A ControlNet or T2I-Adapter and what it is shown: MODEL=PICTURE[=WEIGHT][@START-END], as in "
            "canny=edges.png=0.8@0-0.5. Again for more.",
            each="control",
        ),
    )
    control_preprocess: str | None = field(
        default=None,
        metadata=_option(
            "What is made of these pictures first: canny, grey, invert, resize, blur, tile, as in canny:100-200."
        ),
    )
    control_guess: bool = field(
        default=False,
        metadata=_option("Let ControlNets lead where words don't: guidance goes away from what they don't know.", bool),
    )
    # Ye et al. 2023 (IP-Adapter).
    ip_adapter: str | os.PathLike[str] | None = field(
        default=None,
        metadata=_option("An IP-Adapter, Plus or Full Face, a .safetensors file: it reads --image-prompt.", Path),
    )
    image_encoder: str | os.PathLike[str] | None = field(
        default=None,
        metadata=_option("The image encoder that it takes [default: image_encoder beside its file]."),
    )
    image_prompts: GivenImagePrompts = field(
        default=(),
        metadata=_option(
            "A picture beside the words: PICTURE[=WEIGHT][,mask=MASK], as in cat.png=0.6; the mask, of what is drawn, "
            "is white where it is looked at. Again for more.",
            each="image-prompt",
        ),
    )
    hires: float | None = field(
        default=None, metadata=_option("Draw at --size, then enlarge so many times and draw on, as in 2.", float)
    )
    hires_strength: float = field(
        default=0.5, metadata=_option("How much the enlarged picture changes, 0 to 1.", float)
    )
    hires_upscale: str = field(default="latent", metadata=_option("What is enlarged: latent, or pixel."))
    # diffusers' denoising_end of the one and denoising_start of the other.
    refiner_start: float | None = field(
        default=None,
        metadata=_option("The share of the way after which the refiner goes on [default: 0.8 with a refiner].", float),
    )
    fast: bool = field(
        default=False,
        metadata=_option("Draw with the model's fast denoiser, where it has one: few steps, without guidance.", bool),
    )
    decoder: str = field(
        default="full", metadata=_option("What makes pixels of latents: full, or tiny where the model has one.")
    )
    encoder: str = field(default="full", metadata=_option("What makes latents of a picture: full, or tiny."))
    watermark: bool = field(
        default=True, metadata=_option("Mark the picture, unseen, so that tintype verify tells what made it.", bool)
    )
    private: bool = field(
        default=False, metadata=_option("Leave words and seed out of the picture's file, but for salted hashes.", bool)
    )
    code_noise: bool = field(
        default=False,
        metadata=_option("Let the starting noise say who drew it: tintype verify --model reads that.", bool),
    )


def make_request(prompt: str | Request, fields: RequestFields) -> Request:
    """A prompt with fields, or a request with some of its fields replaced. RequestError for a field that isn't."""
    known = [field.name for field in dataclasses.fields(Request) if field.name != "prompt"]
    for name in fields:
        if name not in known:
            raise RequestError(f"a request has no {name!r}", fix=near_names(name, known))
    if isinstance(prompt, Request):
        return dataclasses.replace(prompt, **fields)
    return Request(prompt=prompt, **fields)
