"""How a request uses graphs."""

from __future__ import annotations

EXACTNESS = ("exact", "balanced")  # see Request.exactness
