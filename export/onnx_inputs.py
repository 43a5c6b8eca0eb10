"""Real inputs of a folder's graphs, without torch: what each meets when pictures are made, as `trajectories` has them.

Prompts are encoded by the folder's own text encoders, latents are walked with guidance by the runtime's DDIM, the last
ones go to the decoder, and what it makes to the encoder. Gates, calibration and trials use different words and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents
from tintype.export.calls import Call, Feed, TrajectoryPlan
from tintype.export.checkpoint import Checkpoint
from tintype.export.tokenizer import BundleTokenizer
from tintype.families.stable_diffusion import guidance_embedding
from tintype.families.stable_diffusion_xl_refiner import AESTHETIC_SCORE
from tintype.sampling import PARAMETRIZATIONS, SAMPLERS, Denoised, SchedulerConfig, make_schedule, noise_source

Outputs = Mapping[str, NDArray[np.float32]]
Answer = Callable[[Feed], Outputs]  # a graph's outputs by name


def text_feed(tokenizer: BundleTokenizer, texts: Sequence[str]) -> Feed:
    """All texts as one batch, after one without words."""
    return {"input_ids": np.array([tokenizer.ids(text) for text in ("", *texts)], np.int64)}


def words_of(checkpoint: Checkpoint, texts: Mapping[str, Outputs], plan: TrajectoryPlan) -> Feed:
    """The same texts' outputs of every text encoder as the denoiser's inputs, a row a text; the first is the empty one.

    As `trajectories.words_of`.
    """
    embeddings = np.concatenate([next(iter(outputs.values())) for outputs in texts.values()], axis=-1)
    words: Feed = {"encoder_hidden_states": embeddings}
    if checkpoint.guidance_embedding is not None:
        told = guidance_embedding(plan.guidance_scale, checkpoint.guidance_embedding)
        words["timestep_cond"] = np.repeat(told, len(embeddings), axis=0)
    if not checkpoint.family.is_xl:
        return words
    text_embeds = texts["text_encoder_2"]["text_embeds"].copy()
    if checkpoint.force_zeros_for_empty_prompt:
        embeddings[0] = text_embeds[0] = 0.0
    side = float(plan.latent_size * checkpoint.vae_scale_factor)
    last = [side, side] if checkpoint.family.time_ids == 6 else [AESTHETIC_SCORE]
    time_ids = np.array([[side, side, 0.0, 0.0, *last]] * len(embeddings), np.float32)
    return {**words, "text_embeds": text_embeds, "time_ids": time_ids}


class Walks:
    """Walks down one denoiser's own timesteps."""

    def __init__(self, checkpoint: Checkpoint, words: Feed, plan: TrajectoryPlan, answer: Answer) -> None:
        self._words, self._plan, self._answer = words, plan, answer
        self._shape = (1, checkpoint.latent_channels, plan.latent_size, plan.latent_size)
        self._config = SchedulerConfig.from_json(checkpoint.configs["scheduler"])
        self._parametrization = PARAMETRIZATIONS[checkpoint.prediction_type]
        told_guidance = checkpoint.guidance_embedding is not None  # its predictions are guided as they come
        self._scale = np.float32(1.0 if told_guidance else plan.guidance_scale)
        self.finished: list[Latents] = []  # at the ends, as the denoiser leaves them

    def gates(self) -> list[Call]:
        """The gate prompts' walks: some of their calls, spread over the steps."""
        calls = []
        plan = self._plan
        each = max(1, -(-plan.gate_calls // plan.gate_prompts))
        for index, seed in enumerate(plan.gate_seeds):
            kept = {round(step) for step in np.linspace(index % 2, plan.steps - 1, each)}
            calls += [call for step, call in enumerate(self._walk(index + 1, seed)) if step in kept]
        return calls

    def calibration(self, kept_calls: int, advance: Callable[[int], None]) -> list[Call]:
        """The calibration prompts' walks, each step of which is answered; some of their calls."""
        calls, count, plan = [], 0, self._plan
        every = max(1, plan.calibration_prompts * plan.steps // max(1, kept_calls))
        for index, seed in enumerate(plan.calibration_seeds):
            for call in self._walk(index + 1, seed):
                if count % every == every // 2:
                    calls.append(call)
                count += 1
                advance(1)
        return calls

    def _walk(self, row: int, seed: int) -> Iterator[Call]:
        """One prompt's way from noise to latents, call by call: unconditional first, then the words."""
        schedule, noise = make_schedule(self._config, "ddim", self._plan.steps), noise_source("numpy", [seed])
        pair = {name: rows[[0, row]] for name, rows in self._words.items()}
        made: list[Call] = []

        def denoise(latents: Latents, sigma: float, timestep: float) -> Denoised:
            sample = self._parametrization.model_input(latents, sigma).astype(np.float32)
            told = np.array(self._parametrization.timestep(sigma, timestep), np.float32)
            feed = {"sample": np.repeat(sample, 2, axis=0), "timestep": told, **pair}
            prediction = self._answer(feed)["out_sample"]
            made.append(Call(feed, prediction))
            guided = prediction[:1] + self._scale * (prediction[1:] - prediction[:1])
            return Denoised.unguided(self._parametrization.denoised(guided, latents, sigma))

        latents = noise.draw(self._shape) * np.float32(schedule.initial_scale)
        for step in SAMPLERS["ddim"](denoise, latents, schedule, noise):
            latents = step.latents
            yield made.pop()
        self.finished.append(schedule.to_model_space(latents).astype(np.float32))


def decoder_feed(checkpoint: Checkpoint, latents: Latents) -> Feed:
    """Finished latents as the decoder takes them."""
    scaled = latents / np.float32(checkpoint.scaling_factor) + np.float32(checkpoint.shift_factor)
    return {"latent_sample": scaled.astype(np.float32)}
