"""One arena for all graphs on the processor: sessions that come and go, or run in turn, use the same memory.

ONNX Runtime by itself gives each session an arena of its own, which grows to what its runs need and stays so. Shared,
it is as large as the hungriest graph needs; parts of a graph, opened one after another, find it as the last left it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tintype.engine.device.providers import load_onnxruntime

_DOUBLING = 0  # grows by steps twice as large each: as asked, pieces of one picture's sizes are left between another's
# A graph of one Identity, (n,) float32 x -> y: to run one is the only way to have an arena give memory back.
_IDENTITY = bytes.fromhex(
    "080812003a390a100a017812017922084964656e746974791201675a100a0178120b0a09080112050a0312016e62100a0179120b0a0908"
    "0112050a0312016e42040a00100d"
)


def use_shared(options: Any) -> None:
    """Have a session allocate from the shared arena. Its weights lie elsewhere: they would split what is free in it."""
    _register()
    _set_shared(options)


def shrink() -> None:
    """Give back to the system what no graph uses at present. Does nothing where no session has used the arena."""
    if _register.cache_info().currsize == 0:
        return
    how = load_onnxruntime().RunOptions()
    how.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    _run_identity(0, how)  # what holds no number is not in the arena, where it would be in the way


@functools.cache
def _register() -> None:
    """Make the arena. It belongs to ONNX Runtime's environment and lives as long as the process."""
    state: Any = load_onnxruntime().capi._pybind_state
    memory = state.OrtMemoryInfo("Cpu", state.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, state.OrtMemType.DEFAULT)
    state.create_and_register_allocator(memory, state.OrtArenaCfg({"arena_extend_strategy": _DOUBLING}))
    _run_identity(1, None)  # the first piece of an arena is never given back, and as large as what is first asked for


def _run_identity(numbers: int, how: Any) -> None:
    _identity().run(None, {"x": np.zeros(numbers, np.float32)}, how)


@functools.cache
def _identity() -> Any:
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    _set_shared(options)
    return runtime.InferenceSession(_IDENTITY, options, providers=["CPUExecutionProvider"])


def _set_shared(options: Any) -> None:
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
