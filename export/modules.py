"""The checkpoint in torch, one part at a time: read when it is first used, gone when it is released.

The parts of a large checkpoint don't fit into memory together, and an export needs them one after another.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch

from tintype.export.checkpoint import Checkpoint, hollow_module, load
from tintype.export.roles import COMPONENT_OF
from tintype.export.wrappers import wrap


class Modules:
    """Parts by component name, fp32, eval mode."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._parts: dict[str, torch.nn.Module] = {}

    def part(self, component: str) -> torch.nn.Module:
        """A component; reading it takes a while the first time."""
        if component not in self._parts:
            self._parts[component] = load(self.checkpoint, component)
        return self._parts[component]

    def release(self, component: str) -> None:
        """Give a component's memory back; `part` would read it again."""
        if self._parts.pop(component, None) is not None:
            gc.collect()  # graphs that share its weights refer to themselves

    def of_role(self, role: str) -> torch.nn.Module:
        """The component whose weights a role has."""
        return self.part(COMPONENT_OF[role])

    def wrapped(self, role: str) -> torch.nn.Module:
        """A role's module with the inputs and outputs of its graph."""
        return wrap(self.checkpoint, role, self.of_role(role))

    def blank(self, role: str) -> torch.nn.Module:
        """As `wrapped`, of a `blank_module`."""
        return wrap(self.checkpoint, role, blank_module(self.checkpoint, COMPONENT_OF[role]))

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """scheduler_config.json."""
        return self.checkpoint.configs["scheduler"]

    @property
    def latent_channels(self) -> int:
        return self.checkpoint.latent_channels

    @property
    def scaling_factor(self) -> float:
        return self.checkpoint.scaling_factor

    @property
    def shift_factor(self) -> float:
        return self.checkpoint.shift_factor


def blank_module(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    """A component whose weights are each one number, seen in the weight's shape: it can be traced, reads no file and
    costs next to no memory."""
    module = hollow_module(checkpoint, component)
    blank = {name: torch.zeros((), dtype=w.dtype).expand(w.shape) for name, w in module.state_dict().items()}
    module.load_state_dict(blank, assign=True)
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_meta:  # the positions of a text or an image encoder, which have to be true
                positions = torch.arange(buffer.numel(), dtype=buffer.dtype).reshape(buffer.shape)
                part.register_buffer(name, positions, persistent=False)
    return module.requires_grad_(False).eval()
