"""Pictures that a user brings. What leaves here is upright, opaque and sRGB, and is never turned or converted twice.

Nothing is decoded before its header says that it has no more than MAX_PIXELS, and whatever Pillow stumbles over is a
RequestError.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tintype.errors import RequestError
from tintype.image.reads import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

Source: TypeAlias = "Image | NDArray[Any] | str | os.PathLike[str]"

MAX_PIXELS = 2**26

# The transposition that undoes each of EXIF's orientations, from 2 on; 1 is upright.
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_ONE_PICTURE = ("MPO", "PSD")  # further frames are previews, gain maps or layers of the first, which is the picture
_VECTORS = ("EPS", "WMF")  # Pillow hands them to other programs


def open_picture(source: Source, *, what: str = "image", background: str = "white") -> Image:
    """An RGB picture, decoded, with nothing in its `info`. what: what messages call it.

    background: what shows through where the picture is transparent: a colour's name, or #rrggbb.
    """
    from PIL import Image

    behind = colour_of(background)
    colour, alpha = read_layers(source, what)
    picture = _to_srgb(colour, colour.info.get("icc_profile"))
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, behind), alpha)
    picture.info = {}
    return picture


def picture_bytes_hash(image: Image) -> str:
    """What a record keeps of a picture: sha256 over its mode, size and pixels."""
    head = f"{image.mode} {image.width}x{image.height}\n"
    return hashlib.sha256(head.encode() + image.tobytes()).hexdigest()


def read_layers(source: object, what: str) -> tuple[Image, Image | None]:
    """The colours of an upright picture (L, RGB or CMYK, of eight bits) with their profile, and its alpha if any."""
    from PIL import Image

    if not isinstance(source, str | os.PathLike | np.ndarray | Image.Image):
        fix = "give the name of a file, a Pillow image or a numpy array"
        raise RequestError(f"the {what} cannot be a {type(source).__name__}", fix=fix)
    name = str(source)[:200] if isinstance(source, str | os.PathLike) else f"the {what}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, refused below, and of metadata that nothing here needs
            if isinstance(source, np.ndarray):
                return _layers(_of_array(source, name), name)
            if isinstance(source, Image.Image):
                return _layers(_upright(source, name), name)
            if Path(source).is_dir():
                raise RequestError(f"{name} is a folder", fix="name a file in it")
            with open_image(source) as image:
                return _layers(_upright(image, name), name)
    except RequestError:
        raise
    except Exception as error:  # a hostile file makes a decoder raise almost anything
        raise _read_error(name, error) from None


def _upright(image: Image, name: str) -> Image:
    from PIL.Image import Transpose

    if image.format in _VECTORS:
        raise RequestError(f"{name} is {image.format}, which has no pixels yet", fix="save it as a PNG")
    if getattr(image, "is_animated", False) and image.format not in _ONE_PICTURE:
        fix = "give one frame: save it as a PNG, or in Python image.seek(0) and image.copy()"
        raise RequestError(f"{name} has more than one frame", fix=fix)
    _demand_pixels(*image.size, name)
    image.load()
    try:
        orientation = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)  # Pillow turns a TIFF itself
        turn = dict(enumerate(_TURNS, start=2)).get(orientation)
    except Exception:  # EXIF is often damaged where the picture is whole
        turn = None
    return image if turn is None else image.transpose(Transpose[turn])


def _layers(image: Image, name: str) -> tuple[Image, Image | None]:
    from PIL import Image

    key = image.info.get("transparency")  # of a palette, or the one colour that is transparent
    alpha = None
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image)
        if image.mode == "I" and samples.min() >= 0 and samples.max() <= 65535:
            samples = samples.astype(np.uint16)
        colour = Image.fromarray(_eight_bits(samples, name))
        if isinstance(key, int):
            alpha = Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8))
    else:
        colour = image
        if key is not None or image.mode in ("RGBA", "RGBa", "LA", "PA"):
            colour = image.convert("RGBA")
            alpha = colour.getchannel("A")
        if image.mode in ("1", "L", "LA"):
            colour = image.getchannel(0).convert("L")
        elif image.mode != "CMYK":
            colour = colour.convert("RGB")
    if image.info.get("icc_profile"):
        colour.info["icc_profile"] = image.info["icc_profile"]
    return colour, alpha


def _of_array(array: NDArray[Any], name: str) -> Image:
    from PIL import Image

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise RequestError(
            f"{name} is an array of shape {array.shape}",
            fix="give (height, width), or (height, width, channels) with 1, 3 or 4 channels",
        )
    _demand_pixels(array.shape[1], array.shape[0], name)
    samples = _eight_bits(array, name)
    return Image.fromarray(np.ascontiguousarray(samples[:, :, 0] if samples.shape[2:] == (1,) else samples))


def _eight_bits(samples: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype.kind == "u" and samples.dtype.itemsize == 2:
        return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if samples.dtype.kind == "f" and bool(((samples >= 0) & (samples <= 1)).all()):  # not so with NaN
        return np.rint(samples.astype(np.float32, copy=False) * np.float32(255)).astype(np.uint8)
    span = f" from {samples.min()} to {samples.max()}" if samples.dtype.kind in "biuf" else ""
    raise RequestError(
        f"{name} has samples that are no shades: {samples.dtype}{span}",
        fix="give uint8 of 0 to 255, uint16 of 0 to 65535, or floats of 0 to 1 (divide those of 0 to 255 by 255)",
    )


def _to_srgb(colour: Image, profile: Any) -> Image:
    """RGB as it is where the profile's colours are sRGB's, or where nothing can be made of it."""
    from PIL import Image, ImageCms

    plain = colour.convert("RGB")
    if not profile:
        return plain
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * len(colour.getbands())), axis=-1)
    probe = Image.frombytes(colour.mode, (grid.size // grid.shape[-1], 1), grid.tobytes())
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), colour.mode, "RGB")
        probed = transform.apply(probe)
        change = np.asarray(probed, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
        return plain if np.abs(change).max() <= 1 else transform.apply(colour)
    except (ImportError, OSError, TypeError, ValueError, ImageCms.PyCMSError):
        return plain


def colour_of(background: str) -> tuple[int, ...]:
    """Red, green and blue, 0 to 255, of a colour's name or #rrggbb. Raises RequestError where it is none."""
    from PIL import ImageColor

    with contextlib.suppress(AttributeError, TypeError, ValueError):
        colour = ImageColor.getrgb(background)
        if len(colour) == 3 and max(colour) <= 255:
            return colour
    raise RequestError(
        f"background {str(background)[:60]!r} is no colour", fix="give a name, or #rrggbb: white, #ffffff"
    )


def _demand_pixels(width: int, height: int, name: str) -> None:
    if width * height == 0:
        raise RequestError(f"{name} has no pixels: it is {width}x{height}", fix="give a picture of at least one")
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"{name} is {width:,}x{height:,}, more than {MAX_PIXELS:,} pixels", fix="make it smaller first"
        )


def _read_error(name: str, error: Exception) -> RequestError:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        fix = "download it first, and give the file" if "://" in name else "check its name and its folder"
        return RequestError(f"there is no file {name}", fix=fix)
    if isinstance(error, UnidentifiedImageError):
        fix = "give a PNG, JPEG or WebP; save a picture of another kind (HEIC, SVG, raw) as one"
        return RequestError(f"{name} is no picture that can be read here", fix=fix)
    if isinstance(error, Image.DecompressionBombError):
        return RequestError(f"{name} has too many pixels; {MAX_PIXELS:,} are the most", fix="make it smaller first")
    if isinstance(error, OSError) and error.errno is not None:
        return RequestError(f"{name} cannot be opened: {error.strerror}", fix="check its name and who may read it")
    fix = "it may be cut short or damaged: copy it again, or save it as a PNG"
    return RequestError(f"{name} cannot be read: {str(error) or type(error).__name__}", fix=fix)
