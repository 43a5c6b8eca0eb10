"""Winograd convolutions, and upsampling as products or phases, mean what the plain convolution means, at any size."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tintype.kernels.cpu import product_conv
from tintype.kernels.cpu.product_conv import UPSAMPLED, winograd
from tintype.kernels.cpu.upsample_conv import UpsampleConvAsInt8Phases, UpsampleConvAsPhases, UpsampleConvAsProducts
from tintype.kernels.cpu.winograd import WinogradConv

# batch, inputs, outputs, height, width: odd sizes, sizes below two tiles, one row of tiles, batches
SIZES = [
    (1, 16, 16, 8, 8),
    (1, 17, 40, 13, 9),
    (2, 32, 16, 7, 30),
    (3, 16, 24, 6, 6),
    (4, 20, 16, 16, 11),
    (1, 64, 64, 33, 64),
]


def direct(x, weight, bias=None):
    """A 3x3 convolution with padding 1, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    result = np.einsum("bchwij,kcij->bkhw", windows, weight.astype(np.float64), optimize=True)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def doubled(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)


def psnr_db(result, expected):
    return 20 * np.log10(np.ptp(expected) / np.sqrt(np.mean((result - expected) ** 2)))


@pytest.fixture
def conv(model_of):
    """A model of one convolution, after an upsampling if asked for, and what goes in."""

    def make(random, batch, inputs, outputs, height, width, *, upsample=False, bias=True, attributes=None):
        weight = (random.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)).astype(np.float32)
        constants = {"weight": weight, "sizes": np.array([1, 1, 2, 2], np.float32)}
        names = ["up" if upsample else "x", "weight"]
        if bias:
            constants["bias"] = random.standard_normal(outputs).astype(np.float32)
            names.append("bias")
        nodes = []
        if upsample:
            modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            nodes.append(helper.make_node("Resize", ["x", "", "sizes"], ["up"], **modes))
        attributes = {"pads": [1, 1, 1, 1]} if attributes is None else attributes
        nodes.append(helper.make_node("Conv", names, ["y"], name="conv", **attributes))
        x = random.standard_normal((batch, inputs, height, width)).astype(np.float32)
        used = {name: array for name, array in constants.items() if upsample or name != "sizes"}
        return model_of(nodes, {"x": (TensorProto.FLOAT, list(x.shape))}, ["y"], used), x, constants

    return make


@pytest.mark.parametrize("tile", [2, 4, 6])
def test_the_transforms_are_exact_but_for_rounding(random, tile):
    x, weight = random.standard_normal((2, 3, 9, 14)), random.standard_normal((4, 3, 3, 3))
    np.testing.assert_allclose(winograd(tile).reference(x, weight), direct(x, weight), atol=1e-11)
    kernel = WinogradConv.reference(x, weight, tile)
    np.testing.assert_allclose(kernel, direct(x, weight), atol=1e-11)


