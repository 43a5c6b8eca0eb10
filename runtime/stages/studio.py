"""A bundle on a device: what all its runs share, and how a request, or a record, becomes a run that has not begun."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tintype.arrays import Latents
from tintype.bundle import Bundle
from tintype.errors import RecordError, RequestError
from tintype.families.model import Model, Reading
from tintype.families.stable_diffusion import encoding_use
from tintype.graphs.measured import Planner, Work, picture_bytes
from tintype.graphs.resident import ALL_RESIDENT, Graphs
from tintype.image.encode import of_image, to_samples
from tintype.memory.budget import parse_memory
from tintype.memory.plan import ExecutionPlan, Plan
from tintype.record import Record
from tintype.record.latents_file import SavedLatents
from tintype.record.provenance import execution_plan_of
from tintype.request import InputFields, Request, ResolvedRequest, checks, demand_resolved, resolve, resolve_encoding
from tintype.stages.again import demand_home, demand_inputs, demand_kind, demand_promise, needs_inputs, request_of
from tintype.stages.context import Context
from tintype.stages.start import encode_picture
from tintype.trust.keys import maker_of, read_key
from tintype.trust.marking import Marker
from tintype.trust.pattern import PUBLIC_KEY

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.engine import Target


class Studio:
    """What `Pipeline` is made of."""

    def __init__(
        self,
        bundle: Bundle,
        target: Target,
        *,
        memory: str | int | None = None,
        threads: int | None = None,
        watermark_key: str | os.PathLike[str] | None = None,
    ) -> None:
        from tintype.engine import default_threads, most_threads

        if threads is not None:
            threads = checks.whole_number("threads", threads, 1, most_threads())
        self.model = Model.of(bundle)
        self.bundle, self.target = bundle, target
        self.memory = None if memory is None else parse_memory(memory)
        self._watermark_key = PUBLIC_KEY if watermark_key is None else read_key(watermark_key)
        self.graphs = Graphs(bundle, target, default_threads() if threads is None else threads)
        self.on_progress: Callable[[str], None] = lambda words: None  # what a plan takes its time for; set it
        self.planner = Planner(self.graphs, self.model.tokenizers, lambda words: self.on_progress(words))

    def resolve(self, request: Request) -> ResolvedRequest:
        """The request without gaps. Raises RequestError for what this bundle can't do."""
        return resolve(request, self.bundle.manifest)

    def work(self, request: ResolvedRequest, reading: Reading | None = None) -> Work:
        """What a plan for a request is made for. reading: of the request, where it was read before."""
        reading = self.model.read(request) if reading is None else reading
        return Work(
            uses=reading.uses,
            exactness=request.exactness,
            picture_bytes=picture_bytes(request.width, request.height, request.count) + reading.words_bytes,
        )

    def encoding(self, width: int | None, height: int | None, exactness: str | None) -> Work:
        """The same for turning a picture of that size into latents; None is the model's own."""
        width, height, exactness = resolve_encoding(width, height, exactness, self.bundle.manifest)
        return Work(
            uses=(encoding_use(width, height),), exactness=exactness, picture_bytes=picture_bytes(width, height, 1)
        )

    def plan_for(self, work: Work) -> Plan | None:
        """The plan that work is done by; None without a budget."""
        return None if self.memory is None else self.planner.planned(work, self.memory)

    def planned(self, request: ResolvedRequest) -> Plan | None:
        """The plan that a request is made by; None without a budget.

        Requests that use the same graphs share one while it fits what is free, and not much more has become free since.
        """
        return self.plan_for(self.work(request))

    def context(
        self, request: ResolvedRequest, plan: ExecutionPlan | None = None, base_plan: ExecutionPlan | None = None
    ) -> Context:
        """A run that has not begun. plan, base_plan: None is the one that the budget has."""
        self.graphs.demand_own_process()
        base = None if request.base is None else self.context(request.base, base_plan)
        reading = self.model.read(request)
        known = self.plan_for(self.work(request, reading)) if plan is None else None
        plan = plan or (ALL_RESIDENT if known is None else known.execution)
        evicts = self.memory is not None
        ctx = Context.of(self.model, self.graphs, request, reading, plan, planned=known, evicts=evicts, base=base)
        ctx.marker = self.marker if request.watermark else None
        return ctx

    @property
    def marker(self) -> Marker:
        """Who marks the pictures that are made here."""
        from tintype.engine import cache_folder

        return Marker(maker_of(cache_folder()), self._watermark_key)

    def context_again(self, record: Record, inputs: InputFields, *, anyway: bool) -> Context:
        """The run that makes the picture of a record again. Raises RecordError; see `Pipeline.reproduce`."""
        demand_kind(record, Record, "tintype.read_record")
        alike = record.made_with.target == self.target.name or self.target.is_host
        made_by = (execution_plan_of(record.made_with, base=base) for base in (False, True))
        ctx = self.context(self._request_of(record, inputs), *(plan if alike else ALL_RESIDENT for plan in made_by))
        ctx.only = record.picture
        if ctx.marker is not None:
            ctx.marker = ctx.marker.as_in(record.watermark)
        for run in filter(None, (ctx, ctx.base)):
            run.decode_modes = run.decode_modes[:1]
        if not anyway:
            demand_promise(ctx, record)
        return ctx

    def context_of_saved(
        self, saved: SavedLatents, inputs: InputFields, *, anyway: bool
    ) -> tuple[Context, tuple[str, ...]]:
        """The run that finishes saved latents, and why they belong elsewhere. Raises RecordError; see `resume`."""
        demand_kind(saved, SavedLatents, "tintype.read_latents")
        saved.check(self.bundle.manifest)
        first = saved.records[0]
        self._demand_sound(first)
        given = needs_inputs(first) or any(value is not None for value in inputs.values())
        request = self._request_of(first, inputs) if given else first.request
        ctx = self.context(request, *(execution_plan_of(first.made_with, base=base) for base in (False, True)))
        foreign: tuple[str, ...] = ()
        try:
            for record in saved.records:
                demand_home(ctx, record)
        except RecordError as error:
            if not anyway:
                raise
            foreign = error.reasons
        if self.memory is not None:
            ctx = self.context(request)
        ctx.keep([record.picture for record in saved.records], saved.latents)
        return ctx, foreign

    def build(self, request: ResolvedRequest) -> Iterator[tuple[str, Path]]:
        """Make the builds that a request needs, one after another, on the processor with each layer's kernels timed;
        yields the name of each graph and its folder. Requests from then on are drawn by them."""
        return self.graphs.build(self.model.uses(request), request.exactness)

    def encoded(self, picture: Image, exactness: str | None, warn: Callable[[str], None]) -> Latents:
        """See `Pipeline.encode_picture`."""
        if not hasattr(picture, "size") or not hasattr(picture, "convert"):
            raise RequestError(f"{type(picture).__name__} is no picture", fix="open it with Pillow: Image.open(FILE)")
        work = self.encoding(*picture.size, exactness)
        known = self.plan_for(work)
        plan = ALL_RESIDENT if known is None else known.execution
        if known is not None:
            self.graphs.evict_unplanned(work.uses, work.exactness, plan)
        graphs = self.graphs.within(plan, work.exactness, warn)
        return encode_picture(graphs, work.uses[0], to_samples(of_image(picture)), self.bundle.manifest)

    def _request_of(self, record: Record, inputs: InputFields) -> ResolvedRequest:
        """A record's request with what it began with. Raises RecordError where that is missing, or is another."""
        self._demand_sound(record)
        request = self.resolve(request_of(record, inputs))
        demand_inputs(record, request)
        return replace(request, image=record.request.image)  # a copy of the picture may have lost its own record

    def _demand_sound(self, record: Record) -> None:
        """RecordError where nobody could have asked this bundle for what a record says."""
        try:
            demand_resolved(record.request, self.bundle.manifest)
        except RequestError as error:
            raise RecordError(
                f"the record asks for what this bundle doesn't make: {error.message}",
                fix="give a file as tintype wrote it, and the bundle that made it",
            ) from None

    def close(self) -> None:
        """Close every graph. The pipeline may be used again; it then opens them again."""
        self.graphs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
