"""How a request has calls of the denoiser take over what earlier ones computed: for every family alike."""

from __future__ import annotations

from tintype.request import ResolvedRequest
from tintype.sampling import DeepCache, Gate, Reuse
from tintype.uses import CROSS_ATTENTION, DEEP_FEATURES, Cut


def reuse_of(request: ResolvedRequest) -> Reuse | None:
    """How calls of the denoiser take over what earlier ones computed, for one batch; None: each computes all of it."""
    if request.cache_interval > 1:
        return DeepCache(request.cache_interval)
    return None if request.gate_start is None else Gate(request.gate_start)


def cut_of(request: ResolvedRequest, *, takes: bool) -> Cut:
    """The graph of the calls that take inner values over, or of those that give them."""
    if request.cache_interval > 1:
        return Cut(DEEP_FEATURES, takes, request.cache_branch)
    return Cut(CROSS_ATTENTION, takes)
