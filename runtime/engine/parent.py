"""A child process that ends when its parent does: work that nobody waits for any more must not go on."""

from __future__ import annotations

import os
import threading
import time

LOOK_SECONDS = 0.5


def end_with_parent() -> None:
    """Watch the parent from now on, in a thread of this process; does nothing where a parent can't be watched."""
    if os.name == "posix":
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
