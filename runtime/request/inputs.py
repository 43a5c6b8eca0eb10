"""The pictures and latents that a request begins with: opened, fitted and checked, and what its record keeps of them.

A record keeps hashes, never a picture; who makes one again gives the same inputs once more.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype.errors import RequestError
from tintype.request import checks
from tintype.request.control import (
    ControlFacts,
    ControlInput,
    demand_control_facts,
    demand_one_that_guesses,
    open_control,
)
from tintype.request.embeddings import EmbeddingFacts, demand_embedding_facts, open_embeddings
from tintype.request.fields import Request
from tintype.request.given_latents import array_hash, dims, open_latents
from tintype.request.image_prompts import (
    AdapterInput,
    ImagePromptFacts,
    IPAdapterFacts,
    demand_image_prompt_facts,
    open_image_prompts,
)
from tintype.request.together import demand_together

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from tintype.adapters.facts import LoraFacts
    from tintype.adapters.given import GivenLora
    from tintype.arrays import Latents, Pixels
    from tintype.bundle.manifest import Manifest
    from tintype.bundle.opening import BesideModels
    from tintype.image.source import Source
    from tintype.prompt import AddedWords

KEEP_OUTSIDE = ("model", "exact")  # outside a mask: what the model makes of the picture, or the picture's own bytes
IMAGE_STRENGTH, MASK_STRENGTH = 0.75, 1.0  # what a request with a picture, or with a mask, has by default


@dataclass(frozen=True, slots=True, kw_only=True)
class InitImage:
    """The picture that a request began with."""

    sha256: str  # of its upright RGB pixels, before they were fitted
    width: int
    height: int
    strength: float
    fit: str
    background: str
    outpaint: str | None = None  # margins in pixels, left,top,right,bottom
    parent: str | None = None  # sha256 of its own record's text
    latents: bool = False  # it was given as latents, and is of the size that is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Where a request made its picture new."""

    sha256: str | None  # of its upright values; None where the margins of outpainting are all of it
    grow: int
    blur: float
    keep_outside: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The arrays themselves, as the stages take them."""

    pixels: Pixels | None = None  # (1, height, width, 3), of the request's size
    picture: Latents | None = None  # what they would be encoded to, (1 or count, channels, height, width)
    mask: NDArray[np.float32] | None = None  # (height, width), 1 is made new
    latents: Latents | None = None  # noise of unit variance, (count, channels, height, width), in latent cells
    loras: tuple[GivenLora, ...] = ()  # those that were given, in the order of the request's own
    file: Path | None = None  # that the picture was read from, where it was one
    words: AddedWords | None = None  # that prompts may have beside the model's own
    control: tuple[ControlInput, ...] = ()
    adapter: AdapterInput | None = None

    @property
    def beside(self) -> tuple[BesideModels, ...]:
        """The bundles that it is drawn with beside the model."""
        return (*(each.net for each in self.control), *([] if self.adapter is None else [self.adapter.encoder]))


NO_INPUTS = Inputs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What came of a request's inputs: their size in pixels where they decide it, facts for the record, arrays."""

    size: tuple[int, int] | None
    image: InitImage | None = None
    mask: Mask | None = None
    latents: str | None = None  # sha256
    loras: tuple[LoraFacts, ...] = ()
    embeddings: tuple[EmbeddingFacts, ...] = ()
    control: tuple[ControlFacts, ...] = ()
    ip_adapter: IPAdapterFacts | None = None
    image_prompts: tuple[ImagePromptFacts, ...] = ()
    inputs: Inputs = NO_INPUTS


def open_inputs(request: Request, manifest: Manifest) -> Opened:
    """Open what a request begins with, and what it brings beside but LoRAs. Raises RequestError, each with what would
    work."""
    opened = _open_pictures(request, manifest)
    if request.embeddings:
        facts, words = open_embeddings(request.embeddings, manifest)
        opened = replace(opened, embeddings=facts, inputs=replace(opened.inputs, words=words))
    found = open_image_prompts(request.ip_adapter, request.image_encoder, request.image_prompts)
    if found is not None:
        adapter, prompts, given = found
        opened = replace(opened, ip_adapter=adapter, image_prompts=prompts)
        opened = replace(opened, inputs=replace(opened.inputs, adapter=given))
    return _with_control(opened, request, manifest) if request.control else opened


def _with_control(opened: Opened, request: Request, manifest: Manifest) -> Opened:
    """With what controls it; where nothing else does, the first one's picture decides the size."""
    from tintype.image.fit import size_for

    facts, control = open_control(request.control, request.control_preprocess, request.fit, manifest)
    if request.control_guess:
        demand_one_that_guesses(control)
    size = opened.size or _size(request, manifest, control[0].picture, size_for)
    return replace(opened, size=size, control=facts, inputs=replace(opened.inputs, control=control))


