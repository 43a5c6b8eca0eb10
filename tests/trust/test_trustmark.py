"""A TrustMark by an operator's own files: put beside the watermark, read before it is written, and never twice."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image
from trustmark_files import checks, node, save_graph, write_trustmark

import tintype
from tintype.bench.pictures import as_jpeg, photograph
from tintype.cli.verify import verify
from tintype.errors import NumericError, RecordError, RequestError
from tintype.record import parse_record
from tintype.trust.credentials import manifest_of
from tintype.trust.embed import embed
from tintype.trust.marking import Marker
from tintype.trust.operator_graph import MAX_SIDE
from tintype.trust.payload import Payload
from tintype.trust.trustmark import TrustMark, open_trustmark
from tintype.trust.trustmark_bits import own_data
from tintype.trust.verify import read_watermark

PAYLOAD = Payload(0xBADCAB, 0x5A)
PROMPT = "a red sailboat on a calm sea at sunset"
FIELDS = {"seed": 7, "num_inference_steps": 2}
SIZES = [(128, 128), (512, 384), (300, 200), (700, 300), (200, 700)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trustmark(tmp_path_factory.mktemp("trustmark") / "files")


@pytest.fixture(scope="module")
def trustmark(files: Path) -> TrustMark:
    return open_trustmark(files)


@pytest.fixture(scope="module")
def postcard(files: Path) -> Iterator[tintype.Pipeline]:
    with tintype.load("postcard", provider="cpu", trustmark=files) as pipeline:
        yield pipeline


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_mark_is_written_and_read_at_any_size(trustmark: TrustMark, size: tuple[int, int]) -> None:
    picture = photograph(3, size)
    assert not trustmark.reading(picture).found
    marked, facts = trustmark.mark(picture, PAYLOAD)
    assert (facts.payload, facts.kept, facts.variant) == (f"1*{own_data(PAYLOAD)}", False, "Q")
    assert facts.psnr_db is not None
    assert 35 < facts.psnr_db < 55
    found = trustmark.reading(marked)
    assert (found.found, found.maker, found.schema) == (True, "badcab", "BCH_5")
    assert found.payload == own_data(PAYLOAD)
    assert trustmark.checked(facts, marked).is_read
    assert not trustmark.checked(facts, picture).is_read
    if min(size) >= 200:
        assert trustmark.reading(as_jpeg(marked, 75)).maker == "badcab"


def test_of_a_long_picture_the_middle_square_is_marked_and_fades_out(trustmark: TrustMark) -> None:
    picture = np.full((200, 700, 3), 128, np.uint8)
    marked, _ = trustmark.mark(picture, PAYLOAD)
    change = np.abs(marked.astype(int) - 128).max(axis=(0, 2))
    assert not change[:250].any()
    assert not change[450:].any()
    assert change[256:444].max() > 2 * max(change[250], change[449])
    assert (change[256:444] > 0).mean() > 0.7
    whole, _ = trustmark.mark(picture[:, :400], PAYLOAD)
    assert np.abs(whole.astype(int) - 128).max(axis=(0, 2))[[8, -9]].min() > 0


def test_no_channel_changes_its_mean(trustmark: TrustMark) -> None:
    picture = np.full((256, 256, 3), (100, 128, 160), np.uint8)
    marked, _ = trustmark.mark(picture, PAYLOAD)
    assert np.abs(marked.mean(axis=(0, 1)) - (100, 128, 160)).max() < 0.1


def test_a_mark_that_is_there_is_kept(trustmark: TrustMark) -> None:
    first, _ = trustmark.mark(photograph(3, (256, 256)), PAYLOAD)
    again, facts = trustmark.mark(first, Payload(0x111111, 0))
    assert again is first
    assert (facts.kept, facts.payload, facts.psnr_db) == (True, f"1*{own_data(PAYLOAD)}", None)


def test_where_nothing_may_change_nothing_does(trustmark: TrustMark) -> None:
    picture, where = photograph(3, (256, 256)), np.zeros((256, 256), np.float32)
    where[:, 100:] = 1.0
    marked, _ = trustmark.mark(picture, PAYLOAD, where)
    assert np.array_equal(marked[:, :100], picture[:, :100])
    assert not np.array_equal(marked[:, 100:], picture[:, 100:])


def test_neither_mark_takes_the_other_away(trustmark: TrustMark) -> None:
    """In the order in which pictures get them: ours is as strong as it takes to be read over the other."""
    for seed in range(4):
        picture = photograph(seed, (256, 256))
        marked, facts = trustmark.mark(picture, PAYLOAD)
        both = embed(marked, PAYLOAD.maker)
        assert both is not None
        assert both.is_read
        assert trustmark.checked(facts, both.pixels).is_read
        assert read_watermark(as_jpeg(both.pixels, 75), [b"tintype watermark, the key that anybody has"]).found


def test_the_middle_square_is_all_of_it_for_variant_p(tmp_path: Path) -> None:
    opened = open_trustmark(write_trustmark(tmp_path / "p", "P"))
    picture = np.full((256, 400, 3), 128, np.uint8)
    marked, facts = opened.mark(picture, PAYLOAD)
    assert facts.variant == "P"
    assert opened.reading(marked).maker == "badcab"
    assert np.array_equal(marked[:, :72], picture[:, :72])


def test_half_precision_files_are_taken(tmp_path: Path) -> None:
    opened = open_trustmark(write_trustmark(tmp_path / "half", kind=TensorProto.FLOAT16))
    assert opened.reading(opened.mark(photograph(3), PAYLOAD)[0]).maker == "badcab"


def test_a_picture_has_both_marks_and_its_record_says_so(
    postcard: tintype.Pipeline, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = postcard.generate(PROMPT, **FIELDS)
    facts, mark = made.record.trustmark, made.record.watermark
    assert facts is not None
    assert mark is not None
    assert facts.is_read
    assert not facts.kept
    path = made.save(tmp_path / "x.png")[0]
    found = tintype.verify(path, trustmark=files)
    assert found.trustmark is not None
    assert found.trustmark.maker == found.watermark.maker == f"{postcard.marker.maker:06x}"
    assert tintype.verify(path).trustmark is None
    record = parse_record(made.record.texts()["tintype"])
    assert record == made.record
    monkeypatch.setattr("tintype.trust.chosen.maker_of", lambda folder: 0x123456)  # another installation
    again = postcard.reproduce(record)
    assert again.image.tobytes() == made.image.tobytes()
    assert again.record.trustmark == facts
    assert postcard.generate(PROMPT, watermark=False, **FIELDS).record.trustmark is None
    signed = manifest_of(made.record, "x.png", None)["assertions"]
    bound = {each["data"]["alg"]: each["data"]["blocks"][0]["value"] for each in signed if "soft" in each["label"]}
    assert bound == {"com.adobe.trustmark.Q": facts.payload, "tintype.watermark.1": mark.payload}


def test_the_command_says_what_it_reads(postcard: tintype.Pipeline, files: Path, tmp_path: Path) -> None:
    path = postcard.generate(PROMPT, **FIELDS).save(tmp_path / "x.png")[0]
    told = CliRunner().invoke(verify, [str(path), "--trustmark", str(files)])
    assert told.exit_code == 0
    assert f"TrustMark Q: by installation {postcard.marker.maker:06x}, BCH_5 " in told.output
    as_json = json.loads(CliRunner().invoke(verify, [str(path), "--trustmark", str(files), "--json"]).output)
    assert as_json["trustmark"]["found"] is True
    assert as_json["trustmark"]["payload"] == postcard.generate(PROMPT, **FIELDS).record.trustmark.payload[2:]  # type: ignore[union-attr]
    assert json.loads(CliRunner().invoke(verify, [str(path), "--json"]).output)["trustmark"] is None


def test_a_picture_is_only_promised_by_the_files_that_marked_it(postcard: tintype.Pipeline, tmp_path: Path) -> None:
    made = postcard.generate(PROMPT, **FIELDS).record
    with tintype.load("postcard", provider="cpu") as pipeline:
        with pytest.raises(RecordError, match="TrustMark is by other files"):
            pipeline.reproduce(made)
        plain = pipeline.generate(PROMPT, **FIELDS).record
    with pytest.raises(RecordError, match="has no TrustMark"):
        postcard.reproduce(plain)


def test_the_mark_of_a_picture_that_it_was_made_from_is_kept_or_told(
    postcard: tintype.Pipeline, trustmark: TrustMark
) -> None:
    theirs = "1" * 20 + "01" * 20
    parent = written_on(trustmark, photograph(4, (128, 128)), theirs)
    assert trustmark.reading(parent).maker is None
    mask = np.zeros((128, 128), np.uint8)
    mask[:8, :8] = 255
    kept = postcard.generate(PROMPT, image=parent, mask=mask, keep_outside="exact", **FIELDS).record.trustmark
    assert kept is not None
    assert (kept.kept, kept.payload, kept.parent) == (True, f"1*{theirs.ljust(61, '0')}", f"1*{theirs.ljust(61, '0')}")
    anew = postcard.generate(PROMPT, image=parent, strength=1.0, **FIELDS)
    assert anew.record.trustmark is not None
    assert not anew.record.trustmark.kept
    assert anew.record.trustmark.parent == kept.parent
    again = postcard.reproduce(anew.record, image=parent)
    assert again.image.tobytes() == anew.image.tobytes()


def written_on(trustmark: TrustMark, picture: np.ndarray, data: str) -> np.ndarray:
    """A picture with somebody else's mark."""
    from tintype.trust.trustmark_bits import written

    change = trustmark._change(picture, written(data))
    return np.clip(np.rint(picture + change), 0, 255).astype(np.uint8)


