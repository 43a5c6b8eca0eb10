"""A bundle as its family reads it: prompts to tokens, requests to schedules and uses. Nothing of it is a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tintype.adapters.forms import Floats
from tintype.adapters.joined import NO_LORAS, FittedLoras, Layers, Pairs, fit
from tintype.adapters.names import DENOISER
from tintype.bounds import MAX_SCHEDULER_BYTES
from tintype.bundle import Bundle, Manifest, TokenizerFacts
from tintype.bundle.manifest import FAST, FULL
from tintype.bundle.verify import read_json
from tintype.errors import BundleError, RequestError, near_names
from tintype.families.base import EMBEDDINGS, Branch, Family, Tokens, tokenize
from tintype.families.control import control_bytes
from tintype.families.image_prompts import FittedImagePrompts, fitted_image_prompts
from tintype.families.registry import family_of
from tintype.families.t2i_adapter import feature_bytes
from tintype.prompt import AddedWords, EditedPrompts, PromptTokenizer, StepCount, edited_prompts
from tintype.request import ResolvedRequest
from tintype.request.inputs import Inputs
from tintype.sampling import Guidance, Parametrization, Schedule, SchedulerConfig, make_schedule
from tintype.uses import DECODE, GraphRef, GraphUse


@dataclass(frozen=True, slots=True)
class Reading:
    """A request as a family reads it."""

    branches: tuple[Branch, ...]
    prompts: EditedPrompts  # of the branches
    guidance: Guidance
    tokens: Tokens
    schedule: Schedule
    uses: tuple[GraphUse, ...]
    words_bytes: int  # of the embeddings of all wordings, of those that one call takes, and of what controls it
    loras: FittedLoras = NO_LORAS
    image_prompts: FittedImagePrompts | None = None


@dataclass(slots=True)
class Model:
    """Open it with `Model.of`."""

    bundle: Bundle
    family: Family
    parametrization: Parametrization
    scheduler: SchedulerConfig
    _tokenizers: dict[str, PromptTokenizer] = field(default_factory=dict)
    _layers: dict[GraphRef, Layers] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> Model:
        """Raises BundleError when it lacks a graph, predicts what its family doesn't, or has no scheduler's config."""
        for role in bundle.manifest.graph_names:
            bundle.graph(role)
        family = family_of(bundle.manifest.family)
        scheduler = SchedulerConfig.from_json(read_json(bundle.folder, bundle.manifest.scheduler, MAX_SCHEDULER_BYTES))
        return cls(bundle, family, _parametrization(bundle.manifest, family), scheduler)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def branches(self, request: ResolvedRequest) -> tuple[Branch, ...]:
        return self.family.branches(request, self.manifest)

    def read(self, request: ResolvedRequest, *, refines: bool = False) -> Reading:
        """refines: as the model that goes on where another one stops, which is the request's refiner.

        Raises RequestError for a prompt that is too long, and where its sampler or guidance can't do as asked.
        """
        if refines:
            inputs = Inputs(words=request.inputs.words)
            request = replace(request, image=None, control=(), ip_adapter=None, image_prompts=(), inputs=inputs)
        branches = self.branches(request)
        guidance = self.family.guidance(request, self.manifest)
        schedule = make_schedule(
            self.scheduler,
            request.sampler,
            request.num_inference_steps,
            request.sigmas,
            eta=request.eta,
            strength=request.strength,
            denoising_start=request.refiner_start if refines else None,
            family=self.manifest.family,
        )
        hands_over = request.refiner_start is not None and not refines
        if hands_over:
            schedule = _handing_over(schedule, request.refiner_start or 0.0)
        prompts = edited_prompts([branch.wording for branch in branches], _step_count(request, schedule))
        if request.gate_start is not None:
            _demand_heard(prompts, guidance, schedule, request.gate_start)
        tokens = tokenize(self.tokenizers(request.inputs.words), prompts.wordings)
        uses, loras = self.family.uses(request, self.manifest, tokens, schedule), self.fitted(request)
        if loras.by_role:
            uses = tuple(replace(use, low_rank=loras.low_rank(use.ref.role)) for use in uses)
        pictures = self.image_prompts(request)
        if pictures is not None:
            tokens_of = {DENOISER: pictures.tokens}
            looks = (pictures.use(branches),)
            uses = (*looks, *(replace(use, image_tokens=tokens_of.get(use.ref.role)) for use in uses))
        if hands_over:  # its latents are never decoded
            uses = tuple(use for use in uses if use.phase != DECODE)
        rows = len(prompts.wordings) + len(branches) * len(request.batches[0])
        words_bytes = rows * tokens.length * self._embedding_bytes()
        cells = {name: getattr(request, name) // self.manifest.vae_scale_factor for name in ("height", "width")}
        called = len(branches) * len(request.batches[0])
        words_bytes += control_bytes(request, called, cells) + feature_bytes(request, schedule, called)
        words_bytes += 0 if pictures is None else pictures.held_bytes(called)
        return Reading(branches, prompts, guidance, tokens, schedule, uses, words_bytes, loras, pictures)

    def uses(self, request: ResolvedRequest) -> tuple[GraphUse, ...]:
        """The graphs that a request uses; see `Family.uses`."""
        return self.read(request).uses

    def fitted(self, request: ResolvedRequest) -> FittedLoras:
        """A request's LoRAs on this bundle's graphs. Raises LoraError."""
        if not request.inputs.loras:
            return NO_LORAS
        roles = [role for role in self.manifest.graph_names if role == DENOISER or role in self.manifest.text_encoders]

        def ref_of(role: str) -> GraphRef:
            return GraphRef(role, FAST if request.fast and role == DENOISER else FULL)

        return fit(
            request.inputs.loras,
            roles,
            lambda role: self._layers_of(ref_of(role)),
            lambda role, facts, pairs: self._lengths(ref_of(role), facts, pairs),
            self.bundle.name,
        )

    def _lengths(self, ref: GraphRef, facts: Sequence[str], pairs: Pairs) -> list[Floats]:
        from tintype.engine import lengths_with

        return lengths_with(self.bundle, ref, facts, pairs)

    def image_prompts(self, request: ResolvedRequest) -> FittedImagePrompts | None:
        """A request's image prompts on this bundle's denoiser. Raises RequestError."""
        if request.inputs.adapter is None:
            return None
        layers = self._layers_of(GraphRef(DENOISER, FAST if request.fast else FULL))
        return fitted_image_prompts(request, layers.shapes, self.bundle.name)

    def _layers_of(self, ref: GraphRef) -> Layers:
        from tintype.engine import adaptable_shapes

        if ref not in self._layers:
            self._layers[ref] = adaptable_shapes(self.bundle, ref)
        return self._layers[ref]

    def _embedding_bytes(self) -> int:
        """Of one token, as the denoiser takes it; 0 where its graph leaves that open."""
        ports = {port.name: port for port in self.bundle.graph("denoiser").inputs}
        width = ports[EMBEDDINGS].shape[-1]
        return width * np.dtype(np.float32).itemsize if isinstance(width, int) else 0

    def tokenizers(self, words: AddedWords | None = None) -> dict[str, PromptTokenizer]:
        """By text encoder, opened when they are first asked for. words: that they know beside their own."""
        return {
            role: self._tokenizer(facts).with_added({} if words is None else words.ids(role))
            for role, facts in self.manifest.text_encoders.items()
        }

    def _tokenizer(self, facts: TokenizerFacts) -> PromptTokenizer:
        if facts.file not in self._tokenizers:
            self._tokenizers[facts.file] = PromptTokenizer.open(
                self.bundle.path(facts.file),
                max_length=facts.max_length,
                bos_token_id=facts.bos_token_id,
                eos_token_id=facts.eos_token_id,
                pad_token_id=facts.pad_token_id,
            )
        return self._tokenizers[facts.file]


def _handing_over(schedule: Schedule, start: float) -> Schedule:
    """The schedule as far as a refiner's start. RequestError where that leaves either of the two nothing to do."""
    steps = schedule.steps_before(start)
    if not 0 < steps < schedule.total:
        who = "the refiner" if steps else "the model before the refiner"
        raise RequestError(
            f"a refiner_start of {start:g} of {schedule.total} steps leaves no step to {who}",
            fix="give a share between, such as 0.8, or more steps",
        )
    return replace(schedule, stops_after=steps)


