"""Real inputs: what each graph meets when pictures are made, and what the torch modules answer.

Prompts are encoded by the checkpoint's text encoders, latents are walked down the model's own timesteps with guidance
by DDIM, and the last ones go to the decoder. Gates and calibration use different prompts and seeds, so that no graph
is judged on what its ranges were fitted to. Same checkpoint and plan: the same inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tintype.export.calls import Call, Feed, TrajectoryPlan
from tintype.export.modules import Modules
from tintype.export.tokenizer import BundleTokenizer
from tintype.families.stable_diffusion import guidance_embedding
from tintype.families.stable_diffusion_xl_refiner import AESTHETIC_SCORE

# By seed, what a UNet takes after the latents, (1, 1 + C, h, w) for inpainting and (1, C, h, w) for editing; most
# models have none.
PictureChannels = Mapping[int, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Words:
    """Texts as the UNet gets them, a row a text."""

    # The denoiser's inputs by name: encoder_hidden_states (texts, sequence, dim), of XL text_embeds and time_ids, of a
    # latent consistency model timestep_cond.
    tensors: Mapping[str, torch.Tensor]

    def rows(self, *rows: int) -> Words:
        return Words({name: tensor[list(rows)] for name, tensor in self.tensors.items()})

    def feed(self) -> Feed:
        return {name: tensor.numpy().copy() for name, tensor in self.tensors.items()}


def walk(
    modules: Modules, words: Words, plan: TrajectoryPlan, pictures: PictureChannels, *, seed: int
) -> Iterator[tuple[torch.Tensor, float, torch.Tensor]]:
    """One prompt's way from noise to latents: yields (sample, timestep, prediction) of each step, then the end.

    words has two rows, unconditional first; sample is (1, C, h, w) as the UNet gets it, with `pictures` of that seed
    after the latents where it takes them; prediction is (2, C, h, w). The last item has timestep -1 and the finished
    latents in both places.
    """
    from diffusers import DDIMScheduler

    known = inspect.signature(DDIMScheduler).parameters  # another scheduler's config says more
    config = {**modules.scheduler, "clip_sample": False, "thresholding": False}
    scheduler = DDIMScheduler.from_config({key: value for key, value in config.items() if key in known})
    scheduler.set_timesteps(plan.steps)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, modules.latent_channels, plan.latent_size, plan.latent_size)
    latents = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    denoiser = modules.wrapped("denoiser")
    told_guidance = modules.checkpoint.guidance_embedding is not None  # its predictions are guided as they come
    guidance_scale = 1.0 if told_guidance else plan.guidance_scale
    for timestep in scheduler.timesteps:
        sample = torch.cat([latents, pictures[seed]], dim=1) if pictures else latents
        both = torch.cat([sample, sample])
        prediction = denoiser(sample=both, timestep=timestep.float()[None], **words.tensors)
        yield sample, float(timestep), prediction
        guided = prediction[:1] + guidance_scale * (prediction[1:] - prediction[:1])
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    yield latents, -1.0, latents


def text_call(modules: Modules, role: str, tokenizer: BundleTokenizer, texts: Sequence[str]) -> Call:
    """One call of a text encoder with all texts as a batch."""
    ids = np.array([tokenizer.ids(text) for text in texts], dtype=np.int64)
    with torch.inference_mode():
        told = modules.wrapped(role)(torch.from_numpy(ids))
    first, *others = (told,) if isinstance(told, torch.Tensor) else told
    return Call({"input_ids": ids}, first.numpy(), tuple(other.numpy() for other in others))


def words_of(modules: Modules, plan: TrajectoryPlan, calls: Sequence[Call]) -> Words:
    """The same texts' calls of every text encoder, as the UNet gets them; the first text is the empty one."""
    checkpoint = modules.checkpoint
    embeddings = torch.from_numpy(np.concatenate([call.reference for call in calls], axis=-1))
    tensors = {"encoder_hidden_states": embeddings}
    if checkpoint.guidance_embedding is not None:
        told = guidance_embedding(plan.guidance_scale, checkpoint.guidance_embedding)
        tensors["timestep_cond"] = torch.from_numpy(told).repeat(len(embeddings), 1)
    if not checkpoint.family.is_xl:
        return Words(tensors)
    text_embeds = torch.from_numpy(calls[-1].others[0].copy())
    if checkpoint.force_zeros_for_empty_prompt:
        embeddings[0] = 0.0
        text_embeds[0] = 0.0
    side = float(plan.latent_size * checkpoint.vae_scale_factor)
    last = [side, side] if checkpoint.family.time_ids == 6 else [AESTHETIC_SCORE]
    time_ids = torch.tensor([[side, side, 0.0, 0.0, *last]]).repeat(len(embeddings), 1)
    return Words({**tensors, "text_embeds": text_embeds, "time_ids": time_ids})


