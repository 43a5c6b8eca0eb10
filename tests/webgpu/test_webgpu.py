"""Postcard on WebGPU: the same picture as on the processor, every heavy node placed, the same bytes twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

import tintype
from tintype.engine import BuildOptions, ensure_build, graph_session, open_session, resolve_provider
from tintype.engine.build.cache import read_report
from tintype.engine.device import plugins
from tintype.engine.device.abilities import abilities
from tintype.engine.device.providers import TARGETS, is_software, load_onnxruntime, new_session
from tintype.engine.run.placement import HEAVY_OPERATORS
from tintype.errors import ProviderError
from tintype.kernels.registry import finish, kernels_for, lower

pytestmark = pytest.mark.slow

PROMPT = "a red sailboat on a calm sea at sunset"
PICTURE_GATE_DB = 45.0
GRAPH_GATE_DB = 50.0  # what a graph in float16 has to keep; float32 keeps 100 and more


def psnr_db(result, reference, span=None):
    error = np.mean((result.astype(np.float64) - reference) ** 2)
    return np.inf if error == 0 else 10 * np.log10((span or np.ptp(reference)) ** 2 / error)


def test_a_picture_of_two_steps_is_the_processors(webgpu):
    """What postcard gives by itself rounds nothing on either: one picture. `balanced` differs by what 8 bits cost."""
    request = {"seed": 7, "num_inference_steps": 2, "watermark": False}
    with tintype.load("postcard", provider="webgpu") as pipeline:
        on_device = pipeline.generate(PROMPT, **request)
        assert pipeline.graphs.device_bytes > 4 * 2**20  # the weights alone take more
    with tintype.load("postcard", provider="cpu") as pipeline:
        usual = pipeline.generate(PROMPT, **request)
        balanced = pipeline.generate(PROMPT, **request, exactness="balanced")
        assert pipeline.graphs.device_bytes == 0
    assert on_device.record.made_with.target == "webgpu"
    assert on_device.record.notes == ()
    assert (on_device.timings.device_bytes == 0) == is_software(webgpu)  # whose memory is the process's
    assert usual.timings.device_bytes == 0
    picture = np.asarray(on_device.image)
    assert psnr_db(picture, np.asarray(usual.image), 255) >= PICTURE_GATE_DB
    assert psnr_db(picture, np.asarray(balanced.image), 255) >= 40.0


def test_the_same_request_gives_the_same_bytes(webgpu):
    request = {"seed": 3, "num_inference_steps": 1, "width": 32, "height": 32}
    pictures = []
    for _ in range(2):
        with tintype.load("postcard", provider="webgpu") as pipeline:
            pictures.append(pipeline.generate(PROMPT, **request).image.tobytes())
    assert pictures[0] == pictures[1]


def _feed(role, random):
    if role == "text_encoder":
        return {"input_ids": random.integers(0, 900, (1, 77))}
    if role == "vae_decoder":
        return {"latent_sample": random.standard_normal((1, 4, 8, 8), np.float32)}
    return {
        "sample": random.standard_normal((2, 4, 8, 8), np.float32),
        "timestep": np.array([601.0], np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 128), np.float32),
    }


@pytest.mark.parametrize("role", ["text_encoder", "denoiser", "vae_decoder"])
def test_each_graph_says_what_the_processor_says(sessions, builds, role):
    feed = _feed(role, np.random.default_rng(5))
    with open_session(builds[role], TARGETS["cpu"], optimize=True) as reference:
        expected = next(iter(reference.run(feed).values()))
    assert psnr_db(next(iter(sessions[role].run(feed).values())), expected) >= GRAPH_GATE_DB


@pytest.mark.parametrize("role", ["text_encoder", "denoiser", "vae_decoder"])
def test_every_heavy_node_is_on_the_device_by_the_profilers_account(sessions, builds, webgpu, tmp_path, role):
    options = load_onnxruntime().SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    inner = new_session(str(builds[role] / "model.onnx"), options, webgpu)
    inner.run(None, _feed(role, np.random.default_rng(5)))
    events = json.loads(Path(inner.end_profiling()).read_text())
    ran = {event["name"]: event["args"] for event in events if event["name"].endswith("_kernel_time")}
    strays = {args["op_name"] for args in ran.values() if args["provider"] != webgpu.provider}
    assert strays & HEAVY_OPERATORS == set()
    heavy = Counter(args["op_name"] for args in ran.values() if args["op_name"] in ("Conv", "MatMul", "Gemm"))
    placed = sessions[role].placement
    assert heavy == Counter({name: placed.count(name, webgpu.provider) for name in heavy})
    assert heavy.total() > 0
    assert placed.heavy_off(webgpu.provider) == {}


def test_a_graph_that_is_not_lowered_is_refused_with_the_nodes_that_stray(webgpu, bundle):
    with pytest.raises(ProviderError) as caught:
        open_session(bundle.graph_path("denoiser"), webgpu)
    assert "14 Attention" in caught.value.message
    assert "CPUExecutionProvider" in caught.value.message
    with graph_session(bundle.graph_path("text_encoder"), "webgpu", lowered=False) as allowed:
        assert allowed.placement.count("Attention", "CPUExecutionProvider") == 4


def test_the_build_has_the_attention_that_this_adapter_computes_right(builds):
    """SwiftShader runs MultiHeadAttention and gives other values, so it gets products; a GPU gets the one node."""
    report = read_report(builds["denoiser"])
    able = "attention" in report["abilities"]
    assert report["kernels"].get("attention", 0) == (14 if able else 0)
    assert report["kernels"].get("attention_products", 0) == (0 if able else 14)


@pytest.fixture(scope="module")
def kernel_table(webgpu):
    """What the provider's library registers: by operator a range of versions and types by constraint."""
    ask = getattr(state, "get_registered_ep_kernel_defs", None)
    if ask is None or not plugins.is_registered(webgpu.plugin):
        pytest.skip("takes a provider that is a library of its own, and an onnxruntime that lists its kernels")
    found = {}
    for kernel in ask(webgpu.provider):
        found.setdefault((kernel.domain, kernel.op_name), []).append((kernel.version_range, kernel.type_constraints))
    return found


