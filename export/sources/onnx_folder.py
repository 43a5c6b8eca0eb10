"""A folder of ONNX graphs, as optimum exports it: its parts as model_index.json and the configs say.

The VAE is two graphs here; its config is the decoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tintype.errors import ExportError
from tintype.export.sources.folder import tokenizer_places
from tintype.export.sources.source import CheckpointSource
from tintype.sources.families import Configs, Family, family_of
from tintype.sources.folder import SCHEDULER, read_config
from tintype.sources.licence import read_licence
from tintype.sources.onnx_folder import EXPORT_AGAIN, GRAPH, OnnxGraph, plain_index, problem_of, read_graphs

FOLDERS = {"vae": ("vae_decoder", "vae_encoder")}  # by component, where there isn't one of its name


def open_onnx_folder(folder: Path) -> CheckpointSource:
    """Look at a folder of graphs; weights are not read. Raises ExportError for what can't be taken, by name."""
    index = plain_index(folder)
    family = family_of(folder, index)
    graphs = read_graphs(folder)
    _demand_graphs(folder, family, graphs)
    weights = {
        name: tuple(path for part in parts_of(name) if part in graphs for path in graphs[part].files)
        for name in family.components
    }
    return CheckpointSource(
        location=folder,
        index=index,
        configs=_configs(folder, family),
        weights=weights,
        tokenizers=tokenizer_places(folder, family),
        licence=read_licence(folder),
        graphs=graphs,
    )


def parts_of(component: str) -> tuple[str, ...]:
    """The folders that hold a component's graphs."""
    return FOLDERS.get(component, (component,))


def _demand_graphs(folder: Path, family: Family, graphs: Mapping[str, OnnxGraph]) -> None:
    needed = [part for name in family.components for part in parts_of(name) if part != "vae_encoder"]
    for part in needed:
        if part not in graphs:
            raise ExportError(f"{folder} has no {part}/{GRAPH}", fix=f"copy the whole folder, or {EXPORT_AGAIN}")
    for graph in graphs.values():
        problem = problem_of(graph)
        if problem is not None:
            raise ExportError(f"{folder}: {problem[0]}", fix=problem[1])


def _configs(folder: Path, family: Family) -> Configs:
    configs = {name: read_config(folder / parts_of(name)[0] / "config.json") for name in family.components}
    for name, config in configs.items():  # as diffusers and transformers write them, for whoever opens the bundle
        if name.startswith("text_encoder"):
            config.pop("_class_name", None)
            config.pop("_diffusers_version", None)
        else:
            config["_class_name"] = family.components[name]
    configs["scheduler"] = read_config(folder / SCHEDULER)
    return configs
