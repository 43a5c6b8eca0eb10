"""3x3 convolutions as few dense products between two small fixed transforms, in plain ONNX operators.

A transform says how: each tile of `stride` x `stride` input cells becomes `block` x `block` output pixels by way of
`points` x `points` products a pair of channels. The input transform is a convolution of every channel by itself, the
products are one batched MatMul with weights transformed beforehand, the output transform is a MatMul with a small
matrix and a DepthToSpace. Winograd and nearest-upsampling differ in their three matrices only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import MICROSOFT, Shapes, add_constant, constant_of, insert, producer
from tintype.kernels.graph.blocks import blocked_weight

WHOLE_BYTES = 32 * 2**20  # up to here, transformed input and products of a whole layer together fit the last cache
STRIP_BYTES = 6 * 2**20  # beyond, they are made in strips that fit the cores' own caches, and bound memory too


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """output = A [(G w G^T) * (B x B^T)] A^T on each tile, summed over input channels between the brackets.

    B (points, points): x is a window of points x points input cells. G (points, 3). A (block, points).
    """

    stride: int
    block: int
    B: NDArray[np.float64]
    G: NDArray[np.float64]
    A: NDArray[np.float64]

    @property
    def points(self) -> int:
        return self.B.shape[0]

    def tiles(self, cells: int) -> int:
        """Tiles that cover one side of the input."""
        return -(-cells // self.stride)

    def weights(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """(outputs, inputs, 3, 3) -> (points**2, outputs, inputs); a few outputs at a time, in float64."""
        outputs, inputs = weight.shape[:2]
        made = np.empty((self.points**2, outputs, inputs), np.float32)
        both = np.kron(self.G, self.G)  # (points**2, 9)
        for start in range(0, outputs, 64):
            part = weight[start : start + 64].astype(np.float64).reshape(-1, 9)
            made[:, start : start + 64] = (both @ part.T).reshape(self.points**2, -1, inputs)
        return made

    def input_filters(self) -> NDArray[np.float32]:
        """(points**2, 1, points, points)"""
        return np.kron(self.B, self.B).reshape(-1, 1, self.points, self.points).astype(np.float32)

    def output_matrix(self) -> NDArray[np.float32]:
        """(block**2, points**2)"""
        return np.kron(self.A, self.A).astype(np.float32)

    def reference(self, x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same function in numpy: x (batch, inputs, height, width) padded with zeros as a 3x3 convolution pads."""
        batch, _, height, width = x.shape
        rows, columns = self.tiles(height), self.tiles(width)
        padded = np.zeros((*x.shape[:2], rows * self.stride + 2, columns * self.stride + 2))
        padded[:, :, 1 : height + 1, 1 : width + 1] = x
        kernel = np.einsum("ia,kcab,jb->ijkc", self.G, weight, self.G)
        result = np.zeros((batch, weight.shape[0], rows * self.block, columns * self.block))
        for row in range(rows):
            for column in range(columns):
                top, left = row * self.stride, column * self.stride
                window = padded[:, :, top : top + self.points, left : left + self.points]
                seen = np.einsum("ia,ncab,jb->ijnc", self.B, window, self.B)
                products = np.einsum("ijkc,ijnc->ijnk", kernel, seen)
                tile = np.einsum("ai,ijnk,bj->nkab", self.A, products, self.A)
                top, left = row * self.block, column * self.block
                result[:, :, top : top + self.block, left : left + self.block] = tile
        scale = self.block // self.stride
        return result[:, :, : height * scale, : width * scale]


def winograd(tile: int) -> Transform:
    """F(tile x tile, 3x3), Lavin & Gray 2016; tile 2, 4 or 6, which evaluates at 0, +-1, +-2, +-1/2 and infinity."""
    points = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)[: tile + 1]
    B, G, A = _toom_cook(points, tile)
    return Transform(tile, tile, B, G, A)


# Output pixels 2i and 2i + 1 see x[i-1], x[i], x[i] and x[i], x[i], x[i+1]: with s = w0 + w1 + w2 they are
# s x[i] + w0 (x[i-1] - x[i]) and s x[i] + w2 (x[i+1] - x[i]), three products for two pixels on each axis.
UPSAMPLED = Transform(
    stride=1,
    block=2,
    B=np.array([[0.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, -1.0, 1.0]]),
    G=np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    A=np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]),
)


