"""A bundle on a device: what all its runs share, and how a request, or a record, becomes a run that has not begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tintype.arrays import Latents
from tintype.bundle import Bundle
from tintype.bundle.licence import demand_accepted
from tintype.errors import RecordError, RequestError
from tintype.families.model import Model, Reading
from tintype.families.stable_diffusion import encoding_use
from tintype.graphs.bound import BoundGraphs
from tintype.graphs.measured import Planner, Work, picture_bytes
from tintype.graphs.resident import ALL_RESIDENT, Graphs
from tintype.image.encode import of_image, to_samples
from tintype.memory.budget import parse_memory
from tintype.memory.plan import ExecutionPlan, Plan
from tintype.record import Record
from tintype.record.latents_file import SavedLatents
from tintype.record.provenance import BASE, REFINER, execution_plan_of
from tintype.record.record import DealFacts
from tintype.request import InputFields, Request, ResolvedRequest, checks, demand_resolved, resolve, resolve_encoding
from tintype.request.embeddings import encoder_widths
from tintype.stages.adapters import about_adapters
from tintype.stages.again import (
    about_policy,
    demand_home,
    demand_inputs,
    demand_kind,
    demand_one_wording,
    demand_promise,
    needs_inputs,
    request_of,
)
from tintype.stages.context import Context
from tintype.stages.start import encode_picture
from tintype.trust.choices import Operator
from tintype.trust.chosen import Chosen
from tintype.trust.pattern import PUBLIC_KEY
from tintype.trust.wordings import demand_allowed

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.engine import Target
    from tintype.trust.coded_noise import CodedNoiseReading
    from tintype.trust.marking import Marker


NOBODY = Operator()  # who decided nothing
REFINER_START = 0.8  # as XL's authors have it: the share of noise levels that its refiner never saw


class Studio:
    """What `Pipeline` is made of."""

    def __init__(
        self,
        bundle: Bundle,
        target: Target,
        *,
        memory: str | int | None = None,
        threads: int | None = None,
        refiner: Bundle | None = None,
        operator: Operator = NOBODY,
    ) -> None:
        """refiner: the bundle that goes on where this one stops, on the same device and within the same budget."""
        from tintype.engine import default_threads, most_threads

        if threads is not None:
            threads = checks.whole_number("threads", threads, 1, most_threads())
        for each in filter(None, (bundle, refiner)):
            demand_accepted(each, accepts=operator.accept_licence)
        self._accepts, self.model = operator.accept_licence, Model.of(bundle)
        self.bundle, self.target = bundle, target
        self.memory = None if memory is None else parse_memory(memory)
        self.chosen = Chosen.of(operator, bundle, is_planned=memory is not None)
        self.graphs = Graphs(bundle, target, default_threads() if threads is None else threads)
        self.on_progress: Callable[[str], None] = lambda words: None  # what a plan takes its time for; set it
        self.refiner = None if refiner is None else _refiner_of(bundle, refiner, target, memory, threads)
        if self.refiner is not None:
            self.refiner.chosen = replace(self.refiner.chosen, policy=self.chosen.policy)
            self.refiner.on_progress = lambda words: self.on_progress(words)
        self.planner = Planner(self.graphs, self.model.tokenizers, lambda words: self.on_progress(words))

    def resolve(self, request: Request) -> ResolvedRequest:
        """The request without gaps. Raises RequestError for what this bundle can't do."""
        if self.refiner is not None and request.refiner_start is None:
            request = replace(request, refiner_start=REFINER_START)
        return self._fitting(resolve(request, self.bundle.manifest))

    def _fitting(self, request: ResolvedRequest) -> ResolvedRequest:
        """The same, if the refiner can do it too. Raises RequestError."""
        if request.refiner_start is None:
            return request
        if self.refiner is None:
            raise RequestError(
                "refiner_start is given without a refiner", fix="load one: refiner=, or --refiner BUNDLE"
            )
        manifest = self.refiner.bundle.manifest
        for name in ("width", "height"):
            checks.side(name, getattr(request, name), manifest.size)
        words, widths = request.inputs.words, encoder_widths(manifest).items()
        if words is not None and any(width not in (None, words.width(role)) for role, width in widths):
            wrong = f"the refiner {self.refiner.bundle.name} takes no embeddings of this model's"
            raise RequestError(wrong, fix="leave the embeddings out, or the refiner")
        if request.clip_skip > manifest.clip_skips or (request.decoder != "full" and not manifest.has(request.decoder)):
            field = "clip_skip" if request.clip_skip > manifest.clip_skips else "decoder"
            raise RequestError(
                f"the refiner {self.refiner.bundle.name} can't do {field} {getattr(request, field)}",
                fix=f"leave {field} out",
            )
        return request

    def read(self, request: ResolvedRequest, *, refines: bool = False) -> Reading:
        """The request as the model reads it; what stands beside the model is then known. Raises LicenceError, for that,
        too."""
        for other in request.inputs.beside:
            demand_accepted(other, accepts=self._accepts)
            self.graphs.add(other)
        return self.model.read(request, refines=refines)

    def work(self, request: ResolvedRequest, reading: Reading | None = None) -> Work:
        """What a plan for a request is made for. reading: of the request, where it was read before."""
        reading = self.read(request) if reading is None else reading
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

    def plan_whole(self, request: ResolvedRequest, *, build: bool) -> Plan:
        """The plan of a request; with a refiner, of whichever of the two takes more memory: they have it in turn."""
        plan = self.planner.plan(self.work(request), self.memory, build=build)
        if self.refiner is None or request.refiner_start is None:
            return plan
        refined = self.refiner.work(request, self.refiner.model.read(request, refines=True))
        other = self.refiner.planner.plan(refined, self.memory, build=build)
        return max(plan, other, key=lambda each: each.most_bytes)

    def plan_for(self, work: Work) -> Plan | None:
        """The plan that work is done by; None without a budget."""
        return None if self.memory is None else self.planner.planned(work, self.memory)

    def planned(self, request: ResolvedRequest) -> Plan | None:
        """The plan that a request is made by; None without a budget.

        Requests that use the same graphs share one while it fits what is free, and not much more has become free since.
        """
        return self.plan_for(self.work(request))

    def context_for(self, request: ResolvedRequest) -> Context:
        """The run of what somebody asks for; where the operator's deck deals words, each picture has a part of its own.

        Raises RequestError where they are dealt to pictures that are to be denoised together.
        """
        deck = self.chosen.deck
        dealings = () if deck is None else deck.deal(request)
        if dealings and request.batch_size > 1:
            raise RequestError(
                f"batch_size is {request.batch_size}, and each picture is dealt words of its own, with which it is "
                "denoised alone",
                fix="leave batch_size out",
            )
        ctx = self.context(request)
        for picture, dealing in enumerate(dealings):
            self._add_part(ctx, picture, dealing.prompt, dealing.facts)
        return ctx

    def _add_part(
        self, whole: Context, picture: int, prompt: str, deal: DealFacts | None, *plans: ExecutionPlan | None
    ) -> None:
        """Let one of a run's pictures be drawn by a prompt of its own. plans: as `context` has them."""
        request = replace(whole.request, prompt=checks.words("prompt", prompt))
        part = whole.parts[picture] = self.context(request, *plans, whole=whole)
        part.only, part.deal = picture, deal
        part.denoised, part.latents, part.blocked = whole.denoised, whole.latents, whole.blocked

    def context(
        self,
        request: ResolvedRequest,
        plan: ExecutionPlan | None = None,
        base_plan: ExecutionPlan | None = None,
        refiner_plan: ExecutionPlan | None = None,
        *,
        whole: Context | None = None,
    ) -> Context:
        """A run that has not begun. plan, base_plan, refiner_plan: None is the one that the budget has.

        whole: the run of which it is a part.
        """
        self.graphs.demand_own_process()
        if self.refiner is not None and request.refiner_start is not None:
            self.refiner.model.tokenizers()  # before either plan is made: they stay, whoever draws
            run = self._own_context(request, plan, base_plan, whole=whole)
            ctx = self.refiner._own_context(request, refiner_plan, refines=run, whole=whole)
        else:
            ctx = self._own_context(request, plan, base_plan, whole=whole)
        ctx.marker = self.marker if request.watermark else None
        ctx.trustmark = self.chosen.trustmark if request.watermark else None
        ctx.coder = self.chosen.coder() if request.code_noise else None
        ctx.signer = self.chosen.signer(request.inputs.file)
        ctx.policy = None if self.chosen.policy is None else self.chosen.policy.facts
        ctx.checker = self.chosen.checker
        return ctx

    def _own_context(
        self,
        request: ResolvedRequest,
        plan: ExecutionPlan | None,
        base_plan: ExecutionPlan | None = None,
        *,
        refines: Context | None = None,
        whole: Context | None = None,
    ) -> Context:
        """The part of a run that is this bundle's. refines: what it goes on from."""
        base = refines if request.base is None else self.context(request.base, base_plan, whole=whole)
        key, known_readings = (request, refines is not None), {} if whole is None else whole.readings
        reading = known_readings.get(key) or self.read(request, refines=key[1])
        known_readings[key] = reading
        words = reading.branches, reading.prompts
        policy = self.chosen.policy
        about_words = [] if policy is None else demand_allowed(policy, request, *words)
        known = self.plan_for(self.work(request, reading)) if plan is None else None
        plan = plan or (ALL_RESIDENT if known is None else known.execution)
        evicts = self.memory is not None
        ctx = Context.of(
            self.model, self.graphs, request, reading, plan, planned=known, evicts=evicts, base=base, whole=whole
        )
        ctx.warnings += [*about_words, *about_adapters(request)]
        return ctx

    @property
    def marker(self) -> Marker:
        """Who marks the pictures that are made here."""
        return self.chosen.marker()

    def context_again(self, record: Record, inputs: InputFields, *, anyway: bool) -> Context:
        """The run that makes the picture of a record again. Raises RecordError; see `Pipeline.reproduce`."""
        demand_kind(record, Record, "tintype.read_record")
        record.demand_whole()
        alike = record.made_with.target == self.target.name or self.target.is_host
        made_by = (execution_plan_of(record.made_with, part) for part in ("", BASE, REFINER))
        ctx = self.context(self._request_of(record, inputs), *(plan if alike else ALL_RESIDENT for plan in made_by))
        ctx.only, ctx.deal = record.picture, record.deal
        ctx.warnings += about_policy(ctx.policy, record)
        if ctx.marker is not None:
            ctx.marker = ctx.marker.as_in(record.watermark, record.trustmark)
        if ctx.coder is not None:
            ctx.coder = ctx.coder.as_in(record.coded_noise)
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
        first.demand_whole()
        self._demand_sound(first)
        demand_one_wording(saved.records)
        given = needs_inputs(first.request) or any(value is not None for value in inputs.values())
        request = self._request_of(first, inputs) if given else self._refined_as(first, first.request)
        plans = (execution_plan_of(first.made_with, part) for part in ("", BASE, REFINER))
        ctx = self._context_of_saved(saved, request, *plans)
        foreign: tuple[str, ...] = ()
        try:
            for record in saved.records:
                demand_home(ctx.part(record.picture), record)
        except RecordError as error:
            if not anyway:
                raise
            foreign = error.reasons
        if self.memory is not None:
            ctx = self._context_of_saved(saved, request)
        for record in saved.records if ctx.parts else saved.records[:1]:
            ctx.part(record.picture).warnings += about_policy(ctx.policy, record)
        ctx.keep([record.picture for record in saved.records], saved.latents)
        return ctx, foreign

    def _context_of_saved(self, saved: SavedLatents, request: ResolvedRequest, *plans: ExecutionPlan) -> Context:
        """With a part for each picture that was dealt words, which a policy is asked about as well."""
        ctx = self.context(request, *plans)
        for record in saved.records if any(record.deal for record in saved.records) else ():
            self._demand_sound(record)
            self._add_part(ctx, record.picture, record.request.prompt, record.deal, *plans)
        return ctx

    def build(self, request: ResolvedRequest) -> Iterator[tuple[str, Path]]:
        """Make the builds that a request needs, one after another, on the processor with each layer's kernels timed;
        yields the name of each graph, a refiner's as records have it, and its folder. Requests from then on are drawn
        by them."""
        yield from self.graphs.build(self.read(request).uses, request.exactness)
        if self.refiner is not None and request.refiner_start is not None:
            uses = self.refiner.model.read(request, refines=True).uses
            for name, folder in self.refiner.graphs.build(uses, request.exactness):
                yield f"{REFINER}{name}", folder

    def encoded(self, picture: Image, exactness: str | None, warn: Callable[[str], None]) -> Latents:
        """See `Pipeline.encode_picture`."""
        if not hasattr(picture, "size") or not hasattr(picture, "convert"):
            raise RequestError(f"{type(picture).__name__} is no picture", fix="open it with Pillow: Image.open(FILE)")
        work = self.encoding(*picture.size, exactness)
        known = self.plan_for(work)
        plan = ALL_RESIDENT if known is None else known.execution
        if known is not None:
            self.graphs.evict_unplanned(work.uses, work.exactness, plan)
        graphs = BoundGraphs(self.graphs, plan, work.exactness, warn)
        return encode_picture(graphs, work.uses[0], to_samples(of_image(picture)), self.bundle.manifest)

    def read_coded_noise(self, picture: Image, keys: Sequence[bytes] = (PUBLIC_KEY,)) -> CodedNoiseReading:
        """What the noise says that a picture seems to begin with, if this model drew it.

        keys: that it may be coded by. Nothing is found in a picture that is too small, or of a size that the model
        doesn't make. Raises RequestError for a model that draws from pictures, and as `generate` does.
        """
        from tintype.request.code_noise import LEAST_CODED_CELLS
        from tintype.stages.invert import inversion_request, starting_noise
        from tintype.trust.coded_noise import NOT_FOUND, read

        manifest, (width, height) = self.bundle.manifest, picture.size
        request = inversion_request(picture, manifest)
        if not manifest.size.allows(width, height) or manifest.latent_numbers(width, height) < LEAST_CODED_CELLS:
            return NOT_FOUND
        return read(starting_noise(self.context(self.resolve(request))), keys)

    def _request_of(self, record: Record, inputs: InputFields) -> ResolvedRequest:
        """A record's request with what it began with. Raises RecordError where that is missing, or is another."""
        self._demand_sound(record)
        request = self._refined_as(record, resolve(request_of(record, inputs), self.bundle.manifest))
        demand_inputs(record, request)
        return replace(request, image=record.request.image)  # a copy of the picture may have lost its own record

    def _refined_as(self, record: Record, request: ResolvedRequest) -> ResolvedRequest:
        """The request of a record. Raises RecordError where it needs a refiner that isn't there, or can't do it."""
        if request.refiner_start is not None and self.refiner is None:
            name = record.made_with.refiner.bundle if record.made_with.refiner else "another bundle"
            raise RecordError(
                f"the record's picture was refined by {name}", fix="give it: load(..., refiner=), or --refiner BUNDLE"
            )
        return self._fitting(request)

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
        if self.refiner is not None:
            self.refiner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refiner_of(
    bundle: Bundle, refiner: Bundle, target: Target, memory: str | int | None, threads: int | None
) -> Studio:
    """The refiner of a bundle. Raises RequestError for one that can't go on from its latents."""
    for name in ("latent_channels", "vae_scale_factor", "scaling_factor", "shift_factor"):
        ours, theirs = getattr(bundle.manifest, name), getattr(refiner.manifest, name)
        if ours != theirs:
            raise RequestError(
                f"{refiner.name} can't refine what {bundle.name} draws: their {name} are {theirs:g} and {ours:g}",
                fix="give a refiner of the same family, such as Stable Diffusion XL's for XL",
            )
    if refiner.manifest.is_inpainting or refiner.manifest.is_editing:
        raise RequestError(
            f"{refiner.name} takes a picture beside the noise and can't refine",
            fix="give a refiner, or a model that draws from words",
        )
    return Studio(refiner, target, memory=memory, threads=threads)
