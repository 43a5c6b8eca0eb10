"""What a build is for, besides the graph and the machine: a shape, how exact, how its weights lie, how many threads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tintype.uses import EXACTNESS, Cut, ImageTokens, LowRank


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """dims: numbers for the graph's named dims (batch, height, width, sequence); none builds for any shape, unmeasured.

    exactness: `exact` keeps what the canonical graph computes; `balanced` may also quantize the inputs of layers whose
    weights the bundle holds as int8. mapped: weights stay in their mapped files: slower, but hardly any memory of the
    process's own. segment_bytes: the graph is cut so that a part has no more weights than that; parts are mapped, run
    and dropped in turn. strip_bytes: feature maps are made in strips of rows no larger than that, and lie in a file
    between the parts of the graph where they are larger as a whole. standing: the parts of a graph in segments
    stay open, and only their weights leave memory after each run; otherwise a part is opened for each run. It is no
    matter of the build. threads: those that the build's kernels are chosen for; None is one a physical core. timed:
    True times each layer's kernels here, which takes minutes for a large graph; False takes those that were the fastest
    on such processors, see `kernels.priors`; None is a timed build where there is one, else one that isn't. cut: see
    `GraphUse`, and so token_merging, low_rank, embedding_rows, residuals, features and image_tokens; a graph is changed
    so for one shape only.
    """

    dims: tuple[tuple[str, int], ...] = ()
    exactness: str = "balanced"
    mapped: bool = False
    segment_bytes: int | None = None
    strip_bytes: int | None = None
    standing: bool = False
    threads: int | None = None
    timed: bool | None = None
    cut: Cut | None = None
    token_merging: float = 0.0
    low_rank: LowRank | None = None
    embedding_rows: int = 0
    residuals: tuple[int, ...] = ()
    features: tuple[tuple[int, int, int], ...] = ()
    image_tokens: ImageTokens | None = None

    def __post_init__(self) -> None:
        if self.exactness not in EXACTNESS:
            raise ValueError(f"exactness is {self.exactness!r}, not one of {', '.join(EXACTNESS)}")
        if self.is_changed and not self.dims:
            raise ValueError("a graph is cut, or changed in another way, for one shape only")

    @classmethod
    def for_shape(
        cls,
        dims: Mapping[str, int],
        *,
        exactness: str = "balanced",
        mapped: bool = False,
        segment_bytes: int | None = None,
        strip_bytes: int | None = None,
        standing: bool = False,
        threads: int | None = None,
        timed: bool | None = None,
        cut: Cut | None = None,
        token_merging: float = 0.0,
        low_rank: LowRank | None = None,
        embedding_rows: int = 0,
        residuals: tuple[int, ...] = (),
        features: tuple[tuple[int, int, int], ...] = (),
        image_tokens: ImageTokens | None = None,
    ) -> BuildOptions:
        return cls(
            dims=tuple(sorted(dims.items())),
            exactness=exactness,
            mapped=mapped or segment_bytes is not None or strip_bytes is not None,
            segment_bytes=segment_bytes,
            strip_bytes=strip_bytes,
            standing=standing,
            threads=threads,
            timed=timed,
            cut=cut,
            token_merging=token_merging,
            low_rank=low_rank,
            embedding_rows=embedding_rows,
            residuals=residuals,
            features=features,
            image_tokens=image_tokens,
        )

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> BuildOptions:
        """Of what `dataclasses.asdict` gave and JSON carried."""
        cut, low_rank, image_tokens = told["cut"], told["low_rank"], told["image_tokens"]
        changes = {
            "dims": tuple((str(name), int(number)) for name, number in told["dims"]),
            "cut": None if cut is None else Cut(**cut),
            "low_rank": None if low_rank is None else LowRank(**low_rank),
            "residuals": tuple(told["residuals"]),
            "features": tuple((int(channels), int(high), int(wide)) for channels, high, wide in told["features"]),
            "image_tokens": None if image_tokens is None else ImageTokens(**image_tokens),
        }
        return cls(**{**told, **changes})

    @property
    def is_changed(self) -> bool:
        """Whether it is a build of another graph than the canonical one, which is made of that."""
        return self.change != ""

    @property
    def change(self) -> str:
        """Of the canonical graph, in words; empty where there is none."""
        words = [f"merging={self.token_merging:g}"] if self.token_merging else []
        words += [f"rows={self.embedding_rows}"] if self.embedding_rows else []
        runs = [f"{channels}x{len(list(run))}" for channels, run in itertools.groupby(self.residuals)]
        words += [f"residuals={'+'.join(runs)}"] if runs else []
        sizes = ["x".join(map(str, size)) for size in self.features]
        words += [f"features={'+'.join(sizes)}"] if sizes else []
        changes = (self.image_tokens, self.low_rank, self.cut)
        return " ".join([*words, *(str(each) for each in changes if each is not None)])

    @property
    def shape(self) -> str:
        """For people and for the build key: batch=2 height=64 width=64, or `any`."""
        return " ".join(f"{name}={number}" for name, number in self.dims) or "any"

    @property
    def plan(self) -> str:
        """The rest of it in words, for people and for the build key."""
        words = [self.exactness]
        if self.mapped:
            words.append("mapped")
        if self.segment_bytes is not None:
            words.append(f"segments={self.segment_bytes / 2**20:g}MiB")
        if self.strip_bytes is not None:
            words.append(f"strips={self.strip_bytes / 2**20:g}MiB")
        if self.dims and self.threads is not None:
            words.append(f"threads={self.threads}")
        if self.dims and self.timed:
            words.append("timed")
        if self.is_changed:
            words.append(self.change)
        return " ".join(words)


ANY_SHAPE = BuildOptions()
