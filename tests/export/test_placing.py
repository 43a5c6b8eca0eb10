"""A bundle appears whole or not at all, and nothing else at its place is touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from filelock import FileLock

from tintype.bundle import Parity
from tintype.errors import BuildError, ExportError
from tintype.export import export_bundle
from tintype.export.checkpoint import Checkpoint, open_checkpoint
from tintype.export.parity import GraphReport
from tintype.export.placing import Scratch, placed

KEY = "0" * 24


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


def make(bundle: Path, checkpoint: Checkpoint, text: str = "new", *, overwrite: bool = False) -> None:
    with placed(bundle, checkpoint, key=KEY, overwrite=overwrite) as scratch:
        (scratch.fp32 / "left over").write_text("gone afterwards")
        (scratch.bundle / "tintype.json").write_text(text)


def fail(bundle: Path, checkpoint: Checkpoint, failure: BaseException) -> None:
    with placed(bundle, checkpoint, key=KEY, overwrite=False) as scratch:
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
    with pytest.raises(ValueError), placed(tmp_path / "b", checkpoint, key=KEY, overwrite=True):
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


def finish(scratch: Scratch, role: str = "denoiser") -> None:
    """A graph that passed, as `write_graphs` keeps it."""
    path = scratch.bundle / role / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(role.encode())
    parity = Parity(graph=role, reference="torch fp32", psnr_db=90.0, gate_db=80.0, passed=True)
    scratch.partial.keep(role, GraphReport(role, "fp32", parity, 7, largest={"a": 1e5}), [path])


def break_off(bundle: Path, checkpoint: Checkpoint, failure: BaseException, key: str = KEY) -> BaseException:
    with pytest.raises(BaseException) as caught, placed(bundle, checkpoint, key=key, overwrite=False) as scratch:  # noqa: PT012
        finish(scratch)
        (scratch.bundle / "denoiser" / "half").write_text("written")
        (scratch.fp32 / "model.onnx").write_text("large")
        raise failure
    return caught.value


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), BuildError("-", fix="-")])
def test_what_is_finished_stays_for_the_next_export(
    checkpoint: Checkpoint, tmp_path: Path, failure: BaseException
) -> None:
    caught = break_off(tmp_path / "b", checkpoint, failure)
    assert any("denoiser is finished" in note for note in caught.__notes__)
    (left,) = tmp_path.iterdir()
    assert sorted(path.name for path in left.rglob("*") if path.is_file()) == ["finished.json", "lock", "model.onnx"]
    with placed(tmp_path / "b", checkpoint, key=KEY, overwrite=False) as scratch:
        assert scratch.partial.reports["denoiser"].largest == {"a": 1e5}
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("harm", ["a byte", "cut", "gone", "no lines"])
def test_what_is_not_as_it_was_finished_is_made_anew(checkpoint: Checkpoint, tmp_path: Path, harm: str) -> None:
    break_off(tmp_path / "b", checkpoint, KeyboardInterrupt())
    (left,) = tmp_path.iterdir()
    graph = left / "bundle" / "denoiser" / "model.onnx"
    match harm:
        case "a byte":
            graph.write_bytes(b"denoisez")
        case "cut":
            graph.write_bytes(b"denoise")
        case "gone":
            graph.unlink()
        case "no lines":
            (left / "finished.json").write_text('{"graphs": {"denoiser"')
    with placed(tmp_path / "b", checkpoint, key=KEY, overwrite=False) as scratch:
        assert scratch.partial.reports == {}
        assert not graph.exists()


def test_another_export_to_the_same_place_begins_anew_and_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    break_off(tmp_path / "b", checkpoint, KeyboardInterrupt())
    (other,) = tmp_path.iterdir()
    with placed(tmp_path / "b", checkpoint, key="1" * 24, overwrite=False) as scratch:
        assert scratch.partial.reports == {}
        assert not other.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_other_places_left_is_swept_after_a_week_and_never_while_it_is_made(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    names = [f".{name}.partial-{KEY}" for name in ("young", "old", "busy")] + [".mine.partial-notes"]
    for name in names:
        (tmp_path / name).mkdir(mode=0o700)
        os.utime(tmp_path / name, (1, 1) if "young" not in name else None)
    with FileLock(tmp_path / names[2] / "lock"):
        os.utime(tmp_path / names[2], (1, 1))
        make(tmp_path / "b", checkpoint)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[0], names[2], names[3], "b"])


def test_two_exports_to_one_place_do_not_meet(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with placed(tmp_path / "b", checkpoint, key=KEY, overwrite=False) as scratch:
        finish(scratch)
        with pytest.raises(ExportError, match="at work"):
            make(tmp_path / "b", checkpoint)
        assert (scratch.bundle / "denoiser" / "model.onnx").is_file()
    assert (tmp_path / "b" / "denoiser" / "model.onnx").is_file()


@pytest.mark.skipif(os.name != "posix", reason="asks who may write")
def test_a_folder_that_others_can_write_is_not_believed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    break_off(tmp_path / "b", checkpoint, KeyboardInterrupt())
    (left,) = tmp_path.iterdir()
    left.chmod(0o777)
    with pytest.raises(ExportError, match="others can write"):
        make(tmp_path / "b", checkpoint)
    left.rename(tmp_path / "elsewhere")
    left.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ExportError, match="no folder"):
        make(tmp_path / "b", checkpoint)


def test_a_disk_that_fills_up_is_told_as_such(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="full"), placed(tmp_path / "b", checkpoint, key=KEY, overwrite=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_below_its_gate_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tintype.export import Effort, graphs

    def poor(job: graphs.Job) -> list[GraphReport]:
        (job.scratch.bundle / "unet").mkdir()
        parity = Parity(graph="denoiser", reference="torch fp32", psnr_db=12.0, gate_db=80.0, passed=False)
        return [GraphReport("denoiser", "fp32", parity, 0)]

    monkeypatch.setattr(graphs, "write_graphs", poor)
    with pytest.raises(ExportError, match=r"12\.0 dB"):
        export_bundle(tiny_checkpoint, tmp_path / "b", effort=Effort(steps=1, gate_prompts=1, latent_size=4))
    assert list(tmp_path.iterdir()) == []
