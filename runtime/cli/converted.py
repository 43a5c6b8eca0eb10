"""Commands draw from a folder of ONNX graphs too: a bundle is made of it once, in the cache, and said aloud."""

from __future__ import annotations

from pathlib import Path

from tintype.cli.progress import spinner
from tintype.cli.say import say


def runnable(model: str) -> str:
    """The bundle that a model's graphs are in: itself, or the one that was made of a folder of optimum's.

    Raises ExportError for a folder that can't be taken.
    """
    from tintype.bundle import EMBEDDED
    from tintype.bundle.library import is_bundle

    folder = Path(model)
    if model in EMBEDDED or is_bundle(folder):
        return model
    from tintype.sources.onnx_folder import is_onnx_folder

    if not is_onnx_folder(folder):
        return model
    from tintype.bundle.converted import converted, is_converted

    if not is_converted(folder):
        sentence = f"{model} holds ONNX graphs: a bundle is made of them once, in the cache (tintype cache)"
        say(f"note: {sentence}; it takes a minute or more", err=True)
    with spinner("making a bundle of ONNX graphs"):
        bundle, remarks = converted(folder)
    for remark in remarks:
        say(f"note: {remark}", err=True)
    return str(bundle)
