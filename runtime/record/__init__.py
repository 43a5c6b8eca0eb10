"""How a picture was made: its record, what that is kept in, and whether it can be made again."""

from __future__ import annotations

from tintype.record.provenance import Provenance
from tintype.record.record import MemoryFacts, Record, parse_record, read_record

__all__ = ["MemoryFacts", "Provenance", "Record", "parse_record", "read_record"]
