"""Graphs in parts as CUDA would run them: what the whole canonical graph means, in float32 and rounded to float16.

Segments pass what may be float16 with its channels last from one to the next; strips take statistics across them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import tintype.engine.device.abilities
from tintype.engine import BuildOptions
from tintype.engine.build.lower import Job, make_build
from tintype.engine.device.providers import TARGETS
from tintype.engine.run.chain import Chain, read_chains
from tintype.engine.run.placement import HEAVY_OPERATORS
from tintype.engine.run.session_options import session_options
from tintype.engine.run.strips import HEAD, TAIL, Strips, read_strips

GRAPHS = {
    "text_encoder": ({"segment_bytes": 2**18}, {"batch": 2}),
    "unet": ({"segment_bytes": 2**18}, {"batch": 2, "height": 16, "width": 16, "sequence": 77}),
    "vae_decoder": ({"strip_bytes": 2**18}, {"batch": 1, "height": 16, "width": 16}),
    "vae_encoder": ({"strip_bytes": 2**10}, {"batch": 1, "height": 16, "width": 16}),
}


@pytest.fixture
def parts(cuda, tmp_path, monkeypatch):
    """Builds a graph of postcard in parts; every file becomes one that the processor runs. How to, and to run them."""
    monkeypatch.setattr(tintype.engine.device.abilities, "abilities", lambda target: frozenset(cuda.ABLE))

    def make(role, exactness):
        way, dims = GRAPHS[role]
        options = BuildOptions.for_shape(dims, exactness=exactness, **way)
        job = Job(
            source=cuda.BUNDLE / role / "model.onnx",
            folder=tmp_path,
            target=TARGETS["cuda"],
            options=options,
            largest={},
        )
        make_build(job)
        halves = 0
        for path in tmp_path.glob("*.onnx"):
            model = ir.load(path)
            heavy = (node for node in model.graph if node.op_type in HEAVY_OPERATORS)
            halves += sum(node.inputs[0].dtype == ir.DataType.FLOAT16 for node in heavy)
            for value in model.graph.inputs:  # what another part has rounded
                value.dtype = ir.DataType.FLOAT if value.dtype == ir.DataType.FLOAT16 else value.dtype
            cuda.plain(model)
            ir.save(model, path)  # with its weights
        return halves

    def opened(path):
        options = session_options(TARGETS["cpu"], threads=1, optimize=False)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(feed):
        chains, strips = read_chains(tmp_path), read_strips(tmp_path)
        if strips is not None:
            head, tail = (Chain(tmp_path, chains[end], opened) if end in chains else None for end in (HEAD, TAIL))
            assert len(strips.stages) > 3
            return Strips(tmp_path, strips, opened, head=head, tail=tail).run(None, feed)[0]
        assert sum(len(chain.parts) for chain in chains.values()) > 3
        given = dict(feed)
        if "once.onnx" in chains:
            once = Chain(tmp_path, chains["once.onnx"], opened)
            names = [port.name for port in once.get_inputs()]
            values = once.run(None, {name: given.pop(name) for name in names})
            given |= dict(zip([port.name for port in once.get_outputs()], values, strict=True))
        return Chain(tmp_path, chains["model.onnx"], opened).run(None, given)[0]

    return make, run


@pytest.mark.parametrize("exactness", ["exact", "balanced"])
@pytest.mark.parametrize("role", GRAPHS)
def test_parts_mean_what_the_whole_does(cuda, parts, random, tmp_path_factory, role, exactness):
    make, run = parts
    feed = cuda.feed_of(role, random)
    expected = cuda.canonical(cuda.BUNDLE / role / "model.onnx", feed, tmp_path_factory.mktemp("whole"))
    halves = make(role, exactness)
    assert (halves > 0) == (exactness == "balanced")
    result = run(feed)
    assert result.dtype == np.float32
    assert cuda.psnr_db(result, expected) >= (cuda.HALF_GATE_DB if halves else cuda.FLOAT_GATE_DB)
