"""Decoding that runs out of memory: tried smaller, else the latents wait on disk and are decoded later."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tintype
from tintype.decoding import TILINGS, decode_somehow
from tintype.engine import Session
from tintype.errors import BundleError, MemoryBudgetError, NumericError, OutputError, RecordError
from tintype.image.tiles import Tiling
from tintype.latents import latents_path, read_latents, save_latents

ASKED = {"seed": 3, "num_inference_steps": 1, "width": 128, "height": 96}  # latents of 32x24


@pytest.fixture(scope="module")
def pipeline(tiny_bundle):
    with tintype.load(tiny_bundle, provider="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def small_memory(monkeypatch):
    """Decoders run out of memory above `side` latent cells."""

    def limit(side: int) -> list[tuple[int, ...]]:
        run, seen = Session.run, []

        def limited(self, inputs):
            latents = inputs.get("latent_sample")
            if latents is not None:
                seen.append(latents.shape)
                if max(latents.shape[2:]) > side:
                    raise MemoryBudgetError("model.onnx ran out of memory: bad allocation", fix="less")
            return run(self, inputs)

        monkeypatch.setattr(Session, "run", limited)
        return seen

    return limit


def test_what_does_not_fit_whole_is_decoded_in_tiles_and_the_record_says_so(pipeline, small_memory):
    seen = small_memory(16)
    result = pipeline.generate("a house", **ASKED)
    assert result.image.size == (128, 96)
    assert seen[0] == (1, 4, 24, 32)
    assert set(seen[1:]) == {(1, 4, 16, 16)}
    assert result.record.tiling == TILINGS[-1]


def test_a_tiled_picture_is_made_again_byte_for_byte(pipeline, small_memory, monkeypatch, tmp_path):
    with monkeypatch.context():
        small_memory(16)
        result = pipeline.generate("a house", **ASKED)
    monkeypatch.undo()
    (path,) = result.save(tmp_path / "x.png")
    again = pipeline.reproduce(tintype.read_record(path))
    again.save(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()
    assert pipeline.generate("a house", **ASKED).image.tobytes() != result.image.tobytes()


def test_each_picture_keeps_how_it_was_decoded(pipeline, small_memory):
    seen = small_memory(16)
    result = pipeline.generate("a house", **{**ASKED, "count": 2})
    assert [record.tiling for record in result.records] == [TILINGS[-1]] * 2
    assert seen.count((1, 4, 24, 32)) == 1  # what failed once isn't tried again


def test_a_record_that_says_whole_is_decoded_whole_or_not_at_all(pipeline, small_memory):
    record = pipeline.generate("a house", **ASKED).record
    small_memory(16)
    with pytest.raises(MemoryBudgetError, match="not enough memory"):
        pipeline.reproduce(record)


def test_when_no_tile_fits_the_latents_are_kept_and_go_on_later(pipeline, small_memory, monkeypatch, tmp_path):
    expected = pipeline.generate("a house", **ASKED)
    small_memory(8)
    run = pipeline.steps("a house", **ASKED)
    with pytest.raises(MemoryBudgetError, match="tiles of 16") as caught:
        list(run)
    assert "--from-latents" in caught.value.fix
    saved = read_latents(run.save_latents(tmp_path / "x.latents.safetensors"))
    np.testing.assert_array_equal(saved.latents, expected.latents)
    with pytest.raises(MemoryBudgetError):
        pipeline.resume(saved)
    monkeypatch.undo()
    result = pipeline.resume(saved)
    assert result.image.tobytes() == expected.image.tobytes()
    assert result.record == expected.record
    assert result.timings.decode_seconds > 0


def test_memory_is_given_back_before_each_new_try():
    freed = []

    def decode(latents, tiling):
        if tiling is None or tiling.tile > 32:
            raise MemoryError
        return np.zeros((1, 2, 2, 3), np.uint8)

    latents = np.zeros((1, 4, 128, 128), np.float32)
    _, tiling = decode_somehow(decode, latents, TILINGS, lambda: freed.append(1))
    assert (tiling, len(freed)) == (Tiling(32, 8), 2)


def test_only_memory_is_a_reason_to_try_again():
    def decode(latents, tiling):
        raise NumericError("the VAE decoder gave NaN", fix="x")

    with pytest.raises(NumericError):
        decode_somehow(decode, np.zeros((1, 4, 128, 128), np.float32), TILINGS, lambda: None)


def test_a_tile_no_smaller_than_the_picture_is_not_tried():
    tried = []

    def decode(latents, tiling):
        tried.append(tiling)
        raise MemoryError

    with pytest.raises(MemoryBudgetError):
        decode_somehow(decode, np.zeros((1, 4, 32, 24), np.float32), TILINGS, lambda: None)
    assert tried == [None, Tiling(16, 4)]


def test_latents_and_records_survive_their_file(pipeline, tmp_path):
    result = pipeline.generate("ein Haus, 雪", seed=1, num_inference_steps=1, count=2)
    path = save_latents(tmp_path / "x.latents.safetensors", result.latents, result.records)
    saved = read_latents(path)
    assert saved.records == result.records
    np.testing.assert_array_equal(saved.latents, result.latents)
    assert list(tmp_path.iterdir()) == [path]
    assert latents_path("a/x.png").as_posix() == "a/x.latents.safetensors"


def test_a_place_that_cannot_be_written_is_told(pipeline, tmp_path):
    result = pipeline.generate("a house", seed=1, num_inference_steps=1)
    with pytest.raises(OutputError):
        save_latents(tmp_path / "nowhere" / "x.latents.safetensors", result.latents, result.records)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "plain", "shape", "nan", "many", "records"])
def test_a_file_that_is_none_is_refused(pipeline, tmp_path, damage):
    from safetensors.numpy import save_file

    result = pipeline.generate("a house", seed=1, num_inference_steps=1)
    path = save_latents(tmp_path / "x.latents.safetensors", result.latents, result.records)
    latents, text = result.latents, json.dumps([json.loads(result.record.texts()["tintype"])])
    if damage == "missing":
        path.unlink()
    elif damage in ("empty", "text", "cut"):
        path.write_bytes({"empty": b"", "text": b"no latents at all", "cut": path.read_bytes()[:-40]}[damage])
    elif damage == "plain":
        save_file({"latents": latents}, path)
    else:
        wrong = {"shape": latents[0], "nan": latents * np.float32(np.nan), "many": latents.repeat(2, 0)}
        save_file({"latents": wrong.get(damage, latents)}, path, {"tintype": "[{}]" if damage == "records" else text})
    with pytest.raises(RecordError) as caught:
        read_latents(path)
    assert caught.value.fix


def test_latents_of_another_size_or_bundle_are_refused(pipeline, tiny_bundle, tmp_path):
    result = pipeline.generate("a house", seed=1, num_inference_steps=1)
    path = save_latents(tmp_path / "x.safetensors", result.latents[:, :, :8], result.records)
    with pytest.raises(BundleError, match="would be"):
        pipeline.resume(read_latents(path))
    path = save_latents(tmp_path / "x.safetensors", result.latents, result.records)
    with tintype.load(tiny_bundle, threads=2) as other:
        with pytest.raises(RecordError, match="threads was 1, here it is 2"):
            other.resume(read_latents(path))
        tried = other.resume(read_latents(path), anyway=True)
    assert "elsewhere" in tried.record.notes[0]


def test_there_are_no_latents_before_the_first_picture(pipeline, tmp_path):
    run = pipeline.steps("a house", **ASKED)
    with pytest.raises(RuntimeError, match="no latents"):
        run.save_latents(tmp_path / "x")
