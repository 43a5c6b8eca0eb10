"""A decoder or encoder in strips is itself: any size, height of strips and batch, and never a whole map in memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import tintype
from tintype.engine import graph_session, open_session
from tintype.engine.build.builds import lower_into
from tintype.engine.build.lower import Job, make_build
from tintype.engine.build.measure import psnr_db
from tintype.engine.build.options import BuildOptions
from tintype.engine.run.chain import read_chains
from tintype.engine.run.moments import Moments
from tintype.engine.run.row_store import RowStore, RowStores
from tintype.engine.run.strips import HEAD, TAIL, StageFacts, read_strips
from tintype.errors import BuildError, UncutError
from tintype.kernels.portable.plain_float import FloatActivations, FloatRows, FloatWeights
from tintype.kernels.registry import lower

pytestmark = pytest.mark.slow

MINIMAL = 1  # bytes: less than any strip needs, so that each has as few rows as it can


class Graph:
    """A graph under construction: each call appends a node and returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.told: list[onnx.ValueInfoProto] = []  # of norms, whose shapes onnx does not find
        self.scale = Fraction(1)

    @property
    def sides(self) -> list[str]:
        """Of a map as the last one is."""
        above, below = self.scale.as_integer_ratio()
        return [f"{above}*{side}" if below == 1 else f"{side}/{below}" for side in ("height", "width")]

    def fixed(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def node(self, operator: str, *inputs: str, **attributes) -> str:
        self.nodes.append(
            helper.make_node(operator, inputs, [f"v{len(self.nodes)}"], f"n{len(self.nodes)}", **attributes)
        )
        return self.nodes[-1].output[0]

    def conv(self, x: str, read: int, given: int, side: int = 3, *, stride: int = 1) -> str:
        weight = self.random.standard_normal((given, read, side, side)) / np.sqrt(read * side * side)
        bias = self.random.standard_normal(given)
        inputs = (self.fixed(weight.astype(np.float32)), self.fixed(bias.astype(np.float32)))
        pads = [side // 2] * 4 if stride == 1 else [0, 0, side - stride, side - stride]
        return self.node("Conv", x, *inputs, kernel_shape=[side, side], pads=pads, strides=[stride] * 2)

    def norm(self, x: str, channels: int, groups: int, rank: int = 4) -> str:
        scale, bias = self.random.uniform(0.5, 1.5, channels), self.random.standard_normal(channels)
        inputs = (self.fixed(scale.astype(np.float32)), self.fixed(bias.astype(np.float32)))
        sides = ["pixels"] if rank == 3 else self.sides
        made = self.node("GroupNormalization", x, *inputs, num_groups=groups, epsilon=1e-6)
        self.told.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, ["batch", channels, *sides]))
        return made

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def double(self, x: str) -> str:
        self.scale *= 2
        scales = self.fixed(np.array([1, 1, 2, 2], np.float32))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", x, "", scales, **modes)

    def halve(self, x: str, channels: int) -> str:
        self.scale /= 2
        return self.conv(x, channels, channels, stride=2)

    def resnet(self, x: str, read: int, given: int, groups: int) -> str:
        inner = self.conv(self.silu(self.norm(x, read, groups)), read, given)
        inner = self.conv(self.silu(self.norm(inner, given, groups)), given, given)
        return self.node("Add", x if read == given else self.conv(x, read, given, 1), inner)

    def attention(self, x: str, channels: int, groups: int) -> str:
        flat = self.norm(self.node("Reshape", x, self.fixed(np.array([0, channels, -1]))), channels, groups, 3)
        rows = self.node("Transpose", flat, perm=[0, 2, 1])
        heads = []
        for _ in range(3):
            weight = self.random.standard_normal((channels, channels)).astype(np.float32) / channels**0.5
            made = self.node("MatMul", rows, self.fixed(weight))
            made = self.node("Reshape", made, self.fixed(np.array([0, 0, 1, channels])))
            heads.append(self.node("Transpose", made, perm=[0, 2, 1, 3]))
        seen = self.node("Transpose", self.node("Attention", *heads), perm=[0, 1, 3, 2])
        return self.node("Add", x, self.node("Reshape", seen, self.node("Shape", x)))

    def save(self, path, output: str, channels: int = 3, read: int = 4):
        """Write the model, latent_sample (batch, read, height, width) -> sample, and return its path."""
        self.nodes[-1].output[0] = "sample"
        for info in self.told:
            info.name = "sample" if info.name == output else info.name
        ports = [
            helper.make_tensor_value_info("latent_sample", TensorProto.FLOAT, ["batch", read, "height", "width"]),
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", channels, *self.sides]),
        ]
        graph = helper.make_graph(self.nodes, "decoder", ports[:1], ports[1:], self.weights, value_info=self.told)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), path)
        return path


