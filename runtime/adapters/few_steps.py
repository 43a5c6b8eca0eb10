"""LoRAs that were distilled to draw in few steps: how each asks to be drawn with, by what it calls itself.

As their authors' pages have it. A file says nothing of it in its tensors, so that its name, its folder's, or the title
in its metadata has to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tintype.adapters.files import AdapterFile
from tintype.adapters.given import GivenLora


@dataclass(frozen=True, slots=True)
class FewSteps:
    """sigmas: a spacing by name; None is the sampler's usual one."""

    kind: str
    num_inference_steps: int
    sampler: str
    sigmas: str | None
    guidance_scale: float = 1.0


_STEPS = re.compile(r"(?<![0-9])(\d{1,2})[ _-]?steps?(?![a-z])")
_TITLES = ("modelspec.title", "ss_output_name")


def few_steps_of(file: AdapterFile) -> FewSteps | None:
    """How a LoRA asks to be drawn with; None for one that asks for nothing."""
    said = [file.name, *(file.header.metadata.get(title, "")[:200] for title in _TITLES)]
    if file.name in ("pytorch_lora_weights", "adapter_model"):  # as every repository on the hub calls them
        said.append(file.path.absolute().parent.name)
    return next((found for text in said if (found := _named(text.lower())) is not None), None)


def _named(text: str) -> FewSteps | None:
    count = _STEPS.search(text)
    steps = int(count[1]) if count is not None and 1 <= int(count[1]) <= 32 else None
    if re.search(r"hyper[ _-]?sd", text):  # Ren et al. 2024
        with_guidance = re.search(r"cfg", text) is not None
        if steps == 1:
            return FewSteps("Hyper-SD", 1, "tcd", None)
        return FewSteps("Hyper-SD", steps or 8, "ddim", "trailing", 5.0 if with_guidance else 1.0)
    if "lightning" in text:  # Lin et al. 2024
        return FewSteps("Lightning", steps or 4, "euler", "trailing")
    if re.search(r"(?<![a-z])tcd(?![a-z])", text):  # Zheng et al. 2024
        return FewSteps("TCD", steps or 4, "tcd", None)
    if re.search(r"(?<![a-z])lcm(?![a-z])", text):  # Luo et al. 2023
        return FewSteps("LCM", steps or 4, "lcm", None)
    return None


def asked_by(loras: Iterable[GivenLora]) -> tuple[GivenLora, FewSteps] | None:
    """The first of these LoRAs that asks for few steps, and how; None where none does."""
    for lora in loras:
        found = None if lora.facts.is_idle else few_steps_of(lora.file)
        if found is not None:
            return lora, found
    return None


def about_few_steps(loras: Iterable[GivenLora]) -> Iterator[str]:
    """A sentence where a LoRA decided how many steps are taken, and how."""
    asked = asked_by(loras)
    if asked is None:
        return
    lora, few = asked
    kind = f"{'an' if few.kind == 'LCM' else 'a'} {few.kind}"
    guidance = "without guidance" if few.guidance_scale == 1.0 else f"with a guidance_scale of {few.guidance_scale:g}"
    spacing = "" if few.sigmas is None else f", {few.sigmas}"
    yield (
        f"{lora.facts.name} is {kind} LoRA, which asks for {few.num_inference_steps} steps of {few.sampler}"
        f"{spacing} {guidance}: that is the default with it"
    )
