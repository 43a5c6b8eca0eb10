"""What an export will take, before it begins: disk, memory and time, from headers, configs and a moment's measuring.

Operations are counted by running the modules without weights (torch's meta device). A rate is what this machine did in
a third of a second, so the time is a guess within a factor of about 1.5 where nothing else takes the processor.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tintype.errors import ExportError
from tintype.export.checkpoint import Checkpoint, hollow_module
from tintype.export.known_graphs import is_known
from tintype.export.parity import QUANTIZED
from tintype.export.plans import ExportPlan
from tintype.export.progress import duration
from tintype.export.quantization import weight_scales
from tintype.export.roles import COMPONENT_OF, FLOAT_ROLES, GRAPH_FILES, KEPT_CALLS, has_four_bits
from tintype.export.wrappers import trace_plan, wrap
from tintype.free_memory import free_bytes
from tintype.recent import Recent

STORED_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.25, "int4": 1.0}  # of a parameter in a bundle
# (of int8 some layers stay float, of int4 convolutions are int8)
BUILD_BYTES = 2.1  # on disk for each byte of a graph while it is judged: as it is lowered, then as it is optimized
BASE_BYTES = 900 * 2**20  # torch, diffusers and what a call has beside weights at a small size
CELL_BYTES = 192 * 2**10  # of a UNet's or VAE's feature maps for a latent cell: 0.8 GB at 64 x 64
WEIGHT_SHARE = 1.15  # of a module's weights: some are laid out anew for a moment
INTEGER_SHARE = 0.3  # integers beside the weights, while layers are tried
MODULE_SHARE = 0.6  # of the measured rate that a whole module reaches
TRACE_SECONDS = 0.09  # for each weight of a structure that is traced for the first time
START_SECONDS = 3.0  # of the process that lowers a graph
READ_SECONDS_PER_BYTE = 1.5e-9  # hashing and looking for NaN; disks of this age read faster


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does in a second."""

    operations: float  # multiplications and additions in float32, of convolutions and products
    written_bytes: float
    scaled_weights: float  # of int8, whose scales are searched; four bits take as long once more


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is left to do. phases: seconds by the title of the progress stage."""

    phases: Mapping[str, float]
    bundle_bytes: int
    scratch_bytes: int
    disk_free_bytes: int
    peak_bytes: int  # resident, pages of files too
    own_bytes: int  # of that, what no system can take back: without the pages of a checkpoint's files
    memory_free_bytes: int
    finished: tuple[str, ...]  # roles that an export which was broken off left whole

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "seconds": round(self.seconds),
            "bundle_bytes": self.bundle_bytes,
            "scratch_bytes": self.scratch_bytes,
            "disk_free_bytes": self.disk_free_bytes,
            "peak_bytes": self.peak_bytes,
            "own_bytes": self.own_bytes,
            "memory_free_bytes": self.memory_free_bytes,
            "finished": list(self.finished),
        }

    def sentence(self) -> str:
        """For people, before the work begins."""
        return (
            f"this will take about {duration(self.seconds)}; {size(self.bundle_bytes)} for the bundle and "
            f"{size(self.scratch_bytes)} meanwhile, of {size(self.disk_free_bytes)} free; "
            f"{size(self.peak_bytes)} of memory, of {size(self.memory_free_bytes)} free"
        )

    def demand_room(self, folder: Path) -> None:
        """ExportError where the disk of a folder or the memory surely is too small."""
        needed = self.bundle_bytes + self.scratch_bytes
        if needed > self.disk_free_bytes:
            raise ExportError(
                f"{folder} has {size(self.disk_free_bytes)} free; this export needs about {size(needed)}",
                fix="free some space, or write the bundle to a larger disk",
                kind="disk",
                least_bytes=needed,
                free_bytes=self.disk_free_bytes,
            )
        if self.own_bytes > self.memory_free_bytes:
            raise ExportError(
                f"{size(self.memory_free_bytes)} of memory are free; this export needs about {size(self.own_bytes)}",
                fix="close other programs, or export on a machine with more memory: bundles are the same everywhere",
                kind="memory",
                least_bytes=self.own_bytes,
                free_bytes=self.memory_free_bytes,
            )


def size(count: float) -> str:
    """1.2 GiB, or 85 MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"


