"""What a device can do, found by asking it: some say that they can, and then fail at the first run, or give nonsense.

Only for the child process that makes builds: the questions are small graphs, which take onnx_ir to write.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.engine.device.native import native_problem, register
from tintype.engine.device.providers import Target, load_onnxruntime, new_session

QUERIES, KEYS, HEADS, SIZE = 64, 77, 2, 40
DEPTH, COLUMNS = 64, 32  # of an integer product
NATIVE_TOLERANCE = 1e-4  # numpy's sums in float32
ATTENTION_TOLERANCE = 0.02  # float16 has 1e-3; a kernel that is wrong is off by the size of its values


@functools.cache
def abilities(target: Target) -> frozenset[str]:
    """What this target's device has shown: `float16` and `attention` (com.microsoft MultiHeadAttention) on a device,
    `mixed_products` (uint8 times int8, added up exactly), `native` (our own operators), `native_bfloat16`,
    `native_integers` and `native_four_bits` (those of them with such products) on the processor."""
    questions = _OF_PROCESSOR if target.is_host else _OF_DEVICE
    return frozenset(name for name, question in questions.items() if question(target))


def has_ability(target: Target, name: str) -> bool:
    """Whether this target's device has shown it, see `abilities`."""
    return name in abilities(target)


def _has_float16(target: Target) -> bool:
    """WebGPU has float16 where the adapter has the feature shader-f16; without it, a node fails when it runs."""
    x = np.array([-1.0, 0.5], np.float16)
    answer = _ask(target, "Relu", [x], x)
    return answer is not None and answer.tolist() == [0.0, 0.5]


def _has_attention(target: Target) -> bool:
    """WebGPU's kernel takes subgroups to have 8 lanes or more; a device with fewer gives other values, no error."""
    random = np.random.default_rng(0)
    lengths = (QUERIES, KEYS, KEYS)
    query, key, value = (random.standard_normal((1, length, HEADS * SIZE), np.float32) for length in lengths)
    answer = _ask(target, "MultiHeadAttention", [query, key, value], query, "com.microsoft", num_heads=HEADS)
    return answer is not None and np.abs(answer - _attention(query, key, value)).max() < ATTENTION_TOLERANCE


def _has_mixed_products(target: Target) -> bool:
    """Whether products of uint8 and int8 are exact. x86 with AVX2 or AVX-512 but no VNNI adds pairs of them in 16 bits,
    which do not hold 2 x 255 x 127; asked of the kernels for one row and for many."""
    for rows in (1, 5):
        x, weight = np.full((rows, DEPTH), 255, np.uint8), np.full((DEPTH, COLUMNS), 127, np.int8)
        exact = np.full((rows, COLUMNS), DEPTH * 255 * 127, np.int32)
        answer = _ask(target, "MatMulInteger", [x, weight], exact)
        if answer is None or not np.array_equal(answer, exact):
            return False
    return True


def _has_native(target: Target) -> bool:
    """Whether the library of operators is there, and computes what it should with this ONNX Runtime."""
    if native_problem() is not None:
        return False
    from tintype.kernels.base import OWN
    from tintype.kernels.native.group_norm import NativeGroupNorm

    x = np.random.default_rng(0).standard_normal((2, 6, 5, 7), np.float32)
    scale, bias = np.linspace(-1, 2, 6, dtype=np.float32), np.linspace(3, 1, 6, dtype=np.float32)
    answer = _ask(target, "GroupNormSilu", [x, scale, bias], x, OWN, groups=3, silu=1)
    expected = NativeGroupNorm.reference(x, scale, bias, 3, 1e-5, silu=True)
    return answer is not None and bool(np.abs(answer - expected).max() < NATIVE_TOLERANCE)


def _has_native_bfloat16(target: Target) -> bool:
    """Whether the library's products of bfloat16 are there, which few processors have, and are right."""
    if native_problem() is not None:
        return False
    from tintype.kernels.base import OWN
    from tintype.kernels.native.attention import NativeAttention

    random = np.random.default_rng(0)
    query, key, value = (
        random.standard_normal((1, length, HEADS * SIZE), np.float32) for length in (QUERIES, KEYS, KEYS)
    )
    attributes = {"heads": HEADS, "scale": SIZE**-0.5, "bfloat16": 1}
    answer = _ask(target, "HeadsAttention", [query, key, value], query, OWN, **attributes)
    expected = NativeAttention.reference(query, key, value, HEADS)
    return answer is not None and bool(np.abs(answer - expected).max() < ATTENTION_TOLERANCE)


