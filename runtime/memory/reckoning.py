"""What a graph costs until it has been measured: reckoned from its analysis, corrected by what others like it took."""

from __future__ import annotations

from dataclasses import dataclass

from tintype.costs import Costs, GraphFacts
from tintype.memory.mode import MIB, Mode, Segments, Strips


@dataclass(frozen=True, slots=True)
class Correction:
    """What measuring one graph held that way said about reckoning it: measured over reckoned."""

    peak: float = 1.0
    seconds: float = 1.0


# Where nothing has been measured yet; ratios of UNet and decoder of Stable Diffusion 1.5's size on two machines.
_COPIES = {
    "packed": 2.2,
    "mapped": 1.0,
    "segments": 1.0,
    "open segments": 1.0,
    "strips": 1.0,
}  # over the graph's weights
_SLOWER = {"packed": 1.0, "mapped": 1.2, "segments": 1.15, "open segments": 1.1, "strips": 1.3}
_SMALL_MIB = 64  # segments of that size leave no room for Winograd, which costs another quarter
_PART_SECONDS = 0.008  # to open one segment
_WORKSPACE = 2.0  # of live activations: the arena grows in steps of its own, kernels need room
_SESSION_BYTES = 24 * MIB


def reckon(
    facts: GraphFacts,
    mode: Mode,
    *,
    floats: bool,
    rate: float,
    correction: Correction | None = None,
    on_device: bool = False,
) -> Costs:
    """Costs from a graph's analysis. rate: multiply-adds a second.

    floats: weights are used in fp32, except those of four bits on the processor.

    on_device: weights and activations lie in a device's own memory, without copies of weights.
    """
    correction = correction or Correction()
    whole_bytes = facts.float_bytes - (0 if on_device else facts.saved_bytes)
    weights = whole_bytes if floats else facts.stored_bytes
    live = facts.live_bytes
    slower, parts = _SLOWER[mode.kind], 0
    if isinstance(mode, Segments):
        # A layer that is larger than a segment is one by itself; most are smaller, and then so is what is mapped.
        limit = mode.mib * MIB
        weights = min(weights, (limit + max(limit, facts.largest_bytes)) // 2)
        slower += 0.25 * min(1.0, _SMALL_MIB / mode.mib)
        parts = 0 if mode.standing else -(-whole_bytes // limit)
    if isinstance(mode, Strips):
        live = min(live, 6 * mode.mib * MIB)
    held = weights * (1.0 if on_device else _COPIES[mode.kind])
    peak = (held + live * _WORKSPACE + _SESSION_BYTES) * correction.peak + facts.taken_bytes
    whole = not mode.is_cut
    there = max(0, int(peak) - _SESSION_BYTES) if on_device else 0
    return Costs(
        peak_bytes=int(peak),
        resident_bytes=int(peak) if whole else _SESSION_BYTES + facts.taken_bytes,
        held_bytes=facts.taken_bytes,
        copied_bytes=int(peak - weights) if whole else 0,
        open_seconds=0.0,
        held_seconds=0.0,
        call_seconds=(facts.multiplications / rate * slower + parts * _PART_SECONDS) * correction.seconds,
        device_bytes=there,
        device_resident_bytes=there if whole else 0,
        device_told=not on_device,
        measured=False,
    )