def decoder(path, *, attention: bool = True, seed: int = 0):
    """4 latent channels, a mid block, two doublings with residuals of both kinds, 3 channels."""
    graph = Graph(seed)
    x = graph.conv(graph.conv("latent_sample", 4, 4, 1), 4, 16)
    x = graph.resnet(x, 16, 16, 4)
    x = graph.attention(x, 16, 4) if attention else x
    x = graph.resnet(x, 16, 16, 4)
    x = graph.conv(graph.double(x), 16, 16)
    x = graph.resnet(x, 16, 8, 4)
    x = graph.conv(graph.double(graph.resnet(x, 8, 8, 4)), 8, 8)
    x = graph.resnet(x, 8, 6, 2)
    return graph.save(path, graph.conv(graph.silu(graph.norm(x, 6, 2)), 6, 3))


def encoder(path, *, attention: bool = True, seed: int = 0):
    """3 channels, two halvings with residuals of both kinds, a mid block, 8 channels."""
    graph = Graph(seed)
    x = graph.conv("latent_sample", 3, 6)
    x = graph.halve(graph.resnet(x, 6, 6, 2), 6)
    x = graph.halve(graph.resnet(x, 6, 8, 2), 8)
    x = graph.resnet(x, 8, 16, 4)
    x = graph.attention(x, 16, 4) if attention else x
    x = graph.resnet(x, 16, 16, 4)
    return graph.save(path, graph.conv(graph.silu(graph.norm(x, 16, 4)), 16, 8), 8, 3)


def build(source, folder, target, shape, strip_bytes, *, lowered=False):
    """The strips of a graph in a folder, made here; returns the folder."""
    folder.mkdir()
    dims = dict(zip(("batch", "height", "width"), (shape[0], *shape[2:]), strict=True))
    options = BuildOptions.for_shape(dims, exactness="exact", strip_bytes=strip_bytes, threads=2)
    make_build(Job(source=source, folder=folder, target=target, lowered=lowered, options=options))
    return folder


