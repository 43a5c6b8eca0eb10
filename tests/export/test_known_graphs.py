"""A structure that was traced before, filled with the weights of another model, is the graph that tracing gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from tintype.export import graphs, known_graphs, modules
from tintype.export.checkpoint import open_checkpoint
from tintype.export.graphs import Job
from tintype.export.known_graphs import graph_of, structure_of
from tintype.export.modules import Modules
from tintype.export.progress import Silent
from tintype.export.storage import save_graph
from tintype.export.tokenizer import read_tokenizer
from tintype.export.tracing import trace
from tintype.export.wrappers import trace_plan

TOKENS = 77


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """Each module that is traced."""
    traced: list[torch.nn.Module] = []

    def counted(module: torch.nn.Module, plan: Any) -> Any:
        traced.append(module)
        return trace(module, plan)

    monkeypatch.setattr(known_graphs, "trace", counted)
    return traced


@pytest.fixture(scope="module")
def smallest(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with one level in its UNet and in its VAE: each is traced twice and more here."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("smallest") / "checkpoint"))
    unet = UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(folder / "unet"),
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    unet.save_pretrained(folder / "unet")
    vae = AutoencoderKL.from_config(
        AutoencoderKL.load_config(folder / "vae"),
        block_out_channels=(16,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def parts(smallest: Path) -> Modules:
    return Modules(open_checkpoint(smallest))


@pytest.fixture
def of_role(parts: Modules) -> Callable[[str], tuple[torch.nn.Module, Any]]:
    return lambda role: (parts.wrapped(role), trace_plan(parts.checkpoint, role, TOKENS))


def saved(model: Any, folder: Path) -> list[bytes]:
    save_graph(model, folder / "model.onnx")
    return [(folder / name).read_bytes() for name in ("model.onnx", "model.onnx_data")]


@pytest.mark.parametrize(
    "role", ["text_encoder", *(pytest.param(role, marks=pytest.mark.long) for role in ("denoiser", "vae_decoder"))]
)
def test_weights_fill_a_structure_that_was_traced_without_any(role, parts, of_role, traces, tmp_path, monkeypatch):
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_graphs, "HOLLOW_BYTES", 20_000)  # so that large weights are one number while it is traced
    blank = parts.blank(role)
    graph_of(blank, trace_plan(parts.checkpoint, role, TOKENS))  # known from here on
    assert traces == [blank]  # once: all that the tracer gave was recognised
    assert {weight.untyped_storage().nbytes() for weight in blank.state_dict().values()} == {4}  # one number each
    traces.clear()
    module, plan = of_role(role)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():  # none is like another, as in a trained model
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    filled = saved(graph_of(module, plan), tmp_path / "filled")
    assert traces == []
    assert filled == saved(trace(module, plan), tmp_path / "traced")


def test_weights_are_as_they_were_once_their_module_is_traced(of_role, traces, tmp_path, monkeypatch):
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "cache"))
    module, plan = of_role("text_encoder")
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}
    graph_of(module, plan)
    assert traces == [module]
    assert all(torch.equal(weight, weights[name]) for name, weight in module.state_dict().items())


def test_an_export_traces_before_it_reads_weights(parts, traces, tmp_path, monkeypatch):
    """What was traced stays in memory, the tracer keeps it: with its weights an export would have those twice."""
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "cache"))
    tokenizer = read_tokenizer(parts.checkpoint.source.tokenizers["tokenizer"].folder, TOKENS, 10**6)

    def refuse(*_given: Any) -> None:
        raise AssertionError("weights are read")

    job = Job(parts, {"tokenizer": tokenizer}, None, "fp32", None, Silent())
    with monkeypatch.context() as patched:
        patched.setattr(modules, "load", refuse)
        graphs._learn_structures(job, ["text_encoder"])
    (traced,) = traces
    assert sum(weight.untyped_storage().nbytes() for weight in traced.state_dict().values()) < 1000
    graphs._learn_structures(job, ["text_encoder"])
    graph_of(parts.wrapped("text_encoder"), trace_plan(parts.checkpoint, "text_encoder", TOKENS))
    assert traces == [traced]


def test_another_setting_or_plan_is_another_structure(of_role):
    module, plan = of_role("text_encoder")
    known = structure_of(module, plan)
    assert structure_of(*of_role("text_encoder")) == known
    assert structure_of(module, trace_plan_of(plan, 78)) != known
    module.text_model.config.num_attention_heads = 2
    assert structure_of(module, plan) != known


def trace_plan_of(plan: Any, tokens: int) -> Any:
    from dataclasses import replace

    return replace(plan, inputs={"input_ids": torch.zeros(3, tokens, dtype=torch.int64)})


@pytest.mark.parametrize("content", [b"", b"\x08\x0a", b"not a graph"])
def test_a_damaged_structure_is_traced_again(content, of_role, traces, tmp_path, monkeypatch):
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "cache"))
    module, plan = of_role("text_encoder")
    place = tmp_path / "cache" / "traces" / f"{structure_of(module, plan)}.onnx"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    graph_of(module, plan)
    assert traces == [module]
    assert place.stat().st_size > 10_000
    graph_of(module, plan)
    assert traces == [module]
