"""Pictures beside the words -> keys and values that the denoiser's cross-attentions look at, and where."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tintype.adapters.image_projection import image_tokens, keys_and_values
from tintype.bundle.image_encoder import EMBEDS, PICTURE, STATES
from tintype.errors import RequestError
from tintype.families.image_prompts import MASK, NO_PICTURES, TOKENS, FittedImagePrompts, SeenPictures, is_told
from tintype.image.decode import demand_shape
from tintype.image.encoded import clip_samples
from tintype.image.masked_tokens import token_mask
from tintype.stages.context import Context
from tintype.uses import GraphUse


def look(ctx: Context) -> SeenPictures:
    """What comes of a run's image prompts, once for all of its pictures."""
    fitted = ctx.image_prompts
    if fitted is None:
        return NO_PICTURES
    use = ctx.use(fitted.encoder.ref.role)
    with ctx.clock.counting("encode"), ctx.graphs.phase(use):
        seen = [_seen(ctx, fitted, use, prompt) for prompt in _samples(fitted)]
        unseen = _unseen(ctx, fitted, use, seen[0])
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are refused below
        tokens = _tokens(fitted, np.concatenate(seen), unseen)
    if not all(np.isfinite(values).all() for values in tokens.values()):
        raise RequestError(
            f"what {fitted.file.path} makes of these pictures grows beyond all numbers",
            fix="give smaller weights, or download the IP-Adapter again",
        )
    return SeenPictures(tokens, _masks(ctx, fitted) if fitted.is_masked else {})


def _tokens(
    fitted: FittedImagePrompts, seen: NDArray[np.float32], unseen: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Keys and values, see `SeenPictures`. seen: of each picture. unseen: of none, (1, ...)."""
    both = np.concatenate([image_tokens(fitted.file, seen), image_tokens(fitted.file, unseen)])
    weights = np.array([weight for weight, _ in fitted.prompts], np.float32)[:, np.newaxis, np.newaxis]
    tokens = {}
    for (layer, _), (keys, values) in zip(fitted.layers, keys_and_values(fitted.file, both), strict=True):
        for name, made, factor in (("key", keys, np.float32(1)), ("value", values, weights)):
            without = made[-1:].repeat(len(seen), axis=0)
            rows = [(half * factor).reshape(1, -1, made.shape[-1]) for half in (without, made[:-1])]
            tokens[f"{TOKENS}.{layer}.{name}"] = np.concatenate(rows)
    return tokens


def _samples(fitted: FittedImagePrompts) -> list[NDArray[np.float32]]:
    manifest = fitted.encoder.manifest
    return [clip_samples(prompt.picture, manifest.side, manifest.mean, manifest.std) for _, prompt in fitted.prompts]


def _seen(ctx: Context, fitted: FittedImagePrompts, use: GraphUse, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the adapter takes of one picture, (1, ...)."""
    manifest = fitted.encoder.manifest
    name, shape = (STATES, manifest.states) if fitted.file.takes_states else (EMBEDS, (manifest.embedding,))
    outputs = ctx.graphs.call(use, {PICTURE: samples}, who="the image encoder")
    features = outputs[name].astype(np.float32, copy=False)
    demand_shape("the image encoder", features, (1, *shape))
    return features


def _unseen(ctx: Context, fitted: FittedImagePrompts, use: GraphUse, like: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same for what sees none: zeros, or what the encoder says of zeros."""
    if fitted.file.takes_states and not all(map(is_told, ctx.branches)):
        side = fitted.encoder.manifest.side
        return _seen(ctx, fitted, use, np.zeros((1, 3, side, side), np.float32))
    return np.zeros_like(like)


def _masks(ctx: Context, fitted: FittedImagePrompts) -> dict[str, NDArray[np.float32]]:
    """Where each picture is looked at, by the tokens of what is drawn; one without a mask everywhere."""
    from tintype.image.fit import fit

    size = ctx.request.width, ctx.request.height
    masks = [None if each.mask is None else fit(each.mask, *size, "stretch") for _, each in fitted.prompts]
    cells = [side // ctx.bundle.manifest.vae_scale_factor for side in (ctx.request.height, ctx.request.width)]
    found = {}
    for level in {level for _, level in fitted.layers}:
        rows, columns = (-(-side // 2**level) for side in cells)
        shares = [np.ones(rows * columns, np.float32) if m is None else token_mask(m, rows, columns) for m in masks]
        found[f"{MASK}.{rows * columns}"] = np.stack(shares)[:, :, np.newaxis]
    return found
