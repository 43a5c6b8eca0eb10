"""Pipelines of the tests' models, and a bundle made by hand: real files, graphs that are ONNX but do nothing, in
milliseconds and without torch."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tintype
from tintype.bundle import (
    DefaultRequest,
    Graph,
    Manifest,
    Port,
    SizeLimits,
    Source,
    TokenizerFacts,
    file_facts,
    manifest_digest,
    read_manifest,
    write_manifest,
)
from tintype.graphs.bound import BoundGraphs


def port(name: str, *shape: int | str, dtype: str = "float32") -> Port:
    return Port(name=name, dtype=dtype, shape=shape)


GRAPHS = {
    "text_encoder": (
        "text_encoder/model.onnx",
        (port("input_ids", "batch", 77, dtype="int64"),),
        (port("last_hidden_state", "batch", 77, 8),),
    ),
    "denoiser": (
        "unet/model.onnx",
        (
            port("sample", "batch", 4, "height", "width"),
            port("timestep", dtype="float32"),
            port("encoder_hidden_states", "batch", "tokens", 8),
        ),
        (port("out_sample", "batch", 4, "height", "width"),),
    ),
    "vae_decoder": (
        "vae_decoder/model.onnx",
        (port("latent_sample", "batch", 4, "height", "width"),),
        (port("sample", "batch", 3, "rows", "columns"),),
    ),
}


def _write_graph(path: Path, *, location: str = "model.onnx_data", weight: np.ndarray | None = None) -> None:
    """y = x @ w, with w in an external file."""
    weight = np.ones((8, 8), np.float32) if weight is None else weight
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(graph), path, save_as_external_data=True, location=path.name + "_data", size_threshold=0
    )
    if location != path.name + "_data":
        model = onnx.load(path, load_external_data=False)
        next(e for e in model.graph.initializer[0].external_data if e.key == "location").value = location
        path.write_bytes(model.SerializeToString())


TOKENIZER = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1, "</s>": 2}, "unk_token": "a"}}


def make_manifest(folder: Path) -> Manifest:
    graphs = {
        role: {"full": Graph(file=file, precision="fp32", inputs=inputs, outputs=outputs)}
        for role, (file, inputs, outputs) in GRAPHS.items()
    }
    return Manifest(
        name="made-by-hand",
        licence="Apache-2.0",
        source=Source(location="nowhere"),
        family="stable-diffusion",
        prediction_type="epsilon",
        scaling_factor=0.18215,
        vae_scale_factor=4,
        latent_channels=4,
        default_request=DefaultRequest(
            width=64, height=64, num_inference_steps=20, guidance_scale=7.5, sampler="dpmpp_2m"
        ),
        size=SizeLimits(multiple=8, minimum=32, maximum=256),
        tokenizer=TokenizerFacts(
            file="tokenizer/tokenizer.json", max_length=77, bos_token_id=1, eos_token_id=2, pad_token_id=2
        ),
        scheduler="scheduler/scheduler_config.json",
        graphs=graphs,
        files=file_facts(folder),
    )


@pytest.fixture
def hand_made(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    for file, _, _ in GRAPHS.values():
        _write_graph(folder / file)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    write_manifest(folder, make_manifest(folder))
    return folder


@pytest.fixture
def manifest(hand_made: Path) -> Manifest:
    return read_manifest(hand_made)[0]


@pytest.fixture
def write_graph() -> Callable[..., None]:
    return _write_graph


@pytest.fixture
def remake() -> Callable[..., None]:
    """Write a bundle's manifest again for the files as they are now, so that nothing but the change is wrong."""

    def write(folder: Path, **changes: Any) -> None:
        manifest, _ = read_manifest(folder)
        write_manifest(folder, dataclasses.replace(manifest, **{"files": file_facts(folder), **changes}))

    return write


@pytest.fixture
def edit(hand_made: Path) -> Callable[[Callable[[dict[str, Any]], Any]], None]:
    """Change tintype.json as a hostile hand would: as JSON, past every check of the dataclasses."""

    def change(how: Callable[[dict[str, Any]], Any]) -> None:
        value = json.loads((hand_made / "tintype.json").read_text())
        how(value)
        value["digest"] = manifest_digest(value)
        (hand_made / "tintype.json").write_text(json.dumps(value))

    return change


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Iterator[tintype.Pipeline]:
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def xl(xl_bundle: Path) -> Iterator[tintype.Pipeline]:
    with tintype.load(xl_bundle, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """By their uses' names, how often graphs are called."""
    seen, call = Counter[str](), BoundGraphs.call

    def counting(self: BoundGraphs, use: Any, inputs: Any, **more: Any) -> Any:
        seen[use.name] += 1
        return call(self, use, inputs, **more)

    monkeypatch.setattr(BoundGraphs, "call", counting)
    return seen
