"""What a build's files say may be of any other version, or nonsense: then it is made again, never a traceback."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tintype.bounds import MAX_BUILD_FACTS_BYTES
from tintype.bundle import open_bundle
from tintype.engine import BuildOptions, cache_entries, ensure_build, open_role, open_session, resolve_provider
from tintype.engine.build.builds import build_id, find_build
from tintype.engine.build.cache import damage
from tintype.engine.build.code_version import KEPT, PACKAGES, code_of, lowering_version, read_sources, version_of
from tintype.engine.build.facts import FACTS_NAME
from tintype.engine.build.measure import AS_IS, CostTable
from tintype.engine.build.probe import COSTS_NAME, known_costs, measured_costs, random_inputs
from tintype.engine.run.chain import PARTS_NAME, read_chains
from tintype.engine.run.strips import STRIPS_NAME, read_strips
from tintype.errors import BuildError
from tintype.memory.corrections import Corrections

SHAPES = {
    "denoiser": {"batch": 2, "height": 16, "width": 16, "sequence": 77},
    "vae_decoder": {"batch": 1, "height": 16, "width": 16},
}
CUTS = {"denoiser": {"segment_bytes": 300_000}, "vae_decoder": {"strip_bytes": 2**14}}


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path, cache_to_harm: Path):
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def cpu():
    return resolve_provider("cpu")


def options(role: str, **cut: int) -> BuildOptions:
    return BuildOptions.for_shape(SHAPES[role], exactness="exact", threads=1, **cut)


def rewrite(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change one of a build's JSON files, and what build.json says of its bytes, as another version would have."""
    value = json.loads((folder / name).read_text())
    text = json.dumps(change(value)).encode()
    (folder / name).write_bytes(text)
    if name == FACTS_NAME:
        return
    facts = json.loads((folder / FACTS_NAME).read_text())
    facts["files"][name] |= {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (folder / FACTS_NAME).write_text(json.dumps(facts))


def without(*place: str | int) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        inner = value
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]
        return value

    return change


def with_value(new: Any, *place: str | int) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        inner = value
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = new
        return value

    return change


CHAIN_HARMS = {
    "a list": lambda value: [value],
    "a number": lambda value: 7,
    "no parts": without("model.onnx", "parts"),
    "no inputs of a part": without("model.onnx", "parts", 0, "inputs"),
    "a part that is text": with_value("x", "model.onnx", "parts", 0),
    "a shape of text": with_value(["2"], "model.onnx", "inputs", 0, "shape"),
    "nothing": with_value(None, "model.onnx"),
}
STRIP_HARMS = {
    "a list": lambda value: [value],
    "no stages": without("stages"),
    "no margin": without("stages", 0, "margin"),
    "a scale of text": with_value("1", "stages", 0, "reads", 0, "scale"),
    "seen is a number": with_value(3, "stages", 0, "gives", 0, "seen"),
    "held bytes of text": with_value("many", "held_bytes"),
}
FACTS_HARMS = {
    "a list": lambda value: [value],
    "another identity": with_value("x", "identity", "cpu_model"),
    "identity with a number": with_value(5, "identity", "shape"),
    "no identity": without("identity"),
    "no report": without("report"),
    "files of text": with_value("x", "files"),
    "choices without what was chosen": with_value([{"node": "n"}], "report", "choices"),
    "choices that are text": with_value("all", "report", "choices"),
    "kernels that are a list": with_value(["attention"], "report", "kernels"),
    "a count of text": with_value({"attention": "2"}, "report", "kernels"),
}


@pytest.fixture(scope="module")
def originals(tiny, cpu, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, BuildOptions], Path]:
    """By role and options the folder of a build that is whole, whatever the tests before did to it."""
    kept: dict[tuple[str, BuildOptions], tuple[Path, Path]] = {}

    def original(role: str, chosen: BuildOptions) -> Path:
        if (role, chosen) not in kept:
            made = ensure_build(tiny, role, cpu, options=chosen)
            kept[role, chosen] = made, Path(shutil.copytree(made, tmp_path_factory.mktemp("kept") / "build"))
        folder, copy = kept[role, chosen]
        shutil.rmtree(folder)
        return Path(shutil.copytree(copy, folder))

    return original


@pytest.mark.parametrize("harm", CHAIN_HARMS)
def test_segments_of_another_format_are_refused(tiny, cpu, originals, harm: str) -> None:
    chosen = options("denoiser", **CUTS["denoiser"])
    folder = originals("denoiser", chosen)
    rewrite(folder, PARTS_NAME, CHAIN_HARMS[harm])
    with pytest.raises(BuildError, match=PARTS_NAME):
        read_chains(folder)
    with pytest.raises(BuildError, match=PARTS_NAME):
        open_session(folder, cpu)
    assert damage(folder) is not None
    assert find_build(tiny, "denoiser", cpu, options=chosen) is None