def test_upsampling_by_products_is_exact_but_for_rounding(random):
    x, weight = random.standard_normal((2, 3, 5, 7)), random.standard_normal((4, 3, 3, 3))
    np.testing.assert_allclose(UPSAMPLED.reference(x, weight), direct(doubled(x), weight), atol=1e-12)
    np.testing.assert_allclose(UpsampleConvAsProducts.reference(x, weight), direct(doubled(x), weight), atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tile", [2, 4, 6])
@pytest.mark.parametrize("whole_bytes", [product_conv.WHOLE_BYTES, 1], ids=["whole", "strips"])
def test_winograd_at_every_size_whole_and_in_strips(conv, applied, random, monkeypatch, size, tile, whole_bytes):
    monkeypatch.setattr(product_conv, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(product_conv, "STRIP_BYTES", 1)
    model, x, constants = conv(random, *size, bias=size[0] != 2)
    result = applied(model, {"x": x}, WinogradConv(tile))
    worthwhile = min(size[3:]) >= tile and (tile > 2 or size[3] * size[4] <= 1024)
    assert result.report.rewrites[f"winograd{tile}"] == worthwhile
    assert result.operators.count("FusedMatMul") == (-(-size[3] // tile) if whole_bytes == 1 else 1) * worthwhile
    expected = direct(x, constants["weight"], constants.get("bias"))
    assert result.after["y"].shape == expected.shape
    assert psnr_db(result.after["y"], expected) >= 115


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [UpsampleConvAsProducts(), UpsampleConvAsPhases()], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("whole_bytes", [product_conv.WHOLE_BYTES, 1], ids=["whole", "strips"])
def test_an_upsampled_convolution_at_every_size(conv, applied, random, monkeypatch, size, kernel, whole_bytes):
    monkeypatch.setattr(product_conv, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(product_conv, "STRIP_BYTES", 1)
    model, x, constants = conv(random, *size, upsample=True)
    result = applied(model, {"x": x}, kernel)
    assert result.report.rewrites[kernel.name] == 1
    assert "Resize" not in result.operators
    expected = direct(doubled(x), constants["weight"], constants["bias"])
    np.testing.assert_allclose(result.before["y"], expected, atol=1e-4)
    assert psnr_db(result.after["y"], expected) >= 125


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [0, 0, 0, 0]},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER"},
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(conv, applied, random, attributes):
    model, x, _ = conv(random, 1, 16, 16, 12, 12, attributes=attributes)
    result = applied(model, {"x": x}, WinogradConv(4))
    assert result.report.rewrites["winograd4"] == 0
    assert result.operators == ["Conv"]


def test_a_resize_of_another_kind_is_left_alone(model_of, applied, random):
    weight = random.standard_normal((16, 16, 3, 3)).astype(np.float32)
    x = random.standard_normal((1, 16, 8, 8)).astype(np.float32)
    constants = {"weight": weight, "sizes": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        helper.make_node("Resize", ["x", "", "sizes"], ["up"], mode="linear"),
        helper.make_node("Conv", ["up", "weight"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, list(x.shape))}, ["y"], constants)
    for kernel in (UpsampleConvAsProducts(), UpsampleConvAsPhases()):
        assert applied(model, {"x": x}, kernel).operators == ["Resize", "Conv"]


@pytest.mark.parametrize("stored", ["half", "int8"])
def test_weights_that_are_stored_small_are_read(model_of, applied, random, stored):
    weight = (random.standard_normal((16, 16, 3, 3)) / 12).astype(np.float32)
    x = random.standard_normal((1, 16, 8, 8)).astype(np.float32)
    if stored == "half":
        constants = {"stored": weight.astype(np.float16)}
        nodes = [helper.make_node("Cast", ["stored"], ["weight"], to=TensorProto.FLOAT)]
        weight = constants["stored"].astype(np.float32)
    else:
        scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        constants = {"stored": np.rint(weight / scale[:, None, None, None]).astype(np.int8), "scale": scale}
        nodes = [helper.make_node("DequantizeLinear", ["stored", "scale"], ["weight"], axis=0)]
        weight = constants["stored"] * scale[:, None, None, None]
    nodes.append(helper.make_node("Conv", ["x", "weight"], ["y"], name="conv", pads=[1, 1, 1, 1]))
    model = model_of(nodes, {"x": (TensorProto.FLOAT, list(x.shape))}, ["y"], constants)
    result = applied(model, {"x": x}, WinogradConv(4))
    assert result.report.rewrites["winograd4"] == 1
    assert psnr_db(result.after["y"], direct(x, weight)) >= 115


@pytest.mark.parametrize("kernel", [WinogradConv(4), UpsampleConvAsProducts()], ids=lambda kernel: kernel.name)
def test_quantization_around_a_convolution_is_kept(model_of, applied, random, kernel):
    upsample = isinstance(kernel, UpsampleConvAsProducts)
    weight = (random.standard_normal((16, 16, 3, 3)) / 12).astype(np.float32)
    x = random.standard_normal((2, 16, 8, 10)).astype(np.float32)
    constants = {
        "weight": weight,
        "step": np.array(12 / 255, np.float32),
        "zero": np.array(128, np.uint8),
        "sizes": np.array([1, 1, 2, 2], np.float32),
    }
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [helper.make_node("Resize", ["x", "", "sizes"], ["up"], **modes)] if upsample else []
    nodes += [
        helper.make_node("QuantizeLinear", ["up" if upsample else "x", "step", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xd"]),
        helper.make_node("Conv", ["xd", "weight"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "step", "zero"], ["y"]),
    ]
    used = {name: array for name, array in constants.items() if upsample or name != "sizes"}
    result = applied(model_of(nodes, {"x": (TensorProto.FLOAT, list(x.shape))}, ["y"], used), {"x": x}, kernel)
    assert result.report.rewrites[kernel.name] == 1
    rounded = np.clip(np.rint(x / constants["step"]), -128, 127) * constants["step"]
    expected = direct(doubled(rounded) if upsample else rounded, weight)
    assert np.abs(result.after["y"] - expected).max() <= 0.51 * 12 / 255  # nothing but the rounding of the output


def test_a_static_int8_convolution_keeps_its_phases_in_int8(model_of, applied, random):
    weight = (random.standard_normal((24, 16, 3, 3)) / 12).astype(np.float32)
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    bias = random.standard_normal(24).astype(np.float32)
    x = random.standard_normal((2, 16, 8, 10)).astype(np.float32)
    step = np.float32(12 / 255)
    constants = {
        "weight": np.rint(weight / scale[:, None, None, None]).astype(np.int8),
        "scale": scale,
        "bias": np.rint(bias / (scale * step)).astype(np.int32),
        "bias_scale": scale * step,
        "step": step,
        "zero": np.array(128, np.uint8),
        "sizes": np.array([1, 1, 2, 2], np.float32),
    }
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        helper.make_node("Resize", ["x", "", "sizes"], ["up"], **modes),
        helper.make_node("QuantizeLinear", ["up", "step", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["b"], axis=0),
        helper.make_node("Conv", ["xd", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "step", "zero"], ["y"]),
    ]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, list(x.shape))}, ["y"], constants)
    result = applied(model, {"x": x}, UpsampleConvAsInt8Phases())
    assert result.report.rewrites["upsample_phases_int8"] == 1
    assert result.operators.count("Conv") == 4
    assert psnr_db(result.after["y"], direct(doubled(x), weight, bias)) >= 40
    assert psnr_db(result.after["y"], result.before["y"]) >= 45
