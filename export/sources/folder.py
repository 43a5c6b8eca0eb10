"""A diffusers folder: its parts as model_index.json and the configs say.

Parts that no picture is drawn with (safety_checker, feature_extractor, null ones) are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tintype.errors import ExportError
from tintype.export.sources.autoencoder import vae_entries
from tintype.export.sources.clip import clip_entries
from tintype.export.sources.entries import Entries, Entry
from tintype.export.sources.image_encoder import REDUNDANT
from tintype.export.sources.source import CheckpointSource, TokenizerPlace
from tintype.sources.families import Family, family_of, tokenizer_of
from tintype.sources.folder import INDEX, SCHEDULER, find_weights, headers_of, read_config
from tintype.sources.licence import read_licence
from tintype.uses import IMAGE_ENCODER


def open_folder(folder: Path) -> CheckpointSource:
    """Look at a diffusers folder. Raises ExportError for what it lacks, and for classes that aren't known."""
    if not (folder / INDEX).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ExportError(
            f"{folder} is not a diffusers checkpoint: it has no {INDEX} (it holds {found})",
            fix="give the folder that save_pretrained wrote, with unet/, vae/ and text_encoder/ in it, or one "
            ".safetensors file",
        )
    index = read_config(folder / INDEX)
    family = family_of(folder, index)
    configs = {name: read_config(folder / name / "config.json") for name in family.components}
    configs["scheduler"] = read_config(folder / SCHEDULER)
    return CheckpointSource(
        location=folder,
        index=index,
        configs=configs,
        weights={name: find_weights(folder / name) for name in family.components},
        tokenizers=tokenizer_places(folder, family),
        licence=read_licence(folder),
    )


def folder_entries(paths: tuple[Path, ...], component: str) -> Entries:
    """Where the tensors of one part lie, by the names that its module has today (text encoders: without a prefix)."""
    found: dict[str, Entry] = {}
    for header in headers_of(paths):
        if component.startswith("text_encoder"):
            found.update(clip_entries(header, ""))
        elif component == IMAGE_ENCODER:
            found.update({name: Entry.of(header, name) for name in header.tensors if name not in REDUNDANT})
        elif component == "vae":
            found.update(vae_entries(header))
        else:
            found.update({name: Entry.of(header, name) for name in header.tensors})
    return found


def tokenizer_places(folder: Path, family: Family) -> Mapping[str, TokenizerPlace]:
    """Where the tokenizers of a family lie, by name. Raises ExportError for one that isn't there."""
    places = [tokenizer_of(name) for name in family.text_encoders]
    for name in places:
        if not (folder / name).is_dir():
            raise ExportError(f"{folder} has no {name} folder", fix=f"copy the checkpoint's {name}/ into it")
    return {name: TokenizerPlace(folder / name) for name in places}
