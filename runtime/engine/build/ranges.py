"""How large a canonical graph's values get, measured on the processor: at export on real inputs, else on noise.

What is kept is what matters for float16: names of values that come within a factor of 16 of its end, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype.engine.device.machine import default_threads
from tintype.engine.device.providers import TARGETS, load_onnxruntime, new_session
from tintype.engine.run.session_options import session_options

if TYPE_CHECKING:
    import onnx_ir as ir

KEPT = 65504.0 / 16
NOISE_MARGIN = 4.0  # noise isn't what a model was trained on: its values are taken to be that much larger
NOISE_SIZES = {"batch": 1, "height": 16, "width": 16, "sequence": 77}
TIMES = (999.0, 500.0, 1.0)
TOKENS = 256  # of a vocabulary whose size isn't known here; every tokenizer has its bytes first

Feed = Mapping[str, NDArray[Any]]
Run = Callable[[Iterable[str], Feed], list[NDArray[Any]]]


def measure_ranges(source: Path, feeds: Iterable[Feed], *, threads: int | None = None) -> dict[str, float]:
    """The largest magnitude of each float value over all feeds, of those that matter; infinity counts as 1e38."""
    import onnx_ir as ir

    from tintype.kernels.graph.ranges import OUTPUT, watch

    model = ir.load(source)
    names = watch(model)
    run = graph_as_it_stands(model, source.parent, threads=threads)
    seen = np.zeros(len(names), np.float64)
    for feed in feeds:
        told = run([OUTPUT], feed)[0].astype(np.float64)
        seen = np.maximum(seen, np.nan_to_num(told, nan=1e38, posinf=1e38))
    return {name: float(f"{size:.6g}") for name, size in zip(names, seen, strict=True) if size >= KEPT}


def graph_as_it_stands(model: ir.Model, folder: Path, *, threads: int | None = None) -> Run:
    """Names of outputs and a feed -> those outputs, by a graph in memory on the processor, node by node as they stand.

    folder: where the graph's weights lie. Nothing is optimized: weights would be held anew, laid out for speed, and as
    floats what is stored as halves.
    """
    import onnx_ir as ir

    cpu = TARGETS["cpu"]
    options = session_options(cpu, threads=threads or default_threads(), optimize=False, mapped=True)
    # In the order in which nodes stand: by default all values would wait for what looks at them.
    options.execution_order = load_onnxruntime().ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False  # what is done with goes back at once
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = new_session(ir.to_proto(model).SerializeToString(), options, cpu)
    return lambda names, feed: session.run(list(names), dict(feed))


def ranges_on_noise(source: Path, *, threads: int | None = None) -> dict[str, float]:
    """The same for a graph that came without ranges: unit noise at a small size, with a margin."""
    import onnx_ir as ir

    measured = measure_ranges(source, noise_feeds(ir.load(source)), threads=threads)
    return {name: size * NOISE_MARGIN for name, size in measured.items()}


def noise_feeds(model: ir.Model) -> list[dict[str, NDArray[Any]]]:
    """Inputs for a graph as a bundle's are: floats of unit variance, times from first to last, and any words."""
    random = np.random.default_rng(0)
    feeds = []
    for time in TIMES if any(value.name == "timestep" for value in model.graph.inputs) else TIMES[:1]:
        feed: dict[str, NDArray[Any]] = {}
        for value in model.graph.inputs:
            shape = tuple(_size(dim) for dim in value.shape or ())
            kind = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
            if value.name == "timestep":
                feed["timestep"] = np.full(shape, time, kind)
            elif kind.kind in "iu":
                feed[str(value.name)] = random.integers(0, TOKENS, shape).astype(kind)
            else:
                feed[str(value.name)] = random.standard_normal(shape).astype(kind)
        feeds.append(feed)
    return feeds


def _size(dim: int | ir.SymbolicDim) -> int:
    return dim if isinstance(dim, int) else NOISE_SIZES.get(str(dim.value), 1)
