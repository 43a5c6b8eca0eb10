"""The most memory that a GPU held while a peer had its turn, beyond what it held before: the same measure for all."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from types import TracebackType

INTERVAL_MILLISECONDS = 50
ASK_SECONDS = 10.0
QUERY = ("--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0")


class DeviceMemory:
    """A `with` block whose peak is sampled by nvidia-smi; None without one. Other processes' growth counts too."""

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._before: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> DeviceMemory:
        program = shutil.which("nvidia-smi")
        self._before = used_bytes()
        if program is None or self._before is None:
            return self
        self.peak_bytes = 0
        command = [program, *QUERY, "-lms", str(INTERVAL_MILLISECONDS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._thread is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _watch(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            used = _bytes(line)
            if used is not None and self._before is not None:
                self.peak_bytes = max(self.peak_bytes or 0, used - self._before)


def used_bytes() -> int | None:
    """What the first GPU holds now, over all processes; None where nvidia-smi doesn't tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([program, *QUERY], capture_output=True, text=True, check=True, timeout=ASK_SECONDS)
        return _bytes(told.stdout)
    return None


def _bytes(text: str) -> int | None:
    first = text.strip().splitlines()[:1]
    return int(first[0]) * 2**20 if first and first[0].strip().isdigit() else None