def _has_native_integers(target: Target) -> bool:
    """Whether the library's products of 8-bit integers are there, and are exact."""
    if native_problem() is not None:
        return False
    from tintype.kernels.base import OWN
    from tintype.kernels.native.integer_linear import NativeIntegerLinear, packed_integers

    x = np.full((9, DEPTH), 255, np.float32)  # whole steps, the largest that there are
    weight, of_columns = np.full((DEPTH, COLUMNS), 127, np.int8), np.ones((1, COLUMNS), np.float32)
    totals = weight.sum(axis=0, dtype=np.int32, keepdims=True)
    inputs = [x, packed_integers(weight), of_columns, of_columns, totals]
    expected = NativeIntegerLinear.reference(x, weight, of_columns[0], of_columns[0])
    answer = _ask(target, "IntegerLinear", inputs, np.zeros((9, COLUMNS), np.float32), OWN)
    return answer is not None and np.array_equal(answer, expected)


def _has_native_four_bits(target: Target) -> bool:
    """Whether the library's products of 4-bit weights and rounded inputs are there, and are exact."""
    if native_problem() is not None:
        return False
    from tintype.kernels.base import OWN
    from tintype.kernels.graph.blocks import BlockedWeight
    from tintype.kernels.native.four_bit_linear import NativeFourBitIntegerLinear, packed_four_bits

    x = np.repeat(np.array([[127], [-127]], np.float32), DEPTH, axis=1).repeat(5, axis=0)  # the largest that there are
    integers, ones = np.full((DEPTH, COLUMNS), 15, np.uint8), np.ones((DEPTH // 32, COLUMNS), np.float32)
    weight = BlockedWeight("weight", 4, 32, integers, ones, np.zeros(ones.shape, np.uint8))
    packed, scales, zeros = packed_four_bits(weight)
    answer = _ask(target, "FourBitLinear", [x, packed, ones[:1], scales, zeros], x[:, :COLUMNS], OWN, rounded=1)
    expected = NativeFourBitIntegerLinear.reference(x, integers, ones, weight.zero_point, ones[0])
    return answer is not None and np.array_equal(answer, expected)


_OF_DEVICE: dict[str, Callable[[Target], bool]] = {"float16": _has_float16, "attention": _has_attention}
_OF_PROCESSOR: dict[str, Callable[[Target], bool]] = {
    "mixed_products": _has_mixed_products,
    "native": _has_native,
    "native_bfloat16": _has_native_bfloat16,
    "native_integers": _has_native_integers,
    "native_four_bits": _has_native_four_bits,
}


def _attention(query: NDArray[Any], key: NDArray[Any], value: NDArray[Any]) -> NDArray[Any]:
    q, k, v = (tensor.reshape(-1, HEADS, SIZE).swapaxes(0, 1) for tensor in (query, key, value))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(SIZE)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = weights / weights.sum(axis=-1, keepdims=True) @ v
    return attended.swapaxes(0, 1).reshape(query.shape)


def _ask(
    target: Target, operator: str, arrays: list[NDArray[Any]], like: NDArray[Any], domain: str = "", **attributes: Any
) -> Any:
    """What one node, whose output is of the type and shape of `like`, gives on the device; None if it won't run."""
    import onnx_ir as ir

    from tintype.kernels.base import DOMAINS

    inputs = [
        ir.Value(name=f"x{index}", shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        for index, array in enumerate(arrays)
    ]
    node = ir.node(operator, inputs, attributes=attributes, domain=domain)
    output = node.outputs[0]
    output.name, output.shape, output.dtype = "y", ir.Shape(like.shape), ir.DataType.from_numpy(like.dtype)
    imports = {"": 20, **DOMAINS}
    model = ir.Model(ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=imports, name="question"), ir_version=9)
    options = load_onnxruntime().SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # a question is small, and a pool of threads spins after each
    if target.is_host:
        register(options)
    if not target.is_host:  # a processor has nothing to fall back to, and ONNX Runtime refuses the option there
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = new_session(ir.to_proto(model).SerializeToString(), options, target)
        return session.run(None, {value.name: array for value, array in zip(inputs, arrays, strict=True)})[0]
    except Exception:  # ORT raises its own unrelated classes; whatever it is, the device can't
        return None
