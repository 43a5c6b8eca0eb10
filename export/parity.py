"""Gates: how near a graph must come to its torch module.

PSNR in dB is 20 log10(range of the reference / root mean square error), range = max - min of the reference; a graph's
figure is that of its worst call. The guidance error is |D' - D| / |D| with D = conditional - unconditional
prediction, over all calls together: guidance multiplies that difference, so an error there shows in the picture.
A `ParityReport` exists for every export, and a bundle is only put in place when all its gates passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import EXACT_DB, psnr_db
from tintype.bundle import Parity, PreviewFactors
from tintype.errors import ExportError

Array = NDArray[np.float32]

GUIDANCE_GATES = {"int8": 0.10, "int4": 0.20}  # of denoisers whose layers are integers

# By precision of the export, then by role. The text encoder and the VAE work once a picture and their errors go
# straight into it, so in an int8 or int4 bundle they stay nearer than the denoiser.
_ROLES = (
    "text_encoder",
    "text_encoder_2",
    "denoiser",
    "vae_decoder",
    "vae_encoder",
    "tiny_decoder",
    "tiny_encoder",
    "controlnet",
    "t2i_adapter",
    "image_encoder",
)
GATES_DB = {
    "fp32": dict.fromkeys(_ROLES, 80.0),
    "fp16": dict.fromkeys(_ROLES, 50.0),
    "int8": {**dict.fromkeys(_ROLES, 40.0), "denoiser": 35.0, "controlnet": 35.0},
    "int4": {
        **dict.fromkeys(_ROLES, 40.0),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "image_encoder"), 32.0),
        **dict.fromkeys(("denoiser", "controlnet"), 28.0),
    },
}


QUANTIZED = tuple(GUIDANCE_GATES)  # precisions of which layers are integers, chosen by trial


@dataclass(frozen=True, slots=True)
class Gate:
    """What one graph of one export must reach."""

    role: str
    psnr_db: float
    guidance_error: float | None = None  # at most this; None where guidance means nothing

    @classmethod
    def of(cls, role: str, precision: str) -> Gate:
        guidance = GUIDANCE_GATES.get(precision) if role == "denoiser" else None
        return cls(role, GATES_DB[precision][role], guidance)

    def passed(self, psnr: float, guidance: float | None) -> bool:
        near = psnr >= self.psnr_db  # False for NaN
        return near and (self.guidance_error is None or (guidance is not None and guidance < self.guidance_error))


@dataclass(frozen=True, slots=True)
class GraphReport:
    """One line of the table."""

    role: str
    precision: str  # what was reached: the precision asked for, or a higher one where that failed its gate
    parity: Parity
    bytes: int  # graph and weights on disk
    quantized_layers: int = 0
    quantizable_layers: int = 0  # of those that integers were tried on
    float_layers: tuple[
        str, ...
    ] = ()  # layers or blocks that stayed finer: float, or int8 in place of int4; worst first
    four_bit_layers: int = 0  # of the quantized ones
    largest: Mapping[str, float] | None = None  # of the graph's values, where float16 may not hold them
    preview: PreviewFactors | None = None  # of the decoder's latents


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What an export made: every graph with its gate, the bundle's bytes and how long it took."""

    name: str
    precision: str
    graphs: tuple[GraphReport, ...]
    bundle_bytes: int
    seconds: float
    parity: str = "full"  # of PARITY_KINDS
    estimate: Mapping[str, Any] | None = None  # what was said before it began, see `Estimate.as_dict`

    @property
    def passed(self) -> bool:
        return all(graph.parity.passed for graph in self.graphs)

    def as_dict(self) -> dict[str, Any]:
        """For --json: plain numbers and names."""
        graphs = [
            {
                "graph": graph.role,
                "precision": graph.precision,
                "bytes": graph.bytes,
                "psnr_db": graph.parity.psnr_db,
                "gate_db": graph.parity.gate_db,
                "guidance_error": graph.parity.guidance_error,
                "passed": graph.parity.passed,
                "quantized_layers": graph.quantized_layers,
                "quantizable_layers": graph.quantizable_layers,
                "float_layers": list(graph.float_layers),
                "four_bit_layers": graph.four_bit_layers,
            }
            for graph in self.graphs
        ]
        return {
            "name": self.name,
            "precision": self.precision,
            "parity": self.parity,
            "passed": self.passed,
            "bundle_bytes": self.bundle_bytes,
            "seconds": round(self.seconds, 3),
            "estimate": None if self.estimate is None else dict(self.estimate),
            "graphs": graphs,
        }


def worst_psnr_db(references: Sequence[Array], others: Sequence[Array]) -> float:
    """The lowest PSNR of pairs of arrays."""
    return min(psnr_db(reference, other) for reference, other in zip(references, others, strict=True))


def guidance_error(references: Sequence[Array], others: Sequence[Array]) -> float:
    """|D' - D| / |D| over all calls; each array is (2, ...): unconditional, then conditional.

    A checkpoint on which the prompt has no effect at all (D = 0) has guidance error 0 when the other has none either.
    """
    error = power = 0.0
    for reference, other in zip(references, others, strict=True):
        wanted = reference[1].astype(np.float64) - reference[0].astype(np.float64)
        found = other[1].astype(np.float64) - other[0].astype(np.float64)
        error += float(np.sum(np.square(found - wanted)))
        power += float(np.sum(np.square(wanted)))
    if power == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return math.sqrt(error / power)


def judge(gate: Gate, references: Sequence[Array], others: Sequence[Array], kind: str = "full") -> Parity:
    """The manifest's line for one graph; nothing is raised here. kind: of the inputs, quick or full."""
    psnr = worst_psnr_db(references, others)
    guidance = guidance_error(references, others) if gate.role == "denoiser" else None
    return Parity(
        graph=gate.role,
        reference="torch fp32",
        psnr_db=round(psnr, 2) if math.isfinite(psnr) else -EXACT_DB,
        gate_db=gate.psnr_db,
        guidance_error=None if guidance is None or not math.isfinite(guidance) else round(guidance, 6),
        passed=gate.passed(psnr, guidance),
        kind=kind,
    )


def refuse_failures(report: ParityReport) -> None:
    """ExportError that names every graph below its gate; nothing when all passed."""
    failed = [graph for graph in report.graphs if not graph.parity.passed]
    if not failed:
        return
    lines = [
        f"{graph.role} reaches {graph.parity.psnr_db:.1f} dB of {graph.parity.gate_db:.0f}"
        + (f", guidance error {graph.parity.guidance_error:.3f}" if graph.parity.guidance_error is not None else "")
        for graph in failed
    ]
    raise ExportError(
        f"the export of {report.name} in {report.precision} is not near enough to the checkpoint: {'; '.join(lines)}",
        fix="export in a higher precision (--precision fp16 or fp32); if fp32 fails too, the checkpoint may be damaged",
    )
