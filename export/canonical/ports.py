"""What goes into a graph and comes out: our names, types and dims in place of those that optimum gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.export.canonical.facts import Facts, module_of
from tintype.export.timestep import take_scalar_timestep

FLOAT, INT64, INT32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32
_TIME_CARRIERS = ("Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity")  # before a timestep is a float

PortDims = tuple[int | str, ...]


class PortError(ValueError):
    """An input or an output that isn't one that a role has."""


@dataclass(frozen=True, slots=True)
class RolePlan:
    """One role's graph. inputs: the dims of each, in order. multiple: of height and width.

    outputs: by our names theirs; empty for a text encoder, whose outputs follow from `layers`: how many it has, and
    for one of XL `is_xl`.
    """

    role: str
    inputs: Mapping[str, PortDims]
    outputs: Mapping[str, str]
    multiple: int = 1
    layers: int = 0
    is_xl: bool = False
    most_skips: int = 0


def take_inputs(model: ir.Model, plan: RolePlan) -> None:
    """Give every input the dims and the type that its role has. Raises PortError for others, by name."""
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs if value not in graph.initializers.values()}
    for problem, names in (("lacks", plan.inputs.keys() - inputs.keys()), ("has", inputs.keys() - plan.inputs.keys())):
        if names:
            raise PortError(f"it {problem} the input {min(names)}")
    for name, dims in plan.inputs.items():
        value = inputs[name]
        if name == "timestep":
            _take_timestep(model, value)
        elif name == "input_ids":
            _take_ids(model, value)
        elif value.dtype != FLOAT:
            raise PortError(f"its input {name} is of type {value.dtype}, and not float32")
        given = value.shape
        if name != "timestep" and given is not None:
            fixed = [dim for dim, ours in zip(given, dims, strict=False) if isinstance(dim, int) and dim != ours]
            if len(given) != len(dims) or fixed:
                told = ", ".join(str(dim) if isinstance(dim, int) else str(dim.value) for dim in given)
                raise PortError(f"its input {name} is of shape ({told}), and not ({', '.join(map(str, dims))})")
        value.shape = ir.Shape(dims)
    ordered = [inputs[name] for name in plan.inputs]
    graph.inputs.clear()
    graph.inputs.extend(ordered)


def _take_ids(model: ir.Model, value: ir.Value) -> None:
    if value.dtype == INT32:
        users = [(use.node, use.idx) for use in value.uses()]
        cast = ir.node("Cast", [value], attributes={"to": INT32.value}, name="input_ids/Cast")
        cast.outputs[0].name = "input_ids_int32"
        model.graph.insert_before(model.graph[0], cast)
        for node, index in users:
            node.replace_input_with(index, cast.outputs[0])
        value.dtype = INT64
    elif value.dtype != INT64:
        raise PortError(f"its input input_ids is of type {value.dtype}, and not int64")


def _take_timestep(model: ir.Model, value: ir.Value) -> None:
    """One float, a scalar: samplers ask between the steps that a model was trained at."""
    if value.dtype not in (FLOAT, INT64, INT32):
        raise PortError(f"its input timestep is of type {value.dtype}, and not float32")
    if value.dtype != FLOAT:
        _demand_cast(value)
        value.dtype = FLOAT
    take_scalar_timestep(model)


def _demand_cast(value: ir.Value) -> None:
    """PortError unless a whole number is made a float before anything is computed of it."""
    waiting = [use.node for use in value.uses()]
    for _ in range(100):
        if not waiting:
            return
        node = waiting.pop()
        if node.op_type == "Cast" and node.attributes["to"].as_int() == FLOAT.value:
            continue
        if node.op_type not in _TIME_CARRIERS:
            break
        waiting += [use.node for use in node.outputs[0].uses()]
    raise PortError("its input timestep is a whole number, and samplers ask between steps")


def give_outputs(model: ir.Model, plan: RolePlan, facts: Facts) -> None:
    """Let the graph give what its role does, by our names, and nothing else. Raises PortError."""
    graph = model.graph
    named = {str(value.name): value for value in graph.outputs}
    if plan.layers:
        chosen = _text_outputs(model, plan, facts, named)
    else:
        chosen = {}
        for ours, theirs in plan.outputs.items():
            if theirs not in named:
                raise PortError(f"it has no output {theirs}; it gives {', '.join(named)}")
            chosen[ours] = named[theirs]
    taken = {str(value.name): value for value in graph.inputs}
    for value in named.values():
        value.name = f"{value.name}_given"
    graph.outputs.clear()
    for name, value in chosen.items():
        if value in graph.outputs or name in taken or value.is_graph_input():
            raise PortError(f"its output {name} is another one as well")
        value.name = name
        graph.outputs.append(value)
    for name, value in chosen.items():
        if facts.dtype(value) != np.float32:
            raise PortError(f"its output {name} is of type {facts.dtype(value)}, and not float32")
    RemoveUnusedNodesPass()(model)


def _text_outputs(model: ir.Model, plan: RolePlan, facts: Facts, named: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """The states that are asked for, of all: what goes into each layer, and what comes out of the last."""
    norms = {module_of(node): node for node in model.graph if node.op_type == "LayerNormalization"}
    states = {}
    for module, node in norms.items():
        layer = re.fullmatch(r"(?:text_model\.)?encoder\.layers\.(\d+)\.layer_norm1", module)
        if layer is not None and node.inputs[0] is not None:
            states[int(layer[1])] = node.inputs[0]
    last = next((node for module, node in norms.items() if module.endswith("final_layer_norm")), None)
    if last is not None and last.inputs[0] is not None:
        states[plan.layers] = last.inputs[0]
    for index in range(plan.layers + 1):
        if f"hidden_states.{index}" in named:
            states.setdefault(index, named[f"hidden_states.{index}"])
    if plan.is_xl:
        return _xl_outputs(plan, states, named)
    if "last_hidden_state" not in named:
        raise PortError(f"it has no output last_hidden_state; it gives {', '.join(named)}")
    found = {"last_hidden_state": named["last_hidden_state"]}
    if last is None or found["last_hidden_state"] is not last.outputs[0]:
        return found
    for skip in range(1, plan.most_skips + 1):
        state = states.get(plan.layers - skip)
        if state is None:
            break
        node = facts.insert(
            last, "LayerNormalization", [state, *last.inputs[1:]], dict(last.attributes),
            shapes=facts.shapes(state), like=state,
        )  # fmt: skip
        found[f"clip_skip.{skip}"] = node.outputs[0]
    return found


def _xl_outputs(plan: RolePlan, states: Mapping[int, ir.Value], named: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    if plan.layers - 1 not in states:
        raise PortError(f"it has no output hidden_states.{plan.layers - 1}; it gives {', '.join(named)}")
    found = {"hidden_states": states[plan.layers - 1]}
    if plan.role == "text_encoder_2":
        if "text_embeds" not in named:
            raise PortError(f"it has no output text_embeds; it gives {', '.join(named)}")
        found["text_embeds"] = named["text_embeds"]
    for skip in range(1, plan.most_skips + 1):
        if plan.layers - 1 - skip not in states:
            break
        found[f"clip_skip.{skip}"] = states[plan.layers - 1 - skip]
    return found
