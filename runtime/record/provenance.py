"""What besides the request decides the bytes of a picture: bundle, versions, device, builds and how they are held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tintype.bundle.manifest import DECODERS
from tintype.errors import RecordError
from tintype.memory.mode import Mode, Tiles, parse_mode
from tintype.memory.plan import ExecutionPlan

# Before the name of a graph that drew the smaller picture, and of one of the refiner's; others have nothing there.
BASE, REFINER = "base ", "refiner "
TIMED, BY_PRIORS = "timed", "priors"  # how a build's kernels were chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinerFacts:
    """The bundle that went on where the first one stopped; its builds are among the picture's, as its modes are."""

    bundle: str  # name
    bundle_hash: str
    precision: str
    split_guidance: bool = False
    licence: str | None = None  # as its card calls it


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What besides the request decides the bytes of a picture."""

    tintype: str  # version
    onnxruntime: str  # version
    bundle: str  # name
    bundle_hash: str
    precision: str  # of the denoiser's weights
    target: str
    builds: Mapping[str, str]  # role -> build key: bundle, lowering, ONNX Runtime and processor in one digest
    threads: int
    modes: Mapping[str, str] = field(default_factory=dict)  # role -> how its graph was held where it wasn't packed
    split_guidance: bool = False
    kernels: Mapping[str, str] = field(default_factory=dict)  # role -> how its build's were chosen: timed, or by priors
    refiner: RefinerFacts | None = None
    licence: str | None = None  # of the bundle, as its card calls it; None: by a tintype that kept none


def with_base(here: Provenance, base: Provenance) -> Provenance:
    """The same with what decides the bytes of a smaller picture that was drawn before."""
    return _with_part(here, base, BASE)


def with_refiner(here: Provenance, refiner: Provenance) -> Provenance:
    """The same with what decides what a refiner made of it."""
    facts = RefinerFacts(
        bundle=refiner.bundle,
        bundle_hash=refiner.bundle_hash,
        precision=refiner.precision,
        split_guidance=refiner.split_guidance,
        licence=refiner.licence,
    )
    return replace(_with_part(here, refiner, REFINER), refiner=facts)


def _with_part(here: Provenance, other: Provenance, mark: str) -> Provenance:
    def named(facts: Mapping[str, str]) -> dict[str, str]:
        return {f"{mark}{name}": fact for name, fact in facts.items()}

    return replace(
        here,
        builds={**here.builds, **named(other.builds)},
        modes={**here.modes, **named(other.modes)},
        kernels={**here.kernels, **named(other.kernels)},
    )


def execution_plan_of(made_with: Provenance, part: str = "") -> ExecutionPlan:
    """How graphs were held when a picture was made: part of what decides its bytes.

    part: BASE, when the smaller picture before it was made; REFINER, when the refiner went on.

    Raises RecordError when it names a way that isn't known.
    """
    try:
        modes = {role: _mode_of(role, words) for role, words in _of(made_with.modes, part).items()}
    except ValueError as error:
        raise RecordError(f"the record cannot be read: {error}", fix="upgrade tintype") from None
    timed = {role: how == TIMED for role, how in _of(made_with.kernels, part).items()}
    split = made_with.refiner.split_guidance if part == REFINER and made_with.refiner else made_with.split_guidance
    return ExecutionPlan(modes=modes, split_guidance=split, keep=not modes, timed=timed)


def _mode_of(role: str, words: str) -> Mode:
    mode = parse_mode(words)
    if isinstance(mode, Tiles) and role not in DECODERS.values():
        raise ValueError(f"{role!r} is never run in tiles")
    return mode


def _of(facts: Mapping[str, str], part: str) -> dict[str, str]:
    def part_of(name: str) -> str:
        return next((mark for mark in (BASE, REFINER) if name.startswith(mark)), "")

    return {name.removeprefix(part): fact for name, fact in facts.items() if part_of(name) == part}


def mismatches(there: Provenance, here: Provenance) -> list[str]:
    """Why the same picture can't be promised here: a sentence for each circumstance that differs."""
    found = []
    if there.bundle_hash != here.bundle_hash:
        found.append(f"it was made with another bundle: {there.bundle} {there.bundle_hash[:12]}")
    refiners = [None if each.refiner is None else each.refiner.bundle_hash for each in (there, here)]
    if refiners[0] != refiners[1]:
        found.append(f"its refiner was {_shown(there.refiner)}, here it is {_shown(here.refiner)}")
    for name in ("tintype", "onnxruntime", "target", "threads"):
        was, now = getattr(there, name), getattr(here, name)
        if was != now:
            found.append(f"{name} was {was}, here it is {now}")
    rebuilt = [role for role, key in there.builds.items() if here.builds.get(role) != key]
    if rebuilt and not found:
        found.append(f"this processor or lowering gives other builds of {', '.join(rebuilt)}")
    return found


def _shown(refiner: RefinerFacts | None) -> str:
    return "none" if refiner is None else f"{refiner.bundle} {refiner.bundle_hash[:12]}"


def nondeterminism(made_with: Provenance, exactness: str) -> list[str]:
    """Why not even the machine that made a picture can promise its bytes again."""
    if made_with.target == "cuda" and exactness == "balanced":
        return ["balanced pictures on cuda differ in their last bits from run to run; exact ones don't"]
    return []
