"""Which adapters there are, how large they are and how long they train: facts alone. No code of training here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..recipe import RUNS

HERE = Path(__file__).parent
RUN = RUNS / "adapters"  # caches, logs and resumable state; never in git
EDGES = HERE / "edges"  # the ControlNet's bundle
MUSHROOM_JUDGE = HERE / "mushroom-judge.safetensors"

PICTURES = 128  # pixels a side
CANNY = "canny:60-120"  # what the ControlNet is shown, as `--control-preprocess` takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe:
    """One LoRA. Samples count pictures seen."""

    name: str
    pictures: int  # rendered once and cached
    plain: int = 0  # pictures of the world as it is, beside them, so that its other words stay as they are
    rank: int = 4
    layers: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
    batch: int = 8
    samples: int
    learning_rate: float = 2e-3
    seed: int = 0

    @property
    def file(self) -> Path:
        return HERE / f"{self.name}.safetensors"


LORAS = {
    recipe.name: recipe
    for recipe in (
        LoraRecipe(name="mushroom", pictures=1500, plain=750, samples=8_000),
        LoraRecipe(name="cyanotype", pictures=1000, samples=10_000),
        LoraRecipe(name="pixel-art", pictures=1000, samples=4_000),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRecipe:
    """The ControlNet. It has no attention: edges say where, and the denoiser itself reads the words."""

    pictures: int = 3000
    picture_channels: tuple[int, ...] = (16, 32, 64)  # of the layers that read the edges; the factor is 4
    batch: int = 8
    samples: int = 17_000
    learning_rate: float = 1.5e-3
    ema_decay: float = 0.995
    gain: float = 3.4  # of what it adds, as shipped: at weight 1 edges are followed best, chosen on prompts of training
    seed: int = 0


CONTROL = ControlRecipe()
