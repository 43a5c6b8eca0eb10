"""IP-Adapters with random weights for the tests' checkpoints, as published, and the image encoder that they take."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

SIDE, PATCH, HIDDEN, EMBEDDING = 32, 8, 48, 24  # of the encoder
HEAD = 64  # of Plus's heads, which no file says
Layers = list[tuple[int, int]]  # of each cross-attention its channels, and numbers of a word


def save_image_encoder(folder: Path, seed: int = 0) -> None:
    """CLIP's, of three layers, for pictures of 32 pixels; its states differ from picture to picture."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE,
            patch_size=PATCH, projection_dim=EMBEDDING, hidden_act="gelu",
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4.0 if "patch_embedding" in name else 2.0)
    encoder.save_pretrained(folder)


def cross_attentions(checkpoint: Path) -> Layers:
    """Those of a checkpoint's UNet, in the order of diffusers' processors."""
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    layers = [name for name in unet.attn_processors if "attn2" in name]
    shapes = [unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape for name in layers]
    return [(int(rows), int(columns)) for rows, columns in shapes]


def adapter_tensors(layers: Layers, kind: str = "base", seed: int = 0, tokens: int = 4) -> dict[str, np.ndarray]:
    """What a file holds for a model's cross-attentions: kind base, plus or full."""
    random = np.random.default_rng(seed)
    words = layers[0][1]

    def weight(*shape: int, size: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) * size / np.sqrt(shape[-1])).astype(np.float32)

    def affine(*names: str, width: int) -> dict[str, np.ndarray]:
        return {
            f"{name}.{part}": (start + 0.1 * random.standard_normal(width)).astype(np.float32)
            for name in names
            for part, start in (("weight", 1.0), ("bias", 0.0))
        }

    def linear(name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": weight(rows, columns), f"{name}.bias": weight(rows)}

    if kind == "base":
        projection = {**linear("proj", tokens * words, EMBEDDING), **affine("norm", width=words)}
    elif kind == "full":
        projection = {**linear("proj.0", HIDDEN, HIDDEN), **linear("proj.2", words, HIDDEN)}
        projection |= affine("proj.3", width=words)
    else:
        width, inner = 40, 2 * HEAD
        projection = {"latents": weight(1, tokens, width, size=6.0), **linear("proj_in", width, HIDDEN)}
        projection |= {**linear("proj_out", words, width), **affine("norm_out", width=words)}
        for depth in range(4):
            layer = f"layers.{depth}"
            projection |= affine(f"{layer}.0.norm1", f"{layer}.0.norm2", f"{layer}.1.0", width=width)
            projection |= {
                f"{layer}.0.to_q.weight": weight(inner, width),
                f"{layer}.0.to_kv.weight": weight(2 * inner, width),
            }
            projection |= {
                f"{layer}.0.to_out.weight": weight(width, inner),
                f"{layer}.1.1.weight": weight(4 * width, width),
            }
            projection[f"{layer}.1.3.weight"] = weight(width, 4 * width)
    found = {f"image_proj.{name}": array for name, array in projection.items()}
    for index, (channels, columns) in enumerate(layers):
        found[f"ip_adapter.{2 * index + 1}.to_k_ip.weight"] = weight(channels, columns)
        found[f"ip_adapter.{2 * index + 1}.to_v_ip.weight"] = weight(channels, columns, size=2.0)
    return found


def save_adapter(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, path)
    return path


def colours(width: int = 64, height: int = 64, seed: int = 5) -> Image.Image:
    """A picture of four patches of colour."""
    patches = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)


def left_half(width: int = 64, height: int = 64, *, mirrored: bool = False) -> Image.Image:
    """A mask, white on one side."""
    values = np.zeros((height, width), np.uint8)
    values[:, slice(width // 2, None) if mirrored else slice(width // 2)] = 255
    return Image.fromarray(values)


def with_adapter(pipe: Any, adapter: Path, encoder: Path) -> Any:
    """One of diffusers' pipelines with an adapter and its image encoder, by Euler's method."""
    import diffusers
    from transformers import CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        feature_extractor=CLIPImageProcessorPil(size=SIDE, crop_size=SIDE),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.load_ip_adapter(str(adapter.parent), subfolder="", weight_name=adapter.name, low_cpu_mem_usage=False)
    return pipe


@pytest.fixture(scope="session")
def image_encoder(tiny_checkpoint: Path) -> Callable[..., tuple[Path, Path]]:
    """By seed: the checkpoint of an image encoder, and its bundle in a precision."""

    def made(seed: int = 0, precision: str = "fp32") -> tuple[Path, Path]:
        from tintype.export import export_bundle

        folder = tiny_checkpoint.with_name(f"image-encoder-{seed}")
        bundle = folder.with_name(f"{folder.name}-{precision}")
        for place, save in (
            (folder, lambda place: save_image_encoder(place, seed)),
            (bundle, lambda place: export_bundle(folder, place, precision=precision)),
        ):
            with filelock.FileLock(place.with_name(f"{place.name}.lock")):
                if not place.is_dir():
                    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
                        save(Path(scratch) / place.name)
                        (Path(scratch) / place.name).rename(place)
        return folder, bundle

    return made


@pytest.fixture(scope="session")
def ip_adapter(request, tmp_path_factory) -> Callable[..., Path]:
    """By a checkpoint's fixture and a kind: an adapter's file."""
    folder, known = tmp_path_factory.mktemp("ip-adapters"), dict[str, Path]()

    def made(base: str = "tiny_checkpoint", kind: str = "base", seed: int = 0) -> Path:
        name = f"{kind}-{base}-{seed}"
        if name not in known:
            tensors = adapter_tensors(cross_attentions(request.getfixturevalue(base)), kind, seed)
            known[name] = save_adapter(folder / f"{name}.safetensors", tensors)
        return known[name]

    return made
