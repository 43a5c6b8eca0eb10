"""What whoever makes a build and whoever opens it agree on: names of files and types, and ONNX Runtime's options."""

from __future__ import annotations

from typing import Any

import numpy as np

from tintype.engine.device import native
from tintype.engine.device.providers import Target, load_onnxruntime

MODEL = "model.onnx"
ONCE = "once.onnx"  # the part of a build that depends on the prompt alone
UNREAD = "tintype.unread"  # in a graph's metadata: inputs that it may be given, and has not, because nothing reads them

NUMPY_TYPES: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def session_options(target: Target, *, threads: int, optimize: bool, mapped: bool = False) -> Any:
    """ONNX Runtime's SessionOptions for a target: nothing falls back, nothing spins between runs.

    mapped: weights are used where they lie in their mapped file; no faster copies are made of them.
    """
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails comes as an exception
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # a kiosk between pictures costs no power
    # A product with int8 weights that no kernel took becomes MatMulNBits, which by default rounds its other input to
    # 8 bits as well, whatever was asked for: 57 dB for a text encoder and 36 for a VAE that keep 147 with this.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # A pattern lays all tensors of a run out anew in one block: the second run is slow, memory doubles, and for graphs
    # of this size nothing is gained (a VAE decode at 512x512: 2.7 GB with it, 1.5 without). DirectML can't have it.
    options.enable_mem_pattern = False
    if target.is_host:
        native.register(options)
    return options
