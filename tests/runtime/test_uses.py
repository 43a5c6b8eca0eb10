"""What a model says that a request uses is what its run then opens and calls: graphs, shapes, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pictures import PROMPT, photo

import tintype
import tintype.engine
from tintype import Request, Run
from tintype.engine import Session
from tintype.engine.run.bound_run import BoundRun
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.stages.encode import encode

pytestmark = pytest.mark.slow

Call = tuple[str, tuple[tuple[str, int], ...]]  # role, dims

GUIDED, UNGUIDED = {"guidance_scale": 5.0}, {"guidance_scale": 1.0}
IN_PART = {**GUIDED, "guidance_interval": "0.5,1"}
BEGINNINGS: dict[str, dict[str, Any]] = {"words": {}, "picture": {"image": photo(), "strength": 0.7}}


@dataclass
class Seen:
    """What a run did."""

    opens: Counter[str] = field(default_factory=Counter)
    calls: Counter[Call] = field(default_factory=Counter)


@pytest.fixture(scope="module", params=["sd", "xl"])
def pipeline(request: pytest.FixtureRequest):
    bundle: Path = request.getfixturevalue({"sd": "tiny_bundle", "xl": "xl_bundle"}[request.param])
    with tintype.load(bundle, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def seen(pipeline: tintype.Pipeline, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Every session that is opened, and every call of one with the numbers for its graph's dims."""
    seen, roles, held_inputs = Seen(), dict[int, str](), dict[int, Mapping[str, Any]]()
    open_role, hold, run = tintype.engine.open_role, Session.hold, BoundRun.run
    kept_alive = []  # so that no id comes twice

    def opening(bundle, role, target, **more):
        session = open_role(bundle, role, target, **more)
        kept_alive.append(session)
        seen.opens[role] += 1
        roles[id(session)] = role
        return session

    def holding(self, inputs, **more):
        held = hold(self, inputs, **more)
        kept_alive.append(held)
        held_inputs[id(held)] = inputs
        return held

    def running(self, inputs):
        role = roles[id(self._session)]
        dims = {}
        for port in pipeline.bundle.graph(role).inputs:
            shape = {**held_inputs[id(self)], **inputs}[port.name].shape
            for name, size in zip(port.shape, shape, strict=True):
                if isinstance(name, str):
                    assert dims.setdefault(name, size) == size
        seen.calls[role, tuple(sorted(dims.items()))] += 1
        return run(self, inputs)

    monkeypatch.setattr(tintype.engine, "open_role", opening)
    monkeypatch.setattr(Session, "hold", holding)
    monkeypatch.setattr(BoundRun, "run", running)
    return seen


def told_calls(pipeline: tintype.Pipeline, request: tintype.ResolvedRequest, *, split: bool) -> Counter[Call]:
    """The calls of a request by its uses, those of a smaller last batch in its own shape."""
    calls: Counter[Call] = Counter()
    for use in pipeline.model.uses(request):
        batches = request.batches if use.ref.role == "denoiser" else [range(1)]
        for batch in batches:
            dims = dict(use.dims)
            if use.ref.role == "denoiser":
                dims["batch"] = len(batch) * use.branches
            if split:
                dims["batch"] //= use.branches
            each = use.calls // len(batches) * (use.branches if split else 1)
            calls[use.ref.role, tuple(sorted(dims.items()))] += each
    return calls


@pytest.mark.parametrize("split", [False, True], ids=["together", "split"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("guidance", [GUIDED, UNGUIDED, IN_PART], ids=["guided", "unguided", "in-part"])
def test_uses_are_what_a_run_opens_and_calls(
    pipeline: tintype.Pipeline,
    seen: Seen,
    guidance: dict[str, Any],
    count: int,
    batch_size: int,
    beginning: str,
    split: bool,
) -> None:
    fields = {"num_inference_steps": 3, "sampler": "heun", "seed": 1, "count": count, "batch_size": batch_size}
    request = pipeline.resolve(Request(prompt=PROMPT, **fields, **guidance, **BEGINNINGS[beginning]))
    pipeline.close()
    context = pipeline.context(request, ExecutionPlan(split_guidance=split, keep=False))
    list(Run(context, picture_steps(context)))
    uses = pipeline.model.uses(request)
    assert seen.calls == told_calls(pipeline, request, split=split)
    opens = Counter[str]()
    for use in uses:
        opens[use.ref.role] += use.opens * (not (use.unguided and split))  # split, all calls are of one shape
    assert seen.opens == opens
    assert len({use.name for use in uses}) == len(uses)
    assert sum(seen.calls.values()) == sum(use.calls * (use.branches if split else 1) for use in uses)
    assert ("vae_encoder" in seen.opens) == (beginning != "words")


def test_a_use_in_its_split_shape_is_that_of_each_call(pipeline: tintype.Pipeline) -> None:
    request = pipeline.resolve(Request(prompt=PROMPT, count=3, batch_size=2, **GUIDED))
    (whole,) = (use for use in pipeline.model.uses(request) if use.name == "denoiser")
    split = whole.split()
    assert (whole.branches, whole.dims["batch"], split.branches, split.dims["batch"]) == (2, 4, 1, 2)
    assert split.calls == 2 * whole.calls
    assert split.split() == split


@pytest.mark.parametrize("sampler", ["heun", "pndm", "dpmpp_sde", "euler", "seeds_3", "sa_solver_pece"])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_strength_takes_calls_away(pipeline: tintype.Pipeline, seen: Seen, sampler: str, strength: float) -> None:
    fields = {"num_inference_steps": 5, "sampler": sampler, "seed": 1, "image": photo(), "strength": strength}
    run = pipeline.steps(PROMPT, **UNGUIDED, **fields)
    pipeline.close()
    total = [step.total for step in pipeline.steps(PROMPT, **UNGUIDED, **fields)]
    (denoiser,) = (use for use in pipeline.model.uses(run.request) if use.name == "denoiser")
    called = sum(calls for (role, _), calls in seen.calls.items() if role == "denoiser")
    assert called == denoiser.calls
    assert len(total) == total[0] == (2 if strength == 0.4 else 5) + (sampler == "pndm")


def test_a_prompt_of_several_chunks_is_encoded_chunk_by_chunk(pipeline: tintype.Pipeline, seen: Seen) -> None:
    request = pipeline.resolve(Request(prompt=PROMPT + ", a house" * 40, num_inference_steps=1, seed=1, **UNGUIDED))
    pipeline.close()
    encode(pipeline.context(request))
    for use in pipeline.model.uses(request):
        if use.phase == "encode":
            assert use.calls > 1
            assert seen.calls[use.name, tuple(sorted(use.dims.items()))] == use.calls
