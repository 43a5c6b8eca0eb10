"""Ctrl-C and SIGTERM end a graph's call that would not end for hours, and the process leaves as the shell expects."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")

DEADLINE_SECONDS = 30
CODE = """
import sys
from pathlib import Path
import numpy as np
import tintype.cli as cli
from tintype.engine import open_session, resolve_provider

def endless(arguments):
    with open_session(Path(arguments[0]), resolve_provider("cpu"), threads=1) as session:
        print("begun", flush=True)
        try:
            session.run({"x": np.zeros(1, np.float32)})
        except KeyboardInterrupt:
            return 130

cli.run = endless
cli.main()
"""


def write_endless(path: Path) -> None:
    """y = x + 1, ten thousand million times."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        endless (float[1] x) => (float[1] y)
        <int64 count = {10000000000}, bool go = {1}> {
            y = Loop (count, go, x) <body = again (int64 i, bool before, float[1] in) => (bool after, float[1] out) {
                one = Constant <value = float[1] {1}> ()
                out = Add (in, one)
                after = Identity (before)
            }>
        }"""
    )
    onnx.save(model, path)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_call_that_would_not_end(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    write_endless(tmp_path / "endless.onnx")
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path / "endless.onnx")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # nohup has SIGHUP ignored
    )
    try:
        assert process.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # it is in the call
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
