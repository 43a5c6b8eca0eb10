"""What a child process answers carries a kind: nobody guesses from the words of a message."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tintype.engine import BuildOptions
from tintype.engine.build.builds import lower_into
from tintype.engine.build.child import DISK, MEMORY, UNCUT, ChildError, kind_of, run_child
from tintype.engine.device.providers import TARGETS, load_onnxruntime
from tintype.errors import BuildError, MemoryBudgetError, UncutError

STRIPS = BuildOptions.for_shape({"batch": 1, "height": 8, "width": 8}, strip_bytes=2**16)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "x"), DISK),
        (OSError(errno.EDQUOT, "x"), DISK),
        (OSError(errno.EFBIG, "x"), DISK),
        (OSError(errno.EACCES, "no disk space in memory"), None),
        (MemoryError(), MEMORY),
        (MemoryBudgetError("x", fix="x"), MEMORY),
        (UncutError("x", fix="x"), UNCUT),
        (BuildError("the graph can't run in strips, allocated", fix="x"), None),
        (ValueError("out of memory"), None),
    ],
    ids=str,
)
def test_an_errors_kind_is_its_class_and_number(error: Exception, kind: str | None) -> None:
    assert kind_of(error) == kind


def test_of_onnxruntime_whose_errors_are_of_one_class_the_words_tell() -> None:
    load_onnxruntime()
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    assert kind_of(Fail("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9")) == MEMORY
    assert kind_of(Fail("Load model failed")) is None


def answer_of(tmp_path: Path, code: str) -> dict[str, object]:
    """What `run_child` makes of a module with that `work`."""
    (tmp_path / "working.py").write_text(
        f"import sys\nfrom tintype.engine.build.child import answer_parent\n{code}\nsys.exit(answer_parent(work))\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # it would stand for the next text of the same second and length
        return run_child("working", "job")


def test_an_answer_comes_back_whatever_else_was_printed(tmp_path: Path) -> None:
    code = "def work(job):\n    print('{\"error\": 1}')\n    return {'job': job, 'count': 2}"
    assert answer_of(tmp_path, code) == {"job": "job", "count": 2}


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("raise OSError(28, 'full')", DISK, "OSError: [Errno 28] full"),
        ("raise MemoryError", MEMORY, "MemoryError"),
        ("raise ValueError('one\\ntwo')", None, "ValueError: one"),
        ("print('7'); sys.exit(3)", None, "exit code 3"),
        ("print('[' * 100_000); sys.exit(1)", None, "exit code 1"),
        ("sys.exit('last words')", None, "last words"),
    ],
)
def test_a_failure_comes_back_with_its_kind(tmp_path: Path, code: str, kind: str | None, words: str) -> None:
    with pytest.raises(ChildError) as caught:
        answer_of(tmp_path, f"def work(job):\n    {code}")
    assert caught.value.kind == kind
    assert caught.value.message.startswith(words)


SHORT = "import tintype.engine.build.child as child\nchild.free_bytes = lambda: {mib} << 20\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a limit of data")
def test_a_child_gets_what_is_free_and_no_more(tmp_path: Path) -> None:
    taking = (
        SHORT.format(mib=100) + "def work(job):\n    taken = [bytearray(100 << 20) for _ in range({})]\n    return {{}}"
    )
    assert answer_of(tmp_path, taking.format(3)) == {}  # address space that nothing may ever be in is beside it
    with pytest.raises(ChildError) as caught:
        answer_of(tmp_path, taking.format(4))
    assert caught.value.kind == MEMORY


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a limit of data")
def test_a_graph_for_which_too_little_is_free_wants_memory_and_brings_nothing_down(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("ConstantOfShape", ["shape"], ["large"]),
            onnx.helper.make_node("Add", ["large", "x"], ["y"]),
        ],
        "large",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2**28])],
        [onnx.numpy_helper.from_array(np.array([2**28]), "shape")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    code = SHORT.format(mib=200) + (
        "from tintype.engine.device.providers import load_onnxruntime\nimport numpy as np\n"
        f"def work(job):\n    session = load_onnxruntime().InferenceSession({str(tmp_path / 'model.onnx')!r})\n"
        "    return {'sum': float(session.run(None, {'x': np.ones(1, np.float32)})[0][0])}"
    )
    with pytest.raises(ChildError) as caught:
        answer_of(tmp_path, code)
    assert caught.value.kind == MEMORY


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(600)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(ChildError, match="took too long"):
            run_child("endless", "", most_seconds=0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_child_that_is_killed_wanted_memory(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="killed") as caught:
        answer_of(tmp_path, f"import os\ndef work(job):\n    os.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert caught.value.kind == MEMORY


def test_a_file_whose_name_says_so_is_not_a_graph_that_cannot_be_cut(tmp_path: Path) -> None:
    source = tmp_path / "can't run in strips for want of disk and memory" / "model.onnx"
    (tmp_path / "build").mkdir()
    with pytest.raises(BuildError, match="can't run in strips") as caught:
        lower_into(source, tmp_path / "build", TARGETS["cpu"], options=STRIPS)
    assert type(caught.value) is BuildError
    assert caught.value.kind is None
    assert "report this message" in caught.value.fix


def test_what_code_needs_of_an_error_is_a_field_and_told_with_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tintype", "plan", "postcard", "--memory", "1MiB", "--no-build", "--json"]
    done = subprocess.run([*command, "--provider", "cpu"], capture_output=True, text=True, check=False)
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "MemoryBudgetError"
    assert f"give {error['least_bytes'] // 2**20} MiB" in error["fix"]


def test_an_error_with_another_remedy_keeps_its_fields_and_notes() -> None:
    error = MemoryBudgetError("too small", fix="give more", least_bytes=7)
    error.add_note("written: x.png")
    other = error.with_fix("close other programs")
    assert (type(other), other.message, other.fix) == (MemoryBudgetError, "too small", "close other programs")
    assert (other.least_bytes, other.__notes__) == (7, ["written: x.png"])
    assert error.fix == "give more"


def _several(tmp_path: Path, jobs: list[str]) -> list[dict[str, object]]:
    """What `attempt_all` gives for jobs that are Python code, in a process of its own: it may fork."""
    code = (
        "import json, os, signal, time\nfrom tintype.engine.build.child import attempt_all\n"
        "def each(job):\n    space = {}\n    exec(job, globals(), space)\n    return space\n"
        "def work(jobs):\n    return {'said': attempt_all(each, json.loads(jobs))}"
    )
    (tmp_path / "working.py").write_text(
        f"import sys\nfrom tintype.engine.build.child import answer_parent\n{code}\nsys.exit(answer_parent(work))\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        said = run_child("working", json.dumps(jobs))["said"]
    assert isinstance(said, list)
    return said


def test_of_several_jobs_each_has_its_own_answer_in_order(tmp_path: Path) -> None:
    large = "x" * 300_000  # more than a pipe takes at once
    said = _several(tmp_path, [f"x = '{large}'", "raise OSError(28, 'full')", "x = 3"])
    assert said == [{"answer": {"x": large}}, {"error": "OSError: [Errno 28] full", "kind": DISK}, {"answer": {"x": 3}}]


@pytest.mark.skipif(sys.platform != "linux", reason="jobs run beside one another on Linux only")
def test_several_jobs_run_beside_one_another_and_one_that_is_killed_takes_none_with_it(tmp_path: Path) -> None:
    meet = f"open('{tmp_path}/%s', 'w').close()\nwhile not os.path.exists('{tmp_path}/%s'):\n    time.sleep(0.01)"
    jobs = [meet % ("a", "b"), meet % ("b", "a"), "os.kill(os.getpid(), signal.SIGKILL)"]
    said = _several(tmp_path, jobs)
    assert [each.get("kind") for each in said] == [None, None, MEMORY]
    assert ["answer" in each for each in said] == [True, True, False]
