"""Four bits a weight: blocks of 32 inputs that share a scale and a zero point, chosen by least squared error.

Numpy alone: the export chooses by it, and merging an adapter chooses anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # inputs that share a scale
STEPS = 15  # of four bits
# Of a block's lowest and highest weight.
SHRINKS = ((1.0, 1.0), (0.9, 0.9), (0.8, 0.8), (0.8, 1.0), (1.0, 0.8))
PIECE_BLOCKS = 2**11  # that are rounded at a time: what that takes fits a core's cache
SMALLEST_SCALE = np.float32(2.0**-24)  # of float16

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockScales:
    """What four bits stand for: (integer - zero_point) * scale, both (inputs / 32, outputs)."""

    scale: NDArray[np.float16]
    zero_point: NDArray[np.uint8]  # 0 to 15


def fits_blocks(inputs: int) -> bool:
    """Whether so many inputs are whole blocks."""
    return inputs > 0 and inputs % BLOCK == 0


def block_scales(weight: Floats) -> BlockScales:
    """The scales and zero points that lose least in mean square, of a few. weight: (inputs, outputs), whole blocks.

    Each end of a block's range is tried shrunk, which costs its outermost weights and gains resolution for all others;
    then the scale that fits best to the integers that came out is taken.
    """
    inputs, outputs = weight.shape
    blocks = np.ascontiguousarray(weight.T, np.float32).reshape(-1, BLOCK)
    scale, zero = np.empty(len(blocks), np.float16), np.empty(len(blocks), np.uint8)
    for start in range(0, len(blocks), PIECE_BLOCKS):
        piece = slice(start, start + PIECE_BLOCKS)
        scale[piece], zero[piece] = _searched(blocks[piece])
    by_output = outputs, inputs // BLOCK
    return BlockScales(
        np.ascontiguousarray(scale.reshape(by_output).T), np.ascontiguousarray(zero.reshape(by_output).T)
    )


def to_integers(weight: Floats, scales: BlockScales) -> NDArray[np.uint8]:
    """(inputs, outputs) -> the nearest integers of 0 to 15"""
    made = np.empty(weight.shape, np.uint8)
    for index, (scale, zero) in enumerate(zip(scales.scale.astype(np.float32), scales.zero_point, strict=True)):
        rows = slice(index * BLOCK, (index + 1) * BLOCK)
        made[rows] = np.clip(np.rint(weight[rows] / scale) + zero, 0, STEPS)
    return made


def from_integers(integers: NDArray[np.uint8], scales: BlockScales) -> Floats:
    """What the integers stand for, (inputs, outputs)."""
    return spread(integers, scales.scale.astype(np.float32), scales.zero_point)


def spread(integers: NDArray[np.uint8], scale: Floats, zero_point: NDArray[np.uint8]) -> Floats:
    """The same of blocks of any size: integers (inputs, outputs), the others (blocks, outputs)."""
    blocks, outputs = scale.shape
    cubes = integers.reshape(blocks, -1, outputs).astype(np.float32)
    cubes -= zero_point[:, np.newaxis]
    cubes *= scale[:, np.newaxis]
    return cubes.reshape(integers.shape)


def _searched(blocks: Floats) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """blocks: (count, 32). The scale and the zero point of each."""
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    error = np.full(len(blocks), np.inf, np.float32)
    scale, zero = np.ones(len(blocks), np.float32), np.zeros(len(blocks), np.float32)
    best = (scale, zero, error)
    for first, second in SHRINKS:
        tried = _stored((high * np.float32(second) - low * np.float32(first)) / np.float32(STEPS))
        zeros = np.clip(np.rint(low * np.float32(-first) / tried), 0, STEPS)
        _keep(blocks, _centred(blocks, tried, zeros), tried, zeros, best)
    centred = _centred(blocks, scale, zero)
    power = np.square(centred).sum(axis=1)
    fitted = _stored((centred * blocks).sum(axis=1) / np.maximum(power, 1))
    _keep(blocks, _centred(blocks, fitted, zero), fitted, zero.copy(), best)
    return scale.astype(np.float16), zero.astype(np.uint8)


def _stored(scale: Floats) -> Floats:
    """As float16 gives it back, and above 0."""
    most = np.float32(np.finfo(np.float16).max)
    return np.clip(scale, SMALLEST_SCALE, most).astype(np.float16).astype(np.float32)


def _centred(blocks: Floats, scale: Floats, zero: Floats) -> Floats:
    """Integers around their zero points."""
    zero = zero[:, None]
    return np.asarray(np.clip(np.rint(blocks / scale[:, None]), -zero, STEPS - zero))


def _keep(
    blocks: Floats,
    centred: Floats,
    scale: Floats,
    zero: Floats,
    best: tuple[Floats, Floats, Floats],
) -> None:
    """Where these are nearer than the best so far, they are the best; in place."""
    difference = centred * scale[:, None]
    difference -= blocks
    error = np.square(difference, out=difference).sum(axis=1)
    better = error < best[2]
    for kept, tried in zip(best, (scale, zero, error), strict=True):
        kept[better] = tried[better]
