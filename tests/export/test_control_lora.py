"""A ControlLoRA and the model that it was made for are the ControlNet that they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from controlnets import ldm_name, make_controlnet, saved
from one_file import save_folder, write_one_file

from tintype.bundle.controlnet import open_controlnet
from tintype.engine import run_graph
from tintype.errors import ExportError
from tintype.export import export_bundle
from tintype.export.checkpoint import demand_tensors, load
from tintype.export.command import export
from tintype.export.sources.controlnet import is_controlnet, open_controlnet_checkpoint
from tintype.export.sources.source import SourceOptions

RANK = 3


def write_control_lora(unet_folder: Path, path: Path, rank: int = RANK) -> Any:
    """A ControlLoRA for a UNet, in half of whose normalizations and biases the UNet's own numbers stand.

    Returns the ControlNet that it stands for.
    """
    import diffusers
    import torch

    own = diffusers.UNet2DConditionModel.from_pretrained(unet_folder).state_dict()
    net = make_controlnet(unet_folder, 11)
    whole, file = net.state_dict(), {"lora_controlnet": torch.tensor([])}
    for number, (name, weight) in enumerate(list(whole.items())):
        theirs = ldm_name(name, net.config.layers_per_block)
        if name not in own:
            file[theirs] = weight
        elif weight.ndim < 2:
            whole[name] = own[name] + 0.05 * (number % 2)
            if number % 2:
                file[theirs] = whole[name]
        else:
            ones = (1,) * (weight.ndim - 2)
            up = torch.randn(len(weight), rank, *ones) * 0.1
            down = torch.randn(rank, *weight.shape[1:]) * 0.1
            module = theirs.removesuffix(".weight")
            file[f"{module}.up"], file[f"{module}.down"] = up, down
            whole[name] = own[name] + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    net.load_state_dict(whole)
    saved(file, path)
    return net


@pytest.fixture(params=["sd1", "sd2", "xl"])
def family(request):
    return request.param


@pytest.fixture
def folder(request, tmp_path, family):
    plain = request.getfixturevalue("xl_checkpoint" if family == "xl" else "tiny_checkpoint")
    return save_folder(plain, tmp_path / "model", family)


@pytest.mark.parametrize("place", ["", "unet"], ids=["folder", "its-unet"])
def test_it_is_the_controlnet_that_it_stands_for(tmp_path, folder, place):
    net = write_control_lora(folder / "unet", tmp_path / "lora.safetensors")
    assert is_controlnet(tmp_path / "lora.safetensors")
    checkpoint = open_controlnet_checkpoint(tmp_path / "lora.safetensors", folder / place)
    demand_tensors(checkpoint, "controlnet")
    made = load(checkpoint, "controlnet")
    assert_same(made, net)
    feed = inputs_of(net.config)
    for theirs, ours in zip(outputs(net, feed), outputs(made, feed), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def inputs_of(config: Any) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    feed = {
        "sample": random.standard_normal((1, 4, 8, 12)).astype(np.float32),
        "timestep": np.array(321.0, np.float32),
        "encoder_hidden_states": random.standard_normal((1, 77, config.cross_attention_dim)).astype(np.float32),
        "controlnet_cond": random.random((1, 3, 32, 48)).astype(np.float32),
    }
    if config.addition_embed_type == "text_time":
        feed["text_embeds"] = random.standard_normal((1, 128)).astype(np.float32)
        feed["time_ids"] = np.full((1, 6), 64.0, np.float32)
    return feed


def outputs(net: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    import torch

    given = {name: torch.from_numpy(value) for name, value in feed.items()}
    added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
    with torch.inference_mode():
        down, middle = net(**given, added_cond_kwargs=added, return_dict=False)
    found = [each.numpy() for each in (*down, middle)]
    assert min(each.std() for each in found) > 0.01
    return found


def assert_same(made: Any, net: Any) -> None:
    ours = made.state_dict()
    assert ours.keys() == net.state_dict().keys()
    for name, weight in net.state_dict().items():
        np.testing.assert_allclose(ours[name].numpy(), weight.numpy(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", ["sd2"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_model_may_be_one_file(tmp_path, folder, dtype):
    import torch

    file = write_one_file(folder, tmp_path / "model.safetensors", "sd2", dtype=getattr(torch, dtype))
    net = write_control_lora(folder / "unet", tmp_path / "lora.safetensors")
    made = load(open_controlnet_checkpoint(tmp_path / "lora.safetensors", file), "controlnet")
    if dtype == "float32":
        assert_same(made, net)
    else:
        state = made.state_dict()
        apart = [float((state[name] - weight).abs().max()) for name, weight in net.state_dict().items()]
        assert 0.0 < max(apart) < 0.005


@pytest.mark.parametrize("family", ["xl"], indirect=True)
def test_the_command_makes_a_bundle_of_it(tmp_path, folder):
    lora, bundle = tmp_path / "lora.safetensors", tmp_path / "bundle"
    net = write_control_lora(folder / "unet", lora)
    told = CliRunner().invoke(export, [str(lora), str(bundle), "--base", str(folder), "--json"])
    assert told.exit_code == 0, told.output
    opened = open_controlnet(bundle)
    assert opened.manifest.controls == "stable-diffusion-xl"
    source = json.loads((bundle / "tintype.json").read_text())["source"]
    assert source["location"] == lora.name
    assert source["base"]["location"] == folder.name
    assert len(source["base"]["sha256"]) == 64
    assert source["base"]["sha256"] != source["sha256"]
    feed = inputs_of(net.config)
    for theirs, ours in zip(outputs(net, feed), run_graph(opened.graph_path("controlnet"), feed).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_what_does_not_fit_is_refused_by_name(tmp_path, folder, tiny_checkpoint):
    from safetensors.numpy import load_file, save_file

    lora = tmp_path / "lora.safetensors"
    write_control_lora(folder / "unet", lora)
    whole = load_file(lora)

    def refusal(base: Path | None = folder, source: Path = lora) -> str:
        with pytest.raises(ExportError) as refused:
            export_bundle(source, tmp_path / "out", options=SourceOptions(base=base))
        assert not (tmp_path / "out").exists()
        return f"{refused.value.message}: {refused.value.fix}"

    assert "--base FOLDER" in refusal(None)
    assert "there is no checkpoint" in refusal(tmp_path / "nowhere")
    other = save_folder(tiny_checkpoint, tmp_path / "wider", "sd1", block_out_channels=(64, 128))
    assert "in the model of --base" in refusal(other)
    assert "is no ControlLoRA" in refusal(source=folder)
    up = "input_blocks.1.0.in_layers.2.up"
    assert up in whole
    for change, words in (
        ({up: None}, "one factor and not the other"),
        ({up: whole[up][:, :1]}, "the factors of input_blocks.1.0.in_layers.2 are"),
        ({up: whole[up] * np.nan}, "NaN or infinity"),
        ({"zero_convs.0.0.weight": None}, "it lacks controlnet_down_blocks.0.weight"),
        ({"input_blocks.1.0.in_layers.9.up": whole[up], "input_blocks.1.0.in_layers.9.down": whole[up]}, "factors"),
        ({"something.else": whole[up]}, "has unknown something.else"),
    ):
        save_file({name: value for name, value in {**whole, **change}.items() if value is not None}, lora)
        assert words in refusal(), words
    net = make_controlnet(folder / "unet", 1)
    net.save_pretrained(tmp_path / "net")
    assert "is a whole ControlNet" in refusal(source=tmp_path / "net")
