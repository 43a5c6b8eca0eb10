"""What some UNets take after the latents, for their walks: an inpainting model a mask and the rest of a picture, an
editing model a picture.

An exporter has no photographs, so pictures are noise with the spectrum of one, encoded by the checkpoint's own VAE.
Masks are of the kinds that people paint: a patch, one side, all around, everything. Same seed: the same of both.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tintype.export.calls import TrajectoryPlan
from tintype.export.modules import Modules
from tintype.export.trajectories import PictureChannels


def picture_channels(modules: Modules, plan: TrajectoryPlan, seeds: Iterable[int]) -> PictureChannels:
    """By seed of a walk: for inpainting (1, 1 + C, h, w), a mask, 1 is made new, and the latents of the picture
    without it; for editing (1, C, h, w), the picture's latents as no factor scaled them."""
    make = _masked_picture if modules.checkpoint.is_inpainting else _picture
    return {seed: make(modules, plan.latent_size, seed) for seed in seeds}


def _masked_picture(modules: Modules, cells: int, seed: int) -> torch.Tensor:
    factor = modules.checkpoint.vae_scale_factor
    cell_mask = mask(cells, seed)
    pixel_mask = cell_mask.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    mean = _encode(modules, picture(cells * factor, seed) * (1 - pixel_mask))  # grey where it is hidden
    return torch.cat([cell_mask, (mean - modules.shift_factor) * modules.scaling_factor], dim=1)


def _picture(modules: Modules, cells: int, seed: int) -> torch.Tensor:
    return _encode(modules, picture(cells * modules.checkpoint.vae_scale_factor, seed))


def _encode(modules: Modules, samples: torch.Tensor) -> torch.Tensor:
    """The mean that the VAE's encoder gives."""
    with torch.inference_mode():
        parameters: torch.Tensor = modules.wrapped("vae_encoder")(sample=samples)
        return parameters[:, : modules.latent_channels]


def mask(cells: int, seed: int) -> torch.Tensor:
    """(1, 1, cells, cells), of one kind after another as seeds count up."""
    values = torch.zeros(1, 1, cells, cells)
    quarter, half = cells // 4, max(1, cells // 2)
    match seed % 4:
        case 0:
            values[..., quarter : quarter + half, quarter : quarter + half] = 1.0
        case 1:
            values[..., half:] = 1.0
        case 2:
            values += 1.0
            values[..., quarter : quarter + half, quarter : quarter + half] = 0.0
        case _:
            values += 1.0
    return values


def picture(side: int, seed: int) -> torch.Tensor:
    """(1, 3, side, side) in [-1, 1]: noise whose amplitude falls as 1/f, as in photographs."""
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :]
    frequency = torch.sqrt(rows**2 + columns**2).clamp_min(1 / side)
    values = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(side, side))
    return (values / (2 * values.std())).clamp(-1.0, 1.0)
