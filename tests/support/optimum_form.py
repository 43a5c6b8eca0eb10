"""A folder of ONNX graphs in the form that optimum exports, made by torch's first exporter: its names, its operators.

optimum itself is tried in tests/optimum; here the same modules are traced with the same names of inputs and outputs.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OPSET = 17
BATCH = {0: "batch_size"}
SEQUENCE = {0: "batch_size", 1: "sequence_length"}
LATENTS = {0: "batch_size", 2: "height", 3: "width"}


def save_onnx_folder(checkpoint: Path, folder: Path) -> None:
    """The graphs, configs, tokenizers and scheduler of a diffusers folder, as optimum lays them."""
    index = json.loads((checkpoint / "model_index.json").read_text())
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    for name in ("scheduler", "tokenizer", "tokenizer_2"):
        if (checkpoint / name).is_dir():
            shutil.copytree(checkpoint / name, folder / name)
    is_xl = (checkpoint / "text_encoder_2").is_dir()
    for name in ("text_encoder", "text_encoder_2"):
        if (checkpoint / name).is_dir():
            _save_text_encoder(checkpoint / name, folder / name, is_xl=is_xl)
    save_unet(checkpoint, folder / "unet")
    _save_vae(checkpoint, folder)


def save_unet(checkpoint: Path, folder: Path) -> None:
    """unet/ alone."""
    import diffusers
    import torch

    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    config = unet.config
    is_xl = config.addition_embed_type == "text_time"

    def forward(sample: Any, timestep: Any, encoder_hidden_states: Any, text_embeds: Any = None, time_ids: Any = None):
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        return unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]

    inputs: dict[str, Any] = {
        "sample": torch.randn(2, config.in_channels, 16, 12),
        "timestep": torch.tensor(7.0),
        "encoder_hidden_states": torch.randn(2, 77, config.cross_attention_dim),
    }
    dims: dict[str, dict[int, str]] = {"sample": LATENTS, "encoder_hidden_states": SEQUENCE}
    if is_xl:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs |= {"text_embeds": torch.randn(2, pooled), "time_ids": torch.full((2, 6), 64.0)}
        dims |= {"text_embeds": BATCH, "time_ids": BATCH}
    _trace(unet, forward, inputs, ["out_sample"], {**dims, "out_sample": LATENTS}, folder)
    shutil.copyfile(checkpoint / "unet/config.json", folder / "config.json")


def _save_text_encoder(source: Path, folder: Path, *, is_xl: bool) -> None:
    import torch
    import transformers

    config = json.loads((source / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    encoder = kind.from_pretrained(source, attn_implementation="eager")
    pooled = "text_embeds" if hasattr(encoder, "text_projection") else "pooler_output"
    names = ["last_hidden_state", pooled]
    if is_xl:
        names += [f"hidden_states.{index}" for index in range(config["num_hidden_layers"] + 1)]

    def forward(input_ids: Any) -> tuple[Any, ...]:
        found = encoder(input_ids, output_hidden_states=is_xl)
        return found.last_hidden_state, found[pooled], *(found.hidden_states if is_xl else ())

    ids = torch.randint(0, 100, (2, 77))
    dims = dict.fromkeys(["input_ids", *names], SEQUENCE) | {pooled: BATCH}
    _trace(encoder, forward, {"input_ids": ids}, names, dims, folder)
    shutil.copyfile(source / "config.json", folder / "config.json")


def _save_vae(checkpoint: Path, folder: Path) -> None:
    import diffusers
    import torch

    vae = diffusers.AutoencoderKL.from_pretrained(checkpoint / "vae")
    latents = torch.randn(2, vae.config.latent_channels, 12, 10)
    for name, taken, example, given, forward in (
        ("vae_decoder", "latent_sample", latents, "sample", lambda latent_sample: vae.decode(latent_sample).sample),
        (
            "vae_encoder", "sample", torch.randn(2, 3, 48, 40), "latent_parameters",
            lambda sample: vae.encode(sample).latent_dist.parameters,
        ),
    ):  # fmt: skip
        _trace(vae, forward, {taken: example}, [given], {taken: LATENTS, given: LATENTS}, folder / name)
        shutil.copyfile(checkpoint / "vae/config.json", folder / name / "config.json")


def _trace(
    module: Any,
    forward: Any,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    dims: Mapping[str, Mapping[int, str]],
    folder: Path,
) -> None:
    import torch

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in module.named_children():  # so that weights and nodes are named after them
                setattr(self, name, child)

        def forward(self, *given: Any) -> Any:
            return forward(*given)

    folder.mkdir()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Traced().eval(), tuple(inputs.values()), folder / "model.onnx", dynamo=False, opset_version=OPSET,
            input_names=list(inputs), output_names=list(outputs), dynamic_axes=dims, do_constant_folding=True,
        )  # fmt: skip
