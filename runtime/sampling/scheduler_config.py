"""What a checkpoint's scheduler_config.json says about the noise it was trained with; frozen, and nothing else.

Keys that no sampler here needs are ignored. A key that would change the picture in a way that isn't done here is
refused by name, so that a checkpoint is never sampled as something it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from tintype.errors import BundleError, near_names
from tintype.sampling.parametrization import PREDICTION_TYPES

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

MAX_NUMBER = 1e6  # of any key; beyond it a whole number may be no float
MAX_TRAIN_TIMESTEPS = 10_000
MAX_TIMESTEP_SCALING = 1e4
LEAST_SHARE = 1e-16  # of the picture that training left; less makes infinite noise levels

# Settings of diffusers that change the picture and aren't done here, with the values that leave it as it is.
_HARMLESS: dict[str, tuple[object, ...]] = {
    "thresholding": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "predict_x0": (True, None),
    "timestep_type": ("discrete", None),
    "interpolation_type": ("linear", None),
    "variance_type": ("fixed_small", "fixed_small_log", None),
    "sigma_min": (None,),
    "sigma_max": (None,),
}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The noise schedule of a checkpoint. None where each sampler has a default of its own."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    final_sigmas_type: str = "zero"
    lower_order_final: bool = True
    euler_at_final: bool = False
    solver_order: int = 2  # of unipc and deis; the other samplers have their order in their name
    solver_type: str = "bh2"  # of unipc
    predictor_order: int = 2  # of sa_solver, as the next
    corrector_order: int = 2
    original_inference_steps: int = 50  # of lcm
    timestep_scaling: float = 10.0  # of lcm

    @classmethod
    def from_json(cls, config: object) -> SchedulerConfig:
        """From a diffusers scheduler_config.json of any scheduler; BundleError for a value that can't be honoured."""
        if not isinstance(config, Mapping):
            _refuse("it is no object")
        for key, harmless in _HARMLESS.items():
            if config.get(key) not in harmless:
                raise BundleError(
                    f"the checkpoint's scheduler has {key} = {config[key]!r}, which Tintype doesn't do",
                    fix=f"remove {key} from scheduler_config.json if the model works without it",
                )
        known = {key: value for key, value in config.items() if key in cls.__dataclass_fields__ and value is not None}
        if "trained_betas" in known:
            known["trained_betas"] = tuple(_number("trained_betas", beta) for beta in _list(known["trained_betas"]))
        _check_types(known)
        result = cls(**known)
        result._check_values()
        return result

    def _check_values(self) -> None:
        _one_of("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _one_of("final_sigmas_type", self.final_sigmas_type, ("zero", "sigma_min"))
        if self.timestep_spacing is not None:
            _one_of("timestep_spacing", self.timestep_spacing, TIMESTEP_SPACINGS)
        if self.trained_betas is None:
            _one_of("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        elif len(self.trained_betas) != self.num_train_timesteps:
            _refuse(f"{len(self.trained_betas)} trained_betas for {self.num_train_timesteps} training timesteps")
        if not 2 <= self.num_train_timesteps <= MAX_TRAIN_TIMESTEPS:
            _refuse(f"num_train_timesteps = {self.num_train_timesteps}")
        betas = self.trained_betas or (self.beta_start, self.beta_end)
        if not all(0.0 < beta < 1.0 for beta in betas):
            _refuse("betas outside 0 .. 1")
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            _refuse(f"steps_offset = {self.steps_offset}")
        if not 1 <= self.solver_order <= 3:
            _refuse(f"solver_order = {self.solver_order}")
        for key, order in (("predictor_order", self.predictor_order), ("corrector_order", self.corrector_order)):
            if not 1 <= order <= 4:
                _refuse(f"{key} = {order}")
        if not 1 <= self.original_inference_steps <= self.num_train_timesteps:
            _refuse(f"original_inference_steps = {self.original_inference_steps}")
        if not 0.0 < self.timestep_scaling <= MAX_TIMESTEP_SCALING:
            _refuse(f"timestep_scaling = {self.timestep_scaling}")
        self._check_noise()

    def _check_noise(self) -> None:
        """Each training timestep has more noise than the one before, and none so much or little that floats lose it."""
        with np.errstate(all="ignore"):
            shares = self.alphas_cumprod
            falling = bool((np.diff(shares) < 0).all())
        least = shares[-2] if self.rescale_betas_zero_snr else shares[-1]
        if not (falling and shares[0] < 1.0 and least >= LEAST_SHARE):
            _refuse("its betas leave some timesteps without noise of their own, or without a picture")

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float32]:
        """The share of the picture (its variance) left at each training timestep; (num_train_timesteps,).

        Computed in the precision and order that training codes use, since the first entries (1 - 0.00085) lose half
        their digits in float32 and the trained model knows them as lost.
        """
        if self.rescale_betas_zero_snr:
            return _zero_terminal_snr(_cumulative(self._betas))
        return _cumulative(self._betas)

    @property
    def _betas(self) -> NDArray[np.float32]:
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            return np.array(self.trained_betas, dtype=np.float32)
        if self.beta_schedule == "linear":
            return _ramp(self.beta_start, self.beta_end, count)
        if self.beta_schedule == "scaled_linear":
            return _ramp(math.sqrt(self.beta_start), math.sqrt(self.beta_end), count) ** 2
        left = [math.cos((index / count + 0.008) / 1.008 * math.pi / 2) ** 2 for index in range(count + 1)]
        return np.array([min(1 - left[i + 1] / left[i], 0.999) for i in range(count)], dtype=np.float32)


def _ramp(start: float, end: float, count: int) -> NDArray[np.float32]:
    """Even steps in float32 from both ends towards the middle, as torch.linspace takes them."""
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(count - 1)
    index = np.arange(count, dtype=np.float32)
    return np.where(index < count // 2, first + step * index, last - step * index[::-1])


def _cumulative(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    alphas = np.float32(1) - betas
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _zero_terminal_snr(alphas_cumprod: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nothing of the picture left at the last timestep (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    shifted = root**2
    alphas = np.concatenate([shifted[:1], shifted[1:] / shifted[:-1]])
    return _cumulative(np.float32(1) - alphas)


def _list(value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        _refuse("trained_betas is not a list")
    return list(cast("list[object]", value))


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
        _refuse(f"{key} = {value!r}")
    return float(cast(float, value))


def _check_types(values: dict[str, Any]) -> None:
    """Numbers are numbers and flags are flags: the file comes from elsewhere."""
    defaults = {name: field.default for name, field in SchedulerConfig.__dataclass_fields__.items()}
    for key, value in values.items():
        expected = type(defaults[key])
        if key == "trained_betas":
            continue
        if key == "set_alpha_to_one":
            expected = bool
        elif key == "timestep_spacing":
            expected = str
        elif expected is float:
            values[key] = _number(key, value)
            expected = float
        if type(values[key]) is not expected:
            _refuse(f"{key} = {value!r}")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BundleError(
            f"the checkpoint's scheduler has {key} = {value!r}, which Tintype doesn't know",
            fix=f"{near_names(value, choices)} Correct scheduler_config.json",
        )


def _refuse(what: str) -> NoReturn:
    raise BundleError(f"the checkpoint's scheduler makes no sense: {what}", fix="correct scheduler_config.json")
