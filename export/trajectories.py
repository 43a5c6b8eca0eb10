"""Real inputs: what each graph meets when pictures are made, and what the torch modules answer.

Prompts are encoded by the checkpoint's text encoder, latents are walked down the model's own timesteps with guidance
by DDIM, and the last ones go to the decoder. Gates and calibration use different prompts and seeds, so that no graph
is judged on what its ranges were fitted to. Same checkpoint and plan: the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tintype.errors import ExportError
from tintype.export.tokenizer import BundleTokenizer

Feed = dict[str, NDArray[Any]]  # a graph's inputs by name

DEFAULT_PROMPTS = (
    "a red sailboat on a calm sea at sunset",
    "a portrait of an old fisherman, oil painting",
    "a castle on a green hill, clear noon sky",
    "a bowl of fruit on a wooden table, soft light",
    "snow falling on a small blue house at night",
    "a city skyline in the rain, neon reflections",
    "a close photograph of a cat looking out of a window",
    "a lighthouse above a stormy ocean, dramatic clouds",
    "a hot air balloon over desert dunes at dawn",
    "a bicycle leaning on a brick wall, watercolor",
    "a forest path in autumn with yellow leaves",
    "an astronaut riding a horse, detailed illustration",
)


@dataclass(frozen=True, slots=True)
class TrajectoryPlan:
    """How far and how often trajectories are walked.

    prompts are taken in turn: calibration has the first ones, gates the last. latent_size is a side in latent cells.
    """

    prompts: Sequence[str]
    latent_size: int
    calibration_prompts: int = 6
    gate_prompts: int = 2
    steps: int = 20
    gate_calls: int = 6  # UNet calls on which the denoiser is judged, spread over the steps
    guidance_scale: float = 7.5
    seed: int = 20_240_229

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ExportError("there are no prompts to calibrate with", fix="give one at least, or leave prompts out")
        for name in ("latent_size", "calibration_prompts", "gate_prompts", "steps", "gate_calls"):
            if getattr(self, name) < 1:
                raise ExportError(f"{name} is {getattr(self, name)}", fix="give 1 or more, or leave it out")

    @property
    def calibration(self) -> list[str]:
        return [self.prompts[index % len(self.prompts)] for index in range(self.calibration_prompts)]

    @property
    def gates(self) -> list[str]:
        return [self.prompts[-1 - index % len(self.prompts)] for index in range(self.gate_prompts)]


@dataclass(frozen=True, slots=True)
class Modules:
    """The checkpoint in torch, fp32, eval mode."""

    text_encoder: torch.nn.Module
    unet: torch.nn.Module
    vae: torch.nn.Module
    scheduler: Mapping[str, Any]  # scheduler_config.json
    scaling_factor: float
    shift_factor: float

    def encode(self, tokenizer: BundleTokenizer, texts: Sequence[str]) -> torch.Tensor:
        ids = torch.tensor([tokenizer.ids(text) for text in texts])
        return self.text_encoder(ids).last_hidden_state  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a graph: its inputs, and what the torch module gave for them."""

    feed: Feed
    reference: NDArray[np.float32]


def walk(
    modules: Modules, embeddings: torch.Tensor, plan: TrajectoryPlan, *, seed: int
) -> Iterator[tuple[torch.Tensor, float, torch.Tensor]]:
    """One prompt's way from noise to latents: yields (latents, timestep, prediction) of each step, then the end.

    embeddings is (2, sequence, dim), unconditional first; latents are (1, C, h, w) as the UNet gets them; prediction
    is (2, C, h, w). The last item has timestep -1 and the finished latents in both places.
    """
    from diffusers import DDIMScheduler

    config = {**modules.scheduler, "clip_sample": False, "thresholding": False}
    scheduler = DDIMScheduler.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    scheduler.set_timesteps(plan.steps)
    generator = torch.Generator().manual_seed(seed)
    channels = int(modules.unet.config.in_channels)  # type: ignore[union-attr, arg-type]
    latents = torch.randn((1, channels, plan.latent_size, plan.latent_size), generator=generator)
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        both = torch.cat([latents, latents])
        prediction = modules.unet(both, timestep.float()[None], embeddings, return_dict=False)[0]
        yield latents, float(timestep), prediction
        guided = prediction[:1] + plan.guidance_scale * (prediction[1:] - prediction[:1])
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    yield latents, -1.0, latents


