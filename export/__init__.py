"""Export: a checkpoint becomes a bundle; the only user of torch and diffusers.

Importing this package is cheap: torch and diffusers are loaded when `export_bundle` is called.
"""

from __future__ import annotations

from tintype.arrays import psnr_db
from tintype.export.bundling import export_bundle
from tintype.export.fast import add_fast
from tintype.export.parity import Gate, GraphReport, ParityReport
from tintype.export.plans import Effort

__all__ = ["Effort", "Gate", "GraphReport", "ParityReport", "add_fast", "export_bundle", "psnr_db"]
