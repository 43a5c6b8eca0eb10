"""What a run tells on its way: steps, then pictures; and how their files are called."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tintype.arrays import Latents
from tintype.errors import OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.record import Record
    from tintype.trust.credentials import Signer


NAME_WORDS, NAME_BYTES = 6, 120  # of a prompt, in the name of its picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time went, in seconds, and the most memory the process had until then."""

    load_seconds: float  # opening graphs; the first time on a machine also building them
    encode_seconds: float
    denoise_seconds: float
    denoise_graph_seconds: float  # of these, inside the denoiser's graph; the rest is the loop's own cost
    decode_seconds: float
    total_seconds: float
    steps_per_second: float
    peak_rss_bytes: int
    device_bytes: int = 0  # the most that lay in a device's own memory; without activations where no driver tells


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step done, of all the steps that the request takes."""

    index: int  # from 0
    total: int
    sigma: float  # noise before the step, in units of the picture's own spread
    latents: Latents  # after the step; image + sigma * noise
    denoised: Latents  # what the model takes the picture to be
    pictures: range  # which of the request's pictures are in the batch
    decode: Callable[[Latents], list[Image]]  # by the request's decoder
    sketch: Callable[[Latents], list[Image]]  # by what is cheap

    def preview(self, *, full: bool = False) -> list[Image]:
        """The pictures as the model sees them now, roughly and in no time: by a tiny decoder where the bundle has one
        and no budget is in its way, else by a colour for each latent cell.

        full: by the request's decoder, which costs as much as the last step of all.
        """
        return self.decode(self.denoised) if full else self.sketch(self.denoised)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, done."""

    index: int  # among those of the request, from 0
    image: Image
    record: Record
    signer: Signer | None = field(default=None, compare=False, repr=False)  # of its file

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as a PNG with its record, the file whole or not at all; returns the path. Raises OutputError.

        It is signed, where somebody signs (see `load`): a signature has its time, and differs from one to the next.
        """
        from tintype.image.png import write_png

        if self.signer is None:
            return write_png(path, self.image, self.record.texts())
        signer, title = self.signer, Path(path).name
        return write_png(path, self.image, self.record.texts(), lambda png: signer.sign(png, self.record, title))


def new_path(prompt: str, seed: int | None, count: int = 1) -> Path:
    """A PNG in the current folder, named by the first words of a prompt and its seed: red-sailboat-on-a-calm-sea-7.png.

    Of `picture_paths` for that many pictures none is there yet.
    """
    words = re.findall(r"\w+", unicodedata.normalize("NFC", prompt).lower())
    words = words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words
    stem = "-".join(words[:NAME_WORDS]).encode()[:NAME_BYTES].decode(errors="ignore") or "picture"
    stem += "" if seed is None else f"-{seed}"
    named = (Path(f"{stem}{f'-{number}' * (number > 1)}.png") for number in itertools.count(1))
    return next(path for path in named if not any(each.exists() for each in picture_paths(path, count)))


def picture_paths(path: str | os.PathLike[str], count: int) -> list[Path]:
    """[x.png] for one picture, x-1.png, x-2.png, ... for more, with as many digits as the last one has."""
    path = Path(path)
    if not path.name:
        raise OutputError("the picture has no name", fix="name a file, such as picture.png")
    if count == 1:
        return [path]
    digits = len(str(count))
    return [path.with_name(f"{path.stem}-{number:0{digits}}{path.suffix}") for number in range(1, count + 1)]