def _toom_cook(
    finite: tuple[float, ...], tile: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """B^T, G and A^T of F(tile, 3) for finite points and infinity: interpolation of a product of polynomials."""
    count = tile + 2
    lagrange = np.array([np.prod([a - b for b in finite if b != a]) for a in finite])
    G = np.zeros((count, 3))
    G[:-1] = np.vander(finite, 3, increasing=True) / lagrange[:, None]
    G[-1, -1] = 1.0
    A = np.zeros((tile, count))
    A[:, :-1] = np.vander(finite, tile, increasing=True).T
    A[-1, -1] = 1.0
    B = np.zeros((count, count))
    for row, point in enumerate(finite):
        B[row, : count - 1] = np.poly([other for other in finite if other != point])[::-1]
    B[-1] = np.poly(finite)[::-1]
    return B, G, A


@dataclass(frozen=True, slots=True)
class PlainConv:
    """A convolution of stride 1 with fixed weights, whose output is as large as its input; `float_constant` reads them,
    also from int8."""

    node: ir.Node
    source: ir.Value  # (batch, inputs, height, width), all numbers
    weight_shape: tuple[int, int]

    @property
    def bias(self) -> NDArray[np.float32] | None:
        value = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        return None if value is None else float_constant(value)


def plain_conv(node: ir.Node, shapes: Shapes, side: int = 3) -> PlainConv | None:
    """The convolution at this node when it is a plain one of that side, which is odd, else None: one of 3x3 is what a
    transform can take."""
    if node.op_type != "Conv" or node.domain != "" or node.inputs[0] is None:
        return None
    get = node.attributes
    pads, strides, dilations = (
        tuple(get[name].as_ints()) if name in get else default
        for name, default in (("pads", (0, 0, 0, 0)), ("strides", (1, 1)), ("dilations", (1, 1)))
    )
    if pads != (side // 2,) * 4 or strides != (1, 1) or dilations != (1, 1) or get.get_int("group", 1) != 1:
        return None
    if get.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    shape = shapes.of(node.inputs[0])
    weight = shapes.of(node.inputs[1]) if is_fixed(node.inputs[1]) else None
    if shape is None or weight is None or len(shape) != 4 or weight[2:] != (side, side):
        return None
    if not all(isinstance(dim, int) and dim > 0 for dim in (*shape, *weight)):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and not is_fixed(node.inputs[2]):
        return None
    return PlainConv(node, node.inputs[0], (int(str(weight[0])), int(str(weight[1]))))


def strip_rows(transform: Transform, batch: int, channels: int, height: int, width: int) -> int:
    """Rows of tiles that are worked on at once; channels are those of input and output together."""
    bytes_a_row = 4 * transform.points**2 * batch * transform.tiles(width) * channels
    rows = transform.tiles(height)
    return rows if rows * bytes_a_row <= WHOLE_BYTES else max(1, STRIP_BYTES // bytes_a_row)


def is_fixed(value: ir.Value | None) -> bool:
    """Whether the value is in the graph as it is, or as fp16 behind a Cast, or as integers behind DequantizeLinear."""
    node = producer(value, "Cast") or producer(value, "DequantizeLinear")
    inputs = node.inputs if node is not None else [value]
    return all(each is None or (each.const_value is not None and not each.is_graph_input()) for each in inputs)


def float_constant(value: ir.Value) -> NDArray[np.float32]:
    """The numbers of a value that `is_fixed`."""
    cast, dequantize = producer(value, "Cast"), producer(value, "DequantizeLinear")
    node = cast or dequantize
    data = constant_of(node.inputs[0] if node is not None else value)
    if data is None:
        raise ValueError(f"{value.name} is not fixed")
    if dequantize is None:
        return data.astype(np.float32)
    blocked = blocked_weight(value)
    if blocked is not None:
        return blocked.floats()
    scale = constant_of(dequantize.inputs[1])
    zero = constant_of(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    if scale is None:
        raise ValueError(f"{value.name} has no fixed scale")
    along = [1] * data.ndim
    if scale.size > 1:
        along[dequantize.attributes.get_int("axis", 1)] = -1
    steps = data.astype(np.int32) - (0 if zero is None else zero.astype(np.int32).reshape(along))
    return steps.astype(np.float32) * scale.astype(np.float32).reshape(along)


class ProductWriter:
    """Writes the nodes of one transformed convolution in front of a node."""

    def __init__(self, transform: Transform, conv: PlainConv, source: ir.Value, graph: ir.Graph) -> None:
        """source: what the transform reads, (batch, inputs, height, width); for an upsampled one its small input."""
        shape = Shapes().of(source)
        if shape is None:
            raise ValueError(f"{source.name} has no shape")
        self.transform, self.conv, self.source, self.graph = transform, conv, source, graph
        self.batch, self.inputs, self.height, self.width = (int(str(dim)) for dim in shape)
        self.outputs = conv.weight_shape[0]

    def write(self) -> ir.Value:
        """The convolution's output, bias included."""
        at, tiles = self.conv.node, self.transform.tiles(self.height)
        rows = strip_rows(self.transform, self.batch, self.inputs + self.outputs, self.height, self.width)
        strips = [self._strip(start, min(start + rows, tiles)) for start in range(0, tiles, rows)]
        whole = strips[0] if len(strips) == 1 else insert(at, "Concat", strips, attributes={"axis": 2})
        scale = self.transform.block // self.transform.stride
        size = (self.height * scale, self.width * scale)
        if (tiles * self.transform.block, self.transform.tiles(self.width) * self.transform.block) != size:
            whole = insert(at, "Slice", [whole, *(self._integers(*each) for each in ((0, 0), size, (2, 3)))])
        return whole

    @property
    def _stem(self) -> str:
        weight = self.conv.node.inputs[1]
        return f"{weight.name if weight is not None else 'conv'}_{self.transform.points}points"

    def _strip(self, start: int, stop: int) -> ir.Value:
        """Rows of tiles from start to stop -> (batch, outputs, rows * block, columns * block)."""
        at, transform = self.conv.node, self.transform
        rows, columns, points = stop - start, transform.tiles(self.width), transform.points**2
        cells = self._cells(start, stop)
        seen = insert(
            at,
            "Conv",
            [cells, add_constant(self.graph, transform.input_filters(), f"input_transform_{transform.points}")],
            attributes={
                "kernel_shape": [transform.points] * 2,
                "strides": [transform.stride] * 2,
                "pads": self._pads(start, stop),
            },
        )
        area = rows * columns
        if self.batch == 1:
            seen = insert(at, "Reshape", [seen, self._integers(self.inputs, points, area)])
        else:
            seen = insert(at, "Reshape", [seen, self._integers(self.batch, self.inputs, points, area)])
            seen = insert(at, "Transpose", [seen], attributes={"perm": [1, 2, 0, 3]})
            seen = insert(at, "Reshape", [seen, self._integers(self.inputs, points, self.batch * area)])
        products = insert(at, "FusedMatMul", [self._weights(), seen], domain=MICROSOFT, attributes={"transBatchB": 1})
        flat = self._integers(points, self.outputs * self.batch * area)
        matrix = add_constant(self.graph, transform.output_matrix(), f"output_transform_{transform.points}")
        tiles = insert(at, "MatMul", [matrix, insert(at, "Reshape", [products, flat])])
        bias = self.conv.bias
        if bias is not None:  # here, while the strip is in the cache
            tiles = insert(at, "Reshape", [tiles, self._integers(transform.block**2, self.outputs, self.batch * area)])
            name = f"{self._stem}_bias"
            tiles = insert(at, "Add", [tiles, add_constant(self.graph, bias.reshape(1, -1, 1), name)])
        spread = self._integers(1, transform.block**2 * self.outputs, self.batch * rows, columns)
        tiles = insert(
            at,
            "DepthToSpace",
            [insert(at, "Reshape", [tiles, spread])],
            attributes={"blocksize": transform.block, "mode": "DCR"},
        )
        if self.batch == 1:
            return tiles
        size = (rows * transform.block, columns * transform.block)
        tiles = insert(at, "Reshape", [tiles, self._integers(self.outputs, self.batch, *size)])
        return insert(at, "Transpose", [tiles], attributes={"perm": [1, 0, 2, 3]})

    def _weights(self) -> ir.Value:
        weight = self.conv.node.inputs[1]
        if weight is None:
            raise ValueError(f"{self.conv.node.name} has no weight")
        known = self.graph.initializers.get(self._stem)
        if known is not None:
            return known
        return add_constant(self.graph, self.transform.weights(float_constant(weight)), self._stem)

    def _cells(self, start: int, stop: int) -> ir.Value:
        """The input rows that these tiles see, every channel of every picture by itself: (batch * inputs, 1, h, w)."""
        at = self.conv.node
        first, last = self._seen_rows(start, stop)
        source = self.source
        if (first, last) != (0, self.height):
            source = insert(at, "Slice", [source, *(self._integers(each) for each in (first, last, 2))])
        shape = self._integers(self.batch * self.inputs, 1, last - first, self.width)
        return insert(at, "Reshape", [source, shape])

    def _seen_rows(self, start: int, stop: int) -> tuple[int, int]:
        stride = self.transform.stride
        return max(0, start * stride - 1), min(self.height, stop * stride + 1)

    def _pads(self, start: int, stop: int) -> list[int]:
        """Zeros above, left, below and right of the rows that these tiles see, to fill the last tiles too."""
        stride, (first, last) = self.transform.stride, self._seen_rows(start, stop)
        below = stop * stride + 1 - last
        right = self.transform.tiles(self.width) * stride + 1 - self.width
        return [first - (start * stride - 1), 1, below, right]

    def _integers(self, *numbers: int) -> ir.Value:
        name = "integers_" + "_".join(map(str, numbers))
        return add_constant(self.graph, np.array(numbers, np.int64), name)
