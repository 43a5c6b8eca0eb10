"""Ctrl-C, SIGTERM and SIGHUP within a graph's call, which the main thread hears of only when the call is over.

The system's signals go to a thread too, which ends the calls in progress; the main thread then leaves as always.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

ENDING = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


def end_calls_on_signals() -> None:
    """From now on, for the main thread; does nothing on Windows, where signals are told to sockets alone."""
    with contextlib.suppress(ValueError, OSError):
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(reading,), daemon=True).start()


def _listen(reading: int) -> None:
    while heard := os.read(reading, 64):
        switch = sys.modules.get("tintype.engine.run.switch")  # without it nothing runs
        if switch is not None and ENDING & set(heard):
            switch.end_runs()
