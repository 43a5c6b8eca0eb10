"""How a request uses graphs: which, in what shape, how often, and beside which others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

EXACTNESS = ("exact", "balanced")  # see Request.exactness

# Graphs of one phase may be used in turn, call by call. Phases follow one another.
LOOK, ENCODE, START, ADAPT, DENOISE, DECODE = "look", "encode", "start", "adapt", "denoise", "decode"

# Inner values of a denoiser that a step may take over from an earlier one, and what the graph that takes them is called
DEEP_FEATURES, CROSS_ATTENTION = "deep_features", "cross_attention"
TAKERS = {DEEP_FEATURES: "shallow", CROSS_ATTENTION: "gated"}

# Layers that LoRAs change, each name with those before it: queries, keys, values and outputs of attentions; what else
# transformers consist of; every linear layer and convolution.
LAYERS = ("attention", "transformer", "all")
# What of their layers DoRAs scale: the product of each output, or each input.
BY_OUTPUT, BY_INPUT = "outputs", "inputs"
# The role of a ControlNet's graph, what it takes beside a denoiser's inputs, and what it gives to the denoiser's middle
CONTROLNET, CONTROLNET_PICTURE, MID_RESIDUAL = "controlnet", "controlnet_cond", "mid_block_res_sample"
# The role of a T2I-Adapter's graph, and the picture that it takes
T2I_ADAPTER, ADAPTER_PICTURE = "t2i_adapter", "adapter_cond"

# The role of the graph that looks at pictures which stand beside the words of a prompt (IP-Adapter)
IMAGE_ENCODER = "image_encoder"

# The input by which a text encoder takes embeddings that its own table has not, and the id of the first of them, which
# is above every vocabulary. Only their order counts: an encoder may look for the highest id of a prompt.
EMBEDDING_ROWS, FIRST_ADDED_ID = "embedding_rows", 2**30


def down_residual(number: int) -> str:
    """What a ControlNet adds to a skip connection, the outermost being 0."""
    return f"down_block_res_sample_{number}"


def adapter_feature(number: int) -> str:
    """What a T2I-Adapter adds inside the denoiser's way down, or in its middle, the outermost being 0."""
    return f"adapter_feature_{number}"


@dataclass(frozen=True, slots=True, order=True)
class GraphRef:
    """One graph of a bundle. Its `str` is what plans and records call it: the role, where that is enough."""

    role: str
    variant: str = "full"
    index: int = 0  # of several with the same role

    def __str__(self) -> str:
        variant = "" if self.variant == "full" else f".{self.variant}"
        return f"{self.role}{variant}" + (f"[{self.index}]" if self.index else "")


@dataclass(frozen=True, slots=True)
class Cut:
    """One of the two graphs that a denoiser's is lowered to where steps take inner values over from earlier ones.

    values: DEEP_FEATURES or CROSS_ATTENTION. takes: it takes them, and leaves out what only they needed; the other one
    is whole and gives them. branch: of the deep features, at which skip connection they enter, the outermost being 0.
    """

    values: str
    takes: bool
    branch: int = 0

    def __str__(self) -> str:
        place = f"[{self.branch}]" if self.values == DEEP_FEATURES else ""
        return f"{'takes' if self.takes else 'gives'} {self.values}{place}"


@dataclass(frozen=True, slots=True)
class LowRank:
    """Inputs that a graph takes for what LoRAs add to its layers, see `kernels.graph.low_rank`: the same for all LoRAs
    of one pattern, whatever is in them.

    layers: which, by a name of `LAYERS`. rank: of each pair; what has less is filled up with zeros, which add nothing.
    scaled: what of each layer it scales besides, BY_OUTPUT or BY_INPUT, as DoRAs do; empty where there is none of them.
    """

    layers: str
    rank: int
    scaled: str = ""

    def __str__(self) -> str:
        return f"lora={self.layers}/{self.rank}" + (f"*{self.scaled}" if self.scaled else "")


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Keys and values of pictures that cross-attentions take beside those of the words, see
    `kernels.graph.image_tokens`: the same for all pictures and files that come to as many.

    tokens: that one attention looks at. masks: of so many pictures, each with an attention of its own; 0 is one
    attention for all of them.
    """

    tokens: int
    masks: int = 0

    def __str__(self) -> str:
        return f"image-tokens={self.tokens}" + (f"x{self.masks}" if self.masks else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphUse:
    """One graph's part in making the pictures of a request.

    dims: the numbers for its symbolic dims in one call. calls: over the whole request. opens: how often it has to be
    opened where graphs don't stay open. branches: prompts that one call computes together, which can be so many calls
    of a batch that much smaller. unguided: the same graph in another shape, for the steps that guidance leaves to fewer
    branches; where each prompt has a call of its own, these calls are of the guided use's shape. cut: where steps take
    inner values over, which of the two graphs it is; None is the whole graph as it stands. token_merging: the share of
    tokens that its self-attentions leave out, see `kernels.graph.token_merging`. low_rank: what it takes of LoRAs; None
    is nothing. embedding_rows: of a text encoder, how many embeddings it takes beside its own. residuals: of a denoiser
    that ControlNets control, the channels of what it takes at each skip connection, and last in its middle.
    features: of one that T2I-Adapters control, channels, height and width of each value that it takes of them.
    image_tokens: what its cross-attentions take of pictures; None is nothing.
    """

    ref: GraphRef
    phase: str
    dims: Mapping[str, int] = field(hash=False)
    calls: int
    opens: int = 1
    branches: int = 1
    unguided: bool = False
    cut: Cut | None = None
    token_merging: float = 0.0
    low_rank: LowRank | None = None
    embedding_rows: int = 0
    residuals: tuple[int, ...] = ()
    features: tuple[tuple[int, int, int], ...] = ()
    image_tokens: ImageTokens | None = None

    @property
    def takes(self) -> bool:
        """Whether it takes inner values over."""
        return self.cut is not None and self.cut.takes

    @property
    def name(self) -> str:
        """What plans and records call it: unique among the uses of a request."""
        taker = f".{TAKERS[self.cut.values]}" if self.cut is not None and self.cut.takes else ""
        return f"{self.ref}{taker}{'.unguided' if self.unguided else ''}"

    def split(self) -> GraphUse:
        """The same with a call for each prompt."""
        dims = {**self.dims, "batch": self.dims["batch"] // self.branches}
        return replace(self, dims=dims, calls=self.calls * self.branches, branches=1)
