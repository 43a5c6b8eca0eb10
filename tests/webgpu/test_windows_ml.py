"""Windows ML's way in: a catalog offers a provider's library, it is registered, found and used.

The catalog stands in for Windows'; the library that it offers, ONNX Runtime and the device are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tintype.engine.device import plugins

CATALOG = """
from types import SimpleNamespace
LIBRARY = {library!r}

class EpCatalog:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def find_all_providers(self):
        def offer(name, state, library):
            return SimpleNamespace(
                name=name, ready_state=SimpleNamespace(name=state), library_path=library, ensure_ready=lambda: None
            )
        return [
            offer("OpenVINOExecutionProvider", "NotPresent", ""),
            offer("QNNExecutionProvider", "Ready", "/nowhere/qnn.dll"),
            offer("WebGpuExecutionProvider", "NotReady", LIBRARY),
        ]
"""
ASK = """
import json
from dataclasses import replace
import numpy as np
from tintype.engine.device import providers, windows_ml
from tintype.engine.device.providers import TARGETS, load_onnxruntime

names = sorted(windows_ml.register(load_onnxruntime()))
target = replace(TARGETS["webgpu"], plugin="")  # as where no package of ours brings it
options = load_onnxruntime().SessionOptions()
session = providers.new_session(providers._PROBE_GRAPH, options, target)
(answer,) = session.run(None, {"x": np.array([-1.0], np.float32)})
print(json.dumps({
    "names": names,
    "problem": providers.problem_of(target),
    "providers": session.get_providers(),
    "answer": answer.tolist(),
    "openvino": providers.problem_of(TARGETS["openvino"]) is None,
    "qnn": providers.problem_of(TARGETS["qnn"]) is None,
    "auto": providers.resolve_provider("auto").name,
    "software": providers.is_software(target),
}))
"""


def test_what_windows_offers_is_registered_and_used(webgpu, tmp_path):
    if not plugins.is_registered(webgpu.plugin):
        pytest.skip("takes a provider that is a library of its own")
    library = __import__(webgpu.plugin).get_library_path()
    (tmp_path / "windowsml.py").write_text(CATALOG.format(library=library))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["names"] == ["WebGpuExecutionProvider"]
    assert told["problem"] is None
    assert "WebGpuExecutionProvider" in told["providers"]
    assert told["answer"] == [0.0]
    assert not told["openvino"]
    assert not told["qnn"]
    assert told["auto"] == ("cpu" if told["software"] else "webgpu")
