"""READ FIRST: a request becomes a picture, in four steps: see `picture_steps`.

A request is checked as a whole before anything is opened. Graphs are opened when their stage begins and stay open for
the next request; `Pipeline.close` gives everything back. What one run owns is its `Context`; what all runs share is
`Graphs`; how a model reads words and which graphs it uses, its family says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

from tintype.arrays import Latents
from tintype.bundle import Bundle, open_bundle
from tintype.errors import RecordError, RequestError
from tintype.events import Picture, Step
from tintype.families.model import Model
from tintype.families.stable_diffusion import encoding_use
from tintype.graphs.measured import Planner, Work, picture_bytes
from tintype.graphs.resident import ALL_RESIDENT, Graphs
from tintype.image.encode import of_image, to_samples
from tintype.memory.budget import parse_memory
from tintype.memory.plan import ExecutionPlan, Plan
from tintype.record import Record
from tintype.record.latents_file import SavedLatents
from tintype.record.provenance import execution_plan_of
from tintype.request import (
    InputFields,
    Request,
    RequestFields,
    ResolvedRequest,
    make_request,
    resolve,
    resolve_encoding,
)
from tintype.run import Result, Run, collect, take_all
from tintype.sampling import noise_source
from tintype.stages.again import (
    demand_home,
    demand_inputs,
    demand_promise,
    finish_saved,
    needs_inputs,
    request_of,
)
from tintype.stages.context import Context
from tintype.stages.decode import event
from tintype.stages.decode_mode import DecodeMode
from tintype.stages.denoise import denoise
from tintype.stages.encode import encode
from tintype.stages.finish import finish
from tintype.stages.hires import base_steps, steps_of_base
from tintype.stages.start import encode_picture, start

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.engine import Target


def picture_steps(ctx: Context) -> Generator[Step | Picture]:
    """The pictures of a run: each step when it is done, each picture when it is decoded."""
    if ctx.base is not None:
        yield from base_steps(ctx, ctx.base)  # 0. a smaller picture, which is enlarged
    ctx.prepare()
    conditioning = encode(ctx)  # 1. words -> embeddings
    about_words = tuple(ctx.warnings)
    for batch in ctx.batches:
        known = len(ctx.warnings)
        noise = noise_source(ctx.request.noise, ctx.request.seeds[batch.start : batch.stop])
        begun = start(ctx, batch, noise)  # 2. seeds, and a picture -> latents
        for step in denoise(ctx, conditioning, batch, begun, noise):  # 3. noise -> latents, one step at a time
            yield event(ctx, step, batch, before=steps_of_base(ctx))
        yield from finish(ctx, batch, ctx.latents[-1], (*about_words, *ctx.warnings[known:]))  # 4. latents -> pixels


def load(
    name_or_path: str | os.PathLike[str] = "postcard",
    *,
    provider: str = "auto",
    memory: str | int | None = None,
    threads: int | None = None,
) -> Pipeline:
    """Open a bundle, by its embedded name or its folder, on a device.

    provider: auto, cpu, cuda, directml or webgpu; a named one is used or it is an error.
    memory: the most that the process may have resident, a device's memory included, in bytes or as in 2GiB; auto is
    what is free. Requests that do not fit are refused before anything loads; None is no budget.
    threads: for the processor; None is one a core.

    Raises BundleError, InstallError or ProviderError, and RequestError for a budget that is no size. Graphs are opened
    by the first request.
    """
    from tintype.engine import resolve_provider

    return Pipeline(open_bundle(name_or_path), resolve_provider(provider), memory=memory, threads=threads)


class Pipeline:
    """A bundle on a device. Use it as a context manager, or `close` it.

    Threads may share one: their runs take turns at each call of a graph. Runs of different shapes open each other's
    graphs anew at every turn; a pipeline for each shape is faster.
    """

    def __init__(
        self, bundle: Bundle, target: Target, *, memory: str | int | None = None, threads: int | None = None
    ) -> None:
        from tintype.engine import default_threads

        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise RequestError(f"threads is {threads!r}", fix="give 1 or more, or leave it out for one a physical core")
        self.model = Model.of(bundle)
        self.bundle, self.target = bundle, target
        self.memory = None if memory is None else parse_memory(memory)
        self.graphs = Graphs(bundle, target, default_threads() if threads is None else threads)
        self.on_progress: Callable[[str], None] = lambda words: None  # what a plan takes its time for; set it
        self._planner = Planner(self.graphs, self.model.tokenizers, lambda words: self.on_progress(words))

    def generate(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> Result:
        """Make the pictures of a request: a prompt with the fields of `Request` by name, or a Request.

        Raises RequestError for what can't be done as asked, NumericError when the model breaks down.
        """
        return take_all(self.steps(prompt, **fields).events())

    def steps(self, prompt: str | Request, **fields: Unpack[RequestFields]) -> Run:
        """The same, step by step: iterate over what comes back, then take its `result`. Stop whenever you like."""
        ctx = self.context(self.resolve(make_request(prompt, fields)))
        return Run(ctx, picture_steps(ctx))

    def reproduce(self, record: Record, *, anyway: bool = False, **inputs: Unpack[InputFields]) -> Result:
        """The picture of a record again, byte for byte.

        inputs: the picture, mask or noise that it began with, if any; a record has only their hashes.

        Raises RecordError, naming each reason, when this bundle, device or version can't promise the same bytes;
        `anyway` tries all the same.
        """
        return take_all(self.reproduce_steps(record, anyway=anyway, **inputs).events())

    def reproduce_steps(self, record: Record, *, anyway: bool = False, **inputs: Unpack[InputFields]) -> Run:
        """`reproduce`, step by step."""
        alike = record.made_with.target == self.target.name or self.target.is_host
        plan = execution_plan_of(record.made_with)
        base = execution_plan_of(record.made_with, base=True)
        plans = (plan, base) if alike else (ALL_RESIDENT, ALL_RESIDENT)
        ctx = self.context(self._request_of(record, inputs), *plans)
        ctx.only, ctx.decode_modes = record.picture, (DecodeMode(record.tiling),)
        if not anyway:
            demand_promise(ctx, record)
        return Run(ctx, picture_steps(ctx))

    def resume(self, saved: SavedLatents, *, anyway: bool = False, **inputs: Unpack[InputFields]) -> Result:
        """Decode latents that `Run.save_latents` wrote and `read_latents` read, where decoding failed before.

        inputs: what they began with; only needed where a picture keeps the exact outside of its mask.

        Raises RecordError when they were made elsewhere, and then `anyway` tries all the same.
        """
        return take_all(self.resume_pictures(saved, anyway=anyway, **inputs))

    def resume_pictures(
        self, saved: SavedLatents, *, anyway: bool = False, **inputs: Unpack[InputFields]
    ) -> Generator[Picture, None, Result]:
        """`resume`, picture by picture: each is yielded when it is decoded; the generator returns the result."""
        saved.check(self.bundle.manifest)
        first = saved.records[0]
        given = needs_inputs(first) or any(value is not None for value in inputs.values())
        request = self._request_of(first, inputs) if given else first.request
        ctx = self.context(request, *(execution_plan_of(first.made_with, base=base) for base in (False, True)))
        foreign: tuple[str, ...] = ()
        try:
            demand_home(ctx, first)
        except RecordError as error:
            if not anyway:
                raise
            foreign = error.reasons
        if self.memory is not None:
            ctx = self.context(request)
        ctx.keep([record.picture for record in saved.records], saved.latents)
        return (yield from collect(ctx, finish_saved(ctx, saved, foreign)))

    def plan(self, prompt: str | Request = "", *, build: bool = True, **fields: Unpack[RequestFields]) -> Plan:
        """What making a request's pictures takes, stage by stage, within the budget; `generate` goes by the same plan.

        build: make and measure the builds that it consists of; otherwise what isn't known is reckoned.

        Raises RequestError, and MemoryBudgetError, naming the smallest budget that would do, when nothing fits.
        """
        return self._planner.plan(self._work(self.resolve(make_request(prompt, fields))), self.memory, build=build)

    def build(self, request: ResolvedRequest) -> Iterator[tuple[str, Path]]:
        """Make the builds that a request needs, one after another, on the processor with each layer's kernels timed;
        yields the name of each graph and its folder. Requests from then on are drawn by them."""
        return self.graphs.build(self.model.uses(request), request.exactness)

    def resolve(self, request: Request) -> ResolvedRequest:
        """The request without gaps. Raises RequestError for what this bundle can't do."""
        return resolve(request, self.bundle.manifest)

    def encode_picture(
        self, picture: Image, *, exactness: str | None = None, warn: Callable[[str], None] = lambda sentence: None
    ) -> Latents:
        """A picture -> its latents, (1, channels, height, width), as a result has them.

        With a budget the encoder runs by the plan that `plan_encoding` tells.

        exactness: None is the model's own. warn: is told what was computed again in float32.

        Raises RequestError for a size that the model can't make, MemoryBudgetError when nothing fits.
        """
        work = self._encoding(*picture.size, exactness)
        known = self._planned(work)
        plan = ALL_RESIDENT if known is None else known.execution
        if known is not None:
            self.graphs.evict_unplanned(work.uses, work.exactness, plan)
        graphs = self.graphs.within(plan, work.exactness, warn)
        return encode_picture(graphs, work.uses[0], to_samples(of_image(picture)), self.bundle.manifest)

    def plan_encoding(
        self, width: int | None = None, height: int | None = None, *, exactness: str | None = None, build: bool = True
    ) -> Plan:
        """What turning a picture of that size into latents takes; `encode_picture` goes by the same plan.

        width, height: in pixels; None is the model's own, here and of exactness. build, and what it raises: see `plan`.
        """
        return self._planner.plan(self._encoding(width, height, exactness), self.memory, build=build)

    def close(self) -> None:
        """Close every graph. The pipeline may be used again; it then opens them again."""
        self.graphs.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def context(
        self, request: ResolvedRequest, plan: ExecutionPlan | None = None, base_plan: ExecutionPlan | None = None
    ) -> Context:
        """A run that has not begun. plan, base_plan: None is the one that the budget has."""
        base = None if request.base is None else self.context(request.base, base_plan)
        known = self.planned(request) if plan is None else None
        plan = plan or (ALL_RESIDENT if known is None else known.execution)
        return Context.of(
            self.model, self.graphs, request, plan, planned=known, evicts=self.memory is not None, base=base
        )

    def planned(self, request: ResolvedRequest) -> Plan | None:
        """The plan that a request is made by; None without a budget.

        Requests that use the same graphs share one while it fits what is free, and not much more has become free since.
        """
        return self._planned(self._work(request))

    def _planned(self, work: Work) -> Plan | None:
        return None if self.memory is None else self._planner.planned(work, self.memory)

    def _request_of(self, record: Record, inputs: InputFields) -> ResolvedRequest:
        """A record's request with what it began with. Raises RecordError where that is missing, or is another."""
        request = self.resolve(request_of(record, inputs))
        demand_inputs(record, request)
        return replace(request, image=record.request.image)  # a copy of the picture may have lost its own record

    def _work(self, request: ResolvedRequest) -> Work:
        return Work(
            uses=self.model.uses(request),
            exactness=request.exactness,
            picture_bytes=picture_bytes(request.width, request.height, request.count),
        )

    def _encoding(self, width: int | None, height: int | None, exactness: str | None) -> Work:
        width, height, exactness = resolve_encoding(width, height, exactness, self.bundle.manifest)
        return Work(
            uses=(encoding_use(width, height),),
            exactness=exactness,
            picture_bytes=picture_bytes(width, height, 1),
        )
