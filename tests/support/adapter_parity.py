"""What the tests ask that hold adapters' pictures to diffusers', and how near these have to be."""

from __future__ import annotations

from typing import Any

import numpy as np
from pictures import psnr_db

SEED, STEPS, GATE_DB = 7, 4, 50.0
NEGATIVE = "snow"
GUIDANCE = {"sd": 7.5, "sd2": 7.5, "xl": 5.0}


def asked(base: str, size: tuple[int, int] = (64, 64), **more: Any) -> dict[str, Any]:
    """Of a request to a model of that base, at the noise that diffusers draws."""
    return {
        "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE[base], "seed": SEED,
        "sampler": "euler", "exactness": "exact", "noise": "torch-cpu", "width": size[0], "height": size[1], **more,
    }  # fmt: skip


def assert_near(made: Any, expected: np.ndarray, other: Any) -> None:
    """other: the picture without what is tested."""
    assert expected.std() > 5  # a grey picture would be near any other
    near, far = psnr_db(made, expected), psnr_db(other, expected)
    print(f"{near:.1f} dB; without {far:.1f}")
    assert near >= GATE_DB
    assert far < near - 8.0
