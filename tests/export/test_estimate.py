"""What an export will take is said before it begins, from headers alone, and refused where it can't fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tintype.cli import run
from tintype.errors import ExportError
from tintype.export import Effort, export_bundle
from tintype.export import estimate as estimating
from tintype.export import tensors as reading
from tintype.export.checkpoint import Checkpoint, check_weights, open_checkpoint
from tintype.export.estimate import Estimate, Rates, count_operations, estimate
from tintype.export.plans import export_plan
from tintype.export.progress import Bars, Overall, Silent, duration

RATES = Rates(operations=1e9, written_bytes=1e8, scaled_weights=1e6)
TOKENS = 77


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """One whose weights nobody may read."""

    def unread(*_arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(reading, "read_tensors", unread)
    return open_checkpoint(tiny_checkpoint)


def estimated(
    checkpoint: Checkpoint, folder: Path, precision: str = "fp32", *, parity: str = "quick", side: int | None = None,
    finished: tuple[str, ...] = (), rates: Rates = RATES,
) -> Estimate:  # fmt: skip
    plan = export_plan(checkpoint, Effort(latent_size=side), None, 7.5, parity)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimating, "measure_rates", lambda _folder: rates)
        return estimate(checkpoint, plan, precision, folder, finished, TOKENS)


def test_operations_are_those_of_the_modules(checkpoint: Checkpoint) -> None:
    at = {side: count_operations(checkpoint, "vae_decoder", side, TOKENS) for side in (8, 16)}
    assert 3.9 < at[16] / at[8] < 6.0  # convolutions grow with the area, attention with its square
    # The first convolution alone, 4 channels to 32 of 3x3 at the latents' size.
    assert at[8] > 2 * 4 * 32 * 9 * 8 * 8
    assert count_operations(checkpoint, "denoiser", 8, TOKENS) > 0.0


def test_disk_is_what_the_precision_takes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    precisions = ("fp32", "fp16", "int8", "int4")
    fp32, fp16, int8, int4 = (estimated(checkpoint, tmp_path, precision) for precision in precisions)
    weights = sum(checkpoint.fp32_bytes(part) for part in ("text_encoder", "unet", "vae", "vae"))
    assert fp32.bundle_bytes == weights  # a VAE is in both of its graphs, at most
    assert fp32.bundle_bytes > 1.9 * fp16.bundle_bytes > int8.bundle_bytes > int4.bundle_bytes
    assert fp16.scratch_bytes > checkpoint.fp32_bytes("unet")  # fp32 graphs, which quantization reads


def test_memory_is_that_of_the_largest_part_and_not_of_all(checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = [checkpoint.fp32_bytes(part) for part in checkpoint.components]
    without = estimated(checkpoint, tmp_path, finished=("denoiser",))
    whole = estimated(checkpoint, tmp_path)
    assert whole.peak_bytes - estimating.BASE_BYTES < 1.5 * max(weights) + 16**2 * estimating.CELL_BYTES
    assert without.peak_bytes < whole.peak_bytes
    assert whole.own_bytes < whole.peak_bytes - max(weights) // 2  # the rest is pages of the checkpoint's files


def test_time_follows_the_machine_and_the_choices(checkpoint: Checkpoint, tmp_path: Path) -> None:
    usual = estimated(checkpoint, tmp_path)
    faster = Rates(operations=4e9, written_bytes=4e8, scaled_weights=4e6)
    assert estimated(checkpoint, tmp_path, rates=faster).seconds < usual.seconds
    assert estimated(checkpoint, tmp_path, parity="full").seconds > usual.seconds
    assert estimated(checkpoint, tmp_path, "int8").seconds > usual.seconds
    left = estimated(checkpoint, tmp_path, finished=("text_encoder", "denoiser"))
    assert left.seconds < usual.seconds
    assert left.finished == ("text_encoder", "denoiser")
    assert not [title for title in left.phases if "denoiser" in title or title == "real inputs"]
    assert left.bundle_bytes < usual.bundle_bytes


def test_rates_are_measured_here_in_moments(tmp_path: Path) -> None:
    rates = estimating.measure_rates(tmp_path)
    assert rates.operations > 1e8
    assert rates.written_bytes > 1e5
    assert rates.scaled_weights > 1e4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_too_little_room_is_told_before_the_work(
    kind: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(total=100, used=99, free=1))
    else:
        monkeypatch.setattr(estimating, "free_bytes", lambda: 2**20)
    assert run(["export", str(tiny_checkpoint), str(tmp_path / "b"), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == kind
    assert error["least_bytes"] > error["free_bytes"] in (1, 2**20)
    assert list(tmp_path.iterdir()) == []


def test_it_is_said_and_stands_in_the_report(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tintype.export import graphs

    said: list[str] = []

    def stop(job: graphs.Job) -> None:
        raise ExportError("; ".join(said), fix="-")

    monkeypatch.setattr(graphs, "write_graphs", stop)
    with pytest.raises(ExportError) as caught:
        export_bundle(tiny_checkpoint, tmp_path / "b", progress=Silent(said.append))
    for word in ("about", "for the bundle", "meanwhile", "of memory", "free"):
        assert word in caught.value.message


@pytest.mark.long
def test_an_export_reports_what_it_said_and_which_parity_it_did(tiny_bundle: Path, int8_export) -> None:  # type: ignore[no-untyped-def]
    _, printed = int8_export
    assert printed["parity"] == "quick"
    assert printed["estimate"]["seconds"] > 0
    assert printed["estimate"]["peak_bytes"] > 2**20
    kinds = {line["kind"] for line in json.loads((tiny_bundle / "tintype.json").read_text())["parity"]}
    assert kinds == {"quick"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "5 s"), (61, "60 s"), (100, "2 min"), (350, "6 min"), (9000, "2.5 h")]
)
def test_time_is_told_no_finer_than_it_is_known(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_of_all_stages_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told: list[tuple[float, float]] = []

    class Watched(Silent):
        def overall(self, share: float, seconds_left: float) -> None:
            told.append((share, seconds_left))

    overall = Overall(Watched(), {"a": 10.0, "b": 30.0})
    with overall.stage("a", 2) as advance:
        now[0] = 10.0  # twice as slow as expected
        advance(1)
        now[0] = 20.0
    assert told[0][0] == pytest.approx(5 / 40)
    assert 35.0 < told[0][1] < 70.0
    assert told[-1] == (pytest.approx(10 / 40), pytest.approx(60.0))
    with overall.stage("not expected", 1) as advance:
        advance(1)
    assert told[-1][0] == pytest.approx(10 / 40)
    with overall.stage("b", 1):
        now[0] = 80.0
    assert told[-1] == (1.0, 0.0)


def test_bars_show_the_time_left_and_plain_output_says_it_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, force_terminal=True, width=100)
    with Bars(console) as bars:
        bars.overall(0.25, 300.0)
    assert "all, about 5 min left" in console.export_text()
    now, said = [0.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    silent = Silent(said.append)
    for second in range(0, 70, 5):
        now[0] = float(second)
        silent.overall(second / 100, 100.0 - second)
    assert said == ["30% done, about 70 s left", "60% done, about 40 s left"]


def test_weights_are_looked_at_a_tensor_at_a_time(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, alive, seen = open_checkpoint(tiny_checkpoint), [0], list[int]()
    make = reading._tensor

    class Tracked:
        def __init__(self, tensor: object) -> None:
            self.tensor = tensor
            alive[0] += 1

        def __del__(self) -> None:
            alive[0] -= 1

        def __array__(self) -> object:
            return self.tensor

    import torch

    real = torch.isfinite
    monkeypatch.setattr(reading, "_tensor", lambda stored, entry: Tracked(make(stored, entry)))
    monkeypatch.setattr(torch, "isfinite", lambda tracked: real(tracked.tensor))
    check_weights(checkpoint, "unet", lambda count: seen.append(alive[0]))
    assert len(seen) == len(checkpoint.entries("unet"))
    assert max(seen) <= 2
