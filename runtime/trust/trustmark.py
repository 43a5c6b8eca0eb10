"""TrustMark (Bui et al. 2023) by an operator's own files: encoder_Q.onnx, decoder_Q.onnx, or another variant's.

The encoder sees the picture at its own size, 256x256, and gives it back with 100 bits in it. What it changed, less each
channel's mean, is brought to the picture's size and added; the decoder sees the marked picture at 256x256 again. Of a
picture more than twice as long as wide (of variant P: of each) only the middle square is marked and looked at, and the
change fades at its edges.

Two TrustMarks on one picture destroy each other, so one that is there is read first, and kept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Pixels
from tintype.errors import NumericError, RequestError
from tintype.files import sha256_of
from tintype.record.record import TrustMarkFacts
from tintype.trust.operator_graph import MAX_SIDE, open_graph, run_graph
from tintype.trust.payload import Payload
from tintype.trust.trustmark_bits import LENGTH, OURS, TrustMarkBits, own_data, read_bits, written

if TYPE_CHECKING:
    from tintype.engine import PlainGraph

VARIANTS = "QBCP"  # the first of them that is there is taken
SQUARE = "P"  # sees the middle square of every picture
SQUARE_STRENGTH = 1.25  # of that one
MOST_LONG = 2.0  # times as long as wide, as a whole
USUAL_SIDE = 256  # pixels, where a graph leaves it open
FADE = 1 / 32  # of a square's side, at each of its edges
_FIX = "give the folder of TrustMark's own files: encoder_Q.onnx and decoder_Q.onnx"
_TYPES = (np.float32, np.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustMarkReading:
    """What the pixels say. confidence: 1 less the share of random bits that would say as much."""

    found: bool
    confidence: float
    variant: str  # of the files it was read by
    schema: str | None = None
    payload: str | None = None  # zeros and ones
    turned: int | None = None  # bits that were put right
    maker: str | None = None  # an installation of Tintype, 6 hexadecimal digits; None: somebody else's mark


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustMark:
    """Open graphs. encoder: None where marks are read alone."""

    variant: str
    sha256: str  # of the encoder's file
    encoder: PlainGraph | None = field(compare=False, repr=False)
    decoder: PlainGraph = field(compare=False, repr=False)

    def mark(
        self, pixels: Pixels, payload: Payload, where: NDArray[np.float32] | None = None
    ) -> tuple[Pixels, TrustMarkFacts]:
        """A picture, (height, width, 3), with a mark: the one that it has, else one of ours.

        where: (height, width), 0 to 1, where it may change; None is everywhere. Raises NumericError.
        """
        bits = self.read(pixels)
        if bits is not None and bits.is_found:
            return pixels, TrustMarkFacts(
                variant=self.variant, sha256=self.sha256, payload=bits.binding, psnr_db=None, is_read=True, kept=True
            )
        data = own_data(payload)
        change = self._change(pixels, written(data))
        if where is not None:
            change *= where[..., np.newaxis]
        marked = np.clip(np.rint(pixels + change), 0, 255).astype(np.uint8)
        facts = TrustMarkFacts(
            variant=self.variant,
            sha256=self.sha256,
            payload=f"{OURS.version}*{data}",
            psnr_db=_psnr_db(pixels, marked),
            is_read=False,
        )
        return marked, facts

    def checked(self, facts: TrustMarkFacts, pixels: Pixels, parent: Pixels | None = None) -> TrustMarkFacts:
        """The same, as the mark is read in the picture once it is done.

        parent: (1, height, width, 3), what it was made from, whose own mark is then told too.
        """
        bits, before = self.read(pixels), None if parent is None else self.read(parent[0])
        return replace(
            facts,
            is_read=bits is not None and bits.is_found and bits.binding == facts.payload,
            parent=before.binding if before is not None and before.is_found else None,
        )

    def read(self, pixels: Pixels) -> TrustMarkBits | None:
        """What a picture's 100 bits may mean; None where they mean nothing. Raises NumericError."""
        image, _ = self._seen(pixels, self.decoder)
        values = _only(run_graph(self.decoder, {self.decoder.inputs[0].name: image}, "TrustMark's decoder"), "output")
        if values.size != LENGTH or not np.isfinite(values).all():
            raise NumericError(f"TrustMark's decoder gave no {LENGTH} numbers", fix=_FIX)
        return read_bits(values.reshape(-1) > 0)

    def reading(self, pixels: Pixels) -> TrustMarkReading:
        """The same as `verify` says it."""
        bits = self.read(pixels)
        if bits is None or not bits.is_found:
            return TrustMarkReading(found=False, confidence=0.0, variant=self.variant)
        own = bits.payload
        return TrustMarkReading(
            found=True,
            confidence=1.0 - bits.false_alarms,
            variant=self.variant,
            schema=bits.schema.name,
            payload=bits.data,
            turned=bits.turned,
            maker=None if own is None else f"{own.maker:06x}",
        )

    def _seen(self, pixels: Pixels, graph: PlainGraph) -> tuple[NDArray[Any], tuple[slice, slice]]:
        """What a graph sees of a picture, (1, 3, side, side) from -1 to 1; and which part of the picture that is."""
        from PIL import Image

        port = next(port for port in graph.inputs if len(port.shape) == 4)
        side, part = _side(port.shape), self._part(pixels.shape[:2])
        small = Image.fromarray(pixels[part]).resize((side, side), Image.Resampling.BILINEAR)
        image = np.asarray(small, np.float32).transpose(2, 0, 1)[np.newaxis] / np.float32(127.5) - np.float32(1)
        return np.ascontiguousarray(image, port.dtype), part

    def _part(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Rows and columns that are marked."""
        least = min(shape)
        if self.variant != SQUARE and max(shape) <= MOST_LONG * least:
            return slice(0, shape[0]), slice(0, shape[1])
        rows, columns = (slice((side - least) // 2, (side - least) // 2 + least) for side in shape)
        return rows, columns

    def _change(self, pixels: Pixels, bits: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(height, width, 3) in levels of 255: what the encoder would change."""
        assert self.encoder is not None
        image, part = self._seen(pixels, self.encoder)
        outputs = run_graph(self.encoder, _encoder_inputs(self.encoder, image, bits), "TrustMark's encoder")
        marked = _only(outputs, "image")
        if marked.shape != image.shape or not np.isfinite(marked).all():
            raise NumericError("TrustMark's encoder gave no picture of its own size", fix=_FIX)
        residual = np.clip(marked, -1, 1)[0].astype(np.float32) - image[0].astype(np.float32)
        residual -= residual.mean(axis=(1, 2), keepdims=True)
        height, width = (each.stop - each.start for each in part)
        change = np.zeros(pixels.shape, np.float32)
        change[part] = _resized(residual, height, width) * np.float32(127.5 * self._strength)
        if (height, width) != pixels.shape[:2]:
            change[part] *= _fading(height)[..., np.newaxis]
        return change

    @property
    def _strength(self) -> float:
        return SQUARE_STRENGTH if self.variant == SQUARE else 1.0


def open_trustmark(folder: str | os.PathLike[str], *, writes: bool = True) -> TrustMark:
    """TrustMark's files in a folder. writes: False opens the decoder alone.

    Raises RequestError for other files, and NumericError for some that don't run.
    """
    place = Path(folder)
    variant = next((each for each in VARIANTS if (place / f"decoder_{each}.onnx").is_file()), None)
    if variant is None:
        raise RequestError(f"there is no decoder of TrustMark in {place}", fix=_FIX)
    paths = {name: place / f"{name}_{variant}.onnx" for name in ("encoder", "decoder")}
    decoder = open_graph(paths["decoder"], _unfit)
    if len(decoder.inputs) != 1 or not _is_image(decoder.inputs[0]):
        raise _unfit(paths["decoder"], "it doesn't take one image")
    encoder, sha256 = None, ""
    if writes:
        encoder, sha256 = open_graph(paths["encoder"], _unfit), sha256_of(paths["encoder"])
        kinds = sorted(len(port.shape) for port in encoder.inputs)
        if kinds != [2, 4] or not all(_is_image(port) or _is_secret(port) for port in encoder.inputs):
            raise _unfit(paths["encoder"], f"it doesn't take an image and {LENGTH} bits")
    opened = TrustMark(variant=variant, sha256=sha256, encoder=encoder, decoder=decoder)
    blank = np.zeros((64, 64, 3), np.uint8)
    opened.read(blank)
    if writes:
        opened._change(blank, np.zeros(LENGTH, bool))
    return opened


def _encoder_inputs(graph: PlainGraph, image: NDArray[Any], bits: NDArray[np.bool_]) -> Mapping[str, NDArray[Any]]:
    """By name: the ports have those that an exporter made up."""
    return {
        port.name: image if _is_image(port) else bits[np.newaxis].astype(port.dtype or np.float32)
        for port in graph.inputs
    }


def _is_image(port: Any) -> bool:
    if len(port.shape) != 4 or port.dtype not in _TYPES:
        return False
    return _is_or_open(port.shape[1], 3) and 0 < _side(port.shape) <= MAX_SIDE


def _is_secret(port: Any) -> bool:
    return len(port.shape) == 2 and port.dtype in _TYPES and _is_or_open(port.shape[1], LENGTH)


def _is_or_open(dimension: int | str | None, size: int) -> bool:
    return dimension == size or not isinstance(dimension, int)


def _side(shape: tuple[int | str | None, ...]) -> int:
    return next((side for side in shape[2:] if isinstance(side, int)), USUAL_SIDE)


def _only(outputs: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """An output by the name that TrustMark's own files have, else the first."""
    return outputs[name] if name in outputs else next(iter(outputs.values()))


def _resized(residual: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(3, side, side) -> (height, width, 3), bilinear; where it gets smaller, over all that a pixel covers."""
    from PIL import Image

    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in residual]
    return np.stack([np.asarray(each.resize((width, height), Image.Resampling.BILINEAR)) for each in planes], axis=-1)


def _fading(side: int) -> NDArray[np.float32]:
    """(side, side): 1 but for the edges, where it falls to 0."""
    from_edge = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    line = np.minimum(1.0, from_edge / max(1.0, FADE * side)).astype(np.float32)
    return np.minimum(line[:, np.newaxis], line)


def _psnr_db(before: Pixels, after: Pixels) -> float | None:
    error = float(np.mean(np.square(before.astype(np.int16) - after)))
    return round(10 * math.log10(255.0**2 / error), 2) if error else None


def _unfit(path: Path, problem: str) -> RequestError:
    return RequestError(f"{path} is none of TrustMark's files: {problem}", fix=_FIX)
