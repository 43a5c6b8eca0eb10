"""Several LoRAs as a graph takes them: for each layer one pair of matrices, whose ranks lie side by side.

Which inputs a graph has depends on which layers its LoRAs change, on the sum of their ranks, rounded up, and on whether
there are DoRAs among them, and on nothing else in their files: so it is the same graph for all that are alike in that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tintype.adapters.files import AdapterLayer
from tintype.adapters.forms import Floats, Pair, Shape, fits, pair_of, pair_rank
from tintype.adapters.given import GivenLora
from tintype.adapters.magnitudes import factors_of, magnitudes_of, scaled_along, scaled_pair
from tintype.adapters.names import DENOISER, FOREIGN, TEXT_ENCODER_2, by_plain_name, plain, role_of
from tintype.arrays import Arrays
from tintype.bounds import MAX_LORA_RANK
from tintype.errors import LoraError
from tintype.uses import BY_OUTPUT, LAYERS, LowRank

LEAST_RANK = 4
# By the width of the words that cross-attentions look at.
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


# By a graph's role, what tells some pairs from all others, and what gives them, as layer, BY_OUTPUT or BY_INPUT, up and
# down: of each how long the rows, or columns, of the layer's weight are with it.
Pairs: TypeAlias = Callable[[], Iterable[tuple[str, str, Floats, Floats]]]
LengthsOf: TypeAlias = Callable[[str, Sequence[str], Pairs], Sequence[Floats]]


class Layers(Protocol):
    """What is known of a graph's layers."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...
    @property
    def among(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class FittedLayer:
    """What one LoRA has for one layer of a graph. factor: what its weight is multiplied with there. along: what of the
    layer it scales, BY_OUTPUT or BY_INPUT, where it is a DoRA."""

    lora: GivenLora
    layer: AdapterLayer
    factor: float
    along: str = ""

    def pair(self, shape: Shape) -> Pair:
        return pair_of(self.lora.file, self.layer, shape)


@dataclass(slots=True)
class LoraWeights:
    """The inputs of one role's graph, made when they are asked for and kept until others are."""

    role: str
    low_rank: LowRank
    shapes: Mapping[str, Shape]  # of all layers that the graph has inputs for
    fitted: Mapping[str, Sequence[FittedLayer]]  # by layer
    lengths_of: LengthsOf
    _scales: dict[tuple[str, str], Floats] = field(default_factory=dict, repr=False)  # by file and its layer, of DoRAs
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
        self._scales.clear()

    def _loras(self) -> list[GivenLora]:
        return list({id(each.lora): each.lora for layers in self.fitted.values() for each in layers}.values())

    def _arrays(self, weights: Mapping[int, float]) -> Arrays:
        rank, made = self.low_rank.rank, dict[str, NDArray[Any]]()
        self._measure({lora.file.sha256 for lora in self._loras() if weights[id(lora)]})
        for name, (outputs, inputs, *kernel) in self.shapes.items():
            down = np.zeros((rank, inputs, *kernel) if kernel else (inputs, rank), np.float32)
            up = np.zeros((outputs, rank, 1, 1) if kernel else (rank, outputs), np.float32)
            as_pair = (down, up[..., 0, 0]) if kernel else (down.T, up.T)
            scale = np.ones(outputs if self.low_rank.scaled == BY_OUTPUT else inputs, np.float32)
            first = 0
            for each in self.fitted.get(name, ()):
                weight = weights[id(each.lora)] * each.factor
                if weight:
                    pair = each.pair((outputs, inputs, *kernel))
                    if each.along:
                        factors = self._scales[each.lora.file.sha256, each.layer.name]
                        pair = scaled_pair(pair, each.along, factors)
                        scale += np.float32(weight) * (factors - 1)
                    last = first + len(pair.down)
                    as_pair[0][first:last], as_pair[1][:, first:last] = pair.down, pair.up * np.float32(weight)
                    first = last
            if not all(np.isfinite(array).all() for array in (up, down, scale)):
                raise LoraError(f"the LoRAs for {name} grow beyond all numbers", fix="give smaller weights")
            made[f"lora.{name}.down"], made[f"lora.{name}.up"] = down, up
            if self.low_rank.scaled:
                made[f"lora.{name}.scale"] = scale.reshape(1, -1, 1, 1) if kernel else scale
        return made

    def _measure(self, files: set[str]) -> None:
        """Find what the DoRAs among these files, by their hashes, scale the layers by."""
        for sha256 in files:
            layers = {
                (sha256, each.layer.name): (name, each)
                for name, fitted in self.fitted.items()
                for each in fitted
                if each.along and each.lora.file.sha256 == sha256
            }
            if not layers or layers.keys() <= self._scales.keys():
                continue
            facts = [sha256, *(name for name, _ in layers.values())]
            lengths = self.lengths_of(self.role, facts, functools.partial(self._pairs, list(layers.values())))
            for (key, (name, each)), length in zip(layers.items(), lengths, strict=True):
                magnitudes = magnitudes_of(each.lora.file, each.layer, self.shapes[name])
                if magnitudes is not None:
                    self._scales[key] = factors_of(magnitudes, length)

    def _pairs(self, layers: Iterable[tuple[str, FittedLayer]]) -> Iterator[tuple[str, str, Floats, Floats]]:
        for name, each in layers:
            pair = each.pair(self.shapes[name])
            yield name, each.along, pair.up, pair.down.reshape(len(pair.down), -1)


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
    loras: Iterable[GivenLora],
    roles: Sequence[str],
    layers_of: Callable[[str], Layers],
    lengths_of: LengthsOf,
    model: str,
) -> FittedLoras:
    """LoRAs on a model's graphs. roles: that it has. layers_of: is asked only for those that a LoRA is for. lengths_of:
    only once inputs are made, of DoRAs.

    Raises LoraError for what doesn't fit the model, called `model`, and for what has to be merged.
    """
    found: dict[str, dict[str, list[FittedLayer]]] = {}
    for lora in loras:
        for role, name, layer in fitting(lora, roles, layers_of, model):
            factor = lora.facts.factor(role, name)
            if lora.facts.weight * factor != 0.0:
                shape = layers_of(role).shapes[name]
                _demand_pair(lora, layer, shape)
                one = FittedLayer(lora, layer, factor, scaled_along(lora.file, layer, shape))
                found.setdefault(role, {}).setdefault(name, []).append(one)
    return FittedLoras({role: _weights(role, fitted, layers_of(role), lengths_of) for role, fitted in found.items()})


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


def _weights(
    role: str, fitted: Mapping[str, Sequence[FittedLayer]], layers: Layers, lengths_of: LengthsOf
) -> LoraWeights:
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
    low_rank = LowRank(LAYERS[most], padded_rank(rank), _scaled(fitted))
    return LoraWeights(role, low_rank, chosen, fitted, lengths_of)


def _scaled(fitted: Mapping[str, Sequence[FittedLayer]]) -> str:
    """What DoRAs scale of a graph's layers. Raises LoraError where some scale outputs and others inputs."""
    doras = {each.along: each.lora.file.path for layers in fitted.values() for each in layers if each.along}
    if len(doras) > 1:
        one, other = doras.values()
        raise LoraError(
            f"{one} has magnitudes of outputs and {other} of inputs, and one graph takes either",
            fix=f"merge one of them: tintype merge BUNDLE --lora {other} OUT, and draw with OUT and the other one",
        )
    return next(iter(doras), "")


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
    if layer.kind == "full":
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
