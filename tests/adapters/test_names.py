"""Names of layers in files of LoRAs are those of the model's layers, whoever wrote the file."""

from __future__ import annotations

import json

import pytest

from tintype.adapters.names import (
    DENOISER,
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    by_plain_name,
    ldm_names,
    plain,
    role_of,
    split_name,
)

PLACE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
WORD = "encoder.layers.3.self_attn.q_proj"
SAID = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": (DENOISER, PLACE, "down"),
    f"unet.{PLACE}.lora_A.weight": (DENOISER, PLACE, "down"),
    f"unet.{PLACE}.lora.up.weight": (DENOISER, PLACE, "up"),
    f"{PLACE}.lora_B.default.weight": (DENOISER, PLACE, "up"),
    f"unet.{PLACE.removesuffix('.to_q')}.processor.to_q_lora.down.weight": (DENOISER, PLACE, "down"),
    "lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha": (TEXT_ENCODER, WORD, "alpha"),
    "lora_te1_text_model_encoder_layers_3_self_attn_q_proj.hada_w1_a": (TEXT_ENCODER, WORD, "w1_a"),
    "lora_te2_text_model_encoder_layers_3_self_attn_q_proj.lokr_w2": (TEXT_ENCODER_2, WORD, "k2"),
    f"text_encoder.text_model.{WORD}.lora_linear_layer.up.weight": (TEXT_ENCODER, WORD, "up"),
    f"text_encoder_2.text_model.{WORD}.lora_B.weight": (TEXT_ENCODER_2, WORD, "up"),
    f"unet.{PLACE}.lora_magnitude_vector": (DENOISER, PLACE, "magnitude"),
}


@pytest.mark.parametrize("tensor", SAID)
def test_every_naming(tensor):
    role, place, part = SAID[tensor]
    split = split_name(tensor)
    assert split is not None
    found = role_of(split[0])
    assert found is not None
    known = by_plain_name(role, [PLACE, WORD])
    assert (found[0], known[plain(found[1])], split[1]) == (role, place, part)


def test_the_old_output_projection_has_a_number_by_now():
    assert split_name("mid_block.attentions.0.x.attn1.processor.to_out_lora.up.weight") == (
        "mid_block.attentions.0.x.attn1.to_out.0",
        "up",
    )


@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "xl_checkpoint"])
def test_ldms_names_are_those_that_an_export_of_one_file_knows(request, checkpoint):
    """The exporter has its own table, the other way round and made of other things: shapes."""
    from loras import weights_of

    from tintype.export.sources.ldm_unet import LdmUNet

    weights = weights_of(request.getfixturevalue(checkpoint), "unet")
    config = json.loads((request.getfixturevalue(checkpoint) / "unet/config.json").read_text())
    assert config["layers_per_block"] == 1
    ours = ldm_names(weights)
    assert set(ours) == set(weights)
    shapes = {f"{old}.weight": weights[name].shape for name, old in ours.items()}
    theirs = LdmUNet.of(request.getfixturevalue(checkpoint), shapes).names()
    assert {old.removesuffix(".weight"): new.removesuffix(".weight") for old, new in theirs.items()} == {
        old: name for name, old in ours.items()
    }
