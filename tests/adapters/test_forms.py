"""What each kind of adapter adds to a weight: as LyCORIS computes it, in plain loops of numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tintype.adapters.files import AdapterFile, open_adapter
from tintype.adapters.forms import fits, pair_of, pair_rank, whole_delta

LINEAR, CONV, POINT = (12, 8), (12, 8, 3, 3), (12, 8, 1, 1)
ALPHA = 3.0


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape) + len(shape)).standard_normal(shape).astype(np.float32)


def product(a: np.ndarray, b: np.ndarray, core: np.ndarray | None = None) -> np.ndarray:
    if core is None:
        return a.astype(np.float64) @ b.reshape(len(b), -1)
    return np.einsum("ijkl,jr,ip->prkl", core.astype(np.float64), b, a)


def lora(rank: int, weight: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Any, int]:
    down, up = drawn(rank, *weight[1:]), drawn(weight[0], rank, *(1,) * (len(weight) - 2))
    return {"lora_down.weight": down, "lora_up.weight": up}, product(up.reshape(-1, rank), down) * ALPHA / rank, rank


def tucker(rank: int) -> tuple[dict[str, np.ndarray], Any, int]:
    down, mid, up = drawn(rank, 8, 1, 1), drawn(rank, rank, 3, 3), drawn(12, rank, 1, 1)
    whole = np.einsum("oa,abhw,bi->oihw", up[:, :, 0, 0], mid.astype(np.float64), down[:, :, 0, 0])
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    return tensors, whole * ALPHA / rank, rank


def loha(weight: tuple[int, ...]) -> tuple[dict[str, np.ndarray], Any, int]:
    area = int(np.prod(weight[2:]))
    parts = {"w1_a": drawn(12, 2), "w1_b": drawn(2, 8 * area), "w2_a": drawn(12, 3), "w2_b": drawn(3, 8 * area)}
    whole = product(parts["w1_a"], parts["w1_b"]) * product(parts["w2_a"], parts["w2_b"])
    return {f"hada_{name}": part for name, part in parts.items()}, whole * ALPHA / 2, 6


def loha_tucker() -> tuple[dict[str, np.ndarray], Any, int]:
    parts = {"w1_a": drawn(2, 12), "w1_b": drawn(2, 8), "w2_a": drawn(3, 12), "w2_b": drawn(3, 8)}
    cores = {"t1": drawn(2, 2, 3, 3), "t2": drawn(3, 3, 3, 3)}
    whole = product(parts["w1_a"], parts["w1_b"], cores["t1"]) * product(parts["w2_a"], parts["w2_b"], cores["t2"])
    return {f"hada_{name}": part for name, part in (parts | cores).items()}, whole * ALPHA / 2, 6


def lokr(weight: tuple[int, ...], *, whole: str) -> tuple[dict[str, np.ndarray], Any, int]:
    """whole: which of the two factors aren't products: none, first, second, both."""
    kernel = weight[2:]
    area = int(np.prod(kernel))
    tensors: dict[str, np.ndarray] = {}
    if whole in ("first", "both"):
        one = tensors["lokr_w1"] = drawn(3, 4)
    else:
        tensors |= {"lokr_w1_a": drawn(3, 2), "lokr_w1_b": drawn(2, 4)}
        one = product(tensors["lokr_w1_a"], tensors["lokr_w1_b"])
    if whole in ("second", "both"):
        two = tensors["lokr_w2"] = drawn(4, 2, *kernel)
    else:
        tensors |= {"lokr_w2_a": drawn(4, 1), "lokr_w2_b": drawn(1, 2 * area)}
        two = product(tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    two = two.reshape(4, 2, area)
    made = np.stack([np.kron(one, two[..., place]) for place in range(area)], axis=-1)
    ranks = {"none": (2, 1, 1), "first": (3, 1, 1), "second": (2, 4 if area > 1 else 2, 2), "both": (3, None, None)}
    first, second, dim = ranks[whole]
    rank = first * (min(4, 2 * area) if second is None else second)
    return tensors, made * (ALPHA / dim if dim is not None else 1.0), rank


CASES: dict[str, tuple[tuple[int, ...], Any]] = {
    "lora": (LINEAR, lora(5, LINEAR)),
    "locon": (CONV, lora(4, CONV)),
    "locon of 1x1": (POINT, lora(4, POINT)),
    "lora of a layer that is a convolution": (POINT, lora(4, LINEAR)),
    "lora of a convolution that is a layer": (LINEAR, lora(4, POINT)),
    "locon in three": (CONV, tucker(4)),
    "loha": (LINEAR, loha(LINEAR)),
    "loha of a convolution": (CONV, loha(CONV)),
    "loha in three": (CONV, loha_tucker()),
    **{f"lokr, whole {whole}": (LINEAR, lokr(LINEAR, whole=whole)) for whole in ("none", "first", "second", "both")},
    **{f"lokr of a convolution, whole {w}": (CONV, lokr(CONV, whole=w)) for w in ("none", "first", "second", "both")},
}


@pytest.fixture
def opened(tmp_path):
    def save(tensors: dict[str, np.ndarray], *, alpha: float | None = ALPHA) -> AdapterFile:
        named = {f"lora_unet_x.{name}": np.ascontiguousarray(array) for name, array in tensors.items()}
        if alpha is not None:
            named["lora_unet_x.alpha"] = np.array(alpha, np.float32)
        return open_adapter(_save(tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors", named))

    return save


def _save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_pair_is_what_lyoris_adds_to_the_weight(opened, case):
    weight, (tensors, expected, rank) = CASES[case]
    file = opened(tensors)
    (layer,) = file.layers.values()
    assert fits(file, layer, weight)
    pair = pair_of(file, layer, weight)
    assert pair_rank(file, layer, weight) == rank == len(pair.down)
    assert (pair.down.shape, pair.up.shape) == ((rank, *weight[1:]), (weight[0], rank))
    made = pair.up.astype(np.float64) @ pair.down.reshape(rank, -1)
    np.testing.assert_allclose(made, expected.reshape(weight[0], -1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole_delta(file, layer, weight), expected.reshape(weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_it_fits_no_weight_of_another_shape(opened, case):
    weight, (tensors, *_) = CASES[case]
    file = opened(tensors)
    (layer,) = file.layers.values()
    for other in ((weight[0] * 2, *weight[1:]), (weight[0], weight[1] * 2, *weight[2:]), (*weight[:2], 5, 5)):
        assert not fits(file, layer, other), other


def test_without_alpha_nothing_is_scaled(opened):
    tensors, expected, rank = lora(5, LINEAR)
    file = opened(tensors, alpha=None)
    (layer,) = file.layers.values()
    np.testing.assert_allclose(whole_delta(file, layer, LINEAR), expected * rank / ALPHA, rtol=1e-4, atol=1e-4)


def test_what_is_no_pair_has_no_rank(opened):
    file = opened({"diff": drawn(*LINEAR)})
    (layer,) = file.layers.values()
    assert fits(file, layer, LINEAR)
    assert pair_rank(file, layer, LINEAR) is None
