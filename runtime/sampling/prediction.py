"""What a model's output means. In: the output of the denoiser; out: its guess of the picture.

Latents are image + sigma * noise; the model itself sees them divided by sqrt(1 + sigma^2).
"""

from __future__ import annotations

import math

from tintype.arrays import Latents
from tintype.errors import BundleError, near_names

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def denoised_from(prediction: Latents, latents: Latents, sigma: float, prediction_type: str) -> Latents:
    """The denoised latents that `prediction` stands for.

    prediction, latents: (batch, channels, height, width), latents at noise level sigma.
    prediction_type: "epsilon", the noise (Ho et al. 2020); "v_prediction", the velocity alpha * noise - (1 - alpha^2)
    ^ (1/2) * image (Salimans & Ho 2022); "sample", the image itself. Any other: BundleError.
    """
    if prediction_type == "epsilon":
        return latents - prediction * sigma
    if prediction_type == "v_prediction":
        return latents * (1.0 / (1.0 + sigma**2)) - prediction * (sigma / math.hypot(1.0, sigma))
    if prediction_type == "sample":
        return prediction
    raise _unknown(prediction_type)


def prediction_from(denoised: Latents, latents: Latents, sigma: float, prediction_type: str) -> Latents:
    """The prediction that stands for `denoised`: the inverse of denoised_from, for sigma above 0."""
    if prediction_type == "epsilon":
        return (latents - denoised) * (1.0 / sigma)
    if prediction_type == "v_prediction":
        scale = math.hypot(1.0, sigma)
        return latents * (1.0 / (scale * sigma)) - denoised * (scale / sigma)
    if prediction_type == "sample":
        return denoised
    raise _unknown(prediction_type)


def _unknown(prediction_type: str) -> BundleError:
    return BundleError(
        f"there is no prediction type called {prediction_type!r}", fix=near_names(prediction_type, PREDICTION_TYPES)
    )
