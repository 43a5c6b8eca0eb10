"""`tintype devices` names every device, what it lacks, and what `auto` takes."""

from __future__ import annotations

import json

from tintype.engine import resolve_provider
from tintype.engine.device.native import kernel_sets, native_problem
from tintype.engine.device.providers import TARGETS


def test_each_device_has_a_line_and_what_is_missing_a_remedy(command) -> None:
    shown = command("devices").stdout.splitlines()
    for name in TARGETS:
        assert sum(line.split()[0] == name for line in shown) == 1
    assert sum(line.strip().startswith("fix: ") for line in shown) == sum(" no: " in line for line in shown)
    (chosen,) = [line for line in shown if line.endswith("(auto takes this)")]
    assert chosen.split()[0] == resolve_provider("auto").name
    (kernels,) = [line for line in shown if "kernels of our own in C: " in line]
    assert kernels.endswith(f": {native_problem() or f'there, by {kernel_sets()[-1]}'}")


def test_as_json_it_is_one_object(command) -> None:
    told = json.loads(command("devices", "--json").stdout)
    assert told["auto"] == resolve_provider("auto").name
    by_name = {device["target"]: device for device in told["devices"]}
    assert by_name["cpu"]["usable"] is True
    assert by_name["cpu"]["memory_bytes"] > 2**20
    assert by_name["cpu"]["native_problem"] == native_problem()
    assert all(device["usable"] or device["fix"] for device in told["devices"])
