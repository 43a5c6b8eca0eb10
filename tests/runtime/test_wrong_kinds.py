"""What a caller gives of a wrong kind is one error with a remedy, never Python's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tintype
from tintype.errors import TintypeError

LOADS: list[dict[str, Any]] = [
    {"name_or_path": None},
    {"name_or_path": 5},
    {"name_or_path": b"postcard"},
    {"name_or_path": "a\0b"},
    {"name_or_path": "postcard", "provider": None},
    {"name_or_path": "postcard", "provider": 5},
    {"name_or_path": "postcard", "memory": 1.5},
    {"name_or_path": "postcard", "memory": b"1GiB"},
    {"name_or_path": "postcard", "threads": "2"},
]
PICTURE = np.zeros((64, 64, 3), np.uint8)
REQUESTS: list[dict[str, Any]] = [
    {"prompt": None},
    {"prompt": 5},
    {"prompt": "x", "seed": "a"},
    {"prompt": "x", "image": 5},
    {"prompt": "x", "height": "a"},
    {"prompt": "x", "count": 1.5},
    {"prompt": "x", "sampler": 3},
    {"prompt": "x", "image": PICTURE, "fit": None},
    {"prompt": "x", "image": PICTURE, "background": 5},
    {"prompt": "x", "image": PICTURE, "outpaint": 5},
    {"prompt": "x", "image": PICTURE, "mask": 5},
    {"prompt": "x", "guidance_interval": 5},
    {"prompt": "x", "hires": "2"},
    {"prompt": "x", "exactness": 5},
    {"prompt": "x", "nonsense": 1},
]
CALLS: dict[str, Callable[[tintype.Pipeline], object]] = {
    "reproduce": lambda pipeline: pipeline.reproduce(None),
    "reproduce a path": lambda pipeline: pipeline.reproduce("x.png"),
    "resume": lambda pipeline: pipeline.resume(None),
    "encode": lambda pipeline: pipeline.encode_picture(None),
    "encode a number": lambda pipeline: pipeline.encode_picture(5),
    "read a record": lambda pipeline: tintype.read_record(None),
    "read latents": lambda pipeline: tintype.read_latents(5),
}


@pytest.fixture(scope="module")
def pipeline():
    with tintype.load("postcard", provider="cpu", threads=1) as opened:
        yield opened


@pytest.mark.parametrize("given", LOADS, ids=str)
def test_what_is_loaded(given):
    with pytest.raises(TintypeError) as caught:
        tintype.load(**given)
    assert caught.value.fix


@pytest.mark.parametrize("given", REQUESTS, ids=lambda given: " ".join(given))
def test_what_is_asked_for(pipeline, given):
    with pytest.raises(TintypeError) as caught:
        pipeline.steps(**given)
    assert caught.value.fix


@pytest.mark.parametrize("call", CALLS)
def test_what_is_gone_on_from(pipeline, call):
    with pytest.raises(TintypeError) as caught:
        CALLS[call](pipeline)
    assert caught.value.fix
