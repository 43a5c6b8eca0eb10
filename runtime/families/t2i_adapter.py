"""How T2I-Adapters take part in a request: for every family alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tintype.bundle.t2i_adapter import T2IAdapter
from tintype.request import ResolvedRequest
from tintype.request.control import ControlFacts, ControlInput
from tintype.sampling import Schedule
from tintype.uses import ADAPT, GraphRef, GraphUse

Size = tuple[int, int, int]  # channels, height, width
Part = tuple[ControlFacts, ControlInput, T2IAdapter]


def adapters(request: ResolvedRequest, schedule: Schedule) -> tuple[Part, ...]:
    """Those that have a part in any step; of the others nothing is computed, and the denoiser doesn't know of them."""
    steps = range(schedule.steps_taken)
    return tuple(
        (facts, given, given.net)
        for facts, given in zip(request.control, request.inputs.control, strict=False)
        if isinstance(given.net, T2IAdapter)
        and facts.weight
        and any(facts.is_on(step, schedule.steps_taken) for step in steps)
    )


def feature_sizes(request: ResolvedRequest, schedule: Schedule) -> tuple[Size, ...]:
    """Of what the denoiser takes; empty where no T2I-Adapter controls it."""
    return sizes_of(request, adapters(request, schedule))


def sizes_of(request: ResolvedRequest, parts: Sequence[Part]) -> tuple[Size, ...]:
    """Of what each of these gives, which is the same for all of a request."""
    return next((net.manifest.sizes(request.width, request.height) for _, _, net in parts), ())


def feature_bytes(request: ResolvedRequest, schedule: Schedule, rows: int) -> int:
    """What T2I-Adapters take beside their graphs: each one's picture and features, and their sum for so many rows."""
    parts = adapters(request, schedule)
    each = sum(math.prod(size) for size in sizes_of(request, parts))
    pixels = request.width * request.height * max((net.manifest.picture_channels for _, _, net in parts), default=0)
    return 4 * (pixels + (len(parts) + rows) * each)


def adapter_uses(request: ResolvedRequest, schedule: Schedule) -> tuple[GraphUse, ...]:
    """A use for each T2I-Adapter, called once for each picture that it is shown."""
    calls = Counter[GraphRef](net.ref for _, _, net in adapters(request, schedule))
    dims = {"batch": 1, "rows": request.height, "columns": request.width}
    return tuple(GraphUse(ref=ref, phase=ADAPT, dims=dims, calls=count) for ref, count in calls.items())
