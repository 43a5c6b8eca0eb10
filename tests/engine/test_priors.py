"""First builds choose kernels by what was timed on such processors, at once and always alike; timed ones come when they
are asked for, and a picture says by which it was drawn."""

from __future__ import annotations

import dataclasses
from importlib import resources

import numpy as np
import pytest

from tintype import load
from tintype.engine import BuildOptions, build_id, cache_folder, clear_cache, ensure_build, is_timed
from tintype.engine.build.cache import damage, read_report
from tintype.engine.build.code_version import read_sources, version_of
from tintype.engine.build.measure import AS_IS
from tintype.record.provenance import BY_PRIORS, TIMED
from tintype.uses import GraphRef

pytestmark = pytest.mark.slow

SMALL = {"width": 64, "height": 64, "num_inference_steps": 1, "seed": 3}


@pytest.fixture
def postcard(cache):
    with load("postcard", provider="cpu", threads=1) as pipeline:
        yield pipeline


def test_another_table_makes_another_build():
    sources = read_sources([resources.files("tintype.kernels")])
    assert "kernels/priors.json" in sources
    assert version_of(sources) != version_of(sources | {"kernels/priors.json": b'{"tables": []}'})


def test_a_first_build_times_nothing_and_is_the_same_in_every_cache(postcard):
    bundle, cpu = postcard.bundle, postcard.target
    options = BuildOptions.for_shape({"batch": 1, "height": 8, "width": 8}, exactness="exact", threads=1)
    ids = []
    for _ in range(2):
        folder = ensure_build(bundle, "vae_decoder", cpu, options=options)
        ids.append(build_id(folder))
        assert not is_timed(folder)
        assert not list((cache_folder() / "costs").glob("[0-9a-f]*.json"))  # of timed layers
        assert any(each["chosen"] != AS_IS for each in read_report(folder)["choices"])
        clear_cache()
    assert ids[0] == ids[1]


@pytest.mark.long
def test_pictures_are_drawn_by_a_timed_build_once_there_is_one_and_say_so(postcard):
    first = postcard.generate("a red boat", **SMALL)
    roles = set(postcard.bundle.manifest.graph_names)
    assert first.records[0].made_with.kernels == dict.fromkeys(roles, BY_PRIORS)
    for _, folder in postcard.build(first.records[0].request):
        assert is_timed(folder)
    with load("postcard", provider="cpu", threads=1) as later:
        second = later.generate("a red boat", **SMALL)
        assert second.records[0].made_with.kernels == dict.fromkeys(roles, TIMED)
        assert set(second.records[0].made_with.builds.values()).isdisjoint(first.records[0].made_with.builds.values())
        again = later.reproduce(first.records[0])  # by the builds that drew it, which are still there
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(first.images[0]))
    assert again.records[0].made_with == first.records[0].made_with


@pytest.mark.long
def test_a_pipeline_keeps_to_the_builds_that_it_began_with(postcard):
    first = postcard.generate("a red boat", **SMALL)
    with load("postcard", provider="cpu", threads=1) as other:
        for _ in other.build(first.records[0].request):
            pass
    assert postcard.generate("a red boat", **SMALL).records[0].made_with == first.records[0].made_with


def test_a_damaged_timed_build_costs_no_picture_and_no_timing(postcard):
    options = BuildOptions.for_shape({"batch": 1}, exactness="exact", threads=1)
    bundle, cpu = postcard.bundle, postcard.target
    timed = ensure_build(bundle, "text_encoder", cpu, options=dataclasses.replace(options, timed=True))
    assert ensure_build(bundle, "text_encoder", cpu, options=options) == timed
    (timed / "model.onnx").write_bytes(b"nonsense")
    assert not is_timed(ensure_build(bundle, "text_encoder", cpu, options=options))


def _wanted(postcard):
    sizes = {"height": 8, "width": 8}
    dims = {"text_encoder": {}, "denoiser": {**sizes, "sequence": 77}, "vae_decoder": sizes}
    return [(GraphRef(role), BuildOptions.for_shape({"batch": 1, **each}, threads=1)) for role, each in dims.items()]


def test_what_a_picture_lacks_is_built_together_and_found_by_whoever_waits(postcard, monkeypatch):
    from tintype.engine import begin_builds
    from tintype.engine.build import builds

    processes = []
    run_child = builds.run_child
    monkeypatch.setattr(builds, "run_child", lambda *words: processes.append(words) or run_child(*words))
    wanted = _wanted(postcard)
    begin_builds(postcard.bundle, wanted, postcard.target, free_bytes=2**40)
    for ref, options in wanted:
        folder = ensure_build(postcard.bundle, ref.role, postcard.target, options=options)
        assert damage(folder) is None
    assert len(processes) == 1


def test_without_memory_for_all_at_once_each_is_built_when_it_is_wanted(postcard):
    from tintype.engine import begin_builds

    begin_builds(postcard.bundle, _wanted(postcard), postcard.target, free_bytes=2**20)
    assert not list((cache_folder() / "builds").glob("*"))


def test_one_that_cannot_be_built_is_an_error_where_it_is_wanted_and_costs_the_others_nothing(postcard, monkeypatch):
    from tintype.engine import begin_builds
    from tintype.errors import BuildError

    bundle, wanted = postcard.bundle, _wanted(postcard)
    broken = cache_folder() / "broken.onnx"
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_bytes(b"nonsense")
    graph_path = type(bundle).graph_path

    def other_path(self, role, variant="full"):
        return broken if role == "vae_decoder" else graph_path(self, role, variant)

    monkeypatch.setattr(type(bundle), "graph_path", other_path)
    begin_builds(bundle, wanted, postcard.target, free_bytes=2**40)
    for ref, options in wanted[:2]:
        assert damage(ensure_build(bundle, ref.role, postcard.target, options=options)) is None
    with pytest.raises(BuildError, match="cannot be built"):
        ensure_build(bundle, "vae_decoder", postcard.target, options=wanted[2][1])
    assert not list((cache_folder() / "builds").glob(".partial*"))
