"""What a kernel is: what it matches, what it becomes, what it means. Rewrites keep every output's name and shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
OWN = "tintype"  # the domain of the operators in `native/`
DOMAINS: Mapping[str, int] = {MICROSOFT: 1, OWN: 1}  # what rewritten graphs may have nodes of, with the version
LARGEST = "largest"  # in the `meta` of a value or node: the largest magnitude that was seen there, see `ranges`
Shape = tuple[int | str | None, ...]  # a number, a named dim, or unknown


class Shapes:
    """Shapes of values, with named dims replaced where they are known (`height` = 64)."""

    def __init__(self, dims: Mapping[str, int] | None = None) -> None:
        self._dims = dict(dims or {})

    def of(self, value: ir.Value | None) -> Shape | None:
        """The shape, or None when even the rank isn't known."""
        if value is None or value.shape is None:
            return None
        return tuple(self._dim(dim) for dim in value.shape)

    def _dim(self, dim: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int):
            return dim
        return self._dims.get(dim.value, dim.value) if dim.value is not None else None


class Kernel(ABC):
    """One way to realise an operator on some targets.

    name: as it is told in reports. targets: where it is right and pays. exactness: what the rewrite keeps.
    needs: by target, what a device has to have shown that it can do (`tintype.engine.device.abilities`); empty: any
    will do.
    unless: by target, what makes the kernel needless where a device has shown it.
    lossy: it rounds to fewer bits than the canonical graph does, so that only a `balanced` build may use it.
    balanced_only: not repeatable to the last bit, or of use only beside what isn't: `exact` builds do without.
    exact_only: targets where only an `exact` build uses it.
    measured: it may be slower than what it replaces, so that a build times both at its own shape; see `choice`.
    by_default: of a measured one, that builds for any shape, which time nothing, put it in wherever it matches.
    likely_seconds: of a measured one, what it takes in times of the layer as it is, about, where no table of priors has
    such layers; 0: nobody can say, and it is not put in there.
    kind: of a measured one, what the layers that it matches are called, where that isn't their operator's name.
    keeps_halves: weights that are stored as float16 stay so; elsewhere a build makes them floats, twice as large.
    """

    name: str
    targets: ClassVar[tuple[str, ...]]
    needs: ClassVar[Mapping[str, str]] = {}
    unless: ClassVar[Mapping[str, str]] = {}
    exactness: ClassVar[str]
    lossy: ClassVar[bool] = False
    balanced_only: ClassVar[bool] = False
    exact_only: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[bool] = False
    by_default: ClassVar[bool] = False
    likely_seconds: ClassVar[float] = 0.0
    kind: ClassVar[str] = ""
    keeps_halves: ClassVar[bool] = False

    @abstractmethod
    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Whether `rewrite` would be right at this node. Looks only."""

    @abstractmethod
    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        """Replace the node (and the neighbours that belong to it). Nodes left without a reader are removed later."""

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        """Every node that `rewrite` at this one replaces: what has to be timed together."""
        return (node,)

    @staticmethod
    @abstractmethod
    def reference(*arrays: Any) -> NDArray[Any]:
        """The same function in numpy, float64 inside; tests compare every target with it."""


class GraphPass(ABC):
    """A rewrite of a whole graph between kernels, by the same rules: every output keeps its name, shape and meaning."""

    name: str
    targets: ClassVar[tuple[str, ...]]
    exactness: ClassVar[str]
    balanced_only: ClassVar[bool] = False

    @abstractmethod
    def apply(self, model: ir.Model) -> int:
        """Rewrite in place; returns how many nodes changed."""


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The value's data when it is fixed in the graph, else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def fixed_dim(value: ir.Value | None, axis: int) -> int:
    """A dim that `matches` has found to be a number."""
    dim = value.shape[axis] if value is not None and value.shape is not None else None
    if not isinstance(dim, int):
        raise ValueError(f"dim {axis} of {value.name if value is not None else None} is {dim}, not a number")
    return dim


def rank_of(shape: Shape | None) -> int:
    """Number of dims, -1 when unknown."""
    return -1 if shape is None else len(shape)


def producer(value: ir.Value | None, operator: str, domain: str = "") -> ir.Node | None:
    """The node that makes this value when it is an `operator`, of ONNX or another domain, else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator and node.domain == domain else None


def only_reader(value: ir.Value, operator: str, domain: str = "") -> ir.Node | None:
    """The one node that reads this value when it is such an operator, else None (also when the graph returns it)."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if node.op_type == operator and node.domain == domain else None


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """A Transpose's axes, None when it leaves them at the default."""
    found = node.attributes.get("perm")
    return tuple(found.as_ints()) if found is not None else None


def add_constant(graph: ir.Graph, array: NDArray[Any], name: str) -> ir.Value:
    """An initializer with this data; one that has the same name and data is shared, another name is made otherwise."""
    array = np.ascontiguousarray(array)
    stem, count = name, 0
    while name in graph.initializers:
        known = constant_of(graph.initializers[name])
        if known is not None and known.dtype == array.dtype and np.array_equal(known, array):
            return graph.initializers[name]
        count += 1
        name = f"{stem}_{count}"
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def add_lazy(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int], make: Callable[[], NDArray[Any]]
) -> ir.Value:
    """An initializer whose data is computed when it is written, so that large weights are in memory one at a time.

    The name tells the data: one that is there already is taken.
    """
    if name in graph.initializers:
        return graph.initializers[name]
    fixed = ir.Shape(tuple(shape))
    tensor = ir.LazyTensor(lambda: ir.tensor(np.ascontiguousarray(make()), name=name), dtype, fixed, name=name)
    value = ir.Value(name=name, shape=fixed, type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def note_largest(value: ir.Value, same: ir.Value) -> None:
    """Let a value be known to be as large as another one that holds the same numbers."""
    known = [other.meta[LARGEST] for other in (value, same) if LARGEST in other.meta]
    if known:
        value.meta[LARGEST] = max(known)


def note_inside(value: ir.Value, *swallowed: ir.Value | None) -> None:
    """Let the node that makes a value be known to compute others inside, at its own precision."""
    node = value.producer()
    known = [other.meta[LARGEST] for other in swallowed if other is not None and LARGEST in other.meta]
    if node is not None and known:
        node.meta[LARGEST] = max(known)


def insert(
    before: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value | None],
    *,
    domain: str = "",
    attributes: Mapping[str, Any] | None = None,
    like: ir.Value | None = None,
    outputs: int = 1,
) -> ir.Value:
    """A new node in front of `before`; its first output, of the type and shape of `like` where that is given."""
    node = ir.node(operator, inputs=list(inputs), attributes=dict(attributes or {}), domain=domain, num_outputs=outputs)
    graph = before.graph
    if graph is None:
        raise ValueError(f"{before.name} is in no graph")
    graph.insert_before(before, node)
    if like is not None:
        node.outputs[0].shape = like.shape
    if like is not None and like.dtype is not None:
        node.outputs[0].dtype = like.dtype
    return node.outputs[0]


def describe(value: ir.Value, shape: ir.Shape | None, dtype: ir.DataType | None) -> None:
    """Say what a new value is, as far as that is known."""
    value.shape = shape
    if dtype is not None:
        value.dtype = dtype


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old`, and the graph's outputs, read `new`, which takes over an output's name."""
    was_output, name = old.is_graph_output(), old.name
    note_largest(new, old)
    if new.shape is None or was_output:
        new.shape = old.shape
    if old.dtype is not None and (new.dtype is None or was_output):
        new.dtype = old.dtype
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if was_output:
        old.name, new.name = f"{name}_before_lowering", name
