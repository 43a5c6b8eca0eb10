"""READ FIRST: an ONNX graph as optimum writes it becomes a canonical one, without torch: see `canonical_graph`.

torch's first exporter writes older operators and computes every shape anew; kernels look for whole ones. First it is
found out what each value is at three choices of sizes (`values`, `sizes`, `facts`); then patterns are rewritten
(`rewrites`, `attention`), sizes said plainly (`shape_inputs`), and ports, weights and nodes get our names.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.export.canonical import attention, rewrites
from tintype.export.canonical.facts import Facts, module_of
from tintype.export.canonical.operator_shapes import UnknownOperatorError
from tintype.export.canonical.opset import to_newest
from tintype.export.canonical.ports import PortError, RolePlan, give_outputs, take_inputs
from tintype.export.canonical.shape_inputs import plain_shapes
from tintype.export.canonical.sizes import Size, probes

__all__ = ["PortError", "RolePlan", "UnknownOperatorError", "canonical_graph"]

_PATTERNS = {
    "nothing": rewrites.drop_no_ops,
    "LayerNormalization": rewrites.layer_norms,
    "GroupNormalization": rewrites.group_norms,
    "Gelu": rewrites.gelus,
    "Split": rewrites.splits,
    "Attention": attention.attentions,
}


def canonical_graph(path: Path, plan: RolePlan) -> tuple[ir.Model, Counter[str]]:
    """The canonical graph of an ONNX file, and how often each pattern was rewritten; weights stay where they lie.

    Raises PortError, UnknownOperatorError, and ValueError for what isn't sound otherwise.
    """
    with _quiet():
        model = ir.load(path)
    to_newest(model)
    take_inputs(model, plan)
    facts = Facts(model.graph, probes(plan.multiple))
    counts = Counter({name: rewrite(model, facts) for name, rewrite in _PATTERNS.items()})
    give_outputs(model, plan, facts)
    plain_shapes(model, facts)
    _name_weights(model)
    _name_nodes(model)
    _tell_shapes(model, facts)
    _forget_the_exporter(model)
    return model, counts


@contextmanager
def _quiet() -> Iterator[None]:
    """onnx_ir remarks on graphs that aren't sound, in their own words; what is wrong is found here all the same."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _name_weights(model: ir.Model) -> None:
    """As in torch's state dict; a linear layer's transposed weight ends in weight_T."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        new = re.sub(r"^text_model\.", "", name)
        users = [(use.node, use.idx) for use in value.uses()]
        if name.startswith("onnx::MatMul_") and len(users) == 1 and users[0][1] == 1:
            new = f"{_plain(module_of(users[0][0]))}.weight_T"
        if new != name and new not in graph.initializers:
            del graph.initializers[name]
            value.name = new
            if value.const_value is not None:
                value.const_value.name = new
            graph.initializers.add(value)


def _plain(module: str) -> str:
    return re.sub(r"^text_model\.", "", module)


def _name_nodes(model: ir.Model) -> None:
    counts = Counter[str]()
    for node in model.graph:
        name = f"{_plain(module_of(node))}/{node.op_type}"
        node.name = name + (f"_{counts[name]}" if counts[name] else "")
        counts[name] += 1


def _tell_shapes(model: ir.Model, facts: Facts) -> None:
    for node in model.graph:
        for output in node.outputs:
            if output in facts:
                dims = facts.dims(output)
                output.shape = ir.Shape([str(dim) if isinstance(dim, Size) else dim for dim in dims])
                output.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(facts.dtype(output))))


def _forget_the_exporter(model: ir.Model) -> None:
    """Remarks hold paths of the machine that it was exported on."""
    RemoveUnusedNodesPass()(model)
    model.ir_version = 10
    model.producer_name, model.producer_version, model.doc_string = "tintype", None, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string, model.graph.name = None, "main_graph"
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
