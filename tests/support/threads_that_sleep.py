"""ONNX Runtime's threads sleep while they wait for work: spinning, they take the processor from the other worker.

It changes when a thread begins, and nothing of what it computes.
"""

from __future__ import annotations


def make_threads_sleep() -> None:
    """From now on in this process, whoever makes options for a session."""
    import onnxruntime

    class SleepingOptions(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.add_session_config_entry("session.intra_op.allow_spinning", "0")

    onnxruntime.SessionOptions = SleepingOptions
