"""What the stages of one run share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tintype.adapters.joined import NO_LORAS, FittedLoras
from tintype.arrays import Latents
from tintype.bundle import Bundle
from tintype.bundle.manifest import DECODER, DECODERS, ENCODERS
from tintype.families.base import Branch, Family, Tokens
from tintype.families.image_prompts import FittedImagePrompts, SeenPictures
from tintype.families.model import Model, Reading
from tintype.graphs.bound import BoundGraphs
from tintype.graphs.resident import ALL_RESIDENT, Graphs
from tintype.memory.mode import PACKED, Mode, Strips, Tiles
from tintype.memory.plan import ExecutionPlan, Plan
from tintype.prompt import EditedPrompts
from tintype.record.record import DealFacts, PolicyFacts, SafetyFacts
from tintype.request import ResolvedRequest
from tintype.sampling import Guidance, NoiseSource, Parametrization, Schedule, noise_source
from tintype.stages.clock import StageClock
from tintype.uses import DENOISE, GraphRef, GraphUse

if TYPE_CHECKING:
    from tintype.trust.coded_noise import NoiseCoder
    from tintype.trust.credentials import Signer
    from tintype.trust.marking import Marker
    from tintype.trust.memorisation import StepNorms
    from tintype.trust.safety import SafetyChecker
    from tintype.trust.trustmark import TrustMark

STRIPS_MIB = (32, 8, 4)  # of the decoder's maps, once memory runs out
# Sides of tiles in latent cells. They overlap by a quarter: from an eighth on, a seam is no steeper than the rest of
# the picture, and more only costs time.
TILES_CELLS = (64, 32, 16)


def decode_modes(plan: ExecutionPlan, decoder: str = DECODER) -> tuple[Mode, ...]:
    """What is tried in turn, from what the plan has on. decoder: its role."""
    first = plan.mode(decoder)
    if isinstance(first, Strips):  # it can be cut, or there would be no such plan
        return (first, *(Strips(mib) for mib in STRIPS_MIB if mib < first.mib))
    if isinstance(first, Tiles):
        return (first, *(Tiles(cells, cells // 4, first.mapped) for cells in TILES_CELLS if cells < first.cells))
    tiles = (Tiles(cells, cells // 4, mapped=first != PACKED) for cells in TILES_CELLS)
    return (first, *map(Strips, STRIPS_MIB), *tiles)


@dataclass(slots=True, kw_only=True)
class Context:
    """One run of one request."""

    request: ResolvedRequest
    bundle: Bundle
    family: Family
    parametrization: Parametrization
    branches: Sequence[Branch]
    prompts: EditedPrompts  # of the branches
    guidance: Guidance
    tokens: Tokens
    uses: tuple[GraphUse, ...]  # that are called, as its plan has it
    schedule: Schedule
    graphs: BoundGraphs
    clock: StageClock
    plan: Plan | None  # that was made for the budget
    evicts: bool  # there is a budget: what has no place in the plan is closed
    warnings: list[str]  # for the records: what the device made differently
    decode_modes: Sequence[Mode]  # tried in turn while memory runs out
    loras: FittedLoras = NO_LORAS
    image_prompts: FittedImagePrompts | None = None
    marker: Marker | None = None  # who marks the pictures; None: nobody
    coder: NoiseCoder | None = None  # who codes the starting noise; None: nobody
    trustmark: TrustMark | None = None  # the graphs that put a second mark beside it
    signer: Signer | None = None  # who signs their files; None: nobody
    policy: PolicyFacts | None = None  # that the words were held against
    checker: SafetyChecker | None = None  # that judges the pictures
    blocked: dict[int, SafetyFacts] = field(default_factory=dict)  # by index, the pictures that it blocks
    norms: dict[range, StepNorms] = field(default_factory=dict)  # by batch, of what its words change at each step
    # Of what is drawn before: a smaller picture, or the latents that this one's model, a refiner, goes on from.
    base: Context | None = None
    noises: dict[range, NoiseSource] = field(default_factory=dict)  # of a base's batches, each where it has come to
    only: int | None = None  # the one of the request's pictures that is made, in the batch where it belongs
    deal: DealFacts | None = None  # what a deck put into its prompt
    # By picture, the runs of those that have words of their own; they share what comes of them with this one.
    parts: dict[int, Context] = field(default_factory=dict)
    readings: dict[tuple[ResolvedRequest, bool], Reading] = field(default_factory=dict)  # of parts; True: as a refiner
    seen: SeenPictures | None = None  # of its image prompts, once they were looked at
    picture: Latents | None = None  # of the picture that the run begins with, once it is encoded
    channels: tuple[Latents, ...] | None = None  # what the model is told of it, once that is encoded; see `Start`
    features: Sequence[Sequence[Latents]] | None = None  # of T2I-Adapters' pictures, once they are made
    denoised: list[int] = field(default_factory=list)  # indices of the pictures that are, in the order of `latents`
    latents: list[Latents] = field(default_factory=list)  # of their batches, as the decoder takes them

    @classmethod
    def of(
        cls,
        model: Model,
        graphs: Graphs,
        request: ResolvedRequest,
        reading: Reading,
        plan: ExecutionPlan,
        *,
        planned: Plan | None,
        evicts: bool,
        base: Context | None = None,
        whole: Context | None = None,
    ) -> Context:
        """A run of a request, as the model reads it, within a plan, after that of its base.

        whole: the run of which it makes one picture; the two are one to who stops it or counts its seconds.
        """
        warnings = list[str]() if base is None else base.warnings
        before = whole if base is None else base
        if base is None:
            state = None if whole is None else whole.graphs.state
            bound = BoundGraphs(graphs, plan, request.exactness, warnings.append, state)
        elif graphs is base.graphs.all:  # one run, one stop
            bound = base.graphs.held_as(plan)
        else:
            bound = base.graphs.beside(graphs, plan)
        return cls(
            request=request,
            bundle=model.bundle,
            family=model.family,
            parametrization=model.parametrization,
            branches=reading.branches,
            prompts=reading.prompts,
            guidance=reading.guidance,
            tokens=reading.tokens,
            uses=tuple(use for use in reading.uses if not (use.unguided and plan.split_guidance)),
            schedule=reading.schedule,
            graphs=bound,
            clock=StageClock(lambda: bound.load_seconds) if before is None else before.clock,
            plan=planned,
            evicts=evicts,
            warnings=warnings,
            decode_modes=decode_modes(plan, DECODERS[request.decoder]),
            base=base,
            loras=reading.loras,
            image_prompts=reading.image_prompts,
        )

    def part(self, picture: int) -> Context:
        """The run that makes a picture."""
        return self.parts.get(picture, self)

    def take_over(self, before: Context) -> None:
        """What the part before it made of the pictures that both are given."""
        self.picture, self.channels, self.seen = before.picture, before.channels, before.seen
        self.features = before.features
        if self.base is not None and before.base is not None:
            self.base.take_over(before.base)

    @property
    def is_refining(self) -> bool:
        """Whether it goes on where another model's run stopped."""
        return self.base is not None and self.request.refiner_start is not None

    @property
    def denoiser(self) -> GraphRef:
        """The variant that the request asks for."""
        return self.use("denoiser").ref

    @property
    def decoder(self) -> GraphUse:
        """The use of the decoder that the request asks for."""
        return self.use(DECODERS[self.request.decoder])

    @property
    def encoder(self) -> GraphUse:
        """The same of the encoder."""
        return self.use(ENCODERS[self.request.encoder])

    @property
    def batches(self) -> list[range]:
        """Indices of the pictures that are denoised together."""
        return [batch for batch in self.request.batches if self.only is None or self.only in batch]

    def noise(self, batch: range) -> NoiseSource:
        """A batch's own, from its first number on; of a refiner's batch from where the base's sampler left it."""
        if self.base is not None and self.is_refining:
            return self.base.noises[batch]
        return noise_source(self.request.noise, self.request.seeds[batch.start : batch.stop])

    def use(self, role: str) -> GraphUse:
        """The use of a role's graph."""
        return next(use for use in self.uses if use.ref.role == role)

    def uses_for(self, pictures: int) -> tuple[GraphUse, ...]:
        """Every use, with so many pictures denoised together: the last batch may have fewer than the first."""
        return tuple(
            replace(use, dims={**use.dims, "batch": pictures * use.branches}) if use.phase == DENOISE else use
            for use in self.uses
        )

    def prepare(self) -> None:
        """Close what has no place in the plan, or begin what is not built yet."""
        graphs, plan, exactness = self.graphs.all, self.graphs.plan, self.request.exactness
        if self.evicts:
            wanted = [use for batch in self.batches for use in self.uses_for(len(batch))]
            graphs.evict_unplanned(wanted, exactness, plan)
        elif plan == ALL_RESIDENT:
            graphs.begin_builds(self.uses, exactness)
        graphs.close_beside(self.uses)

    def keep(self, pictures: Sequence[int], latents: Latents) -> None:
        """Of pictures that are denoised."""
        self.denoised.extend(pictures)
        self.latents.append(latents)

    def look_at_device(self) -> None:
        """Note what a device's memory holds. Arenas there give nothing back between runs, so that it is the most."""
        self.clock.device_bytes = max(self.clock.device_bytes, self.graphs.all.device_bytes_taken())
