"""DoRAs while a picture is drawn: as merged, as peft draws them, over every precision, several at once beside LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loras import (
    ASKED,
    ATTENTION,
    CONVOLUTIONS,
    TRANSFORMER,
    WORDS,
    files,
    pairs,
    save_kohya,
    weights_of,
)
from pictures import PROMPT, psnr_db
from safetensors.numpy import load_file, save_file

import tintype
from tintype.bundle import open_bundle
from tintype.bundle.merging import merge

__all__ = ["files"]  # the fixture


def with_magnitudes(path: Path, lora: Path, checkpoint: Path, *, seed: int, by_input: bool = False) -> Path:
    """A kohya file's DoRA: each row, or column, of the weight 0.5 to 1.5 times as long as it was."""
    random, tensors = np.random.default_rng(seed), load_file(lora)
    for part, start in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for layer, weight in weights_of(checkpoint, part).items():
            name = f"{start}{layer.replace('.', '_')}"
            if f"{name}.lora_down.weight" not in tensors:
                continue
            axes = tuple(axis for axis in range(weight.ndim) if axis != int(by_input))
            lengths = np.sqrt(np.square(weight).sum(axis=axes, keepdims=True))
            tensors[f"{name}.dora_scale"] = (lengths * random.uniform(0.5, 1.5, lengths.shape)).astype(np.float32)
    assert any(name.endswith("dora_scale") for name in tensors)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def doras(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """By what they change; "inputs" has the lengths of columns."""
    folder, tiny = tmp_path_factory.mktemp("doras"), tiny_checkpoint

    def unet(endings, seed):
        return {"unet": pairs(tiny, "unet", endings, 4, seed=seed, size=0.5)}

    words = {"text_encoder": pairs(tiny, "text_encoder", WORDS, 4, seed=2, size=0.5)}
    everything = {**unet((*TRANSFORMER, *CONVOLUTIONS), 1), **words}
    made = {}
    for name, parts in (("all", everything), ("attention", unet(ATTENTION, 3)), ("again", unet(ATTENTION, 4))):
        lora = save_kohya(folder / f"{name}-lora.safetensors", parts, alpha=2.0)
        made[name] = with_magnitudes(folder / f"{name}.safetensors", lora, tiny, seed=len(made))
    lora = folder / "all-lora.safetensors"
    made["inputs"] = with_magnitudes(folder / "inputs.safetensors", lora, tiny, seed=5, by_input=True)
    return made


def drawn(bundle: Path | str, **more: Any) -> tintype.Result:
    with tintype.load(bundle, provider="cpu", threads=1) as pipeline:
        return pipeline.generate(PROMPT, **{**ASKED, **more})


@pytest.mark.parametrize("weight", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("name", ["all", "inputs"])
def test_at_run_time_and_merged_it_is_the_same_picture(pipeline, tiny_bundle, doras, tmp_path, name, weight):
    """Linear layers, convolutions and a text encoder; at every weight."""
    merge(open_bundle(tiny_bundle), [(doras[name], weight)], tmp_path / "out")
    merged, there = drawn(tmp_path / "out"), pipeline.generate(PROMPT, **ASKED, loras=[(doras[name], weight)])
    plain = pipeline.generate(PROMPT, **ASKED)
    near, far = psnr_db(merged.pixels * 255, there.pixels * 255), psnr_db(plain.pixels * 255, there.pixels * 255)
    print(f"{name} {weight}: {near:.1f} dB, without it {far:.1f} dB")
    assert near >= 60
    assert far < 35