def text_call(modules: Modules, tokenizer: BundleTokenizer, texts: Sequence[str]) -> Call:
    """One call of the text encoder with all texts as a batch."""
    ids = np.array([tokenizer.ids(text) for text in texts], dtype=np.int64)
    with torch.inference_mode():
        return Call({"input_ids": ids}, modules.encode(tokenizer, texts).numpy())


def gate_calls(
    modules: Modules, tokenizer: BundleTokenizer, plan: TrajectoryPlan, advance: Callable[[int], None]
) -> dict[str, list[Call]]:
    """For every role, calls on real inputs with torch's answers; `advance` hears of each finished UNet call."""
    with torch.inference_mode():
        embeddings = modules.encode(tokenizer, ["", *plan.gates])
        calls: dict[str, list[Call]] = {"denoiser": [], "vae_decoder": [], "vae_encoder": []}
        calls["text_encoder"] = [text_call(modules, tokenizer, ["", *plan.gates])]
        for index, _ in enumerate(plan.gates):
            pair = embeddings[[0, index + 1]]
            finished = _denoiser_calls(modules, pair, plan, index, calls["denoiser"], advance)
            _vae_calls(modules, finished, calls)
    return calls


def _denoiser_calls(
    modules: Modules,
    pair: torch.Tensor,
    plan: TrajectoryPlan,
    index: int,
    calls: list[Call],
    advance: Callable[[int], None],
) -> torch.Tensor:
    """Walk one gate prompt, keep some of its calls, return the finished latents."""
    each = max(1, -(-plan.gate_calls // plan.gate_prompts))
    kept = {round(step) for step in np.linspace(index % 2, plan.steps - 1, each)}
    finished = None
    for step, (latents, timestep, prediction) in enumerate(walk(modules, pair, plan, seed=plan.seed + 1000 + index)):
        if timestep < 0:
            finished = latents
        elif step in kept:
            calls.append(_denoiser_call(latents, timestep, pair, prediction))
        advance(1)
    assert finished is not None
    return finished


def _vae_calls(modules: Modules, latents: torch.Tensor, calls: dict[str, list[Call]]) -> None:
    scaled = latents / modules.scaling_factor + modules.shift_factor
    image = modules.vae.decode(scaled, return_dict=False)[0]  # type: ignore[operator, union-attr]
    calls["vae_decoder"].append(Call({"latent_sample": scaled.numpy()}, image.numpy()))
    image = image.clamp(-1, 1)
    parameters = modules.vae.encode(image, return_dict=False)[0].parameters  # type: ignore[operator, union-attr]
    calls["vae_encoder"].append(Call({"sample": image.numpy()}, parameters.numpy()))


def calibration_walks(
    modules: Modules, tokenizer: BundleTokenizer, plan: TrajectoryPlan, kept_calls: int, advance: Callable[[int], None]
) -> tuple[list[Call], list[Call]]:
    """Walk the calibration prompts: some of the UNet's calls, with its answers, and the decoder's calls at the ends.

    Whoever watches the UNet meanwhile sees every step of every prompt.
    """
    kept: list[Call] = []
    finished: list[Call] = []
    every = max(1, plan.calibration_prompts * plan.steps // max(1, kept_calls))
    count = 0
    with torch.inference_mode():
        embeddings = modules.encode(tokenizer, ["", *plan.calibration])
        for index, _ in enumerate(plan.calibration):
            pair = embeddings[[0, index + 1]]
            for latents, timestep, prediction in walk(modules, pair, plan, seed=plan.seed + index):
                if timestep < 0:
                    scaled = latents / modules.scaling_factor + modules.shift_factor
                    image = modules.vae.decode(scaled, return_dict=False)[0]  # type: ignore[operator, union-attr]
                    finished.append(Call({"latent_sample": scaled.numpy()}, image.numpy()))
                elif count % every == every // 2:
                    kept.append(_denoiser_call(latents, timestep, pair, prediction))
                count += timestep >= 0
                advance(1)
    return kept, finished


def _denoiser_call(latents: torch.Tensor, timestep: float, pair: torch.Tensor, prediction: torch.Tensor) -> Call:
    feed = {
        "sample": torch.cat([latents, latents]).numpy().copy(),
        "timestep": np.array([timestep], dtype=np.float32),
        "encoder_hidden_states": pair.numpy().copy(),
    }
    return Call(feed, prediction.numpy().copy())
