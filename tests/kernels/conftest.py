"""Graphs made on the fly, run as they are and as they are lowered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.engine.device import native
from tintype.kernels.base import DOMAINS, OWN, Kernel
from tintype.kernels.graph import choice
from tintype.kernels.registry import LoweringReport, kernels_for, lower

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Lowered:
    """What a graph gave before and after lowering, and which operators it has then."""

    before: dict[str, NDArray[Any]]
    after: dict[str, NDArray[Any]]
    operators: list[str]
    report: LoweringReport


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Sequence[str] | Mapping[str, tuple[int, Sequence[int | str]]],
    initializers: Arrays,
    inner: Mapping[str, tuple[int, Sequence[int | str]]] | None = None,
) -> onnx.ModelProto:
    """A model at opset 23; inputs, and outputs whose shape onnx cannot infer, give element type and shape.

    inner: the same of values between nodes that it cannot infer, such as a GroupNormalization's.
    """
    told = outputs if isinstance(outputs, Mapping) else {}
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [
            helper.make_tensor_value_info(name, *told[name])
            if name in told
            else helper.make_empty_tensor_value_info(name)
            for name in outputs
        ],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in initializers.items()],
        value_info=[helper.make_tensor_value_info(name, *each) for name, each in (inner or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    known = {info.name: info for info in inferred.graph.output}
    del inferred.graph.output[:]
    inferred.graph.output.extend(known[name] for name in outputs)
    return inferred


def run_model(model: onnx.ModelProto, inputs: Arrays, threads: int = 2) -> dict[str, NDArray[Any]]:
    """Every output of a model by ONNX Runtime, with the operators of our own where there are any."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    native.register(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def lower_and_run(model: onnx.ModelProto, inputs: Arrays, target: str = "cpu", able: Sequence[str] = ()) -> Lowered:
    """Run a model as it is and lowered for a target, both on the processor; the interface has to stay the same.

    able: what the target's device can do.
    """
    before = run_model(model, inputs)
    rewritten = ir.from_proto(model)
    report = lower(rewritten, target, kernels=kernels_for(target, able))
    after = ir.to_proto(rewritten)
    onnx.checker.check_model(after)
    assert [value.name for value in after.graph.input] == [value.name for value in model.graph.input]
    assert [value.name for value in after.graph.output] == [value.name for value in model.graph.output]
    return Lowered(before, run_model(after, inputs), [node.op_type for node in after.graph.node], report)


def apply_and_run(model: onnx.ModelProto, inputs: Arrays, kernel: Kernel) -> Lowered:
    """Run a model as it is and with one measured kernel wherever it matches; every shape has to be a number."""
    rewritten = ir.from_proto(model)
    found = list(choice.layers(rewritten.graph, [kernel]))
    for layer in found:
        alone = choice.model_of(layer, kernel.name, rewritten.opset_imports)
        onnx.checker.check_model(ir.to_proto(alone))
        choice.apply(layer, kernel.name, rewritten.graph)
    RemoveUnusedNodesPass()(rewritten)
    rewritten.opset_imports.update(DOMAINS)
    after = ir.to_proto(rewritten)
    onnx.checker.check_model(after)
    report = LoweringReport("cpu", Counter({kernel.name: len(found)}))
    operators = [node.op_type for node in after.graph.node]
    return Lowered(run_model(model, inputs), run_model(after, inputs), operators, report)


@pytest.fixture
def applied() -> Callable[[onnx.ModelProto, Arrays, Kernel], Lowered]:
    return apply_and_run


@pytest.fixture
def library() -> None:
    """The operators in C, without which a test is skipped."""
    if native.native_problem() is not None:
        pytest.skip(f"no native kernels: {native.native_problem()}")


@pytest.fixture
def instructions(library: None) -> Callable[[onnx.ModelProto], list[onnx.ModelProto]]:
    """A model of nodes of our own as this processor can do it: by each set of instructions, the plainest first."""

    def by_each(model: onnx.ModelProto) -> list[onnx.ModelProto]:
        found = []
        for rank in range(len(native.kernel_sets())):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            for node in copy.graph.node:
                if node.domain == OWN:
                    node.attribute.append(helper.make_attribute("instructions", rank))
            found.append(copy)
        return found

    return by_each


@pytest.fixture
def run() -> Callable[[onnx.ModelProto, Arrays], dict[str, NDArray[Any]]]:
    return run_model


@pytest.fixture
def model_of() -> Callable[..., onnx.ModelProto]:
    return make_model


@pytest.fixture
def lowered() -> Callable[..., Lowered]:
    return lower_and_run


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20)
