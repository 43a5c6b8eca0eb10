"""What this process has in memory, as the system counts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any


def status_bytes(field: str, process: int | str = "self") -> int | None:
    """A size of a process in /proc, as Linux has it; None where that isn't told, or the process is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    size = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(size[1]) * 1024 if size else None


def peak_rss_bytes() -> int:
    """The most resident memory this process ever had."""
    # Not ru_maxrss: that outlives exec, so a small process started by a large one would report its parent's peak.
    peak = status_bytes("VmHWM")
    if peak is not None:
        return peak
    if sys.platform == "win32":
        import psutil

        info: Any = psutil.Process().memory_info()
        return int(info.peak_wset)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
