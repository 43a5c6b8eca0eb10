"""What controls a request, ControlNets and T2I-Adapters, each with a picture: opened, checked against the model,
recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tintype.bounds import MAX_CONTROLS
from tintype.errors import RecordError, RequestError, near_names
from tintype.request import checks
from tintype.uses import T2I_ADAPTER

if TYPE_CHECKING:
    from PIL.Image import Image

    from tintype.bundle.controlnet import ControlNet
    from tintype.bundle.manifest import Manifest
    from tintype.bundle.opening import Control
    from tintype.bundle.t2i_adapter import T2IAdapter

# Each a mapping of the names in FIELDS, or MODEL=PICTURE[=WEIGHT][@START-END].
GivenControl: TypeAlias = "Sequence[Mapping[str, Any] | str]"

FIELDS = ("model", "image", "weight", "start", "end", "preprocess")
MAX_CONTROL_WEIGHT = 10.0
_NUMBER = r"[+-]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9})"
_TYPED = re.compile(
    rf"(?P<model>[^=]+)=(?P<image>.+?)(?:=(?P<weight>{_NUMBER}))?(?:@(?P<start>{_NUMBER})-(?P<end>{_NUMBER}))?",
    re.DOTALL,
)
FOR_THIS = "give one that was trained for this model's family"
_FIX = "give MODEL=PICTURE, MODEL=PICTURE=WEIGHT or MODEL=PICTURE=WEIGHT@START-END, as in canny=edges.png=0.8@0-0.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFacts:
    """The part of one ControlNet or T2I-Adapter in a picture."""

    model: str  # its bundle's name
    model_hash: str
    image: str  # sha256 of its picture's upright RGB pixels, before they were fitted
    weight: float
    start: float  # from which share of the steps on
    end: float
    fit: str
    preprocess: str | None = None

    def is_on(self, step: int, steps: int) -> bool:
        """Whether it has a part in a step of so many, as diffusers counts them."""
        return step / steps >= self.start and (step + 1) / steps <= self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlInput:
    """A ControlNet or T2I-Adapter itself, and the picture that it is shown, as it was given."""

    net: Control
    picture: Image


def open_control(
    given: GivenControl, preprocess: str | None, fit: str, manifest: Manifest
) -> tuple[tuple[ControlFacts, ...], tuple[ControlInput, ...]]:
    """Open what controls, with its pictures. preprocess: of those that say nothing of it themselves.

    Raises RequestError for what can't be done, BundleError for a bundle that isn't whole.
    """
    from tintype.bundle.opening import open_control_bundle
    from tintype.image.fit import FITS
    from tintype.image.preprocess import demand_preprocessor
    from tintype.image.source import open_picture, picture_bytes_hash

    checks.name("fit", fit, FITS)
    facts, inputs = [], []
    for each in _listed(given):
        said = read_control(each)
        shown = said.get("preprocess", preprocess)
        if shown is not None:
            demand_preprocessor(shown)
        start, end = _span(said)
        weight = checks.number("a control's weight", said.get("weight", 1.0), 0.0, MAX_CONTROL_WEIGHT)
        net = open_control_bundle(said["model"])
        _demand_fitting(net, manifest)
        picture = open_picture(said["image"], what="control picture", background="black")
        inputs.append(ControlInput(net=net, picture=picture))
        facts.append(
            ControlFacts(
                model=net.name,
                model_hash=net.hash,
                image=picture_bytes_hash(picture),
                weight=weight,
                start=start,
                end=end,
                fit=fit,
                preprocess=shown,
            )
        )
    _demand_same_features([each.net for each in inputs])
    return tuple(facts), tuple(inputs)


def _listed(given: object) -> Sequence[Any]:
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise RequestError(f"control is {type(given).__name__}, and no list of ControlNets", fix="give a list of them")
    if len(given) > MAX_CONTROLS:
        raise RequestError(f"{len(given):,} ControlNets are given; {MAX_CONTROLS} are the most", fix="leave some out")
    return given


def read_control(given: object) -> dict[str, Any]:
    """The fields of one control, of a mapping or of what was typed. Raises RequestError."""
    if isinstance(given, str):
        found = _TYPED.fullmatch(given)
        if found is None:
            raise RequestError(f"{given[:80]!r} is no control", fix=_FIX)
        words = {name: text for name, text in found.groupdict().items() if text is not None}
        return {name: text if name in ("model", "image") else float(text) for name, text in words.items()}
    if not isinstance(given, Mapping):
        raise RequestError(f"{type(given).__name__} is no control", fix='give dict(model="canny", image="edges.png")')
    for name in given:
        if name not in FIELDS:
            raise RequestError(f"a control has no {str(name)[:60]!r}", fix=near_names(str(name)[:60], FIELDS))
    for name in ("model", "image"):
        if given.get(name) is None:
            raise RequestError(f"a control has no {name}", fix='give dict(model="canny", image="edges.png")')
    return {name: value for name, value in given.items() if value is not None}


def _span(said: Mapping[str, Any]) -> tuple[float, float]:
    start, end = (
        checks.number(f"a control's {name}", said.get(name, usual), 0.0, 1.0)
        for name, usual in (("start", 0.0), ("end", 1.0))
    )
    if start >= end:
        raise RequestError(
            f"a control from {start:g} to {end:g} of the steps has no part in any", fix="let it end after it starts"
        )
    return start, end


def _demand_fitting(net: Control, manifest: Manifest) -> None:
    """RequestError for what was trained for other models than this one."""
    from tintype.bundle.t2i_adapter import T2IAdapter

    what = "T2I-Adapter" if isinstance(net, T2IAdapter) else "ControlNet"
    if net.manifest.controls != manifest.family:
        raise RequestError(
            f"the {what} {net.name} controls {net.manifest.controls}, and this model is {manifest.family}",
            fix=FOR_THIS,
        )
    if isinstance(net, T2IAdapter):
        _demand_fitting_cells(net, manifest)
    else:
        _demand_fitting_ports(net, manifest)


def _demand_same_features(nets: Sequence[Control]) -> None:
    """RequestError for T2I-Adapters whose features can't be added up."""
    from tintype.bundle.t2i_adapter import T2IAdapter

    found = [net for net in nets if isinstance(net, T2IAdapter)]
    for other in found[1:]:
        if found[0].manifest.features != other.manifest.features:
            raise RequestError(
                f"the T2I-Adapters {found[0].name} and {other.name} give other features than one another",
                fix="give those that were trained for this model's family, or one of the two",
            )


