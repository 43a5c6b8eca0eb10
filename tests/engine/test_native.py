"""The library of operators: part of a build's key, absent without harm, and taken from the package alone."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tintype.engine import BuildOptions, build_key, ensure_build, list_devices, open_role, resolve_provider
from tintype.engine.build import builds as building
from tintype.engine.build import measure
from tintype.engine.device import abilities, machine, native
from tintype.engine.device.providers import TARGETS
from tintype.kernels.native import library

REAL, SETS = library.library(), native.kernel_sets()
OPTIONS = BuildOptions.for_shape({"batch": 2}, exactness="exact", threads=1, timed=True)


@pytest.fixture
def native_folder(tmp_path, monkeypatch):
    """The package's folder as another one, that may be filled; nothing is remembered of the real one."""
    folder = tmp_path / "native"
    folder.mkdir()
    remembered = (native._found, native._first_use, native.kernel_sets, abilities.abilities)
    monkeypatch.setattr(library, "FOLDER", folder)
    for each in remembered:
        each.cache_clear()
    yield folder
    for each in remembered:
        each.cache_clear()


def _real_library():
    if REAL is None:
        pytest.skip(f"no native kernels: {library.reason_missing()}")
    return REAL


def test_a_library_that_was_compiled_works():
    """Where it is there at all: else `tintype devices` says why, and nothing else changes."""
    assert (native.native_problem() is None) == (library.library() is not None)
    assert ("native" in abilities.abilities(TARGETS["cpu"])) == (native.native_problem() is None)
    assert (native.native_version() == "none") == (native.native_problem() is not None)
    assert next(iter(list_devices())).native_problem == native.native_problem()


def test_the_library_has_kernels_for_what_this_processor_is_known_to_have():
    """As numpy asks it, which knows nothing of AVX-VNNI and of i8mm."""
    _real_library()
    have, sets = machine.instruction_sets(), SETS
    known = {"avx2": "avx2", "avx512": "avx512f", "avx512vnni": "avx512vnni", "dotprod": "asimddp"}
    assert sets[0] == "baseline"
    assert {name for name in sets if name in known} == {name for name, feature in known.items() if feature in have}
    assert {"avxvnni": "avx2", "i8mm": "dotprod"}.get(sets[-1], sets[0]) in sets
    assert next(iter(list_devices())).native_set == sets[-1]


def test_integers_are_asked_of_the_library_and_are_there_with_products_of_bytes():
    _real_library()
    with_bytes = {"avxvnni", "avx512vnni", "avx512bf16", "dotprod", "i8mm"}
    assert ("native_integers" in abilities.abilities(TARGETS["cpu"])) == (native.kernel_sets()[-1] in with_bytes)


def test_without_a_library_the_reason_is_told_and_no_kernel_is_offered(native_folder):
    assert "were not compiled" in native.native_problem()
    (native_folder / library.MISSING).write_text("zig has no such processor\nmore\n")
    native._first_use.cache_clear()
    assert native.native_problem() == "zig has no such processor"
    assert native.native_version() == "none"
    assert native.kernel_sets() == ()
    assert abilities.abilities(TARGETS["cpu"]) & {"native"} == set()
    assert next(iter(list_devices())).native_problem == "zig has no such processor"


def test_a_library_that_cannot_be_loaded_is_as_none(native_folder):
    (native_folder / _real_library().name).write_bytes(b"\x7fELF of another processor")
    assert "cannot be loaded" in native.native_problem()
    assert native.native_version() == "none"


