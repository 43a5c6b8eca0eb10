"""Commands draw from a folder of ONNX graphs too, and look at pictures by an image encoder's checkpoint: a bundle is
made of either once, in the cache, and said aloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def with_image_encoder(fields: dict[str, Any]) -> None:
    """Let the field `image_encoder` name a bundle where it names a checkpoint, or one lies beside the IP-Adapter.

    Raises RequestError for an adapter, ExportError for a checkpoint that can't be taken.
    """
    from tintype.sources.folder import is_image_encoder

    if not fields.get("image_prompts"):
        return
    given, adapter = fields.get("image_encoder"), fields.get("ip_adapter")
    if given is None and adapter is not None:
        from tintype.adapters.ip_adapter import open_ip_adapter
        from tintype.request.image_prompts import encoder_beside

        bundle, checkpoint = encoder_beside(open_ip_adapter(adapter))
        given = checkpoint if bundle is None else None
    if given is None or not is_image_encoder(Path(given)):
        return
    from tintype.bundle.converted import converted, demand_torch, is_converted

    if not is_converted(Path(given)):
        demand_torch(Path(given))
        sentence = (
            f"{given} is an image encoder's checkpoint: a bundle is made of it once, in the cache (tintype cache)"
        )
        say(f"note: {sentence}", err=True)
    with spinner("making a bundle of the image encoder"):
        bundle, remarks = converted(Path(given))
    for remark in remarks:
        say(f"note: {remark}", err=True)
    fields["image_encoder"] = bundle
