"""Inputs by door: seeds of `seeds`, changed as `mutations` does."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence

import click
from hypothesis import strategies as st
from mutations import CONTROLS, FILL, SIZES, Changed, after_head, bytes_of, json_of, png_of, protobuf_of
from seeds import GRAPH, PARAMETERS, SEEDS, join_safetensors, png_with_text, records, split_safetensors

Strategy = st.SearchStrategy[bytes]

# The command line. No line makes a picture, as no graph is built; `bench` and `export` of a checkpoint would take long.

COMMANDS = {
    "generate": "tintype.cli.generate:generate",
    "edit": "tintype.cli.edit:edit",
    "info": "tintype.cli.info:info",
    "plan": "tintype.cli.plan:plan",
    "build": "tintype.cli.build:build",
    "cache": "tintype.cli.cache:cache",
    "export": "tintype.export.command:export",
}
TYPED = [
    "", "-", "--", "0", "-1", "1", "2", "64x64", "65x64", "0x0", f"{10**18}x64", "1e999", "nan", "inf", "-inf",
    "9" * 400, str(2**64), "2GiB", "1B", "-1GiB", "1e30GiB", "auto", "cpu", "euler", "karras", "philox", "exact", "0.5",
    "0.2,0.8", "0.8,0.2", ",", "8,8,8,8", "white", "#12345", "#" + "f" * 50, "postcard", "nowhere", ".", "..", "x.png",
    "x" * 300 + ".png", "nowhere/x.png", "x\ty", CONTROLS, "\udcff", "\u202eabc", "(" * 70, "a house", "%s%n", "~", "*",
    "http://example.invalid/x.png", "clear", "--json", "--force", "--help", "--show", "--threads", "--version",
]  # fmt: skip
VALUES = st.one_of(st.sampled_from(TYPED), st.text(max_size=6), st.integers().map(str), st.floats().map(repr))


def _options(place: str) -> list[tuple[str, bool]]:
    """The options of a click command: a name, and whether a value follows."""
    module, _, name = place.partition(":")
    found: click.Command = getattr(importlib.import_module(module), name)
    return [(each.opts[-1], not each.is_flag) for each in found.params if isinstance(each, click.Option)]


@st.composite
def command_lines(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from([*COMMANDS, "devices", "bench", ""]))
    if name == "bench":
        return json.dumps([name, "--help"]).encode()
    known = _options(COMMANDS[name]) if name in COMMANDS else [("--json", False)]
    line = [name] if name else []
    for option, takes in draw(st.lists(st.sampled_from(known), max_size=5)):
        line += [option, draw(VALUES)] if takes else [option]
    for value in draw(st.lists(VALUES, max_size=2)):
        line.insert(draw(st.integers(1 if name else 0, len(line))), value)
    return json.dumps(line).encode()


# Prompts

PIECES = ["(", ")", "[", "]", ":1.1)", ":-9)", "\\(", "BREAK", ",", " ", "a", "\u0301", "\U0001f600", "'ll", "\x00",
          "<|endoftext|>", ":", ".", "\n", " AND ", "[a:", "|", ":.5]", ":3]", "\\|", ":2"]  # fmt: skip


def _prompt(pieces: Sequence[tuple[str, int]]) -> bytes:
    return Changed("".join(piece * min(times, 70_000) for piece, times in pieces).encode())


def prompts(seeds: Sequence[bytes]) -> Strategy:
    pieces = st.lists(st.tuples(st.sampled_from(PIECES), SIZES), max_size=12).map(_prompt)
    return st.one_of(pieces, st.text().map(lambda text: text.encode("utf-8", "surrogatepass")), bytes_of(seeds))


# Files of two parts


def _split_line(data: bytes) -> tuple[bytes, bytes]:
    name, _, text = data.partition(b"\n")
    return text, name


def _join_line(text: bytes, name: bytes) -> bytes:
    return name + b"\n" + text


def _split_npy(data: bytes) -> tuple[bytes, bytes]:
    end = 10 + int.from_bytes(data[8:10], "little")
    return data[10:end], data[end:]


def _join_npy(header: bytes, rest: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(header) % 2**16).to_bytes(2, "little") + header + rest


def _with_records(seeds: Sequence[bytes]) -> Strategy:
    """Latents with a header that is changed, or with records in it that are."""

    def put(text: bytes) -> bytes:
        header, rest = split_safetensors(seeds[0])
        value = json.loads(header)
        value["__metadata__"]["tintype"] = f"[{text.decode('utf-8', 'replace')}]"
        return Changed(join_safetensors(json.dumps(value).encode(), rest))

    heads = after_head(seeds, split_safetensors, join_safetensors, json_of)
    return st.one_of(json_of(records()).map(put), heads, bytes_of(seeds))


def _safetensors(seeds: Sequence[bytes]) -> Strategy:
    return st.one_of(after_head(seeds, split_safetensors, join_safetensors, json_of), bytes_of(seeds))


def _pictures(seeds: Sequence[bytes]) -> Strategy:
    pngs = [seed for seed in seeds if seed.startswith(b"\x89PNG")]
    return st.one_of(png_of(pngs, FILL), bytes_of(seeds), bytes_of(seeds))


def _of_others(seeds: Sequence[bytes]) -> Strategy:
    graphs = json_of([json.dumps(GRAPH).encode()]).map(lambda text: Changed(png_with_text("prompt", text)))
    words = bytes_of([PARAMETERS.encode()]).map(lambda text: Changed(png_with_text("parameters", text)))
    return st.one_of(graphs, words, bytes_of(seeds))


_BY_DOOR: dict[str, Callable[[Sequence[bytes]], Strategy]] = {
    "manifest": json_of,
    "scheduler": json_of,
    "tokenizer": json_of,
    "graph": protobuf_of,
    "record": json_of,
    "record-png": lambda seeds: st.one_of(png_of(seeds, json_of(records())), bytes_of(seeds)),
    "like": _of_others,
    "latents": _with_records,
    "embedding": _safetensors,
    "control-manifest": json_of,
    "image-encoder-manifest": json_of,
    "noise": lambda seeds: st.one_of(after_head(seeds, _split_npy, _join_npy, bytes_of), bytes_of(seeds)),
    "prompt": prompts,
    "policy": bytes_of,
    "ordinary": bytes_of,
    "words": prompts,
    "safetensors": _safetensors,
    "lora": _safetensors,
    "ip-adapter": _safetensors,
    "one-file": _safetensors,
    "onnx-folder": protobuf_of,
    "checkpoint": json_of,
    "cache": lambda seeds: after_head(seeds, _split_line, _join_line, json_of),
    "picture": _pictures,
    "credentials": _pictures,
    "mask": _pictures,
    "command": lambda seeds: command_lines(),
}


def inputs_of(door: str) -> Strategy:
    return _BY_DOOR[door](SEEDS[door]())
