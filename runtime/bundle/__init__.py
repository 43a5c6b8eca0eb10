"""What a model is: the manifest, the folder that it describes, and the checks before anything of it is opened."""

from __future__ import annotations

from tintype.bundle.bundle import (
    EMBEDDED,
    Bundle,
    file_facts,
    manifest_digest,
    read_manifest,
    write_manifest,
)
from tintype.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    DefaultRequest,
    FastRequest,
    FileFacts,
    Graph,
    Manifest,
    Port,
    ReplacedPart,
    SizeLimits,
    Source,
    TokenizerFacts,
)
from tintype.bundle.opening import open_bundle
from tintype.bundle.parity import Parity
from tintype.bundle.preview import PreviewFactors

__all__ = [
    "EMBEDDED",
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "Bundle",
    "DefaultRequest",
    "FastRequest",
    "FileFacts",
    "Graph",
    "Manifest",
    "Parity",
    "Port",
    "PreviewFactors",
    "ReplacedPart",
    "SizeLimits",
    "Source",
    "TokenizerFacts",
    "file_facts",
    "manifest_digest",
    "open_bundle",
    "read_manifest",
    "write_manifest",
]
