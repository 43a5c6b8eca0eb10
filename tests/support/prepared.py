"""Child processes of the engine from one that has imported what they need: a third of a second less for each build.

`PreparedChildren.start` stands in the place of `tintype.engine.build.child.start`. A child does what it does
otherwise, in a process of its own with the caller's environment and folder; only its imports are there already, since
it is a fork of a process which has done nothing but import.

Run as a script, this module is that process: it takes requests from a socket, whose number is its argument. A request
is {"module", "environment", "folder"} with four open files: stdin, stdout, stderr, and a pipe that is told two lines,
the child's process id and, once it has ended, its exit code.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

PREFIX = "tintype.engine.build."  # of modules that are begun here
IMPORTED = (
    "numpy.random",
    "onnx.reference.ops",
    "onnx_ir.passes.common",
    "tintype.kernels.registry",
    *("tintype.kernels.graph." + each for each in ("choice", "hoist", "image_tokens", "low_rank", "token_merging")),
    *(PREFIX + each for each in ("analyse", "change", "lower", "measure", "merge", "probe", "spill", "strip_build")),
)
LONGEST_REQUEST = 2**18  # bytes
STREAMS = 3


class PreparedChildren:
    """The process that children are forks of, and what begins them. On Linux only."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._in_turn = threading.Lock()

    def start(self, module: str, environment: Mapping[str, str] | None) -> PreparedChild:
        """A module as a process of its own, which begins when it is given its job."""
        return PreparedChild(self, module, {**os.environ, **(environment or {})})

    def ask(self, request: str, files: Sequence[int]) -> None:
        with self._in_turn:
            socket.send_fds(self._socket, [request.encode()], files)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


class PreparedChild:
    """What `run_child` uses of a `subprocess.Popen`, of such a process."""

    def __init__(self, children: PreparedChildren, module: str, environment: Mapping[str, str]) -> None:
        self._children, self._module, self._environment = children, module, environment
        self._streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        self._told, self._telling = os.pipe()
        self._begun, self._said = False, b""
        self.returncode: int | None = None

    def __enter__(self) -> PreparedChild:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(60.0)
        for file in (*self._streams, self._told):
            os.close(file)

    def communicate(self, text: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """As `subprocess.Popen` has it."""
        if not self._begun:
            self._begin(text or "")
        self._wait(timeout)
        said, complained = (os.pread(file, os.fstat(file).st_size, 0).decode() for file in self._streams[1:])
        return said, complained

    def kill(self) -> None:
        if self._begun and self.returncode is None:
            while b"\n" not in self._said:
                self._said += os.read(self._told, 64)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self._said.split(b"\n")[0]), signal.SIGKILL)

    def _begin(self, text: str) -> None:
        os.write(self._streams[0], text.encode())
        os.lseek(self._streams[0], 0, os.SEEK_SET)
        request = {"module": self._module, "environment": self._environment, "folder": str(Path.cwd())}
        self._children.ask(json.dumps(request), [*self._streams, self._telling])
        os.close(self._telling)
        self._begun = True

    def _wait(self, timeout: float | None) -> None:
        """Until the exit code is told, which is the second line."""
        while self._begun and self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._module, timeout or 0.0)
            self._said += os.read(self._told, 64)
            if self._said.count(b"\n") == 2:
                self.returncode = int(self._said.split(b"\n")[1])


def serve(requests: socket.socket) -> None:
    """Begin the children that are asked for, until nobody can ask any more."""
    telling: dict[int, int] = {}  # by process id, the pipe to whoever waits
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    while True:
        ready = select.select([requests, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            tell_ended(telling)
        if requests in ready:
            text, files, _flags, _address = socket.recv_fds(requests, LONGEST_REQUEST, STREAMS + 1)
            if not text:
                return
            *streams, pipe = files
            child = os.fork()
            if not child:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in (requests.fileno(), woken, wakes, pipe, *telling.values()):
                    os.close(number)
                begin(json.loads(text), streams)
            os.write(pipe, b"%d\n" % child)
            telling[child] = pipe
            for stream in streams:
                os.close(stream)


def tell_ended(telling: dict[int, int]) -> None:
    """The exit code of each child that has ended, as `subprocess` counts them, to who waits for it."""
    for child in list(telling):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            pipe = telling.pop(child)
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(pipe)


def begin(request: dict[str, object], streams: list[int]) -> None:
    """Be that child; never returns."""
    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        environment, folder, module = request["environment"], request["folder"], request["module"]
        assert isinstance(environment, dict)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(str(folder))
        code = importlib.import_module(str(module)).main()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    from tintype.engine.build.late import import_late
    from tintype.engine.device.providers import load_onnxruntime

    import_late()
    load_onnxruntime()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
