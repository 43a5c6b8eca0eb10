"""T2I-Adapters as they are published: folders, and files by their authors' names and diffusers', are one bundle."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
from t2i_adapters import ADAPTERS, adapter, make_adapter

from tintype.bundle.t2i_adapter import open_t2i_adapter
from tintype.engine import run_graph
from tintype.errors import ExportError
from tintype.export import export_bundle
from tintype.export.checkpoint import demand_tensors, load
from tintype.export.sources.t2i_adapter import is_t2i_adapter, open_adapter_checkpoint

__all__ = ["adapter"]  # the fixture


def saved(state, path):
    from safetensors.torch import save_file

    save_file({name: weight.clone().contiguous() for name, weight in state.items()}, path)
    return path


def authors_name(name: str, kind: str, layers: int) -> str:
    """What the authors call one of diffusers' tensors. layers: of each level."""
    name = name.removeprefix("adapter.")
    if kind == "light":
        return name.replace(".resnets.", ".body.")
    found = re.fullmatch(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None:
        return name
    return f"body.{int(found[1]) * layers + int(found[2] or 0)}.{found[3]}.{found[4]}"


@pytest.mark.parametrize("form", ["diffusers", "authors"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("full", {}),
        ("full", {"in_channels": 1, "num_res_blocks": 3}),
        ("full", {"channels": [32, 32, 32]}),
        ("light", {"num_res_blocks": 4}),
        ("xl", {"downscale_factor": 16}),
    ],
    ids=str,
)
def test_a_file_is_read_as_the_folder_is(tmp_path, kind, options, form):
    import torch

    net = make_adapter(kind, **options)
    net.save_pretrained(tmp_path / "folder")
    layers = net.config.num_res_blocks
    state = dict(net.state_dict())
    if form == "authors":
        state = {authors_name(name, kind, layers): weight for name, weight in state.items()}
    file = saved(state, tmp_path / "net.safetensors")
    assert is_t2i_adapter(file)
    assert is_t2i_adapter(tmp_path / "folder")
    both = [open_adapter_checkpoint(place) for place in (tmp_path / "folder", file)]
    for checkpoint in both:
        demand_tensors(checkpoint, "t2i_adapter")
    told, made = (load(checkpoint, "t2i_adapter") for checkpoint in both)
    for name in ("adapter_type", "channels", "downscale_factor", "in_channels", "num_res_blocks"):
        assert told.config[name] == made.config[name], name
    picture = torch.rand(1, net.config.in_channels, 128, 64)
    with torch.inference_mode():
        for first, second in zip(told(picture), made(picture), strict=True):
            assert torch.equal(first, second)
            assert float(first.std()) > 0.01  # it does something
    assert bool(both[1].source.assumed) == (kind == "xl")


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(("precision", "gate_db"), [("fp32", 80.0), ("fp16", 50.0), ("int8", 35.0)])
def test_a_bundle_gives_what_the_module_does(adapter, kind, precision, gate_db):
    import diffusers
    import torch

    folder, bundle = adapter(kind, precision=precision)
    net, opened = diffusers.T2IAdapter.from_pretrained(folder), open_t2i_adapter(bundle)
    manifest = opened.manifest
    assert manifest.controls == ("stable-diffusion-xl" if kind == "xl" else "stable-diffusion")
    assert manifest.graph.precision == precision
    assert manifest.parity[0].passed
    picture = np.random.default_rng(0).random((2, 3, 64, 96), np.float32)
    found = run_graph(opened.graph_path("t2i_adapter"), {"adapter_cond": picture})
    with torch.inference_mode():
        expected = [feature.numpy() for feature in net(torch.from_numpy(picture))]
    assert [feature.shape[1:] for feature in expected] == [*manifest.sizes(96, 64)]
    for theirs, ours in zip(expected, found.values(), strict=True):
        assert theirs.std() > 0.01
        error = float(np.mean((theirs - ours) ** 2))
        assert 10 * np.log10(np.ptp(theirs) ** 2 / error) >= gate_db


def changed(folder, tmp_path, **config):
    made = shutil.copytree(folder, tmp_path / "changed")
    path = made / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return made


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"adapter_type": "style_adapter"}, "adapter_type 'style_adapter'"),
        ({"in_channels": 4}, "pictures of 4 channels"),
        ({"in_channels": True}, "pictures of True channels"),
        ({"channels": [10**9]}, "channels"),
        ({"channels": []}, "channels"),
        ({"channels": "wide"}, "channels"),
        ({"channels": [48, 64, 128, 128]}, "the config makes it"),
        ({"num_res_blocks": 10**6}, "num_res_blocks"),
        ({"num_res_blocks": 3}, "it lacks"),
        ({"downscale_factor": 0}, "downscale_factor"),
        ({"downscale_factor": 8}, "the config makes it"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_refused_by_name(adapter, tmp_path, config: dict[str, Any], words):
    folder = changed(adapter()[0], tmp_path, **config)
    with pytest.raises(ExportError) as refusal:
        export_bundle(folder, tmp_path / "out")
    assert words in refusal.value.message
    assert refusal.value.fix
    assert not (tmp_path / "out").exists()


def test_broken_files_and_options_of_models_are_refused(adapter, tmp_path):
    from tintype.export.sources.source import SourceOptions

    folder = adapter()[0]
    state = {authors_name(name, "full", 2): weight for name, weight in make_adapter("full").state_dict().items()}
    first = "body.0.block1.weight"
    for name, content, words in (
        ("unknown", {**state, "style.weight": state["conv_in.bias"]}, "has unknown adapter.style.weight"),
        ("less", {name: weight for name, weight in state.items() if name != "body.3.block2.bias"}, "it lacks"),
        ("odd", {**state, "conv_in.weight": state["conv_in.weight"][:, :47]}, "no square of pixels"),
        ("empty", {first: state[first]}, "conv_in.weight|body.0.resnets.0.block2.weight"),
        ("nan", {**state, "conv_in.bias": state["conv_in.bias"] * float("nan")}, "NaN or infinity"),
        ("twice", {**state, "body.00.block1.weight": state[first]}, "are the same tensor"),
        ("whole", {name: weight.int() for name, weight in state.items()}, "which is no float"),
    ):
        file = saved(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(ExportError, match=words) as refusal:
            export_bundle(file, tmp_path / "out")
        assert refusal.value.fix
    whole = saved(state, tmp_path / "cut.safetensors")
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ExportError, match="broken"):
        export_bundle(whole, tmp_path / "out")
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ExportError, match="is a pickle"):
        export_bundle(tmp_path / "net.pth", tmp_path / "out")
    with pytest.raises(ExportError, match="few_steps is given, and a T2I-Adapter has none"):
        export_bundle(folder, tmp_path / "out", few_steps=4)
    with pytest.raises(ExportError, match="vae is given, and a T2I-Adapter has none"):
        export_bundle(folder, tmp_path / "out", options=SourceOptions(vae=folder))
    assert not (tmp_path / "out").exists()
