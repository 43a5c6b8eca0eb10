"""Builds: made once, in another process, whole or not at all; a damaged one is made again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tintype import files
from tintype.engine import BuildOptions, build_key, cache_entries, clear_cache, ensure_build, open_role, open_session
from tintype.engine.build import builds as building
from tintype.engine.build import cache as caching
from tintype.engine.build import facts
from tintype.engine.build.builds import find_build
from tintype.engine.build.cache import damage, read_report, write_facts
from tintype.engine.build.child import ChildError
from tintype.engine.build.facts import FACTS_NAME
from tintype.engine.build.lower import Job
from tintype.engine.build.probe import known_costs, measured_costs
from tintype.errors import BuildError
from tintype.files import sha256_of

pytestmark = pytest.mark.slow


def _stamp(folder):
    return (folder / FACTS_NAME).stat().st_ino


def test_a_build_is_made_once_and_found_again(bundle, cpu, cache):
    assert find_build(bundle, "denoiser", cpu) is None
    folder = ensure_build(bundle, "denoiser", cpu)
    made = _stamp(folder)
    assert ensure_build(bundle, "denoiser", cpu) == folder == find_build(bundle, "denoiser", cpu)
    assert _stamp(folder) == made
    assert folder.parent == cache / "builds"
    assert folder.name == build_key(bundle, "denoiser", cpu)
    assert sorted(path.name for path in folder.iterdir()) == [FACTS_NAME, "model.onnx", "model.onnx_data"]
    assert read_report(folder)["kernels"] == {"group_norm": 1}


def test_the_key_names_all_that_a_build_depends_on(bundle, cpu):
    identity = building.identify(bundle, "denoiser", cpu)
    changed = [
        replace(identity, **{field: "other"})
        for field in ("bundle", "role", "variant", "target", "ort", "cpu", "lowering")
    ]
    assert len({each.key for each in [identity, *changed]}) == 8
    assert replace(identity, name="other").key == identity.key


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGES = {
    "cut short": _cut,
    "one bit": _flip,
    "gone": lambda path: path.unlink(),
    "empty": lambda p: p.write_bytes(b""),
}


# A flipped bit of the facts may mean nothing, such as in a space; the files that they list are what counts.
@pytest.mark.parametrize(
    ("file", "harm"),
    [
        (file, harm)
        for file in ("model.onnx", "model.onnx_data", FACTS_NAME)
        for harm in DAMAGES
        if (file, harm) != (FACTS_NAME, "one bit")
    ],
)
def test_a_damaged_build_is_noticed(bundle, cpu, cache, monkeypatch, built, file, harm):
    folder = built(cache)
    DAMAGES[harm](folder / file)
    assert damage(folder) is not None
    assert find_build(bundle, "denoiser", cpu) is None


def test_a_file_is_hashed_again_where_something_wrote_to_it(bundle, cpu, cache, built, monkeypatch):
    folder, hashed = built(cache), []
    monkeypatch.setattr(facts, "SETTLED_NS", 0)
    monkeypatch.setattr(facts, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    assert damage(folder) is None
    assert sorted(hashed) == ["model.onnx", "model.onnx_data"]
    assert damage(folder) is None
    assert len(hashed) == (2 if os.name == "posix" else 4)
    for expected in ("changed bytes", "None"):
        time.sleep(0.05)  # some clock ticks of a file system
        _flip(folder / "model.onnx_data")  # its size and its own time of change are as before
        assert expected in str(damage(folder))


def test_a_file_that_changed_a_moment_ago_is_hashed_each_time(bundle, cpu, cache, built, monkeypatch):
    folder, hashed = built(cache), []
    (folder / "model.onnx").touch()
    monkeypatch.setattr(facts, "SETTLED_NS", 3600 * 10**9)
    monkeypatch.setattr(facts, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    assert damage(folder) is None
    assert damage(folder) is None
    assert sorted(hashed) == ["model.onnx"] * 2 + ["model.onnx_data"] * 2


def test_a_damaged_build_is_made_again(bundle, cpu, cache, feed):
    folder = ensure_build(bundle, "denoiser", cpu)
    with open_session(folder, cpu) as session:
        expected = session.run(feed)["y"]
    _flip(folder / "model.onnx_data")
    with open_role(bundle, "denoiser", cpu) as session:
        np.testing.assert_array_equal(session.run(feed)["y"], expected)
    assert damage(folder) is None


def test_a_build_that_the_runtime_refuses_is_made_again_once(bundle, cpu, cache, feed):
    folder = ensure_build(bundle, "denoiser", cpu)
    (folder / "model.onnx").write_bytes(b"nonsense")
    told = json.loads((folder / FACTS_NAME).read_text())
    told["files"]["model.onnx"] |= {"bytes": 8, "sha256": hashlib.sha256(b"nonsense").hexdigest()}
    (folder / FACTS_NAME).write_text(json.dumps(told))
    assert damage(folder) is None
    with open_role(bundle, "denoiser", cpu) as session:
        assert session.run(feed)["y"].shape == (2, 4, 32)


def test_two_processes_that_start_together_build_once(bundle, cpu, cache):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from types import SimpleNamespace as S;"
        "from tintype.engine import ensure_build, resolve_provider;"
        "b = S(name='small', hash=sys.argv[2], graph_path=lambda r, v='full': Path(sys.argv[3]),"
        "largest=lambda *_: None, changed_weights=lambda *_: None);"
        "f = ensure_build(b, 'denoiser', resolve_provider('cpu')); print(f, (f / 'build.json').stat().st_ino,"
        "any(n.split('.')[0] in ('onnx', 'onnx_ir', 'torch') for n in sys.modules))"
    )
    command = [sys.executable, "-c", code, str(cache), bundle.hash, str(bundle.graph_path("denoiser"))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=300)[0].strip() for process in both}
    assert len(told) == 1
    folder, _, imported_onnx = told.pop().split()
    assert folder == str(ensure_build(bundle, "denoiser", cpu))
    assert imported_onnx == "False"
    assert [path.name for path in (cache / "builds").iterdir() if path.is_dir()] == [folder.rsplit(os.sep, 1)[1]]


def test_a_build_loads_no_algebra(bundle, cpu, tmp_path):
    """sympy takes longer to import than this graph to build; dims without a number still find it."""
    job = Job(
        source=bundle.graph_path("denoiser"), folder=tmp_path, target=cpu, options=BuildOptions.for_shape({"batch": 2})
    )
    code = (
        "import json, sys; from tintype.engine.build import late, lower; late.import_late();"
        "(said,) = lower.make_builds(sys.stdin.read())['results'];"
        "import onnx_ir; early = 'sympy.core' in sys.modules;"
        "print(early, onnx_ir.SymbolicDim('2*batch') + 1, 'kernels' in said['answer'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([job.as_dict()]), capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == ["False", "2*batch + 1 True\n"]


def test_what_a_killed_build_left_is_swept_away(bundle, cpu, cache):
    left = cache / "builds" / f".partial-{build_key(bundle, 'denoiser', cpu)}-dead"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")
    ensure_build(bundle, "denoiser", cpu)
    assert not left.exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", b"\x08\x0a"], ids=["empty", "no protobuf", "no graph"])
def test_a_graph_that_cannot_be_lowered_is_one_error_and_leaves_nothing(bundle, cpu, cache, content):
    bundle.graph_path("denoiser").write_bytes(content)
    with pytest.raises(BuildError, match="cannot be built for cpu"):
        ensure_build(bundle, "denoiser", cpu)
    assert [path for path in (cache / "builds").iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_made_says_where_to_put_it(bundle, cpu, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TINTYPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError) as caught:
        ensure_build(bundle, "denoiser", cpu)
    assert "TINTYPE_CACHE" in caught.value.fix


def test_a_full_disk_says_so(bundle, cpu, cache, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, "lower_into", full)
    with pytest.raises(BuildError) as caught:
        ensure_build(bundle, "denoiser", cpu)
    assert "disk space" in caught.value.fix
    assert [path for path in (cache / "builds").iterdir() if path.is_dir()] == []


def test_entries_are_listed_and_cleared(bundle, cpu, cache):
    assert cache_entries() == []
    assert clear_cache() == 0
    folder = ensure_build(bundle, "denoiser", cpu)
    (entry,) = cache_entries()
    assert entry.path == folder
    assert entry.whole
    assert entry.identity is not None
    assert (entry.identity.name, entry.identity.role, entry.identity.target) == ("small", "denoiser", "cpu")
    assert entry.bytes == sum(path.stat().st_size for path in folder.iterdir())
    (folder / "model.onnx_data").unlink()
    assert not cache_entries()[0].whole
    assert clear_cache() > 0
    assert cache_entries() == []
    assert list((cache / "builds").iterdir()) == []


def test_an_old_build_of_the_same_graph_goes_when_it_was_long_idle(bundle, cpu, cache, built):
    for folder, idle in ((built(cache, ort="1.0"), True), (built(cache, ort="2.0"), False)):
        if idle:
            long_ago = time.time() - 30 * 24 * 3600
            for each in (folder / FACTS_NAME, folder):
                os.utime(each, (long_ago, long_ago))
    ensure_build(bundle, "denoiser", cpu)
    assert sorted(entry.identity.ort for entry in cache_entries() if entry.identity)[-1] == "2.0"
    assert len(cache_entries()) == 2


@pytest.fixture
def built(bundle, cpu):
    """Puts a build into a cache without making one: the engine looks at its files, not into them."""

    def put(cache, **changed):
        identity = replace(building.identify(bundle, "denoiser", cpu), **changed)
        folder = cache / "builds" / identity.key
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"a graph")
        (folder / "model.onnx_data").write_bytes(bytes(range(256)))
        write_facts(folder, identity, {"kernels": {}})
        return folder

    return put


def test_a_build_of_something_else_is_not_used(bundle, cpu, cache, built):
    foreign = built(cache, bundle="f" * 64)
    place = cache / "builds" / build_key(bundle, "denoiser", cpu)
    foreign.rename(place)
    assert damage(place) == "it is the build of something else"
    assert find_build(bundle, "denoiser", cpu) is None


@pytest.mark.parametrize("name", ["once.onnx", "parts.json", "strips.json", "part.onnx", "weights/x"])
def test_a_file_that_a_build_does_not_list_is_never_read(bundle, cpu, cache, feed, name):
    folder = ensure_build(bundle, "denoiser", cpu)
    with open_session(folder, cpu) as session:
        expected = session.run(feed)["y"]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes((folder / "model.onnx").read_bytes() if name.endswith(".onnx") else b"{}")
    assert damage(folder) == f"{name} is none of its files"
    with open_role(bundle, "denoiser", cpu) as session:
        np.testing.assert_array_equal(session.run(feed)["y"], expected)
    assert not (folder / name).exists()


@pytest.mark.skipif(os.name != "posix", reason="who may write where is asked on POSIX alone")
@pytest.mark.parametrize("place", [".", "builds"])
@pytest.mark.parametrize(("mode", "words"), [(0o777, "everybody"), (0o775, "its group")])
def test_a_cache_that_others_can_write_is_refused_with_what_to_do(
    bundle, cpu, cache, feed, monkeypatch, place, mode, words
):
    folder = ensure_build(bundle, "denoiser", cpu).parent
    assert not any(each.stat().st_mode & 0o022 for each in (cache, folder))
    monkeypatch.setattr(caching, "_is_private", lambda group: False)
    (cache / place).chmod(mode)
    for use in (find_build, ensure_build):
        with pytest.raises(BuildError, match=words) as caught:
            use(bundle, "denoiser", cpu)
        assert "chmod" in caught.value.fix
        assert "TINTYPE_CACHE" in caught.value.fix
    (cache / place).chmod(0o755)
    assert find_build(bundle, "denoiser", cpu) is not None


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_another_user_is_refused(bundle, cpu, cache):
    ensure_build(bundle, "denoiser", cpu)
    os.chown(cache / "builds", 65534, -1)
    with pytest.raises(BuildError, match="another user"):
        ensure_build(bundle, "denoiser", cpu)


def test_what_killed_builds_of_others_left_is_swept_after_a_day(bundle, cpu, cache):
    folder = cache / "builds"
    folder.mkdir(parents=True)
    for name, hours in (("old", 25), ("new", 1)):
        for left in (folder / f".partial-{name}", folder / f".gone-{name}"):
            left.mkdir()
            (left / "model.onnx").write_bytes(b"half")
            os.utime(left, (time.time() - hours * 3600,) * 2)
    ensure_build(bundle, "denoiser", cpu)
    assert sorted(path.name for path in folder.glob(".*")) == [".gone-new", ".partial-new"]


def test_a_cache_that_nothing_can_be_removed_from_is_an_error(cache, built, monkeypatch):
    folder = built(cache)
    monkeypatch.setattr(caching, "discard", lambda path: None)
    with pytest.raises(BuildError, match="can be removed"):
        clear_cache()
    assert folder.is_dir()
    monkeypatch.undo()
    monkeypatch.setenv("TINTYPE_CACHE", str(cache))
    assert clear_cache() > 0
    assert not folder.exists()


def test_what_is_measured_where_nothing_can_be_written_is_measured_again(bundle, cpu, cache, monkeypatch):
    options = BuildOptions.for_shape({"batch": 2}, exactness="exact", threads=1)
    folder = ensure_build(bundle, "denoiser", cpu, options=options)

    def read_only(path, text):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "write_text", read_only)
    assert measured_costs(folder, cpu, options, 1).measured
    assert known_costs(folder, options, 1) is None


@pytest.mark.parametrize("free", [0, 2**19, 3000])
def test_a_disk_that_cannot_hold_the_graph_once_more_is_what_a_failed_build_failed_for(
    bundle, cpu, cache, monkeypatch, free
):
    def fails(module, job):
        raise ChildError("Fail: model.onnx", None)

    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(building, "run_child", fails)
    monkeypatch.setattr(building.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BuildError, match="no space left") as caught:
        ensure_build(bundle, "denoiser", cpu)
    assert caught.value.kind == "disk"
    assert "free some disk space" in caught.value.fix
    usage.free = 2**40
    with pytest.raises(BuildError, match="cannot be built") as caught:
        ensure_build(bundle, "denoiser", cpu)
    assert caught.value.kind is None