def _demand_heard(prompts: EditedPrompts, guidance: Guidance, schedule: Schedule, gate: float) -> None:
    """RequestError where words come when no cross-attention looks at them any more."""
    gated = [index for index in range(schedule.steps_taken) if schedule.progress(index) >= gate]
    branches = guidance.active(schedule.progress(gated[0])) if gated else ()
    if len({prompts.at(branches, index) for index in (max(0, gated[0] - 1), *gated)} if gated else ()) > 1:
        raise RequestError(
            f"the prompt changes where a gate_start of {gate:g} has words do nothing any more",
            fix="give a larger gate_start, let the words change earlier, or leave gate_start out",
        )


def _step_count(request: ResolvedRequest, schedule: Schedule) -> StepCount:
    """The steps that a prompt's numbers count; those of an enlarged picture all count, as A1111 takes all of them."""
    asked, taken = request.num_inference_steps, schedule.total
    if request.hires is None:
        return StepCount(asked, taken)
    return StepCount(taken, taken, steps_before=asked, pictures_before=1)


def _parametrization(manifest: Manifest, family: Family) -> Parametrization:
    kind, known = manifest.prediction_type, family.parametrizations
    if kind not in known:
        raise BundleError(f"no model of the family {manifest.family} predicts {kind!r}", fix=near_names(kind, known))
    return known[kind]
