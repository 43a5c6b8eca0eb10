"""Reading what people publish: a diffusers folder or one file, of Stable Diffusion 1.x, 2.x or XL shape.

A `Checkpoint` that `open_checkpoint` returned has the parts this exporter can trace, by class name. Weights are read
only by the `load_*` functions, always as fp32, and every tensor of a module comes from the file: a key that is
missing, unknown or of another shape is an error that names it, never a random weight. `demand_tensors` knows that
from the headers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tintype.errors import ExportError, near_names
from tintype.export.sources.entries import Entries, Entry, some
from tintype.export.sources.folder import folder_entries, open_folder
from tintype.export.sources.one_file import open_file
from tintype.export.sources.onnx_folder import open_onnx_folder, parts_of
from tintype.export.sources.replacement import with_tiny_vae, with_vae
from tintype.export.sources.source import TINY, TINY_VAE, CheckpointSource, SourceOptions, TokenizerPlace
from tintype.files import is_there
from tintype.sources.families import (
    Configs,
    Family,
    check_configs,
    check_tiny_vae,
    class_of,
    family_of,
    inpainting_channels,
)
from tintype.sources.header import broken
from tintype.sources.onnx_folder import is_onnx_folder
from tintype.sources.prediction import CHOICES
from tintype.uses import IMAGE_ENCODER

if TYPE_CHECKING:
    import torch

CLIPS = ("text_encoder", IMAGE_ENCODER)  # how components of transformers' are called, and begin


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose parts are known; configs are the JSON as it stands, or as it was made from shapes."""

    family: Family
    source: CheckpointSource

    @property
    def index(self) -> Mapping[str, Any]:
        """model_index.json."""
        return self.source.index

    @property
    def configs(self) -> Configs:
        """Of each component of the family, and of the scheduler."""
        return self.source.configs

    @property
    def weights(self) -> Mapping[str, tuple[Path, ...]]:
        """The files of each component, shards in order; parts may share one."""
        return self.source.weights

    @property
    def tokenizers(self) -> Mapping[str, TokenizerPlace]:
        """By folder in the bundle."""
        return self.source.tokenizers

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
    def components(self) -> tuple[str, ...]:
        """What it has weights of: its family's parts in order, then a tiny autoencoder that was given beside."""
        return tuple(self.weights)

    @property
    def vae_class(self) -> str:
        """AutoencoderKL, or AutoencoderTiny."""
        return class_of(self.index, "vae") or self.family.components["vae"]

    @property
    def scaling_factor(self) -> float:
        """The VAE decodes latents / scaling_factor + shift_factor; its class's default where config.json says none."""
        factor = self.configs["vae"].get("scaling_factor")
        if factor is None:
            return 1.0 if self.vae_class == TINY else 0.18215
        return float(factor)

    @property
    def shift_factor(self) -> float:
        shift = self.configs["vae"].get("shift_factor")
        return 0.0 if shift is None else float(shift)

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

    def entries(self, component: str) -> Entries:
        """Where a component's tensors lie. Raises ExportError for files whose headers aren't sound."""
        return self.source.entries.get(component) or folder_entries(self.weights[component], component)

    def fp32_bytes(self, component: str) -> int:
        """What a component's weights take in float32."""
        if self.source.graphs:
            return 4 * sum(self.source.graphs[part].parameters for part in parts_of(component) if self.has(part))
        return 4 * sum(entry.size for entry in self.entries(component).values())

    def has(self, part: str) -> bool:
        """Whether a checkpoint that is graphs has this one."""
        return part in self.source.graphs

    def sha256(self) -> str:
        """See `CheckpointSource.sha256`."""
        return self.source.sha256()


