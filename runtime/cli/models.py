"""`tintype models`: which bundles are here, what each is, and whether this machine can draw with it now.

No graph is opened, and no file of a bundle but its manifest is read, unless what it takes isn't known yet: that is
reckoned once, as `tintype plan --no-build` does, and remembered in the cache until its builds change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tintype.cli.options import human_bytes, json_option
from tintype.cli.say import say, say_json
from tintype.errors import BundleError, MemoryBudgetError, RequestError, TintypeError

if TYPE_CHECKING:
    from tintype.bundle import Bundle
    from tintype.bundle.opening import AnyManifest
    from tintype.engine import CacheEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastMemory:
    """What is remembered of a bundle: the smallest budget for one picture of its own size, None where none is known."""

    least_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One bundle, as it is listed. problem: why it can't be used; there is no more of it then than its place."""

    name: str
    folder: Path
    embedded: bool
    hash: str | None = None
    manifest: AnyManifest | None = None
    builds: tuple[CacheEntry, ...] = ()
    builds_bytes: int = 0  # on disk; weights that builds share count once
    least_bytes: int | None = None
    problem: TintypeError | None = None

    @property
    def precision(self) -> str:
        assert self.manifest is not None
        role = "denoiser" if "denoiser" in self.manifest.graphs else self.manifest.family
        return " and ".join(sorted({graph.precision for graph in self.manifest.graphs[role].values()}))

    @property
    def controls(self) -> str | None:
        """Of what controls models, the family of those that it is for."""
        return getattr(self.manifest, "controls", None)

    @property
    def bytes(self) -> int:
        assert self.manifest is not None
        return sum(file.bytes for file in self.manifest.files.values())


@click.group(invoke_without_command=True)
@click.option("--at", "places", type=click.Path(path_type=Path), multiple=True, help="A bundle's folder, to list too.")
@click.option("--no-plan", is_flag=True, help="Reckon nothing: memory is told only where it was reckoned before.")
@json_option
@click.pass_context
def models(context: click.Context, places: tuple[Path, ...], no_plan: bool, as_json: bool) -> None:
    """List the models that are here: those that come with tintype, and those in the models' folder.

    That folder is TINTYPE_MODELS, else one below your data folder; `tintype export SOURCE` puts a bundle there, and
    --model NAME finds it. Memory is the least that one picture of the model's own size takes on the processor.
    """
    if context.invoked_subcommand is not None:
        return
    from tintype.bundle.library import library_folder
    from tintype.memory.budget import free_limits

    folder, free = library_folder(), free_limits(None).host or 0
    found = list(_models(places, plan=not no_plan))
    if as_json:
        rows = [_as_json(model, free) for model in found]
        say_json({"folder": None if folder is None else str(folder), "free_bytes": free, "models": rows})
        return
    for model in found:
        for line in _lines(model, free):
            say(line)
    say(f"{human_bytes(free)} of memory are free; models are found by name in {folder or 'no folder: no home'}")