def test_who_marked_a_picture_too_small_for_the_watermark_is_known(trustmark: TrustMark) -> None:
    """So that it is made again elsewhere: the watermark's own payload is missing there."""
    _, facts = trustmark.mark(photograph(3, (128, 128)), PAYLOAD)
    assert Marker(1).as_in(None, facts).maker == PAYLOAD.maker
    assert Marker(1).as_in(None, dataclasses.replace(facts, kept=True)).maker == 1
    for wrong in ("1*x", "", "0*" + "1" * 40, f"1*{'1' * 61}"):
        with pytest.raises(RecordError, match="no payload"):
            Marker(1).as_in(None, dataclasses.replace(facts, payload=wrong))


def test_only_those_who_bring_files_open_them(files: Path, tmp_path: Path) -> None:
    Image.fromarray(photograph(3, (128, 128))).save(tmp_path / "x.png")
    code = (
        "import sys, tintype, tintype.pipeline, tintype.cli.verify\n"
        f"tintype.verify({str(tmp_path / 'x.png')!r})\n"
        "names = ('trustmark', 'trustmark_bits', 'bch', 'coded_noise')\n"
        "print([name for name in names if f'tintype.trust.{name}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_none_of_its_files_is_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no decoder of TrustMark"):
        open_trustmark(tmp_path)
    for name, content in (("decoder_Q.onnx", b"no graph"), ("decoder_Q.onnx", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match="none of TrustMark's files"):
            open_trustmark(tmp_path)
    (tmp_path / "decoder_Q.onnx").write_bytes((files / "decoder_Q.onnx").read_bytes())
    assert not open_trustmark(tmp_path, writes=False).reading(photograph(1)).found
    with pytest.raises(RequestError, match=r"encoder_Q\.onnx is none"):
        open_trustmark(tmp_path)
    (tmp_path / "encoder_Q.onnx").write_bytes((files / "decoder_Q.onnx").read_bytes())
    with pytest.raises(RequestError, match="doesn't take an image and 100 bits"):
        open_trustmark(tmp_path)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [([1, 4, 8, 8], "one image"), ([1, 3], "one image"), ([1, 3, 2 * MAX_SIDE, 2 * MAX_SIDE], "one image")],
    ids=str,
)
def test_a_decoder_of_other_ports_is_refused(tmp_path: Path, shape: list[int], problem: str) -> None:
    path = tmp_path / "decoder_Q.onnx"
    save_graph(path, [node("Identity", ["image"], "output")], {"image": shape}, ["output"], {})
    with pytest.raises(RequestError, match=problem):
        open_trustmark(tmp_path, writes=False)


