"""A pipeline belongs to the process that loaded it; a fork of it says so at once, whatever went on meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEADLINE_SECONDS = 120
CODE = """
import os, sys, threading
import tintype
from tintype.errors import RequestError

pipeline = tintype.load(sys.argv[1], provider="cpu", threads=1, memory=sys.argv[2] or None)
asked = {"seed": 1, "num_inference_steps": 2, "width": 64, "height": 64}
pipeline.generate("a boat", **asked)
run = pipeline.steps("a boat", **asked)
next(run)
held = threading.Event(), threading.Event()

def hold():
    with pipeline.graphs.lock:
        held[0].set()
        held[1].wait()

threading.Thread(target=hold).start()
held[0].wait()
child = os.fork()
if child == 0:
    said = 0
    begin = [lambda call=call: call("a boat", **asked) for call in (pipeline.generate, pipeline.plan)]
    for use in (*begin, lambda: next(run)):
        try:
            use()
        except RequestError as error:
            said += "is a fork" in str(error)
    os._exit(said)
held[1].set()
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
pipeline.generate("a boat", **asked)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks there")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("memory", ["", "2GiB"])
def test_a_fork_is_told_at_once_and_its_parent_goes_on(tiny_bundle: Path, memory: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(tiny_bundle), memory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
