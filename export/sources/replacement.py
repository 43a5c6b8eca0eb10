"""A VAE in place of a checkpoint's own, or a tiny one beside it: one file, or a folder of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tintype.errors import ExportError, printable
from tintype.export.sources.autoencoder import vae_config, vae_entries
from tintype.export.sources.entries import Entries
from tintype.export.sources.source import TINY, TINY_VAE, CheckpointSource
from tintype.export.sources.taesd import has_numbered_layers, numbered_entries
from tintype.files import is_there
from tintype.sources.folder import find_weights, read_config
from tintype.sources.header import read_header
from tintype.sources.looks import looks_like
from tintype.sources.one_file import VAE, XL


def with_vae(source: CheckpointSource, vae: Path) -> CheckpointSource:
    """The checkpoint with that VAE. A file has no scaling factor, so the checkpoint's own stays.

    Raises ExportError for what isn't there or is no VAE.
    """
    if not is_there(vae):
        raise ExportError(f"there is no VAE at {str(vae)!r}", fix="give a .safetensors file, or a folder vae/")
    if vae.is_dir():
        folder = vae / "vae" if (vae / "vae").is_dir() else vae
        config: Mapping[str, Any] = read_config(folder / "config.json")
        kept = {name: entries for name, entries in source.entries.items() if name != "vae"}
        paths = find_weights(folder)
        vae = folder
    else:
        entries, config = _of_file(vae, source)
        kept, paths = {**source.entries, "vae": entries}, (vae,)
    return replace(
        source,
        configs={**source.configs, "vae": config},
        weights={**source.weights, "vae": paths},
        entries=kept,
        vae=vae,
    )


def with_tiny_vae(source: CheckpointSource, tiny_vae: Path) -> CheckpointSource:
    """The checkpoint with an AutoencoderTiny beside its own VAE: its folder, or its .safetensors file, in diffusers'
    naming or its authors' own, where the other half's lies beside it.

    A file has no config: it is taken for TAESD's, of which diffusers' defaults are the layers. Raises ExportError.
    """
    config: Mapping[str, Any] = {}
    entries = dict(source.entries)
    if tiny_vae.is_dir():
        config, paths = read_config(tiny_vae / "config.json"), find_weights(tiny_vae)
    elif tiny_vae.is_file():
        header, paths = read_header(tiny_vae), (tiny_vae,)
        if has_numbered_layers(header):
            entries[TINY_VAE], paths = numbered_entries(header)
    else:
        raise ExportError(
            f"there is no tiny autoencoder at {str(tiny_vae)!r}", fix="give its folder or .safetensors file"
        )
    kind = config.get("_class_name", TINY)
    if kind != TINY:
        raise ExportError(
            f"{tiny_vae} holds a {printable(str(kind))}, not an {TINY}", fix="give TAESD, or for XL TAESDXL"
        )
    return replace(
        source,
        configs={**source.configs, TINY_VAE: config},
        weights={**source.weights, TINY_VAE: paths},
        entries=entries,
        tiny_vae=tiny_vae,
    )


def _of_file(path: Path, source: CheckpointSource) -> tuple[Entries, Mapping[str, Any]]:
    header = read_header(path)
    prefix = VAE if f"{VAE}decoder.conv_in.weight" in header.tensors else ""
    if not {f"{prefix}{half}.conv_in.weight" for half in ("encoder", "decoder")} <= header.tensors.keys():
        raise ExportError(
            f"{path} is no VAE with both halves: it looks like {looks_like(header.tensors).name}",
            fix="give one that encodes and decodes (AutoencoderKL)",
        )
    entries = vae_entries(header, prefix)
    is_xl = "text_encoder_2" in source.configs
    own = source.configs.get("vae", {})
    factor = own.get("scaling_factor", XL.scaling_factor if is_xl else 0.18215)
    return entries, vae_config(path, entries, scaling_factor=factor, is_xl=is_xl)
