"""An export that was broken off goes on with the graphs that it had finished, and ends as one that was not."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tintype.errors import ExportError
from tintype.export import Effort, export_bundle, graphs
from tintype.export.partial import Partial
from tintype.export.progress import Silent

UNET = "unet/diffusion_pytorch_model.safetensors"
LEAST = Effort(steps=1, calibration_prompts=1, gate_prompts=1, gate_calls=1, latent_size=8, damage_seconds=0.0)
KILLED = """
import os, signal, sys
from tintype.export import Effort, export_bundle
from tintype.export.partial import Partial
keep = Partial.keep
def keep_and_die(self, *arguments):
    keep(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)
Partial.keep = keep_and_die
effort = Effort(steps=1, calibration_prompts=1, gate_prompts=1, gate_calls=1, latent_size=8, damage_seconds=0.0)
export_bundle(sys.argv[1], sys.argv[2], precision="int8", name="same", effort=effort)
"""


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def export(checkpoint: Path, bundle: Path) -> list[str]:
    """What it remarked; the smallest int8 export that there is."""
    said: list[str] = []
    progress = Silent(said.append)
    export_bundle(checkpoint, bundle, precision="int8", name="same", effort=LEAST, progress=progress)
    return said


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """What the next graphs that are finished end with, in turn."""
    failures: list[BaseException] = []
    keep = Partial.keep

    def keep_and_break(self: Partial, *arguments: object) -> None:
        keep(self, *arguments)  # type: ignore[arg-type]
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(Partial, "keep", keep_and_break)
    yield failures
    assert failures == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.slow
@pytest.mark.long
def test_a_killed_export_goes_on_after_each_graph_and_ends_byte_for_byte_as_another(
    tiny_checkpoint: Path, tmp_path: Path, breaks: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tiny_checkpoint, tmp_path / "undisturbed")
    command = [sys.executable, "-c", KILLED, str(tiny_checkpoint), str(tmp_path / "killed")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".killed.partial-*")
    (left / "bundle" / "unet").mkdir()
    (left / "bundle" / "unet" / "model.onnx_data").write_bytes(b"half of a graph")
    for failure in (KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        breaks.append(failure)
        with pytest.raises((KeyboardInterrupt, ExportError)) as caught:
            export(tiny_checkpoint, tmp_path / "killed")
        assert any("goes on from there" in note for note in caught.value.__notes__)
    written: list[str] = []
    write = graphs._write_fp32
    monkeypatch.setattr(graphs, "_write_fp32", lambda job, role: (written.append(role), write(job, role))[1])
    said = export(tiny_checkpoint, tmp_path / "killed")
    assert any("goes on: text_encoder, denoiser, vae_encoder are there" in sentence for sentence in said)
    assert written == ["vae_decoder"]
    assert digests(tmp_path / "killed") == digests(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "undisturbed"]


def test_a_changed_source_begins_anew(
    checkpoint_copy: Path, tmp_path: Path, breaks: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint_copy, tmp_path / "b")
    weights = load_file(checkpoint_copy / UNET)
    weights["conv_in.bias"] += torch.ones(())
    save_file(weights, checkpoint_copy / UNET, metadata={"format": "pt"})
    seen: list[list[str]] = []

    def stop(job: graphs.Job) -> None:
        seen.append(list(job.scratch.partial.reports))
        raise ExportError("far enough", fix="-")

    monkeypatch.setattr(graphs, "write_graphs", stop)
    with pytest.raises(ExportError, match="far enough"):
        export(checkpoint_copy, tmp_path / "b")
    assert seen == [[]]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