def test_segments_of_another_format_are_made_again(tiny, cpu, originals) -> None:
    chosen = options("denoiser", **CUTS["denoiser"])
    folder = originals("denoiser", chosen)
    expected = (folder / PARTS_NAME).read_bytes()
    rewrite(folder, PARTS_NAME, CHAIN_HARMS["a list"])
    with open_role(tiny, "denoiser", cpu, options=chosen) as session:
        assert session.run(random_inputs(session))["out_sample"].shape == (2, 4, 16, 16)
    assert (folder / PARTS_NAME).read_bytes() == expected


@pytest.mark.parametrize("harm", STRIP_HARMS)
def test_strips_of_another_format_are_refused(tiny, cpu, originals, harm: str) -> None:
    chosen = options("vae_decoder", **CUTS["vae_decoder"])
    folder = originals("vae_decoder", chosen)
    rewrite(folder, STRIPS_NAME, STRIP_HARMS[harm])
    with pytest.raises(BuildError, match=STRIPS_NAME):
        read_strips(folder)
    assert find_build(tiny, "vae_decoder", cpu, options=chosen) is None


def test_strips_of_another_format_are_made_again(tiny, cpu, originals) -> None:
    chosen = options("vae_decoder", **CUTS["vae_decoder"])
    folder = originals("vae_decoder", chosen)
    rewrite(folder, STRIPS_NAME, STRIP_HARMS["a list"])
    with open_role(tiny, "vae_decoder", cpu, options=chosen) as session:
        assert session.run(random_inputs(session))["sample"].shape == (1, 3, 64, 64)
    assert read_strips(folder) is not None


@pytest.mark.parametrize("harm", FACTS_HARMS)
def test_facts_of_another_format_are_refused(tiny, cpu, originals, harm: str) -> None:
    chosen = options("vae_decoder")
    folder = originals("vae_decoder", chosen)
    rewrite(folder, FACTS_NAME, FACTS_HARMS[harm])
    if harm == "another identity":  # what is not known is left out, so that a format can grow
        assert damage(folder) is None
        return
    assert damage(folder) is not None
    entry = next(entry for entry in cache_entries() if entry.path == folder)
    assert (entry.identity, entry.whole) == (None, False)
    assert find_build(tiny, "vae_decoder", cpu, options=chosen) is None


def test_facts_beyond_their_bound_are_refused_before_they_are_parsed(tiny, cpu, originals) -> None:
    chosen = options("vae_decoder")
    folder = originals("vae_decoder", chosen)
    whole = (folder / FACTS_NAME).read_bytes()
    (folder / FACTS_NAME).write_bytes(whole.ljust(MAX_BUILD_FACTS_BYTES))
    assert damage(folder) is None
    (folder / FACTS_NAME).write_bytes(whole.ljust(MAX_BUILD_FACTS_BYTES + 1))
    assert damage(folder) is not None
    assert find_build(tiny, "vae_decoder", cpu, options=chosen) is None


@pytest.mark.parametrize("harm", ["a list", "files of text"])
def test_facts_of_another_format_are_made_again(tiny, cpu, originals, harm: str) -> None:
    chosen = options("vae_decoder")
    folder = originals("vae_decoder", chosen)
    rewrite(folder, FACTS_NAME, FACTS_HARMS[harm])
    again = ensure_build(tiny, "vae_decoder", cpu, options=chosen)
    assert build_id(again).startswith(folder.name)
    assert damage(folder) is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda value: [],
        lambda value: {**value, "format": 0},
        without("costs"),
        with_value({"threads=1": 5}, "costs"),
        with_value("0.1", "costs", "threads=1", "call_seconds"),
        without("costs", "threads=1", "peak_bytes"),
        with_value({}, "costs", "threads=1"),
    ],
    ids=["list", "format", "none", "number", "text", "missing", "empty"],
)
def test_costs_of_another_format_are_measured_again(tiny, cpu, harm) -> None:
    chosen = options("vae_decoder")
    folder = ensure_build(tiny, "vae_decoder", cpu, options=chosen)
    costs = measured_costs(folder, cpu, chosen, 1)
    rows = {"threads=1": json.loads((folder / COSTS_NAME).read_text())["costs"]["threads=1"]}
    value = {"format": json.loads((folder / COSTS_NAME).read_text())["format"], "costs": rows}
    (folder / COSTS_NAME).write_text(json.dumps(harm(value)))
    assert known_costs(folder, chosen, 1) is None
    (folder / COSTS_NAME).write_text(json.dumps({**value, "costs": {"threads=1": {**rows["threads=1"], "new": 1}}}))
    assert known_costs(folder, chosen, 1) in (costs, None)  # None once other programs are calm


@pytest.mark.parametrize(
    "stored", ["[]", "7", '{"a": 5}', '{"a": {"x": {"seconds": 1}}}', '{"a": {}}', "[" * 100_000, '{"a": {"as_is": 3}}']
)
def test_times_of_another_format_are_none(tmp_path: Path, stored: str) -> None:
    (tmp_path / "costs.json").write_text(stored)
    table = CostTable.read(tmp_path / "costs.json")
    assert all(AS_IS in ways for ways in table.known.values())
    assert table.known == {}