def test_weights_elsewhere_and_answers_that_are_none_are_refused(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "decoder_Q.onnx"
    save_graph(path, [node("Identity", ["image"], "output")], {"image": [1, 3, 8, 8]}, ["output"], {})
    with pytest.raises(NumericError, match="no 100 numbers"):
        open_trustmark(tmp_path, writes=False)
    outside = onnx.load(files / "decoder_Q.onnx")
    onnx.save(outside, path, save_as_external_data=True, size_threshold=16, location="weights")
    with pytest.raises(RequestError, match="another file"):
        open_trustmark(tmp_path, writes=False)
    path.write_bytes((files / "decoder_Q.onnx").read_bytes())
    save_graph(
        tmp_path / "encoder_Q.onnx",
        [
            node("ReduceSum", ["onnx::Gemm_1"], "sum", keepdims=0),
            node("Mul", ["sum", "nan"], "wrong"),
            node("Add", ["onnx::Concat_0", "wrong"], "image"),
        ],
        {"onnx::Concat_0": [1, 3, 256, 256], "onnx::Gemm_1": [1, 100]},
        ["image"],
        {"nan": np.array(np.nan, np.float32)},
    )
    with pytest.raises(NumericError, match="no picture of its own size"):
        open_trustmark(tmp_path)


def test_the_graphs_of_these_tests_are_what_they_say() -> None:
    """The check has no mean in any square of 8 pixels, so that a flat picture reads as nothing."""
    assert np.abs(checks(256)[0, 0, :8, :8].mean()) == 0.0
    assert helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT) == np.float32
