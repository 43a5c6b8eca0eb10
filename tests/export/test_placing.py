"""A bundle appears whole or not at all, and nothing else at its place is touched."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tintype.errors import ExportError
from tintype.export import export_bundle
from tintype.export.checkpoint import Checkpoint, open_checkpoint
from tintype.export.placing import placed


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


def make(bundle: Path, checkpoint: Checkpoint, text: str = "new", *, overwrite: bool = False) -> None:
    with placed(bundle, checkpoint, overwrite=overwrite) as scratch:
        (scratch.fp32 / "left over").write_text("gone afterwards")
        (scratch.bundle / "tintype.json").write_text(text)


def fail(bundle: Path, checkpoint: Checkpoint, failure: BaseException) -> None:
    with placed(bundle, checkpoint, overwrite=False) as scratch:
        (scratch.bundle / "half").write_text("written")
        raise failure


def test_a_finished_bundle_is_at_its_place_and_nothing_beside_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    make(tmp_path / "a" / "b", checkpoint)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["tintype.json"]


@pytest.mark.parametrize("failure", [ExportError("a gate", fix="-"), KeyboardInterrupt(), ValueError()])
def test_a_failure_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        fail(tmp_path / "b", checkpoint, failure)
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_stays_until_the_new_one_is_whole(checkpoint: Checkpoint, tmp_path: Path) -> None:
    make(tmp_path / "b", checkpoint, "old")
    with pytest.raises(ValueError), placed(tmp_path / "b", checkpoint, overwrite=True):
        raise ValueError
    assert (tmp_path / "b" / "tintype.json").read_text() == "old"
    make(tmp_path / "b", checkpoint, "new", overwrite=True)
    assert (tmp_path / "b" / "tintype.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_bundle_is_replaced_only_when_told_to(checkpoint: Checkpoint, tmp_path: Path) -> None:
    make(tmp_path / "b", checkpoint)
    with pytest.raises(ExportError, match="already") as caught:
        make(tmp_path / "b", checkpoint)
    assert "--overwrite" in caught.value.fix


def test_a_folder_of_other_things_is_never_replaced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("mine")
    with pytest.raises(ExportError, match="other things"):
        make(tmp_path / "photos", checkpoint, overwrite=True)
    assert (tmp_path / "photos" / "1.jpg").read_text() == "mine"


def test_an_empty_folder_is_a_fine_place(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    make(tmp_path / "b", checkpoint)
    assert (tmp_path / "b" / "tintype.json").is_file()


def test_a_file_at_the_place_or_on_the_way_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        make(tmp_path / "file", checkpoint, overwrite=True)
    with pytest.raises(ExportError, match="can't be written"):
        make(tmp_path / "file" / "below", checkpoint)


def test_the_checkpoint_is_never_written_into_or_over(checkpoint_copy: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_copy)
    for bundle in (checkpoint_copy, checkpoint_copy / "unet", checkpoint_copy.parent):
        with pytest.raises(ExportError, match="checkpoint"):
            make(bundle, checkpoint, overwrite=True)


def test_too_little_room_is_told_before_the_work(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(total=100, used=99, free=1))
    with pytest.raises(ExportError, match="GiB free"):
        make(tmp_path / "b", checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_told_as_such(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="full"), placed(tmp_path / "b", checkpoint, overwrite=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_below_its_gate_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tintype.bundle import Parity
    from tintype.export import graphs
    from tintype.export.bundling import Effort
    from tintype.export.parity import GraphReport

    def poor(job: graphs.Job) -> list[GraphReport]:
        (job.scratch.bundle / "unet").mkdir()
        parity = Parity(graph="denoiser", reference="torch fp32", psnr_db=12.0, gate_db=80.0, passed=False)
        return [GraphReport("denoiser", "fp32", parity, 0)]

    monkeypatch.setattr(graphs, "write_graphs", poor)
    with pytest.raises(ExportError, match=r"12\.0 dB"):
        export_bundle(tiny_checkpoint, tmp_path / "b", effort=Effort(steps=1, gate_prompts=1, latent_size=4))
    assert list(tmp_path.iterdir()) == []
