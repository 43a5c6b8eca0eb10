"""A decode that fails leaves the latents, says how to go on, and that command delivers the picture."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tintype import read_record
from tintype.engine import Session
from tintype.engine.run.strips import read_strips
from tintype.errors import MemoryBudgetError, OutputError

SIZE = ["--size", "128x128"]


@pytest.fixture
def failing_decoder(monkeypatch: pytest.MonkeyPatch):
    """Decoders run out of memory, until it is undone, unless they run in strips of this many MiB or less."""

    def fail_above(mib: int) -> None:
        run = Session.run

        def limited(self: Session, inputs):  # type: ignore[no-untyped-def]
            strips = read_strips(self.path.parent)
            if "latent_sample" in inputs and (strips is None or strips.held_bytes > mib * 2**20):
                raise MemoryBudgetError("model.onnx ran out of memory", fix="less")
            return run(self, inputs)

        monkeypatch.setattr(Session, "run", limited)

    return fail_above


def test_a_picture_too_large_for_memory_is_delivered_in_strips(generate, failing_decoder, tmp_path: Path) -> None:
    failing_decoder(8)
    assert generate("a red house", *SIZE).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    record = read_record(tmp_path / "x.png")
    assert record.made_with.modes == {"vae_decoder": "strips of 8 MiB"}


@pytest.mark.parametrize("count", [1, 2])
def test_the_error_names_the_command_that_goes_on(
    count: int, generate, command, failing_decoder, monkeypatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    with monkeypatch.context():
        failing_decoder(2)
        outcome = generate("a red house", *SIZE, "--count", count, "--batch-size", count)
    monkeypatch.undo()
    kept = tmp_path / "x.latents.safetensors"
    outcome.assert_one_clear_error(1, "not enough memory", f"--from-latents {kept}")
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    words = shlex.split(outcome.stderr[outcome.stderr.index("tintype generate") :])[1:]
    outcome = command(*words, "--model", tiny_bundle)
    assert outcome.code == 0, outcome.stderr
    resumed = sorted(tmp_path.glob("*.png"))
    assert len(resumed) == count
    before = [path.read_bytes() for path in resumed]
    assert generate("a red house", *SIZE, "--count", count, "--batch-size", count).code == 0
    assert [path.read_bytes() for path in resumed] == before


def test_json_tells_of_it_too(generate, failing_decoder, tmp_path: Path) -> None:
    failing_decoder(2)
    answer = json.loads(generate("a red house", *SIZE, "--json").stdout)
    assert answer["error"]["type"] == "MemoryBudgetError"
    assert "--from-latents" in answer["error"]["fix"]


@pytest.mark.parametrize("option", [["a house"], ["--seed", "1"], ["--size", "64x64"], ["--from-record", "x.png"]])
def test_nothing_that_the_latents_say_may_be_said_again(option: list[str], command, tmp_path: Path) -> None:
    outcome = command("generate", "--from-latents", tmp_path / "x.safetensors", "-o", tmp_path / "y.png", *option)
    outcome.assert_one_clear_error(2, "--from-latents", "leave")


def test_a_file_without_latents_is_refused(command, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for name in ("x.safetensors", "gone.safetensors"):
        outcome = command("generate", "--from-latents", tmp_path / name, "-o", tmp_path / "y.png")
        outcome.assert_one_clear_error(1, name)


def test_latents_that_cannot_be_kept_are_told(
    generate, failing_decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path, _write: object) -> None:
        raise OutputError(f"{path} cannot be written: the disk is full", fix="free some space")

    failing_decoder(2)
    monkeypatch.setattr("tintype.record.latents_file.write_output", full)
    generate("a red house", *SIZE).assert_one_clear_error(1, "not enough memory", "could not be kept", "disk is full")
    assert list(tmp_path.iterdir()) == []
