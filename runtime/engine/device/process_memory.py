"""What this process has in memory, as the system counts it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def peak_rss_bytes() -> int:
    """The most resident memory this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: that outlives exec, so a small process started by a large one would report its parent's peak.
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        info: Any = psutil.Process().memory_info()
        return int(info.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
