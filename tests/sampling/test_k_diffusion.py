"""Samplers against k-diffusion's of the same name, step by step, in double precision and with the same noise.

k-diffusion asks for what trains models; its sampling module alone needs none of it, so it is loaded without the rest.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tintype.arrays import Latents
from tintype.sampling import SAMPLERS, Denoised, SchedulerConfig, make_schedule, noise_source

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.reference

CONFIG = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
SHAPE = (2, 4, 5, 6)
SEEDS = (11, 12)
THEIRS = {
    "euler": "sample_euler",
    "euler_a": "sample_euler_ancestral",
    "heun": "sample_heun",
    "dpm2": "sample_dpm_2",
    "dpm2_a": "sample_dpm_2_ancestral",
    "lms": "sample_lms",
    "dpmpp_2s_a": "sample_dpmpp_2s_ancestral",
    "dpmpp_2m": "sample_dpmpp_2m",
    "dpmpp_2m_sde": "sample_dpmpp_2m_sde",
    "dpmpp_2m_sde_heun": "sample_dpmpp_2m_sde",
    "dpmpp_3m_sde": "sample_dpmpp_3m_sde",
}
UNUSED = ("torchdiffeq", "torchsde", "torchvision", "torchvision.transforms")


@pytest.fixture
def k_diffusion(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """k_diffusion.sampling, without what its package opens and without what it solves other equations by."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is missing: pip install --no-deps k-diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations or ())
    modules = {"k_diffusion": package, **{name: types.ModuleType(name) for name in UNUSED}}
    modules["torchdiffeq"].odeint = None  # type: ignore[attr-defined]
    modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    sampling = importlib.import_module("k_diffusion.sampling")
    yield sampling
    for name in ("k_diffusion.utils", "k_diffusion.sampling"):
        del sys.modules[name]


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 12, 13, 14])
def test_dpm_fast_is_that_of_k_diffusion(steps: int, k_diffusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    linspace = torch.linspace  # which lays its steps in float32 otherwise
    monkeypatch.setattr(torch, "linspace", lambda *ends, **options: linspace(*ends, **options, dtype=torch.float64))
    schedule = make_schedule(CONFIG, "dpm_fast", steps)
    sigmas, mine = ours("dpm_fast", steps, None)
    theirs: list[Any] = []
    last = k_diffusion.sample_dpm_fast(
        lambda x, sigma: torch.from_numpy(picture(x.numpy(), float(sigma[0]))),
        torch.from_numpy(mine[0]),
        sigmas[-1],
        sigmas[0],
        steps,
        callback=lambda seen: theirs.append(seen["x"].numpy().copy()),
        disable=True,
    )
    assert len(theirs) == schedule.total
    for at, (a, b) in enumerate(zip(mine, [*theirs, last.numpy()], strict=True)):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0, err_msg=f"{steps} calls, before step {at}")


def picture(x: Any, sigma: float) -> Any:
    """Some denoiser that is not a straight line, of float64."""
    seen = x / np.sqrt(1.0 + sigma**2)
    return np.tanh(seen + 0.3 * np.roll(seen, 1, axis=-1)) * np.cos(sigma / 9.0)


def ours(sampler: str, steps: int, spacing: str | None) -> tuple[Any, list[Any]]:
    """The sigmas, and the latents before each step and after the last."""
    schedule = make_schedule(CONFIG, sampler, steps, spacing)
    noise = noise_source("numpy", SEEDS)

    def denoise(latents: Latents, sigma: float, timestep: float) -> Denoised:
        return Denoised.unguided(picture(latents, sigma))

    first = noise.draw(SHAPE).astype(np.float64) * schedule.initial_scale
    done = SAMPLERS[sampler](denoise, first, schedule, noise)  # type: ignore[arg-type]
    return schedule.sigmas, [first, *(step.latents for step in done)]


@pytest.mark.parametrize("spacing", ["karras", "leading"])
@pytest.mark.parametrize("sampler", THEIRS)
def test_a_trajectory_is_that_of_k_diffusion(sampler: str, spacing: str, k_diffusion: Any) -> None:
    for steps in (2, 3, 12):  # with one step its stochastic multistep samplers end in an error
        sigmas, mine = ours(sampler, steps, spacing)
        noise = noise_source("numpy", SEEDS)
        noise.draw(SHAPE)
        settings: dict[str, Any] = {"disable": True}
        if sampler.endswith("_heun"):
            settings["solver_type"] = "heun"
        if sampler.endswith(("_a", "_sde", "_sde_heun")):
            settings["noise_sampler"] = lambda *_, noise=noise: torch.from_numpy(noise.draw(SHAPE)).double()
        theirs: list[Any] = []
        last = getattr(k_diffusion, THEIRS[sampler])(
            lambda x, sigma: torch.from_numpy(picture(x.numpy(), float(sigma[0]))),
            torch.from_numpy(mine[0]),
            torch.from_numpy(sigmas),
            callback=lambda seen, theirs=theirs: theirs.append(seen["x"].numpy().copy()),
            **settings,
        )
        for at, (a, b) in enumerate(zip(mine, [*theirs, last.numpy()], strict=True)):
            np.testing.assert_allclose(a, b, atol=1e-6, rtol=0, err_msg=f"{steps} steps, before step {at}")
