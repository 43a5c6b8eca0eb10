"""Whole graphs as CUDA would run them: the canonical graph's meaning, in float32 and rounded to float16 as a GPU does,
and a kernel of onnxruntime-gpu's wheel for every node. No GPU has run them: that is what tests/cuda is for.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from tintype.engine.run.placement import HEAVY_OPERATORS
from tintype.kernels.graph.dims import pin
from tintype.kernels.graph.hoist import split_held

pytestmark = pytest.mark.slow

ROLES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
DIMS = {
    "text_encoder": {"batch": 2},
    "unet": {"batch": 2, "height": 16, "width": 16, "sequence": 77},
    "vae_decoder": {"batch": 1, "height": 16, "width": 16},
    "vae_encoder": {"batch": 1, "height": 16, "width": 16},
}
# Chosen by exactness: what a graph computes in, and how near it has to come.
WAYS = pytest.mark.parametrize(
    ("exactness", "half"), [("exact", False), ("balanced", False), ("balanced", True)], ids=["exact", "float", "half"]
)


def source(cuda, role):
    return cuda.BUNDLE / role / "model.onnx"


@WAYS
@pytest.mark.parametrize("role", ROLES)
def test_postcards_graphs_mean_the_same(cuda, random, tmp_path, role, exactness, half):
    feed = cuda.feed_of(role, random)
    expected = cuda.canonical(source(cuda, role), feed, tmp_path)
    model = ir.load(source(cuda, role))
    cuda.lowered_for_cuda(model, half=half, exactness=exactness)
    cuda.plain(model)
    result = cuda.run(model, feed, tmp_path)[0]
    assert result.dtype == np.float32
    near = cuda.psnr_db(result, expected)
    assert near >= (cuda.HALF_GATE_DB if half else cuda.FLOAT_GATE_DB)
    # Rounding to float16 everywhere costs something: where it did not, the processor would have left it out.
    assert not half or near < 100.0


@WAYS
@pytest.mark.parametrize("role", ROLES)
def test_every_node_has_a_cuda_kernel_for_its_types(cuda, table, role, exactness, half):
    model = ir.load(source(cuda, role))
    cuda.lowered_for_cuda(model, half=half, exactness=exactness)
    absent = [node for node in model.graph if not table.has(node)]
    missing = Counter((node.domain, node.op_type, str(node.inputs[0].dtype)) for node in absent)
    assert missing == Counter()
    kinds = Counter(node.inputs[0].dtype for node in model.graph if node.op_type in HEAVY_OPERATORS)
    assert set(kinds) == {ir.DataType.FLOAT16 if half else ir.DataType.FLOAT}


def test_the_table_says_no_where_there_is_no_kernel(cuda, table):
    """GroupNormalization as exported has none, and a product of int64 has none."""
    model = ir.load(source(cuda, "vae_decoder"))
    norms = [node for node in model.graph if node.op_type == "GroupNormalization"]
    assert norms
    assert not any(table.has(node) for node in norms)
    product = next(node for node in ir.load(source(cuda, "text_encoder")).graph if node.op_type == "MatMul")
    assert table.has(product)
    product.inputs[0].dtype = ir.DataType.INT64
    assert not table.has(product)


def test_a_unet_turns_its_layout_twice(cuda):
    """At the ends; in between every picture has its channels last."""
    model = ir.load(source(cuda, "unet"))
    report = cuda.lowered_for_cuda(model, half=True)
    operators = Counter(node.op_type for node in model.graph)
    assert operators["Transpose"] == 2
    assert operators["NhwcConv"] == report.rewrites["nhwc_conv"] == 50
    assert operators["GroupNorm"] + operators["SkipGroupNorm"] == 30
    assert operators["MultiHeadAttention"] == 14
    assert {"Conv", "Attention", "GroupNormalization", "QuantizeLinear", "DequantizeLinear"} & set(operators) == set()


@pytest.mark.parametrize("role", ROLES)
def test_a_build_for_one_shape_leaves_nothing_to_the_host(cuda, table, tmp_path, role):
    """CUDA graphs take no node on the host: with every dim a number, shape arithmetic is folded away at opening."""
    model = ir.load(source(cuda, role))
    pin(model, DIMS[role])
    cuda.lowered_for_cuda(model, half=True)
    cuda.plain(model)  # what a processor can open; shapes are as they were
    once = split_held(model) if role == "unet" else None
    for number, graph in enumerate(part for part in (model, once) if part is not None):
        path, folded = tmp_path / f"{number}.onnx", tmp_path / f"{number}-folded.onnx"
        ir.save(graph, path)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath, options.log_severity_level = str(folded), 4
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        left = onnx.load(folded).graph
        assert not {"Shape", "Size", "ConstantOfShape", "Range"} & {node.op_type for node in left.node}
        integers = {info.name for info in left.value_info if info.type.tensor_type.elem_type == TensorProto.INT64}
        given = {value.name for value in left.input}  # ids of words are data
        computed = {output for node in left.node if not given & set(node.input) for output in node.output}
        assert integers & computed == set()


@pytest.fixture(scope="module")
def wide_unet(tmp_path_factory):
    """An SD 1.5-like UNet of one level of 320 channels, as torch exports it: BiasSplitGelu and BiasAdd have kernels."""
    import warnings

    import torch
    from diffusers import UNet2DConditionModel

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = UNet2DConditionModel(
                sample_size=8, block_out_channels=(320, 640), layers_per_block=1, cross_attention_dim=64,
                attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            )  # fmt: skip

        def forward(self, sample, timestep, encoder_hidden_states):
            return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]

    torch.manual_seed(5)
    module = Module().eval()
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    arguments = (torch.randn(2, 4, 8, 8), torch.tensor([7.0]), torch.randn(2, 77, 64))
    path = tmp_path_factory.mktemp("wide") / "unet.onnx"
    names = ["sample", "timestep", "encoder_hidden_states"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, arguments, path, dynamo=True, opset_version=23, verbose=False, external_data=True,
            input_names=names, output_names=["out_sample"],
        )  # fmt: skip
        expected = module(*arguments).numpy()
    return path, {name: array.numpy() for name, array in zip(names, arguments, strict=True)}, expected


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.reference
@WAYS
def test_an_sd15_like_unet_means_what_torch_says(cuda, table, wide_unet, tmp_path, exactness, half):
    path, feed, expected = wide_unet
    model = ir.load(path)
    report = cuda.lowered_for_cuda(model, half=half, exactness=exactness)
    blocks = 4  # transformer blocks: down 1, middle 1, up 2
    assert report.rewrites["bias_split_gelu"] == blocks
    assert report.rewrites["bias_add"] == 3 * blocks
    assert report.rewrites["skip_group_norm"] == (0 if exactness == "exact" else 15)
    assert [node.op_type for node in model.graph if not table.has(node)] == []
    cuda.plain(model)
    gate = cuda.HALF_GATE_DB if half else cuda.FLOAT_GATE_DB
    assert cuda.psnr_db(cuda.run(model, feed, tmp_path)[0], expected) >= gate