def gate_walks(
    modules: Modules,
    words: Words,
    plan: TrajectoryPlan,
    pictures: PictureChannels,
    advance: Callable[[int], None],
) -> tuple[list[Call], list[torch.Tensor]]:
    """Walk the gate prompts: some of the UNet's calls, and the latents at the ends. `advance` hears of each call."""
    calls: list[Call] = []
    finished = []
    each = max(1, -(-plan.gate_calls // plan.gate_prompts))
    with torch.inference_mode():
        for index, seed in enumerate(plan.gate_seeds):
            pair = words.rows(0, index + 1)
            kept = {round(step) for step in np.linspace(index % 2, plan.steps - 1, each)}
            way = walk(modules, pair, plan, pictures, seed=seed)
            for step, (sample, timestep, prediction) in enumerate(way):
                if timestep < 0:
                    finished.append(sample)
                elif step in kept:
                    calls.append(_denoiser_call(sample, timestep, pair, prediction))
                advance(1)
    return calls, finished


def calibration_walks(
    modules: Modules,
    words: Words,
    plan: TrajectoryPlan,
    pictures: PictureChannels,
    kept_calls: int,
    advance: Callable[[int], None],
) -> tuple[list[Call], list[torch.Tensor]]:
    """Walk the calibration prompts: some of the UNet's calls, and the latents at the ends.

    Whoever watches the UNet meanwhile sees every step of every prompt.
    """
    kept: list[Call] = []
    finished = []
    every = max(1, plan.calibration_prompts * plan.steps // max(1, kept_calls))
    count = 0
    with torch.inference_mode():
        for index, seed in enumerate(plan.calibration_seeds):
            pair = words.rows(0, index + 1)
            for sample, timestep, prediction in walk(modules, pair, plan, pictures, seed=seed):
                if timestep < 0:
                    finished.append(sample)
                elif count % every == every // 2:
                    kept.append(_denoiser_call(sample, timestep, pair, prediction))
                count += timestep >= 0
                advance(1)
    return kept, finished


def decoder_call(modules: Modules, role: str, latents: torch.Tensor) -> Call:
    """A decoder's call on finished latents; the tiny one takes them as the denoiser left them."""
    scaled = latents if role == "tiny_decoder" else latents / modules.scaling_factor + modules.shift_factor
    with torch.inference_mode():
        image = modules.wrapped(role)(latent_sample=scaled)
    return Call({"latent_sample": scaled.numpy()}, image.numpy())


def encoder_call(modules: Modules, role: str, image: NDArray[np.float32]) -> Call:
    """An encoder's call on a decoded picture."""
    image = image.clip(-1, 1)
    with torch.inference_mode():
        parameters = modules.wrapped(role)(sample=torch.from_numpy(image))
    return Call({"sample": image}, parameters.numpy())


def _denoiser_call(sample: torch.Tensor, timestep: float, pair: Words, prediction: torch.Tensor) -> Call:
    feed = {
        "sample": torch.cat([sample, sample]).numpy().copy(),
        "timestep": np.array(timestep, dtype=np.float32),
        **pair.feed(),
    }
    return Call(feed, prediction.numpy().copy())
