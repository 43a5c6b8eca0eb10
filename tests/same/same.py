"""Proves that a refactoring moved code and changed nothing: a commit and this tree make the same bytes.

    python tests/same/same.py [COMMIT] [--tree FOLDER] [--cases exact,cut]

Both draw postcard on the processor, each in processes and a cache of its own. Pictures, records and the files of builds
have to be the same; build keys, in which the engine's code counts, and memory figures needn't be. Ends with 0 when all
is the same, 1 when something differs, 2 when that couldn't be found out.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import same_worker
from PIL import Image
from same_worker import CASES

from tintype.bench.options import Several, command_help

ROOT = Path(__file__).resolve().parents[2]
MAY_DIFFER = ("made_with.builds", "memory.planned_peak_bytes", "memory.peak_rss_bytes", "memory.device_bytes")
IDENTITY = ("role", "variant", "shape", "plan")  # what a build is for, of the identity in its build.json
# Run by each Python of a side as it starts: an editable install would lend the modules that a tree lacks.
ALONE = "import sys\nsys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in each.__module__]\n"


class CannotCompare(click.ClickException):
    exit_code = 2


@click.command(help=command_help(__doc__))
@click.argument("commit", default="HEAD")
@click.option("--tree", type=click.Path(exists=True, path_type=Path), default=ROOT, help="[default: this checkout]")
@click.option("--cases", type=Several(click.Choice(tuple(CASES))), default=",".join(CASES), show_default=True)
def main(commit: str, tree: Path, cases: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="tintype-bench-") as scratch:
        source, then, here = (Path(scratch) / name for name in ("source", "then", "here"))
        check_out(commit, source)
        lay_out(source, then / "site")
        lay_out(tree.resolve(), here / "site")
        click.echo(f"drawing {commit}", err=True)
        draw(then, cases)
        for refusal in then.glob("*/error.txt"):
            case, why = refusal.parent.name, refusal.read_text("utf-8")
            raise CannotCompare(f"{commit} doesn't draw {case}: {why}\n  fix: leave it out, by --cases")
        click.echo(f"drawing {tree}", err=True)
        draw(here, cases)
        before, after = ({**builds(side), **pictures(side, cases)} for side in (then, here))
        rows = {what: list(differences(before.get(what), after.get(what))) for what in sorted(before | after)}
        keys = [{path.name for path in (side / "cache/builds").glob("*")} for side in (then, here)]
    for what, lines in rows.items():
        click.echo("\n    ".join([f"{'DIFFERS' if lines else 'same':<8}{what}", *lines]))
    count = sum(map(bool, rows.values()))
    click.echo(f"{count} of {len(rows)} differ; build keys are {'the same' if keys[0] == keys[1] else 'others'}")
    sys.exit(1 if count else 0)


def check_out(commit: str, folder: Path) -> None:
    """The files of a commit, in a folder that is made."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if done.returncode != 0:
        raise CannotCompare(f"{commit} can't be had: {done.stderr.decode().strip()}\n  fix: name a commit of {ROOT}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def lay_out(tree: Path, site: Path) -> None:
    """Links to a tree's packages, as its pyproject.toml has them installed."""
    try:
        packages = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-dir"]
        for name, folder in sorted(packages.items()):  # a package before those within it
            package = site.joinpath(*name.split("."))
            package.mkdir(parents=True)
            for entry in (tree / folder).iterdir():
                if entry.name != "__pycache__":
                    (package / entry.name).symlink_to(entry)
    except (OSError, ValueError, KeyError) as error:
        raise CannotCompare(f"{tree} can't be laid out: {error!r}\n  fix: name a checkout of Tintype") from error
    (site / "sitecustomize.py").write_text(ALONE, encoding="utf-8")


def draw(side: Path, cases: Sequence[str]) -> None:
    """Have what is laid out in a folder draw into it. Plans add builds as they measure, and so have another cache."""
    planned = [case for case in cases if "memory" in CASES[case]]
    for cache, chosen in (("cache", [case for case in cases if case not in planned]), ("planned", planned)):
        (side / cache).mkdir(mode=0o700, exist_ok=True)
        (side / cache / "maker").write_text("5eed01\n", encoding="utf-8")  # whose watermark it is: one installation's
        paths = {"PYTHONPATH": str(side / "site"), "TINTYPE_CACHE": str(side / cache)}
        command = [sys.executable, "-P", same_worker.__file__, *map(str, (side, side.parent / "planned.png")), *chosen]
        done = subprocess.run(command, env={**os.environ, **paths}, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise CannotCompare(f"what is {side.name} doesn't run: {done.stderr.strip()[-400:]}")


def builds(side: Path) -> dict[str, dict[str, Any]]:
    """By what a build is for, a digest of each of its files; weights count where a graph has them."""
    found = {}
    for facts in (side / "cache/builds").glob("*/build.json"):
        identity = json.loads(facts.read_text("utf-8"))["identity"]
        lists = {path.name: _sha256(path.read_bytes()) for path in facts.parent.glob("*.json") if path != facts}
        graphs = {path.name: graph_digest(path) for path in facts.parent.glob("*.onnx")}
        found["build " + ", ".join(identity[name] for name in IDENTITY if name in identity)] = lists | graphs
    return found


def graph_digest(path: Path) -> str:
    """Of all that a graph computes, not of its bytes: ONNX Runtime names and orders nodes anew as it saves them."""
    graph = ir.load(path).graph
    digests: dict[ir.Value | None, str] = {None: ""}  # of a value with all that it is computed from
    for value in (*graph.inputs, *graph.initializers.values()):
        weights = _weights(value.const_value) if value.const_value is not None else str(value.name).encode()
        digests[value] = _sha256(f"{value.dtype} {value.shape} ".encode() + weights)
    for node in graph:
        attributes = [ir.to_proto(each).SerializeToString(deterministic=True) for each in node.attributes.values()]
        made = [
            node.op_type,
            node.domain,
            *sorted(map(_sha256, attributes)),
            "",
            *(digests[each] for each in node.inputs),
        ]
        digests |= {output: _sha256(json.dumps([*made, index]).encode()) for index, output in enumerate(node.outputs)}
    return _sha256(json.dumps([[value.name, digests[value]] for value in graph.outputs]).encode())


def _weights(tensor: ir.TensorProtocol) -> bytes:
    """A tensor's bytes. Builds share files by hard links, which onnx_ir doesn't read."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.tobytes()
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        return file.read(tensor.nbytes)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pictures(side: Path, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By case, each picture's samples and what its record says by dotted keys, or what refused it."""
    found: dict[str, dict[str, Any]] = {case: {} for case in cases}
    for case, facts in found.items():
        for path in sorted((side / case).iterdir()):
            if path.suffix == ".txt":
                facts["refused"] = path.read_text("utf-8")
                continue
            with Image.open(path) as picture:
                facts[f"{path.name}: samples"] = np.asarray(picture, np.int16)
                facts |= {f"{path.name}: {key}": value for key, value in _leaves(json.loads(picture.info["tintype"]))}
    return found


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """A record's values by their dotted keys, but for those that may differ."""
    if isinstance(value, dict) and key not in MAY_DIFFER:
        for name, each in value.items():
            yield from _leaves(each, f"{key}.{name}".lstrip("."))
    elif key not in MAY_DIFFER:
        yield key, value


def differences(before: dict[str, Any] | None, after: dict[str, Any] | None) -> Iterator[str]:
    """What two sides tell differently, or that only one tells of it."""
    if before is None or after is None:
        yield f"made {'here' if before is None else 'then'} alone"
        return
    for key in sorted(before | after):
        was: Any = before.get(key)
        now: Any = after.get(key)
        arrays = [each for each in (was, now) if isinstance(each, np.ndarray)]
        if len(arrays) == 2 and was.shape == now.shape:
            apart = np.abs(was - now)
            if apart.any():
                yield f"{key}: {np.count_nonzero(apart):,} of {apart.size:,}, by up to {apart.max()}"
        elif arrays or was != now:
            yield f"{key}: {getattr(was, 'shape', was)} -> {getattr(now, 'shape', now)}"


if __name__ == "__main__":
    main()
