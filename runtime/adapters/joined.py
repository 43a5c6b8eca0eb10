"""Several LoRAs as a graph takes them: for each layer one pair of matrices, whose ranks lie side by side.

Which inputs a graph has depends on which layers its LoRAs change and on the sum of their ranks, rounded up, and on
nothing else in their files: so it is the same graph for all that are alike in that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tintype.adapters.files import AdapterLayer
from tintype.adapters.forms import Shape, fits, pair_of, pair_rank
from tintype.adapters.given import GivenLora
from tintype.adapters.names import DENOISER, FOREIGN, TEXT_ENCODER_2, by_plain_name, plain, role_of
from tintype.arrays import Arrays
from tintype.bounds import MAX_LORA_RANK
from tintype.errors import LoraError
from tintype.uses import LAYERS, LowRank

LEAST_RANK = 4
# By the width of the words that cross-attentions look at.
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


class Layers(Protocol):
    """What is known of a graph's layers."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...
    @property
    def among(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class FittedLayer:
    """What one LoRA has for one layer of a graph. factor: what its weight is multiplied with there."""

    lora: GivenLora
    layer: AdapterLayer
    factor: float


@dataclass(slots=True)
class LoraWeights:
    """The inputs of one role's graph, made when they are asked for and kept until others are."""

    role: str
    low_rank: LowRank
    shapes: Mapping[str, Shape]  # of all layers that the graph has inputs for
    fitted: Mapping[str, Sequence[FittedLayer]]  # by layer
    _known: tuple[tuple[float, ...], Arrays] | None = field(default=None, repr=False)

    def at(self, progress: float | None = None) -> tuple[tuple[float, ...], Arrays]:
        """At a step that begins at this share of the way, None for a graph without steps: the LoRAs' weights, which
        tell one set of inputs from another, and the inputs by name. Raises LoraError."""
        loras = self._loras()
        weights = tuple(lora.facts.weight_at(progress) for lora in loras)
        if self._known is None or self._known[0] != weights:
            self._known = None  # before the next ones are made
            self._known = weights, self._arrays(dict(zip(map(id, loras), weights, strict=True)))
        return self._known

    def release(self) -> None:
        self._known = None

    def _loras(self) -> list[GivenLora]:
        return list({id(each.lora): each.lora for layers in self.fitted.values() for each in layers}.values())

    def _arrays(self, weights: Mapping[int, float]) -> Arrays:
        rank, made = self.low_rank.rank, dict[str, NDArray[Any]]()
        for name, (outputs, inputs, *kernel) in self.shapes.items():
            down = np.zeros((rank, inputs, *kernel) if kernel else (inputs, rank), np.float32)
            up = np.zeros((outputs, rank, 1, 1) if kernel else (rank, outputs), np.float32)
            as_pair = (down, up[..., 0, 0]) if kernel else (down.T, up.T)
            first = 0
            for each in self.fitted.get(name, ()):
                weight = weights[id(each.lora)] * each.factor
                if weight:
                    pair = pair_of(each.lora.file, each.layer, (outputs, inputs, *kernel))
                    last = first + len(pair.down)
                    as_pair[0][first:last], as_pair[1][:, first:last] = pair.down, pair.up * np.float32(weight)
                    first = last
            if not (np.isfinite(up).all() and np.isfinite(down).all()):
                raise LoraError(f"the LoRAs for {name} grow beyond all numbers", fix="give smaller weights")
            made[f"lora.{name}.down"], made[f"lora.{name}.up"] = down, up
        return made


@dataclass(frozen=True, slots=True)
class FittedLoras:
    """A request's LoRAs on one model. by_role: of the graphs that they change, and of no others."""

    by_role: Mapping[str, LoraWeights]

    def low_rank(self, role: str) -> LowRank | None:
        return self.by_role[role].low_rank if role in self.by_role else None

    def inputs(self, role: str, progress: float | None = None) -> Arrays:
        """What a role's graph takes beside its own inputs; nothing for a graph that isn't changed."""
        return self.by_role[role].at(progress)[1] if role in self.by_role else {}

    def release(self, *roles: str) -> None:
        """Give the arrays back; who asks again has them read again."""
        for role in roles:
            if role in self.by_role:
                self.by_role[role].release()

    def weights(self, role: str, progress: float | None = None) -> tuple[float, ...]:
        """What tells these inputs from those at another step."""
        return self.by_role[role].at(progress)[0] if role in self.by_role else ()


NO_LORAS = FittedLoras({})


def fit(
    loras: Iterable[GivenLora], roles: Sequence[str], layers_of: Callable[[str], Layers], model: str
) -> FittedLoras:
    """LoRAs on a model's graphs. roles: that it has. layers_of: is asked only for those that a LoRA is for.

    Raises LoraError for what doesn't fit the model, called `model`, and for what has to be merged.
    """
    found: dict[str, dict[str, list[FittedLayer]]] = {}
    for lora in loras:
        for role, name, layer in fitting(lora, roles, layers_of, model):
            factor = lora.facts.factor(role, name)
            if lora.facts.weight * factor != 0.0:
                _demand_pair(lora, layer, layers_of(role).shapes[name])
                found.setdefault(role, {}).setdefault(name, []).append(FittedLayer(lora, layer, factor))
    return FittedLoras({role: _weights(role, fitted, layers_of(role)) for role, fitted in found.items()})


def fitting(
    lora: GivenLora, roles: Sequence[str], layers_of: Callable[[str], Layers], model: str
) -> list[tuple[str, str, AdapterLayer]]:
    """By role and layer what a LoRA has. Raises LoraError unless all of it fits.

    Layers that a text encoder has beyond those of its graph change nothing: XL takes its states before the last one.
    """
    names: dict[str, dict[str, str]] = {}
    found, unknown, odd = [], [], []
    for name, layer in lora.file.layers.items():
        role, rest = role_of(name) or (None, "")
        if role is None or role not in roles:
            unknown.append(name)
            continue
        known = names.get(role) or names.setdefault(role, by_plain_name(role, layers_of(role).shapes))
        target = known.get(plain(rest))
        if target is None:
            if role == DENOISER or not _is_beyond(plain(rest), known):
                unknown.append(name)
        elif fits(lora.file, layer, layers_of(role).shapes[target]):
            found.append((role, target, layer))
        else:
            odd.append((name, layers_of(role).shapes[target]))
    if unknown or odd:
        raise _misfit(lora, roles, layers_of, model, unknown, odd)
    return found


def _is_beyond(name: str, known: Mapping[str, str]) -> bool:
    """Whether a text encoder's layer comes behind all those of its graph, of the same build."""
    start, _, rest = name.removeprefix("encoder_layers_").partition("_")
    count = len({layer.split(".")[2] for layer in known.values() if layer.startswith("encoder.layers.")})
    return start.isdecimal() and len(start) < 4 and int(start) >= count and f"encoder_layers_0_{rest}" in known


def _weights(role: str, fitted: Mapping[str, Sequence[FittedLayer]], layers: Layers) -> LoraWeights:
    most = max(LAYERS.index(layers.among[name]) for name in fitted)
    rank = 0
    for name, each in fitted.items():
        total = sum(pair_rank(one.lora.file, one.layer, layers.shapes[name]) or 0 for one in each)
        if total > MAX_LORA_RANK:
            raise LoraError(
                f"the LoRAs for {name} have a rank of {total:,} together; {MAX_LORA_RANK:,} is the most",
                fix="give fewer of them, or merge some into the bundle: tintype merge BUNDLE --lora FILE OUT",
            )
        rank = max(rank, total)
    chosen = {name: shape for name, shape in layers.shapes.items() if LAYERS.index(layers.among[name]) <= most}
    return LoraWeights(role, LowRank(LAYERS[most], padded_rank(rank)), chosen, fitted)


def padded_rank(rank: int) -> int:
    """The next one of few: LoRAs of other ranks then take the same graph."""
    padded = LEAST_RANK
    while padded < rank:
        padded *= 2
    return padded


def _demand_pair(lora: GivenLora, layer: AdapterLayer, shape: Shape) -> None:
    """Raises LoraError for what isn't of low rank: while a picture is drawn nothing else can be added."""
    rank = pair_rank(lora.file, layer, shape)
    if rank is not None and rank <= MAX_LORA_RANK:
        return
    if layer.is_decomposed:
        why = "is a DoRA, which scales the weights themselves"
    elif layer.kind == "full":
        why = "changes whole weights, which aren't of low rank"
    else:
        why = f"has a rank of {rank:,} in {layer.name}, and {MAX_LORA_RANK:,} is the most while a picture is drawn"
    raise LoraError(
        f"{lora.file.path} {why}",
        fix=f"merge it into the bundle once: tintype merge BUNDLE --lora {lora.file.path} OUT, and draw with OUT",
    )


def _misfit(
    lora: GivenLora,
    roles: Sequence[str],
    layers_of: Callable[[str], Layers],
    model: str,
    unknown: Sequence[str],
    odd: Sequence[tuple[str, Shape]],
) -> LoraError:
    path = lora.file.path
    theirs, ours = _family_of(lora), _width(layers_of(DENOISER).shapes)
    another = f"give a LoRA for {FAMILIES.get(ours or 0, 'this model')}, or a bundle of the model that it was made for"
    if theirs is not None and theirs != FAMILIES.get(ours or 0):
        what = FAMILIES.get(ours or 0, "no such model")
        return LoraError(f"{path} is a LoRA of {theirs}, and {model} is {what}", fix=another)
    if odd:
        name, shape = odd[0]
        more = f", and {len(odd) - 1:,} more" if len(odd) > 1 else ""
        return LoraError(
            f"{path} doesn't fit {model}: {name} is for another shape than {list(shape)}{more}", fix=another
        )
    more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
    return LoraError(
        f"{path} is for layers that {model} doesn't have: {', '.join(name[:120] for name in unknown[:5])}{more}",
        fix=another,
    )


def _family_of(lora: GivenLora) -> str | None:
    """What a LoRA was made for, as far as its names and shapes tell."""
    layers = lora.file.layers
    for family, starts in FOREIGN.items():
        if any(name.startswith(starts) for name in layers):
            return family
    for name, layer in layers.items():
        if plain(name).endswith(("attn2_to_k", "attn2_to_v")) and layer.kind == "lora":
            width = lora.file.shape(layer.parts["down"])[1]
            if width in FAMILIES:
                return FAMILIES[width]
    if any((role_of(name) or ("",))[0] == TEXT_ENCODER_2 for name in layers):
        return FAMILIES[2048]
    return None


def _width(shapes: Mapping[str, Shape]) -> int | None:
    return next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k")), None)
