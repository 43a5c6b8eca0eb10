"""A VAE in place of a checkpoint's own: one file in either naming, or a folder of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tintype.errors import ExportError
from tintype.export.sources.autoencoder import vae_config, vae_entries
from tintype.export.sources.entries import Entries
from tintype.export.sources.source import CheckpointSource
from tintype.sources.folder import find_weights, read_config
from tintype.sources.header import read_header
from tintype.sources.looks import looks_like
from tintype.sources.one_file import VAE, XL


def with_vae(source: CheckpointSource, vae: Path) -> CheckpointSource:
    """The checkpoint with that VAE. A file has no scaling factor, so the checkpoint's own stays.

    Raises ExportError for what isn't there or is no VAE.
    """
    if not vae.exists():
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
