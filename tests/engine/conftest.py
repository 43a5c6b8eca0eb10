"""A bundle of one small graph, and a cache of the test's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tintype.engine import Target, resolve_provider

WIDTH = 32


@dataclass(frozen=True)
class SmallBundle:
    """What the engine needs to know of a bundle."""

    folder: Path
    hash: str = "0" * 64
    name: str = "small"

    def graph_path(self, role: str, variant: str = "full") -> Path:
        return self.folder / f"{role}.onnx"

    def largest(self, role: str, variant: str = "full") -> None:
        return None

    def changed_weights(self, role: str, variant: str = "full") -> None:
        return None


def write_graph(path: Path, seed: int = 0) -> None:
    """y = groupnorm(x) @ weight * scale, x (batch, 4, 32), scale a scalar; 4 kB of weights in a file beside."""
    weight = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("GroupNormalization", ["x", "ones", "zeros"], ["normed"], num_groups=2),
        helper.make_node("MatMul", ["normed", "weight"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["y"]),
    ]
    shape = ["batch", 4, WIDTH]
    constants = {"weight": weight, "ones": np.ones(4, np.float32), "zeros": np.zeros(4, np.float32)}
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("normed", "product")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024)


@pytest.fixture(scope="session")
def graph_writer() -> Callable[[Path], None]:
    return write_graph


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the builds will lie in its folder `builds`."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TINTYPE_CACHE", str(folder))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    """A bundle whose denoiser is the small graph."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_graph(folder / "denoiser.onnx")
    digest = hashlib.sha256((folder / "denoiser.onnx_data").read_bytes()).hexdigest()
    return SmallBundle(folder, digest) if (folder / "denoiser.onnx_data").is_file() else SmallBundle(folder)


@pytest.fixture
def cpu() -> Target:
    return resolve_provider("cpu")


@pytest.fixture
def feed() -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((2, 4, WIDTH)).astype(np.float32)
    return {"x": x, "scale": np.array(0.5, np.float32)}
