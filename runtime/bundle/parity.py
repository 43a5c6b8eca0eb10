"""What a manifest says of how near its graphs come to what they were made from."""

from __future__ import annotations

from dataclasses import dataclass

from tintype.strict_json import require

PARITY_KINDS = ("quick", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """One gate of the export: how near the canonical graph came to its reference. Exact is written as 200 dB."""

    graph: str
    reference: str
    psnr_db: float
    gate_db: float
    passed: bool
    guidance_error: float | None = None  # relative error of conditional minus unconditional prediction
    kind: str | None = None  # on which inputs: of PARITY_KINDS; None: full, by an exporter that had no other

    def __post_init__(self) -> None:
        known = self.kind is None or self.kind in PARITY_KINDS
        require(known, f"a parity of kind {str(self.kind)[:60]!r} is not one of {', '.join(PARITY_KINDS)}")
