"""Train one of postcard's LoRAs, or go on where its last run stopped. Needs the extras export and train.

    python -m tintype.models.postcard.adapters.lora mushroom|cyanotype|pixel-art

Low-rank matrices (Hu et al. 2021) beside the linear layers of the denoiser's attention, by diffusers and PEFT, written
in fp16 as diffusers writes them. Half an hour of one core each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from ..denoiser import SUBJECT_WEIGHT, v_loss
from ..progress import Stage, set_learning_rate, warmup_then_cooldown
from .model import Base, chosen_words
from .pictures import Pictures, cached
from .recipe import LORAS, RUN, LoraRecipe


class _Adapter(torch.nn.Module):
    """The trained matrices of a UNet alone, by their names."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.names = [name for name, value in unet.named_parameters() if value.requires_grad]
        self.values = torch.nn.ParameterList(value for value in unet.parameters() if value.requires_grad)


def _pictures(recipe: LoraRecipe) -> Pictures:
    own = cached(recipe.name, recipe.pictures)
    return own + cached("plain", recipe.plain) if recipe.plain else own


def train(recipe: LoraRecipe) -> None:
    """Train to the end and write the file."""
    from peft import LoraConfig

    data, base = _pictures(recipe), Base.load()
    embeddings = base.words(data.captions.tolist())
    torch.manual_seed(recipe.seed)
    base.unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=list(recipe.layers)))
    adapter = _Adapter(base.unet)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    parts = {"model": adapter, "optimizer": optimizer}
    stage = Stage(RUN, recipe.name, recipe.samples, save_seconds=60)
    stage.resume(parts)
    rng = np.random.default_rng((recipe.seed, stage.samples))
    torch.manual_seed(recipe.seed + stage.samples)
    losses: list[tuple[float, float]] = []
    while stage.samples < stage.total:
        chosen = rng.integers(0, len(data), recipe.batch)
        latents = data.latents(chosen, base.scaling_factor)
        weights = 1.0 + SUBJECT_WEIGHT * torch.from_numpy(data.masks[chosen]).float()[:, None] / 255.0
        words = chosen_words(embeddings, chosen, rng)
        factor = warmup_then_cooldown(stage.samples, stage.total, warmup=20 * recipe.batch, cooldown=0.5)
        set_learning_rate(optimizer, recipe.learning_rate, factor)
        loss, error = v_loss(base.unet, latents, words, weights, base.alphas)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        losses.append((float(loss.detach()), float(error)))
        stage.samples += recipe.batch
        if len(losses) == 50:
            mean_loss, mean_error = np.mean(losses, axis=0)
            stage.log(loss=float(mean_loss), error=float(mean_error))
            losses.clear()
        stage.save_if_due(parts)
    stage.save(parts)
    write(base.unet, recipe.file)


def write(unet: torch.nn.Module, path: Path) -> None:
    """The matrices in fp16, named as diffusers names them."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = {
        name: value.half().contiguous()
        for name, value in convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)).items()
    }
    StableDiffusionPipeline.save_lora_weights(path.parent, unet_lora_layers=layers, weight_name=path.name)
    print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(LORAS))
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(LORAS[options.name])


if __name__ == "__main__":
    main()
