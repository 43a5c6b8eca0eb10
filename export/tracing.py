"""Tracing: a torch module becomes a canonical graph, opset 23, with named dims and names that people can read.

After `trace`, inputs and outputs have the names that optimum uses, dims are `batch`, `height`, `width`, `sequence`
(`height/2` further in), weights carry their torch names (a linear layer's transposed weight ends in `weight_T`),
nodes are named after their module, and nothing in the graph tells where on a disk it was traced.
"""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from tintype.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

OPSET = 23


@dataclass(frozen=True, slots=True)
class TracePlan:
    """How one role is called: example inputs, the names of their free dims, and which sizes divide evenly."""

    inputs: Mapping[str, Tensor]
    dims: Mapping[str, Mapping[int, str]]  # by input: axis -> name
    outputs: Mapping[str, Mapping[int, str]]  # by output: axis -> name
    multiples: Mapping[str, int]  # dims that the caller keeps to a multiple, so that halves come out even


def trace(module: torch.nn.Module, plan: TracePlan) -> ir.Model:
    """The canonical fp32 graph of a module; its weights share memory with the module's wherever they can."""
    dynamic = {
        name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) if axes else None for name, axes in plan.dims.items()
    }
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (),
                kwargs=dict(plan.inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(plan.inputs),
                output_names=list(plan.outputs),
                dynamic_shapes=dynamic,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(
            f"torch can't trace {type(module).__name__}: {str(error).splitlines()[0]}",
            fix="use the versions this exporter is tested with: pip install 'tintype[export]' diffusers==0.42.1",
        ) from error
    assert program is not None  # with f=None a program comes back
    model = program.model
    _name_dims(model, plan)
    _name_weights_and_nodes(model)
    _forget_the_tracer(model)
    return model


def _name_dims(model: ir.Model, plan: TracePlan) -> None:
    """torch's s53 and 4*((s30 - 1)//4) + 4 become batch and height, in inputs, outputs and everything between."""
    symbols: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in plan.dims.get(str(value.name), {}).items():
            assert value.shape is not None
            symbols[str(value.shape[axis])] = name
    namer = _DimNamer(symbols, plan.multiples)
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([namer.named(dim) for dim in value.shape])
    for output in model.graph.outputs:
        assert output.shape is not None
        names = plan.outputs[str(output.name)]
        output.shape = ir.Shape([names.get(axis, dim) for axis, dim in enumerate(output.shape)])


class _DimNamer:
    """Rewrites size expressions of the tracer in our names, simplified with what the caller promises."""

    def __init__(self, symbols: Mapping[str, str], multiples: Mapping[str, int]) -> None:
        self.symbols, self.multiples = symbols, multiples
        self.known: dict[str, int | str] = {}

    def named(self, dim: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int):
            return dim
        if dim.value is None:
            return None
        if dim.value not in self.known:
            self.known[dim.value] = self._simplify(dim.value)
        return self.known[dim.value]

    def _simplify(self, text: str) -> int | str:
        import sympy

        if text in self.symbols:
            return self.symbols[text]
        units = {
            symbol: sympy.Symbol(name, integer=True, positive=True) * self.multiples.get(name, 1)
            for symbol, name in self.symbols.items()
        }
        value = sympy.simplify(_evaluate(ast.parse(text, mode="eval").body, units))
        back = {
            sympy.Symbol(name, integer=True, positive=True): sympy.Symbol(name) / self.multiples.get(name, 1)
            for name in self.symbols.values()
        }
        return str(sympy.simplify(value.subs(back))).replace(" ", "")


def _evaluate(node: ast.expr, units: Mapping[str, object]):  # type: ignore[no-untyped-def]  # sympy has no types
    """A size expression (+, -, *, // over names and integers) as sympy; nothing else is let in."""
    import sympy

    match node:
        case ast.Constant(value=int(number)):
            return sympy.Integer(number)
        case ast.Name(id=name) if name in units:
            return units[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, units)
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _evaluate(left, units), _evaluate(right, units)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv():
                    return sympy.floor(a / b)
    raise ValueError(f"{ast.unparse(node)} is no size expression")


def _name_weights_and_nodes(model: ir.Model) -> None:
    taken: dict[str, int] = {}
    for node in model.graph:
        module = _module_of(node)
        count = taken.setdefault(f"{module}/{node.op_type}", 0)
        taken[f"{module}/{node.op_type}"] = count + 1
        node.name = f"{module}/{node.op_type}" + (f"_{count}" if count else "")
    for name, value in list(model.graph.initializers.items()):
        users = [(use.node, use.idx) for use in value.uses()]
        new = plain_name(name)
        if re.fullmatch(r"val_\d+", name) and len(users) == 1 and users[0][0].op_type == "MatMul" and users[0][1] == 1:
            new = f"{_module_of(users[0][0])}.weight_T"
        if new != name and new not in model.graph.initializers:
            del model.graph.initializers[name]
            value.name = new
            model.graph.initializers.add(value)


def _module_of(node: ir.Node) -> str:
    """The torch module a node came from, as in its state dict: down_blocks.0.resnets.0.conv1."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
    modules = [scope for scope in scopes[:-1] if scope and not scope.startswith("_empty_nn_module_stack")]
    return plain_name(modules[-1]) if modules else ""


def plain_name(name: str) -> str:
    """Without the wrapper's attribute in front."""
    return re.sub(r"^(text_model|unet|vae)(\.|$)", "", name, count=1)


def _forget_the_tracer(model: ir.Model) -> None:
    """Drop stack traces and other remarks; they hold paths of this machine and megabytes of text."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in _values(model):
        value.metadata_props.clear()
        value.doc_string = None
    model.producer_name, model.producer_version = "tintype", None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns and logs about its own inside; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
