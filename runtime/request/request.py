"""What a user may ask for. A request is done as it stands or refused; nothing in it is rounded, clipped or ignored.

`Request` holds what was said, None for what was left to the bundle; `ResolvedRequest` has no gaps and is what a record
keeps. Facts about the model are the manifest's, not the request's.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tintype.errors import RequestError, near_names
from tintype.request import checks
from tintype.request.inputs import NO_INPUTS, GivenLatents, InitImage, Inputs, Mask, check_latents, open_inputs
from tintype.uses import EXACTNESS

if TYPE_CHECKING:
    from tintype.bundle.manifest import Manifest
    from tintype.image.source import Source

MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_COUNT = 10_000
MAX_BATCH = 64
SEEDS = 2**64
MAX_HIRES = 8.0
UPSCALES = ("latent", "pixel")


class InputFields(TypedDict, total=False):
    """What a request begins with beside words and seeds."""

    image: Source | None
    mask: Source | None
    latents: GivenLatents | None


class RequestFields(InputFields, total=False):
    """The fields of a Request but its prompt, for calls that take them by name."""

    negative_prompt: str | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float
    width: int | None
    height: int | None
    seed: int | None
    sampler: str | None
    sigmas: str | None
    eta: float
    noise: str
    count: int
    batch_size: int
    exactness: str | None
    strength: float | None
    fit: str
    background: str
    mask_grow: int
    mask_blur: float
    keep_outside: str
    outpaint: str | None
    hires: float | None
    hires_strength: float
    hires_upscale: str


def _option(text: str, kind: type = str) -> dict[str, Any]:
    """What the command line says of a field of `Request`. kind: what is typed there, a file for a Path."""
    return {"help": text, "kind": kind}


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
        default=None, metadata=_option("How closely to follow the words; 1 turns guidance off.", float)
    )
    # Lin et al. 2023, section 3.4.
    guidance_rescale: float = field(default=0.0, metadata=_option("0 to 1; tames high guidance.", float))
    width: int | None = None  # pixels
    height: int | None = None
    seed: int | None = field(
        default=None, metadata=_option("The same seed, the same picture [default: a new one each time].", int)
    )
    sampler: str | None = field(
        default=None,
        metadata=_option("euler, euler_a, heun, ddim, ddpm, pndm, dpmpp_2m, dpmpp_2m_sde, dpmpp_sde, unipc, lcm."),
    )
    sigmas: str | None = field(
        default=None, metadata=_option("Spacing of the steps: leading, trailing, linspace, karras, exponential.")
    )
    eta: float = field(default=0.0, metadata=_option("For ddim: 0 to 1, fresh noise in each step.", float))
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
    hires: float | None = field(
        default=None, metadata=_option("Draw at --size, then enlarge so many times and draw on, as in 2.", float)
    )
    hires_strength: float = field(
        default=0.5, metadata=_option("How much the enlarged picture changes, 0 to 1.", float)
    )
    hires_upscale: str = field(default="latent", metadata=_option("What is enlarged: latent, or pixel."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hires:
    """The smaller picture that is drawn before this one, and how it becomes this one."""

    factor: float
    width: int
    height: int
    strength: float
    upscale: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """A request without gaps. Every value in it was checked against a manifest."""

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    width: int
    height: int
    seed: int
    sampler: str
    sigmas: str | None  # None: the checkpoint's own spacing
    eta: float
    noise: str
    count: int
    batch_size: int
    exactness: str = "balanced"
    image: InitImage | None = None
    mask: Mask | None = None
    latents: str | None = None  # sha256 of the noise that was given
    hires: Hires | None = None
    inputs: Inputs = field(default=NO_INPUTS, compare=False, repr=False, metadata={"recorded": False})

    @property
    def strength(self) -> float:
        """The share of the steps that are taken."""
        begun = self.hires or self.image
        return 1.0 if begun is None else begun.strength

    @property
    def base(self) -> ResolvedRequest | None:
        """The smaller picture that is drawn before, and enlarged; None where there is none."""
        if self.hires is None:
            return None
        return dataclasses.replace(self, width=self.hires.width, height=self.hires.height, hires=None)

    @property
    def seeds(self) -> range:
        """One seed a picture."""
        return range(self.seed, self.seed + self.count)

    @property
    def batches(self) -> list[range]:
        """Indices of the pictures that are denoised together."""
        starts = range(0, self.count, self.batch_size)
        return [range(start, min(start + self.batch_size, self.count)) for start in starts]


def make_request(prompt: str | Request, fields: RequestFields) -> Request:
    """A prompt with fields, or a request with some of its fields replaced. RequestError for a field that isn't."""
    known = [field.name for field in dataclasses.fields(Request) if field.name != "prompt"]
    for name in fields:
        if name not in known:
            raise RequestError(f"a request has no {name!r}", fix=near_names(name, known))
    if isinstance(prompt, Request):
        return dataclasses.replace(prompt, **fields)
    return Request(prompt=prompt, **fields)


