"""What a user may ask for. A request is done as it stands or refused; nothing in it is rounded, clipped or ignored.

`Request` holds what was said, None for what was left to the bundle; `ResolvedRequest` has no gaps and is what a record
keeps. Facts about the model are the manifest's, not the request's.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything a user may choose; None is the bundle's default, and for `seed` a new one each time."""

    prompt: str
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None  # 1.0 turns guidance off; 0 is a value
    guidance_rescale: float = 0.0  # 0 to 1 (Lin et al. 2023, section 3.4)
    width: int | None = None  # pixels
    height: int | None = None
    seed: int | None = None  # of the first picture; the next ones count up
    sampler: str | None = None
    sigmas: str | None = None  # a spacing by name: karras, trailing, ...
    eta: float = 0.0  # of ddim: the share of fresh noise in each step, 0 to 1
    noise: str = "philox"
    count: int = 1
    batch_size: int = 1  # pictures denoised together: faster on some devices, and part of what makes the bytes
    exactness: str | None = None  # exact: what the canonical graphs compute; balanced may round, where that is faster
    image: Source | None = None  # a picture to begin with: Pillow's, a file, or an array
    strength: float | None = None  # of its change, 0 to 1; None is 0.75, and 1 where there is a mask
    fit: str = "crop"  # how it comes to the size that is made: crop, pad, stretch
    background: str = "white"  # what shows through where it is transparent
    mask: Source | None = None  # of the picture's size: white is made new
    mask_grow: int = 0  # pixels by which the white grows, or shrinks
    mask_blur: float = 0.0  # radius in pixels
    keep_outside: str = "model"  # outside the mask: what the model makes of it; exact: the picture's own bytes
    outpaint: str | None = None  # pixels to add at each side: left,top,right,bottom
    latents: GivenLatents | None = None  # noise of unit variance to begin with, (count, channels, height, width)


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
    inputs: Inputs = field(default=NO_INPUTS, compare=False, repr=False, metadata={"recorded": False})

    @property
    def strength(self) -> float:
        """The share of the steps that are taken."""
        return 1.0 if self.image is None else self.image.strength

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
    seed = secrets.randbits(32) if request.seed is None else request.seed
    resolved = ResolvedRequest(
        prompt=checks.text("prompt", request.prompt),
        negative_prompt=checks.text("negative_prompt", _either(request.negative_prompt, default.negative_prompt)),
        num_inference_steps=checks.whole_number(
            "num_inference_steps", _either(request.num_inference_steps, default.num_inference_steps), 1, MAX_STEPS
        ),
        guidance_scale=checks.number(
            "guidance_scale", _either(request.guidance_scale, default.guidance_scale), -MAX_GUIDANCE, MAX_GUIDANCE
        ),
        guidance_rescale=checks.number("guidance_rescale", request.guidance_rescale, 0.0, 1.0),
        width=checks.side("width", _either(request.width, width), manifest.size),
        height=checks.side("height", _either(request.height, height), manifest.size),
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
        inputs=opened.inputs,
    )
    if opened.inputs.latents is not None:
        rows, columns = (side // manifest.vae_scale_factor for side in (resolved.height, resolved.width))
        check_latents(opened.inputs.latents, (count, manifest.latent_channels, rows, columns))
    return resolved


def _either(chosen: Any, default: Any) -> Any:
    return default if chosen is None else chosen


def _spacing(value: Any, known: tuple[str, ...]) -> str | None:
    return None if value is None else checks.name("sigmas", value, known)
