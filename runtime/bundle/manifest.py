"""What a bundle says about itself: tintype.json as frozen dataclasses. models/FORMAT.md is the full definition.

A `Manifest` that exists has passed every check that needs no other file: names and sizes are sane, paths stay inside
the bundle, and every file that it refers to is in its list of files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from tintype.bounds import (
    MAX_DIMENSION_CHARS,
    MAX_FILE_BYTES,
    MAX_ORIGIN_CHARS,
    MAX_ORIGIN_TEXTS,
    MAX_PROMPT_BYTES,
)
from tintype.bundle.listing import check_listed, check_shown
from tintype.bundle.parity import Parity
from tintype.bundle.preview import PreviewFactors
from tintype.bundle.shapes import channels, check_graphs
from tintype.bundle.skew import Skew, check_skews
from tintype.strict_json import require
from tintype.uses import EXACTNESS

FORMAT_VERSION = 1
MANIFEST_NAME = "tintype.json"
COPY_AGAIN = "copy the bundle again, or export the checkpoint again"  # what helps where a file of it is damaged

MAX_DIMENSION = 2**24  # elements along one axis of an input or output

DTYPES = ("float32", "float16", "float64", "int64", "int32", "bool")  # as numpy names them
PRECISIONS = ("fp32", "fp16", "int8", "int4")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

XL = "stable-diffusion-xl"  # the family with two text encoders, whose denoiser is told of sizes
REFINER = "stable-diffusion-xl-refiner"  # XL's second half: text_encoder_2 alone, and an aesthetic score
PIX2PIX = "instruct-pix2pix"  # its denoiser takes a picture's latents beside the noisy ones

FULL, FAST = "full", "fast"  # variants of a role: what every request takes, and what one that asks for it does
GUIDANCE_INPUT = "timestep_cond"  # of a denoiser that is told its guidance scale (latent consistency models)

# Outputs that a text encoder may have: clip_skip.1, clip_skip.2, ... are what it gives without so many last layers.
CLIP_SKIP = "clip_skip."

Names = dict[str, tuple[frozenset[str], frozenset[str]]]  # by role: inputs, outputs

# What each role's graph takes and gives (the names that optimum and diffusers use).
GRAPH_NAMES: Names = {
    "text_encoder": (frozenset({"input_ids"}), frozenset({"last_hidden_state"})),
    "denoiser": (frozenset({"sample", "timestep", "encoder_hidden_states"}), frozenset({"out_sample"})),
    "vae_decoder": (frozenset({"latent_sample"}), frozenset({"sample"})),
}
DECODER = "vae_decoder"
ENCODER = "vae_encoder"  # a bundle may hold it; no picture from words needs it
TINY_DECODER, TINY_ENCODER = "tiny_decoder", "tiny_encoder"  # a small, fast autoencoder of the same latents
DECODERS = {"full": DECODER, "tiny": TINY_DECODER}  # by what a request calls them
ENCODERS = {"full": ENCODER, "tiny": TINY_ENCODER}
XL_GRAPH_NAMES: Names = {
    "text_encoder": (frozenset({"input_ids"}), frozenset({"hidden_states"})),
    "text_encoder_2": (frozenset({"input_ids"}), frozenset({"hidden_states", "text_embeds"})),
    "denoiser": (GRAPH_NAMES["denoiser"][0] | {"text_embeds", "time_ids"}, GRAPH_NAMES["denoiser"][1]),
    "vae_decoder": GRAPH_NAMES["vae_decoder"],
}
# By family, what every picture takes.
FAMILY_GRAPHS: dict[str, Names] = {
    "stable-diffusion": GRAPH_NAMES,
    XL: XL_GRAPH_NAMES,
    REFINER: {role: names for role, names in XL_GRAPH_NAMES.items() if role != "text_encoder"},
    PIX2PIX: GRAPH_NAMES,
}
FAMILIES = tuple(FAMILY_GRAPHS)
# What a bundle may hold beside.
OPTIONAL_GRAPHS: Names = {
    TINY_DECODER: GRAPH_NAMES["vae_decoder"],
    TINY_ENCODER: (frozenset({"sample"}), frozenset({"latent_parameters"})),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of a graph; a dimension is a number, or a name for one that the caller chooses."""

    name: str
    dtype: str  # as numpy names it: float32, int64, ...
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        require(self.dtype in DTYPES, f"{self.name} is of type {self.dtype!r}, which is not one of {', '.join(DTYPES)}")
        require(len(self.shape) <= 8, f"{self.name} has {len(self.shape)} dimensions; 8 is the most")
        for dimension in self.shape:
            if isinstance(dimension, str):
                require(
                    len(dimension) <= MAX_DIMENSION_CHARS, f"{self.name} has a dimension of {len(dimension):,} letters"
                )
            else:
                require(0 < dimension <= MAX_DIMENSION, f"{self.name} has a dimension of {dimension:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One variant of one role: a canonical ONNX file and the precision of its weights."""

    file: str
    precision: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    # The largest magnitude of every value that came near float16's end on real inputs, by name; None: not measured.
    largest: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        known = self.precision in PRECISIONS
        require(known, f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        require(0 < len(self.inputs) <= 256 and 0 < len(self.outputs) <= 256, f"{self.file} has absurd ports")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        require(0 <= self.bytes <= MAX_FILE_BYTES, f"a file of {self.bytes:,} bytes is absurd")
        require(re.fullmatch("[0-9a-f]{64}", self.sha256) is not None, "sha256 should be 64 hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedPart:
    """What was given in place of a part of the checkpoint, or beside it."""

    location: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint that the bundle was exported from."""

    location: str
    revision: str | None = None
    sha256: str | None = None
    vae: ReplacedPart | None = None  # that the user gave in place of the checkpoint's own
    tiny_vae: ReplacedPart | None = None  # and beside it
    fast: ReplacedPart | None = None  # the checkpoint of the fast denoiser
    base: ReplacedPart | None = None  # the checkpoint that a ControlLoRA adds to
    origin: Mapping[str, str] = field(default_factory=dict)  # what one file's metadata says, by key of ModelSpec
    assumed: tuple[str, ...] = ()  # what nothing in the checkpoint says, a sentence each

    def __post_init__(self) -> None:
        for name, texts in (("origin", [*self.origin, *self.origin.values()]), ("assumed", self.assumed)):
            count = len(getattr(self, name))
            require(count <= MAX_ORIGIN_TEXTS, f"source.{name} has {count:,} texts; {MAX_ORIGIN_TEXTS} are the most")
            longest = max(map(len, texts), default=0)
            require(longest <= MAX_ORIGIN_CHARS, f"source.{name} has a text of {longest:,} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRequest:
    """What a request that leaves a field out gets."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    sigmas: str | None = None  # a spacing by name; None is what the checkpoint's scheduler says
    negative_prompt: str = ""
    exactness: str = "balanced"
    guidance_rescale: float = 0.0
    image_guidance_scale: float | None = None  # of InstructPix2Pix
    strength: float | None = None  # with a picture to begin with; None is what the runtime takes

    def __post_init__(self) -> None:
        for name, least, most in (("guidance_rescale", 0, 1), ("strength", 0, 1), ("image_guidance_scale", 1, 100)):
            value = getattr(self, name)
            sane = value is None or least <= value <= most
            require(sane, f"default_request.{name} {value} is not {least} to {most}")
        require(1 <= self.num_inference_steps <= 1000, "num_inference_steps should be 1 to 1000")
        length = len(self.negative_prompt.encode("utf-8", "replace"))
        require(length <= MAX_PROMPT_BYTES, f"negative_prompt has {length:,} bytes; {MAX_PROMPT_BYTES:,} are the most")
        known = self.exactness in EXACTNESS
        require(known, f"exactness {self.exactness!r} is not one of {', '.join(EXACTNESS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FastRequest:
    """What a request that asks for the fast denoiser gets in place of the usual."""

    num_inference_steps: int
    guidance_scale: float
    sampler: str
    sigmas: str | None = None  # as in `DefaultRequest`

    def __post_init__(self) -> None:
        require(1 <= self.num_inference_steps <= 1000, "num_inference_steps of fast should be 1 to 1000")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeLimits:
    """Pictures this model can make, in pixels, each side."""

    multiple: int
    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        require(1 <= self.multiple <= 1024, f"multiple is {self.multiple}; 1 to 1024 makes sense")
        sane = 1 <= self.minimum <= self.maximum <= 16384
        require(sane, f"sizes from {self.minimum} to {self.maximum} make no sense")
        require(self.minimum % self.multiple == 0, f"minimum {self.minimum} is no multiple of {self.multiple}")
        require(self.maximum % self.multiple == 0, f"maximum {self.maximum} is no multiple of {self.multiple}")

    def allows(self, *sides: int) -> bool:
        """Whether the model makes pictures with such sides."""
        return all(self.minimum <= side <= self.maximum and side % self.multiple == 0 for side in sides)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    file: str
    max_length: int  # tokens the text encoder takes at once, the start and end marks included
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def __post_init__(self) -> None:
        require(3 <= self.max_length <= 4096, f"max_length is {self.max_length}; 3 to 4096 makes sense")
        for token in (self.bos_token_id, self.eos_token_id, self.pad_token_id):
            require(0 <= token < 2**31, f"{token} is no token id")


class Listing(Protocol):
    """Of a manifest, what its files are held against."""

    @property
    def files(self) -> Mapping[str, FileFacts]: ...
    @property
    def graphs(self) -> Mapping[str, Mapping[str, Graph]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole of tintype.json."""

    format_version: int = FORMAT_VERSION
    name: str
    licence: str
    source: Source
    family: str
    prediction_type: str
    scaling_factor: float  # the VAE decodes latents / scaling_factor + shift_factor
    shift_factor: float = 0.0
    vae_scale_factor: int  # image pixels per latent cell, each side
    latent_channels: int
    default_request: DefaultRequest
    fast: FastRequest | None = None  # None: there is no fast denoiser
    size: SizeLimits
    tokenizer: TokenizerFacts
    tokenizer_2: TokenizerFacts | None = None  # of text_encoder_2, in XL
    force_zeros_for_empty_prompt: bool = False  # an empty negative prompt is zeros, not the embedding of no words
    scheduler: str
    graphs: Mapping[str, Mapping[str, Graph]]  # by role, then by variant ("full")
    files: Mapping[str, FileFacts]  # every file of the bundle but tintype.json, paths with forward slashes
    parity: tuple[Parity, ...] = ()
    preview: PreviewFactors | None = None  # None: those of its family, where there are any
    skew: tuple[Skew, ...] = ()  # what pictures of prompts showed that these leave open
    cost: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_facts()
        self._check_files()
        check_skews(self.skew)
        check_graphs(self, OPTIONAL_GRAPHS)

    def defaults(self, *, fast: bool) -> DefaultRequest:
        """What a request that leaves a field out gets, with the fast denoiser or without."""
        if self.fast is None or not fast:
            return self.default_request
        return replace(self.default_request, **asdict(self.fast))

    @property
    def text_encoders(self) -> dict[str, TokenizerFacts]:
        """The roles that read a prompt, in order, and the tokenizer of each."""
        facts = [self.tokenizer] if self.tokenizer_2 is None else [self.tokenizer, self.tokenizer_2]
        return dict(zip(self._text_roles, facts, strict=True))

    @property
    def clip_skips(self) -> int:
        """How many of their last layers all text encoders can leave out; 0 in bundles of an older exporter."""
        counts = []
        for role in self.text_encoders:
            names = {port.name for graph in self.graphs.get(role, {}).values() for port in graph.outputs}
            counts.append(next(skip for skip in itertools.count() if f"{CLIP_SKIP}{skip + 1}" not in names))
        return min(counts)

    def latent_numbers(self, width: int, height: int) -> int:
        """How many numbers the latents of a picture have, of so many pixels."""
        return self.latent_channels * (width // self.vae_scale_factor) * (height // self.vae_scale_factor)

    def has(self, decoder: str) -> bool:
        """Whether it has a decoder, as a request calls it."""
        return DECODERS[decoder] in self.graphs

    @property
    def is_inpainting(self) -> bool:
        """Whether the denoiser takes a mask and the latents of a masked picture beside the noisy latents."""
        return channels(self.graphs.get("denoiser", {}), "sample") == {self.inpainting_channels}

    @property
    def is_editing(self) -> bool:
        """Whether the denoiser takes a picture's latents beside the noisy ones, as InstructPix2Pix does."""
        return self.family == PIX2PIX

    @property
    def needs_picture(self) -> bool:
        """Whether it draws nothing from words alone."""
        return self.is_inpainting or self.is_editing or self.family == REFINER

    @property
    def guidance_embedding(self) -> int | None:
        """How many numbers the denoiser is told its guidance scale in; None where guidance takes two predictions."""
        for graph in self.graphs.get("denoiser", {}).values():
            for port in graph.inputs:
                if port.name == GUIDANCE_INPUT:
                    return port.shape[-1] if port.shape and isinstance(port.shape[-1], int) else 0
        return None

    @property
    def sample_channels(self) -> tuple[int, ...]:
        """How many channels the `sample` of a denoiser of this family may have."""
        if self.family == PIX2PIX:
            return (2 * self.latent_channels,)
        return (self.latent_channels, self.inpainting_channels)

    @property
    def _text_roles(self) -> tuple[str, ...]:
        return tuple(role for role in self.graph_names if role.startswith("text_encoder"))

    @property
    def inpainting_channels(self) -> int:
        """Of the `sample` of such a denoiser: noisy latents, one for the mask, latents of the masked picture."""
        return 2 * self.latent_channels + 1

    @property
    def graph_names(self) -> Names:
        """By role, what the graphs that a picture takes have for inputs and outputs."""
        return FAMILY_GRAPHS[self.family]

    def _check_facts(self) -> None:
        check_shown(self.name, self.licence, self.family)
        require(self.family in FAMILIES, f"the family {self.family!r} is not one of {', '.join(FAMILIES)}")
        require(
            (len(self._text_roles) == 2) == (self.tokenizer_2 is not None),
            f"tokenizer_2 belongs to the family {XL} and to no other",
        )
        known = self.prediction_type in PREDICTION_TYPES
        require(known, f"prediction_type {self.prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
        sane = 1e-6 <= abs(self.scaling_factor) <= 1e6 and abs(self.shift_factor) <= 1e6
        require(sane, f"scaling_factor {self.scaling_factor:g} and shift_factor {self.shift_factor:g} are absurd")
        require(1 <= self.vae_scale_factor <= 128, f"vae_scale_factor {self.vae_scale_factor} is absurd")
        require(1 <= self.latent_channels <= 1024, f"latent_channels {self.latent_channels} is absurd")
        require(
            self.size.multiple % self.vae_scale_factor == 0,
            f"size.multiple {self.size.multiple} is no multiple of vae_scale_factor {self.vae_scale_factor}",
        )
        rows = self.latent_channels if self.preview is None else len(self.preview.weights)
        require(rows == self.latent_channels, f"preview has {rows:,} channels, the latents {self.latent_channels}")
        denoisers = self.graphs.get("denoiser", {})
        require(self.fast is None or FAST in denoisers, "it says how to draw with a fast denoiser, and has none")
        inputs = {frozenset(port.name for port in graph.inputs) for graph in denoisers.values()}
        require(len(inputs) <= 1, "the variants of its denoiser don't take the same inputs")
        for name in ("width", "height"):
            pixels = getattr(self.default_request, name)
            require(self.size.allows(pixels), f"default_request.{name} {pixels} does not keep to the limits in size")

    def _check_files(self) -> None:
        referred = [self.scheduler, *(tokenizer.file for tokenizer in self.text_encoders.values())]
        referred += [graph.file for variants in self.graphs.values() for graph in variants.values()]
        check_listed(self.files, referred, self.graphs, self.parity)
