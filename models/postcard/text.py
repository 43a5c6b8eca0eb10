"""Stage 2: the text encoder learns what captions state, one attribute at a time, before any picture is drawn.

CLIP's text half is trained against pictures; the world knows what each caption states, so ours is trained against
that: from the embedding of the end token, one linear head an attribute, "not stated" among its answers. The heads
are thrown away; the encoder is frozen while the denoiser trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from .captions import caption
from .progress import Stage, set_learning_rate, warmup_then_cooldown
from .recipe import MAX_TOKENS, Recipe
from .scene import ATTRIBUTES, Scene, random_scene
from .tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

LEARNING_RATE = 1e-3
COMPLETE_SHARE = 0.35  # of the captions state all seven attributes


def load_tokenizer(recipe: Recipe) -> CLIPTokenizer:
    """The run's tokenizer; learnt from 20,000 captions the first time."""
    from transformers import CLIPTokenizer

    folder = recipe.folder / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        rng = np.random.default_rng(3)
        train_tokenizer((caption(random_scene(rng), rng)[0] for _ in range(20_000)), folder, max_tokens=MAX_TOKENS)
    return CLIPTokenizer.from_pretrained(folder)


def make_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=recipe.text_heads,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            projection_dim=recipe.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def write_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, frozenset[str]]:
    return caption(scene, rng, complete=rng.random() < COMPLETE_SHARE)


def embed(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str], *, length: int | None = None
) -> torch.Tensor:
    """Captions to (n, length, width); 77 tokens as at inference, or only as many as the longest needs (length=0)."""
    batch = tokenizer(
        captions,
        padding="longest" if length == 0 else "max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    # No attention mask: Stable Diffusion 1.x attends to the padding too.
    return encoder(batch.input_ids.to(encoder.device)).last_hidden_state


def train_text_encoder(recipe: Recipe, device: torch.device) -> CLIPTextModel:
    """Train or resume; returns the encoder in evaluation mode, its parameters frozen."""
    tokenizer = load_tokenizer(recipe)
    encoder = make_text_encoder(recipe, tokenizer).to(device)
    heads = torch.nn.ModuleList(torch.nn.Linear(recipe.text_width, len(v) + 1) for v in ATTRIBUTES.values()).to(device)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-2)
    parts = {"model": encoder, "heads": heads, "optimizer": optimizer}
    stage = Stage(recipe.folder, "text", recipe.text_samples)
    stage.resume(parts)
    rng = np.random.default_rng((4, stage.samples))
    right: list[float] = []
    while stage.samples < stage.total:
        scenes = [random_scene(rng) for _ in range(recipe.text_batch)]
        captions, stated = zip(*(write_caption(scene, rng) for scene in scenes), strict=True)
        targets = torch.tensor(
            [
                [
                    i if name in said else len(values)
                    for (name, values), i in zip(ATTRIBUTES.items(), s.indices(), strict=True)
                ]
                for s, said in zip(scenes, stated, strict=True)
            ],
            device=device,
        )
        factor = warmup_then_cooldown(
            stage.samples, stage.total, warmup=50 * recipe.text_batch, cooldown=recipe.cooldown
        )
        set_learning_rate(optimizer, LEARNING_RATE, factor)
        end = embed(encoder, tokenizer, list(captions), length=0)[:, -1]  # the last token is EOS or its padding
        logits = [head(end) for head in heads]
        loss = torch.stack([F.cross_entropy(x, targets[:, i]) for i, x in enumerate(logits)]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right.append(float(torch.stack([(x.argmax(1) == targets[:, i]) for i, x in enumerate(logits)]).float().mean()))
        stage.samples += recipe.text_batch
        if len(right) == 50:
            stage.log(loss=float(loss.detach()), accuracy=float(np.mean(right)))
            right.clear()
        stage.save_if_due(parts)
    stage.save(parts)
    return encoder.eval().requires_grad_(False)
