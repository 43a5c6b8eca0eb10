"""No cloud: what a picture costs in system calls. No socket, no program of others, no file but the cache's and its own.

strace follows a process and all its children; Debian has it as `strace`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tintype.bench.job import Job

STRACE = shutil.which("strace")
PICTURE = ("a boat", "--num-inference-steps", "1", "--size", "64x64", "--seed", "7", "--provider", "auto")
# Calls that change what a path leads to, besides an open that may write.
CHANGES = {
    *("creat", "truncate", "mkdir", "mkdirat", "mknod", "mknodat", "rmdir", "unlink", "unlinkat", "link", "linkat"),
    *("symlink", "symlinkat", "rename", "renameat", "renameat2", "chmod", "fchmodat", "chown", "utimensat"),
}
# `1234 openat(3</a/folder>, "name", ...`: strace names the process and, with -y, the folder that a path starts in.
CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')


def _trace(folder, command, environment, stdin=""):
    """Run a command in an empty folder; how it ended, and its system calls as (name, arguments, paths)."""
    start, log = folder / "start", folder / "calls"
    start.mkdir()
    calls = "trace=%network,openat,open,openat2,execve,execveat," + ",".join(sorted(CHANGES))
    done = subprocess.run(
        [STRACE, "-f", "-y", "-qq", "--seccomp-bpf", "-o", str(log), "-e", calls, *command],
        cwd=start,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert list(start.iterdir()) == []
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        call = CALL.match(line)
        if call is not None:
            name, arguments = call.groups()
            paths = [Path(os.path.normpath(start / base / path)) for base, path in PATH.findall(arguments)]
            found.append((name, arguments, paths))
    return done, found


def _environment(folder, home, **others):
    """Nothing of this process's own but what Python itself needs; byte code isn't written beside our sources."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    for name in ("tmp", "out"):
        (folder / name).mkdir(exist_ok=True)
    own = {"HOME": str(home), "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **own, **others}


def _network(calls):
    """What asks or tells anybody, files that names of machines are looked up in included."""
    lookups = {Path("/etc/resolv.conf"), Path("/etc/hosts"), Path("/etc/gai.conf")}
    named = {"socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg"}
    return [(name, arguments) for name, arguments, paths in calls if name in named or lookups & set(paths)]


def _written(calls):
    """Paths that a call would have made, changed or removed, also where it failed."""
    opening = ("open", "openat", "openat2")
    writing = re.compile(r"\bO_(WRONLY|RDWR|CREAT|TRUNC)\b")
    changed = {
        path
        for name, arguments, paths in calls
        for path in paths
        if name in CHANGES or (name in opening and writing.search(arguments))
    }
    return changed - {Path(os.devnull)}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The first picture that somebody makes: no build in the cache, an empty home."""
    if STRACE is None:
        pytest.skip("strace isn't installed: apt-get install strace")
    folder = tmp_path_factory.mktemp("traced")
    (folder / "home").mkdir()
    environment = _environment(folder, folder / "home", TINTYPE_CACHE=str(folder / "cache"))
    command = [sys.executable, "-m", "tintype", "generate", *PICTURE, "-o", str(folder / "out/boat.png")]
    done, calls = _trace(folder, command, environment)
    assert done.returncode == 0, done.stderr
    return folder, done, calls


@pytest.mark.slow
def test_the_first_picture_opens_no_socket_and_looks_no_name_up(traced):
    _, done, calls = traced
    assert _network(calls) == []
    assert done.stderr == ""


@pytest.mark.slow
def test_the_first_picture_writes_its_builds_and_itself_and_nothing_else(traced):
    folder, _, calls = traced
    written, allowed = _written(calls), [folder / "cache", folder / "tmp", folder / "out"]
    assert [str(path) for path in sorted(written) if not any(path.is_relative_to(place) for place in allowed)] == []
    assert {folder / "cache/builds", folder / "out/boat.png"} <= written  # the trace sees what is written
    assert [path.name for path in (folder / "out").iterdir()] == ["boat.png"]
    assert list((folder / "home").iterdir()) == list((folder / "tmp").iterdir()) == []


@pytest.mark.slow
def test_the_first_picture_runs_no_program_but_its_own_children(traced):
    _, _, calls = traced
    run = [(paths[0].resolve(), arguments) for name, arguments, paths in calls if name in ("execve", "execveat")]
    assert {program for program, _ in run} == {Path(sys.executable).resolve()}
    assert all("tintype" in arguments for _, arguments in run)
    assert any("tintype.engine.build.lower" in arguments for _, arguments in run)  # the trace sees the children


@pytest.mark.slow
def test_without_a_home_to_write_in_nothing_is_said(traced, tmp_path):
    folder, _, _ = traced
    environment = _environment(tmp_path, "/dev/null/nobody", TINTYPE_CACHE=str(folder / "cache"))
    command = [sys.executable, "-m", "tintype", "generate", *PICTURE, "-o", str(tmp_path / "out/boat.png")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out/boat.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(STRACE is None, reason="strace isn't installed: apt-get install strace")
@pytest.mark.parametrize("command", ["devices", "info"])
def test_no_program_is_run_to_ask_for_a_device(command, tmp_path):
    environment = _environment(tmp_path, tmp_path / "home", TINTYPE_CACHE=str(tmp_path / "cache"))
    done, calls = _trace(tmp_path, [sys.executable, "-m", "tintype", command], environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert [arguments for name, arguments, _ in calls if name.startswith("execve")][1:] == []  # the first is its own
    assert _network(calls) == []


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None, reason="strace isn't installed: apt-get install strace")
def test_a_peer_in_the_bench_opens_no_socket_either(tmp_path):
    """Plain ONNX Runtime, in the bench's own worker."""
    job = {"num_inference_steps": 1, "width": 64, "height": 64, "threads": 1}
    assert Job(**job).model == "postcard"
    command = [sys.executable, "-m", "tintype.bench.worker", "onnxruntime", json.dumps(job)]
    environment = _environment(tmp_path, tmp_path / "home", TINTYPE_CACHE=str(tmp_path / "cache"))
    done, calls = _trace(tmp_path, command, environment, stdin='{"num_inference_steps": 1}\n')
    assert done.returncode == 0, done.stderr
    assert "seconds" in json.loads(done.stdout.splitlines()[1])
    assert _network(calls) == []
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("said", [None, "0", "1"])
def test_telemetry_is_off_for_libraries_and_children_once_tintype_is_imported(said):
    """What a library's getenv reads, whatever the user's environment says."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if said is not None:
        environment["ORT_DISABLE_TELEMETRY"] = said
    script = (
        "import ctypes, subprocess, sys, tintype; libc = ctypes.CDLL(None); libc.getenv.restype = ctypes.c_char_p; "
        "print(libc.getenv(b'ORT_DISABLE_TELEMETRY').decode(), flush=True); "
        "subprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"ORT_DISABLE_TELEMETRY\"])'], check=True)"
    )
    if os.name != "posix":
        pytest.skip("asks the C library of a POSIX system")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize(("before", "warned"), [({}, True), ({"ORT_DISABLE_TELEMETRY": "1"}, False)])
def test_a_program_that_loaded_onnxruntime_with_telemetry_before_is_warned_once(before, warned, tmp_path):
    script = "import onnxruntime, tintype, importlib; importlib.import_module('tintype.engine.device.installation')"
    environment = _environment(tmp_path, tmp_path / "home", **before)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("RuntimeWarning: onnxruntime was imported before tintype") == int(warned)
