"""LoRAs for the tests' checkpoints: adapters with random weights, in every naming and of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import PROMPT, psnr_db
from safetensors.numpy import save_file

import tintype
from tintype.adapters.names import ldm_names
from tintype.errors import MemoryBudgetError
from tintype.sampling import noise_source

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
WORDS = ("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1", "mlp.fc2")
# The picture that is drawn with them.
SEED, STEPS, SCALE, SIZE = 7, 4, 5.0, (48, 32)
ASKED: dict[str, Any] = {
    "seed": SEED, "num_inference_steps": STEPS, "width": SIZE[0], "height": SIZE[1], "guidance_scale": SCALE,
    "sampler": "euler", "exactness": "exact", "noise": "torch-cpu",
}  # fmt: skip


def weights_of(checkpoint: Path, part: str) -> dict[str, np.ndarray]:
    """By layer the weights of a part of a diffusers folder: unet, text_encoder, text_encoder_2."""
    from safetensors.numpy import load_file

    (file,) = (checkpoint / part).glob("*.safetensors")
    found = {name.removesuffix(".weight"): array for name, array in load_file(file).items() if name.endswith(".weight")}
    return {name.removeprefix("text_model."): array for name, array in found.items() if array.ndim in (2, 4)}


def pairs(
    checkpoint: Path, part: str, endings: tuple[str, ...], rank: int | Callable[[str], int], *, seed: int, size: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By layer (down, up) whose product is `size` times as large as the weight is."""
    random, found = np.random.default_rng(seed), {}
    for name, weight in weights_of(checkpoint, part).items():
        if not name.endswith(endings):
            continue
        ranks = rank(name) if callable(rank) else rank
        down = random.standard_normal((ranks, *weight.shape[1:])).astype(np.float32)
        up = random.standard_normal((weight.shape[0], ranks, *(1,) * (weight.ndim - 2))).astype(np.float32)
        whole = up.reshape(len(up), ranks) @ down.reshape(ranks, -1)
        found[name] = (down, (up * (size * weight.std() / whole.std())).astype(np.float32))
    assert found
    return found


def kohya(part: str, layer: str) -> str:
    start = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_", "text_encoder_2": "lora_te2_text_model_"}[
        part
    ]
    return start + layer.replace(".", "_")


def kohya_xl(part: str, layer: str) -> str:
    return kohya(part, layer).replace("lora_te_", "lora_te1_")


def save_kohya(
    path: Path,
    parts: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    alpha: float | None = None,
    dtype: Any = np.float32,
    naming: Callable[[str, str], str] = kohya,
    metadata: dict[str, str] | None = None,
) -> Path:
    tensors: dict[str, np.ndarray] = {}
    for part, layers in parts.items():
        for layer, (down, up) in layers.items():
            name = naming(part, layer)
            tensors |= {f"{name}.lora_down.weight": down.astype(dtype), f"{name}.lora_up.weight": up.astype(dtype)}
            if alpha is not None:
                tensors[f"{name}.alpha"] = np.array(alpha, dtype)
    save_file(tensors, path, metadata=metadata)
    return path


def save_diffusers(
    path: Path, parts: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], *, alpha: float | None = None
) -> Path:
    """As `save_lora_weights` of diffusers writes it; alpha: in the metadata, as it does since 0.34."""
    tensors: dict[str, np.ndarray] = {}
    told: dict[str, Any] = {}
    for part, layers in parts.items():
        words = "text_model." if part.startswith("text") else ""
        for layer, (down, up) in layers.items():
            tensors |= {f"{part}.{words}{layer}.lora_A.weight": down, f"{part}.{words}{layer}.lora_B.weight": up}
        if alpha is not None:
            rank = len(next(iter(layers.values()))[0])
            names = sorted(layers)  # as recent versions of transformers call them
            told |= {f"{part}.r": rank, f"{part}.lora_alpha": alpha, f"{part}.target_modules": names}
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(told)} if told else {"format": "pt"})
    return path


