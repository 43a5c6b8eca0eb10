"""ComfyUI's graph of a picture, as it ran (the API's format): {number: {class_type, inputs}}; an input may be a link.

Links are followed from the picture back to a sampler, its words, its latents and its model. A graph may have any shape
and any cycle: every walk sees a node once, and a node is asked for what it has by the names of inputs alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tintype import strict_json
from tintype.bounds import MAX_GRAPH_NODES, MAX_PROMPT_BYTES
from tintype.errors import RecordError
from tintype.prompt.parts import MAX_PARTS
from tintype.record.foreign_names import sampler_named
from tintype.record.likeness import ClipLayer, Likeness, quoted

SAMPLERS = ("KSampler", "KSamplerAdvanced")
MAX_SAMPLERS = 16  # that are looked at
MAX_HOPS = 8  # from an input to the node that has its value
_NOT_A_NUMBER = ("[NaN]", "[null]")  # what Python's json writes for nodes that always run

Node: TypeAlias = Mapping[str, Any]


def read_graph(text: str) -> Likeness:
    """What a graph asks for. Raises RecordError where it is none, or has no sampler that is known."""
    try:
        nodes = strict_json.parse(text.replace(*_NOT_A_NUMBER))
    except strict_json.Misfit as misfit:
        raise RecordError(f"the picture's graph cannot be read: {misfit}", fix="give one as ComfyUI wrote it") from None
    if not isinstance(nodes, dict):
        raise RecordError("the picture's graph is no object", fix="give a picture as ComfyUI wrote it")
    if len(nodes) > MAX_GRAPH_NODES:
        raise RecordError(
            f"the picture's graph has {len(nodes):,} nodes; {MAX_GRAPH_NODES:,} are the most",
            fix="give a picture of a smaller graph",
        )
    graph = _Graph({key: node for key, node in nodes.items() if _is_node(node)})
    samplers = list(itertools.islice(graph.samplers(), MAX_SAMPLERS))
    if not samplers:
        raise RecordError(
            f"the picture's graph has no {' or '.join(SAMPLERS)} that leads to it",
            fix="give a picture that was drawn with one of these; others are not known here",
        )
    return _Reading(graph, samplers).likeness()


def _is_node(node: Any) -> bool:
    return (
        isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs", {}), dict)
    )


@dataclass(frozen=True, slots=True)
class _Graph:
    nodes: Mapping[str, Node]

    def linked(self, node: Node, name: str) -> Node | None:
        """The node that an input comes from."""
        link = node.get("inputs", {}).get(name)
        if isinstance(link, list) and len(link) == 2 and isinstance(link[0], str):
            return self.nodes.get(link[0])
        return None

    def value(self, node: Node, name: str) -> Any:
        """An input's text or number; of a link, that of the one input that a node of values has."""
        for _ in range(MAX_HOPS):
            found = node.get("inputs", {}).get(name)
            if isinstance(found, str | int | float) and not isinstance(found, bool):
                return found
            source = self.linked(node, name)
            if source is None:
                return None
            inputs = source.get("inputs", {})
            named = [each for each in ("value", "text", "string", "seed", "int", "float", name) if each in inputs]
            if not named:
                return None
            node, name = source, named[0]
        return None

    def back(self, node: Node | None, names: Sequence[str]) -> Iterator[Node]:
        """A node, and those before it by the first of these inputs that is a link; each once."""
        seen: set[int] = set()
        while node is not None and id(node) not in seen:
            seen.add(id(node))
            yield node
            node = next((found for name in names if (found := self.linked(node, name)) is not None), None)

    def samplers(self) -> Iterator[Node]:
        """Known samplers that lead to a picture, the nearest first; all of them where nothing saves one."""
        drawn = [node for node in self.nodes.values() if self.linked(node, "images") is not None]
        waiting = drawn or list(self.nodes.values())
        seen = {id(node) for node in waiting}
        for node in waiting:  # it grows meanwhile
            if node["class_type"] in SAMPLERS:
                yield node
            for name in node.get("inputs", {}):
                source = self.linked(node, name)
                if source is not None and id(source) not in seen:
                    seen.add(id(source))
                    waiting.append(source)


