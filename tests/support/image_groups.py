"""Images that are normalized by groups of channels: sizes that no vector, group or piece comes out even with."""

from __future__ import annotations

# (batch, channels, spatial dims), and how many groups
SHAPES = [
    ((1, 4, 1), 2),
    ((1, 32, 8, 8), 32),
    ((2, 30, 7, 5), 5),
    ((3, 16, 1, 9), 1),
    ((4, 64, 33, 17), 16),
    ((2, 12, 50), 4),
    ((2, 8, 3, 4, 5), 2),
]