def latents(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def run(folder, target, x):
    with open_session(folder, target, threads=2, mapped=True) as session:
        sample = session.run({"latent_sample": x})["sample"]
        assert session.run({"latent_sample": x})["sample"].tobytes() == sample.tobytes()
    return sample


def strips_give(source, folder, target, x, channels, scale):
    """Assert that a build in strips gives what its graph does, so many channels at that scale."""
    with graph_session(source) as session:
        whole = session.run({"latent_sample": x})["sample"]
    sample = run(folder, target, x)
    assert sample.shape == (x.shape[0], channels, scale * x.shape[2], scale * x.shape[3])
    assert psnr_db(whole, sample) >= 100.0


@pytest.mark.parametrize(
    ("shape", "strip_bytes", "attention"),
    [
        ((1, 4, 9, 7), MINIMAL, True),
        ((1, 4, 9, 7), 4_000, True),
        ((1, 4, 9, 7), 15_000, False),
        ((1, 4, 9, 7), 2**30, True),
        ((1, 4, 16, 3), MINIMAL, False),
        ((2, 4, 11, 5), MINIMAL, True),
        ((2, 4, 11, 5), 15_000, True),
        ((1, 4, 1, 8), MINIMAL, True),
        ((1, 4, 5, 90), 15_000, True),
    ],
)
def test_strips_give_what_the_whole_gives(tmp_path, cpu, shape, strip_bytes, attention):
    source = decoder(tmp_path / "decoder.onnx", attention=attention)
    strips_give(source, build(source, tmp_path / "build", cpu, shape, strip_bytes), cpu, latents(*shape), 3, 4)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("strip_bytes", [MINIMAL, 3_000, 2**30])
@pytest.mark.parametrize("shape", [(1, 3, 36, 20), (2, 3, 64, 8), (1, 3, 4, 44)])
def test_an_encoder_runs_in_strips_too(tmp_path, cpu, shape, strip_bytes, attention):
    source = encoder(tmp_path / "encoder.onnx", attention=attention)
    folder = build(source, tmp_path / "build", cpu, shape, strip_bytes)
    strips_give(source, folder, cpu, latents(*shape), 8, Fraction(1, 4))
    stages = read_strips(folder).stages
    assert bool(stages) == (strip_bytes < 2**30)
    assert HEAD not in read_chains(folder)
    assert TAIL in read_chains(folder) or not (attention or strip_bytes == 2**30)


def test_an_encoders_strips_hold_no_more_than_they_may(tmp_path, cpu, cache):
    source, x = encoder(tmp_path / "encoder.onnx"), latents(1, 3, 96, 96)
    folder = build(source, tmp_path / "build", cpu, x.shape, 32 * 1024, lowered=True)
    with graph_session(source) as session:
        assert psnr_db(session.run({"latent_sample": x})["sample"], run(folder, cpu, x)) >= 100.0
    stages = read_strips(folder).stages
    assert {port.shape[2] for stage in stages for port in stage.gives} == {96, 48, 24}
    for stage in stages:
        assert stage.rows > stage.strip_rows
        for port in (*stage.reads, *stage.gives):
            batch, channels, _, width = port.shape
            assert batch * channels * width * stage.strip_rows * port.scale * 4 <= 32 * 1024


def test_postcards_encoder_is_itself_in_strips(tmp_path, cpu):
    source = tintype.load("postcard", provider="cpu").bundle.graph_path("vae_encoder")
    x = latents(1, 3, 96, 68)
    with graph_session(source) as session:
        whole = session.run({"sample": x})["latent_parameters"]
    folder = build(source, tmp_path / "build", cpu, x.shape, 2**16)
    with open_session(folder, cpu, threads=2, mapped=True) as session:
        assert psnr_db(whole, session.run({"sample": x})["latent_parameters"]) >= 100.0


def test_kernels_are_chosen_for_strips_and_the_result_stays(tmp_path, cpu, cache):
    source, x = decoder(tmp_path / "decoder.onnx", seed=3), latents(1, 4, 24, 24)
    with graph_session(source) as session:
        whole = session.run({"latent_sample": x})["sample"]
    folder = build(source, tmp_path / "build", cpu, x.shape, 64 * 1024, lowered=True)
    assert psnr_db(whole, run(folder, cpu, x)) >= 100.0
    stages = read_strips(folder).stages
    assert [stage.rows for stage in stages if stage.rows > stage.strip_rows]
    assert max(stage.rows for stage in stages) == 96
    assert HEAD in read_chains(folder)
    for stage in stages:
        for port in (*stage.reads, *stage.gives):
            batch, channels, _, width = port.shape
            assert batch * channels * width * stage.strip_rows * port.scale * 4 <= 64 * 1024
        assert stage.margin <= 1


def test_postcards_decoder_in_floats(tmp_path, cpu):
    bundle = tintype.load("postcard", provider="cpu").bundle
    model = ir.load(bundle.graph_path("vae_decoder"))
    lower(model, "webgpu", kernels=[FloatActivations(), FloatWeights(), FloatRows()])
    source, x = tmp_path / "decoder.onnx", latents(1, 4, 24, 17)
    ir.save(model, source)
    with graph_session(source) as session:
        whole = session.run({"latent_sample": x})["sample"]
    for strip_bytes in (MINIMAL, 2**18):
        folder = build(source, tmp_path / str(strip_bytes), cpu, x.shape, strip_bytes)
        assert len(read_strips(folder).stages) > 8
        assert psnr_db(whole, run(folder, cpu, x)) >= 100.0


def test_a_graph_without_norms_is_cut_where_it_grows(tmp_path, cpu):
    graph = Graph()
    x = graph.node("Relu", graph.conv("latent_sample", 4, 8, 5))
    source = graph.save(tmp_path / "tiny.onnx", graph.conv(graph.double(x), 8, 3))
    x = latents(1, 4, 13, 6)
    folder = build(source, tmp_path / "build", cpu, x.shape, MINIMAL)
    facts = read_strips(folder)
    assert [(stage.rows, stage.margin, stage.strip_rows) for stage in facts.stages] == [(13, 2, 6), (13, 1, 4)]
    assert not read_chains(folder)
    with graph_session(source) as session:
        whole = session.run({"latent_sample": x})["sample"]
    assert psnr_db(whole, run(folder, cpu, x)) >= 100.0


def test_what_needs_whole_maps_behind_the_point_where_strips_begin_is_refused(tmp_path, cpu):
    graph = Graph()
    x = graph.attention(graph.double(graph.conv("latent_sample", 4, 8)), 8, 4)
    source = graph.save(tmp_path / "late.onnx", graph.conv(x, 8, 3))
    options = BuildOptions.for_shape({"batch": 1, "height": 8, "width": 8}, strip_bytes=2**20)
    folder = tmp_path / "build"
    folder.mkdir()
    with pytest.raises(UncutError, match=r"can't run in strips: .* needs whole maps after Resize"):
        lower_into(source, folder, cpu, lowered=False, options=options)


def test_a_norms_input_may_be_far_from_zero(tmp_path, cpu):
    graph = Graph()
    far = graph.node("Add", graph.conv("latent_sample", 4, 8), graph.fixed(np.full((8, 1, 1), 300, np.float32)))
    source = graph.save(tmp_path / "far.onnx", graph.norm(far, 8, 2), 8)
    x = latents(1, 4, 40, 30)
    folder = build(source, tmp_path / "build", cpu, x.shape, MINIMAL)
    sample = run(folder, cpu, x)
    weight, bias = (numpy_helper.to_array(graph.weights[index]).astype(np.float64) for index in (0, 1))
    scale, shift = (numpy_helper.to_array(graph.weights[index]).astype(np.float64) for index in (3, 4))
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    mapped = np.einsum("nchwab,kcab->nkhw", windows, weight) + bias[:, None, None]
    by_group = mapped.reshape(2, -1)
    normed = (by_group - by_group.mean(1, keepdims=True)) / np.sqrt(by_group.var(1, keepdims=True) + 1e-6)
    expected = normed.reshape(mapped.shape) * scale[:, None, None] + shift[:, None, None]
    assert psnr_db(expected, sample) >= 85.0  # what float32 keeps of 300 beside deviations of 1


@pytest.mark.parametrize("rows", range(1, 30))
def test_strips_cover_every_row_once_with_its_neighbours(rows):
    for margin in (0, 1, 2, 5):
        for strip_rows in {rows, *range(min(rows, 2 * margin + 1), rows)}:
            if strip_rows < rows and strip_rows < 2 * margin + 1:
                continue
            done = 0
            for start, first, last in StageFacts("", (), rows, strip_rows, margin, (), (), ()).strips():
                assert first == done < last
                assert start >= 0
                assert start + strip_rows <= rows
                assert start == 0 or first - start >= margin
                assert start + strip_rows == rows or start + strip_rows - last >= margin
                done = last
            assert done == rows


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_pieces_are_those_of_the_whole(offset):
    x = np.random.default_rng(0).standard_normal((2, 6, 17, 5)) + offset
    x[:, :, 5:9] *= 3
    moments = Moments()
    for rows in (x[:, :, :1], x[:, :, 1:12], x[:, :, 12:]):
        means = rows.mean(axis=3)
        moments.add(means, np.square(rows - means[..., None]).sum(axis=3), 5)
    by_group = x.reshape(2, 3, -1)
    mean, inverse = moments.normal(3, 1e-3)
    np.testing.assert_allclose(mean.reshape(2, 3, 2)[:, :, 0], by_group.mean(2), rtol=1e-6)
    np.testing.assert_allclose(inverse.reshape(2, 3, 2)[:, :, 1], 1 / np.sqrt(by_group.var(2) + 1e-3), rtol=1e-6)
    stored = Moments.of_map(RowStore.of(x.astype(np.float32))).normal(3, 1e-3)
    np.testing.assert_allclose(stored[1], inverse, rtol=1e-6 if offset == 0 else 1e-2)


def test_maps_in_files_are_as_in_memory_and_leave_nothing(tmp_path):
    array = np.random.default_rng(0).standard_normal((2, 3, 11, 4)).astype(np.float32)
    stores = RowStores(tmp_path, held_bytes=array.nbytes - 1)
    with stores.files_closed():
        held = stores.empty(array.shape, array.dtype, in_memory=True)
        filed = stores.empty(array.shape, array.dtype)
        assert isinstance(held.held, np.ndarray)
        assert not isinstance(filed.held, np.ndarray)
        for store in (held, filed):
            store.write(4, array[:, :, 4:])
            store.write(0, array[:, :, :4])
            np.testing.assert_array_equal(store.read(3, 9), array[:, :, 3:9])
            np.testing.assert_array_equal(store.whole(), array)
        file = filed.held
        stores.give_back(filed)
        assert stores.empty(array.shape, array.dtype).held is file
    assert file.closed
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path, cpu):
    source, x = decoder(tmp_path / "decoder.onnx"), latents(1, 4, 32, 32)
    folder = build(source, tmp_path / "build", cpu, x.shape, MINIMAL)
    with open_session(folder, cpu, threads=2) as session:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(BuildError, match=r"no space left on disk for a feature map of 262,144 bytes"):
                session.run({"latent_sample": x})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert session.run({"latent_sample": x})["sample"].shape == (1, 3, 128, 128)


_CHILD = """
import json, pathlib, re, sys
import numpy as np
from tintype.engine import open_session, resolve_provider
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
x = np.zeros((1, 4, 256, 256), np.float32)
with open_session(pathlib.Path(sys.argv[1]), resolve_provider("cpu"), threads=2, mapped=True) as session:
    before = peak()
    session.run({"latent_sample": x})
print(json.dumps(peak() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory as Linux tells it")
def test_no_whole_map_is_ever_in_memory(tmp_path, cpu):
    source = decoder(tmp_path / "decoder.onnx", attention=False)
    folder = build(source, tmp_path / "build", cpu, (1, 4, 256, 256), 2**19)
    done = subprocess.run([sys.executable, "-c", _CHILD, str(folder)], capture_output=True, text=True, check=True)
    largest, picture = 8 * 1024 * 1024 * 4, 3 * 1024 * 1024 * 4
    assert json.loads(done.stdout) < picture + largest // 2


def test_strips_are_part_of_the_plan():
    options = BuildOptions.for_shape({"height": 64}, strip_bytes=16 * 2**20, threads=2)
    assert options.mapped
    assert options.plan == "balanced mapped strips=16MiB threads=2"
