"""A named provider is used or it is an error; a broken installation says how to mend it."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import onnx
import pytest

from tintype.engine.device import installation, providers
from tintype.engine.device.providers import TARGETS, Target, plain_reason, resolve_provider, unusable_reason
from tintype.errors import InstallError, ProviderError


def _installed(monkeypatch, folder, **versions):
    """Have these distributions, and no others, where Python looks for packages."""
    for name, version in versions.items():
        (folder / f"{name}-{version}.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])


def test_auto_takes_the_processor_where_nothing_better_works(monkeypatch):
    monkeypatch.setattr(providers, "unusable_reason", lambda target: None if target.name == "cpu" else "absent")
    assert resolve_provider("auto") is TARGETS["cpu"]
    assert resolve_provider("auto").is_host


def test_auto_takes_a_device_that_works(monkeypatch):
    monkeypatch.setattr(providers, "unusable_reason", lambda target: None if target.name == "webgpu" else "absent")
    assert resolve_provider("auto").name == "webgpu"


@pytest.mark.parametrize("name", ["cuda", "webgpu", "openvino", "qnn", "tensorrt-rtx"])
def test_a_named_device_that_is_absent_is_an_error_with_the_command_that_installs_it(name):
    if unusable_reason(TARGETS[name]) is None:
        pytest.skip(f"{name} works here")
    with pytest.raises(ProviderError) as caught:
        resolve_provider(name)
    assert name in caught.value.message
    assert f"pip install 'tintype[{name}]'" in caught.value.fix


@pytest.mark.parametrize(("name", "system"), [("directml", "Windows"), ("coreml", "macOS")])
def test_a_device_of_another_system_is_an_error_that_names_the_system(name, system):
    if TARGETS[name].system == platform.system():
        pytest.skip(f"this is {system}")
    with pytest.raises(ProviderError) as caught:
        resolve_provider(name)
    assert f"{system} only" in caught.value.message
    assert "webgpu" in caught.value.fix


def test_what_onnxruntime_says_is_told_without_its_codes_and_places():
    told = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : /src/webgpu_context.cc:65 Initialize(auto)::<lambda()> status == Success "
        "was false. Failed to get a WebGPU adapter: No supported adapters\nmore"
    )
    assert plain_reason(told) == "Failed to get a WebGPU adapter: No supported adapters"


def test_an_unknown_name_names_the_near_ones():
    with pytest.raises(ProviderError) as caught:
        resolve_provider("cudda")
    assert "did you mean cuda" in caught.value.fix


def test_no_runtime_at_all_says_what_to_install(monkeypatch, tmp_path):
    _installed(monkeypatch, tmp_path)
    with pytest.raises(InstallError) as caught:
        resolve_provider("auto")
    assert "pip install 'tintype[cpu]'" in caught.value.fix


def test_what_is_installed_is_what_pythons_own_means_find():
    found = installation.installed_distributions()
    assert len(found) == 1
    assert found == {name: metadata.version(name) for name in found}


def test_two_runtimes_overwrite_one_another_and_are_refused(monkeypatch, tmp_path):
    _installed(monkeypatch, tmp_path, onnxruntime="1.31.1", onnxruntime_gpu="1.31.0")
    with pytest.raises(InstallError) as caught:
        resolve_provider("cpu")
    assert "onnxruntime, onnxruntime-gpu" in caught.value.message
    assert caught.value.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'tintype[cuda]'")


@pytest.mark.parametrize("right", [True, False])
def test_a_device_is_usable_when_it_computes_one_relu(monkeypatch, right):
    """The device is the processor under another name; one that gives back what came is no use."""
    runtime = providers.load_onnxruntime()
    target = Target("new", f"{right}ExecutionProvider", "new")
    asked = []

    class Device:
        def __init__(self, graph, options, target):
            asked.append(onnx.load_from_string(graph))
            self.inner = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [target.provider]

        def run(self, names, feed):
            return self.inner.run(names, feed) if right else list(feed.values())

    monkeypatch.setattr(runtime, "get_available_providers", lambda: [target.provider])
    monkeypatch.setattr(providers, "new_session", Device)
    reason = unusable_reason(target)
    assert (reason is None) if right else ("the larger of 0 and -1" in reason)
    (model,) = asked
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


def test_auto_prefers_cuda_then_what_windows_offers_then_webgpu_then_directml(monkeypatch):
    """One after another is taken away, and the next one is taken."""
    offered = frozenset({TARGETS["tensorrt-rtx"].provider, TARGETS["qnn"].provider})
    monkeypatch.setattr(providers.windows_ml, "register", lambda runtime: offered)
    gone, taken = set(), []
    monkeypatch.setattr(providers, "unusable_reason", lambda target: "absent" if target.name in gone else None)
    monkeypatch.setattr(providers, "is_software", lambda target: False)
    while not taken or taken[-1] != "cpu":
        taken.append(resolve_provider("auto").name)
        gone.add(taken[-1])
    assert taken == ["cuda", "qnn", "tensorrt-rtx", "webgpu", "directml", "cpu"]


def test_directml_is_asked_for_by_what_it_is_so_that_its_settings_are_read():
    settings = dict(TARGETS["directml"].options)
    assert settings == {"performance_preference": "high_performance", "device_filter": "gpu"}


@pytest.mark.skipif(platform.system() != "Windows", reason="DirectML exists on Windows only")
def test_directml_runs_here():
    if unusable_reason(TARGETS["directml"]) is not None:
        pytest.skip(f"DirectML: {unusable_reason(TARGETS['directml'])}")
    assert resolve_provider("directml").provider == "DmlExecutionProvider"
