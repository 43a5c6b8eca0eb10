"""What the engine takes the machine for."""

from __future__ import annotations

import os

import pytest

from tintype.engine import default_threads, machine


def test_threads_are_cores_that_this_process_may_use():
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("architecture", "features", "saturate"),
    [
        ("x86_64", {"avx2"}, True),
        ("AMD64", set(), True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, False),
        ("aarch64", set(), False),
        ("arm64", {"asimddp"}, False),
    ],
)
def test_integer_products_saturate_on_x86_without_vnni_only(monkeypatch, architecture, features, saturate):
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    monkeypatch.setattr(machine, "_cpu", lambda: ("a processor", frozenset(features)))
    assert machine.products_saturate() is saturate


def test_the_processor_is_named_the_same_each_time():
    machine.cpu_identity.cache_clear()
    first = machine.cpu_identity()
    machine.cpu_identity.cache_clear()
    assert machine.cpu_identity() == first
    assert len(first.split()) >= 3
