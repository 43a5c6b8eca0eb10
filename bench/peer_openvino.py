"""OpenVINO on a processor, as its documentation has it: sizes fixed before compiling, latency hint, f32 said aloud.

On a processor with bfloat16 OpenVINO computes in that by default, which is another picture; f32 keeps it to the
precision of the representation, in int8 too where NNCF put it. A job's `checkpoint` is the folder of representations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import openvino

from tintype.bench.graphs import Inputs, Run, bare_peer, graph_inputs
from tintype.bench.job import Job
from tintype.bench.sd15_make import OPENVINO_FILES
from tintype.bench.worker import Peer


def load(job: Job) -> Peer:
    """The same loop as over plain ONNX Runtime."""
    if job.checkpoint is None:
        raise click.UsageError("the OpenVINO peer needs the folder of its representations")
    return bare_peer(job, _open_graph)


def _open_graph(job: Job) -> Run:
    """A representation compiled for the job's shapes; inputs go by position, as the trace left their names. The output
    is the caller's to keep."""
    core, role, folder = openvino.Core(), job.role or "", Path(job.checkpoint or "")
    file = folder / OPENVINO_FILES[role]
    if not file.is_file():  # one that wasn't quantized is found beside, in fp32
        file = folder.with_name("openvino-f32") / OPENVINO_FILES[role]
    model = core.read_model(file)
    ports = zip(model.inputs, graph_inputs(job).values(), strict=True)
    model.reshape({port: openvino.PartialShape(list(array.shape)) for port, array in ports})
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if job.threads is not None:
        options["INFERENCE_NUM_THREADS"] = job.threads
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(inputs: Inputs) -> Any:
        request.infer(list(inputs.values()))
        return np.array(request.get_output_tensor(0).data)

    return run
