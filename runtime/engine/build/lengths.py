"""How long the rows, or columns, of weights are once a pair of low rank is added: what DoRAs divide by.

Found in a child process, some outputs at a time, and kept in the cache: it depends on the graph's weights and on the
pairs alone, and on no weight that a request gives them.

The child process is `python -m tintype.engine.build.lengths`.
"""

from __future__ import annotations

import base64
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tintype.engine.build.builds import GraphSource
from tintype.engine.build.child import DISK, answer_parent
from tintype.engine.build.found import found_once
from tintype.engine.build.late import import_late
from tintype.engine.build.merge import ONE_THREAD
from tintype.errors import BuildError
from tintype.strict_json import require
from tintype.uses import BY_INPUT, GraphRef

Floats = NDArray[np.float32]
# A layer's name, what of it is measured, BY_OUTPUT or BY_INPUT, up (outputs, rank) and down (rank, inputs * kernel)
LayerPair: TypeAlias = tuple[str, str, Floats, Floats]


@dataclass(frozen=True, slots=True)
class Lengths:
    """of: each pair, float32 numbers, least byte first, in base64."""

    of: tuple[str, ...]

    def __post_init__(self) -> None:
        require(all(len(base64.b64decode(text, validate=True)) % 4 == 0 for text in self.of), "lengths are cut")


def lengths_with(
    bundle: GraphSource, ref: GraphRef, facts: Iterable[str], pairs: Callable[[], Iterable[LayerPair]]
) -> list[Floats]:
    """Of each pair |weight + up . down|, (outputs,) or (inputs,). pairs: is asked only where they aren't known by these
    facts, which tell them from all others, and once through. Raises BuildError."""
    changed = bundle.changed_weights(ref.role, ref.variant)
    with tempfile.TemporaryDirectory(prefix="tintype-") as scratch:
        found = found_once(
            Lengths,
            "lengths",
            (bundle.hash, str(ref), *facts),
            "tintype.engine.build.lengths",
            functools.partial(_job, bundle.graph_path(ref.role, ref.variant), changed, Path(scratch) / "pairs", pairs),
            f"the weights of {ref} cannot be measured",
            ONE_THREAD,
        )
    return [np.frombuffer(base64.b64decode(text), "<f4") for text in found.of]


def _job(source: Path, changed: Path | None, place: Path, pairs: Callable[[], Iterable[LayerPair]]) -> dict[str, Any]:
    """Writes the pairs, one after another."""
    layers = []
    try:
        with place.open("wb") as file:
            for name, along, up, down in pairs():
                layers.append([name, along, file.tell(), len(down)])
                for matrix in (up, down):
                    file.write(np.ascontiguousarray(matrix, "<f4").tobytes())
    except OSError as error:
        why = f"{place} cannot be written: {error.strerror}"
        raise BuildError(why, fix="free some disk space", kind=DISK) from None
    paths = {"source": str(source.resolve()), "changed": None if changed is None else str(changed.resolve())}
    return {**paths, "pairs": str(place.resolve()), "layers": layers}


def main() -> int:
    """Measure the weights that stdin names."""
    import_late()
    return answer_parent(_answer)


def _answer(text: str) -> dict[str, Any]:
    import onnx_ir as ir

    from tintype.engine.build.merge import changed_weights
    from tintype.kernels.graph.low_rank import adaptable_layers
    from tintype.kernels.graph.merge import put_weights, squared_lengths

    job, made = json.loads(text), []
    model = ir.load(Path(job["source"]))
    if job["changed"] is not None:
        put_weights(model.graph, changed_weights(Path(job["changed"])))
    layers = adaptable_layers(model.graph)
    with Path(job["pairs"]).open("rb") as file:
        for name, along, start, rank in job["layers"]:
            outputs, *rest = layers[name].shape
            file.seek(start)
            up, down = (_matrix(file, shape) for shape in ((outputs, rank), (rank, int(np.prod(rest)))))
            squares = squared_lengths(layers[name], (up, down), by_input=along == BY_INPUT)
            made.append(base64.b64encode(np.sqrt(squares).astype("<f4").tobytes()).decode())
    return {"of": made}


def _matrix(file: Any, shape: tuple[int, int]) -> Floats:
    return np.frombuffer(file.read(4 * shape[0] * shape[1]), "<f4").reshape(shape)


if __name__ == "__main__":
    sys.exit(main())
