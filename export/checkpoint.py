"""Reading what people publish: a diffusers folder of Stable Diffusion 1.x, 2.x or XL shape.

A `Checkpoint` that `open_checkpoint` returned has the parts this exporter can trace, by class name. Weights are read
only by the `load_*` functions, always as fp32, and every tensor of a module comes from the file: a key that is
missing, unknown or of another shape is an error that names it, never a random weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype import strict_json
from tintype.bounds import MAX_CONFIG_BYTES
from tintype.errors import ExportError
from tintype.export.families import (
    Configs,
    Family,
    check_configs,
    check_tiny_vae,
    class_of,
    family_of,
    inpainting_channels,
    tokenizer_of,
)
from tintype.files import read_plain, sha256_of

if TYPE_CHECKING:
    import torch

TINY, TINY_VAE = "AutoencoderTiny", "tiny_vae"  # the class, and the component of one beside the checkpoint's own VAE

# Weights files in order of preference: the plain ones first, then what "variant" downloads leave.
_TEXT_WEIGHTS = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")
_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A diffusers folder whose parts are known; configs are the JSON as it stands."""

    folder: Path
    family: Family
    index: Mapping[str, Any]
    configs: Configs  # of each component of the family, and of the scheduler
    weights: Mapping[str, tuple[Path, ...]]  # by component, shards in order

    @property
    def prediction_type(self) -> str:
        return str(self.configs["scheduler"].get("prediction_type", "epsilon"))

    @property
    def vae_scale_factor(self) -> int:
        """Image pixels per latent cell, each side."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    @property
    def latent_multiple(self) -> int:
        """Latent height and width must be a multiple of this: the UNet halves them once a level but the last."""
        return int(2 ** (len(self.configs["unet"]["block_out_channels"]) - 1))

    @property
    def latent_size(self) -> int:
        """A side of the latents that the UNet was made for; diffusers' default where config.json says null."""
        return int(self.configs["unet"].get("sample_size") or (128 if self.family.is_xl else 64))

    @property
    def latent_channels(self) -> int:
        return int(self.configs["vae"].get("latent_channels", 4))

    @property
    def sample_channels(self) -> int:
        """What the UNet takes: latents, and in an inpainting model a mask and the latents of a masked picture."""
        return int(self.configs["unet"].get("in_channels", 4))

    @property
    def is_inpainting(self) -> bool:
        return self.sample_channels == inpainting_channels(self.latent_channels)

    @property
    def takes_picture(self) -> bool:
        """Whether its UNet takes a picture's latents, or those of a masked one, beside the noisy ones."""
        return self.is_inpainting or self.family.takes_picture

    @property
    def components(self) -> tuple[str, ...]:
        """What it has weights of: its family's parts in order, then a tiny autoencoder that was given beside."""
        return tuple(self.weights)

    @property
    def vae_class(self) -> str:
        """AutoencoderKL, or AutoencoderTiny."""
        return class_of(self.index, "vae") or self.family.components["vae"]

    @property
    def scaling_factor(self) -> float:
        """The VAE decodes latents / scaling_factor + shift; its class's default where config.json is mute."""
        return float(self.configs["vae"].get("scaling_factor", 1.0 if self.vae_class == TINY else 0.18215))

    @property
    def guidance_embedding(self) -> int | None:
        """How many numbers the UNet is told its guidance scale in (latent consistency models); None: it isn't told."""
        value = self.configs["unet"].get("time_cond_proj_dim")
        return None if value is None else int(value)

    @property
    def force_zeros_for_empty_prompt(self) -> bool:
        """Whether an empty negative prompt is zeros rather than words; diffusers' default for XL where it is mute."""
        return self.family.is_xl and bool(self.index.get("force_zeros_for_empty_prompt", True))

    @property
    def projection_dim(self) -> int:
        """How many numbers text_encoder_2 says a whole prompt with; CLIP's default where config.json is mute."""
        return int(self.configs["text_encoder_2"].get("projection_dim", 512))

    def text_limits(self, text_encoder: str) -> tuple[int, int]:
        """How many tokens a text encoder takes at once, and how many it knows; CLIP's where config.json is mute."""
        config = self.configs[text_encoder]
        return int(config.get("max_position_embeddings", 77)), int(config.get("vocab_size", 49408))

    def sha256(self) -> str:
        """One hash for all weights: sha256 over each file's name and sha256, in order of names."""
        total = hashlib.sha256()
        for path in sorted(path for paths in self.weights.values() for path in paths):
            inside = path.is_relative_to(self.folder)
            name = path.relative_to(self.folder).as_posix() if inside else f"{TINY_VAE}/{path.name}"
            total.update(f"{name} {sha256_of(path)}\n".encode())
        return total.hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Look at a diffusers folder: what it is made of, and whether this exporter can do it. Reads no weights.

    Raises ExportError for a missing folder, one that is no diffusers checkpoint, and classes or options that aren't
    supported, by name.
    """
    if not folder.is_dir():
        raise ExportError(f"there is no checkpoint folder at {str(folder)!r}", fix=_folder_fix(folder))
    if not (folder / "model_index.json").is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ExportError(
            f"{folder} is not a diffusers checkpoint: it has no model_index.json (it holds {found})",
            fix="give the folder that save_pretrained wrote, with unet/, vae/ and text_encoder/ in it",
        )
    index = _read_json(folder / "model_index.json")
    family = family_of(folder, index)
    configs = {name: _read_json(folder / name / "config.json") for name in family.components}
    configs["scheduler"] = _read_json(folder / "scheduler" / "scheduler_config.json")
    check_configs(family, configs)
    for name in map(tokenizer_of, family.text_encoders):
        if not (folder / name).is_dir():
            raise ExportError(f"{folder} has no {name} folder", fix=f"copy the checkpoint's {name}/ into it")
    weights = {name: _find_weights(folder / name) for name in family.components}
    return Checkpoint(folder=folder, family=family, index=index, configs=configs, weights=weights)


def load(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    """One component of a checkpoint, fp32, in eval mode."""
    if component == "unet":
        return load_unet(checkpoint)
    if component == TINY_VAE or (component == "vae" and checkpoint.vae_class == TINY):
        return load_tiny_vae(checkpoint, component)
    return load_vae(checkpoint) if component == "vae" else load_text_encoder(checkpoint, component)


def load_text_encoder(checkpoint: Checkpoint, component: str = "text_encoder") -> torch.nn.Module:
    """A CLIP text model, fp32; with and without the `text_model.` prefix in its weights."""
    import transformers

    kind = checkpoint.family.components[component]
    config = transformers.CLIPTextConfig(**_plain_options(checkpoint.configs[component]))
    state = {name.removeprefix("text_model."): tensor for name, tensor in _load_state(checkpoint, component).items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    module = _build(lambda: getattr(transformers, kind)(config), component, on_meta=False)
    wanted = module.state_dict()
    if "text_projection.weight" not in wanted:
        state.pop("text_projection.weight", None)  # of CLIPTextModelWithProjection; the words alone don't need it
    if any(name.startswith("text_model.") for name in wanted):
        state = {name if name in wanted else f"text_model.{name}": tensor for name, tensor in state.items()}
    return _fill(checkpoint, component, module, state)


def load_unet(checkpoint: Checkpoint) -> torch.nn.Module:
    """The UNet, fp32."""
    from diffusers import UNet2DConditionModel

    state = _load_state(checkpoint, "unet")
    module = _build(lambda: UNet2DConditionModel.from_config(dict(checkpoint.configs["unet"])), "unet")
    return _fill(checkpoint, "unet", module, state)


def load_vae(checkpoint: Checkpoint) -> torch.nn.Module:
    """The autoencoder, fp32; with the attention names of today and those of 2022."""
    from diffusers import AutoencoderKL

    state = {_modern_vae_name(name): tensor for name, tensor in _load_state(checkpoint, "vae").items()}
    module = _build(lambda: AutoencoderKL.from_config(dict(checkpoint.configs["vae"])), "vae")
    wanted = module.state_dict()
    for name, tensor in state.items():  # old attention is written as 1x1 convolutions
        if name in wanted and tensor.ndim == 4 and wanted[name].ndim == 2 and tensor.shape[2:] == (1, 1):
            state[name] = tensor[:, :, 0, 0]
    return _fill(checkpoint, "vae", module, state)


def load_tiny_vae(checkpoint: Checkpoint, component: str = TINY_VAE) -> torch.nn.Module:
    """An AutoencoderTiny (TAESD and its kin), fp32."""
    from diffusers import AutoencoderTiny

    state = _load_state(checkpoint, component)
    config = {name: value for name, value in checkpoint.configs[component].items() if name != "block_out_channels"}
    module = _build(lambda: AutoencoderTiny.from_config(config), component)  # its other options say the same
    return _fill(checkpoint, component, module, state)


def with_tiny_vae(checkpoint: Checkpoint, source: Path) -> Checkpoint:
    """The checkpoint with a tiny autoencoder beside its own: an AutoencoderTiny's folder, or its .safetensors file.

    A file has no config: it is taken for TAESD's, of which diffusers' defaults are the layers. Raises ExportError.
    """
    if source.is_dir():
        config, weights = _read_json(source / "config.json"), _find_weights(source)
    elif source.is_file():
        config, weights = {}, (source,)
    else:
        raise ExportError(
            f"there is no tiny autoencoder at {str(source)!r}", fix="give its folder or .safetensors file"
        )
    kind = config.get("_class_name", TINY)
    if kind != TINY:
        raise ExportError(f"{source} holds a {kind}, not an {TINY}", fix="give TAESD, or for XL TAESDXL")
    check_tiny_vae(config, checkpoint.latent_channels, checkpoint.vae_scale_factor)
    return replace(
        checkpoint,
        configs={**checkpoint.configs, TINY_VAE: config},
        weights={**checkpoint.weights, TINY_VAE: weights},
    )


def _find_weights(folder: Path) -> tuple[Path, ...]:
    names = _TEXT_WEIGHTS if folder.name.startswith("text_encoder") else _WEIGHTS
    for name in names:
        if (folder / name).is_file():
            return (folder / name,)
        stem, _, extension = name.rpartition(".")
        for index in (folder / f"{name}.index.json", folder / f"{stem}.index.{extension}.json"):
            if index.is_file():
                return _shards(index)
    raise ExportError(f"{folder} has no weights", fix=f"put {names[0]} there (or a sharded or fp16 form of it)")


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = _read_json(index).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    there = {path.name for path in index.parent.iterdir() if path.is_file()}
    for name in names:
        if name not in there:
            raise ExportError(f"{index} refers to {name}, which isn't there", fix="download the checkpoint again")
    if not names:
        raise ExportError(f"{index} lists no weights", fix="download the checkpoint again")
    return tuple(index.parent / name for name in names)


def _load_state(checkpoint: Checkpoint, component: str) -> dict[str, torch.Tensor]:
    """Every tensor of a component as fp32 by name."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for path in checkpoint.weights[component]:
        try:
            if path.suffix == ".safetensors":
                shard = load_file(path)
            else:
                shard = torch.load(path, map_location="cpu", weights_only=True)
        except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
            raise _broken(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
        except Exception as error:  # pickle errors of weights_only loading, which share no narrower base
            raise _broken(path, f"it isn't plain weights ({type(error).__name__})") from None
        state.update({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in shard.items()})
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _broken(checkpoint.weights[component][0], f"{name} holds NaN or infinity")
    return state


def _build(make: Any, component: str, *, on_meta: bool = True) -> torch.nn.Module:
    """A module without its weights; on the meta device it costs no memory."""
    import torch

    try:
        if not on_meta:
            return make().eval()  # type: ignore[no-any-return]
        with torch.device("meta"):
            return make().eval()  # type: ignore[no-any-return]
    except (TypeError, ValueError, KeyError, NotImplementedError, IndexError) as error:
        raise ExportError(
            f"{component}/config.json makes no model: {error}", fix="download the checkpoint's config.json again"
        ) from None


def _fill(
    checkpoint: Checkpoint, component: str, module: torch.nn.Module, state: dict[str, torch.Tensor]
) -> torch.nn.Module:
    wanted = module.state_dict()
    path = checkpoint.weights[component][0]
    for problem, names in (("lacks", wanted.keys() - state.keys()), ("has unknown", state.keys() - wanted.keys())):
        if names:
            raise _broken(path, f"it {problem} {_some(names)}")
    for name, tensor in wanted.items():
        if tensor.shape != state[name].shape:
            raise _broken(path, f"{name} is {tuple(state[name].shape)}, config.json makes it {tuple(tensor.shape)}")
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False)
    return module.eval()


def _modern_vae_name(name: str) -> str:
    if ".attentions." not in name:
        return name
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".{old}.", f".{new}.")
    return name


def _plain_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers config as keyword arguments: without the names that say how it was saved."""
    skipped = ("architectures", "model_type", "transformers_version", "torch_dtype", "dtype")
    return {key: value for key, value in config.items() if key not in skipped and not key.startswith("_")}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = strict_json.parse(read_plain(path, MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing", fix="download the checkpoint again; it is incomplete") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} can't be read: {error}", fix="download the checkpoint again") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object", fix="download the checkpoint again")
    return value


def _broken(path: Path, why: str) -> ExportError:
    return ExportError(f"the weights in {path} are broken: {why}", fix="download the checkpoint again")


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _folder_fix(folder: Path) -> str:
    if folder.is_file():
        return "this exporter reads diffusers folders; convert the single file with diffusers' from_single_file first"
    return "check the path; hub names aren't downloaded here, so download the checkpoint first and give its folder"
