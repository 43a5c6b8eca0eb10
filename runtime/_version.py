"""The version, also in pyproject.toml; a test holds the two together."""

from __future__ import annotations

__version__ = "0.1.0"
