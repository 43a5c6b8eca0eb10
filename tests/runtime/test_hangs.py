"""No file, prompt or graph keeps anyone waiting: each is refused, or read, before a deadline."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deadline import deadline
from onnx import helper

from tintype.bounds import MAX_GRAPH_FIELDS, MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_MANIFEST_BYTES, MAX_PROMPT_BYTES
from tintype.bundle import open_bundle
from tintype.engine import peak_rss_bytes
from tintype.engine.build.cache import cache_entries, damage
from tintype.errors import BundleError, OutputError, RecordError, RequestError, TintypeError
from tintype.families.model import Model
from tintype.files import open_plain, read_plain
from tintype.image.mask import open_mask
from tintype.image.source import open_picture
from tintype.prompt import PromptTokenizer, parse_weights
from tintype.record import read_record
from tintype.record.latents_file import read_latents
from tintype.sources.onnx_scan import MalformedGraph, external_tensors
from tintype.strict_json import Misfit, parse

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def many_keys(last: str, count: int = 600_000) -> str:
    return "{" + ",".join(f'"{index}":0' for index in range(count)) + f',"{last}":0}}'


def test_a_key_that_comes_twice_among_very_many_is_found_at_once() -> None:
    with deadline(), pytest.raises(Misfit, match="'599999' comes twice"):
        parse(many_keys("599999"))


def test_a_manifest_of_many_keys_is_refused_at_once(hand_made: Path) -> None:
    text = many_keys("299999", count=300_000)
    assert MAX_MANIFEST_BYTES / 2 < len(text) < MAX_MANIFEST_BYTES
    (hand_made / "tintype.json").write_text(text)
    with deadline(), pytest.raises(BundleError, match="comes twice"):
        open_bundle(hand_made)


def test_a_manifest_of_very_many_values_of_one_kind_is_read_or_refused_at_once(hand_made: Path) -> None:
    path = hand_made / "tintype.json"
    facts = json.loads(path.read_text())
    facts["graphs"]["denoiser"]["full"]["inputs"][0]["shape"] = ["batch", *[1] * 900_000]
    path.write_text(json.dumps(facts, separators=(",", ":")))
    assert path.stat().st_size < MAX_MANIFEST_BYTES
    with deadline(), pytest.raises(BundleError):
        open_bundle(hand_made)


def test_a_record_of_megabytes_is_refused_at_once(tmp_path: Path) -> None:
    from tintype.image.png import write_png

    write_png(tmp_path / "x.png", _picture(), {"tintype": many_keys("1")[: 3 * 2**20]})
    with deadline(), pytest.raises(RecordError, match="bytes"):
        read_record(tmp_path / "x.png")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * (MAX_JSON_DEPTH + 1) + "]" * (MAX_JSON_DEPTH + 1),
        '{"a":' * 70 + "1" + "}" * 70,
        '["]",' * 70 + "1" + "]" * 70,
        '["\\\\",' + "[" * 70 + "]" * 71,
        '["\\"",' + "[" * 70 + "]" * 71,
    ],
    ids=lambda text: text[:12],
)
def test_json_that_nests_too_deep_is_refused_before_it_is_parsed(text: str) -> None:
    with deadline(), pytest.raises(Misfit, match="nests too deep"):
        parse(text)


def test_brackets_within_a_string_nest_nothing() -> None:
    text = '["' + "[{" * 1000 + '", "\\"[", "' + "[" * 100 + '"]'
    assert parse(text) == json.loads(text)
    assert parse("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH)


@pytest.mark.parametrize("piece", ["0,", "[],", "{},", '"",'])
def test_json_of_too_many_values_is_refused_before_it_is_parsed(piece: str) -> None:
    with deadline(), pytest.raises(Misfit, match="values"):
        parse("[" + piece * (MAX_JSON_VALUES + 1) + "0]")


@pytest.mark.parametrize("text", ['"' * 2**23, '"\\' * 2**22, '"' + "\\" * 2**23, "[" * 2**20, "]" * 2**20])
def test_json_that_is_none_is_refused_at_once(text: str) -> None:
    with deadline(), pytest.raises(Misfit):
        parse(text)


def test_json_with_a_byte_order_mark_is_read_and_other_encodings_are_not() -> None:
    assert parse(b"\xef\xbb\xbf[1]") == [1]
    with pytest.raises(Misfit):
        parse("[1]".encode("utf-16"))


def test_latents_whose_records_would_not_be_read_are_not_written(manifest: Any, tmp_path: Path) -> None:
    from tintype.record.latents_file import save_latents

    record = _record(manifest, "\x01" * MAX_PROMPT_BYTES)
    with pytest.raises(OutputError, match="prompts that long"):
        save_latents(tmp_path / "x.safetensors", np.zeros((200, 4, 8, 8), np.float32), [record] * 200)
    assert not list(tmp_path.glob("*.safetensors*"))


def test_latents_with_a_header_beyond_the_bound(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes((60_000_000).to_bytes(8, "little") + b" " * 60_000_000)
    with deadline(), pytest.raises(RecordError, match="header"):
        read_latents(tmp_path / "x")


# What a stranger may put where a file is expected.
def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


def _folder(path: Path) -> None:
    path.mkdir()


def _endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**41)


IN_PLACE = [_pipe, _device, _terminal, _folder, _endless]


@posix
@pytest.mark.parametrize("put", IN_PLACE)
def test_only_a_plain_file_is_opened(put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path / "file")
    with deadline(), pytest.raises(OSError, match=r"plain file|folder|more than|No such"):
        open_plain(tmp_path / "file", 2**40)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_plain(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain(tmp_path / "file", 4)


def _noise(path: Path) -> object:
    from tintype.request.given_latents import open_latents

    return open_latents(path)


def _tokenizer(path: Path) -> object:
    return PromptTokenizer.open(path, max_length=77, bos_token_id=0, eos_token_id=1, pad_token_id=1)


@posix
@pytest.mark.parametrize("put", IN_PLACE)
@pytest.mark.parametrize("door", [read_record, read_latents, open_picture, open_mask, _noise, _tokenizer])
def test_no_door_waits(door: Callable[[Path], object], put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path / "file.png")
    with deadline(), pytest.raises(TintypeError) as caught:
        door(tmp_path / "file.png")
    assert caught.value.fix


@posix
@pytest.mark.parametrize("put", IN_PLACE)
@pytest.mark.parametrize("file", ["tintype.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"])
def test_no_file_of_a_bundle_makes_its_reader_wait(file: str, put: Callable[[Path], None], hand_made: Path) -> None:
    (hand_made / file).unlink()
    put(hand_made / file)
    with deadline(), pytest.raises(BundleError, match=r"tintype\.json|scheduler_config|tokenizer"):
        open_bundle(hand_made)


@posix
def test_a_pipe_that_takes_a_scheduler_files_place_after_the_check(hand_made: Path) -> None:
    bundle = open_bundle(hand_made)
    (hand_made / "scheduler/scheduler_config.json").unlink()
    os.mkfifo(hand_made / "scheduler/scheduler_config.json")
    with deadline(), pytest.raises(BundleError, match="scheduler"):
        Model.of(bundle)


@posix
@pytest.mark.parametrize("put", [_pipe, _folder, lambda path: path.write_text("[" * 100_000)])
def test_facts_of_a_build_that_are_no_file_are_damage(put: Callable[[Path], object], no_builds: Path) -> None:
    folder = no_builds / "builds/0123456789abcdef01234567"
    folder.mkdir(parents=True)
    put(folder / "build.json")
    with deadline():
        assert damage(folder)
        assert [entry.whole for entry in cache_entries()] == [False]


def test_a_verdict_of_nested_brackets_costs_only_time(hand_made: Path, no_builds: Path) -> None:
    bundle = open_bundle(hand_made)
    (verdict,) = (no_builds / "checked").iterdir()
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"unet/model.onnx": {}}', "\xff"):
        verdict.write_text(text, encoding="latin-1")
        with deadline():
            assert open_bundle(hand_made) == bundle


HOSTILE_PROMPTS = {
    "unclosed": "(a" * 60_000,
    "square": "[a" * 60_000,
    "closed": "(" * 30_000 + "a" + ")" * 30_000,
    "mixed": "([" * 30_000 + "a",
    "numbers": ":1.1" * 16_000 + " " * 1000,
    "blanks": "(a:1111111111" + " " * 65_000,
    "escaped": "\\(" * 30_000,
    "breaks": "BREAK " * 10_000,
    "letters": "a" * 65_000,
    "commas": "," * 65_000,
    "combining": "e" + "\u0301" * 32_000,
    "emoji": "\U0001f600" * 16_000,
    "weights": "(a:1.1)" * 9000,
}


@pytest.mark.parametrize("prompt", HOSTILE_PROMPTS.values(), ids=HOSTILE_PROMPTS.keys())
def test_a_prompt_is_read_or_refused_at_once(prompt: str) -> None:
    from tintype.prompt import encode_prompt

    bundle = open_bundle("postcard")
    facts = bundle.manifest.tokenizer
    tokenizer = PromptTokenizer.open(
        bundle.path(facts.file),
        max_length=facts.max_length,
        bos_token_id=facts.bos_token_id,
        eos_token_id=facts.eos_token_id,
        pad_token_id=facts.pad_token_id,
    )
    for read in (parse_weights, lambda text: encode_prompt(tokenizer, text)):
        with deadline(), contextlib.suppress(RequestError):
            read(prompt)


def test_words_beyond_the_bound_are_refused_before_anything_is_drawn(manifest: Any) -> None:
    from tintype.request import Request, resolve

    for prompt in (" " * 40_000_000, "\U0001f600" * (MAX_PROMPT_BYTES // 4 + 1)):
        for fields in ({"prompt": prompt}, {"prompt": "", "negative_prompt": prompt}):
            with deadline(), pytest.raises(RequestError, match="65,536 are the most"):
                resolve(Request(**fields), manifest)


def test_the_longest_prompts_make_a_record_that_can_be_read(manifest: Any, tmp_path: Path) -> None:
    from tintype.image.png import write_png

    record = _record(manifest, "\x01" * MAX_PROMPT_BYTES)
    write_png(tmp_path / "x.png", _picture(), record.texts())
    assert read_record(tmp_path / "x.png") == record


def _record(manifest: Any, prompt: str) -> Any:
    from tintype.record import Provenance, Record
    from tintype.request import Request, resolve

    facts = dict.fromkeys(("tintype", "onnxruntime", "bundle", "bundle_hash", "precision", "target"), "x")
    request = resolve(Request(prompt=prompt, negative_prompt=prompt, seed=1), manifest)
    return Record(request=request, picture=0, made_with=Provenance(**facts, builds={}, threads=1))


def test_brackets_in_a_bundles_own_negative_prompt(hand_made: Path, edit: Callable[..., None]) -> None:
    edit(lambda value: value["default_request"].update(negative_prompt="(" * 200_000))
    with deadline(), pytest.raises(BundleError, match="negative_prompt"):
        open_bundle(hand_made)


def _graph(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [])


CONTROL_FLOW = {
    "If": helper.make_node("If", ["c"], ["y"], then_branch=_graph("t"), else_branch=_graph("e")),
    "Loop": helper.make_node("Loop", ["", "", "x"], ["y"], body=_graph("body")),
    "Scan": helper.make_node("Scan", ["x"], ["y"], body=_graph("body"), num_scan_inputs=1),
    "SequenceMap": helper.make_node("SequenceMap", ["x"], ["y"], body=_graph("body")),
    "many": helper.make_node("Custom", ["x"], ["y"], bodies=[_graph("a"), _graph("b")]),
}


@pytest.mark.parametrize("node", CONTROL_FLOW.values(), ids=CONTROL_FLOW.keys())
def test_a_node_that_runs_graphs_is_refused(node: onnx.NodeProto, hand_made: Path, remake: Callable[..., None]) -> None:
    model = helper.make_model(_graph("outer", node))
    (hand_made / "unet/model.onnx").write_bytes(model.SerializeToString())
    remake(hand_made)
    with pytest.raises(BundleError, match=r"unet/model\.onnx is refused: a node of it runs"):
        open_bundle(hand_made)


def test_functions_within_functions_are_refused_and_never_expanded(
    hand_made: Path, remake: Callable[..., None]
) -> None:
    """Thirty, each of which calls the next ten times: 10^30 nodes."""
    opset = [helper.make_opsetid("", 23), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own",
            f"f{level}",
            ["x"],
            ["y9"],
            [helper.make_node(f"f{level + 1}", ["x"], [f"y{index}"], domain="own") for index in range(10)],
            opset,
        )
        for level in range(30)
    ]
    graph = _graph("outer", helper.make_node("f0", ["x"], ["y"], domain="own"))
    model = helper.make_model(graph, functions=functions, opset_imports=opset)
    (hand_made / "unet/model.onnx").write_bytes(model.SerializeToString())
    remake(hand_made)
    with deadline(), pytest.raises(BundleError, match="functions of its own"):
        open_bundle(hand_made)


@pytest.mark.parametrize("name", ["(" * 100_000, "1" + "+1" * 100_000])
@pytest.mark.parametrize("place", ["input", "output", "value_info"])
def test_a_dimension_that_is_an_endless_sum_is_refused(name: str, place: str, tmp_path: Path) -> None:
    graph = _graph("outer")
    getattr(graph, place).append(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [name]))
    (tmp_path / "x.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with deadline(), pytest.raises(MalformedGraph, match="name of a dimension"):
        external_tensors(tmp_path / "x.onnx")


def test_a_graph_of_very_many_parts_is_refused_in_time(tmp_path: Path) -> None:
    many_nodes = b"\x0a\x00" * (MAX_GRAPH_FIELDS + 1)
    many_dims = _field(5, b"\x08\x01" * 1000)
    many_entries = _field(5, b"\x6a\x00" * 1000)
    for graph in (many_nodes, many_dims, many_entries):
        (tmp_path / "x.onnx").write_bytes(_field(7, graph))
        with deadline(30), pytest.raises(MalformedGraph):
            external_tensors(tmp_path / "x.onnx")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="a peak is begun anew on Linux alone")
def test_a_long_graph_is_not_held_while_it_is_scanned(tmp_path: Path) -> None:
    part = b"\x4a" + bytes([0x88, 0x80, 0x04]) + bytes(2**16 + 8)
    whole = 2600 * len(part)
    length = bytes([whole >> 7 * place & 0x7F | (0x80 if place < 3 else 0) for place in range(4)])
    (tmp_path / "x.onnx").write_bytes(b"\x3a" + length + 2600 * part)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_rss_bytes()
    assert external_tensors(tmp_path / "x.onnx") == []
    assert peak_rss_bytes() - before < 100 * 2**20 < whole


def _field(number: int, payload: bytes) -> bytes:
    """A message within a message of protobuf."""
    head, length = bytes([number << 3 | 2]), len(payload)
    while length >= 0x80:
        head += bytes([length & 0x7F | 0x80])
        length >>= 7
    return head + bytes([length]) + payload


def _picture() -> Any:
    from PIL import Image

    return Image.fromarray(np.zeros((4, 4, 3), np.uint8))
