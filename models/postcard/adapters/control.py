"""Train postcard's ControlNet of edges, or go on where its last run stopped; then its bundle. Needs the extra export.

    python -m tintype.models.postcard.adapters.control [--stage train|pack|all]

A ControlNet (Zhang et al. 2023) as diffusers builds one, without attention: it begins as the denoiser's own residual
blocks, and is shown edges that our preprocessor finds. About an hour and a half of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..autoencoder import to_pixels
from ..denoiser import SNR_LIMIT, SUBJECT_WEIGHT
from ..progress import Ema, Stage, set_learning_rate, warmup_then_cooldown
from .model import Base, chosen_words
from .pictures import cached, draw
from .recipe import CONTROL, EDGES, RUN, ControlRecipe

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

EDGE_WEIGHT = 4.0  # of what the decoded picture's edges add to the loss


def make_controlnet(unet: UNet2DConditionModel, recipe: ControlRecipe) -> ControlNetModel:
    """A new one for a denoiser, with the denoiser's weights where both have such a layer."""
    from diffusers import ControlNetModel

    config = unet.config
    net = ControlNetModel(
        in_channels=config.in_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownBlock2D",) * len(config.block_out_channels),
        mid_block_type="UNetMidBlock2D",
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        conditioning_embedding_out_channels=recipe.picture_channels,
    )
    mine = net.state_dict()
    shared = {name: value for name, value in unet.state_dict().items() if name in mine}
    net.load_state_dict(mine | shared)
    return net.to(memory_format=torch.channels_last)


def control_loss(
    base: Base, net: ControlNetModel, latents: torch.Tensor, words: torch.Tensor, edges: torch.Tensor,
    weights: torch.Tensor, pixels: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """As `denoiser.v_loss`, of the denoiser with what the ControlNet adds to it; and where the picture's edges are.

    pixels: the pictures themselves at these places of the batch, (n, 3, height, width) in -1..1.
    """
    timesteps = torch.randint(0, len(base.alphas), (len(latents),))
    alpha = base.alphas[timesteps].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    with torch.autocast("cpu", torch.bfloat16):
        down, middle = net(noisy, timesteps, words, edges, return_dict=False)
        predicted = base.unet(
            noisy, timesteps, words, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample.float()
    error = (predicted - target).square()
    snr = alpha / (1 - alpha)
    plain = (error * weights * snr.clamp(max=SNR_LIMIT) / (snr + 1) * 2.0).mean()
    clearest = timesteps.argsort()[: len(timesteps) // 2]  # of less noise, where a picture can be told from the latents
    denoised = (alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted)[clearest]
    with torch.autocast("cpu", torch.bfloat16):
        decoded = base.vae.decode(denoised / base.scaling_factor).sample.float()
    return plain + EDGE_WEIGHT * (alpha[clearest] * gradient_error(decoded, pixels(clearest))).mean()


def gradient_error(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """How far differences between neighbouring greys are from those of the picture, (n, 1, 1, 1), the mean."""
    error = (decoded - pixels).mean(dim=1, keepdim=True)
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return across.abs().mean(dim=(1, 2, 3), keepdim=True) + down.abs().mean(dim=(1, 2, 3), keepdim=True)


def train(recipe: ControlRecipe) -> None:
    """Train to the end; the state file has the weights."""
    data, base = cached("plain", recipe.pictures), Base.load()
    embeddings = base.words(data.captions.tolist())
    torch.manual_seed(recipe.seed)
    net = make_controlnet(base.unet, recipe)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    ema = Ema(net, recipe.ema_decay)
    parts = {"model": net, "optimizer": optimizer, "ema": ema}
    stage = Stage(RUN, "edges", recipe.samples, save_seconds=60)
    stage.resume(parts)
    rng = np.random.default_rng((recipe.seed, stage.samples))
    torch.manual_seed(recipe.seed + stage.samples)
    losses: list[float] = []
    while stage.samples < stage.total:
        chosen = rng.integers(0, len(data), recipe.batch)
        latents, edges = data.latents(chosen, base.scaling_factor), data.edge_pictures(chosen)
        weights = 1.0 + SUBJECT_WEIGHT * torch.from_numpy(data.masks[chosen]).float()[:, None] / 255.0
        words = chosen_words(embeddings, chosen, rng)
        factor = warmup_then_cooldown(stage.samples, stage.total, warmup=50 * recipe.batch, cooldown=0.3)
        set_learning_rate(optimizer, recipe.learning_rate, factor)
        loss = control_loss(base, net, latents, words, edges, weights, partial(_pixels, chosen))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        ema.update(net)
        losses.append(float(loss.detach()))
        stage.samples += recipe.batch
        if len(losses) == 50:
            stage.log(loss=float(np.mean(losses)))
            losses.clear()
        stage.save_if_due(parts)
    stage.save(parts)


def _pixels(chosen: NDArray[np.int64], places: torch.Tensor) -> torch.Tensor:
    """The renders that these training pictures were encoded from; their latents have softer edges."""
    return to_pixels(np.stack([_render(int(chosen[place])) for place in places]), torch.device("cpu"))


@cache
def _render(index: int) -> NDArray[np.uint8]:
    return draw("plain", index)[0]


def pack(recipe: ControlRecipe) -> None:
    """The average weights of the state as it is now, finished or not, as the bundle that is shipped."""
    from tintype.export import export_bundle
    from tintype.export.command import show

    net = make_controlnet(Base.load().unet, recipe)
    state = torch.load(RUN / "edges.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(state["ema"]["shadow"])
    with torch.no_grad():
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            layer.weight.mul_(recipe.gain)
            layer.bias.mul_(recipe.gain)
    net.save_pretrained(RUN / "edges")
    report = export_bundle(
        RUN / "edges", EDGES, precision="int8", name="postcard-edges", licence="apache-2.0", overwrite=True
    )
    show(report, EDGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("train", "pack", "all"), default="all")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.stage in ("train", "all"):
        train(CONTROL)
    if options.stage in ("pack", "all"):
        pack(CONTROL)


if __name__ == "__main__":
    main()
