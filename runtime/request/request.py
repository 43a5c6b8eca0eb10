"""What a user may ask for. A request is done as it stands or refused; nothing in it is rounded, clipped or ignored.

`Request` holds what was said, None for what was left to the bundle; `ResolvedRequest` has no gaps and is what a record
keeps. Facts about the model are the manifest's, not the request's.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tintype.adapters.facts import LoraFacts
from tintype.errors import RequestError
from tintype.request import checks
from tintype.request.code_noise import code_noise
from tintype.request.control import ControlFacts
from tintype.request.embeddings import EmbeddingFacts, row_count
from tintype.request.fields import Request
from tintype.request.given_latents import check_latents
from tintype.request.image_prompts import ImagePromptFacts, IPAdapterFacts
from tintype.request.inputs import NO_INPUTS, InitImage, Inputs, Mask, Opened, demand_facts, open_inputs
from tintype.request.loras import default_with, with_loras, without_tags
from tintype.uses import EXACTNESS

if TYPE_CHECKING:
    from tintype.bundle.manifest import DefaultRequest, Manifest

# Of which a record has facts alone.
INPUTS = ("image", "mask", "latents", "loras", "embeddings", "control", "ip_adapter", "image_prompts")
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_COUNT = 10_000
MAX_BATCH = 64
SEEDS = 2**64
MAX_HIRES = 8.0
MAX_MERGED = 0.75  # of the tokens: one of each 2x2 stays
MAX_CACHE_BRANCH = 99  # how deep a model really goes its graph tells
MAX_CLIP_SKIP = 11  # as far as A1111's slider goes
IMAGE_GUIDANCE = 1.5  # of InstructPix2Pix, as its authors and diffusers have it
UPSCALES = ("latent", "pixel")


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
    clip_skip: int = 0  # of the text encoder's last layers, how many are left out for the prompt
    guidance_interval: str | None = None  # start,stop: shares of the way; None: all of it
    cache_interval: int = 1  # of so many calls of the denoiser one computes its deep part
    cache_branch: int = 0  # the skip connection at which that part ends, the outermost being 0
    gate_start: float | None = None  # the share of the way from which on cross-attentions keep what they gave
    token_merging: float = 0.0  # of the tokens, the share that the finest self-attentions leave out
    image: InitImage | None = None
    mask: Mask | None = None
    latents: str | None = None  # sha256 of the noise that was given
    loras: tuple[LoraFacts, ...] = ()
    embeddings: tuple[EmbeddingFacts, ...] = ()
    control: tuple[ControlFacts, ...] = ()
    ip_adapter: IPAdapterFacts | None = None
    image_prompts: tuple[ImagePromptFacts, ...] = ()  # that stand beside the words
    control_guess: bool = False  # ControlNets have a part in what the words draw alone, less in what is finer
    hires: Hires | None = None
    image_guidance_scale: float | None = None  # None: the model takes no picture beside the noise
    refiner_start: float | None = None  # the share of the way after which the refiner goes on; None: there is none
    fast: bool = False  # by the fast denoiser
    decoder: str = "full"
    encoder: str = "full"
    watermark: bool = False  # as in records from before there was one
    private: bool = False  # whether its files leave the words and the seed out
    code_noise: bool = False  # the signs of its starting noise say who drew it
    inputs: Inputs = field(default=NO_INPUTS, compare=False, repr=False, metadata={"recorded": False})

    @property
    def embedding_rows(self) -> int:
        """How many embeddings its text encoders need beside their own."""
        return row_count(self.embeddings)

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


def resolve(request: Request, manifest: Manifest) -> ResolvedRequest:
    """Fill the gaps from the bundle and check every value. Raises RequestError, each with what would work."""
    checks.whole_number("count", request.count, 1, MAX_COUNT)  # before a row is opened for each
    request = without_tags(request)
    return _resolved(request, with_loras(open_inputs(request, manifest), request), manifest)


def demand_resolved(known: ResolvedRequest, manifest: Manifest) -> None:
    """RequestError where `resolve` would not have given this request, which somebody else wrote down.

    Of what it began with there are only facts; that they are those of the inputs is seen when these are there.
    """
    names = [each.name for each in dataclasses.fields(Opened) if each.name not in ("size", "inputs")]
    facts = Opened(size=None, **{name: getattr(known, name) for name in names})
    demand_facts(facts)
    if _resolved(Request(**fields_of(known)), facts, manifest) != known:
        raise RequestError("the request contradicts itself", fix="ask for it anew")


def fields_of(known: ResolvedRequest) -> dict[str, Any]:
    """A request's fields as somebody would ask for it again, without what it began with."""
    names = {each.name for each in dataclasses.fields(Request)} - {*INPUTS, "hires"}
    found = {each.name: getattr(known, each.name) for each in dataclasses.fields(known) if each.name in names}
    if known.image is not None:
        found |= {name: getattr(known.image, name) for name in ("strength", "fit", "background", "outpaint")}
    if known.mask is not None:
        found |= {f"mask_{name}": getattr(known.mask, name) for name in ("grow", "blur")}
        found["keep_outside"] = known.mask.keep_outside
    if known.control and known.image is None:
        found["fit"] = known.control[0].fit
    if known.hires is not None:
        found |= {"width": known.hires.width, "height": known.hires.height, "hires": known.hires.factor}
        found |= {f"hires_{name}": getattr(known.hires, name) for name in ("strength", "upscale")}
    return found