def _open_pictures(request: Request, manifest: Manifest) -> Opened:
    demand_together(request, manifest)
    if request.image is None:
        given = None if request.latents is None else open_latents(request.latents)
        if given is None:
            return Opened(size=None)
        sides = (side * manifest.vae_scale_factor for side in (given.shape[3], given.shape[2]))
        width, height = sides
        return Opened(size=(width, height), latents=array_hash(given), inputs=Inputs(latents=given))
    return _open_image(request, manifest)


def demand_facts(known: Opened) -> None:
    """RequestError where facts of inputs, which somebody else wrote down, are not such as `open_inputs` gives."""
    image, mask, latents = known.image, known.mask, known.latents
    demand_embedding_facts(known.embeddings)
    demand_control_facts(known.control)
    demand_image_prompt_facts(known.ip_adapter, known.image_prompts)
    if image is not None:
        from tintype.image.canvas import Margins
        from tintype.image.fit import FITS
        from tintype.image.source import MAX_PIXELS, colour_of

        _demand_hash("image", image.sha256)
        checks.whole_number("the picture's width", image.width, 1, MAX_PIXELS)
        checks.whole_number("the picture's height", image.height, 1, MAX_PIXELS)
        checks.number("strength", image.strength, 0.0, 1.0)
        checks.name("fit", image.fit, FITS)
        colour_of(image.background)
        if image.outpaint is not None:
            Margins.parse(image.outpaint)
        if image.parent is not None:
            _demand_hash("the picture's own record", image.parent)
    if mask is not None:
        from tintype.image.mask import MAX_BLUR, MAX_GROW

        if image is None:
            raise RequestError("mask is given without a picture", fix="give the picture too: image=, or --image FILE")
        if mask.sha256 is not None:
            _demand_hash("mask", mask.sha256)
        checks.whole_number("mask_grow", mask.grow, -MAX_GROW, MAX_GROW)
        checks.number("mask_blur", mask.blur, 0.0, MAX_BLUR)
        checks.name("keep_outside", mask.keep_outside, KEEP_OUTSIDE)
    if latents is not None:
        _demand_hash("latents", latents)


def _demand_hash(what: str, sha256: str) -> None:
    if re.fullmatch("[0-9a-f]{64}", sha256) is None:
        raise RequestError(f"the sha256 of {what} is none", fix="give 64 hexadecimal digits")


def _default_strength(request: Request, manifest: Manifest) -> float:
    """What a request with a picture has where it says nothing."""
    if manifest.is_editing or request.mask is not None or request.outpaint is not None:
        return MASK_STRENGTH
    default = manifest.defaults(fast=request.fast)
    steps = request.num_inference_steps or default.num_inference_steps
    one_step = 1 / max(1, steps) if isinstance(steps, int) else 0.0  # what a model of one step takes
    return max(IMAGE_STRENGTH if default.strength is None else default.strength, one_step)


def _open_image(request: Request, manifest: Manifest) -> Opened:
    import numpy as np

    from tintype.image.canvas import Margins, extend
    from tintype.image.fit import FITS, fit, size_for
    from tintype.image.source import open_picture, picture_bytes_hash

    assert request.image is not None
    how = checks.name("fit", request.fit, FITS)
    strength = _default_strength(request, manifest) if request.strength is None else request.strength
    strength = checks.number("strength", strength, 0.0, 1.0)
    if getattr(request.image, "ndim", 0) == 4:
        return _open_encoded(request, manifest, strength)
    picture = open_picture(request.image, background=request.background)
    facts = InitImage(
        sha256=picture_bytes_hash(picture),
        width=picture.width,
        height=picture.height,
        strength=strength,
        fit=how,
        background=request.background,
        outpaint=request.outpaint,
        parent=_parent_of(request.image),
    )
    mask_facts, mask = _open_mask(request, picture)
    if request.outpaint is not None:
        margins = Margins.parse(request.outpaint)
        picture, beyond = extend(picture, margins)
        mask = beyond if mask is None else _joined(mask, beyond, (margins.left, margins.top))
    width, height = size = _size(request, manifest, picture, size_for)
    pixels = np.asarray(fit(picture, width, height, how))[np.newaxis]
    values = None if mask is None else _prepared(request, mask, size, manifest)
    file = Path(request.image).absolute() if isinstance(request.image, str | os.PathLike) else None
    return Opened(size=size, image=facts, mask=mask_facts, inputs=Inputs(pixels=pixels, mask=values, file=file))


