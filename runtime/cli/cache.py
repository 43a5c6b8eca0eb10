"""`tintype cache`: what was built for this machine. Everything in it can be made again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tintype.cli.options import human_bytes, json_option
from tintype.cli.say import say, say_json

if TYPE_CHECKING:
    from tintype.engine import CacheEntry


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """List what was built for this machine; `tintype cache clear` removes it."""
    if context.invoked_subcommand is not None:
        return

    from tintype.bundle.converted import converted_bundles
    from tintype.engine import cache_entries, cache_folder
    from tintype.engine.build.cache import bytes_on_disk

    entries, bundles, on_disk = cache_entries(), converted_bundles(), bytes_on_disk([cache_folder()])
    if as_json:
        builds = [_as_json(entry) for entry in entries]
        made = [
            {"key": each.key, "path": str(each.path), "bytes": each.bytes, "source": each.source} for each in bundles
        ]
        say_json({"folder": str(cache_folder()), "bytes": on_disk, "builds": builds, "bundles": made})
        return
    # Builds share large weights, so together they take less than the sum of what each holds.
    say(f"{cache_folder()}: {len(entries)} builds, {human_bytes(on_disk)} on disk")
    for entry in entries:
        say(f"  {entry.key}  {human_bytes(entry.bytes):>10}  {_describe(entry)}")
    for bundle in bundles:
        say(f"  {bundle.key}  {human_bytes(bundle.bytes):>10}  bundle made of {bundle.source}")


@cache.command()
@json_option
def clear(as_json: bool) -> None:
    """Remove every build, and bundles made of folders; the next picture of each makes them again."""
    from tintype.engine import cache_folder, clear_cache

    freed = clear_cache()
    if as_json:
        say_json({"folder": str(cache_folder()), "freed_bytes": freed})
    else:
        say(f"removed {human_bytes(freed)} from {cache_folder()}")


def _describe(entry: CacheEntry) -> str:
    identity = entry.identity
    if identity is None or not entry.whole:
        return "damaged; it is made again when it is needed"
    variant = "" if identity.variant == "full" else f" ({identity.variant})"
    hours = entry.used_seconds_ago / 3600
    age = f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"
    return (
        f"{identity.name} {identity.role}{variant} on {identity.target}, {identity.shape}, {identity.plan}, "
        f"onnxruntime {identity.ort}, used {age} ago"
    )


def _as_json(entry: CacheEntry) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "key": entry.key,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "whole": entry.whole,
        "used_seconds_ago": round(entry.used_seconds_ago),
        "identity": asdict(entry.identity) if entry.identity else None,
    }