def open_checkpoint(source: Path, options: SourceOptions | None = None) -> Checkpoint:
    """Look at a folder or a file: what it is made of, and whether this exporter can do it. Reads no weights.

    Raises ExportError for a missing place, one that is no checkpoint, and classes or options that aren't supported, by
    name.
    """
    options = options or SourceOptions()
    if not is_there(source):
        raise ExportError(
            f"there is no checkpoint at {str(source)!r}",
            fix="check the path; give a folder, a .safetensors file, or ORG/NAME on the Hugging Face hub",
        )
    if options.prediction_type not in (None, *CHOICES):
        known = near_names(str(options.prediction_type), CHOICES)
        raise ExportError(f"prediction_type {options.prediction_type!r} isn't one that can be given", fix=known)
    if is_onnx_folder(source):
        opened = open_onnx_folder(source)
        _refuse_parts(options)
    else:
        opened = open_folder(source) if source.is_dir() else open_file(source, options)
    if options.prediction_type is not None:
        scheduler = {**opened.configs["scheduler"], "prediction_type": options.prediction_type}
        stated = f"prediction_type is {options.prediction_type}, as --prediction-type says"
        opened = replace(opened, configs={**opened.configs, "scheduler": scheduler}, assumed=(stated,))
    if options.vae is not None:
        opened = with_vae(opened, options.vae)
    family = family_of(source, opened.index)
    check_configs(family, opened.configs)
    checkpoint = Checkpoint(family, opened)
    if options.tiny_vae is not None:
        checkpoint = replace(checkpoint, source=with_tiny_vae(opened, options.tiny_vae))
        config = checkpoint.configs[TINY_VAE]
        check_tiny_vae(config, checkpoint.latent_channels, checkpoint.vae_scale_factor)
    return checkpoint


def _refuse_parts(options: SourceOptions) -> None:
    """ExportError for parts that only a checkpoint of weights can be given."""
    for name, given in (("--vae", options.vae), ("--tiny-vae", options.tiny_vae), ("--tokenizer", options.tokenizer)):
        if given is not None:
            raise ExportError(
                f"{name} is given, and a folder of ONNX graphs has its parts already",
                fix=f"leave {name} out, or export the checkpoint that the graphs were made from",
            )


def hollow_module(checkpoint: Checkpoint, component: str, *, on_meta: bool = True) -> torch.nn.Module:
    """A component's module without weights; on the meta device it costs no memory, and can't be traced."""
    return _module(checkpoint, component, on_meta=on_meta)


def demand_tensors(checkpoint: Checkpoint, component: str) -> None:
    """ExportError unless a component's files have every tensor of its module, in its shape, and no other."""
    _match(checkpoint, component, hollow_module(checkpoint, component).state_dict())