@dataclass(slots=True)
class _Reading:
    graph: _Graph
    samplers: Sequence[Node]
    left_out: list[str] = field(default_factory=list)
    clip: Node | None = None  # where the first prompt's encoder comes from

    def likeness(self) -> Likeness:
        first = next((node for node in self.samplers if self._latents(node) is not None), self.samplers[0])
        for node in self.samplers:
            if node is not first:
                self.left_out.append(f"a further {node['class_type']}, which draws on: --hires does the like")
        fields = {"prompt": self._words(first, "positive"), "negative_prompt": self._words(first, "negative")}
        fields |= self._numbers(first) | self._sampler(first) | self._size(first) | {"noise": "torch-cpu"}
        of_image = self._beginning(first, fields)
        model = self._model(first)
        return Likeness(
            fields=fields,
            left_out=tuple(dict.fromkeys(self.left_out)),
            model=model,
            clip_layer=self._clip_layer(),
            of_image=of_image,
        )

    def _numbers(self, node: Node) -> dict[str, Any]:
        advanced = node["class_type"] == "KSamplerAdvanced"
        found = {}
        for name, ours, least, most, kinds in (
            ("noise_seed" if advanced else "seed", "seed", 0, 2**63, int),
            ("steps", "num_inference_steps", 1, 1000, int),
            ("cfg", "guidance_scale", -100, 100, int | float),
        ):
            value = self.graph.value(node, name)
            if isinstance(value, kinds) and least <= value <= most:
                found[ours] = value
            else:
                self.left_out.append(f"{name}: {quoted(str(value))}")
        if advanced:
            start, end = (self.graph.value(node, name) for name in ("start_at_step", "end_at_step"))
            steps = found.get("num_inference_steps", 0)
            if start != 0 or (isinstance(end, int) and end < steps):
                self.left_out.append(f"steps {quoted(str(start))} to {quoted(str(end))} alone: all of them are taken")
        return found

    def _sampler(self, node: Node) -> dict[str, Any]:
        name, schedule = (self.graph.value(node, each) for each in ("sampler_name", "scheduler"))
        named = sampler_named(str(name), str(schedule) if schedule is not None else None)
        self.left_out += named.left_out
        return {"sampler": named.sampler, "sigmas": named.sigmas}

    def _latents(self, node: Node) -> Node | None:
        """The node of empty latents that a sampler begins with."""
        begun = node
        for begun in self.graph.back(node, ("latent_image", "samples", "latent")):
            if begun is not node and begun["class_type"] in SAMPLERS:
                return None
        return begun if "Empty" in begun["class_type"] else None

    def _size(self, node: Node) -> dict[str, Any]:
        latents = self._latents(node)
        if latents is None:
            return {}
        sides = {side: self.graph.value(latents, side) for side in ("width", "height")}
        found = {side: value for side, value in sides.items() if isinstance(value, int) and 1 <= value <= 10**6}
        batch = self.graph.value(latents, "batch_size")
        if isinstance(batch, int) and batch > 1:
            self.left_out.append(f"which of {batch} pictures it is: the first one is drawn")
        return found

    def _beginning(self, node: Node, fields: dict[str, Any]) -> dict[str, Any]:
        """What there is besides where it began with a picture: ComfyUI takes all steps, of a longer way."""
        if self._latents(node) is not None:
            return {}
        self.left_out.append("the picture that it began with, which isn't in the file: give it, --image FILE")
        denoise, steps = self.graph.value(node, "denoise"), fields.get("num_inference_steps")
        if not isinstance(denoise, int | float) or not 0.001 <= denoise <= 1 or not isinstance(steps, int):
            return {}
        return {"strength": float(denoise), "num_inference_steps": min(1000, max(1, round(steps / denoise)))}

    def _words(self, sampler: Node, name: str) -> str:
        texts = list(itertools.islice(self._texts(self.graph.linked(sampler, name), name), MAX_PARTS + 1))
        if name == "negative" or len(texts) <= 1:
            if len(texts) > 1:
                self.left_out.append(f"{len(texts) - 1} further negative prompts")
            return texts[0] if texts else ""
        return " AND ".join(f"{text} :{1 / len(texts):g}" for text in texts)  # their mean, as they are combined

    def _texts(self, node: Node | None, name: str) -> Iterator[str]:
        """The texts that a conditioning is made of; a sentence for whatever else is done to it."""
        waiting, seen = [node], set[int]()
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            kind = node["class_type"]
            text = next((each for each in ("text", "text_g") if self.graph.value(node, each) is not None), None)
            if text is not None:
                self._note_second_text(node, text)
                self.clip = self.clip or self.graph.linked(node, "clip")
                yield self._escaped(str(self.graph.value(node, text))[: MAX_PROMPT_BYTES + 1])
            elif kind == "ConditioningCombine":
                waiting += [self.graph.linked(node, each) for each in ("conditioning_2", "conditioning_1")]
            else:
                if kind != "Reroute":
                    self.left_out.append(f"{quoted(kind)}, on the way from the words")
                inner = ("conditioning", name, "conditioning_1", "conditioning_to")
                waiting.append(next((found for each in inner if (found := self.graph.linked(node, each))), None))

    def _note_second_text(self, node: Node, text: str) -> None:
        other = self.graph.value(node, "text_l")
        if text == "text_g" and other not in (None, self.graph.value(node, "text_g")):
            self.left_out.append(f"the first text encoder's own words: {quoted(str(other))}")

    def _escaped(self, text: str) -> str:
        """Words as they are there: square brackets and capitals mean nothing, and weights do what they do here."""
        for name in re.findall(r"embedding:([^\s,()]{1,200})", text):
            self.left_out.append(f"the textual inversion {quoted(name)}: its name is read as words")
        text = re.sub(r"\\?([\[\]])", r"\\\1", text)
        return re.sub(r"\b(AND|BREAK)\b", lambda word: word[0].lower(), text)

    def _model(self, sampler: Node) -> str | None:
        for node in self.graph.back(self.graph.linked(sampler, "model"), ("model", "lora_stack")):
            for name in ("ckpt_name", "unet_name", "model_name", "model_path"):
                value = self.graph.value(node, name)
                if isinstance(value, str):
                    return re.sub(r"\.(safetensors|ckpt|sft|gguf)$", "", re.split(r"[\\/]", value)[-1])
            weight = self.graph.value(node, "strength_model")
            named = self.graph.value(node, "lora_name")
            said = node["class_type"] if named is None else f"the lora {named} at {weight}"
            if node["class_type"] != "Reroute":
                self.left_out.append(quoted(said))
        return None

    def _clip_layer(self) -> ClipLayer | None:
        for node in self.graph.back(self.clip, ("clip",)):
            layer = self.graph.value(node, "stop_at_clip_layer")
            if isinstance(layer, int) and -100 <= layer <= -1:
                return ClipLayer(-layer, also_of_xl=True)
        return None
