"""Do a bundle's graphs point at nothing but the bundle's own files? Looked at once for each of its hashes."""

from __future__ import annotations

from pathlib import Path

from tintype.bundle.listing import check_relative_path
from tintype.bundle.manifest import COPY_AGAIN, Listing
from tintype.errors import BundleError
from tintype.sources.onnx_scan import ExternalTensor, MalformedGraph, external_tensors
from tintype.strict_json import Misfit


def check_graphs(folder: Path, manifest: Listing) -> None:
    """BundleError for a graph that is none, or whose weights lie where the manifest lists nothing."""
    for file in manifest.files:
        if file.endswith(".onnx"):
            try:
                for tensor in external_tensors(folder / file):
                    _check_external(manifest, file, tensor)
            except (MalformedGraph, Misfit) as error:
                raise BundleError(f"{file} is refused: {error}", fix=COPY_AGAIN) from None
    for variants in manifest.graphs.values():
        for graph in variants.values():
            if not graph.file.endswith(".onnx"):
                raise BundleError(f"the graph {graph.file} is no .onnx file", fix=COPY_AGAIN)


def _check_external(manifest: Listing, file: str, tensor: ExternalTensor) -> None:
    check_relative_path(tensor.location)
    data_file = (Path(file).parent / tensor.location).as_posix()
    facts = manifest.files.get(data_file)
    if facts is None:
        raise MalformedGraph(f"the tensor {tensor.name!r} lies in {data_file}, which the manifest doesn't list")
    if tensor.offset + tensor.nbytes > facts.bytes:
        raise MalformedGraph(f"the tensor {tensor.name!r} runs past the end of {data_file}")
