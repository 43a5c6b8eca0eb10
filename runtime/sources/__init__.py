"""What a published checkpoint is, told by names, shapes and configs alone: no weight is read, torch isn't needed."""

from __future__ import annotations

from tintype.sources.facts import SourceFacts, describe, is_checkpoint
from tintype.sources.header import Header, TensorFacts, read_header

__all__ = ["Header", "SourceFacts", "TensorFacts", "describe", "is_checkpoint", "read_header"]
