"""A bundle as its family reads it: prompts to tokens, requests to schedules and uses. Nothing of it is a graph."""

from __future__ import annotations

from dataclasses import dataclass, field

from tintype.bounds import MAX_SCHEDULER_BYTES
from tintype.bundle import Bundle, Manifest, TokenizerFacts
from tintype.bundle.verify import read_json
from tintype.errors import BundleError, near_names
from tintype.families.base import Branch, Family, Tokens, tokenize
from tintype.families.registry import family_of
from tintype.prompt import PromptTokenizer
from tintype.request import ResolvedRequest
from tintype.sampling import Guidance, Parametrization, Schedule, SchedulerConfig, make_schedule
from tintype.uses import GraphUse


@dataclass(frozen=True, slots=True)
class Reading:
    """A request as a family reads it."""

    branches: tuple[Branch, ...]
    guidance: Guidance
    tokens: Tokens
    schedule: Schedule
    uses: tuple[GraphUse, ...]


@dataclass(slots=True)
class Model:
    """Open it with `Model.of`."""

    bundle: Bundle
    family: Family
    parametrization: Parametrization
    scheduler: SchedulerConfig
    _tokenizers: dict[str, PromptTokenizer] = field(default_factory=dict)

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

    def read(self, request: ResolvedRequest) -> Reading:
        """Raises RequestError for a prompt that is too long, and where its sampler or guidance can't do as asked."""
        branches = self.branches(request)
        guidance = self.family.guidance(request, self.manifest)
        tokens = tokenize(self.tokenizers(), branches)
        schedule = make_schedule(
            self.scheduler,
            request.sampler,
            request.num_inference_steps,
            request.sigmas,
            eta=request.eta,
            strength=request.strength,
            family=self.manifest.family,
        )
        uses = self.family.uses(request, self.manifest, tokens, schedule)
        return Reading(branches, guidance, tokens, schedule, uses)

    def uses(self, request: ResolvedRequest) -> tuple[GraphUse, ...]:
        """The graphs that a request uses; see `Family.uses`."""
        return self.read(request).uses

    def tokenizers(self) -> dict[str, PromptTokenizer]:
        """By text encoder, opened when they are first asked for."""
        return {role: self._tokenizer(facts) for role, facts in self.manifest.text_encoders.items()}

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


def _parametrization(manifest: Manifest, family: Family) -> Parametrization:
    kind, known = manifest.prediction_type, family.parametrizations
    if kind not in known:
        raise BundleError(f"no model of the family {manifest.family} predicts {kind!r}", fix=near_names(kind, known))
    return known[kind]
