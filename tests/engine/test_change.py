"""The two builds of one canonical graph: what the whole one gives, the other takes, however each is held."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tintype.bundle import open_bundle
from tintype.engine import BuildOptions, build_key, open_role, resolve_provider
from tintype.engine.build.analyse import analysis_of
from tintype.engine.build.lower import Job
from tintype.engine.build.probe import random_inputs
from tintype.errors import RequestError
from tintype.kernels.graph.dims import fold_sizes, pin
from tintype.kernels.graph.features import skip_sizes
from tintype.kernels.graph.reuse import WORDS
from tintype.uses import CROSS_ATTENTION, DEEP_FEATURES, Cut, GraphRef

pytestmark = pytest.mark.slow  # graphs are built by the dozen

DIMS = {"batch": 1, "height": 16, "width": 16, "sequence": 77}
WAYS = {"packed": {}, "mapped": {"mapped": True}, "segments": {"segment_bytes": 2**20}}
PAIRS = {
    "outermost": (Cut(DEEP_FEATURES, False), Cut(DEEP_FEATURES, True)),
    "inner": (Cut(DEEP_FEATURES, False, 3), Cut(DEEP_FEATURES, True, 3)),
    "gated": (Cut(CROSS_ATTENTION, False), Cut(CROSS_ATTENTION, True)),
}


@pytest.fixture(scope="module")
def postcard():
    return open_bundle("postcard")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pair", PAIRS)
def test_with_values_of_the_same_step_the_second_graph_gives_what_the_first_does(postcard, pair, way):
    """postcard's int8 denoiser, exact: to the rounding of floats."""
    cpu, answers = resolve_provider("cpu"), []
    given: dict[str, np.ndarray] = {}
    for cut in (None, *PAIRS[pair]):
        options = BuildOptions.for_shape(DIMS, exactness="exact", threads=1, cut=cut, **WAYS[way])
        with open_role(postcard, "denoiser", cpu, options=options) as session:
            inputs = {**random_inputs(session), **given}
            assert cut is None or session.is_in_parts == (way == "segments")
            outputs = session.run(inputs)
        answers.append(outputs.pop("out_sample"))
        given = {**{name: inputs[name] for name in ("sample", "timestep", "encoder_hidden_states")}, **outputs}
    span = np.ptp(answers[0])
    for answer in answers[1:]:
        assert np.abs(answer - answers[0]).max() <= 1e-5 * span


def test_each_cut_is_another_build_and_survives_the_way_to_the_child(postcard):
    cpu, cuts = resolve_provider("cpu"), [None, *(cut for pair in PAIRS.values() for cut in pair)]
    options = [BuildOptions.for_shape(DIMS, threads=1, cut=cut) for cut in cuts]
    assert len({build_key(postcard, "denoiser", cpu, options=each) for each in options}) == len(cuts)
    for each in options:
        job = Job(source=Path("/a"), folder=Path("/b"), target=cpu, options=each)
        assert Job.from_dict(json.loads(json.dumps(job.as_dict()))) == job


def test_a_graph_is_cut_for_one_shape_only():
    with pytest.raises(ValueError, match="one shape"):
        BuildOptions(cut=Cut(DEEP_FEATURES, True))


def test_what_the_second_graph_needs_is_known_before_it_is_built(postcard):
    whole, gives, takes = (
        analysis_of(postcard, GraphRef("denoiser"), BuildOptions.for_shape(DIMS, cut=cut))
        for cut in (None, *PAIRS["outermost"])
    )
    assert (gives.multiplications, gives.taken_bytes) == (whole.multiplications, 0)
    assert 0 <= gives.float_bytes - whole.float_bytes < 1024  # sizes that are numbers in it
    assert takes.taken_bytes == 32 * 16 * 16 * 4  # one value of as many channels as the model's first layer has
    assert takes.multiplications < whole.multiplications / 20
    assert takes.float_bytes < whole.float_bytes / 20


def test_a_cut_that_a_graph_does_not_have_is_refused_with_those_it_has(postcard, bundle, graph_writer):
    too_deep = BuildOptions.for_shape(DIMS, cut=Cut(DEEP_FEATURES, True, 6))
    nothing = BuildOptions.for_shape({"batch": 1}, cut=Cut(CROSS_ATTENTION, False))
    cpu = resolve_provider("cpu")
    with pytest.raises(RequestError, match="has 6 skip connections") as refusal:
        open_role(postcard, "denoiser", cpu, options=too_deep)
    assert refusal.value.fix == "give 0 to 5"
    with pytest.raises(RequestError, match="6 skip connections"):
        analysis_of(postcard, GraphRef("denoiser"), too_deep)
    with pytest.raises(RequestError, match="no cross-attention"):
        open_role(bundle, "denoiser", cpu, options=nothing)


@pytest.fixture(scope="module")
def sizes(postcard):
    """Channels, height and width of what features could be added to, the outermost first."""
    model = ir.load(postcard.graph_path("denoiser"))
    pin(model, DIMS)
    fold_sizes(model)
    return tuple(skip_sizes(model.graph))


@pytest.mark.parametrize("way", WAYS)
def test_features_are_added_in_an_int8_graph_however_it_is_held(postcard, sizes, way):
    cpu, answers, given = resolve_provider("cpu"), dict[tuple[str, str], np.ndarray](), dict[str, np.ndarray]()
    random = np.random.default_rng(0)
    features = {f"adapter_feature_{place}": random.standard_normal((1, *size)) for place, size in enumerate(sizes)}
    scales = {"without": None, "zeros": 0.0, "features": 0.5}
    for exactness in ("exact", "balanced"):
        for name, scale in scales.items():
            options = BuildOptions.for_shape(
                DIMS, exactness=exactness, threads=1, features=() if scale is None else sizes, **WAYS[way]
            )
            with open_role(postcard, "denoiser", cpu, options=options) as session:
                inputs = random_inputs(session)
                for each in ("sample", "timestep", WORDS):
                    inputs[each] = given.setdefault(each, inputs[each])
                if scale is not None:
                    inputs |= {each: (array * scale).astype(np.float32) for each, array in features.items()}
                answers[exactness, name] = session.run(inputs)["out_sample"]
    exact = answers["exact", "features"]
    span = np.ptp(exact)
    assert np.abs(answers["exact", "zeros"] - answers["exact", "without"]).max() <= 1e-5 * span
    assert np.abs(exact - answers["exact", "without"]).max() >= 0.05 * span
    for name in scales:
        rounded, whole = answers["balanced", name], answers["exact", name]
        assert float(np.sqrt(np.mean((rounded - whole) ** 2))) <= 0.02 * np.ptp(whole)


def test_features_are_another_build_and_survive_the_way_to_the_child(postcard, sizes):
    cpu = resolve_provider("cpu")
    options = [BuildOptions.for_shape(DIMS, threads=1, features=sizes[:count]) for count in range(len(sizes) + 1)]
    assert len({build_key(postcard, "denoiser", cpu, options=each) for each in options}) == len(options)
    for each in options:
        job = Job(source=Path("/a"), folder=Path("/b"), target=cpu, options=each)
        assert Job.from_dict(json.loads(json.dumps(job.as_dict()))) == job


def test_features_that_fit_nowhere_are_refused(postcard):
    options = BuildOptions.for_shape(DIMS, threads=1, features=((7, 16, 16),))
    with pytest.raises(RequestError, match="features of 7x16x16"):
        open_role(postcard, "denoiser", resolve_provider("cpu"), options=options)
