"""How large a DoRA (Liu et al. 2024) makes the rows, or columns, of a weight, and what that makes of them at run time.

A file's magnitudes m are the lengths that rows of W + D are brought to, where D is what its LoRA adds: with n = |W + D|
a layer of the weight w is W + w * (m / n * (W + D) - W). So a graph scales the layer's own product by
1 + w * (m / n - 1), and adds w * m / n * D. Of kohya's and LyCORIS's files some have lengths of columns instead, input
by input: the same of what the layer reads.
"""

from __future__ import annotations

import math

import numpy as np

from tintype.adapters.files import AdapterFile, AdapterLayer
from tintype.adapters.forms import Floats, Pair, Shape
from tintype.errors import LoraError
from tintype.uses import BY_INPUT, BY_OUTPUT

LEAST = np.float32(1e-12)  # of a length that is divided by


def scaled_along(file: AdapterFile, layer: AdapterLayer, weight: Shape) -> str:
    """What of a layer its magnitudes scale, BY_OUTPUT or BY_INPUT; empty where it has none.

    Raises LoraError for as many as the weight has neither of.
    """
    part = _part(layer)
    if part is None:
        return ""
    shape = file.shape(layer.parts[part])
    by_input = part == "dora" and len(shape) > 1 and shape[0] == 1 and shape[1] > 1
    wanted = weight[1] if by_input else weight[0]
    if math.prod(shape) != wanted:
        raise LoraError(
            f"{layer.parts[part]} of {file.path} has {math.prod(shape):,} numbers, not {wanted:,}",
            fix="download the file again, or take another LoRA",
        )
    return BY_INPUT if by_input else BY_OUTPUT


def magnitudes_of(file: AdapterFile, layer: AdapterLayer, weight: Shape) -> Floats | None:
    """(outputs, 1), or (1, inputs); None where it has none. Raises LoraError as `scaled_along`."""
    along, part = scaled_along(file, layer, weight), _part(layer)
    if part is None:
        return None
    (numbers,) = file.read(layer.parts[part])
    return numbers.reshape((1, -1) if along == BY_INPUT else (-1, 1))


def scaled_pair(pair: Pair, along: str, factors: Floats) -> Pair:
    """A pair with m / n, which are these factors, in it."""
    if along == BY_OUTPUT:
        return Pair(pair.down, pair.up * factors[:, np.newaxis])
    return Pair(pair.down * factors.reshape(-1, *(1,) * (pair.down.ndim - 2)), pair.up)


def factors_of(magnitudes: Floats, lengths: Floats) -> Floats:
    """m / n, flat. lengths: n, by output or input as the magnitudes are."""
    return np.asarray(magnitudes.reshape(-1) / np.maximum(lengths, LEAST), np.float32)


def _part(layer: AdapterLayer) -> str | None:
    return next((part for part in ("magnitude", "dora") if part in layer.parts), None)
