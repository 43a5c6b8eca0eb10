"""What whoever runs Tintype decides once for all pictures; a request has no say in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypedDict

if TYPE_CHECKING:
    from tintype.trust.certificates import Asked

File: TypeAlias = "str | os.PathLike[str]"


class OperatorFields(TypedDict, total=False):
    """`Operator`, for calls that take its fields by name."""

    watermark_key: File | None
    policy: File | None
    safety: File | None
    deal: File | None
    trustmark: File | None
    credentials: Asked
    accept_licence: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """watermark_key: a file, mode 0600, that carries the payload of watermarks; None is the key that anybody has.

    policy: a file of words that no picture may be asked for with (POLICY.md), or "strict"; None is none.
    safety: an ONNX file, or FILE=THRESHOLD, that judges each picture before it is given out (POLICY.md); `bundle` is
    the bundle's own, `opennsfw` that of the extra safety; None is none.
    deal: a file of words that are dealt to prompts which leave them open, so that a run's pictures meet the file's
    shares (DEAL.md); None is none.
    trustmark: the folder of TrustMark's own ONNX files, by which pictures get a second mark (VERIFY.md); None is none.
    credentials: who signs files: "auto" (this installation), (CERT, KEY) in PEM, or False; None is auto with the extra
    c2pa.
    accept_licence: accept the model's licence, and the refiner's, where they bind; it is kept, and asked for only once.
    """

    watermark_key: File | None = None
    policy: File | None = None
    safety: File | None = None
    deal: File | None = None
    trustmark: File | None = None
    credentials: Asked = None
    accept_licence: bool = False
