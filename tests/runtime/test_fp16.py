"""Bundles of float16 on the processor: operators of our own read their weights as they are stored."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from low_precision import fp16_bundle
from lowered_graphs import run_lowered

from tintype import arrays
from tintype.bundle import open_bundle
from tintype.engine import BuildOptions, has_ability, resolve_provider
from tintype.engine.build.analyse import analysis_of
from tintype.kernels.base import OWN
from tintype.kernels.native.linear import NativeGeglu, NativeLinear
from tintype.kernels.native.winograd import NativeWinogradFew
from tintype.memory.mode import PACKED
from tintype.memory.reckoning import reckon
from tintype.uses import GraphRef

__all__ = ["fp16_bundle"]  # the fixture

pytestmark = pytest.mark.slow

DIMS = {"batch": 2, "height": 16, "width": 16, "sequence": 77}
OURS = (NativeGeglu(), NativeLinear(), NativeWinogradFew())


def test_a_denoiser_that_reads_float16_gives_what_onnx_runtime_does_with_floats(
    fp16_bundle: Path, tmp_path: Path
) -> None:
    if not has_ability(resolve_provider("cpu"), "native"):
        pytest.skip("no native kernels")
    found, weights = {}, []
    for way, own in (("theirs", ()), ("ours", OURS)):
        model, found[way] = run_lowered(fp16_bundle, DIMS, own, tmp_path / f"{way}.onnx")
        weights += [value for node in model.graph if node.domain == OWN for value in node.inputs[1:2]]
    assert arrays.psnr_db(found["theirs"], found["ours"]) > 100
    assert len(weights) > 30
    large = [value for value in weights if value is not None and value.const_value is not None]
    kept = [value for value in large if value.dtype == ir.DataType.FLOAT16]
    assert sum(value.const_value.nbytes for value in kept) > 0.95 * sum(value.const_value.nbytes for value in large)
    sizes = {way: (tmp_path / f"{way}.data").stat().st_size for way in found}
    print(f"{len(kept)} of {len(large)} weights, {sizes}")


def test_a_plan_counts_what_products_leave_as_it_is(fp16_bundle: Path) -> None:
    options = BuildOptions.for_shape(DIMS, exactness="exact", threads=1)
    facts = analysis_of(open_bundle(fp16_bundle), GraphRef("denoiser"), options)
    assert facts.stored_bytes < 0.6 * facts.float_bytes
    assert 0 < facts.saved_bytes <= facts.float_bytes - facts.stored_bytes
    host, device = (
        reckon(facts, PACKED, floats=True, rate=1e9, on_device=on_device).peak_bytes for on_device in (False, True)
    )
    assert host < device + 1.2 * facts.float_bytes - facts.saved_bytes
