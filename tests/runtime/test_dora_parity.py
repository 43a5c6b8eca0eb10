"""DoRAs at run time are peft's own: whole pictures by diffusers with peft in its UNet, every layer, several at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loras import ASKED, ATTENTION, CONVOLUTIONS, TRANSFORMER, demand_near, drawn_by, peft_unet, save_peft_unet
from pictures import PROMPT

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

EVERYTHING = (*TRANSFORMER, *CONVOLUTIONS, "conv_in", "conv_out")


def pipe_with(checkpoint: Path, unet: Any) -> Any:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.unet = unet
    return pipe


def test_a_picture_is_that_of_peft_in_diffusers_unet(pipeline, tiny_checkpoint, tmp_path):
    """Of every layer, convolutions too; not merged there either."""
    unet = peft_unet(tiny_checkpoint, target_modules=list(EVERYTHING), use_dora=True)
    file = save_peft_unet(unet, tmp_path / "dora.safetensors")
    made, plain = pipeline.generate(PROMPT, **ASKED, loras=[file]), pipeline.generate(PROMPT, **ASKED)
    demand_near(made, drawn_by(pipe_with(tiny_checkpoint, unet)), plain, "everything")


def test_several_and_a_lora_add_up_what_peft_makes_of_each(pipeline, tiny_checkpoint, tmp_path):
    """Two DoRAs and a LoRA, whose order is no matter here: each is merged by peft alone, and the differences added."""
    import diffusers
    import torch

    whole = diffusers.UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet")
    before, files = {name: weight.detach().clone() for name, weight in whole.named_parameters()}, []
    for seed, (targets, use_dora) in enumerate(((ATTENTION, True), ((*ATTENTION, "conv1"), True), (ATTENTION, False))):
        unet = peft_unet(tiny_checkpoint, seed=seed, target_modules=list(targets), use_dora=use_dora)
        files.append((save_peft_unet(unet, tmp_path / f"{seed}.safetensors"), 1.0))
        unet.fuse_lora()
        with torch.no_grad():
            for name, weight in unet.named_parameters():
                known = name.replace(".base_layer.", ".")
                if ".base_layer." in name:
                    whole.get_parameter(known).add_(weight - before[known])
    made, plain = pipeline.generate(PROMPT, **ASKED, loras=files), pipeline.generate(PROMPT, **ASKED)
    demand_near(made, drawn_by(pipe_with(tiny_checkpoint, whole)), plain, "several")


def test_every_layer_gives_what_peft_gives(pipeline, tiny_checkpoint, tmp_path):
    """By what its graph is told of it: scale * (W x) + up (down x) + bias."""
    import torch
    from peft.tuners.lora import LoraLayer

    unet = peft_unet(tiny_checkpoint, target_modules=list(EVERYTHING), use_dora=True)
    file = save_peft_unet(unet, tmp_path / "dora.safetensors")
    context = pipeline.context(pipeline.generate(PROMPT, **ASKED, loras=[file]).record.request)
    told = {name: torch.from_numpy(np.asarray(array)) for name, array in context.loras.inputs("denoiser", 0.0).items()}
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    assert len(layers) > 60
    torch.manual_seed(1)
    for name, module in layers.items():
        down, up, scale = (told[f"lora.{name}.{part}"] for part in ("down", "up", "scale"))
        base = module.get_base_layer()
        with torch.no_grad():
            if base.weight.ndim == 4:
                x = torch.randn(2, base.in_channels, 8, 8)
                shape, how = (1, -1, 1, 1), {"stride": base.stride, "padding": base.padding}
                conv = torch.nn.functional.conv2d
                made = scale * conv(x, base.weight, **how) + conv(conv(x, down, **how), up)
            else:
                x, shape = torch.randn(2, 5, base.in_features), (1, 1, -1)
                made = scale * (x @ base.weight.T) + x @ down @ up
            made += 0 if base.bias is None else base.bias.reshape(shape)
            expected = module(x)
        error = (made - expected).std() / expected.std()
        assert 20 * np.log10(float(error)) < -100, name
