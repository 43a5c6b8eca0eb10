"""The most memory that a GPU held while a peer had its turn, beyond what it held before: the same measure for all."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading

INTERVAL_MILLISECONDS = 50
ASK_SECONDS = 10.0
QUERY = ("--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0")


class DeviceMemory:
    """A `with` block whose peak is sampled by nvidia-smi; None without one. Other processes' growth counts too."""

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> DeviceMemory:
        program, before = shutil.which("nvidia-smi"), used_bytes()
        if program is None or before is None:
            return self
        self.peak_bytes = 0
        command = [program, *QUERY, "-lms", str(INTERVAL_MILLISECONDS)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        thread = threading.Thread(target=self._watch, args=(process, before), daemon=True)
        self._stack.enter_context(process)  # waits for it and closes its pipe
        self._stack.callback(thread.join)
        self._stack.callback(process.terminate)
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _watch(self, process: subprocess.Popen[str], before: int) -> None:
        for line in process.stdout or ():
            used = _bytes(line)
            if used is not None:
                self.peak_bytes = max(self.peak_bytes or 0, used - before)


def used_bytes() -> int | None:
    """What the first GPU holds now, over all processes; None where nvidia-smi doesn't tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run([program, *QUERY], capture_output=True, text=True, check=True, timeout=ASK_SECONDS)
        return _bytes(answer.stdout)
    return None


def _bytes(text: str) -> int | None:
    first = text.strip().splitlines()[:1]
    return int(first[0]) * 2**20 if first and first[0].strip().isdigit() else None
