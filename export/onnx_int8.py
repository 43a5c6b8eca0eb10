"""Which layers of a folder's graphs become integers, and how: chosen as `graphs` chooses a checkpoint's, without torch.

Graphs come in the order of a picture, each making the real inputs of the next. A role's fp32 graph is run on them while
its convolutions are watched; then sets of layers are tried on it against the gate, by the rule of `fallback`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tintype.arrays import Latents
from tintype.engine import BuildOptions, graph_session
from tintype.export.calls import Call, Feed
from tintype.export.checkpoint import Checkpoint
from tintype.export.fallback import Choice, Trial, choose
from tintype.export.onnx_inputs import Outputs, Walks, decoder_feed, text_feed, words_of
from tintype.export.parity import Gate
from tintype.export.placing import Scratch
from tintype.export.plans import ExportPlan
from tintype.export.progress import Progress
from tintype.export.quantization import Layer, Scales, find_layers, linear_scales, weight_scales_of
from tintype.export.roles import FLOAT_ROLES, GRAPH_FILES, KEPT_CALLS, has_four_bits
from tintype.export.storage import load_graph
from tintype.export.switchable import SwitchableGraph
from tintype.export.tokenizer import BundleTokenizer
from tintype.export.watched import WatchedGraph
from tintype.sources.families import tokenizer_of

GATES, TRIALS = "gates", "trials"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a role's graph is judged on, and what of it may be integers: nothing of a graph that stays float."""

    feeds: Sequence[Feed]
    choice: Choice
    scales: Mapping[str, Scales]


@dataclass(slots=True)
class Quantizing:
    """How a folder's graphs become int8 or int4; `prepare` is called for each role, in the order of `in_order`."""

    checkpoint: Checkpoint
    tokenizers: Mapping[str, BundleTokenizer]
    precision: str
    plan: ExportPlan
    scratch: Scratch
    progress: Progress
    _texts: dict[str, dict[str, Outputs]] = field(default_factory=lambda: {GATES: {}, TRIALS: {}})
    _latents: dict[str, list[Latents]] = field(default_factory=lambda: {GATES: [], TRIALS: []})
    _pictures: list[Feed] = field(default_factory=list)  # that the decoder made for its gate

    @staticmethod
    def in_order(roles: Sequence[str]) -> list[str]:
        """The decoder before the encoder, whose pictures it makes."""
        return sorted(roles, key=lambda role: role in FLOAT_ROLES)

    def fp32(self, role: str) -> Path:
        """Where a role's fp32 graph lies while it is quantized."""
        return self.scratch.fp32 / GRAPH_FILES[role]

    def prepare(self, role: str) -> Prepared:
        """Run a role's fp32 graph on what it meets, and choose its layers."""
        if role in FLOAT_ROLES:
            return Prepared(self._pictures, Choice((), 0), {})
        layers = find_layers(load_graph(self.fp32(role)), four_bits=has_four_bits(role, self.precision))
        if role.startswith("text_encoder"):
            feeds, calls, watched = self._read(role)
        elif role == "denoiser":
            feeds, calls, watched = self._walk(layers)
        else:
            feeds, calls, watched = self._decode(layers)
        scales = self._scales(role, layers, watched)
        del watched  # its graph is closed before the next one opens
        trial = Trial(SwitchableGraph(self.fp32(role), layers, scales).run, calls, Gate.of(role, self.precision))
        choice = choose(trial, layers, self.plan.damage_seconds, f"damage: {role}", self.progress)
        return Prepared(feeds, choice, scales)

    def _read(self, role: str) -> tuple[list[Feed], list[Call], None]:
        tokenizer = self.tokenizers[tokenizer_of(role)]
        feeds = {
            GATES: text_feed(tokenizer, self.plan.gates.gates),
            TRIALS: text_feed(tokenizer, self.plan.calibration.calibration),
        }
        with graph_session(self.fp32(role), options=BuildOptions(mapped=True), place=self.scratch.folder) as session:
            for kind, feed in feeds.items():
                self._texts[kind][role] = session.run(feed)
        reference = next(iter(self._texts[TRIALS][role].values()))
        return [feeds[GATES]], [Call(feeds[TRIALS], reference)], None

    def _walk(self, layers: Sequence[Layer]) -> tuple[list[Feed], list[Call], WatchedGraph]:
        plan, path = self.plan, self.fp32("denoiser")
        words = {
            kind: words_of(self.checkpoint, texts, each)
            for (kind, texts), each in zip(self._texts.items(), (plan.gates, plan.calibration), strict=True)
        }
        kept: list[Call] = []
        with (
            self.progress.stage("real inputs", plan.gates.gate_prompts),
            graph_session(path, options=BuildOptions(mapped=True), place=self.scratch.folder) as session,
        ):
            walks = Walks(self.checkpoint, words[GATES], plan.gates, session.run)
            feeds = [call.feed for call in walks.gates()]
            self._latents[GATES] = walks.finished
            if plan.trials is not None:
                tried = words_of(self.checkpoint, self._texts[TRIALS], plan.trials)
                kept = Walks(self.checkpoint, tried, plan.trials, session.run).calibration(KEPT_CALLS, lambda _: None)
        calls = plan.calibration.steps * plan.calibration.calibration_prompts
        watched = WatchedGraph(path, layers, calls)
        with self.progress.stage("calibration", calls) as advance:
            walks = Walks(self.checkpoint, words[TRIALS], plan.calibration, watched.run)
            calibrated = walks.calibration(KEPT_CALLS, advance)
            self._latents[TRIALS] = walks.finished
        return feeds, kept or calibrated, watched

    def _decode(self, layers: Sequence[Layer]) -> tuple[list[Feed], list[Call], WatchedGraph]:
        """Both kinds of latents at once: what the encoder is judged on comes of the gates'."""
        feeds, tried = (
            [decoder_feed(self.checkpoint, latents) for latents in self._latents[kind]] for kind in (GATES, TRIALS)
        )
        watched = WatchedGraph(self.fp32("vae_decoder"), layers, len(tried))
        calls = [Call(feed, watched.run(feed)["sample"]) for feed in tried]
        plain = WatchedGraph(self.fp32("vae_decoder"), [], 0)
        self._pictures = [{"sample": plain.run(feed)["sample"].clip(-1, 1)} for feed in feeds]
        return feeds, calls[:KEPT_CALLS], watched

    def _scales(self, role: str, layers: Sequence[Layer], watched: WatchedGraph | None) -> dict[str, Scales]:
        weights = load_graph(self.fp32(role)).graph.initializers
        found = {}
        with self.progress.stage(f"scales: {role}", len(layers)) as advance:
            for layer in layers:
                weight = _rows(weights[layer.weight], layer)
                before, after = (
                    (None, None) if layer.kind == "linear" or watched is None else watched.ranges(layer.module)
                )
                blocks = linear_scales(weight, layer)
                found[layer.module] = Scales(weight_scales_of(weight), before, after, blocks)
                advance(1)
        return found


def _rows(value: ir.Value, layer: Layer) -> np.ndarray:
    """A weight as torch has it, (columns or channels, what each multiplies)."""
    assert value.const_value is not None
    weight = value.const_value.numpy()
    return np.ascontiguousarray(weight.T if layer.kind == "linear" else weight.reshape(len(weight), -1))
