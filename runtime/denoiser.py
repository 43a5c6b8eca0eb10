"""The denoiser graph as a function of latents and timestep, guided, in the shapes and types that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype.arrays import Latents
from tintype.bundle import Graph
from tintype.conditioning import Conditioning
from tintype.request import ResolvedRequest
from tintype.sampling import denoised_from, guide, model_input, rescale_guidance

if TYPE_CHECKING:
    from tintype.engine.run.held import Held
    from tintype.engine.run.session import Session


class Denoiser:
    """Noisy latents -> denoised latents, for one request; what a sampler calls `denoise`.

    A call whose answer isn't finite is made again on the graph that computes in float32, and so are all that follow.
    """

    def __init__(
        self,
        session: Callable[[], Session],
        graph: Graph,
        conditioning: Conditioning,
        request: ResolvedRequest,
        prediction_type: str,
        pictures: int,
        *,
        split_guidance: bool = False,
        in_float: Callable[[], Callable[[], Session] | None] = lambda: None,
    ) -> None:
        """session: gives the graph's session, which may be another one than before when it had to make room.

        conditioning: of 1 or 2 prompts; two are the negative prompt and the prompt, and guide. pictures: how many are
        denoised together. split_guidance: a call for each prompt in place of one for both. in_float: gives what gives
        the same graph in float32; None when it is that one already.
        """
        self.graph_seconds = 0.0  # spent in the graph's steps so far
        self._session = session
        self._held: tuple[Session, list[Held]] | None = None
        self._prompts = len(conditioning.embeddings)
        told = {"encoder_hidden_states": conditioning.embeddings, **conditioning.added}
        rows = [slice(index, index + 1) for index in range(self._prompts)] if split_guidance else [slice(None)]
        self._told = [
            {name: np.repeat(values[part], pictures, axis=0) for name, values in told.items()} for part in rows
        ]
        self._in_float = in_float
        self._request = request
        self._prediction_type = prediction_type
        timestep = next(port for port in graph.inputs if port.name == "timestep")
        self._timestep_type = np.dtype(timestep.dtype)
        self._timestep_shape = timestep.shape

    def __call__(self, latents: Latents, sigma: float, timestep: float) -> Latents:
        """Latents at noise level sigma, (batch, channels, height, width) -> what the model takes the pictures to be."""
        prediction = self._guided(model_input(latents, sigma), timestep)
        return denoised_from(prediction, latents, sigma, self._prediction_type)

    def _guided(self, latents: Latents, timestep: float) -> Latents:
        """The model's prediction; with guidance one call on a batch twice as large, or two calls."""
        each = np.concatenate([latents] * (self._prompts // len(self._told)))
        predictions = [self._run(number, each, timestep) for number in range(len(self._told))]
        prediction = predictions[0] if len(predictions) == 1 else np.concatenate(predictions)
        if self._prompts == 1:
            return prediction
        unconditional, conditional = np.split(prediction, 2)
        guided = guide(conditional, unconditional, self._request.guidance_scale)
        if self._request.guidance_rescale == 0:
            return guided
        return rescale_guidance(guided, conditional, self._request.guidance_rescale)

    def _run(self, number: int, sample: Latents, timestep: float) -> Latents:
        shape = tuple(len(sample) if isinstance(size, str) else size for size in self._timestep_shape)
        inputs: dict[str, NDArray[Any]] = {
            "sample": sample.astype(np.float32, copy=False),
            "timestep": np.full(shape, timestep, dtype=self._timestep_type),
        }
        prediction = self._answer(number, inputs)
        if np.isfinite(prediction).all() or not self._turn_to_float():
            return prediction
        return self._answer(number, inputs)

    def _answer(self, number: int, inputs: Mapping[str, NDArray[Any]]) -> Latents:
        session, held = self._open()
        before = session.run_seconds
        prediction = held[number].run(inputs)["out_sample"].astype(np.float32, copy=False)
        self.graph_seconds += session.run_seconds - before
        return prediction

    def _open(self) -> tuple[Session, list[Held]]:
        """The session, and what depends on the words alone, computed once for it."""
        session = self._session()
        if self._held is None or self._held[0] is not session:
            self._held = None  # before the new ones are made
            self._held = (session, [session.hold(told) for told in self._told])
        return self._held

    def _turn_to_float(self) -> bool:
        """Go on with the graph in float32; whether there is one besides the one in use."""
        session = self._in_float()
        if session is None:
            return False
        self._session, self._in_float = session, lambda: None
        return True
