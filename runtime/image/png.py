"""PNG files with texts: written whole or not at all, read without trusting them."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tintype.errors import OutputError, RecordError
from tintype.files import demand_replaceable, output_error, write_output
from tintype.image.reads import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

RECORD_KEY = "tintype"  # the keyword of the text that holds a picture's record
# How zlib looks for what repeats, which nothing does in pictures: 3 to 6 times as fast as its default, and 512x512
# pixels take 0.99 to 1.00 of its bytes. Flat areas take up to 1.13.
STRATEGY = zlib.Z_RLE


def write_png(
    path: str | os.PathLike[str],
    image: Image,
    texts: Mapping[str, str],
    sign: Callable[[bytes], bytes] | None = None,
) -> Path:
    """Write a PNG beside its place and move it there, so that no reader and no crash sees half a file.

    The same image and texts give the same bytes. sign: what the file's bytes become at last. Raises OutputError; a file
    that was there before is then untouched.
    """
    from PIL.PngImagePlugin import PngInfo

    path = Path(path)
    check_writable(path)
    info = PngInfo()
    for keyword, text in texts.items():
        if keyword.startswith("XML:"):  # iTXt is what its readers look for
            info.add_itxt(keyword, text)
        else:
            info.add_text(keyword, text)  # as Latin-1 when it can be, else UTF-8

    def write(file: BinaryIO) -> None:
        image.save(file, format="PNG", pnginfo=info, compress_type=STRATEGY)

    if sign is None:
        return write_output(path, write)
    unsigned = io.BytesIO()
    write(unsigned)
    signed = sign(unsigned.getvalue())
    return write_output(path, lambda file: file.write(signed))


def check_writable(path: str | os.PathLike[str]) -> None:
    """OutputError when a PNG surely can't be written there: worth asking before the work starts."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path} is no .png name", fix=f"write {path.with_suffix('.png') if path.name else 'x.png'}")
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder", fix=f"name a file in it: {path / 'picture.png'}")
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder {path.parent}", fix=f"make it (mkdir -p {path.parent})")
        demand_replaceable(path)
    except (OSError, ValueError) as error:
        raise output_error(path, error) from None


def read_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts of a PNG by keyword. Raises RecordError when it can't be read."""
    from PIL import Image

    remedy = "give a PNG that tintype wrote"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that nothing here needs
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_image(path, ["PNG"]) as image:
                if getattr(image, "is_animated", False):  # each frame would be drawn
                    raise ValueError("it has more than one frame")
                texts = getattr(image, "text", {})
                return {str(keyword): str(text) for keyword, text in texts.items()}
    except FileNotFoundError:
        raise RecordError(f"there is no file {path}", fix=remedy) from None
    except Exception as error:  # a hostile file makes a decoder raise almost anything
        raise RecordError(f"{path} cannot be read as a PNG: {error}", fix=remedy) from None