def _demand_fitting_cells(net: T2IAdapter, manifest: Manifest) -> None:
    """RequestError where a feature has cells of other sizes than any of the denoiser's values can have."""
    for _, cell in net.manifest.features:
        if cell % manifest.vae_scale_factor or manifest.size.multiple % cell:
            raise RequestError(
                f"the T2I-Adapter {net.name} gives a feature with cells of {cell} pixels, and this model's latents "
                f"have {manifest.vae_scale_factor}, in pictures of multiples of {manifest.size.multiple}",
                fix=FOR_THIS,
            )


def _demand_fitting_ports(net: ControlNet, manifest: Manifest) -> None:
    ports = {port.name: port.shape[-1:] for port in next(iter(manifest.graphs["denoiser"].values())).inputs}
    for port in net.manifest.graph.inputs:
        ours, theirs = ports.get(port.name, ()), port.shape[-1:]
        if port.name in ("encoder_hidden_states", "text_embeds", "time_ids") and ours != theirs:
            raise RequestError(
                f"the ControlNet {net.name} takes {port.name} of {theirs[0]} numbers, and this model has {ours[0]}"
                if ours
                else f"the ControlNet {net.name} takes {port.name}, which this model doesn't",
                fix=FOR_THIS,
            )
    for name in ("latent_channels", "vae_scale_factor"):
        ours, theirs = getattr(manifest, name), getattr(net.manifest, name)
        if ours != theirs:
            raise RequestError(f"the ControlNet {net.name} has {name} {theirs}, and this model {ours}", fix=FOR_THIS)


def demand_one_that_guesses(control: Sequence[ControlInput]) -> None:
    """RequestError where none of these is a ControlNet."""
    if all(given.net.manifest.family == T2I_ADAPTER for given in control):
        raise RequestError(
            "control_guess is given, and no ControlNet",
            fix="leave it out: a T2I-Adapter leads where words don't as much as where they do",
        )


def demand_control_facts(known: Sequence[ControlFacts]) -> None:
    """RequestError where facts that somebody else wrote down are not such as `open_control` gives."""
    from tintype.image.fit import FITS
    from tintype.image.preprocess import demand_preprocessor

    _listed(known)
    for each in known:
        for digits in (each.image, each.model_hash):
            if re.fullmatch("[0-9a-f]{64}", digits) is None:
                raise RequestError("a control's sha256 is none", fix="give 64 hexadecimal digits")
        checks.number("a control's weight", each.weight, 0.0, MAX_CONTROL_WEIGHT)
        _span({"start": each.start, "end": each.end})
        checks.name("fit", each.fit, FITS)
        if each.preprocess is not None:
            demand_preprocessor(each.preprocess)
        if not 0 < len(each.model) <= 200 or not each.model.isprintable():
            raise RequestError("a control's model has no name", fix="give its bundle's")


def controls_again(known: Sequence[ControlFacts], given: GivenControl) -> list[dict[str, Any]]:
    """The controls of a record, to be asked for again. given: each one's model and picture, in their order.

    Raises RecordError where one is missing, or says otherwise.
    """
    wanted = " and ".join(f"{each.model} ({each.model_hash[:12]})" for each in known)
    if len(_listed(given)) != len(known):
        raise RecordError(
            f"the record's picture was controlled by {wanted or 'no ControlNet'}",
            fix="give each with its picture, in this order: control=, or --control MODEL=PICTURE"
            if known
            else "leave control out",
        )
    found = []
    for was, each in zip(known, given, strict=True):
        said = read_control(each)
        recorded = {"weight": was.weight, "start": was.start, "end": was.end, "preprocess": was.preprocess}
        for name, value in recorded.items():
            if said.get(name, value) != value:
                raise RecordError(
                    f"the record's picture has {was.model} with {name} {value}, not {said[name]}",
                    fix=f"leave {name} out",
                )
        found.append({"model": said["model"], "image": said["image"], **recorded})
    return found


def demand_same_control(known: Sequence[ControlFacts], now: Sequence[ControlFacts]) -> None:
    """RecordError where what controls, or its picture, isn't that of a record."""
    for was, here in zip(known, now, strict=True):
        if was.model_hash != here.model_hash:
            raise RecordError(
                f"the record's picture was controlled by {was.model} {was.model_hash[:12]}, and this is "
                f"{here.model} {here.model_hash[:12]}",
                fix="give the one that it was made with",
            )
        if was != here:
            raise RecordError(
                f"the record's picture had another picture for {was.model}", fix="give that one, unchanged"
            )
