"""Classifier-free guidance: pure, on the model's predictions, before they are turned into denoised latents."""

from __future__ import annotations

import numpy as np

from tintype.arrays import Latents


def guide(conditional: Latents, unconditional: Latents, scale: float) -> Latents:
    """Away from the unconditional prediction by `scale` (Ho & Salimans 2022); 1 is the conditional one itself."""
    return unconditional + (conditional - unconditional) * scale


def rescale_guidance(guided: Latents, conditional: Latents, rescale: float) -> Latents:
    """Guided prediction, drawn by `rescale` (0 .. 1) to the conditional one's contrast (Lin et al. 2023, section 3.4).

    Contrast is the standard deviation over each picture's channels and cells. High guidance overexposes; 0.7 is the
    paper's cure. A flat guided prediction has no contrast to draw on and stays as it is.
    """
    axes = tuple(range(1, guided.ndim))
    wanted = np.std(conditional, axis=axes, keepdims=True, ddof=1, dtype=np.float64)
    found = np.std(guided, axis=axes, keepdims=True, ddof=1, dtype=np.float64)
    ratio = np.divide(wanted, found, out=np.ones_like(found), where=found > 0)
    return guided * (rescale * ratio + (1.0 - rescale)).astype(np.float32)