def estimate(
    checkpoint: Checkpoint, plan: ExportPlan, precision: str, folder: Path, finished: Iterable[str], tokens: int
) -> Estimate:
    """What an export into `folder`, which exists, still takes. finished: roles that it need not make again."""
    done = frozenset(finished)
    work = _Work(checkpoint, plan, precision, tokens, measure_rates(folder))
    roles = [role for role in GRAPH_FILES if COMPONENT_OF[role] in checkpoint.components]
    left = [role for role in roles if role not in done]
    phases: dict[str, float] = {}
    for title, seconds in work.phases(left):
        phases[title] = phases.get(title, 0.0) + seconds
    stored = {role: checkpoint.fp32_bytes(COMPONENT_OF[role]) * STORED_BYTES[precision] / 4 for role in roles}
    builds = [BUILD_BYTES * stored[role] for role in left]
    if precision != "fp32":  # one component's fp32 graphs are there while it is made
        builds = [build + _fp32_graphs(checkpoint, role) for build, role in zip(builds, left, strict=True)]
    return Estimate(
        phases,
        int(sum(stored[role] for role in left)),
        int(max(builds, default=0)),
        shutil.disk_usage(folder).free,
        *work.memory_bytes({COMPONENT_OF[role] for role in left}),
        free_bytes(),
        tuple(role for role in roles if role in done),
    )


def _fp32_graphs(checkpoint: Checkpoint, role: str) -> int:
    """Bytes of a component's graphs in fp32."""
    roles = [each for each in GRAPH_FILES if COMPONENT_OF[each] == COMPONENT_OF[role]]
    return len(roles) * checkpoint.fp32_bytes(COMPONENT_OF[role])


class _Work:
    """Seconds and bytes of the parts of an export."""

    def __init__(self, checkpoint: Checkpoint, plan: ExportPlan, precision: str, tokens: int, rates: Rates) -> None:
        self.checkpoint, self.plan, self.precision, self.tokens, self.rates = checkpoint, plan, precision, tokens, rates
        self._counted: dict[tuple[str, int], float] = {}

    def phases(self, roles: Iterable[str]) -> Iterator[tuple[str, float]]:
        """By the titles of progress stages, in order; a title may come twice."""
        left = list(roles)
        components = dict.fromkeys(COMPONENT_OF[role] for role in left)
        for component in components:
            entries = self.checkpoint.entries(component).values()
            yield "checkpoint", READ_SECONDS_PER_BYTE * sum(entry.stored_bytes for entry in entries)
        if "denoiser" in left and self.checkpoint.takes_picture:
            yield "pictures", self._call("vae_encoder", self.plan.gates.latent_size)
        for role in left:
            yield from self._role(role)

    def _role(self, role: str) -> Iterator[tuple[str, float]]:
        plan, rounds = self.plan, self.precision in QUANTIZED and role not in FLOAT_ROLES
        fp32 = self.checkpoint.fp32_bytes(COMPONENT_OF[role])
        stored = fp32 * STORED_BYTES[self.precision] / 4
        known = is_known(self._module(role), trace_plan(self.checkpoint, role, self.tokens))
        weights = len(self.checkpoint.entries(COMPONENT_OF[role]))
        yield f"tracing: {role}", 0.0 if known else TRACE_SECONDS * weights
        yield f"writing: {role}", self._write(fp32)
        small, calls = self._call(role, plan.gates.latent_size), plan.gates.gate_calls if role == "denoiser" else 1
        if role == "denoiser":
            yield "real inputs", small * plan.gates.steps * plan.gates.gate_prompts
        if rounds:
            yield from self._rounded(role, fp32 / 4)
        rewritten = self._write(stored) if self.precision != "fp32" else 0.0
        # Judged once, and its ranges measured; the latter in plain operators.
        yield f"parity: {role}", rewritten + START_SECONDS + self._write(stored * BUILD_BYTES) + 2.5 * calls * small

    def _rounded(self, role: str, parameters: float) -> Iterator[tuple[str, float]]:
        plan = self.plan
        if role == "denoiser":
            large = self._call(role, plan.calibration.latent_size)
            yield "calibration", large * plan.calibration.steps * plan.calibration.calibration_prompts
        times = 2 if has_four_bits(role, self.precision) else 1
        yield f"scales: {role}", times * parameters / self.rates.scaled_weights
        walks = plan.trials or plan.calibration
        each = self._call(role, walks.latent_size)
        if role == "denoiser" and plan.trials is not None:
            yield "trial inputs", each * plan.trials.steps
        kept = KEPT_CALLS if role == "denoiser" else 1
        # Some layers mostly have to stay float, which is found by trying each alone, as far as there is time.
        alone = min(plan.damage_seconds, each * len(self.checkpoint.entries(COMPONENT_OF[role])) / 3)
        yield f"damage: {role}", each * kept * 2 + (alone / 2 if role == "denoiser" else 0.0)

    def memory_bytes(self, components: Iterable[str]) -> tuple[int, int]:
        """The most that this process is expected to have resident, and of that what isn't pages of files."""
        needed = [self._component_bytes(component) for component in components]
        return tuple(BASE_BYTES + max((each[side] for each in needed), default=0) for side in (0, 1))  # type: ignore[return-value]

    def _component_bytes(self, component: str) -> tuple[int, int]:
        weights = self.checkpoint.fp32_bytes(component)
        # What is stored as it is used stays where it lies in its file.
        stored = self.checkpoint.entries(component).values()
        mapped = sum(entry.stored_bytes for entry in stored if entry.dtype == "F32" and not entry.transposed)
        rounds = self.precision in QUANTIZED
        walks = self.plan.calibration if rounds else self.plan.gates
        cells = 0 if component.startswith("text_encoder") else walks.latent_size**2
        other = (WEIGHT_SHARE - 1 + (INTEGER_SHARE if rounds else 0.0)) * weights + cells * CELL_BYTES
        return int(weights + other), int(weights - mapped + other)

    def _write(self, count: float) -> float:
        return count / self.rates.written_bytes

    def _call(self, role: str, latent_size: int) -> float:
        """Seconds of one call, of a UNet with both halves of guidance."""
        if (role, latent_size) not in self._counted:
            operations = count_operations(self.checkpoint, role, latent_size, self.tokens)
            self._counted[role, latent_size] = operations / (MODULE_SHARE * self.rates.operations)
        return self._counted[role, latent_size]

    def _module(self, role: str) -> torch.nn.Module:
        return wrap(self.checkpoint, role, hollow_module(self.checkpoint, COMPONENT_OF[role]))