def _open_encoded(request: Request, manifest: Manifest, strength: float) -> Opened:
    """A picture that is there as latents, of an earlier run."""
    from PIL import Image

    given = open_latents(request.image)  # type: ignore[arg-type]
    if given.shape[1] != manifest.latent_channels or len(given) not in (1, request.count):
        wanted = f"1 or {request.count} of {manifest.latent_channels} channels"
        raise RequestError(f"the picture's latents are {dims(given.shape)}, not {wanted}", fix="give result.latents")
    if request.outpaint is not None or request.keep_outside == "exact" or manifest.is_inpainting:
        wrong = "a picture given as latents has no pixels to keep, to extend or to hide"
        raise RequestError(wrong, fix="give the picture itself")
    height, width = (side * manifest.vae_scale_factor for side in given.shape[2:])
    asked = (request.width or width, request.height or height)
    if asked != (width, height):
        raise RequestError(f"the picture's latents are of {width}x{height} pixels", fix="leave the size out")
    facts = InitImage(
        sha256=array_hash(given),
        width=width,
        height=height,
        strength=strength,
        fit=request.fit,
        background=request.background,
        latents=True,
    )
    mask_facts, mask = _open_mask(request, Image.new("L", (width, height)))
    values = None if mask is None else _prepared(request, mask, (width, height), manifest)
    return Opened(size=(width, height), image=facts, mask=mask_facts, inputs=Inputs(picture=given, mask=values))


def _open_mask(request: Request, picture: Image) -> tuple[Mask | None, Image | None]:
    """A mask of the picture before it is extended; facts alone where only the margins are made new."""
    from tintype.image.mask import MAX_BLUR, MAX_GROW, demand_same_size, open_mask
    from tintype.image.source import picture_bytes_hash

    if request.mask is None and request.outpaint is None:
        return None, None
    mask = None if request.mask is None else open_mask(request.mask)
    if mask is not None:
        demand_same_size(mask, picture)
    facts = Mask(
        sha256=None if mask is None else picture_bytes_hash(mask),
        grow=checks.whole_number("mask_grow", request.mask_grow, -MAX_GROW, MAX_GROW),
        blur=checks.number("mask_blur", request.mask_blur, 0.0, MAX_BLUR),
        keep_outside=checks.name("keep_outside", request.keep_outside, KEEP_OUTSIDE),
    )
    return facts, mask


def _prepared(request: Request, mask: Image, size: tuple[int, int], manifest: Manifest) -> NDArray[np.float32]:
    from tintype.image.fit import fit
    from tintype.image.mask import is_new, prepare_mask

    whole, mask = mask, fit(mask, *size, request.fit)
    if mask.getbbox() is None and whole.getbbox() is not None:
        raise RequestError(
            f"{request.fit} leaves nothing white of the mask", fix="ask for the picture's own shape, or for fit pad"
        )
    values = prepare_mask(mask, grow=request.mask_grow, blur=request.mask_blur)
    if manifest.is_inpainting and not is_new(values).any():
        raise RequestError(
            "nothing of the mask is as much as half white, and this model makes nothing else new",
            fix="paint it whiter, or blur it less",
        )
    return values


def _joined(mask: Image, beyond: Image, corner: tuple[int, int]) -> Image:
    """White where either is: a mask of the picture, and that of the canvas around it."""
    from PIL import Image, ImageChops

    placed = Image.new("L", beyond.size, 0)
    placed.paste(mask, corner)
    return ImageChops.lighter(placed, beyond)


def _size(request: Request, manifest: Manifest, picture: Image, size_for: Any) -> tuple[int, int]:
    """The request's own size, or one after the picture's; where only one side is given, the other is the default's."""
    default = manifest.default_request
    if request.width is None and request.height is None:
        width, height = size_for(picture.size, (default.width, default.height), manifest.size)
        return width, height
    width = checks.side("width", default.width if request.width is None else request.width, manifest.size)
    height = checks.side("height", default.height if request.height is None else request.height, manifest.size)
    return width, height


def _parent_of(source: Source) -> str | None:
    """The hash of the record in a picture's file, or in Pillow's texts of it; None where it has none."""
    from tintype.errors import RecordError
    from tintype.image.png import RECORD_KEY, read_texts

    text = None
    if isinstance(source, str | os.PathLike):
        try:
            text = read_texts(source).get(RECORD_KEY)
        except RecordError:  # no PNG
            return None
    elif hasattr(source, "info"):
        text = source.info.get(RECORD_KEY)
    return hashlib.sha256(text.encode()).hexdigest() if isinstance(text, str) else None