def resolve(request: Request, manifest: Manifest) -> ResolvedRequest:
    """Fill the gaps from the bundle and check every value. Raises RequestError, each with what would work."""
    from tintype import sampling  # numpy comes with it; a request alone needs neither

    default = manifest.default_request
    count = checks.whole_number("count", request.count, 1, MAX_COUNT)
    opened = open_inputs(request, manifest)
    width, height = opened.size or (default.width, default.height)
    width = checks.side("width", _either(request.width, width), manifest.size)
    height = checks.side("height", _either(request.height, height), manifest.size)
    if opened.inputs.latents is not None:
        rows, columns = (side // manifest.vae_scale_factor for side in (height, width))
        check_latents(opened.inputs.latents, (count, manifest.latent_channels, rows, columns))
    hires = None if request.hires is None else _hires(request, width, height)
    if hires is not None:
        step = manifest.size.multiple
        width, height = (int(side * hires.factor) // step * step for side in (width, height))
    seed = secrets.randbits(32) if request.seed is None else request.seed
    return ResolvedRequest(
        prompt=checks.text("prompt", request.prompt),
        negative_prompt=checks.text("negative_prompt", _either(request.negative_prompt, default.negative_prompt)),
        num_inference_steps=checks.whole_number(
            "num_inference_steps", _either(request.num_inference_steps, default.num_inference_steps), 1, MAX_STEPS
        ),
        guidance_scale=checks.number(
            "guidance_scale", _either(request.guidance_scale, default.guidance_scale), -MAX_GUIDANCE, MAX_GUIDANCE
        ),
        guidance_rescale=checks.number("guidance_rescale", request.guidance_rescale, 0.0, 1.0),
        width=checks.side("width", width, manifest.size),
        height=checks.side("height", height, manifest.size),
        seed=checks.whole_number("seed", seed, 0, SEEDS - count),
        sampler=checks.name("sampler", _either(request.sampler, default.sampler), tuple(sampling.SAMPLERS)),
        sigmas=_spacing(_either(request.sigmas, default.sigmas), sampling.SPACINGS),
        eta=checks.number("eta", request.eta, 0.0, 1.0),
        noise=checks.name("noise", request.noise, tuple(sampling.NOISE_MODES)),
        count=count,
        batch_size=checks.whole_number("batch_size", request.batch_size, 1, MAX_BATCH),
        exactness=checks.name("exactness", _either(request.exactness, default.exactness), EXACTNESS),
        image=opened.image,
        mask=opened.mask,
        latents=opened.latents,
        hires=hires,
        inputs=opened.inputs,
    )


def _hires(request: Request, width: int, height: int) -> Hires:
    """width, height: of the smaller picture, in pixels."""
    if request.mask is not None or request.outpaint is not None:
        raise RequestError(
            "hires and a mask contradict each other", fix="edit the picture, then enlarge what came of it"
        )
    return Hires(
        factor=checks.number("hires", request.hires, 1.0, MAX_HIRES),
        width=width,
        height=height,
        strength=checks.number("hires_strength", request.hires_strength, 0.0, 1.0),
        upscale=checks.name("hires_upscale", request.hires_upscale, UPSCALES),
    )


def resolve_encoding(
    width: int | None, height: int | None, exactness: str | None, manifest: Manifest
) -> tuple[int, int, str]:
    """The size in pixels and the exactness with which a picture alone is encoded; None is the bundle's default."""
    default = manifest.default_request
    return (
        checks.side("width", _either(width, default.width), manifest.size),
        checks.side("height", _either(height, default.height), manifest.size),
        checks.name("exactness", _either(exactness, default.exactness), EXACTNESS),
    )


def _either(chosen: Any, default: Any) -> Any:
    return default if chosen is None else chosen


def _spacing(value: Any, known: tuple[str, ...]) -> str | None:
    return None if value is None else checks.name("sigmas", value, known)