def load(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    """One component of a checkpoint, fp32, in eval mode."""
    if component == "unet":
        return load_unet(checkpoint)
    if component == TINY_VAE:
        return load_tiny_vae(checkpoint)
    return load_vae(checkpoint) if component == "vae" else load_text_encoder(checkpoint, component)


def load_text_encoder(checkpoint: Checkpoint, component: str = "text_encoder") -> torch.nn.Module:
    """A CLIP text model, fp32; with and without the `text_model.` prefix in its weights."""
    return _load(checkpoint, component)


def load_unet(checkpoint: Checkpoint) -> torch.nn.Module:
    """The UNet, fp32."""
    return _load(checkpoint, "unet")


def load_vae(checkpoint: Checkpoint) -> torch.nn.Module:
    """The autoencoder, fp32; with the attention names of today and those of 2022."""
    return _load(checkpoint, "vae")


def load_tiny_vae(checkpoint: Checkpoint) -> torch.nn.Module:
    """The AutoencoderTiny (TAESD and its kin) beside the checkpoint's own VAE, fp32."""
    return _load(checkpoint, TINY_VAE)


def _load(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    from tintype.export.tensors import read_tensors

    module = _module(checkpoint, component, on_meta=True)
    matched = _match(checkpoint, component, module.state_dict())  # from here on the module is no larger than its files
    if component.startswith(CLIPS):  # its positions are a buffer that no file has
        module = _module(checkpoint, component, on_meta=False)
    module.load_state_dict(dict(read_tensors(matched)), assign=True)
    module.requires_grad_(False)
    return module.eval()


def _module(checkpoint: Checkpoint, component: str, *, on_meta: bool) -> torch.nn.Module:
    """A component without its weights, as its config makes it."""
    config = checkpoint.configs[component]
    if component.startswith(CLIPS):
        import transformers

        kind, options = getattr(transformers, checkpoint.family.components[component]), _plain_options(config)
        configs = transformers.CLIPVisionConfig if component == IMAGE_ENCODER else transformers.CLIPTextConfig
        return _build(lambda: kind(configs(**options)), component, on_meta=on_meta)
    import diffusers

    if component == TINY_VAE or (component == "vae" and checkpoint.vae_class == TINY):
        config = {name: value for name, value in config.items() if name != "block_out_channels"}  # others say the same
        return _build(lambda: diffusers.AutoencoderTiny.from_config(config), component, on_meta=on_meta)
    kind = getattr(diffusers, checkpoint.family.components[component])
    return _build(lambda: kind.from_config(dict(config)), component, on_meta=on_meta)


def _match(checkpoint: Checkpoint, component: str, wanted: Mapping[str, torch.Tensor]) -> dict[str, Entry]:
    """Where each tensor of a module lies, by the module's own names."""
    entries, path = dict(checkpoint.entries(component)), checkpoint.weights[component][0]
    if component.startswith("text_encoder"):
        if not any(name.endswith("text_projection.weight") for name in wanted):
            entries.pop("text_projection.weight", None)  # of CLIPTextModelWithProjection; words alone don't need it
        prefixed = any(name.startswith("text_model.") for name in wanted)
        entries = {name if name in wanted or not prefixed else f"text_model.{name}": e for name, e in entries.items()}
    original = {name: f"{name} ({entry.name})" if entry.name != name else name for name, entry in entries.items()}
    for problem, names in (("lacks", wanted.keys() - entries.keys()), ("has unknown", entries.keys() - wanted.keys())):
        if names:
            raise broken(path, f"it {problem} {some(original.get(name, name) for name in names)}")
    misshapen = [name for name, tensor in wanted.items() if tuple(tensor.shape) != entries[name].shape]
    if misshapen:
        listed = ", ".join(
            f"{name} is {entries[name].shape}, the config makes it {tuple(wanted[name].shape)}"
            for name in sorted(misshapen)[:5]
        )
        raise broken(path, listed)
    for name, entry in entries.items():
        if not entry.is_float:
            raise broken(entry.path, f"{name} is stored as {entry.dtype}, which is no float")
    return entries


def check_weights(checkpoint: Checkpoint, component: str, advance: Callable[[int], None]) -> None:
    """ExportError for a tensor of a component that can't be read or isn't finite; one is in memory at a time.

    advance: hears of each.
    """
    from tintype.export.tensors import read_tensors

    for name, entry in checkpoint.entries(component).items():
        for _ in read_tensors({name: entry}):
            advance(1)


def _build(make: Callable[[], torch.nn.Module], component: str, *, on_meta: bool) -> torch.nn.Module:
    """A module without its weights; on the meta device it costs no memory."""
    import torch

    try:
        with torch.device("meta") if on_meta else nullcontext():
            return make().eval()
    except (TypeError, ValueError, KeyError, RuntimeError, IndexError, ArithmeticError) as error:
        raise ExportError(
            f"{component}/config.json makes no model: {error}", fix="download the checkpoint's config.json again"
        ) from None


def _plain_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers config as keyword arguments: without the names that say how it was saved."""
    skipped = ("architectures", "model_type", "transformers_version", "torch_dtype", "dtype")
    return {key: value for key, value in config.items() if key not in skipped and not key.startswith("_")}
