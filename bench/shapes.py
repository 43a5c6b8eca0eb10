"""Model shapes that are measured with random weights: what a checkpoint's config.json files would say (shapes.json)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintype.sources.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, Family, tokenizer_of

Config = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A kind of checkpoint: its components' configs, its scheduler's, and what a usual picture of it is."""

    configs: Mapping[str, Config]
    scheduler: Config
    side: int  # pixels of a usual picture, each side
    steps: int
    guidance_scale: float
    sampler: str = "euler"
    dtype: str = "float32"  # of its weights on disk

    @property
    def family(self) -> Family:
        return STABLE_DIFFUSION_XL if "text_encoder_2" in self.configs else STABLE_DIFFUSION

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Folders, by the names of their text encoders."""
        return tuple(map(tokenizer_of, self.family.text_encoders))

    @property
    def index(self) -> Config:
        """model_index.json, as diffusers writes it."""
        library = dict.fromkeys(self.family.text_encoders, "transformers")
        return {
            "_class_name": self.family.pipelines[0],
            **{
                name: [library.get(name, "diffusers"), self.configs[name].get("_class_name", kind)]
                for name, kind in self.family.components.items()
            },
            **{name: ["transformers", "CLIPTokenizer"] for name in self.tokenizers},
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
        }

    def with_depth(self, depth: int) -> Shape:
        """The same with at most so many transformer layers a block; 10 is SDXL's own."""
        layers = self.configs["unet"].get("transformer_layers_per_block", 1)
        layers = [min(each, depth) for each in layers] if isinstance(layers, list) else layers
        return self.changed({"unet": {"transformer_layers_per_block": layers}})

    def changed(self, configs: Mapping[str, Config], **fields: Any) -> Shape:
        """The same with other settings of some components; one of another class has none but its own."""
        given = {name: configs.get(name, {}) for name in self.configs}
        whole = {name: {**({} if "_class_name" in new else self.configs[name]), **new} for name, new in given.items()}
        return dataclasses.replace(self, configs=whole, **fields)


def _read_shapes() -> dict[str, Shape]:
    """Of shapes.json, where a shape that is `like` another says what differs."""
    shapes = dict[str, Shape]()
    for name, said in json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8")).items():
        like = said.pop("like", None)
        shapes[name] = shapes[like].changed(**said) if like else Shape(**said)
    return shapes


SHAPES = _read_shapes()
TAESD = SHAPES["sdxs"].configs["vae"]
