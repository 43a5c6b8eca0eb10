"""Pictures and latents in another size."""

from __future__ import annotations

import numpy as np

from tintype.arrays import Latents, Pixels


def resize_latents(latents: Latents, height: int, width: int) -> Latents:
    """(batch, channels, height, width) in cells, each map by itself and bicubic."""
    from PIL import Image

    def resized(cells: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))

    maps = [resized(np.ascontiguousarray(cells, np.float32)) for picture in latents for cells in picture]
    return np.stack(maps).reshape(*latents.shape[:2], height, width)


def resize_pixels(pixels: Pixels, width: int, height: int) -> Pixels:
    """One picture, (1, height, width, 3), by Lanczos."""
    from PIL import Image

    image = Image.fromarray(pixels[0]).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)[np.newaxis]