@pytest.fixture(scope="session")
def files(tiny_checkpoint, xl_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """LoRAs of which each changes the picture much."""
    folder = tmp_path_factory.mktemp("loras")

    def unet(checkpoint, endings, rank=4, seed=1, size=0.5):
        return pairs(checkpoint, "unet", endings, rank, seed=seed, size=size)

    def words(checkpoint, part="text_encoder"):
        return pairs(checkpoint, part, WORDS, 4, seed=2, size=0.5)

    def ranks(name):  # of each layer another
        return 2 + len(name) % 5

    tiny, large = tiny_checkpoint, xl_checkpoint
    both = {"unet": unet(tiny, TRANSFORMER), "text_encoder": words(tiny)}
    three = {
        "unet": unet(large, TRANSFORMER),
        **{part: words(large, part) for part in ("text_encoder", "text_encoder_2")},
    }
    return {
        "kohya": save_kohya(folder / "kohya.safetensors", both, alpha=2.0),
        "no-alpha": save_kohya(folder / "no-alpha.safetensors", both),
        "fp16": save_kohya(folder / "fp16.safetensors", both, alpha=4.0, dtype=np.float16),
        "locon": save_kohya(
            folder / "locon.safetensors", {"unet": unet(tiny, (*TRANSFORMER, *CONVOLUTIONS), ranks)}, alpha=3.0
        ),
        "diffusers": save_diffusers(folder / "diffusers.safetensors", both),
        "told-alpha": save_diffusers(folder / "told-alpha.safetensors", both, alpha=1.5),
        "attention": save_diffusers(folder / "attention.safetensors", {"unet": unet(tiny, ATTENTION, 4, 3)}),
        "again": save_diffusers(folder / "again.safetensors", {"unet": unet(tiny, ATTENTION, 3, 4)}),
        "xl-kohya": save_kohya(folder / "xl-kohya.safetensors", three, alpha=2.0, naming=kohya_xl),
        "xl-ldm": save_kohya(folder / "xl-ldm.safetensors", three, alpha=2.0, naming=_ldm(large)),
        "xl-diffusers": save_diffusers(folder / "xl-diffusers.safetensors", three, alpha=6.0),
    }


def _ldm(checkpoint: Path) -> Callable[[str, str], str]:
    """As kohya's trainer for XL names the UNet's layers."""
    old = ldm_names(weights_of(checkpoint, "unet"))
    return lambda part, layer: kohya_xl(part, old[layer] if part == "unet" else layer)


def drawn_by(pipe: Any) -> np.ndarray:
    """The picture that `ASKED` asks for, by a pipeline of diffusers."""
    import torch

    noise = noise_source("torch-cpu", [SEED]).draw((1, 4, SIZE[1] // 4, SIZE[0] // 4))
    with torch.no_grad():
        picture = pipe(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            width=SIZE[0],
            height=SIZE[1],
            latents=torch.from_numpy(noise),
            output_type="np",
        ).images[0]
    return picture * 255


def demand_near(made: Any, expected: np.ndarray, plain: Any, name: str) -> None:
    assert expected.std() > 5  # a grey picture would be near any other
    near, far = psnr_db(made.image, expected), psnr_db(plain.image, expected)
    print(f"{name}: {near:.1f} dB, without it {far:.1f} dB")
    assert near >= 50.0
    assert far < 35.0


def demand_the_same_in_the_least_memory(bundle: Path, file: Path) -> None:
    """A picture with this file in a part of its steps, within the least budget that there is for it, and again."""
    asked = {**ASKED, "loras": [f"{file}=1@0-0.6"]}
    with tintype.load(bundle, provider="cpu", threads=1) as opened:
        whole = opened.generate(PROMPT, **asked)
    with (
        tintype.load(bundle, provider="cpu", threads=1, memory=1) as opened,
        pytest.raises(MemoryBudgetError) as told,
    ):
        opened.plan(PROMPT, **asked)
    with tintype.load(bundle, provider="cpu", threads=1, memory=told.value.least_bytes) as opened:
        made = opened.generate(PROMPT, **asked)
        assert opened.plan(PROMPT, **asked).peak_bytes <= told.value.least_bytes
        assert opened.reproduce(made.record, loras=[file]).image.tobytes() == made.image.tobytes()
    assert psnr_db(made.pixels * 255, whole.pixels * 255) > 80


PEFT_ALPHA, PEFT_RANK = 3, 4


def peft_unet(checkpoint: Path, *, seed: int = 3, **config: Any) -> Any:
    """diffusers' UNet with random adapters of peft in it."""
    import diffusers
    import torch
    from peft import LoraConfig

    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=PEFT_RANK, lora_alpha=PEFT_ALPHA, **config))
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
            elif "lora_magnitude" in name:
                weight *= torch.rand_like(weight) + 0.5
    return unet.eval()


def save_peft_unet(unet: Any, path: Path) -> Path:
    """Its adapter as diffusers saves it."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    StableDiffusionPipeline.save_lora_weights(
        path.parent,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
        unet_lora_adapter_metadata={"lora_alpha": PEFT_ALPHA, "r": PEFT_RANK},
        weight_name=path.name,
    )
    return path
