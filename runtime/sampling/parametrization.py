"""What a denoiser is trained to take and to give, as one object: latents -> its input, its output -> a picture.

Latents are image + sigma * noise, (batch, channels, height, width), whatever the model itself sees of them.
"""

from __future__ import annotations

import math
from typing import Protocol

from tintype.arrays import Latents
from tintype.sampling.step import model_input


class Parametrization(Protocol):
    """One way to train a denoiser. Pure: nothing that is given is written to."""

    def model_input(self, latents: Latents, sigma: float) -> Latents:
        """What the model sees of latents at noise level sigma."""
        ...

    def timestep(self, sigma: float, scheduled: float) -> float:
        """What the model is told of the noise level. scheduled: the training timestep that the schedule has for it."""
        ...

    def denoised(self, prediction: Latents, latents: Latents, sigma: float) -> Latents:
        """The picture that the model's output stands for. prediction, latents: of one shape, at noise level sigma."""
        ...

    def prediction(self, denoised: Latents, latents: Latents, sigma: float) -> Latents:
        """The inverse of `denoised`, for sigma above 0."""
        ...


class _VariancePreserving:
    """Trained on sqrt(alpha) * image + sqrt(1 - alpha) * noise at whole timesteps (Ho et al. 2020)."""

    def model_input(self, latents: Latents, sigma: float) -> Latents:
        return model_input(latents, sigma)

    def timestep(self, sigma: float, scheduled: float) -> float:
        return scheduled


class Epsilon(_VariancePreserving):
    """The model gives the noise (Ho et al. 2020)."""

    def denoised(self, prediction: Latents, latents: Latents, sigma: float) -> Latents:
        return latents - prediction * sigma

    def prediction(self, denoised: Latents, latents: Latents, sigma: float) -> Latents:
        return (latents - denoised) * (1.0 / sigma)


class VPrediction(_VariancePreserving):
    """The model gives the velocity sqrt(alpha) * noise - sqrt(1 - alpha) * image (Salimans & Ho 2022)."""

    def denoised(self, prediction: Latents, latents: Latents, sigma: float) -> Latents:
        return latents * (1.0 / (1.0 + sigma**2)) - prediction * (sigma / math.hypot(1.0, sigma))

    def prediction(self, denoised: Latents, latents: Latents, sigma: float) -> Latents:
        scale = math.hypot(1.0, sigma)
        return latents * (1.0 / (scale * sigma)) - denoised * (scale / sigma)


class Sample(_VariancePreserving):
    """The model gives the picture itself."""

    def denoised(self, prediction: Latents, latents: Latents, sigma: float) -> Latents:
        return prediction

    def prediction(self, denoised: Latents, latents: Latents, sigma: float) -> Latents:
        return denoised


class Flow:
    """Rectified flow (Liu et al. 2022): trained on (1 - t) * image + t * noise, the model gives noise - image.

    Divided by 1 - t that is image + sigma * noise with sigma = t / (1 - t), so that every sampler draws flow models
    too. The model is told t, in timesteps of `timesteps` to the whole way. Pure noise, t = 1, is an infinite sigma: a
    schedule starts just below.
    """

    def __init__(self, timesteps: float = 1000.0) -> None:
        self._timesteps = timesteps

    def model_input(self, latents: Latents, sigma: float) -> Latents:
        return latents * (1.0 / (1.0 + sigma))

    def timestep(self, sigma: float, scheduled: float) -> float:
        return sigma / (1.0 + sigma) * self._timesteps

    def denoised(self, prediction: Latents, latents: Latents, sigma: float) -> Latents:
        return self.model_input(latents, sigma) - prediction * (sigma / (1.0 + sigma))

    def prediction(self, denoised: Latents, latents: Latents, sigma: float) -> Latents:
        return (self.model_input(latents, sigma) - denoised) * ((1.0 + sigma) / sigma)


EPSILON, V_PREDICTION, SAMPLE = Epsilon(), VPrediction(), Sample()

# By prediction_type, as manifests and schedulers have it. `Flow` has no place here while no family draws it.
PARAMETRIZATIONS: dict[str, Parametrization] = {"epsilon": EPSILON, "v_prediction": V_PREDICTION, "sample": SAMPLE}
PREDICTION_TYPES = tuple(PARAMETRIZATIONS)
