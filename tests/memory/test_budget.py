"""What a user may type for a budget, and what `auto` stands for."""

from __future__ import annotations

import psutil
import pytest

from tintype.errors import RequestError
from tintype.free_memory import free_bytes
from tintype.memory.budget import AUTO_SHARE, MemoryLimits, budget_bytes, free_limits, parse_memory


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        ("2GiB", 2 * 2**30),
        ("2gib", 2 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("800M", 800_000_000),
        ("512MiB", 512 * 2**20),
        (" 64 KiB ", 2**16),
        ("1048576", 2**20),
        (123456, 123456),
        ("auto", "auto"),
        ("AUTO", "auto"),
    ],
)
def test_sizes(typed, count):
    assert parse_memory(typed) == count


@pytest.mark.parametrize(
    "typed", ["", "much", "2 TiBs", "-1GiB", "0", 0, -5, True, "1e9", "1,5GB", "GiB", "∞", 1.5, b"1GiB", 2**80]
)
def test_what_is_no_size_is_refused_with_an_example(typed):
    with pytest.raises(RequestError, match="is no size") as caught:
        parse_memory(typed)
    assert "2GiB" in caught.value.fix


def test_auto_is_less_than_what_is_free():
    budget = budget_bytes("auto")
    assert 0 < budget < psutil.virtual_memory().total
    assert budget_bytes(5 * 2**20) == 5 * 2**20
    assert 0 < free_bytes() <= psutil.virtual_memory().total


def test_auto_on_a_device_is_what_both_have_free_each_by_itself():
    room = free_limits(10 * 2**30)
    assert room.device == int(10 * 2**30 * AUTO_SHARE)
    assert 0 < room.host < psutil.virtual_memory().total
    assert free_limits(None).device is None
    assert budget_bytes("auto", MemoryLimits(host=5, device=7)) == 12
    assert budget_bytes("auto", MemoryLimits(host=5)) == 5
