"""A heavy node off its target is an error that names it."""

from __future__ import annotations

import pytest

from tintype.engine import Placement
from tintype.errors import ProviderError

NODES = [("Gpu", "Conv"), ("Gpu", "Conv"), ("Gpu", "Add"), ("Cpu", "Shape"), ("Cpu", "Concat")]


def test_nodes_are_counted_by_provider():
    placement = Placement.from_assignments(NODES)
    assert placement.nodes == {"Cpu": {"Concat": 1, "Shape": 1}, "Gpu": {"Add": 1, "Conv": 2}}
    assert placement.count("Conv") == 2
    assert placement.count("Conv", "Cpu") == 0


def test_shape_arithmetic_may_run_on_the_host():
    placement = Placement.from_assignments(NODES)
    assert placement.heavy_off("Gpu") == {}
    placement.demand("Gpu", "unet")


@pytest.mark.parametrize("operator", ["Conv", "MatMul", "Attention", "MultiHeadAttention", "QLinearConv"])
def test_a_heavy_node_elsewhere_is_an_error(operator):
    placement = Placement.from_assignments([*NODES, ("Cpu", operator)])
    with pytest.raises(ProviderError) as caught:
        placement.demand("Gpu", "unet")
    assert f"1 {operator} on Cpu" in caught.value.message
