"""What a graph costs, held one way, and what of a graph that follows from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Bytes beyond those of the process before, and seconds."""

    peak_bytes: int  # the most while it opens and runs
    resident_bytes: int  # while it is open and doesn't run, without the code and the arena that all graphs share
    copied_bytes: int  # of these, memory of the process's own; the rest are mapped weights
    held_bytes: int = 0  # of these, what a prompt has for itself alone and is kept from call to call
    open_seconds: float
    held_seconds: float  # what depends on the prompt alone, once a picture
    call_seconds: float
    first_seconds: float = 0.0  # what the first call takes longer: weights come into memory
    first_peak_bytes: int | None = None  # the most while it opens and runs once: the arena grows at the second call too
    arena_bytes: int = 0  # of what it needs while it runs, what stays in the arena that graphs share
    left_bytes: int = 0  # what of the peak stays when the graph is closed; the next one may use it again
    device_bytes: int = 0  # of the peak, what lies in a device's own memory
    device_resident_bytes: int = 0  # of what is resident, the same
    device_base_bytes: int = 0  # of the device's memory, what a process on it takes without a graph; beyond the peak
    device_told: bool = True  # whether a driver told these three; otherwise they are reckoned
    measured: bool = True  # False: reckoned from the graph
    disturbed: bool = False  # other programs were busy in each call that was timed

    @property
    def work_bytes(self) -> int:
        """While it runs, beyond what it holds: of the arena, and of weights that come and go."""
        return max(0, self.peak_bytes - self.resident_bytes)

    @property
    def mapped_bytes(self) -> int:
        return max(0, self.resident_bytes - self.copied_bytes)


# Of a way that a graph can't go: it fits into no budget.
IMPOSSIBLE = Costs(
    peak_bytes=2**62, resident_bytes=0, copied_bytes=0, open_seconds=0.0, held_seconds=0.0, call_seconds=float("inf")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """What `kernels.analysis.Analysis` says of a graph, without importing onnx."""

    stored_bytes: int
    float_bytes: int
    largest_bytes: int
    live_bytes: int
    multiplications: int
    saved_bytes: int = 0
    taken_bytes: int = 0  # of inner values that it is given, see `uses.Cut`
