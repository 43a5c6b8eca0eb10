"""What is traced of diffusers' and transformers' own modules means the same after lowering, at any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tintype.engine import graph_session

pytestmark = [pytest.mark.slow, pytest.mark.reference]

GATE_DB = 80.0


@dataclass(frozen=True)
class Exported:
    """A canonical graph and the module that it came from."""

    path: Path
    module: object

    def torch_says(self, *arrays):
        import torch

        with torch.no_grad():
            said = self.module(*(torch.from_numpy(array) for array in arrays))
        return (said[0] if isinstance(said, tuple) else said).numpy()


def psnr_db(result, reference):
    error = np.mean((result.astype(np.float64) - reference) ** 2)
    return 10 * np.log10(np.ptp(reference) ** 2 / error)


def _export(folder, module, plan):
    import torch

    from tintype.export.known_graphs import graph_of
    from tintype.export.storage import save_graph

    with torch.no_grad():  # norms and biases start at ones and zeros, which would hide mistakes
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    save_graph(graph_of(module.eval(), plan), folder / "model.onnx")
    return Exported(folder / "model.onnx", module)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    import torch
    from diffusers import UNet2DConditionModel

    from tintype.export.tracing import TracePlan
    from tintype.export.wrappers import Denoiser

    torch.manual_seed(1)
    module = UNet2DConditionModel(
        sample_size=32, block_out_channels=(32, 64, 96), layers_per_block=1, cross_attention_dim=48,
        attention_head_dim=8, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    latents, words = {0: "batch", 2: "height", 3: "width"}, {0: "batch", 1: "sequence"}
    inputs = {
        "sample": torch.randn(2, 4, 32, 24),
        "timestep": torch.tensor([7.0]),
        "encoder_hidden_states": torch.randn(2, 77, 48),
    }
    dims = {"sample": latents, "timestep": {}, "encoder_hidden_states": words}
    plan = TracePlan(inputs, dims, {"out_sample": latents}, {"height": 4, "width": 4})
    return _export(tmp_path_factory.mktemp("unet"), Denoiser(module), plan)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    import torch
    from diffusers import AutoencoderKL

    from tintype.export.wrappers import VaeDecoder, vae_decoder_plan

    torch.manual_seed(2)
    module = AutoencoderKL(
        block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    return _export(tmp_path_factory.mktemp("vae"), VaeDecoder(module), vae_decoder_plan(4))


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from tintype.export.wrappers import TextEncoder, text_encoder_plan

    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77,
    )  # fmt: skip
    plan = text_encoder_plan(False, "text_encoder", 77, 3)
    return _export(tmp_path_factory.mktemp("clip"), TextEncoder(CLIPTextModel(config)), plan)


def test_the_unet_at_any_size_batch_and_prompt_length(unet, random):
    with graph_session(unet.path, threads=1) as lowered, graph_session(unet.path, lowered=False, threads=1) as plain:
        assert lowered.placement.count("MultiHeadAttention") == 14
        assert lowered.placement.count("Attention") == 0
        for batch, height, width, sequence in ((1, 32, 32, 77), (2, 20, 28, 77), (3, 8, 4, 154), (4, 16, 12, 1)):
            sample = random.standard_normal((batch, 4, height, width), np.float32)
            words = random.standard_normal((batch, sequence, 48), np.float32)
            time = np.array([random.uniform(0, 999)], np.float32)
            feed = {"sample": sample, "timestep": time, "encoder_hidden_states": words}
            result = lowered.run(feed)["out_sample"]
            assert psnr_db(result, plain.run(feed)["out_sample"]) >= GATE_DB
            assert psnr_db(result, unet.torch_says(sample, time, words)) >= GATE_DB


def test_the_vae_decoder_at_any_size(decoder, random):
    with graph_session(decoder.path, threads=1) as lowered:
        for batch, height, width in ((1, 32, 32), (2, 5, 9), (4, 16, 1)):
            latents = random.standard_normal((batch, 4, height, width), np.float32)
            result = lowered.run({"latent_sample": latents})["sample"]
            assert result.shape == (batch, 3, 4 * height, 4 * width)
            assert psnr_db(result, decoder.torch_says(latents)) >= GATE_DB


def test_the_text_encoder_looks_back_only(text_encoder, random):
    with graph_session(text_encoder.path, threads=1) as lowered:
        assert lowered.placement.count("MultiHeadAttention") == 3
        for batch in (1, 2, 3, 4):
            ids = random.integers(0, 300, (batch, 77))
            result = lowered.run({"input_ids": ids})["last_hidden_state"]
            assert psnr_db(result, text_encoder.torch_says(ids)) >= GATE_DB
        changed = ids.copy()
        changed[:, 40:] = 5
        again = lowered.run({"input_ids": changed})["last_hidden_state"]
        np.testing.assert_array_equal(result[:, :40], again[:, :40])
