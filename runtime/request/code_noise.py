"""Whether a request's starting noise can be coded, so that somebody reads it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tintype.errors import RequestError
from tintype.request import checks
from tintype.request.fields import Request
from tintype.request.inputs import Opened

if TYPE_CHECKING:
    from tintype.bundle.manifest import Manifest

LEAST_CODED_CELLS = 1024  # numbers of latents; fewer have too few signs to be found again


def code_noise(request: Request, opened: Opened, sampler: str, size: tuple[int, int], manifest: Manifest) -> bool:
    """Whether the starting noise is coded. RequestError where nobody could read it. size: width, height in pixels."""
    if not checks.yes_or_no("code_noise", request.code_noise):
        return False
    from tintype.bundle.manifest import ENCODER
    from tintype.sampling import RENOISING  # numpy comes with it

    for name, value in (
        ("image", opened.image), ("latents", opened.latents), ("hires", request.hires),
        ("refiner_start", request.refiner_start),
    ):  # fmt: skip
        if value is not None:
            raise RequestError(
                f"code_noise and {name} contradict each other: such a picture isn't drawn from this noise alone",
                fix=f"leave {name} out, or code_noise; the watermark needs neither",
            )
    if request.fast:
        raise RequestError(
            "code_noise and fast contradict each other: the way back from so few steps doesn't find the noise again",
            fix="leave fast out, or code_noise; the watermark needs neither",
        )
    if sampler in RENOISING or request.eta:
        what = f"eta {request.eta:g}" if request.eta else f"the sampler {sampler}"
        raise RequestError(
            f"code_noise and {what} contradict each other: fresh noise at each step covers the one that is coded",
            fix="choose a sampler that draws none, such as dpmpp_2m, euler, ddim or unipc, with eta 0",
        )
    if ENCODER not in manifest.graphs:
        raise RequestError(
            "code_noise is given, and this bundle has no VAE encoder to read it back with",
            fix="export the checkpoint again, which brings its encoder; or leave code_noise out",
        )
    if manifest.latent_numbers(*size) < LEAST_CODED_CELLS:
        raise RequestError(
            f"code_noise is given, and a picture of {size[0]}x{size[1]} pixels is too small to carry it",
            fix="ask for a larger picture, or leave code_noise out",
        )
    return True
