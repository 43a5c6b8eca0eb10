"""What a manifest says of the colours of latents."""

from __future__ import annotations

from dataclasses import dataclass

from tintype.strict_json import require

MAX_PREVIEW_FACTOR = 1000  # of a colour, for one channel; real ones are below 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewFactors:
    """What a cell's latents, as the denoiser leaves them, look like without a decoder; see `image.preview`."""

    weights: tuple[tuple[float, ...], ...]  # by channel, for red, green and blue
    bias: tuple[float, ...] = (0.0, 0.0, 0.0)  # -1 is black, 1 is white

    def __post_init__(self) -> None:
        rows = (*self.weights, self.bias)
        require(all(len(row) == 3 for row in rows), "preview has rows that are not red, green and blue")
        sane = all(abs(value) <= MAX_PREVIEW_FACTOR for row in rows for value in row)
        require(sane, f"preview has a factor beyond {MAX_PREVIEW_FACTOR}")
