"""`tintype devices`: what this machine can draw on, and what is missing for the rest."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tintype.cli.options import human_bytes, json_option
from tintype.cli.say import say, say_json

if TYPE_CHECKING:
    from tintype.engine import Device


@click.command()
@json_option
def devices(as_json: bool) -> None:
    """List the devices that --provider can name: what works here, and what the others lack."""
    from tintype.engine import gpus, list_devices, resolve_provider

    found, cards = list_devices(), gpus()
    chosen = resolve_provider("auto").name
    if as_json:
        rows = [{**asdict(device), "usable": device.usable} for device in found]
        say_json({"auto": chosen, "gpus": [asdict(card) for card in cards], "devices": rows})
        return
    for card in cards:
        say(f"{'GPU':<12} {card.name}{_details(card.memory_bytes, card.driver)}")
    if not cards:
        say(f"{'GPU':<12} none that this system names")
    for device in found:
        say(f"{device.target:<12} {_line(device)}{' (auto takes this)' if device.target == chosen else ''}")
        if device.fix is not None:
            say(f"{'':<12}   fix: {device.fix}")
        if device.kind is not None:
            say(f"{'':<12}   kernels of our own in C: {device.native_problem or f'there, by {device.native_set}'}")


def _line(device: Device) -> str:
    if device.problem is not None:
        return f"no: {device.problem}"
    name = f"{device.name or 'works'}{f' ({device.kind})' if device.kind else ''}"
    return f"{name}{_details(device.memory_bytes, device.driver)}; {device.provider}, {device.version}"


def _details(memory_bytes: int | None, driver: str | None) -> str:
    memory = f", {human_bytes(memory_bytes)}" if memory_bytes is not None else ""
    return f"{memory}{f', driver {driver}' if driver else ''}"
