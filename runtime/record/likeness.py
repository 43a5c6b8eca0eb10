"""A request like that of another picture, as far as ours can ask for it, and a sentence for all that it can't.

What it was read from was made by strangers: every value goes through a request's own checks before anything is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

from tintype.bundle import Bundle
from tintype.bundle.manifest import XL, SizeLimits
from tintype.request import Request, RequestFields, make_request

MAX_LEFT_OUT = 40  # sentences
MAX_VALUE_CHARS = 100  # of what a sentence quotes
OF_FAST = ("fast", "num_inference_steps", "guidance_scale", "sampler", "sigmas", "eta")
OF_MASK = ("mask_grow", "mask_blur", "keep_outside")


@dataclass(frozen=True, slots=True)
class ClipLayer:
    """The text encoder's layer that was read, counted from the last, which is 1."""

    from_last: int
    also_of_xl: bool  # A1111 reads XL's own layer, whatever it is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """A request like that of another picture; `like` reads it, and `for_bundle` says what it is for a model.

    left_out: a sentence for each thing that it could not take. model, model_hash: what the other picture was drawn
    with. of_image: what the request has besides where a picture to begin with is given for it again.
    """

    fields: Mapping[str, Any]  # of `Request`, by name
    left_out: tuple[str, ...] = ()
    model: str | None = None
    model_hash: str | None = None
    clip_layer: ClipLayer | None = None
    of_image: Mapping[str, Any] = field(default_factory=dict)

    def request(self, prompt: str | None = None, **own: Unpack[RequestFields]) -> Request:
        """The request, with the caller's own prompt and fields in place of those that were read."""
        known = {**self.fields, **(self.of_image if own.get("image") is not None else {})}
        if all({**known, **own}.get(name) is None for name in ("mask", "outpaint")):
            known = {name: value for name, value in known.items() if name not in OF_MASK}
        if "sampler" in own:  # a spacing may be none of another sampler's
            known.pop("sigmas", None)
        words = known.pop("prompt", "") if prompt is None else prompt
        return make_request(Request(**{**known, "prompt": words}), own)

    def for_bundle(self, bundle: Bundle) -> Likeness:
        """The same as far as a bundle can draw it: in a size that it makes, with the layers that its encoders give."""
        fields, left_out = dict(self.fields), list(self.left_out)
        if not self._is_of(bundle):
            named = ", ".join(filter(None, (self.model, self.model_hash)))
            left_out.append(f"the model {quoted(named)}: this is {bundle.name}")
        for side in ("width", "height"):
            if side in fields:
                made = _nearest_side(fields[side], bundle.manifest.size)
                if made != fields[side]:
                    left_out.append(f"a {side} of {fields[side]} pixels: this model makes {made}")
                fields[side] = made
        if fields.get("fast") and bundle.manifest.fast is None:
            left_out.append("the fast denoiser, and how it is drawn with: this model has none")
            fields = {name: value for name, value in fields.items() if name not in OF_FAST}
        if self.clip_layer is not None:
            skip = self._clip_skip(bundle, left_out)
            if skip:
                fields["clip_skip"] = skip
        return dataclasses.replace(self, fields=fields, left_out=tuple(left_out), clip_layer=None)

    def _is_of(self, bundle: Bundle) -> bool:
        if self.model is None and self.model_hash is None:
            return True
        hashes = [each for each in (bundle.hash, bundle.manifest.source.sha256) if each]
        if self.model_hash:
            return any(each.startswith(self.model_hash.lower()) for each in hashes)
        return self.model == bundle.name

    def _clip_skip(self, bundle: Bundle, left_out: list[str]) -> int:
        """diffusers' count; sentences for what is not to be had are added."""
        assert self.clip_layer is not None
        is_xl = bundle.manifest.family == XL
        if is_xl and not self.clip_layer.also_of_xl:
            return 0
        skip = self.clip_layer.from_last - (2 if is_xl else 1)
        most = bundle.manifest.clip_skips
        if not 0 <= skip <= most:
            fix = "" if most else "; export the checkpoint again to have it"
            left_out.append(f"layer {self.clip_layer.from_last} from the text encoder's end: not in this bundle{fix}")
            return 0
        if skip and self.fields.get("negative_prompt"):
            left_out.append("clip skip for the negative prompt: as in diffusers, only the prompt's layers are left out")
        return skip


def _nearest_side(pixels: int, size: SizeLimits) -> int:
    return max(size.minimum, min(size.maximum, round(pixels / size.multiple) * size.multiple))


def quoted(text: str) -> str:
    """A stranger's text as a sentence has it."""
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}..."
