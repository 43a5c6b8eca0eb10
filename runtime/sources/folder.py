"""A diffusers folder: its JSON, and which files hold the weights of a part.

Weights are .safetensors alone. The plain ones come first, then what a `variant` download leaves; files of averaged
weights (EMA) have other names and are never taken. An index of shards is believed when the shards hold what it says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.bounds import MAX_CONFIG_BYTES, MAX_WEIGHTS_HEADER_BYTES
from tintype.errors import ExportError
from tintype.files import read_plain
from tintype.sources.header import PICKLES, Header, pickle_error, read_header
from tintype.uses import IMAGE_ENCODER

INDEX = "model_index.json"
CONFIG = "config.json"  # of one part, or of a model that stands alone
SCHEDULER = "scheduler/scheduler_config.json"
PREPROCESSOR = "preprocessor_config.json"  # beside an image encoder's config
IMAGE_ENCODER_CLASS, IMAGE_ENCODER_TYPE = "CLIPVisionModelWithProjection", "clip_vision_model"
VARIANTS = ("", "fp16", "bf16", "fp32")  # the plain one first
MAX_SHARDS = 1000  # of one part
_AGAIN = "download the checkpoint again"


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises ExportError, by name."""
    try:
        value = strict_json.parse(read_plain(path, MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing", fix=f"{_AGAIN}; it is incomplete") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} can't be read: {error}", fix=_AGAIN) from None
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object", fix=_AGAIN)
    return value


def is_controlnet_config(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a ControlNet, of whatever kind."""
    return "ControlNet" in str(config.get("_class_name"))


def is_adapter_config(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a T2I-Adapter."""
    return config.get("_class_name") == "T2IAdapter"


def controls_models(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of either."""
    return is_controlnet_config(config) or is_adapter_config(config)


def is_image_encoder(place: Path) -> bool:
    """Whether a folder is that of CLIP's image encoder alone. Raises ExportError for a config that can't be read."""
    config = place / CONFIG
    if not place.is_dir() or (place / INDEX).is_file() or not config.is_file():
        return False
    known = read_config(config)
    return known.get("model_type") == IMAGE_ENCODER_TYPE or known.get("architectures") == [IMAGE_ENCODER_CLASS]


def weights_name(component: str, names: Collection[str]) -> str | None:
    """Of the files in a part's folder, the one that holds its weights, or the index of those that do.

    Weights that are whole come before shards, and the plain ones before variants; None is neither.
    """
    stem = "model" if component.startswith(("text_encoder", IMAGE_ENCODER)) else "diffusion_pytorch_model"
    for variant in VARIANTS:
        whole = ".".join(filter(None, (stem, variant, "safetensors")))
        variant_index = ".".join(filter(None, (stem, "safetensors.index", variant, "json")))
        for name in (whole, variant_index, f"{whole}.index.json"):
            if name in names:
                return name
    return None


def find_weights(folder: Path, component: str | None = None) -> tuple[Path, ...]:
    """The .safetensors files of one part, shards in order of their names. Raises ExportError where there are none.

    component: what the part is, where its folder isn't called so.
    """
    there = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    name = weights_name(component or folder.name, {path.name for path in there})
    if name is not None:
        return _shards(folder / name) if name.endswith(".json") else (folder / name,)
    for path in there:
        if path.suffix in PICKLES:
            raise pickle_error(path)
    found = ", ".join(path.name for path in there[:8]) or "nothing"
    raise ExportError(
        f"{folder} has no weights (it holds {found})",
        fix="put its .safetensors there, whole, in shards or as fp16",
    )


def shard_names(index: Path) -> list[str]:
    """The files that an index lists, in order. Raises ExportError for what is no plain name of a .safetensors file."""
    places = read_config(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ExportError(f"{index} lists no weights", fix=_AGAIN)
    names = sorted(set(map(str, places.values())))
    if len(names) > MAX_SHARDS:
        raise ExportError(f"{index} lists {len(names):,} files; {MAX_SHARDS:,} are the most", fix=_AGAIN)
    for name in names:
        if Path(name).suffix in PICKLES:
            raise pickle_error(index.parent / name)
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ExportError(f"{index} refers to {name}, which is no .safetensors beside it", fix=_AGAIN)
    return names


def _shards(index: Path) -> tuple[Path, ...]:
    shards = tuple(index.parent / name for name in shard_names(index))
    for path in shards:
        if not path.is_file():
            raise ExportError(f"{index} refers to {path.name}, which isn't there", fix=_AGAIN)
    _demand_true(index, read_config(index)["weight_map"], shards)
    return shards


def _demand_true(index: Path, places: dict[str, Any], shards: tuple[Path, ...]) -> None:
    """ExportError unless each tensor that an index lists lies in the shard that it says, and there is no other."""
    held = {(name, header.path.name) for header in headers_of(shards) for name in header.tensors}
    listed = {(name, str(file)) for name, file in places.items()}
    for problem, wrong in (("lists", listed - held), ("doesn't list", held - listed)):
        if wrong:
            name, file = min(wrong)
            where = "which isn't in it" if problem == "lists" else "which is in it"
            raise ExportError(f"{index} {problem} {name} of {file}, {where}", fix=_AGAIN)


def headers_of(paths: tuple[Path, ...]) -> tuple[Header, ...]:
    """Of one part's files. Raises ExportError when a tensor is in two of them, or headers are too large together."""
    headers: list[Header] = []
    known: set[str] = set()
    for path in paths:
        header = read_header(path)
        twice = known & header.tensors.keys()
        if twice:
            raise ExportError(f"{min(twice)} is in two files of {path.parent}", fix=_AGAIN)
        known |= header.tensors.keys()
        headers.append(header)
        size = sum(header.header_bytes for header in headers)
        if size > MAX_WEIGHTS_HEADER_BYTES:
            most = f"{MAX_WEIGHTS_HEADER_BYTES:,} are the most"
            raise ExportError(f"the headers of {path.parent} have {size:,} bytes and more; {most}", fix=_AGAIN)
    return tuple(headers)
