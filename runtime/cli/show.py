"""Pictures in a terminal: kitty's graphics protocol, iTerm's inline images, or sixels, whichever it has.

No terminal is asked what it can do, as one that can't would print the question: its name tells.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from tintype.errors import CancelledError, RequestError, TintypeError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from tintype import Step

KITTY, ITERM, SIXEL = "kitty", "iterm", "sixel"
_TERMS = {"xterm-kitty": KITTY, "xterm-ghostty": KITTY, "foot": SIXEL, "foot-extra": SIXEL, "mlterm": SIXEL}
_PROGRAMS = {"iTerm.app": ITERM, "WezTerm": ITERM, "vscode": ITERM, "mintty": ITERM, "ghostty": KITTY}
_CHUNK = 4096  # of base64 text in one escape sequence of kitty's
_MOST_SIDE = 512  # pixels; a larger one would fill the window
_COLOURS = 255
_ROWS = 12  # of text, that previews take; sixels are as many pixels high as the lowest usual lines have there
_ROW_PIXELS = 12
_EVERY_SECONDS = 0.4  # between previews: to show one takes time too


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


class LivePreview:
    """What a picture is becoming, in place, below where the cursor stands; gone once it is closed.

    Rows are made free first, so that nothing scrolls between one preview and the next. The terminal is given each time:
    a bar of progress puts something else in its place while it is there.
    """

    def __init__(self, protocol: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._protocol, self._clock = protocol, clock
        self._shown: float | None = None  # when the last one was
        self._finished = False

    def show(self, step: Step, stream: TextIO) -> None:
        """The first of a step's pictures, where the last preview is long enough ago. What can't be had isn't shown."""
        now = self._clock()
        if self._finished or (self._shown is not None and now - self._shown < _EVERY_SECONDS):
            return
        try:
            image = step.preview()[0]
        except CancelledError:
            raise
        except TintypeError:  # no memory for it, as it may be: the picture goes on
            self._finished = True
            return
        image.thumbnail((_ROWS * _ROW_PIXELS * 4, _ROWS * _ROW_PIXELS))
        if self._shown is None:
            stream.write("\n" * _ROWS + f"\x1b[{_ROWS}A")
        self._shown = now
        stream.write(f"\x1b7{_IN_PLACE[self._protocol](image)}\x1b8")
        stream.flush()

    def close(self, stream: TextIO) -> None:
        """Take the preview away."""
        if self._shown is not None:
            stream.write("\x1b_Ga=d,d=I,i=1,q=2\x1b\\" * (self._protocol == KITTY) + "\x1b[J")
            stream.flush()
        self._shown, self._finished = None, True


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _kitty(image: Image, keys: str = "") -> str:
    """keys: further ones, each with a comma behind it."""
    text = base64.b64encode(_png(image)).decode()
    pieces = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    sequences = []
    for number, piece in enumerate(pieces):
        said = f"a=T,f=100,{keys}" if number == 0 else ""
        sequences.append(f"\x1b_G{said}m={int(number < len(pieces) - 1)};{piece}\x1b\\")
    return "".join(sequences)


def _kitty_in_place(image: Image) -> str:
    """One picture of one placement, which the next replaces; the cursor stays."""
    return _kitty(image, f"i=1,p=1,q=2,C=1,r={_ROWS},")


def _iterm_in_place(image: Image) -> str:
    return _iterm(image, f"height={_ROWS};")


def _iterm(image: Image, keys: str = "") -> str:
    data = _png(image)
    return f"\x1b]1337;File=inline=1;{keys}size={len(data)}:{base64.b64encode(data).decode()}\x07"


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


_IN_PLACE = {KITTY: _kitty_in_place, ITERM: _iterm_in_place, SIXEL: sixels}


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
