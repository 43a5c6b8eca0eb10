"""ControlNets as they are published: folders, and files by LDM's names and diffusers', are one and the same bundle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from controlnets import controlnet, ldm_name, randomized, saved

from tintype.bundle.controlnet import open_controlnet
from tintype.engine import run_graph
from tintype.errors import ExportError
from tintype.export import export_bundle
from tintype.export.sources.controlnet import is_controlnet, open_controlnet_checkpoint

__all__ = ["controlnet"]  # the fixture
# Of the structure of Stable Diffusion 1.x, 2.x and XL, as narrow as their normalizations and heads allow.
STRUCTURES: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    },
    "sd2": {
        "block_out_channels": (64, 128), "cross_attention_dim": 1024, "attention_head_dim": (1, 2),
        "use_linear_projection": True, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    },
    "xl": {
        "block_out_channels": (64, 64, 128), "cross_attention_dim": 2048, "attention_head_dim": (1, 1, 2),
        "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 3),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 1280 + 6 * 8,
    },
}  # fmt: skip


def net_of(kind: str):
    import diffusers
    import torch

    torch.manual_seed(5)
    return randomized(diffusers.ControlNetModel(**STRUCTURES[kind]))


@pytest.mark.parametrize("form", ["diffusers", "ldm", "cut-out"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_file_is_read_as_the_folder_is(tmp_path, kind, form):
    net = net_of(kind)
    net.save_pretrained(tmp_path / "folder")
    state = dict(net.state_dict())
    if form != "diffusers":
        start = "control_model." if form == "cut-out" else ""
        state = {start + ldm_name(name, net.config.layers_per_block): weight for name, weight in state.items()}
    file = saved(state, tmp_path / "net.safetensors")
    assert is_controlnet(file)
    assert is_controlnet(tmp_path / "folder")
    from tintype.export.checkpoint import demand_tensors, load

    both = [open_controlnet_checkpoint(place) for place in (tmp_path / "folder", file)]
    for checkpoint in both:
        demand_tensors(checkpoint, "controlnet")
    theirs, ours = (load(checkpoint, "controlnet") for checkpoint in both)
    weights = ours.state_dict()
    for name, weight in theirs.state_dict().items():
        assert np.array_equal(weight.numpy(), weights[name].numpy()), name
    told, made = (dict(module.config) for module in (theirs, ours))
    for name in ("block_out_channels", "down_block_types", "cross_attention_dim", "layers_per_block", "in_channels"):
        as_list = [list(value) if isinstance(value, tuple) else value for value in (told[name], made[name])]
        assert as_list[0] == as_list[1], name
    import torch

    inputs = [
        torch.randn(1, 4, 16, 16),
        500,
        torch.randn(1, 7, told["cross_attention_dim"]),
        torch.rand(1, 3, 128, 128),
    ]
    added = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.full((1, 6), 512.0)} if kind == "xl" else None
    with torch.inference_mode():
        (first, _), (second, _) = (m(*inputs, added_cond_kwargs=added, return_dict=False) for m in (theirs, ours))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(first, second, strict=True))
    assert float(first[0].std()) > 0.01  # it does something


def test_a_bundle_gives_what_the_module_does(controlnet):
    import diffusers
    import torch

    folder, bundle = controlnet("xl")
    net, opened = diffusers.ControlNetModel.from_pretrained(folder), open_controlnet(bundle)
    assert opened.manifest.parity[0].psnr_db >= 80.0
    assert opened.manifest.controls == "stable-diffusion-xl"
    config = net.config
    random = np.random.default_rng(0)
    feed = {
        "sample": random.standard_normal((1, 4, 8, 12)).astype(np.float32),
        "timestep": np.array(321.0, np.float32),
        "encoder_hidden_states": random.standard_normal((1, 154, config.cross_attention_dim)).astype(np.float32),
        "controlnet_cond": random.random((1, 3, 32, 48)).astype(np.float32),
        "text_embeds": random.standard_normal((1, 40)).astype(np.float32),
        "time_ids": np.full((1, 6), 64.0, np.float32),
    }
    found = run_graph(opened.graph_path("controlnet"), feed)
    given = {name: torch.from_numpy(value) for name, value in feed.items()}
    added = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
    with torch.inference_mode():
        down, middle = net(**given, added_cond_kwargs=added, return_dict=False)
    assert len(found) == len(down) + 1
    for theirs, ours in zip((*down, middle), found.values(), strict=True):
        assert float(theirs.std()) > 0.01
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_int8_has_the_weights_of_its_layers_in_eight_bits_and_rounds_nothing_else(controlnet):
    import onnx_ir as ir

    opened = open_controlnet(controlnet(precision="int8")[1])
    assert opened.manifest.graph.precision == "int8"
    assert opened.manifest.parity[0].psnr_db >= 35.0
    graph = ir.load(opened.graph_path("controlnet")).graph
    kinds = {str(name): value.dtype for name, value in graph.initializers.items()}
    assert not any(node.op_type == "QuantizeLinear" for node in graph)
    for ending in ("weight_T_int8", "conv1.weight_int8"):
        assert any(name.endswith(ending) and kind == ir.DataType.INT8 for name, kind in kinds.items())
    assert any(name.endswith("weight_fp16") and kind == ir.DataType.FLOAT16 for name, kind in kinds.items())


def test_int4_has_those_of_linear_layers_in_four(controlnet):
    import onnx_ir as ir

    opened = open_controlnet(controlnet(precision="int4")[1])
    assert opened.manifest.graph.precision == "int4"
    assert opened.manifest.parity[0].psnr_db >= opened.manifest.parity[0].gate_db == 28.0
    kinds = {
        str(name): value.dtype for name, value in ir.load(opened.graph_path("controlnet")).graph.initializers.items()
    }
    assert any(name.endswith("weight_T_uint4") and kind == ir.DataType.UINT4 for name, kind in kinds.items())
    assert any(name.endswith("conv1.weight_int8") and kind == ir.DataType.INT8 for name, kind in kinds.items())


def changed(folder, tmp_path, **config):
    import shutil

    made = shutil.copytree(folder, tmp_path / "changed")
    path = made / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return made


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "ControlNetUnionModel, which can't be exported"),
        ({"conditioning_channels": 1}, "takes no RGB picture"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"block_out_channels": [10**9]}, "block_out_channels"),
        ({"layers_per_block": 10**6}, "layers"),
        ({"cross_attention_dim": "wide"}, "cross_attention_dim"),
        ({"addition_embed_type": "text"}, "addition_embed_type"),
        ({"block_out_channels": [32, 128]}, "the config makes it"),
        ({"layers_per_block": 2}, "it lacks"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_refused_by_name(controlnet, tmp_path, config, words):
    folder = changed(controlnet()[0], tmp_path, **config)
    with pytest.raises(ExportError) as refusal:
        export_bundle(folder, tmp_path / "out")
    assert words in refusal.value.message
    assert not (tmp_path / "out").exists()


def test_broken_weights_and_options_of_models_are_refused(controlnet, tmp_path):
    from safetensors.numpy import load_file, save_file

    from tintype.export.sources.source import SourceOptions

    folder = changed(controlnet()[0], tmp_path)
    with pytest.raises(ExportError, match="few_steps is given, and a ControlNet has none"):
        export_bundle(folder, tmp_path / "out", few_steps=4)
    with pytest.raises(ExportError, match="vae is given"):
        export_bundle(folder, tmp_path / "out", options=SourceOptions(vae=folder))
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    save_file({**weights, "conv_in.bias": weights["conv_in.bias"] * np.nan}, file)
    with pytest.raises(ExportError, match="NaN or infinity"):
        export_bundle(folder, tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ExportError, match="broken"):
        export_bundle(folder, tmp_path / "out")
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ExportError, match="is a pickle"):
        export_bundle(tmp_path / "net.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
