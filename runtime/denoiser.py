"""The denoiser graph as a function of latents and timestep, guided, in the shapes and types that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tintype.bundle import Graph
from tintype.conditioning import Conditioning
from tintype.request import ResolvedRequest
from tintype.sampling import Latents, denoised_from, guide, model_input, rescale_guidance

if TYPE_CHECKING:
    from tintype.engine import Session


class Denoiser:
    """Noisy latents -> denoised latents, for one request; what a sampler calls `denoise`.

    A call whose answer isn't finite is made again on the graph that computes in float32, and so are all that follow.
    """

    def __init__(
        self,
        session: Session,
        graph: Graph,
        conditioning: Conditioning,
        request: ResolvedRequest,
        prediction_type: str,
        pictures: int,
        in_float: Callable[[], Session | None] = lambda: None,
    ) -> None:
        """conditioning: of 1 or 2 prompts; two are the negative prompt and the prompt, and guide.

        pictures: how many are denoised together. What depends on the words alone is computed here, once.
        in_float: opens the graph in float32; None when it is that one already.
        """
        self._prompts = len(conditioning.embeddings)
        told = {"encoder_hidden_states": conditioning.embeddings, **conditioning.added}
        self._kept = {name: np.repeat(rows, pictures, axis=0) for name, rows in told.items()}
        self._session, self._in_float = session, in_float
        self._held = session.hold(self._kept)
        self._before = 0.0  # seconds that sessions given up spent in their graphs
        self._request = request
        self._prediction_type = prediction_type
        timestep = next(port for port in graph.inputs if port.name == "timestep")
        self._timestep_type = np.dtype(timestep.dtype)
        self._timestep_shape = timestep.shape

    def __call__(self, latents: Latents, sigma: float, timestep: float) -> Latents:
        """Latents at noise level sigma, (batch, channels, height, width) -> what the model takes the pictures to be."""
        prediction = self._guided(model_input(latents, sigma), timestep)
        return denoised_from(prediction, latents, sigma, self._prediction_type)

    @property
    def graph_seconds(self) -> float:
        """Spent inside the graph, by this and by earlier users of its session."""
        return self._before + self._session.run_seconds

    def _guided(self, latents: Latents, timestep: float) -> Latents:
        """The model's prediction; with guidance one call on a batch twice as large."""
        prediction = self._run(np.concatenate([latents] * self._prompts), timestep)
        if self._prompts == 1:
            return prediction
        unconditional, conditional = np.split(prediction, 2)
        guided = guide(conditional, unconditional, self._request.guidance_scale)
        if self._request.guidance_rescale == 0:
            return guided
        return rescale_guidance(guided, conditional, self._request.guidance_rescale)

    def _run(self, sample: Latents, timestep: float) -> Latents:
        shape = tuple(len(sample) if isinstance(size, str) else size for size in self._timestep_shape)
        inputs: dict[str, NDArray[Any]] = {
            "sample": sample.astype(np.float32, copy=False),
            "timestep": np.full(shape, timestep, dtype=self._timestep_type),
        }
        answer = self._held.run(inputs)["out_sample"].astype(np.float32, copy=False)
        if np.isfinite(answer).all() or not self._turn_to_float():
            return answer
        return self._held.run(inputs)["out_sample"].astype(np.float32, copy=False)

    def _turn_to_float(self) -> bool:
        """Go on with the graph in float32; whether there is one besides the one in use."""
        before = self._before + self._session.run_seconds
        session = self._in_float()
        if session is None:
            return False
        self._before, self._session = before - session.run_seconds, session
        self._held, self._in_float = session.hold(self._kept), lambda: None
        return True
