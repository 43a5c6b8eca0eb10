"""What was given where a bundle, or an adapter of another kind, was expected; and how it is used instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tintype.errors import ExportError
from tintype.sources.folder import CONFIG, INDEX, is_adapter_config, is_controlnet_config, is_image_encoder, read_config
from tintype.sources.header import read_header
from tintype.sources.hub import address_of, is_address
from tintype.sources.looks import Look, adapter_look

WEIGHTS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Mistaken:
    """name: what it is, as in `a ControlNet's checkpoint`. fix: what to do with it."""

    name: str
    fix: str


def mistaken_for_bundle(place: Path) -> Mistaken | None:
    """What lies there and is no bundle; None where nothing is known of it."""
    export = f"export it once: tintype export {place} BUNDLE"
    try:
        is_file, is_folder = place.is_file(), place.is_dir()
    except OSError:  # a name too long
        return None
    if is_file and place.suffix == WEIGHTS:
        look = _look_of(place)
        if look is not None:
            return Mistaken(look.name, look.need)
        return Mistaken("a file of weights", f"{export}; tintype info says what it is")
    name = _checkpoint_name(place) if is_folder else None
    return None if name is None else Mistaken(name, export)


def _checkpoint_name(folder: Path) -> str | None:
    if (folder / INDEX).is_file():
        return "a checkpoint"
    try:
        if is_image_encoder(folder):
            return "an image encoder's checkpoint"
        config = read_config(folder / CONFIG)
    except ExportError:
        return None
    if is_controlnet_config(config):
        return "a ControlNet's checkpoint"
    return "a T2I-Adapter's checkpoint" if is_adapter_config(config) else None


def _look_of(file: Path) -> Look | None:
    try:
        return adapter_look(read_header(file).tensors)
    except ExportError:
        return None


def export_from_hub(place: Path) -> str:
    """Behind the fix for a bundle that isn't there: how it is fetched, where its name may be one on the hub."""
    if not _may_be_address(place) or address_of(str(place)).file:
        return ""
    return f"; or, of the Hugging Face hub: tintype export {place} BUNDLE"


def file_from_hub(place: Path) -> str:
    """The same of an adapter's file, which is given as it is."""
    if not _may_be_address(place) or (place.suffix == WEIGHTS and len(place.parts) == 2):
        return ""
    known = address_of(str(place))
    return f"; or, of the Hugging Face hub: hf download {known.repository} {known.file or 'FILE'} --local-dir FOLDER"


def _may_be_address(place: Path) -> bool:
    try:
        return is_address(place) and not Path(place.parts[0]).exists()
    except OSError:  # a name too long
        return False
