"""A test that would hang fails."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

SECONDS = 10.0  # what a door may take with any input, ten times over: the machine may be busy


@contextlib.contextmanager
def deadline(seconds: float = SECONDS) -> Iterator[None]:
    """AssertionError once that much time has passed; where there are no timers, when it is over."""

    def late(*_: object) -> None:
        raise AssertionError(f"it took more than {seconds} s")

    started = time.monotonic()
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    else:
        yield
    assert time.monotonic() - started <= seconds
