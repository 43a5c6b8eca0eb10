"""What a session on CUDA is told, and which shapes it may capture as CUDA graphs. Values only: no GPU is needed.

Not run on a GPU yet: names and values of options are those of ONNX Runtime's documentation.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import replace

from tintype.engine.device.providers import Target

SMALLEST_LIMIT = 64 * 2**20  # an arena of less holds no graph's weights
MOST_GRAPHS = 4  # captured a session: each keeps all its tensors for good
NO_GRAPH = "-1"  # what ONNX Runtime takes for a run that isn't captured
GRAPHS_VARIABLE = "TINTYPE_CUDA_GRAPHS"


def for_session(
    target: Target, *, exactness: str = "balanced", device_bytes: int | None = None, captures: bool = False
) -> Target:
    """The target with the options of one session; another target than CUDA as it is.

    exactness: `exact` computes in float32 throughout. `balanced` lets what stays float32 there (islands, the
    timestep) be multiplied in TF32, whose 10 bits are those of the float16 around it.
    device_bytes: the most that the session's arena may hold, from a plan; None sets no bound.
    captures: whether runs of fixed shapes are captured as CUDA graphs.

    Raises ValueError for a limit that no graph fits in.
    """
    if target.name != "cuda":
        return target
    if device_bytes is not None and device_bytes < SMALLEST_LIMIT:
        raise ValueError(f"a CUDA session gets {device_bytes:,} bytes; {SMALLEST_LIMIT:,} is the least")
    options = {
        # EXHAUSTIVE, the provider's default, times every algorithm at every new shape: seconds before the first
        # picture, and not the same choice every time.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The arena grows by what is asked for, not by powers of two: up to half of the weights' size would be idle.
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0" if exactness == "exact" else "1",
        # Channels are last already where it pays (`kernels.nhwc_conv`).
        "prefer_nhwc": "0",
    }
    if device_bytes is not None:
        options["gpu_mem_limit"] = str(device_bytes)
        # The fastest algorithms ask for as much scratch memory as there is.
        options["cudnn_conv_use_max_workspace"] = "0"
    if captures:
        options["enable_cuda_graph"] = "1"
    return replace(target, options=tuple(sorted(options.items())))


def wants_capture(target: Target, *, pinned: bool) -> bool:
    """Whether to ask for CUDA graphs: builds of one shape do, unless TINTYPE_CUDA_GRAPHS is 0."""
    return target.name == "cuda" and pinned and os.environ.get(GRAPHS_VARIABLE, "1") != "0"


class GraphIds:
    """Which shapes of one session are captured, and under which id.

    ONNX Runtime drops captured graphs when their session closes and not before, so that the first shapes are captured
    and those beyond the bound run as any session does: right, only slower. Builds are of one shape, so that a second
    one is rare.
    """

    def __init__(self, most: int = MOST_GRAPHS) -> None:
        self.most = most
        self._ids: dict[Hashable, str] = {}

    def id_of(self, shape: Hashable) -> str:
        """The value of the run option `gpu_graph_id`."""
        if shape in self._ids:
            return self._ids[shape]
        if len(self._ids) >= self.most:
            return NO_GRAPH
        self._ids[shape] = str(len(self._ids) + 1)
        return self._ids[shape]

    def holds(self, shape: Hashable) -> bool:
        """Whether a shape has been given an id of its own."""
        return shape in self._ids

    @property
    def captured(self) -> int:
        return len(self._ids)
