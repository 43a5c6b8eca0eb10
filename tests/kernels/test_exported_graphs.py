"""What torch exports of diffusers' and transformers' own modules means the same after lowering, at any size."""

from __future__ import annotations

import warnings
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
            return self.module(*(torch.from_numpy(array) for array in arrays)).numpy()


def psnr_db(result, reference):
    error = np.mean((result.astype(np.float64) - reference) ** 2)
    return 10 * np.log10(np.ptp(reference) ** 2 / error)


def _export(folder, name, module, arguments, inputs, dynamic_shapes):
    import torch

    for parameter in module.parameters():  # norms and biases start at ones and zeros, which would hide mistakes
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    path = folder / f"{name}.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, arguments, path, dynamo=True, opset_version=23, verbose=False, external_data=True,
            input_names=inputs, output_names=["out"], dynamic_shapes=dynamic_shapes,
        )  # fmt: skip
    return Exported(path, module)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    import torch
    from diffusers import UNet2DConditionModel

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = UNet2DConditionModel(
                sample_size=32, block_out_channels=(32, 64, 96), layers_per_block=1, cross_attention_dim=48,
                attention_head_dim=8, norm_num_groups=16,
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            )  # fmt: skip

        def forward(self, sample, timestep, encoder_hidden_states):
            return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]

    torch.manual_seed(1)
    batch, side = torch.export.Dim("batch"), 4 * torch.export.Dim("height")
    shapes = {
        "sample": {0: batch, 2: side, 3: 4 * torch.export.Dim("width")},
        "timestep": None,
        "encoder_hidden_states": {0: batch, 1: torch.export.Dim("sequence")},
    }
    arguments = (torch.randn(2, 4, 32, 24), torch.tensor(7.0), torch.randn(2, 77, 48))
    names = ["sample", "timestep", "encoder_hidden_states"]
    return _export(tmp_path_factory.mktemp("unet"), "unet", Module().eval(), arguments, names, shapes)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    import torch
    from diffusers import AutoencoderKL

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = AutoencoderKL(
                block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, latent_channels=4,
                down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            )  # fmt: skip

        def forward(self, latent_sample):
            return self.vae.decode(latent_sample, return_dict=False)[0]

    torch.manual_seed(2)
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    arguments, shapes = (torch.randn(2, 4, 32, 24),), {"latent_sample": dims}
    return _export(tmp_path_factory.mktemp("vae"), "vae", Module().eval(), arguments, ["latent_sample"], shapes)


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config = CLIPTextConfig(
                vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                max_position_embeddings=77,
            )  # fmt: skip
            self.encoder = CLIPTextModel(config)

        def forward(self, input_ids):
            return self.encoder(input_ids, return_dict=False)[0]

    torch.manual_seed(3)
    arguments, shapes = (torch.randint(0, 300, (2, 77)),), {"input_ids": {0: torch.export.Dim("batch")}}
    return _export(tmp_path_factory.mktemp("clip"), "clip", Module().eval(), arguments, ["input_ids"], shapes)


def test_the_unet_at_any_size_batch_and_prompt_length(unet, random):
    with graph_session(unet.path, threads=1) as lowered, graph_session(unet.path, lowered=False, threads=1) as plain:
        assert lowered.placement.count("MultiHeadAttention") == 14
        assert lowered.placement.count("Attention") == 0
        for batch, height, width, sequence in ((1, 32, 32, 77), (2, 20, 28, 77), (3, 8, 4, 154), (4, 16, 12, 1)):
            sample = random.standard_normal((batch, 4, height, width), np.float32)
            words = random.standard_normal((batch, sequence, 48), np.float32)
            time = np.array(random.uniform(0, 999), np.float32)
            feed = {"sample": sample, "timestep": time, "encoder_hidden_states": words}
            result = lowered.run(feed)["out"]
            assert psnr_db(result, plain.run(feed)["out"]) >= GATE_DB
            assert psnr_db(result, unet.torch_says(sample, time, words)) >= GATE_DB


def test_the_vae_decoder_at_any_size(decoder, random):
    with graph_session(decoder.path, threads=1) as lowered:
        for batch, height, width in ((1, 32, 32), (2, 5, 9), (4, 16, 1)):
            latents = random.standard_normal((batch, 4, height, width), np.float32)
            result = lowered.run({"latent_sample": latents})["out"]
            assert result.shape == (batch, 3, 4 * height, 4 * width)
            assert psnr_db(result, decoder.torch_says(latents)) >= GATE_DB


def test_the_text_encoder_looks_back_only(text_encoder, random):
    with graph_session(text_encoder.path, threads=1) as lowered:
        assert lowered.placement.count("MultiHeadAttention") == 3
        for batch in (1, 2, 3, 4):
            ids = random.integers(0, 300, (batch, 77))
            result = lowered.run({"input_ids": ids})["out"]
            assert psnr_db(result, text_encoder.torch_says(ids)) >= GATE_DB
        changed = ids.copy()
        changed[:, 40:] = 5
        again = lowered.run({"input_ids": changed})["out"]
        np.testing.assert_array_equal(result[:, :40], again[:, :40])