@pytest.mark.parametrize(
    "stored",
    [
        "[]",
        '{"rate": "x", "factors": {}}',
        '{"rate": 1, "factors": {"a": {"b": {"peak": "2"}}}}',
        '{"rate": 1, "factors": {"a": 3}}',
        '{"rate": 1}',
        "[" * 100_000,
    ],
)
def test_corrections_of_another_format_are_none(tmp_path: Path, stored: str) -> None:
    (tmp_path / "x.json").write_text(stored)
    corrections = Corrections.read(tmp_path / "x.json")
    assert (corrections.factors, corrections.rate) == ({}, 0.0)


CODE = b'''"""What it does."""

import os  # for paths


def f(x):
    """More words."""
    # why
    text = """not a

    docstring  """
    return x + 1, text, "# no comment"
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"What it does.", b"What it does,\nin two lines."),
        (b"  # for paths", b""),
        (b"    # why\n", b"\n\n    # another reason\n"),
        (b'    """More words."""\n', b""),
        (b"\n\n\n", b"\n\n"),
    ],
)
def test_words_about_code_are_no_code(old: bytes, new: bytes) -> None:
    assert CODE.replace(old, new) != CODE
    assert code_of(CODE.replace(old, new)) == code_of(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"x + 1", b"x + 2"),
        (b"not a\n\n", b"not a\n"),
        (b"docstring  ", b"docstring"),
        (b"# no", b"no"),
        (b"import os", b"import sys"),
        (b"    return", b"    if x:\n        return"),
    ],
)
def test_code_is(old: bytes, new: bytes) -> None:
    assert code_of(CODE.replace(old, new)) != code_of(CODE)


def test_every_module_of_kernels_and_engine_counts() -> None:
    """A module that is forgotten would let a build of another format be read."""
    from importlib import resources

    sources = read_sources(resources.files(package) for package in PACKAGES)
    for name in ("build/cache", "build/lower", "build/options", "device/machine", "run/chain", "run/session"):
        assert f"engine/{name}.py" in sources
    for name in ("registry", "cpu/winograd", "cuda/nhwc_conv", "portable/attention", "graph/strips"):
        assert f"kernels/{name}.py" in sources
    kernels = Path(str(resources.files("tintype.kernels")))
    assert {f"kernels/{file.relative_to(kernels).as_posix()}" for file in kernels.rglob("*.py")} <= set(sources)
    assert version_of(sources) == lowering_version()
    assert version_of({**sources, "kernels/new.py": b"NEW = 1"}) != lowering_version()
    for name, source in sources.items():
        before = version_of({name: source})
        assert version_of({name: source + b"\nCHANGED = 1\n"}) != before
        assert (version_of({name: source + b"\n# a word\n"}) == before) is name.endswith(".py")
        assert version_of({f"{name}x": source}) != before


def test_the_version_is_read_from_an_archive_too(tmp_path: Path) -> None:
    from importlib import resources

    folders = [resources.files(package) for package in PACKAGES]
    sources = read_sources(folders)
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as archive:
        for name, source in sources.items():
            archive.writestr(f"tintype/{name}", source)
    inside = [zipfile.Path(tmp_path / "wheel.zip", f"tintype/{package.name}/") for package in folders]
    assert read_sources(inside) == sources


@pytest.fixture
def version_anew():
    """`lowering_version`, as a process that starts finds it."""

    def version() -> str:
        lowering_version.cache_clear()
        return lowering_version()

    yield version
    lowering_version.cache_clear()


def test_a_version_that_is_kept_is_the_one_that_is_found_anew(tmp_path, monkeypatch, version_anew) -> None:
    expected = version_anew()
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path))
    kept = tmp_path / "costs" / "lowering.json"
    assert version_anew() == expected
    for content in (b"nonsense", b"[1]", b"7", b'{"versions": {"x": 1}}', b'{"versions": 3}', b"[" * 100_000):
        kept.write_bytes(content)
        assert version_anew() == expected
    stored = json.loads(kept.read_text())["versions"]
    assert list(stored.values()) == [expected]
    kept.write_text(json.dumps({"versions": dict.fromkeys(stored, "kept")}))
    assert version_anew() == "kept"
    kept.write_text(json.dumps({"versions": {str(number): "old" for number in range(50)}}))
    assert version_anew() == expected
    assert len(json.loads(kept.read_text())["versions"]) <= KEPT


def test_a_cache_that_cannot_be_written_is_no_obstacle_to_the_version(tmp_path, monkeypatch, version_anew) -> None:
    expected = version_anew()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "file"))
    assert version_anew() == expected


def test_arrays_of_a_build_made_again_are_the_same(tiny, cpu) -> None:
    chosen = options("vae_decoder", **CUTS["vae_decoder"])
    with open_role(tiny, "vae_decoder", cpu, options=chosen) as session:
        feed = random_inputs(session)
        expected = session.run(feed)["sample"]
    folder = ensure_build(tiny, "vae_decoder", cpu, options=chosen)
    rewrite(folder, STRIPS_NAME, without("stages"))
    with open_role(tiny, "vae_decoder", cpu, options=chosen) as session:
        np.testing.assert_array_equal(session.run(feed)["sample"], expected)
