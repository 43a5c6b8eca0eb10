"""The doors to bundles: of a model, an overlay of one, or what stands beside models, whichever a folder holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from tintype.bundle.bundle import Bundle, bundle_folder, open_model, read_manifest_as
from tintype.bundle.controlnet import ControlManifest, ControlNet, open_controlnet
from tintype.bundle.image_encoder import ImageEncoder, ImageEncoderManifest, open_image_encoder
from tintype.bundle.library import OVERLAY_NAME, is_overlay
from tintype.bundle.manifest import MANIFEST_NAME, Manifest
from tintype.bundle.one_graph import family_beside
from tintype.bundle.t2i_adapter import AdapterManifest, T2IAdapter, open_t2i_adapter
from tintype.uses import CONTROLNET, IMAGE_ENCODER, T2I_ADAPTER

Control: TypeAlias = ControlNet | T2IAdapter
BesideModels: TypeAlias = Control | ImageEncoder
AnyManifest: TypeAlias = Manifest | ControlManifest | AdapterManifest | ImageEncoderManifest

_CONTROLS: Mapping[str, Callable[[str | os.PathLike[str]], Control]] = {
    CONTROLNET: open_controlnet,
    T2I_ADAPTER: open_t2i_adapter,
}
_KINDS: Mapping[str | None, type[AnyManifest]] = {
    None: Manifest,
    CONTROLNET: ControlManifest,
    T2I_ADAPTER: AdapterManifest,
    IMAGE_ENCODER: ImageEncoderManifest,
}


def open_bundle(name_or_path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle by its embedded name ("postcard"), its folder, or its name in the library, and check all of it.

    An embedded name wins over a folder of the same name, and that over one in the library (see `bundle.library`);
    `./postcard` is the folder. Files of a bundle above 64 MiB are hashed once and then remembered by size and time of
    change; smaller bundles are hashed each time. An overlay (`bundle.overlay`) is opened as the bundle that it changes.

    Raises BundleError for what is missing, cut short, changed, hostile or of a newer format.
    """
    folder = bundle_folder(name_or_path)
    if is_overlay(folder):
        from tintype.bundle.overlay import open_overlay

        return open_overlay(folder)
    return open_model(folder)


def open_any(name_or_path: str | os.PathLike[str]) -> Bundle | BesideModels:
    """Open a bundle of any kind. Raises BundleError."""
    family = family_beside(bundle_folder(name_or_path))
    if family == IMAGE_ENCODER:
        return open_image_encoder(name_or_path)
    return open_bundle(name_or_path) if family is None else _CONTROLS[family](name_or_path)


def open_control_bundle(name_or_path: str | os.PathLike[str]) -> Control:
    """Open what controls a model, by its folder, or its name in the library. Raises BundleError for all else."""
    family = family_beside(bundle_folder(name_or_path))
    return _CONTROLS.get(family or CONTROLNET, open_controlnet)(name_or_path)


def facts_of(folder: Path) -> tuple[AnyManifest, str, int, tuple[str, ...]]:
    """What a bundle of any kind, or an overlay, says of itself: the manifest, the hash, and its own bytes and files,
    of which the last one tells that it is there. The files are not looked at, but for those of an overlay. Raises
    BundleError."""
    if not is_overlay(folder):
        manifest, digest = read_manifest_as(folder, _KINDS[family_beside(folder)])
        total = sum(file.bytes for file in manifest.files.values())
        return manifest, digest, total, (*manifest.files, MANIFEST_NAME)
    from tintype.bundle.overlay import open_overlay

    opened = open_overlay(folder)
    files = tuple(path.relative_to(folder).as_posix() for path in opened.changed.values())
    total = sum((folder / name).stat().st_size for name in files)
    return opened.manifest, opened.hash, total, (*files, OVERLAY_NAME)
