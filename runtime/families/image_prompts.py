"""How pictures beside the words take part in a request: for every family alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tintype.adapters.ip_adapter import IPAdapterFile
from tintype.adapters.joined import FAMILIES
from tintype.bundle.image_encoder import ImageEncoder
from tintype.errors import RequestError
from tintype.families.base import Branch
from tintype.families.control import UNWANTED
from tintype.request import ResolvedRequest
from tintype.request.image_prompts import ImagePromptInput
from tintype.uses import LOOK, GraphUse, ImageTokens

UNTOLD = (UNWANTED, "picture")  # names of branches that don't see them, as diffusers has it
# A file's matrices are in the order in which diffusers goes through a UNet's attentions: the middle comes last.
_PARTS = ("down_blocks", "up_blocks", "mid_block")
_CROSS = ".attn2.to_k"


TOKENS, MASK = "image_tokens", "image_mask"  # of the denoiser's inputs: image_tokens.LAYER.key, image_mask.QUERIES


@dataclass(frozen=True, slots=True)
class SeenPictures:
    """What the denoiser takes of image prompts. tokens: by input, (2, tokens, channels), first of what sees none.

    masks: by input, (pictures, queries, 1).
    """

    tokens: Mapping[str, NDArray[np.float32]]
    masks: Mapping[str, NDArray[np.float32]]

    def inputs(self, branches: Sequence[Branch], pictures: int) -> dict[str, NDArray[np.float32]]:
        """For a call of these branches with so many pictures each."""
        rows = [int(is_told(branch)) for branch in branches]
        return {**{name: np.repeat(both[rows], pictures, axis=0) for name, both in self.tokens.items()}, **self.masks}


NO_PICTURES = SeenPictures({}, {})


@dataclass(frozen=True, slots=True)
class FittedImagePrompts:
    """A request's image prompts on one model.

    prompts: those with a weight, and that weight; others have no part. layers: the model's cross-attentions in the
    order of the adapter's matrices, with how often the latents were halved where each is.
    """

    file: IPAdapterFile
    encoder: ImageEncoder
    prompts: tuple[tuple[float, ImagePromptInput], ...] = field(repr=False)
    layers: tuple[tuple[str, int], ...]

    @property
    def tokens_each(self) -> int:
        """Of one picture."""
        return self.encoder.manifest.states[0] if self.file.tokens is None else self.file.tokens

    @property
    def is_masked(self) -> bool:
        return any(prompt.mask is not None for _, prompt in self.prompts)

    @property
    def tokens(self) -> ImageTokens:
        """What the denoiser takes: all pictures' tokens together, or inside masks each one's apart."""
        count = len(self.prompts)
        return ImageTokens(self.tokens_each, count) if self.is_masked else ImageTokens(self.tokens_each * count)

    def use(self, branches: Sequence[Branch]) -> GraphUse:
        """Of the image encoder, which looks at each picture once, and at none where a branch sees none of them."""
        empty = self.file.takes_states and any(not is_told(branch) for branch in branches)
        calls = len(self.prompts) + empty
        return GraphUse(ref=self.encoder.ref, phase=LOOK, dims={"batch": 1}, calls=calls)

    def held_bytes(self, rows: int) -> int:
        """Keys and values of what is told and what isn't, those of so many rows of a call, and what is read to make
        them."""
        width = sum(self.file.width(pair) for pair in range(len(self.layers)))
        largest = max(4 * facts.size for facts in self.file.header.tensors.values())
        return (2 + rows) * 2 * 4 * self.tokens_each * len(self.prompts) * width + 3 * largest


def is_told(branch: Branch) -> bool:
    """Whether a branch sees a request's image prompts."""
    return branch.name not in UNTOLD


def fitted_image_prompts(
    request: ResolvedRequest, shapes: Mapping[str, tuple[int, ...]], model: str
) -> FittedImagePrompts | None:
    """A request's image prompts on a model, called `model`; None where none has a weight.

    shapes: of the denoiser's layers. Raises RequestError for an adapter of another model.
    """
    given = request.inputs.adapter
    if given is None:
        return None
    layers = _cross_attentions(shapes)
    demand_fitting(given.file, {name: shapes[f"{name}.attn2.to_k"] for name, _ in layers}, model)
    pairs = zip(request.image_prompts, given.prompts, strict=True)
    prompts = tuple((facts.weight, prompt) for facts, prompt in pairs if facts.weight)
    named = tuple((f"{name}.attn2", level) for name, level in layers)
    return FittedImagePrompts(given.file, given.encoder, prompts, named) if prompts else None


def _cross_attentions(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    """The blocks that have one, in the order of files, and how often the latents were halved there."""
    downs = (re.match(r"down_blocks\.(\d+)", name) for name in shapes)
    levels = 1 + max((int(each[1]) for each in downs if each is not None), default=0)
    found = []
    for name in shapes:
        part, _, rest = name.partition(".")
        if not name.endswith(_CROSS) or part not in _PARTS:
            continue
        numbers = tuple(map(int, re.findall(r"\d+", rest.removesuffix(_CROSS))))
        level = {"down_blocks": numbers[0], "up_blocks": levels - 1 - numbers[0], "mid_block": levels - 1}[part]
        found.append(((_PARTS.index(part), numbers), name.removesuffix(_CROSS), level))
    return [(name, level) for _, name, level in sorted(found)]


def demand_fitting(file: IPAdapterFile, keys: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raises RequestError for an adapter of another model.

    keys: of each cross-attention the shape of what makes its keys, (channels, words).
    """
    if not keys:
        raise RequestError(f"{model} has no cross-attention that could look at pictures", fix="leave ip_adapter out")
    words = next(iter(keys.values()))[1]
    ours, theirs = (FAMILIES.get(width, f"a model with words of {width:,} numbers") for width in (words, file.words))
    fix = f"give an IP-Adapter for {ours}, or a bundle of the model that it was made for"
    if file.words != words:
        raise RequestError(f"{file.path} is an IP-Adapter of {theirs}, and {model} is {ours}", fix=fix)
    if len(file.pairs) != len(keys):
        raise RequestError(
            f"{file.path} is for {len(file.pairs)} cross-attentions, and {model} has {len(keys)}", fix=fix
        )
    for pair, (name, (channels, _)) in enumerate(keys.items()):
        if file.width(pair) != channels:
            raise RequestError(
                f"{file.path} doesn't fit {model}: {file.key_name(pair)} makes {file.width(pair):,} channels, and "
                f"{name} has {channels:,}",
                fix=fix,
            )
