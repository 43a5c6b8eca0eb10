"""What each kind of adapter adds to a layer's weight: as a pair of matrices where it has one, and whole.

LoRA (Hu et al. 2022) is up . down; LoHa (Hyeon-Woo et al. 2022) the product of two such, element by element; LoKr (Yeh
et al. 2024, LyCORIS) a Kronecker product. The last two are pairs as well, of a rank that is the product of the two that
they are made of: exactly so, as rows and columns of a Khatri-Rao or Kronecker product. Weights are as torch has them,
(outputs, inputs, ...kernel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tintype.adapters.files import AdapterFile, AdapterLayer

Floats = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """scale * up . down: up (outputs, rank), down (rank, inputs, ...kernel)."""

    down: Floats
    up: Floats


def squeezed(shape: Shape) -> Shape:
    """A weight's shape, where a kernel of 1x1 is none: files write such layers either way."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def fits(file: AdapterFile, layer: AdapterLayer, weight: Shape) -> bool:
    """Whether what a file has for a layer is for a weight of that shape, by the shapes of its tensors alone."""
    shapes = {part: file.shape(name) for part, name in layer.parts.items()}
    outputs, inputs, *kernel = weight
    area = math.prod(kernel)
    match layer.kind:
        case "lora":
            down, up, mid = shapes["down"], shapes["up"], shapes.get("mid")
            if len(down) not in (2, 4) or len(squeezed(up)) != 2 or down[0] != (mid[1] if mid else up[1]):
                return False
            if mid is not None and (len(mid) != 4 or mid[0] != up[1] or len(squeezed(down)) != 2):
                return False
            whole = (up[0], down[1], *(down[2:] if mid is None else mid[2:]))
            return squeezed(whole) == squeezed(weight)
        case "full":
            return squeezed(shapes["diff"]) == squeezed(weight)
        case "loha":
            return all(
                _is_product(shapes[f"w{n}_a"], shapes[f"w{n}_b"], shapes.get(f"t{n}"), (outputs, inputs, kernel))
                for n in "12"
            )
    first = shapes.get("k1") or _product(shapes.get("k1_a"), shapes.get("k1_b"))
    if first is None or len(first) != 2 or outputs % first[0] or inputs % first[1]:
        return False
    rest = (outputs // first[0], inputs // first[1])
    if "k2" in shapes:
        second = shapes["k2"]
        return squeezed(second) == squeezed((*rest, *kernel)) or second == (rest[0], rest[1] * area)
    if "k2_b" not in shapes:
        return False
    return _is_product(shapes["k2_a"], shapes["k2_b"], shapes.get("k2_t"), (*rest, kernel))


def _product(one: Shape | None, other: Shape | None) -> Shape | None:
    matches = one is not None and other is not None and len(one) == len(other) == 2 and one[1] == other[0]
    return (one[0], other[1]) if matches and one is not None and other is not None else None


def _is_product(a: Shape, b: Shape, core: Shape | None, weight: tuple[int, int, list[int]]) -> bool:
    outputs, inputs, kernel = weight
    if len(a) != 2 or len(b) != 2:
        return False
    if core is None:
        return a[1] == b[0] and (a[0], b[1]) == (outputs, inputs * math.prod(kernel))
    sizes = (a[0], b[0], *(kernel or (1, 1)))
    return core == sizes and (a[1], b[1]) == (outputs, inputs)


def pair_rank(file: AdapterFile, layer: AdapterLayer, weight: Shape) -> int | None:
    """The rank of the pair that it is; None where it is none, and has to be merged."""
    if layer.kind == "full":
        return None
    shapes = {part: file.shape(name) for part, name in layer.parts.items()}
    if layer.kind == "lora":
        return shapes["up"][1]
    if layer.kind == "loha":
        return math.prod(shapes[f"w{n}_a"][0 if f"t{n}" in shapes else 1] for n in "12")
    first = min(shapes["k1"]) if "k1" in shapes else shapes["k1_b"][0]
    if "k2_b" in shapes:
        return first * (shapes["k2_a"][0] if "k2_t" in shapes else shapes["k2_b"][0])
    second = shapes["k2"]
    return first * min(second[0], math.prod(second[1:]))


def pair_of(file: AdapterFile, layer: AdapterLayer, weight: Shape) -> Pair:
    """The pair that it is, read from its file, with alpha in it."""
    names = list(layer.parts)
    parts = dict(zip(names, file.read(*(layer.parts[name] for name in names)), strict=True))
    down, up = _FORMS[layer.kind](parts, weight)
    kernel = weight[2:]
    return Pair(down.reshape(len(down), weight[1], *kernel), up * np.float32(scale_of(layer, parts)))


def whole_delta(file: AdapterFile, layer: AdapterLayer, weight: Shape) -> Floats:
    """What it adds to the weight, of the weight's shape."""
    if layer.kind == "full":
        (delta,) = file.read(layer.parts["diff"])
        return delta.reshape(weight)
    pair = pair_of(file, layer, weight)
    return (pair.up @ pair.down.reshape(len(pair.down), -1)).reshape(weight)


def scale_of(layer: AdapterLayer, parts: Mapping[str, Floats]) -> float:
    """alpha over the rank that it was trained with; 1 where the file has no alpha."""
    if layer.alpha is None:
        return 1.0
    if layer.kind == "lora":
        return layer.alpha / len(parts["down"])
    if layer.kind == "loha":
        return layer.alpha / len(parts["w1_b"])
    decomposed = [parts[name] for name in ("k2_b", "k1_b") if name in parts]
    return layer.alpha / len(decomposed[0]) if decomposed else 1.0


def _lora(parts: Mapping[str, Floats], weight: Shape) -> tuple[Floats, Floats]:
    down, up = parts["down"], parts["up"]
    if "mid" in parts:  # a kernel between two layers of 1x1 (Tucker, CP) is the first two in one
        down = np.einsum("orhw,ri->oihw", parts["mid"], down.reshape(down.shape[:2]))
    return down, up.reshape(up.shape[:2])


def _factors(parts: Mapping[str, Floats], a: str, b: str, core: str) -> tuple[Floats, Floats]:
    """up (outputs, rank) and down (rank, inputs * kernel) of one of the products that LoHa and LoKr are made of."""
    if core not in parts:
        return parts[a], parts[b]
    down = np.einsum("ijhw,jn->inhw", parts[core], parts[b])
    return parts[a].T, down.reshape(len(down), -1)


def _loha(parts: Mapping[str, Floats], weight: Shape) -> tuple[Floats, Floats]:
    (up, down), (up_2, down_2) = (_factors(parts, f"w{n}_a", f"w{n}_b", f"t{n}") for n in "12")
    rank = len(down) * len(down_2)
    return (
        (down[:, np.newaxis] * down_2[np.newaxis]).reshape(rank, -1),
        (up[:, :, np.newaxis] * up_2[:, np.newaxis]).reshape(-1, rank),
    )


def _lokr(parts: Mapping[str, Floats], weight: Shape) -> tuple[Floats, Floats]:
    up, down = _halves(parts["k1"]) if "k1" in parts else (parts["k1_a"], parts["k1_b"])
    if "k2_b" in parts:
        up_2, down_2 = _factors(parts, "k2_a", "k2_b", "k2_t")
    else:
        second = parts["k2"]
        up_2, down_2 = _halves(second.reshape(len(second), -1))
    area = math.prod(weight[2:])
    down_2 = down_2.reshape(len(down_2), -1, area)
    joined = np.einsum("pb,qdk->pqbdk", down, down_2).reshape(len(down) * len(down_2), -1)
    return joined, np.kron(up, up_2)


def _halves(matrix: Floats) -> tuple[Floats, Floats]:
    """A matrix as the product of itself and an identity, of the smaller rank."""
    rows, columns = matrix.shape
    if rows <= columns:
        return np.eye(rows, dtype=np.float32), matrix
    return matrix, np.eye(columns, dtype=np.float32)


_FORMS = {"lora": _lora, "loha": _loha, "lokr": _lokr}