def _has_kernel(node, table, schema):
    ports = list(schema.inputs)
    told = [(ports[min(i, len(ports) - 1)].typeStr, value) for i, value in enumerate(node.inputs) if value is not None]
    names = {ir.DataType.FLOAT: "tensor(float)", ir.DataType.FLOAT16: "tensor(float16)"}
    return any(
        first <= schema.since_version <= last
        and all(names[value.dtype] in types[kind] for kind, value in told if kind in types and value.dtype in names)
        for (first, last), types in table.get((node.domain, node.op_type), ())
    )


@pytest.mark.parametrize("role", ["text_encoder", "denoiser", "vae_decoder"])
def test_every_heavy_node_in_float16_has_a_kernel(bundle, kernel_table, role):
    """Without shader-f16 such a graph can't be opened, so that the library's own list of kernels is asked."""
    model = ir.load(bundle.graph_path(role))
    lower(model, "webgpu", kernels=kernels_for("webgpu", ["attention", "float16"]))
    assert finish(model, "webgpu", ["attention", "float16"]) > 0
    opset, schemas = model.opset_imports[""], {}
    for schema in state.get_all_operator_schema():
        key, known = (schema.domain, schema.name), schemas.get((schema.domain, schema.name))
        if (schema.domain or schema.since_version <= opset) and (
            not known or known.since_version < schema.since_version
        ):
            schemas[key] = schema
    heavy = [node for node in model.graph if node.op_type in HEAVY_OPERATORS]
    missing = {
        node.op_type for node in heavy if not _has_kernel(node, kernel_table, schemas[node.domain, node.op_type])
    }
    assert missing == set()
    assert {node.inputs[0].dtype for node in heavy if node.op_type in ("Conv", "MatMul")} == {ir.DataType.FLOAT16}


def test_a_balanced_build_is_in_float16_where_the_adapter_has_it_and_an_exact_one_never(webgpu, bundle, builds):
    able = "float16" in abilities(webgpu)
    assert (read_report(builds["denoiser"])["half_nodes"] > 0) == able
    exact = ensure_build(bundle, "denoiser", webgpu, options=BuildOptions(exactness="exact"))
    assert read_report(exact)["half_nodes"] == 0


def _run(*arguments, **environment):
    command = [sys.executable, "-m", "tintype", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


def test_without_an_adapter_the_error_says_what_to_install_and_draws_nothing(webgpu, tmp_path):
    picture = tmp_path / "x.png"
    if not sys.platform.startswith("linux"):
        pytest.skip("adapters are found by Vulkan on Linux")
    code, _, told = _run(
        "generate", PROMPT, "-o", str(picture), "--provider", "webgpu", VK_ICD_FILENAMES="/nowhere/icd.json"
    )
    assert code == 1
    assert "error: provider webgpu cannot be used: " in told
    assert "fix: apt-get install libvulkan1 mesa-vulkan-drivers" in told
    assert "Traceback" not in told
    assert not picture.exists()


def test_a_software_adapter_is_used_by_name_only(webgpu):
    _, told, _ = _run("devices", "--json")
    found = json.loads(told)
    (device,) = [device for device in found["devices"] if device["target"] == "webgpu"]
    assert device["usable"]
    software = "software" in (device["name"] or "")
    assert found["auto"] == ("cpu" if software else "webgpu")
    if software:
        assert resolve_provider("auto").name == "cpu"