def _resolved(request: Request, opened: Opened, manifest: Manifest) -> ResolvedRequest:
    from tintype import sampling  # numpy comes with it; a request alone needs neither
    from tintype.bundle.manifest import DECODERS, ENCODERS

    fast = _fast(request.fast, manifest)
    default = default_with(opened, manifest.defaults(fast=fast))
    count = checks.whole_number("count", request.count, 1, MAX_COUNT)
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
    sampler, spacing = _sampler_and_spacing(request, default)
    return ResolvedRequest(
        prompt=checks.words("prompt", request.prompt),
        negative_prompt=checks.words("negative_prompt", _either(request.negative_prompt, default.negative_prompt)),
        num_inference_steps=checks.whole_number(
            "num_inference_steps", _either(request.num_inference_steps, default.num_inference_steps), 1, MAX_STEPS
        ),
        guidance_scale=_guidance_scale(request, sampler, default),
        guidance_rescale=checks.number(
            "guidance_rescale", _either(request.guidance_rescale, default.guidance_rescale), 0.0, 1.0
        ),
        image_guidance_scale=_image_guidance(request, manifest),
        guidance_interval=_interval(request.guidance_interval, sampling.Interval.parse),
        cache_interval=checks.whole_number("cache_interval", request.cache_interval, 1, MAX_STEPS),
        cache_branch=_cache_branch(request),
        gate_start=_gate_start(request),
        token_merging=checks.number("token_merging", request.token_merging, 0.0, MAX_MERGED),
        width=checks.side("width", width, manifest.size),
        height=checks.side("height", height, manifest.size),
        seed=checks.whole_number("seed", seed, 0, SEEDS - count),
        sampler=sampler,
        sigmas=spacing,
        eta=checks.number("eta", _either(request.eta, sampling.ETAS.get(sampler, 0.0)), 0.0, 1.0),
        noise=checks.name("noise", request.noise, tuple(sampling.NOISE_MODES)),
        count=count,
        batch_size=checks.whole_number("batch_size", request.batch_size, 1, MAX_BATCH),
        exactness=checks.name("exactness", _either(request.exactness, default.exactness), EXACTNESS),
        clip_skip=_clip_skip(request.clip_skip, manifest),
        control_guess=checks.yes_or_no("control_guess", request.control_guess),
        hires=hires,
        refiner_start=_refiner_start(request, opened, manifest),
        fast=fast,
        decoder=_autoencoder("decoder", request.decoder, DECODERS, manifest),
        encoder=_autoencoder("encoder", request.encoder, ENCODERS, manifest),
        watermark=checks.yes_or_no("watermark", request.watermark),
        private=checks.yes_or_no("private", request.private),
        code_noise=code_noise(request, opened, sampler, (width, height), manifest),
        inputs=opened.inputs,
        **{name: getattr(opened, name) for name in INPUTS},
    )


def _guidance_scale(request: Request, sampler: str, default: DefaultRequest) -> float:
    """The one that was asked for, else the model's own; of CFG++, which has another measure, its usual one."""
    from tintype import sampling

    usual = default.guidance_scale
    if sampler in sampling.CFG_PP and usual > 1.0:
        usual = sampling.CFG_PP_GUIDANCE
    return checks.number("guidance_scale", _either(request.guidance_scale, usual), -MAX_GUIDANCE, MAX_GUIDANCE)