def test_a_library_elsewhere_is_never_loaded(native_folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(_real_library(), elsewhere)
    monkeypatch.chdir(elsewhere)
    for name in ("LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TINTYPE_CACHE"):
        monkeypatch.setenv(name, str(elsewhere))
    assert native.native_problem() is not None


@pytest.mark.slow
def test_the_key_of_a_build_names_the_library(bundle, cpu, native_folder):
    absent = build_key(bundle, "denoiser", cpu)
    shutil.copy(_real_library(), native_folder)
    for each in (native._found, native._first_use, native.kernel_sets):
        each.cache_clear()
    present = build_key(bundle, "denoiser", cpu)
    assert building.identify(bundle, "denoiser", cpu).native == f"{library.digest(_real_library())} {SETS[-1]}"
    with (native_folder / _real_library().name).open("ab") as file:
        file.write(b"\0")
    for each in (native._found, native._first_use, native.kernel_sets, library.digest):
        each.cache_clear()
    assert native.native_problem() is None
    assert len({absent, present, build_key(bundle, "denoiser", cpu)}) == 3
    other = building.identify(bundle, "denoiser", TARGETS["webgpu"])
    assert other.native == "none"


def _write_norm(path):
    """y = silu(groupnorm(x)), x (batch, 32, 32, 32)."""
    nodes = [
        helper.make_node("GroupNormalization", ["x", "ones", "zeros"], ["normed"], num_groups=8),
        helper.make_node("Sigmoid", ["normed"], ["sigmoid"]),
        helper.make_node("Mul", ["normed", "sigmoid"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 32, 32, 32]) for name in ("x", "y")]
    middle = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 32, 32, 32]) for n in ("normed", "sigmoid")]
    constants = {"ones": np.linspace(0.5, 2, 32, dtype=np.float32), "zeros": np.zeros(32, np.float32)}
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "norm", ports[:1], ports[1:], initializers, value_info=middle)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)


def _operators(folder):
    return {node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node}


@pytest.mark.slow
def test_a_timed_build_takes_a_native_kernel_where_it_wins_and_opens_again(bundle, cpu, cache):
    """It is twice as fast and more, which no other program can turn round for a second."""
    _real_library()
    _write_norm(bundle.graph_path("denoiser"))
    folder = ensure_build(bundle, "denoiser", cpu, options=OPTIONS)
    (choice,) = building.cache.read_report(folder)["choices"]
    assert choice["layer"].startswith("GroupNorm 2x32x32x32")
    assert choice["chosen"] == "native_group_norm"
    assert "GroupNormSilu" in _operators(folder)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 32), np.float32)
    with open_role(bundle, "denoiser", cpu, options=OPTIONS) as session:
        y = session.run({"x": x})["y"]
    grouped = x.reshape(2, 8, -1).astype(np.float64)
    normed = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    shifted = normed.reshape(x.shape) * np.linspace(0.5, 2, 32).reshape(-1, 1, 1)
    np.testing.assert_allclose(y, shifted / (1 + np.exp(-shifted)), atol=3e-6)


@pytest.mark.slow
def test_priors_choose_no_native_kernel_that_they_have_no_times_of(bundle, cpu, cache):
    from tintype.kernels.graph.priors import all_priors

    timed = {way for table in all_priors() for row in table.rows for way in row.ways}
    _write_norm(bundle.graph_path("denoiser"))
    options = BuildOptions.for_shape({"batch": 2}, exactness="exact", threads=1, timed=False)
    folder = ensure_build(bundle, "denoiser", cpu, options=options)
    assert ("GroupNormSilu" in _operators(folder)) <= ("native_group_norm" in timed)


def test_what_a_chosen_kernel_swallows_is_not_decided_again(monkeypatch):
    """The scale and shift at a norm's end are a layer of their own, unless the norm goes as a whole."""
    import onnx_ir as ir

    from tintype.kernels.graph.dims import pin
    from tintype.kernels.registry import lower, measured_kernels

    def choices(winner, tmp):
        model = ir.from_proto(tmp)
        pin(model, {"batch": 2})
        lower(model, "cpu")
        fast, slow = measure.Way(1.0, 0, 200.0), measure.Way(2.0, 0, 200.0)
        ways = lambda layer: {name: fast if name == winner else slow for name in layer.ways}  # noqa: E731
        kernels = measured_kernels("cpu", ["native"], exactness="exact")
        return [choice.chosen for choice in measure.choose(model, kernels, ways, largest_bytes=None)]

    from io import BytesIO

    graph = BytesIO()
    _write_norm(graph)
    proto = onnx.load_from_string(graph.getvalue())
    assert choices("native_group_norm", proto) == ["native_group_norm"]
    assert choices("channel_affine", proto) == ["as_is", "channel_affine"]


def test_every_session_of_the_processor_knows_the_operators_and_no_other(monkeypatch):
    from tintype.engine.run import session_options

    registered = []
    monkeypatch.setattr(session_options.native, "register", registered.append)
    session_options.session_options(resolve_provider("cpu"), threads=1, optimize=False)
    assert len(registered) == 1
    session_options.session_options(TARGETS["webgpu"], threads=1, optimize=False)
    assert len(registered) == 1
