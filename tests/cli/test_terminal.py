"""What a person at a terminal sees, and what Ctrl-C does: the command under a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals and signals are POSIX", allow_module_level=True)

import pty

DEADLINE_SECONDS = 120


@dataclass
class Watched:
    """A process whose stderr is a terminal."""

    process: subprocess.Popen[bytes]
    terminal: int
    seen: bytes = field(default=b"")
    deadline: float = field(default_factory=lambda: time.monotonic() + 5 * DEADLINE_SECONDS)

    def read_until(self, word: bytes) -> None:
        """Wait until the terminal has shown `word`."""
        while word not in self.seen:
            assert self._read(), self.seen

    def read_to_the_end(self) -> int:
        """Wait until the process ends; returns its exit code."""
        while self._read():
            pass
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def _read(self) -> bytes:
        ready, _, _ = select.select([self.terminal], [], [], DEADLINE_SECONDS)
        assert ready, f"nothing new for {DEADLINE_SECONDS} s after {self.seen[-200:]!r}"
        assert time.monotonic() < self.deadline, self.seen[-200:]
        try:
            found = os.read(self.terminal, 4096)
        except OSError:  # the other side of the terminal is closed
            found = b""
        self.seen += found
        return found


@pytest.fixture
def watch(tintype_command: list[str]) -> Iterator[object]:
    watched: list[Watched] = []

    def start(*arguments: object) -> Watched:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        process = subprocess.Popen(
            [*tintype_command, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env=environment,
            # A shell's background job ignores Ctrl-C, and so would everything that it starts, these tests among it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        watched.append(Watched(process, ours))
        return watched[-1]

    yield start
    for one in watched:
        with contextlib.suppress(ProcessLookupError):
            one.process.kill()
        one.process.wait()
        os.close(one.terminal)


def test_progress_shows_steps_their_rate_and_the_time_left(watch, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["a house", "--model", tiny_bundle, "--num-inference-steps", 50, "-o", tmp_path / "x.png"]
    watched = watch("generate", *arguments)
    assert watched.read_to_the_end() == 0
    assert b"denoising" in watched.seen
    assert b"/50" in watched.seen
    assert b"steps/s" in watched.seen
    assert b"0:00:0" in watched.seen
    assert (tmp_path / "x.png").is_file()


def test_planning_says_what_it_builds_and_measures(watch, tiny_bundle: Path, no_builds: Path) -> None:
    watched = watch("plan", tiny_bundle, "--memory", "2GiB", "--provider", "cpu", "--size", "64x64")
    assert watched.read_to_the_end() == 0
    for role in (b"text_encoder", b"denoiser", b"vae_decoder"):
        assert b"planning: building " + role in watched.seen
        assert b"planning: measuring " + role in watched.seen


def test_a_picture_within_a_budget_says_what_it_builds_before_the_first_step(
    watch, tiny_bundle: Path, tmp_path: Path, no_builds: Path
) -> None:
    arguments = ["a house", "--model", tiny_bundle, "--memory", "2GiB", "--provider", "cpu", "--size", "64x64"]
    watched = watch("generate", *arguments, "--num-inference-steps", 2, "-o", tmp_path / "x.png")
    assert watched.read_to_the_end() == 0
    assert b"building denoiser" in watched.seen
    assert (tmp_path / "x.png").is_file()


def test_no_terminal_no_progress(spawn, tiny_bundle: Path, tmp_path: Path) -> None:
    outcome = spawn("generate", "a house", "--model", tiny_bundle, "--num-inference-steps", 2, "-o", tmp_path / "x.png")
    assert outcome.code == 0
    assert outcome.stderr == ""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_within_a_step_and_leaves_no_file(
    sent: signal.Signals, code: int, watch, tiny_bundle: Path, tmp_path: Path
) -> None:
    arguments = ["a house", "--model", tiny_bundle, "--num-inference-steps", 900, "--count", 1000]
    watched = watch("generate", *arguments, "-o", tmp_path / "x.png")
    watched.read_until(b"denoising")
    watched.process.send_signal(sent)
    assert watched.read_to_the_end() == code
    shown = [int(step) for step in re.findall(rb"(\d+)/900000", watched.seen)]
    assert shown
    assert max(shown) < 900  # of the first picture, and so before any is decoded
    assert b"Traceback" not in watched.seen
    assert list(tmp_path.iterdir()) == []
