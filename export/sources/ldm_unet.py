"""The UNet of latent-diffusion's files: its config from its shapes, and diffusers' names for its tensors.

LDM counts blocks from the picture inwards and out again (`input_blocks.4.1`: the fifth block's second module),
diffusers counts levels and layers within them. Both follow from which modules are there: `op` ends a level on the way
in, `conv` one on the way out, `transformer_blocks` is attention. So a UNet whose blocks were pruned is read as it is;
what no config of diffusers can say is found missing or unknown afterwards, by name. What modules are called is in
`sources.ldm`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tintype.sources.header import broken
from tintype.sources.ldm import AROUND, MIDDLE, RESNET

Shape = tuple[int, ...]

HEADS_OF_SD1 = 8  # whatever the width; later families have heads of HEAD_SIZE numbers
HEAD_SIZE = 64
GROUPS = 32  # of each normalization
MAX_BLOCKS = 64  # on each way; there are 12

_WAYS = {"input_blocks": "down_blocks", "output_blocks": "up_blocks"}
_SAMPLERS = {"0.op": "downsamplers.0.conv", "1.conv": "upsamplers.0.conv", "2.conv": "upsamplers.0.conv"}


@dataclass(slots=True)
class Level:
    """Blocks of one size of the picture: where its layers are, their width, and how deep the attention of each is."""

    width: int = 0
    depths: list[int] = field(default_factory=list)  # 0 is no attention
    places: dict[str, str] = field(default_factory=dict)  # of each module: LDM's start of names, and diffusers'

    @property
    def has_attention(self) -> bool:
        return any(self.depths)


@dataclass(frozen=True, slots=True)
class LdmUNet:
    """A UNet by LDM's names, without their prefix, and shapes."""

    path: Path
    shapes: Mapping[str, Shape]
    down: Sequence[Level]
    up: Sequence[Level]
    mid_depth: int | None  # of attention in the middle; None is no block there

    @classmethod
    def of(cls, path: Path, shapes: Mapping[str, Shape]) -> LdmUNet:
        """Raises ExportError where the names make no UNet."""
        down, up = (levels(path, shapes, way) for way in _WAYS)
        if not down or len(up) != len(down):
            raise broken(path, f"its UNet goes in by {len(down)} levels and out by {len(up)}")
        has_middle = any(name.startswith("middle_block.") for name in shapes)
        return cls(path, shapes, down, up, _depth(shapes, "middle_block.1") if has_middle else None)

    def names(self) -> dict[str, str]:
        """diffusers' name of each tensor by LDM's; one that is unknown keeps its own."""
        places = {old: f"mid_block.{new}" for old, new in MIDDLE.items()}
        for level in (*self.down, *self.up):
            places.update(level.places)
        return {name: renamed(name, places) for name in self.shapes}

    def config(self, *, is_sd1: bool, sample_size: int, projection_dim: int, time_ids: int) -> dict[str, Any]:
        """config.json of UNet2DConditionModel. projection_dim, time_ids: numbers of XL, see `_added`."""
        widths = [level.width for level in self.down]
        first, last = self._shape("input_blocks.0.0.weight", 4), self._shape("out.2.weight", 4)
        return {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": HEADS_OF_SD1 if is_sd1 else [max(1, width // HEAD_SIZE) for width in widths],
            "block_out_channels": widths,
            "center_input_sample": False,
            "cross_attention_dim": self._words(),
            "down_block_types": [_kind(level, "DownBlock2D") for level in self.down],
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": first[1],
            "layers_per_block": _one_or_all([len(level.depths) for level in self.down]),
            "mid_block_scale_factor": 1,
            "mid_block_type": self._middle(),
            "norm_eps": 1e-05,
            "norm_num_groups": GROUPS,
            "out_channels": last[0],
            "sample_size": sample_size,
            "up_block_types": [_kind(level, "UpBlock2D") for level in self.up],
            "use_linear_projection": any(
                name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in self.shapes.items()
            ),
            **self._depths(),
            **self._added(projection_dim, time_ids),
            **self._guided(),
        }

    def _words(self) -> int:
        """The width of the words that attention reads."""
        keys = [shape for name, shape in self.shapes.items() if name.endswith(".attn2.to_k.weight")]
        widths = sorted({shape[1] for shape in keys if len(shape) == 2})
        if len(widths) != 1:
            raise broken(self.path, f"its UNet reads words of {len(widths)} widths ({widths[:4]})")
        return widths[0]

    def _middle(self) -> str | None:
        if self.mid_depth is None:
            return None
        return "UNetMidBlock2DCrossAttn" if self.mid_depth else "UNetMidBlock2D"

    def _depths(self) -> dict[str, Any]:
        """How deep attention is: a number a level, or one a layer; the way out has its own where it is no mirror.

        The middle has the last level's depth, in diffusers; where that level has no attention, its place is free.
        """
        deep = [_one_or_all(level.depths) if level.has_attention else None for level in self.down]
        out = [_one_or_all(level.depths) if level.has_attention else None for level in self.up]
        deep = [mirror if depth is None else depth for depth, mirror in zip(deep, out[::-1], strict=True)]
        if deep[-1] is None:
            deep[-1] = self.mid_depth
        plain = [depth or 1 for depth in deep]
        if all(isinstance(depth, int) for depth in plain) and all(
            depth in (None, mirror) for depth, mirror in zip(out, plain[::-1], strict=True)
        ):
            return {"transformer_layers_per_block": _one_or_all(plain)}
        reverse = [depth or mirror for depth, mirror in zip(out, plain[::-1], strict=True)]
        return {"transformer_layers_per_block": plain, "reverse_transformer_layers_per_block": reverse}

    def _added(self, projection_dim: int, time_ids: int) -> dict[str, Any]:
        """What XL is told beside words: the prompt as a whole, and so many sizes."""
        if time_ids == 0 or "label_emb.0.0.weight" not in self.shapes:
            return {}
        added = self._shape("label_emb.0.0.weight", 2)[1]
        return {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": max(0, added - projection_dim) // time_ids,
            "projection_class_embeddings_input_dim": added,
        }

    def _guided(self) -> dict[str, Any]:
        """What an LCM is told beside the time: how strong guidance is."""
        name = "time_embed.cond_proj.weight"
        return {"time_cond_proj_dim": self._shape(name, 2)[1]} if name in self.shapes else {}

    def _shape(self, name: str, rank: int) -> Shape:
        return demand_shape(self.path, self.shapes, name, rank)


