"""The image encoder of `ip_adapters` as a bundle made without torch, for environments that have none.

Its structure is the one that torch traced, packed among `traces`; its weights are drawn here.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import traces
from ip_adapters import SIDE
from numpy.typing import NDArray
from onnx import numpy_helper

from tintype.bundle import Graph, Port, Source, file_facts, write_manifest
from tintype.bundle.image_encoder import EMBEDS, PICTURE, STATES, ImageEncoderManifest
from tintype.bundle.manifest import FULL
from tintype.uses import IMAGE_ENCODER

WEIGHTS_KEY = "tintype.weights"  # of `export.known_graphs`, which imports torch
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def structure() -> onnx.ModelProto:
    """The packed graph of an encoder for pictures of SIDE pixels, its weights as inputs."""
    with zipfile.ZipFile(traces.PACKED) as packed:
        for name in sorted(packed.namelist()):
            model = onnx.load_model_from_string(packed.read(name))
            sides = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
            if [port.name for port in model.graph.output] == [EMBEDS, STATES] and sides == [3, SIDE, SIDE]:
                return model
    raise LookupError(f"{traces.PACKED.name} has no image encoder: make traces")


def write_image_encoder(folder: Path, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Make a bundle in a folder that isn't there; its weights by their names in torch, some with a dim of 1 more."""
    model, random = structure(), np.random.default_rng(seed)
    (told,) = (entry.value for entry in model.graph.metadata_props if entry.key == WEIGHTS_KEY)
    known = {each["name"]: each for each in json.loads(told)["initializers"] if each["weight"]}
    weights = {}
    for port in list(model.graph.input):
        if port.name in known:
            name, turned = known[port.name]["weight"], known[port.name]["transposed"]
            array = _drawn(name, [dim.dim_value for dim in port.type.tensor_type.shape.dim], random)
            weights[name] = array.T if turned else array
            model.graph.input.remove(port)
            model.graph.initializer.append(numpy_helper.from_array(array, port.name))
    file = f"{IMAGE_ENCODER}/model.onnx"
    (folder / IMAGE_ENCODER).mkdir(parents=True)
    onnx.save(model, folder / file)
    graph = Graph(
        file=file,
        precision="fp32",
        inputs=tuple(map(_port, model.graph.input)),
        outputs=tuple(map(_port, model.graph.output)),
    )
    assert [port.name for port in graph.inputs] == [PICTURE]
    manifest = ImageEncoderManifest(
        name="known-encoder",
        licence="apache-2.0",
        source=Source(location="tests"),
        mean=MEAN,
        std=STD,
        graphs={IMAGE_ENCODER: {FULL: graph}},
        files=file_facts(folder),
    )
    write_manifest(folder, manifest)
    return weights


def _drawn(name: str, shape: list[int], random: np.random.Generator) -> NDArray[np.float32]:
    """Numbers that let what the encoder says differ from picture to picture."""
    start, size = (1.0, 0.1) if "norm" in name and name.endswith("weight") else (0.0, 0.1)
    if len(shape) > 1 and "position" not in name:
        size = 2.0 / np.sqrt(min(shape))
    return (start + size * random.standard_normal(shape)).astype(np.float32)


def _port(value: onnx.ValueInfoProto) -> Port:
    shape = tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)
    return Port(name=value.name, dtype="float32", shape=shape)
