"""Which fields of a request go together: what says nothing without another one, and what a model needs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tintype.errors import RequestError
from tintype.request.fields import Request

if TYPE_CHECKING:
    from tintype.bundle.manifest import Manifest

OF_IMAGE = ("strength", "fit", "background", "mask", "outpaint")  # fields that say nothing without a picture
OF_MASK = ("mask_grow", "mask_blur", "keep_outside")  # nor these without a mask, or margins
OF_HIRES = ("hires_strength", "hires_upscale")
OF_CONTROL = ("control_preprocess", "control_guess")


def demand_together(request: Request, manifest: Manifest) -> None:
    """RequestError for a field that lacks what it belongs to, for two that contradict each other, and where the model
    needs a picture, or can't do what is asked of it."""
    _refuse_orphans(request)
    if manifest.is_inpainting:
        _demand_image_and_mask(request)
    elif manifest.needs_picture:
        _demand_image_alone(request, manifest)


def _refuse_orphans(request: Request) -> None:
    """What belongs to a picture or to a mask, without one."""
    if request.image is not None and request.latents is not None:
        raise RequestError("image and latents contradict each other", fix="leave one of them out")
    usual = {field.name: field.default for field in dataclasses.fields(request)}

    def is_said(name: str) -> bool:
        value = getattr(request, name)
        return value is not None if usual[name] is None else value != usual[name]

    for there, names, what, fix in (
        (
            request.image is not None,
            [name for name in OF_IMAGE if name != "fit" or not request.control],
            "a picture",
            "give the picture too: image=, or --image FILE",
        ),
        (bool(request.control), OF_CONTROL, "control", "give a ControlNet too: control=, or --control MODEL=PICTURE"),
        (
            request.mask is not None or request.outpaint is not None,
            OF_MASK,
            "a mask",
            "give the mask too: mask=, or --mask FILE",
        ),
        (request.hires is not None, OF_HIRES, "hires", "say how much larger too: hires=2, or --hires 2"),
    ):
        for name in () if there else names:
            if is_said(name):
                raise RequestError(f"{name} is given without {what}", fix=fix)


def _demand_image_and_mask(request: Request) -> None:
    """RequestError for a model that only makes parts of pictures new, where it isn't told of which."""
    missing = [name for name in ("image", "mask") if getattr(request, name) is None]
    if request.outpaint is not None:  # its margins are the mask
        missing = [name for name in missing if name != "mask"]
    if missing:
        fields, options = (" and ".join(form.format(name) for name in missing) for form in ("{}=", "--{} FILE"))
        raise RequestError(
            f"this model makes part of a picture new, and there is no {' and no '.join(missing)}",
            fix=f"give {fields}, or {options}: white in the mask is made new; margins to outpaint are a mask too",
        )


def _demand_image_alone(request: Request, manifest: Manifest) -> None:
    """RequestError for a model that draws pictures from pictures, without one, or where it can't do what is asked."""
    if request.image is None:
        raise RequestError("this model changes a picture, and there is none", fix="give image=, or --image FILE")
    if not manifest.is_editing:
        return
    whole = isinstance(request.strength, int | float) and request.strength == 1.0  # which is what it does
    for name in ("mask", "outpaint", "hires", *(() if whole else ("strength",))):
        if getattr(request, name) is not None:
            raise RequestError(
                f"this model changes all of a picture as the words say, and has no {name}",
                fix=f"leave {name} out; image_guidance_scale says how closely to follow the picture",
            )
