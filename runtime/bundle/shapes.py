"""Do a bundle's graphs fit together, by what its manifest says of their inputs and outputs?

What a name of a dimension leaves open is asked of the graphs themselves when they have run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from tintype.strict_json import Misfit, require

Names = tuple[frozenset[str], frozenset[str]]  # of a role's inputs and outputs
Dim = int | str  # a number, or the name of one that the caller chooses


class Port(Protocol):
    """What is asked here of an input or output; a manifest has them all."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[Dim, ...]: ...


class Graph(Protocol):
    @property
    def inputs(self) -> tuple[Port, ...]: ...
    @property
    def outputs(self) -> tuple[Port, ...]: ...


class Manifest(Protocol):
    @property
    def graphs(self) -> Mapping[str, Mapping[str, Graph]]: ...
    @property
    def graph_names(self) -> Mapping[str, tuple[frozenset[str], frozenset[str]]]: ...
    @property
    def text_encoders(self) -> Mapping[str, Any]: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def sample_channels(self) -> tuple[int, ...]: ...
    @property
    def guidance_embedding(self) -> int | None: ...
    @property
    def needs_picture(self) -> bool: ...
    @property
    def vae_scale_factor(self) -> int: ...


def check_graphs(manifest: Manifest, optional: Mapping[str, Names]) -> None:
    """Misfit unless every graph has the inputs and outputs of its role, in shapes that go with one another.

    optional: the names of roles that a family doesn't need.
    """
    for role, variants in manifest.graphs.items():
        for variant, graph in variants.items():
            names = manifest.graph_names.get(role) or optional.get(role)
            _check_names(f"graphs.{role}.{variant}", names, graph)
    _check_latent_channels(manifest)
    _check_cells(manifest)
    _check_timesteps(manifest)
    for role, tokenizer in manifest.text_encoders.items():
        for _, ids, _ in _ports(manifest, role, "input_ids", None):
            length = ids.shape[-1] if ids.shape else None
            fits = isinstance(length, str) or length == tokenizer.max_length
            require(fits, f"{role} takes {length} tokens, its tokenizer gives {tokenizer.max_length}")


def channels(variants: Mapping[str, Graph], port_name: str) -> set[int]:
    """How many channels an input of four dimensions has, over the variants that fix it."""
    shapes = [port.shape for graph in variants.values() for port in graph.inputs if port.name == port_name]
    return {shape[1] for shape in shapes if isinstance(shape[1], int)}


def _check_names(place: str, names: Names | None, graph: Graph) -> None:
    needed_inputs, needed_outputs = names or (frozenset(), frozenset())
    for needed, ports, kind in ((needed_inputs, graph.inputs, "input"), (needed_outputs, graph.outputs, "output")):
        for name in sorted(needed - {port.name for port in ports}):
            raise Misfit(f"{place} has no {kind} named {name}")


def _ports(manifest: Manifest, role: str, taken: str, given: str | None) -> list[tuple[str, Port, Port | None]]:
    """Of each variant of a role its name, and the input and the output of these names that it has."""
    found = []
    for variant, graph in manifest.graphs.get(role, {}).items():
        inputs = [port for port in graph.inputs if port.name == taken]
        outputs = [port for port in graph.outputs if port.name == given]
        if inputs:
            found.append((variant, inputs[0], outputs[0] if outputs else None))
    return found


def _check_latent_channels(manifest: Manifest) -> None:
    for role, port_name, known in (
        ("denoiser", "sample", manifest.sample_channels),
        ("vae_decoder", "latent_sample", (manifest.latent_channels,)),
        ("tiny_decoder", "latent_sample", (manifest.latent_channels,)),
    ):
        for _, port, _ in _ports(manifest, role, port_name, None):
            require(len(port.shape) == 4, f"{role} input {port_name} has {len(port.shape)} dimensions, not 4")
        found = channels(manifest.graphs.get(role, {}), port_name)
        counts = " and ".join(map(str, sorted(found)))
        fits = not found or (len(found) == 1 and found <= set(known))
        require(fits, f"{role} takes {counts} channels, latent_channels is {manifest.latent_channels}")
    complete = not manifest.needs_picture or "vae_encoder" in manifest.graphs
    require(complete, "the denoiser takes a picture, and there is no vae_encoder to make latents of it")
    embedding = manifest.guidance_embedding
    require(embedding is None or 4 <= embedding <= 4096, f"the denoiser is told its guidance in {embedding} numbers")


def _check_cells(manifest: Manifest) -> None:
    """Pictures, latents and predictions of the sizes that the manifest says."""
    cell, latent = manifest.vae_scale_factor, manifest.latent_channels
    for role, taken, given, wanted, scale in (
        ("denoiser", "sample", "out_sample", latent, 1.0),
        ("vae_decoder", "latent_sample", "sample", 3, float(cell)),
        ("vae_encoder", "sample", "latent_parameters", 2 * latent, 1 / cell),
        ("tiny_decoder", "latent_sample", "sample", 3, float(cell)),
        ("tiny_encoder", "sample", "latent_parameters", 2 * latent, 1 / cell),
    ):
        for _, port, out in _ports(manifest, role, taken, given):
            if out is None:
                continue
            sized = len(port.shape) == len(out.shape) == 4
            require(sized, f"{role} turns {len(port.shape)} dimensions into {len(out.shape)}, and not 4 into 4")
            fits = isinstance(out.shape[1], str) or out.shape[1] == wanted
            require(fits, f"{role} gives {out.shape[1]} channels, not {wanted}")
            for before, after in zip(port.shape[2:], out.shape[2:], strict=True):
                told = times(before, after)
                fits = told is None or told == scale
                require(fits, f"{role} makes {after} of {before}; vae_scale_factor is {cell}")


def _check_timesteps(manifest: Manifest) -> None:
    for _, port, _ in _ports(manifest, "denoiser", "timestep", None):
        sane = len(port.shape) <= 1 and all(isinstance(dim, str) or dim == 1 for dim in port.shape)
        require(sane, f"the denoiser's timestep is of shape {port.shape}, and not one number")


def times(before: Dim, after: Dim) -> float | None:
    """How many times as large a dimension becomes; None where its names don't tell."""
    if isinstance(before, int):
        return after / before if isinstance(after, int) else None
    if isinstance(after, int):
        return None
    product = re.fullmatch(r"(?:(\d{1,4})\*)?(\w+)(?:\*(\d{1,4})|/(\d{1,4}))?", after)
    if product is None or product[2] != before:
        return None
    left, right, under = (int(number or 1) for number in product.group(1, 3, 4))
    return left * right / under if under else None
