"""Ctrl-C, SIGTERM and SIGHUP within a graph's call, which the main thread hears of only when the call is over.

The system's signals go to a thread too, which ends the calls in progress; the main thread then leaves as always.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading

ENDING = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


def end_calls_on_signals() -> None:
    """From now on; to be called in the main thread. Does nothing where signals can't be heard of that way."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    with contextlib.suppress(ValueError, OSError):
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(reading, writing), daemon=True).start()


def _listen(reading: socket.socket, writing: socket.socket) -> None:
    """writing: kept open as long as this listens."""
    while heard := reading.recv(64):
        switch = sys.modules.get("tintype.engine.run.switch")  # without it nothing runs
        if switch is not None and ENDING & set(heard):
            switch.end_runs()
