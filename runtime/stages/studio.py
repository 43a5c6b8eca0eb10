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
from tintype.graphs.measured import Planner, Work, picture_bytes
from tintype.graphs.resident import ALL_RESIDENT, Graphs
from tintype.image.encode import of_image, to_samples
from tintype.memory.budget import parse_memory
from tintype.memory.plan import ExecutionPlan, Plan
from tintype.record import Record
from tintype.record.latents_file import SavedLatents
from tintype.record.provenance import BASE, REFINER, execution_plan_of
from tintype.request import InputFields, Request, ResolvedRequest, checks, demand_resolved, resolve, resolve_encoding
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
from tintype.trust.certificates import OPERATOR, certificate_for
from tintype.trust.choices import File, Operator
from tintype.trust.credentials import Signer
from tintype.trust.keys import maker_of, read_key
from tintype.trust.marking import Marker
from tintype.trust.pattern import PUBLIC_KEY
from tintype.trust.wordings import demand_allowed

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.engine import Target
    from tintype.trust.coded_noise import CodedNoiseReading, NoiseCoder
    from tintype.trust.policy import Policy
    from tintype.trust.safety import SafetyChecker
    from tintype.trust.trustmark import TrustMark


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
        from tintype.engine import cache_folder, default_threads, most_threads

        if threads is not None:
            threads = checks.whole_number("threads", threads, 1, most_threads())
        for each in filter(None, (bundle, refiner)):
            demand_accepted(each, accepts=operator.accept_licence)
        self.model = Model.of(bundle)
        self.bundle, self.target = bundle, target
        self.memory = None if memory is None else parse_memory(memory)
        self._certificate = certificate_for(operator.credentials, cache_folder())
        if self._certificate is not None and (memory is not None or self._certificate.whose == OPERATOR):
            Signer(self._certificate).demand_sound()
        self._watermark_key = PUBLIC_KEY if operator.watermark_key is None else read_key(operator.watermark_key)
        self.policy = None if operator.policy is None else _policy_of(operator.policy)
        self.checker = None if operator.safety is None else _checker_of(operator.safety, bundle)
        self.trustmark = None if operator.trustmark is None else _trustmark_of(operator.trustmark)
        self.graphs = Graphs(bundle, target, default_threads() if threads is None else threads)
        self.on_progress: Callable[[str], None] = lambda words: None  # what a plan takes its time for; set it
        self.refiner = None if refiner is None else _refiner_of(bundle, refiner, target, memory, threads)
        if self.refiner is not None:
            self.refiner.policy = self.policy
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
        if request.clip_skip > manifest.clip_skips or (request.decoder != "full" and not manifest.has(request.decoder)):
            field = "clip_skip" if request.clip_skip > manifest.clip_skips else "decoder"
            raise RequestError(
                f"the refiner {self.refiner.bundle.name} can't do {field} {getattr(request, field)}",
                fix=f"leave {field} out",
            )
        return request

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

    def context(
        self,
        request: ResolvedRequest,
        plan: ExecutionPlan | None = None,
        base_plan: ExecutionPlan | None = None,
        refiner_plan: ExecutionPlan | None = None,
    ) -> Context:
        """A run that has not begun. plan, base_plan, refiner_plan: None is the one that the budget has."""
        self.graphs.demand_own_process()
        if self.refiner is not None and request.refiner_start is not None:
            self.refiner.model.tokenizers()  # before either plan is made: they stay, whoever draws
            run = self._own_context(request, plan, base_plan)
            ctx = self.refiner._own_context(request, refiner_plan, refines=run)
        else:
            ctx = self._own_context(request, plan, base_plan)
        ctx.marker = self.marker if request.watermark else None
        ctx.trustmark = self.trustmark if request.watermark else None
        ctx.coder = self._coder() if request.code_noise else None
        ctx.signer = None if self._certificate is None else Signer(self._certificate, request.inputs.file)
        ctx.policy = None if self.policy is None else self.policy.facts
        ctx.checker = self.checker
        return ctx

    def _own_context(
        self,
        request: ResolvedRequest,
        plan: ExecutionPlan | None,
        base_plan: ExecutionPlan | None = None,
        *,
        refines: Context | None = None,
    ) -> Context:
        """The part of a run that is this bundle's. refines: what it goes on from."""
        base = refines if request.base is None else self.context(request.base, base_plan)
        reading = self.model.read(request, refines=refines is not None)
        words = reading.branches, reading.prompts
        about_words = [] if self.policy is None else demand_allowed(self.policy, request, *words)
        known = self.plan_for(self.work(request, reading)) if plan is None else None
        plan = plan or (ALL_RESIDENT if known is None else known.execution)
        evicts = self.memory is not None
        ctx = Context.of(self.model, self.graphs, request, reading, plan, planned=known, evicts=evicts, base=base)
        ctx.warnings += about_words
        return ctx

    @property
    def marker(self) -> Marker:
        """Who marks the pictures that are made here."""
        from tintype.engine import cache_folder

        return Marker(maker_of(cache_folder()), self._watermark_key)

    def _coder(self) -> NoiseCoder:
        from tintype.trust.coded_noise import NoiseCoder  # most noise is as it was drawn

        return NoiseCoder(self.marker.maker, self._watermark_key)

    def context_again(self, record: Record, inputs: InputFields, *, anyway: bool) -> Context:
        """The run that makes the picture of a record again. Raises RecordError; see `Pipeline.reproduce`."""
        demand_kind(record, Record, "tintype.read_record")
        alike = record.made_with.target == self.target.name or self.target.is_host
        made_by = (execution_plan_of(record.made_with, part) for part in ("", BASE, REFINER))
        ctx = self.context(self._request_of(record, inputs), *(plan if alike else ALL_RESIDENT for plan in made_by))
        ctx.only = record.picture
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
        self._demand_sound(first)
        demand_one_wording(saved.records)
        given = needs_inputs(first) or any(value is not None for value in inputs.values())
        request = self._request_of(first, inputs) if given else self._refined_as(first, first.request)
        ctx = self.context(request, *(execution_plan_of(first.made_with, part) for part in ("", BASE, REFINER)))
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
        ctx.warnings += about_policy(ctx.policy, first)
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

    def read_coded_noise(self, picture: Image, keys: Sequence[bytes] = (PUBLIC_KEY,)) -> CodedNoiseReading:
        """What the noise says that a picture seems to begin with, if this model drew it.

        keys: that it may be coded by. Nothing is found in a picture that is too small, or of a size that the model
        doesn't make. Raises RequestError for a model that draws from pictures, and as `generate` does.
        """
        from tintype.request.request import LEAST_CODED_CELLS
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


def _policy_of(named: File) -> Policy:
    from tintype.trust.policy import read_policy  # most have none, and start without it

    return read_policy(named)


def _checker_of(named: File, bundle: Bundle) -> SafetyChecker:
    from tintype.trust.safety import open_checker

    return open_checker(named, bundle)


def _trustmark_of(folder: File) -> TrustMark:
    from tintype.trust.trustmark import open_trustmark

    return open_trustmark(folder)