def demand_shape(path: Path, shapes: Mapping[str, Shape], name: str, rank: int) -> Shape:
    """The shape of a tensor of so many dimensions. Raises ExportError where there is none."""
    if name not in shapes:
        raise broken(path, f"it lacks {name}")
    if len(shapes[name]) != rank:
        raise broken(path, f"{name} is {shapes[name]}, and should have {rank} dimensions")
    return shapes[name]


def levels(path: Path, shapes: Mapping[str, Shape], way: str) -> list[Level]:
    """The levels on one way, in LDM's order; the first block in is the first convolution."""
    first = 1 if way == "input_blocks" else 0
    numbers = {int(match[1]) for name in shapes if (match := re.match(rf"{way}\.(\d{{1,4}})\.", name, re.ASCII))}
    if numbers != set(range(len(numbers))) or len(numbers) > MAX_BLOCKS:
        raise broken(path, f"its {way} are numbered {sorted(numbers)[:8]}, with gaps or too many")
    made = [Level()]
    for number in range(first, len(numbers)):
        level, block = made[-1], f"{way}.{number}"
        place = f"{_WAYS[way]}.{len(made) - 1}"
        if f"{block}.0.in_layers.2.weight" in shapes:
            level.width = demand_shape(path, shapes, f"{block}.0.in_layers.2.weight", 4)[0]
            layer = len(level.depths)
            level.depths.append(_depth(shapes, f"{block}.1"))
            level.places[f"{block}.0"] = f"{place}.resnets.{layer}"
            if level.depths[-1]:
                level.places[f"{block}.1"] = f"{place}.attentions.{layer}"
        sampler = next((module for module in _SAMPLERS if f"{block}.{module}.weight" in shapes), None)
        if sampler is not None:
            level.places[f"{block}.{sampler}"] = f"{place}.{_SAMPLERS[sampler]}"
            made.append(Level())
    return made if made[-1].depths else made[:-1]


def _depth(names: Iterable[str], module: str) -> int:
    """How many transformer blocks a module has."""
    inner = re.compile(re.escape(f"{module}.transformer_blocks.") + r"(\d{1,3})\.", re.ASCII)
    return len({found[1] for name in names if (found := inner.match(name))})


def renamed(name: str, places: Mapping[str, str]) -> str:
    """One tensor's name: its module's place, and within a layer the names of its parts."""
    module, _, end = name.rpartition(".")
    if module in AROUND or module in places:
        return f"{AROUND.get(module) or places[module]}.{end}"
    start = ".".join(name.split(".")[: 2 if name.startswith("middle_block.") else 3])
    if start not in places:
        return name
    part = module[len(start) + 1 :]
    return f"{places[start]}.{RESNET.get(part, part)}.{end}"


def _kind(level: Level, plain: str) -> str:
    return f"CrossAttn{plain}" if level.has_attention else plain


def _one_or_all(values: Sequence[Any]) -> Any:
    """The value that all of them have, else all."""
    return values[0] if all(value == values[0] for value in values) else list(values)