@models.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Remove the model NAME (or a bundle's folder) and its builds. What else lies in its folder stays."""
    from tintype.bundle import EMBEDDED
    from tintype.bundle.bundle import bundle_folder, embedded_folder
    from tintype.bundle.library import library_bundle, remove_files
    from tintype.bundle.opening import facts_of
    from tintype.engine.build.cache import remove_builds

    own = [embedded_folder(each).resolve() for each in EMBEDDED]
    folder = bundle_folder(name)
    if name in EMBEDDED or folder in own:
        raise BundleError(f"{name} comes with tintype and is never removed", fix="name a model of your own")
    _, digest, total, files = facts_of(folder)  # what isn't one is refused here
    given = Path(name)
    place = (given if given.is_dir() else library_bundle(name)) or folder
    if not yes:
        if as_json:
            raise RequestError("--json asks nothing", fix="add --yes")
        if not click.confirm(f"Remove {place} ({human_bytes(total)}) and its builds?", err=True):
            say("nothing is removed", err=True)
            return
    remaining = remove_files(place, files)
    freed = remove_builds(digest)
    if as_json:
        say_json({"folder": str(place), "bytes": total, "freed_builds_bytes": freed, "remaining": remaining})
        return
    say(f"removed {place} ({human_bytes(total)}), and {human_bytes(freed)} of its builds")
    if remaining:
        say(f"what isn't of the bundle stays there: {', '.join(remaining[:8])}")


def _models(places: Sequence[Path], *, plan: bool) -> Iterator[Model]:
    """The embedded ones first, then those of the library, then those that were named; each folder once."""
    from tintype.bundle import EMBEDDED
    from tintype.bundle.bundle import bundle_folder, embedded_folder
    from tintype.bundle.library import library_bundles
    from tintype.engine import cache_entries

    listed = [(name, embedded_folder(name), True) for name in EMBEDDED]
    listed += [(name, folder, False) for name, folder in library_bundles()]
    listed += [(str(place), bundle_folder(place), False) for place in places]
    entries = cache_entries()
    seen = set()
    for name, folder, embedded in listed:
        if folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield _model(name, folder, entries, embedded=embedded, plan=plan)


def _model(name: str, folder: Path, entries: Sequence[CacheEntry], *, embedded: bool, plan: bool) -> Model:
    from tintype.bundle import Manifest
    from tintype.bundle.opening import facts_of
    from tintype.engine.build.cache import bytes_on_disk

    place = {"name": name, "folder": folder, "embedded": embedded}
    try:
        manifest, digest, _, _ = facts_of(folder)
        builds = tuple(entry for entry in entries if entry.identity is not None and entry.identity.bundle == digest)
        draws = isinstance(manifest, Manifest)
        least = _least_bytes(folder, digest, builds, plan=plan) if draws else None
    except TintypeError as error:
        return Model(**place, problem=error)  # type: ignore[arg-type]
    return Model(
        **place,  # type: ignore[arg-type]
        hash=digest,
        manifest=manifest,
        builds=builds,
        builds_bytes=bytes_on_disk([entry.path for entry in builds]),
        least_bytes=least,
    )


def _least_bytes(folder: Path, digest: str, builds: Sequence[CacheEntry], *, plan: bool) -> int | None:
    """What was reckoned before for such a bundle with such builds, or is now."""
    from importlib.metadata import version

    from tintype import strict_json
    from tintype.engine import cache_folder
    from tintype.files import read_cached, write_cached

    costs = [(entry.key, (entry.path / "costs.json").exists()) for entry in builds]
    facts = repr((digest, version("tintype"), sorted(costs)))
    place = cache_folder() / "costs" / f"least-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"
    try:
        return strict_json.read(LeastMemory, strict_json.parse(read_cached(place))).least_bytes
    except (OSError, ValueError):
        if not plan:
            return None
    least = _reckoned(folder)
    write_cached(place, strict_json.dump(LeastMemory(least_bytes=least)))
    return least


def _reckoned(folder: Path) -> int | None:
    """The smallest budget that a plan for one picture names when it gets next to nothing."""
    from tintype import load
    from tintype.cli.progress import spinner

    with spinner(f"planning {folder.name}"), load(folder, provider="cpu", memory=1) as pipeline:
        try:
            pipeline.plan(**_anything(pipeline.bundle), build=False)
        except MemoryBudgetError as error:
            return error.least_bytes
    return None


def _anything(bundle: Bundle) -> dict[str, Any]:
    """A request for any picture of a model's own size, with a picture and a mask where it draws nothing without."""
    manifest = bundle.manifest
    if not manifest.needs_picture:
        return {}
    from PIL import Image

    size = manifest.default_request.width, manifest.default_request.height
    given = {"image": Image.new("RGB", size)}
    return {**given, "mask": Image.new("L", size, 255)} if manifest.is_inpainting else given


def _lines(model: Model, free: int) -> Iterator[str]:
    manifest = model.manifest
    if manifest is None:
        assert model.problem is not None
        yield f"{model.name:<16} can't be used: {model.problem.message} ({model.problem.fix})"
        return
    size = _size(manifest)
    pixels = f"{size[0]}x{size[1]}" if size is not None else f"for {model.controls or 'IP-Adapters'}"
    yield (
        f"{model.name:<16} {manifest.family}, {model.precision}, {pixels}; "
        f"{human_bytes(model.bytes)}, builds {human_bytes(model.builds_bytes)}"
    )
    option = "--control" if model.controls else "--image-encoder"
    memory = f"{option} takes it" if size is None else _memory(model, free)
    yield f"{'':<16} {memory}; licence {manifest.licence}, from {_origin(manifest)}"
    if not model.embedded:
        yield f"{'':<16} {model.folder}"


def _memory(model: Model, free: int) -> str:
    if model.least_bytes is None:
        return "memory not reckoned yet"
    fits = "fits" if model.least_bytes <= free else "does NOT fit what is free"
    return f"draws from {human_bytes(model.least_bytes)} of memory on: {fits}"


def _size(manifest: AnyManifest) -> tuple[int, int] | None:
    """Width and height of what a model draws by itself, in pixels; None of what draws nothing."""
    usual = getattr(manifest, "default_request", None)
    return None if usual is None else (usual.width, usual.height)


def _origin(manifest: AnyManifest) -> str:
    source = manifest.source
    return source.location if source.revision is None else f"{source.location}@{source.revision}"


def _as_json(model: Model, free: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": model.name, "folder": str(model.folder), "embedded": model.embedded}
    if model.manifest is None:
        assert model.problem is not None
        return {**row, "problem": {"message": model.problem.message, "fix": model.problem.fix}}
    manifest = model.manifest
    width, height = _size(manifest) or (None, None)
    return {
        **row,
        "problem": None,
        "hash": model.hash,
        "title": manifest.name,
        "family": manifest.family,
        "precision": model.precision,
        "controls": model.controls,
        "width": width,
        "height": height,
        "bytes": model.bytes,
        "builds": len(model.builds),
        "builds_bytes": model.builds_bytes,
        "least_bytes": model.least_bytes,
        "fits": None if model.least_bytes is None else model.least_bytes <= free,
        "licence": manifest.licence,
        "origin": _origin(manifest),
    }
