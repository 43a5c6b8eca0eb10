"""How ControlNets take part in a request: for every family alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tintype.bundle.controlnet import ControlNet
from tintype.bundle.shapes import times
from tintype.families.base import Branch
from tintype.request import ResolvedRequest
from tintype.request.control import ControlFacts, ControlInput
from tintype.sampling import Guidance, Schedule
from tintype.uses import DENOISE, GraphRef, GraphUse

UNWANTED = "negative"  # the name of the branch that guidance leads away from


def controlnets(request: ResolvedRequest) -> tuple[tuple[ControlFacts, ControlInput, ControlNet], ...]:
    """Those of a request, among all that controls it."""
    return tuple(
        (facts, given, given.net)
        for facts, given in zip(request.control, request.inputs.control, strict=False)
        if isinstance(given.net, ControlNet)
    )


def controlled(
    request: ResolvedRequest, net: ControlNet, branches: Sequence[Branch], active: Sequence[int]
) -> tuple[int, ...]:
    """Of the branches of a call those that a ControlNet has a part in: where it guesses, not the unwanted one."""
    if not (request.control_guess or net.manifest.pooled):
        return tuple(active)
    return tuple(index for index in active if branches[index].name != UNWANTED)


def strengths(facts: ControlFacts, net: ControlNet, *, guess: bool) -> tuple[float, ...]:
    """What each residual of a ControlNet counts; one that guesses says less of what is finer, from a tenth on."""
    count = len(net.manifest.residuals)
    if not guess or net.manifest.pooled:
        return (facts.weight,) * count
    return tuple(facts.weight * 10.0 ** (place / (count - 1) - 1.0) for place in range(count))


def residual_shapes(net: ControlNet, batch: int, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
    """By name, what a denoiser takes of a ControlNet for latents of that size."""
    shapes = {}
    for port in net.manifest.graph.outputs:
        scale = times("height", port.shape[2]) or 1.0
        shapes[port.name] = (batch, int(port.shape[1]), int(height * scale), int(width * scale))
    return shapes


def control_bytes(request: ResolvedRequest, rows: int, cells: Mapping[str, int]) -> int:
    """What ControlNets take beside their graphs and what the denoiser is given: their pictures, of so many rows, and
    residuals that are being added to others."""
    nets = [net for _, _, net in controlnets(request)]
    if not nets:
        return 0
    pictures = len(nets) * (rows + 1) * request.width * request.height * 3 * 4
    shapes = residual_shapes(nets[0], rows, cells["height"], cells["width"])
    return pictures + 4 * sum(batch * count * high * wide for batch, count, high, wide in shapes.values())


def residual_channels(request: ResolvedRequest) -> tuple[int, ...]:
    """Of what the denoiser takes; empty where no ControlNet controls it."""
    return next((net.manifest.residuals for _, _, net in controlnets(request)), ())


def control_uses(
    request: ResolvedRequest,
    branches: Sequence[Branch],
    guidance: Guidance,
    schedule: Schedule,
    dims: Mapping[str, int],
) -> tuple[GraphUse, ...]:
    """A use for each ControlNet and each number of branches that a call of it may take. dims: all but the batch."""
    calls: dict[GraphRef, Counter[int]] = {}
    for facts, _, net in controlnets(request):
        counts = calls.setdefault(net.ref, Counter())
        for index in range(schedule.steps_taken):
            active = controlled(request, net, branches, guidance.active(schedule.progress(index)))
            if active and facts.weight and facts.is_on(index, schedule.steps_taken):
                counts[len(active)] += schedule.calls_in(index)
    batches, picture = request.batches, {"rows": request.height, "columns": request.width}
    return tuple(
        GraphUse(
            ref=ref,
            phase=DENOISE,
            dims={"batch": len(batches[0]) * count, **dims, **picture},
            calls=len(batches) * number,
            opens=len(batches),
            branches=count,
            unguided=count < max(counts),
        )
        for ref, counts in calls.items()
        for count, number in sorted(counts.items(), reverse=True)
    )
