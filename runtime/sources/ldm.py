"""How latent-diffusion's files name the modules of a UNet, by diffusers' names for them.

The names are those of openaimodel.py in CompVis/latent-diffusion, beside them those of diffusers'
convert_ldm_unet_checkpoint. Blocks on the way in and out are counted through, so that they are in no table.
"""

from __future__ import annotations

AROUND = {
    "input_blocks.0.0": "conv_in", "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2", "out.0": "conv_norm_out",
    "out.2": "conv_out", "time_embed.cond_proj": "time_embedding.cond_proj",
}  # fmt: skip
MIDDLE = {"middle_block.0": "resnets.0", "middle_block.1": "attentions.0", "middle_block.2": "resnets.1"}
RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
