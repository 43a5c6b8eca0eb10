"""A device that is lost, as after a reset of its driver: an error that says so, and the next request works again.

The driver is SwiftShader behind a small one that fails on demand (losing_icd.c), so that ONNX Runtime and Dawn meet
what they would meet on a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROMPT = "a red sailboat on a calm sea at sunset"
STEPS = """
import sys
from pathlib import Path
import tintype
from tintype.errors import ProviderError

signal, keep = Path(sys.argv[1]), sys.argv[2] == "keep"
pipeline = tintype.load("postcard", provider="webgpu")
request = dict(seed=3, num_inference_steps=2, width=32, height=32, guidance_scale=1.0)
first = pipeline.generate("a boat", **request).image.tobytes()
run = pipeline.steps("a boat", **request)
next(run)
signal.touch()
other = tintype.load("postcard", provider="webgpu")
if keep:
    small = other.context(other.resolve(tintype.Request(prompt="a boat", width=32, height=32)))
    use = small.use("vae_decoder")
    held = other.graphs.open(use, other.graphs.options(use, "exact"), None)
for what in ("lost", "still lost"):
    try:
        list(run) if what == "lost" else pipeline.generate("a boat", **request)
    except ProviderError as error:
        told = error  # kept, as a program that reports errors may
        print(what, "|", error.message, "|", error.fix)
signal.unlink()
try:
    print("same" if pipeline.generate("a boat", **request).image.tobytes() == first else "another")
except ProviderError as error:
    print("refused", "|", error.message, "|", error.fix)
"""


@pytest.fixture
def losing(webgpu, tmp_path):
    """The environment of a process whose driver loses its device while the file that `LOST_WHEN` names exists."""
    given = Path(os.environ.get("VK_ICD_FILENAMES", ""))
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or not given.is_file() or compiler is None:
        pytest.skip("takes Linux, a driver named by VK_ICD_FILENAMES and a C compiler")
    library = tmp_path / "liblosing_icd.so"
    source = Path(__file__).with_name("losing_icd.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    driver = given.parent / json.loads(given.read_text())["ICD"]["library_path"]
    icd = tmp_path / "icd.json"
    icd.write_text(
        json.dumps({"file_format_version": "1.0.0", "ICD": {"library_path": str(library), "api_version": "1.0.5"}})
    )
    return os.environ | {
        "VK_ICD_FILENAMES": str(icd),
        "LOST_DRIVER": str(driver.resolve()),
        "LOST_WHEN": str(tmp_path / "lost"),
    }


@pytest.mark.parametrize("holding", ["free", "keep"])
def test_a_lost_device_is_an_error_and_comes_back_for_the_next_request(losing, holding):
    command = [sys.executable, "-c", STEPS, losing["LOST_WHEN"], holding]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=losing)
    assert done.returncode == 0, done.stderr
    lost, still, after = (line.split(" | ") for line in done.stdout.splitlines())
    assert lost[0] == "lost"
    assert lost[1].startswith("the webgpu device was lost while it ran model.onnx: ")
    assert "is lost" in lost[1]
    assert "choose provider cpu" in lost[2]
    assert still[0] == "still lost"
    if holding == "free":
        assert after == ["same"]
    else:
        assert after[0] == "refused"
        assert "other sessions still hold it" in after[1]
        assert "close every pipeline on it" in after[2]


def test_the_command_says_it_and_draws_nothing(losing, tmp_path):
    Path(losing["LOST_WHEN"]).touch()
    picture = tmp_path / "x.png"
    command = [sys.executable, "-m", "tintype", "generate", PROMPT, "-o", str(picture), "--provider", "webgpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=losing)
    assert done.returncode == 1
    assert "error: provider webgpu cannot be used: " in done.stderr
    assert "lost" in done.stderr
    assert "Traceback" not in done.stderr
    assert not picture.exists()
