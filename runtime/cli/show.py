"""Pictures in a terminal: kitty's graphics protocol, iTerm's inline images, or sixels, whichever it has.

No terminal is asked what it can do, as one that can't would print the question: its name tells.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from tintype.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

KITTY, ITERM, SIXEL = "kitty", "iterm", "sixel"
_TERMS = {"xterm-kitty": KITTY, "xterm-ghostty": KITTY, "foot": SIXEL, "foot-extra": SIXEL, "mlterm": SIXEL}
_PROGRAMS = {"iTerm.app": ITERM, "WezTerm": ITERM, "vscode": ITERM, "mintty": ITERM, "ghostty": KITTY}
_CHUNK = 4096  # of base64 text in one escape sequence of kitty's
_MOST_SIDE = 512  # pixels; a larger one would fill the window
_COLOURS = 255


def protocol_of(environment: Mapping[str, str]) -> str | None:
    """How the terminal of such an environment shows pictures; None where it isn't known to."""
    if environment.get("TMUX") or environment.get("TERM", "").startswith("screen"):
        return None  # what stands between swallows the sequences
    if "KITTY_WINDOW_ID" in environment:
        return KITTY
    term = environment.get("TERM", "")
    return (
        _PROGRAMS.get(environment.get("TERM_PROGRAM", "")) or _TERMS.get(term) or (SIXEL if "sixel" in term else None)
    )


def demand_pictures(stream: TextIO) -> str:
    """How the terminal behind a stream shows pictures. Raises RequestError where it doesn't."""
    if not stream.isatty():
        raise RequestError("--show needs a terminal", fix="leave --show out, or don't send the output elsewhere")
    protocol = protocol_of(os.environ)
    if protocol is None:
        raise RequestError(
            "this terminal isn't known to show pictures", fix="leave --show out, or use kitty, iTerm, WezTerm or foot"
        )
    return protocol


def show(image: Image, protocol: str, stream: TextIO) -> None:
    """Write a picture to a terminal that has the protocol."""
    image = image.copy()
    image.thumbnail((_MOST_SIDE, _MOST_SIDE))
    stream.write({KITTY: _kitty, ITERM: _iterm, SIXEL: sixels}[protocol](image) + "\n")
    stream.flush()


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _kitty(image: Image) -> str:
    text = base64.b64encode(_png(image)).decode()
    pieces = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    sequences = []
    for number, piece in enumerate(pieces):
        keys = "a=T,f=100," if number == 0 else ""
        sequences.append(f"\x1b_G{keys}m={int(number < len(pieces) - 1)};{piece}\x1b\\")
    return "".join(sequences)


def _iterm(image: Image) -> str:
    data = _png(image)
    return f"\x1b]1337;File=inline=1;size={len(data)}:{base64.b64encode(data).decode()}\x07"


def sixels(image: Image) -> str:
    """A picture as DEC's sixels: bands of six rows; in each band every colour's rows, six to a character."""
    import numpy as np

    indexed = image.convert("RGB").quantize(_COLOURS)
    palette = np.asarray(indexed.getpalette("RGB"), np.int64).reshape(-1, 3) * 100 // 255
    pixels = np.asarray(indexed)
    height, width = pixels.shape
    said = [f'\x1bPq"1;1;{width};{height}']
    said += [f"#{index};2;{red};{green};{blue}" for index, (red, green, blue) in enumerate(palette)]
    weights = 1 << np.arange(6)
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        for colour in np.unique(band):
            bits = (weights[: len(band), np.newaxis] * (band == colour)).sum(axis=0)
            said.append(f"#{colour}{_runs(bits)}$")
        said.append("-")
    return "".join([*said, "\x1b\\"])


def _runs(bits: np.ndarray) -> str:
    """Characters of a band, those that repeat counted."""
    import numpy as np

    starts = np.flatnonzero(np.diff(bits, prepend=-1))
    lengths = np.diff(starts, append=len(bits))
    said = []
    for bit, length in zip(bits[starts], lengths, strict=True):
        character = chr(63 + int(bit))
        said.append(f"!{length}{character}" if length > 3 else character * int(length))
    return "".join(said)
