"""A deck of two groups, and what it makes of a prompt."""

from __future__ import annotations

import json
from typing import Any

import tintype
from tintype.trust.deck import Deck, parse_deck

FIELDS: dict[str, Any] = {"seed": 7, "num_inference_steps": 2, "width": 64, "height": 64}
KIOSK: dict[str, Any] = {
    "name": "kiosk",
    "groups": [
        {
            "name": "colour",
            "nouns": ["car", "automobile", "hot-air balloon", "lorry"],
            "deck": {"red": 2, "orange": 1, "blue": 1},
            "named": ["silver", "violet*"],
        },
        {"name": "size", "nouns": ["car", "house"], "deck": {"small": 1, "large": 1}},
    ],
}


def deck_of(**changes: Any) -> Deck:
    """Of the group `colour` alone, with some of its fields changed."""
    return parse_deck(json.dumps({"groups": [{**KIOSK["groups"][0], **changes}]}).encode(), "x")


def prompts(deck: Deck, pipeline: tintype.Pipeline, prompt: str, **fields: Any) -> list[str]:
    """As they are drawn, one a picture; none where nothing is dealt."""
    request = pipeline.resolve(tintype.Request(prompt=prompt, **{**FIELDS, **fields}))
    return [dealing.prompt for dealing in deck.deal(request)]
