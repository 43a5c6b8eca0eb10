"""A checkpoint as it lies on disk, in whichever form: what every other part of the exporter may know of it.

`configs` are as diffusers writes them; where a form has none they were made from shapes. `entries` says of each part
where its tensors lie; it is empty for parts whose files have the names that diffusers gives them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tintype.export.sources.entries import Entries
from tintype.files import sha256_of
from tintype.sources.families import Configs
from tintype.sources.licence import UNKNOWN_LICENCE
from tintype.sources.onnx_folder import OnnxGraph

TINY, TINY_VAE = "AutoencoderTiny", "tiny_vae"  # the class, and the component of one beside the checkpoint's own VAE
BASE = "base"  # the component whose UNet a ControlLoRA adds to


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What a user may say of a checkpoint, because it can't or because they know better; None leaves it as it is.

    vae: a file or folder whose VAE replaces the checkpoint's own. tiny_vae: a folder or file of an AutoencoderTiny, or
    one of TAESD's two files, that stands beside it. tokenizer: a folder with CLIP's, or with tokenizer/.
    prediction_type: epsilon or v_prediction. base: of a ControlLoRA, the checkpoint to whose UNet it adds.
    """

    vae: Path | None = None
    tiny_vae: Path | None = None
    tokenizer: Path | None = None
    prediction_type: str | None = None
    base: Path | None = None


@dataclass(frozen=True, slots=True)
class TokenizerPlace:
    """Where a tokenizer's files lie. pad_token: what fills a text up, where that isn't what the files say."""

    folder: Path
    pad_token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSource:
    """See this module's invariant.

    address, revision: on the hub, where it was fetched from there. assumed: sentences about what nothing in the
    checkpoint says, for the user and the manifest.
    """

    location: Path
    index: Mapping[str, Any]  # model_index.json
    configs: Configs
    weights: Mapping[str, tuple[Path, ...]]  # by component, shards in order
    entries: Mapping[str, Entries] = field(default_factory=dict)
    tokenizers: Mapping[str, TokenizerPlace]  # by folder in the bundle: tokenizer, tokenizer_2
    licence: str = UNKNOWN_LICENCE
    origin: Mapping[str, str] = field(default_factory=dict)
    vae: Path | None = None  # what replaced the checkpoint's own
    tiny_vae: Path | None = None  # what stands beside it
    base: Path | None = None  # what a ControlLoRA adds to
    address: str | None = None
    revision: str | None = None
    assumed: tuple[str, ...] = ()
    graphs: Mapping[str, OnnxGraph] = field(default_factory=dict)  # by part, of a checkpoint that is graphs already

    def sha256(self) -> str:
        """Of a file its own; of a folder one hash for all: over each file's name and sha256, in order of names."""
        if self.location.is_file():
            return sha256_of(self.location)
        given = self.given
        own = [path for name, paths in self.weights.items() if given.get(name) is None for path in paths]
        return _hash_of(sorted(own), self.location)

    @property
    def given(self) -> Mapping[str, Path]:
        """The parts that the user named beside it, by component."""
        parts = {"vae": self.vae, TINY_VAE: self.tiny_vae, BASE: self.base}
        return {name: place for name, place in parts.items() if place is not None}

    def sha256_of_given(self, component: str) -> str:
        """The same for one of the parts that were given."""
        place = self.given[component]
        if place.is_file() and len(self.weights[component]) == 1:
            return sha256_of(place)
        return _hash_of(sorted(self.weights[component]), place.parent if place.is_file() else place)


def _hash_of(paths: list[Path], folder: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return total.hexdigest()
