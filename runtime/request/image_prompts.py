"""The pictures that stand beside a request's words, and the IP-Adapter that reads them: opened, checked, recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tintype.bounds import MAX_IMAGE_PROMPTS
from tintype.errors import BundleError, RecordError, RequestError, near_names
from tintype.request import checks
from tintype.uses import IMAGE_ENCODER

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.adapters.ip_adapter import IPAdapterFile
    from tintype.bundle.image_encoder import ImageEncoder

# Each a picture, (picture, weight), (picture, weight, mask), a mapping of the names in FIELDS, or what is typed:
# PICTURE[=WEIGHT][,mask=MASK].
GivenImagePrompts: TypeAlias = "Sequence[Any]"

FIELDS = ("image", "weight", "mask")
MAX_WEIGHT = 10.0
ENCODER_FOLDER = "image_encoder"  # as it lies beside published adapters
_NUMBER = r"[+-]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9})"
_TYPED = re.compile(rf"(?P<image>.+?)(?:=(?P<weight>{_NUMBER}))?(?:,mask=(?P<mask>.+))?", re.DOTALL)
_FIX = "give PICTURE, PICTURE=WEIGHT or PICTURE=WEIGHT,mask=MASK, as in cat.png=0.6,mask=left.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class IPAdapterFacts:
    """The adapter of a request, and the image encoder that it is used with."""

    name: str  # of its file, without its ending
    sha256: str
    encoder: str  # its bundle's name
    encoder_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePromptFacts:
    """One picture beside the words."""

    image: str  # sha256 of its upright RGB pixels
    weight: float
    mask: str | None = None  # sha256 of the mask's upright values; None: it is looked at everywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePromptInput:
    """The picture itself, and where in what is drawn it is looked at."""

    picture: Image
    mask: Image | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInput:
    """An adapter, its image encoder, and the pictures that they are for."""

    file: IPAdapterFile
    encoder: ImageEncoder
    prompts: tuple[ImagePromptInput, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenImagePrompt:
    """One picture as a caller said it."""

    image: Any
    weight: float = 1.0
    mask: Any = None


def open_image_prompts(
    adapter: str | os.PathLike[str] | None, encoder: str | os.PathLike[str] | None, given: GivenImagePrompts
) -> tuple[IPAdapterFacts, tuple[ImagePromptFacts, ...], AdapterInput] | None:
    """Open an adapter, its encoder and the pictures; None where nothing of them is given.

    Raises RequestError for what can't be done, BundleError for an encoder that isn't whole.
    """
    prompts = _listed(given)
    if adapter is None:
        if prompts:
            raise RequestError(
                "image prompts are given without an IP-Adapter",
                fix="give the adapter's file too: ip_adapter=, or --ip-adapter FILE",
            )
        if encoder is not None:
            raise RequestError(
                "an image encoder is given without an IP-Adapter", fix="give ip_adapter=, or --ip-adapter FILE"
            )
        return None
    if not prompts:
        raise RequestError(
            "an IP-Adapter is given without a picture",
            fix="give one: image_prompts=[(PICTURE, WEIGHT)], or --image-prompt PICTURE=WEIGHT",
        )
    if not isinstance(adapter, str | os.PathLike):
        raise RequestError(
            f"{type(adapter).__name__} is no IP-Adapter",
            fix="give one .safetensors file, which reads all image prompts",
        )
    from tintype.adapters.ip_adapter import open_ip_adapter

    read = [read_image_prompt(each) for each in prompts]
    file = open_ip_adapter(adapter)
    opened = _open_encoder(encoder, file)
    facts, inputs = zip(*map(_open_prompt, read), strict=True)
    name = "".join(letter if letter.isprintable() else "?" for letter in file.name)[:200] or "?"
    known = IPAdapterFacts(name=name, sha256=file.sha256, encoder=opened.name, encoder_hash=opened.hash)
    return known, facts, AdapterInput(file=file, encoder=opened, prompts=inputs)


def _listed(given: object) -> Sequence[Any]:
    if given is None:
        return ()
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise RequestError(
            f"image_prompts is {type(given).__name__}, and no list of pictures", fix="give [(PICTURE, WEIGHT), ...]"
        )
    if len(given) > MAX_IMAGE_PROMPTS:
        raise RequestError(
            f"{len(given):,} image prompts are given; {MAX_IMAGE_PROMPTS} are the most", fix="leave some out"
        )
    return given


def read_image_prompt(given: object) -> GivenImagePrompt:
    """One picture of a list, however it was said. Raises RequestError."""
    if isinstance(given, GivenImagePrompt):
        return given
    if isinstance(given, str) and not Path(given).is_file():  # a file may be called so
        found = _TYPED.fullmatch(given)
        if found is None:
            raise RequestError("an image prompt is empty", fix=_FIX)
        weight = 1.0 if found["weight"] is None else float(found["weight"])
        return _checked(GivenImagePrompt(image=found["image"], weight=weight, mask=found["mask"]))
    if isinstance(given, tuple | list):
        if not 1 <= len(given) <= len(FIELDS):
            raise RequestError(f"an image prompt of {len(given)} parts is none", fix="give (PICTURE, WEIGHT)")
        given = dict(zip(FIELDS, given, strict=False))
    if not isinstance(given, Mapping):
        return GivenImagePrompt(image=given)
    for name in given:
        if name not in FIELDS:
            raise RequestError(f"an image prompt has no {str(name)[:60]!r}", fix=near_names(str(name)[:60], FIELDS))
    if given.get("image") is None:
        raise RequestError("an image prompt has no image", fix='give (PICTURE, WEIGHT), or dict(image="cat.png")')
    return _checked(GivenImagePrompt(**{name: value for name, value in given.items() if value is not None}))


def _checked(prompt: GivenImagePrompt) -> GivenImagePrompt:
    checks.number("an image prompt's weight", prompt.weight, -MAX_WEIGHT, MAX_WEIGHT)
    return prompt


def _open_prompt(given: GivenImagePrompt) -> tuple[ImagePromptFacts, ImagePromptInput]:
    from tintype.image.mask import open_mask
    from tintype.image.source import open_picture, picture_bytes_hash

    picture = open_picture(given.image, what="image prompt")
    mask = None if given.mask is None else open_mask(given.mask)
    facts = ImagePromptFacts(
        image=picture_bytes_hash(picture),
        weight=float(given.weight),
        mask=None if mask is None else picture_bytes_hash(mask),
    )
    return facts, ImagePromptInput(picture=picture, mask=mask)


def _open_encoder(given: str | os.PathLike[str] | None, file: IPAdapterFile) -> ImageEncoder:
    """The encoder that was given, or that lies beside an adapter, if the adapter takes what it says."""
    from tintype.bundle.image_encoder import open_image_encoder

    encoder = open_image_encoder(_beside(file) if given is None else given)
    theirs = encoder.manifest.states[1] if file.takes_states else encoder.manifest.embedding
    if theirs != file.encoder:
        raise RequestError(
            f"{file.path} takes {file.encoder:,} numbers of an image encoder, and {encoder.name} gives {theirs:,}",
            fix="give the image encoder that it was trained with: --image-encoder BUNDLE; most take ViT-H's, XL's "
            "without vit-h in their names ViT-bigG's",
        )
    return encoder


def encoder_beside(file: IPAdapterFile) -> tuple[Path | None, Path | None]:
    """Of the image encoders that lie as published adapters' do the first bundle, and the first checkpoint that is one
    for this adapter. Raises ExportError for a checkpoint's config that can't be read."""
    from tintype.bundle.one_graph import family_beside
    from tintype.sources.folder import CONFIG, is_image_encoder, read_config

    number = "hidden_size" if file.takes_states else "projection_dim"
    near = file.path.absolute().parent
    folders = [near / ENCODER_FOLDER, near.parent / ENCODER_FOLDER, near.parent / "models" / ENCODER_FOLDER]
    bundle = next((folder for folder in folders if family_beside(folder) == IMAGE_ENCODER), None)
    checkpoints = (folder for folder in folders if is_image_encoder(folder))
    return bundle, next((each for each in checkpoints if read_config(each / CONFIG).get(number) == file.encoder), None)


def _beside(file: IPAdapterFile) -> Path:
    """The bundle of the encoder that lies beside an adapter. Raises BundleError with how one is made."""
    bundle, checkpoint = encoder_beside(file)
    if bundle is not None:
        return bundle
    source = ENCODER_FOLDER if checkpoint is None else checkpoint
    told = "" if checkpoint is None else f"; {checkpoint} is a checkpoint of one"
    raise BundleError(
        f"{file.path} needs an image encoder, and none is given{told}",
        fix=f"export it once: tintype export {source} BUNDLE; then give it: image_encoder=, or --image-encoder BUNDLE",
    )


def demand_image_prompt_facts(adapter: IPAdapterFacts | None, prompts: Sequence[ImagePromptFacts]) -> None:
    """RequestError where facts that somebody else wrote down are not such as `open_image_prompts` gives."""
    _listed(prompts)
    if (adapter is None) != (not prompts):
        raise RequestError("image prompts and an IP-Adapter go together", fix="give both, or none")
    digests = [] if adapter is None else [adapter.sha256, adapter.encoder_hash]
    for each in prompts:
        digests += [each.image, *([] if each.mask is None else [each.mask])]
        checks.number("an image prompt's weight", each.weight, -MAX_WEIGHT, MAX_WEIGHT)
    for digits in digests:
        if re.fullmatch("[0-9a-f]{64}", digits) is None:
            raise RequestError("a sha256 of an image prompt is none", fix="give 64 hexadecimal digits")
    for name in () if adapter is None else (adapter.name, adapter.encoder):
        if not 0 < len(name) <= 200 or not name.isprintable():
            raise RequestError("an IP-Adapter has no name", fix="give its file's")


def image_prompts_again(
    adapter: IPAdapterFacts | None, known: Sequence[ImagePromptFacts], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The adapter and the pictures of a record, to be asked for again. given: inputs by the name of their field.

    Raises RecordError where one is missing, or says otherwise.
    """
    file, prompts = given.get("ip_adapter"), _listed(given.get("image_prompts") or ())
    if adapter is None:
        if file is not None or prompts:
            raise RecordError("the record's picture had no image prompt", fix="leave ip_adapter and image_prompts out")
        return {}
    if file is None:
        raise RecordError(
            f"the record's picture was drawn with the IP-Adapter {adapter.name}, sha256 {adapter.sha256[:12]}",
            fix="give that file: ip_adapter=, or --ip-adapter FILE",
        )
    if len(prompts) != len(known):
        each = ", ".join(f"sha256 {prompt.image[:12]}" for prompt in known)
        raise RecordError(
            f"the record's picture had {len(known)} image prompts ({each}), and {len(prompts)} are given",
            fix="give each, in this order: image_prompts=[PICTURE, ...], or --image-prompt PICTURE",
        )
    again = []
    for was, each in zip(known, prompts, strict=True):
        said = read_image_prompt(each)
        if said.weight not in (1.0, was.weight):
            raise RecordError(
                f"the record's image prompt has a weight of {was.weight:g}, not {said.weight:g}",
                fix="leave the weight out",
            )
        if (was.mask is None) != (said.mask is None):
            told = "has no mask" if was.mask is None else f"has a mask, sha256 {was.mask[:12]}"
            fix = "leave it out" if was.mask is None else "give it: PICTURE,mask=MASK"
            raise RecordError(f"the record's image prompt {told}", fix=fix)
        again.append(GivenImagePrompt(image=said.image, weight=was.weight, mask=said.mask))
    return {"ip_adapter": file, "image_encoder": given.get("image_encoder"), "image_prompts": again}


def demand_same_image_prompts(
    was: tuple[IPAdapterFacts | None, Sequence[ImagePromptFacts]],
    now: tuple[IPAdapterFacts | None, Sequence[ImagePromptFacts]],
) -> None:
    """RecordError where an adapter, its encoder or a picture isn't that of a record."""
    (before, known), (here, given) = was, now
    if before is not None and here is not None:
        if before.sha256 != here.sha256:
            raise RecordError(
                f"the record's picture was drawn with the IP-Adapter {before.name} {before.sha256[:12]}, and this is "
                f"{here.name} {here.sha256[:12]}",
                fix="give the file that it was drawn with",
            )
        if before.encoder_hash != here.encoder_hash:
            raise RecordError(
                f"the record's image prompts were read by {before.encoder} {before.encoder_hash[:12]}, and this is "
                f"{here.encoder} {here.encoder_hash[:12]}",
                fix="give the image encoder that it was drawn with: image_encoder=, or --image-encoder BUNDLE",
            )
    for old, new in zip(known, given, strict=True):
        if old != new:
            what = "image prompt" if old.image != new.image else "mask of an image prompt"
            raise RecordError(f"the record's picture had another {what}", fix="give that one, unchanged")
