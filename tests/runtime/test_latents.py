"""Decoding that runs out of memory: tried smaller, else the latents wait on disk and are decoded later."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tintype
from tintype import Run
from tintype.engine import Session
from tintype.engine.run.strips import read_strips
from tintype.errors import BundleError, MemoryBudgetError, NumericError, OutputError, RecordError, UncutError
from tintype.memory.mode import MAPPED, PACKED, Strips, Tiles
from tintype.memory.plan import ExecutionPlan
from tintype.pipeline import picture_steps
from tintype.record.latents_file import latents_path, read_latents, save_latents
from tintype.request import make_request, resolve
from tintype.stages.context import decode_modes
from tintype.stages.decode import decode_with_fallback

ASKED = {"seed": 3, "num_inference_steps": 1, "width": 128, "height": 96}  # latents of 32x24

FALLBACKS = (PACKED, *map(Strips, (32, 8, 4)), Tiles(64, 16), Tiles(32, 8), Tiles(16, 4))
IN_TILES = (PACKED, *FALLBACKS[4:])  # of a decoder that cannot be cut


@pytest.fixture
def small_memory(monkeypatch):
    """Decoders run out of memory, unless they run in strips of `mib` or less."""

    def limit(mib: int) -> list[str]:
        run, seen = Session.run, []

        def limited(self, inputs):
            if "latent_sample" in inputs:
                facts = read_strips(self.path.parent)
                seen.append("whole" if facts is None else f"strips of {facts.held_bytes / 2**20:g} MiB")
                if facts is None or facts.held_bytes > mib * 2**20:
                    raise MemoryBudgetError("model.onnx ran out of memory: bad allocation", fix="less")
            return run(self, inputs)

        monkeypatch.setattr(Session, "run", limited)
        return seen

    return limit


def test_what_does_not_fit_whole_is_decoded_in_strips_and_the_record_says_so(pipeline, small_memory):
    whole = pipeline.generate("a house", **ASKED)
    seen = small_memory(8)
    result = pipeline.generate("a house", **ASKED)
    assert seen == ["whole", "strips of 32 MiB", "strips of 8 MiB"]
    assert result.record.made_with.modes == {"vae_decoder": "strips of 8 MiB"}
    difference = np.asarray(result.image, np.int16) - np.asarray(whole.image, np.int16)
    assert np.abs(difference).max() <= 1


def test_a_picture_in_strips_is_made_again_byte_for_byte(pipeline, small_memory, monkeypatch, tmp_path):
    with monkeypatch.context():
        small_memory(8)
        result = pipeline.generate("a house", **ASKED)
    monkeypatch.undo()
    (path,) = result.save(tmp_path / "x.png")
    again = pipeline.reproduce(tintype.read_record(path))
    again.save(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_each_picture_keeps_how_it_was_decoded(pipeline, small_memory):
    seen = small_memory(8)
    result = pipeline.generate("a house", **{**ASKED, "count": 2})
    assert [record.made_with.modes for record in result.records] == [{"vae_decoder": "strips of 8 MiB"}] * 2
    assert seen.count("whole") == 1  # what failed once isn't tried again


def test_a_record_in_tiles_is_decoded_in_tiles(pipeline):
    request = make_request("a house", ASKED)
    context = pipeline.context(resolve(request, pipeline.bundle.manifest))
    context.decode_modes = (Tiles(16, 4),)
    run = Run(context, picture_steps(context))
    list(run)
    assert run.result.record.made_with.modes == {"vae_decoder": "tiles of 16 cells, 4 shared"}
    again = pipeline.reproduce(run.result.record)
    assert again.image.tobytes() == run.result.image.tobytes()
    assert again.image.tobytes() != pipeline.generate(request).image.tobytes()


def test_decoding_goes_on_in_strips_smaller_than_planned():
    planned = ExecutionPlan(modes={"vae_decoder": Strips(8)})
    assert decode_modes(ExecutionPlan()) == FALLBACKS
    assert decode_modes(planned) == (Strips(8), Strips(4))
    assert decode_modes(ExecutionPlan(modes={"vae_decoder": MAPPED}))[-1] == Tiles(16, 4, mapped=True)
    assert decode_modes(ExecutionPlan(modes={"vae_decoder": Tiles(32, 8)})) == (Tiles(32, 8), Tiles(16, 4))


def test_a_record_that_says_whole_is_decoded_whole_or_not_at_all(pipeline, small_memory):
    record = pipeline.generate("a house", **ASKED).record
    small_memory(8)
    with pytest.raises(MemoryBudgetError, match="not enough memory"):
        pipeline.reproduce(record)


def test_when_nothing_fits_the_latents_are_kept_and_go_on_later(pipeline, small_memory, monkeypatch, tmp_path):
    expected = pipeline.generate("a house", **ASKED)
    small_memory(2)
    run = pipeline.steps("a house", **ASKED)
    with pytest.raises(MemoryBudgetError, match="strips of 4 MiB") as caught:
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

    def decode(latents, way):
        if not isinstance(way, Tiles) or way.cells > 32:
            raise MemoryError
        return np.zeros((1, 2, 2, 3), np.uint8)

    latents = np.zeros((1, 4, 128, 128), np.float32)
    _, way = decode_with_fallback(decode, latents, IN_TILES, lambda: freed.append(1))
    assert (way, len(freed)) == (Tiles(32, 8), 2)


def test_a_decoder_that_cannot_be_cut_goes_on_in_tiles_and_one_that_can_does_not():
    def trial(cut):
        tried = []

        def decode(latents, way):
            tried.append(way)
            if isinstance(way, Strips) and not cut:
                raise UncutError("the graph can't run in strips", fix="x")
            if not isinstance(way, Tiles) or way.cells > 32:
                raise MemoryError
            return np.zeros((1, 2, 2, 3), np.uint8)

        return tried, lambda: decode_with_fallback(
            decode, np.zeros((1, 4, 128, 128), np.float32), FALLBACKS, lambda: None
        )

    tried, run = trial(cut=False)
    assert run()[1] == Tiles(32, 8)
    assert tried == list(FALLBACKS[:-1])
    tried, run = trial(cut=True)
    with pytest.raises(MemoryBudgetError, match="even in strips of 4 MiB"):
        run()
    assert tried == [PACKED, *map(Strips, (32, 8, 4))]


def test_what_cannot_be_cut_is_told_before_memory_ran_out():
    def decode(latents, way):
        raise UncutError("the graph can't run in strips", fix="x")

    with pytest.raises(UncutError):
        decode_with_fallback(decode, np.zeros((1, 4, 128, 128), np.float32), FALLBACKS, lambda: None)


def test_only_memory_is_a_reason_to_try_again():
    def decode(latents, way):
        raise NumericError("the VAE decoder gave NaN", fix="x")

    with pytest.raises(NumericError):
        decode_with_fallback(decode, np.zeros((1, 4, 128, 128), np.float32), IN_TILES, lambda: None)


def test_a_tile_no_smaller_than_the_picture_is_not_tried():
    tried = []

    def decode(latents, way):
        tried.append(way)
        raise MemoryError

    with pytest.raises(MemoryBudgetError):
        decode_with_fallback(decode, np.zeros((1, 4, 32, 24), np.float32), IN_TILES, lambda: None)
    assert tried == [PACKED, Tiles(16, 4)]


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
