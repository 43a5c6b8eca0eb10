"""Latents on disk: denoised pictures that wait for their decoding, each with its record.

One safetensors file: the tensor `latents`, float32 (pictures, channels, height, width) as the VAE's decoder takes
them before scaling, and in its metadata under `tintype` a JSON list of records, one a picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tintype import strict_json
from tintype.arrays import Latents
from tintype.bounds import MAX_LATENTS_BYTES, MAX_LATENTS_HEADER_BYTES
from tintype.bundle.manifest import Manifest
from tintype.errors import BundleError, OutputError, RecordError
from tintype.files import open_plain, write_output
from tintype.image.png import RECORD_KEY
from tintype.record.record import Record, parse_record

SUFFIX = ".latents.safetensors"
TENSOR = "latents"


@dataclass(frozen=True, slots=True)
class SavedLatents:
    """What a latents file holds."""

    latents: Latents
    records: tuple[Record, ...]  # one a picture

    def check(self, manifest: Manifest) -> None:
        """BundleError when these can't be latents of this bundle, RecordError where a picture comes twice."""
        pictures = [record.picture for record in self.records]
        if pictures != sorted(set(pictures)):
            raise RecordError("the records of these latents are in no order", fix="make the pictures again")
        request, factor = self.records[0].request, manifest.vae_scale_factor
        wanted = (manifest.latent_channels, request.height // factor, request.width // factor)
        if self.latents.shape[1:] != wanted:
            raise BundleError(
                f"the latents are {self.latents.shape[1:]} each, this bundle's would be {wanted}",
                fix="give the bundle that they were made with",
            )


def latents_path(picture: str | os.PathLike[str]) -> Path:
    """Where the latents of a picture that couldn't be decoded go: beside it, x.png -> x.latents.safetensors."""
    return Path(picture).with_suffix(SUFFIX)


def save_latents(path: str | os.PathLike[str], latents: Latents, records: Sequence[Record]) -> Path:
    """Write latents with one record each, the file whole or not at all. Raises OutputError."""
    data = np.ascontiguousarray(latents, dtype="<f4")
    texts = [strict_json.plain(record) for record in records]
    # Written without the library: this runs when memory is so short that importing one more may fail.
    header = {
        "__metadata__": {RECORD_KEY: json.dumps(texts)},
        TENSOR: {"dtype": "F32", "shape": list(data.shape), "data_offsets": [0, data.nbytes]},
    }
    head = json.dumps(header).encode()
    if len(head) > MAX_LATENTS_HEADER_BYTES:
        raise OutputError(
            f"the records of {len(texts):,} pictures, with prompts that long, fit no latents file",
            fix="draw fewer pictures at once",
        )
    head += b" " * (-len(head) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(head).to_bytes(8, "little") + head)
        file.write(data.tobytes())

    return write_output(Path(path), write)


def read_latents(path: str | os.PathLike[str]) -> SavedLatents:
    """Read what `save_latents` wrote. Raises RecordError for anything else."""
    from safetensors import SafetensorError, safe_open

    remedy = "give a file that tintype wrote when it couldn't decode"
    try:
        with open_plain(path, MAX_LATENTS_BYTES) as plain:
            if int.from_bytes(plain.read(8), "little") > MAX_LATENTS_HEADER_BYTES:
                raise RecordError(f"{path} holds no latents: its header is too large", fix=remedy)
        with safe_open(str(path), framework="numpy") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            latents = file.get_tensor(TENSOR) if names == [TENSOR] and RECORD_KEY in metadata else None
    except FileNotFoundError:
        raise RecordError(f"there is no file {path}", fix=remedy) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise RecordError(f"{path} holds no latents: {error}", fix=remedy) from None
    if latents is None:
        raise RecordError(f"{path} holds no latents with a record", fix=remedy)
    records = _records(metadata[RECORD_KEY], path)
    sound = latents.ndim == 4 and latents.dtype == np.float32 and len(latents) == len(records)
    if not (sound and np.isfinite(latents).all()):
        raise RecordError(f"{path} holds latents that don't go with its {len(records)} records", fix=remedy)
    return SavedLatents(latents, records)


def _records(text: str, path: str | os.PathLike[str]) -> tuple[Record, ...]:
    try:
        values = strict_json.parse(text)
    except strict_json.Misfit as misfit:
        raise RecordError(f"the records in {path} cannot be read: {misfit}", fix="make the picture again") from None
    records = tuple(parse_record(json.dumps(value)) for value in values) if isinstance(values, list) else ()
    if not records or any(record.typed_request != records[0].typed_request for record in records):
        raise RecordError(f"the records in {path} are not those of one request", fix="make the picture again")
    return records
