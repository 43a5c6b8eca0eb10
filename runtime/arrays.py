"""Names for the arrays that pass from one part to another, each with its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Latents: TypeAlias = NDArray[np.float32]  # (batch, channels, height, width), in latent cells
Samples: TypeAlias = NDArray[np.float32]  # (batch, 3, height, width), in pixels; -1 is black, 1 is white
Pixels: TypeAlias = NDArray[np.uint8]  # (batch, height, width, 3)
Arrays: TypeAlias = Mapping[str, NDArray[Any]]  # inputs or outputs of a graph, by name
