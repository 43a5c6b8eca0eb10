"""OpenVINO on a processor, as its documentation has it: sizes fixed before compiling, latency hint, f32 said aloud.

On a processor with bfloat16 OpenVINO computes in that by default, which is another picture; f32 keeps it to the
precision of the representation, in int8 too where NNCF put it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import openvino
from numpy.typing import NDArray

from tintype.bench.job import Job
from tintype.bench.peer_onnxruntime import EulerPeer, latent_size
from tintype.bench.sd15_make import OPENVINO_FILES
from tintype.bundle import open_bundle


class OpenVinoGraph:
    """A representation compiled for one set of input shapes; inputs go by position, as the trace left their names."""

    def __init__(self, file: Path, shapes: list[tuple[int, ...]], threads: int | None) -> None:
        core = openvino.Core()
        model = core.read_model(file)
        ports = zip(model.inputs, shapes, strict=True)
        model.reshape({port: openvino.PartialShape(list(shape)) for port, shape in ports})
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        self._request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The first output, the caller's to keep."""
        self._request.infer(list(inputs.values()))
        return np.array(self._request.get_output_tensor(0).data)


def load(job: Job) -> EulerPeer:
    """The same loop as over plain ONNX Runtime; `job.checkpoint` is the folder of representations."""
    if job.checkpoint is None:
        raise click.UsageError("the OpenVINO peer needs the folder of its representations")
    bundle = open_bundle(job.model)
    height, width = latent_size(bundle.manifest, job)
    channels, tokens = bundle.manifest.latent_channels, bundle.manifest.tokenizer.max_length
    embedding = next(p for p in bundle.manifest.graphs["denoiser"]["full"].inputs if p.name == "encoder_hidden_states")
    shapes: dict[str, list[tuple[int, ...]]] = {
        "text_encoder": [(2, tokens)],
        "denoiser": [(2, channels, height, width), (1,), (2, tokens, int(embedding.shape[2]))],
        "vae_decoder": [(1, channels, height, width)],
    }
    folder = Path(job.checkpoint)
    graphs = {role: OpenVinoGraph(file_in(folder, role), shapes[role], job.threads) for role in OPENVINO_FILES}
    return EulerPeer(bundle, lambda role, inputs: graphs[role].run(inputs))


def file_in(folder: Path, role: str) -> Path:
    """A role's representation; one that wasn't quantized is found beside, in fp32."""
    file = folder / OPENVINO_FILES[role]
    return file if file.is_file() else folder.with_name("openvino-f32") / OPENVINO_FILES[role]
