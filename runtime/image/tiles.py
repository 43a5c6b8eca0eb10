"""Tiles: a graph over a large image, run piece by piece so that the peak is that of one piece.

All tiles of an image have one shape. They overlap, and in the overlap each fades into the next linearly, so that no
edge shows. Neighbours differ a little there, because normalization inside the graph sees a tile and not the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tintype.errors import RequestError

Image = NDArray[np.float32]  # (1, channels, height, width)
Graph = Callable[[Image], Image]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sides of tiles, in units of the graph's input: latent cells for a decoder, pixels for an encoder."""

    tile: int  # a side of one tile; an image that is no larger is one tile
    overlap: int  # the least that neighbours share
    multiple: int = 1  # where tiles may start

    def __post_init__(self) -> None:
        sound = 0 <= self.overlap < self.tile and self.multiple >= 1 and self.tile % self.multiple == 0
        if not sound:
            raise RequestError(
                f"tiles of {self.tile} that overlap by {self.overlap} cover nothing",
                fix="make the overlap smaller than the tile, and the tile a multiple of the model's",
            )

    def spans(self, side: int) -> list[range]:
        """Where the tiles of one axis lie: evenly spread, equally long, the last one ending with the image."""
        if side <= self.tile:
            return [range(side)]
        free = (side - self.tile) // self.multiple
        most = max(1, (self.tile - self.overlap) // self.multiple)
        count = -(-free // most) + 1
        starts = [index * free // (count - 1) * self.multiple for index in range(count)]
        return [range(start, start + self.tile) for start in starts]


def run_tiled(graph: Graph, image: Image, tiling: Tiling) -> Image:
    """The graph's output for the whole image, put together from tiles; as it is when one tile holds it all.

    image: (1, channels, height, width). The output may be larger or smaller than the input by one factor.
    """
    height, width = image.shape[2:]
    rows, columns = tiling.spans(height), tiling.spans(width)
    if len(rows) == len(columns) == 1:
        return graph(image)
    canvas: Image | None = None
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            tile = graph(image[:, :, row.start : row.stop, column.start : column.stop])
            if canvas is None:
                factor = Fraction(tile.shape[2], len(row))
                down, across = fades(rows, factor), fades(columns, factor)
                canvas = np.zeros((*tile.shape[:2], int(height * factor), int(width * factor)), np.float32)
            top, left = int(row.start * factor), int(column.start * factor)
            place = canvas[:, :, top : top + tile.shape[2], left : left + tile.shape[3]]
            place += tile * (down[i][:, np.newaxis] * across[j])
    assert canvas is not None  # there is one tile at least
    return canvas


def fades(spans: list[range], factor: Fraction) -> list[NDArray[np.float32]]:
    """What each tile of an axis counts, sample by sample of its output; at every place all tiles add up to 1."""
    starts = [float(span.start * factor) for span in spans]
    stops = [float(span.stop * factor) for span in spans]
    places = [np.arange(start, stop) + 0.5 for start, stop in zip(starts, stops, strict=True)]
    total = np.zeros(int(stops[-1]))
    counts = []
    for index, place in enumerate(places):
        count = np.ones(len(place))
        if index > 0 and stops[index - 1] > starts[index]:
            count = np.minimum(count, (place - starts[index]) / (stops[index - 1] - starts[index]))
        if index + 1 < len(spans) and starts[index + 1] < stops[index]:
            count = np.minimum(count, (stops[index] - place) / (stops[index] - starts[index + 1]))
        total[int(starts[index]) : int(stops[index])] += count
        counts.append(count)
    return [
        (count / total[int(start) : int(stop)]).astype(np.float32)
        for count, start, stop in zip(counts, starts, stops, strict=True)
    ]