_COUNTED: Recent[str, float] = Recent(64)  # operations by all that they follow from; a walk takes a second


def count_operations(checkpoint: Checkpoint, role: str, latent_size: int, tokens: int) -> float:
    """Multiplications and additions of one call of a role: two rows of a UNet, one picture of a VAE, two texts."""
    component = COMPONENT_OF[role]
    if role.startswith("text_encoder"):
        return 2.0 * 2 * tokens * checkpoint.fp32_bytes(component) / 4
    plan, side = trace_plan(checkpoint, role, tokens), latent_size
    if role.endswith("_encoder"):
        side *= checkpoint.vae_scale_factor
    rows = 2 if role == "denoiser" else 1
    inputs = {}
    for name, example in plan.inputs.items():
        shape = list(example.shape)
        for axis, dim in plan.dims[name].items():
            shape[axis] = {"batch": rows, "height": side, "width": side, "sequence": tokens}[dim]
        inputs[name] = torch.empty(shape, dtype=example.dtype, device="meta")
    shapes = {name: (each.shape, each.dtype) for name, each in inputs.items()}
    facts = repr((role, checkpoint.family, checkpoint.vae_class, sorted(checkpoint.configs[component].items()), shapes))
    known = _COUNTED.get(facts)
    if known is not None:
        return known
    module = wrap(checkpoint, role, hollow_module(checkpoint, component))
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(**inputs)
    except RuntimeError:  # the tracer will say what is wrong with such a module
        return 2.0 * rows * side**2 * checkpoint.fp32_bytes(component) / 4
    return _COUNTED.put(facts, float(counter.get_total_flops()))


def measure_rates(folder: Path) -> Rates:
    """Try a convolution, a product, a search for scales, once in a process, and a file in `folder`."""
    operations, scaled_weights = _processor_rates()
    return Rates(operations, _written_bytes(folder), scaled_weights)


@functools.cache
def _processor_rates() -> tuple[float, float]:
    """See `Rates`: operations and scaled weights in a second."""
    with _same_numbers():
        image, kernel = torch.randn(2, 320, 32, 32), torch.randn(320, 320, 3, 3)
        rows, weight = torch.randn(2048, 640), torch.randn(640, 640)
        operations = 2.0 * 2 * 32 * 32 * 320 * 320 * 9, 2.0 * 2048 * 640 * 640
    with torch.inference_mode():
        seconds = _quickest(lambda: torch.nn.functional.conv2d(image, kernel, padding=1))
        seconds += _quickest(lambda: rows @ weight)
        scaling = _quickest(lambda: weight_scales(weight))
    return sum(operations) / seconds, weight.numel() / scaling


@contextmanager
def _same_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _quickest(work: Callable[[], object], tries: int = 3) -> float:
    found = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def _written_bytes(folder: Path, count: int = 32 * 2**20) -> float:
    """Bytes that a disk takes in a second, of a file that is gone afterwards."""
    path, content = folder / "rate", os.urandom(2**20)
    started = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(count // len(content)):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    return count / (time.perf_counter() - started)