def _clip_skip(value: Any, manifest: Manifest) -> int:
    skip = checks.whole_number("clip_skip", value, 0, MAX_CLIP_SKIP)
    most = manifest.clip_skips
    if skip > most:
        older = "export the checkpoint again: this bundle's text encoder gives its last state alone; or leave it out"
        raise RequestError(
            f"clip_skip {skip} is more layers than this bundle can leave out, which is {most}",
            fix=f"give {most} or less" if most else older,
        )
    return skip


def _image_guidance(request: Request, manifest: Manifest) -> float | None:
    scale, default = request.image_guidance_scale, manifest.default_request.image_guidance_scale
    if manifest.is_editing:
        usual = IMAGE_GUIDANCE if default is None else default
        return checks.number("image_guidance_scale", usual if scale is None else scale, 1.0, MAX_GUIDANCE)
    if scale is not None:
        raise RequestError(
            "image_guidance_scale is given, and this model takes no picture beside the noise",
            fix="leave it out; with a picture to begin with, strength says how much of it changes",
        )
    return None


def _fast(value: Any, manifest: Manifest) -> bool:
    fast = checks.yes_or_no("fast", value)
    if fast and manifest.fast is None:
        fix = "leave fast out, or export it with a distilled model's bundle: tintype export ... --fast BUNDLE"
        raise RequestError("this model has no fast denoiser", fix=fix)
    return fast


def _autoencoder(field: str, value: Any, roles: Mapping[str, str], manifest: Manifest) -> str:
    name = checks.name(field, value, tuple(roles))
    if name != "full" and roles[name] not in manifest.graphs:
        raise RequestError(
            f"this model has no {roles[name].replace('_', ' ')}",
            fix=f"leave {field} out, or export the checkpoint again with a tiny autoencoder: --tiny-vae FOLDER",
        )
    return name


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


def _cache_branch(request: Request) -> int:
    branch = checks.whole_number("cache_branch", request.cache_branch, 0, MAX_CACHE_BRANCH)
    if branch and request.cache_interval == 1:
        raise RequestError(
            f"cache_branch {branch} is given, and with a cache_interval of 1 nothing is kept",
            fix="give a cache_interval of 2 or more, or leave cache_branch out",
        )
    return branch


def _gate_start(request: Request) -> float | None:
    if request.gate_start is None:
        return None
    start = checks.number("gate_start", request.gate_start, 0.0, 1.0)
    if start == 0.0:
        raise RequestError("a gate_start of 0 leaves no step to keep anything of", fix="give a share such as 0.4")
    if request.cache_interval > 1:
        raise RequestError(
            "gate_start and cache_interval contradict each other: one keeps what the other one skips",
            fix="leave one of them out",
        )
    return start


def _refiner_start(request: Request, opened: Opened, manifest: Manifest) -> float | None:
    if request.refiner_start is None:
        return None
    start = checks.number("refiner_start", request.refiner_start, 0.0, 1.0)
    for name, value in (
        ("hires", request.hires), ("mask", opened.mask), ("outpaint", request.outpaint), ("fast", request.fast or None),
    ):  # fmt: skip
        if value is not None:
            raise RequestError(f"a refiner and {name} contradict each other", fix=f"leave the refiner out, or {name}")
    if manifest.needs_picture:
        raise RequestError(
            "a refiner goes on from a picture that is drawn from words, and this model needs a picture",
            fix="load the base model, and this one as its refiner",
        )
    return start


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


def _interval(value: Any, parse: Callable[[str], object]) -> str | None:
    if value is not None:
        parse(checks.text("guidance_interval", value))
    return value  # type: ignore[no-any-return]


def _sampler_and_spacing(request: Request, default: DefaultRequest) -> tuple[str, str | None]:
    """By their canonical names. A sampler's name that ends in a spacing's, as in DPM++ 2M Karras, chooses both.

    Where neither chooses a spacing it is the bundle's, if the sampler takes that one.
    """
    from tintype.sampling import sampler_named, spacing_named
    from tintype.sampling.layout import LAYOUTS

    sampler, implied = sampler_named(_either(request.sampler, default.sampler))
    chosen = None if request.sigmas is None else spacing_named(request.sigmas)
    if chosen is None:
        usual = default.sigmas if default.sigmas in LAYOUTS[sampler].spacings else None
        return sampler, usual if implied is None else implied
    if implied is not None and chosen != implied:
        raise RequestError(
            f"the sampler {request.sampler!r} and sigmas {request.sigmas!r} contradict each other",
            fix=f"leave sigmas out, or ask for the sampler {sampler}",
        )
    return sampler, chosen
