"""What a request says, as a policy reads it: every wording that is ever drawn, without the notation around its words.

`(n)(u)(d)(e)` is one word, and so is what `[n|x]ude` becomes at every other step. Beside the wordings stands the whole
prompt with its marks taken out, for what is written there and never drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tintype.families.base import Branch
from tintype.prompt import EditedPrompts
from tintype.prompt.weights import NUMBER, parse_weights
from tintype.request import ResolvedRequest
from tintype.sampling import CFG_PP

if TYPE_CHECKING:
    from tintype.trust.policy import Policy

_WEIGHT = re.compile(rf":\s*+{NUMBER}\s*+(?=[)\]])")
_MARKS = str.maketrans({**dict.fromkeys("()[]\\"), "|": " ", ":": " "})


def demand_allowed(
    policy: Policy, request: ResolvedRequest, branches: Sequence[Branch], prompts: EditedPrompts
) -> list[str]:
    """A sentence for each rule that warns. Raises BlockedError. branches, prompts: as the model reads the request."""
    positive, negative = list[int](), list[int]()
    for number, branch in enumerate(branches):
        (positive if _is_positive(branch) else negative).append(number)
    sentences = policy.demand(texts_of(request.prompt, prompts, positive), "prompt")
    if policy.checks_negative or is_negative_drawn(request, branches):
        sentences += policy.demand(texts_of(request.negative_prompt, prompts, negative), "negative_prompt")
    return sentences


def texts_of(prompt: str, prompts: EditedPrompts, branches: Sequence[int]) -> list[str]:
    """A prompt's every wording, and all of it, without notation. branches: those of `prompts` that it has."""
    changes = [change for branch in branches for change in prompts.changes[branch]]
    wordings = dict.fromkeys(prompts.wordings[wording].text or "" for _, wording in changes)
    drawn = ["".join(" " if each.text is None else each.text for each in parse_weights(text)) for text in wordings]
    return [*drawn, without_notation(prompt)]


def without_notation(prompt: str) -> str:
    """All that a prompt says, with its marks taken out."""
    return _WEIGHT.sub("", prompt).translate(_MARKS)


def is_negative_drawn(request: ResolvedRequest, branches: Sequence[Branch]) -> bool:
    """Whether guidance goes towards the negative prompt's picture: its share, 1 less all that leads away, is above 0.

    CFG++ counts its scale otherwise: from 0 to 1 it leads away (Chung et al. 2024).
    """
    if all(map(_is_positive, branches)):
        return False
    away = request.guidance_scale * sum(branch.weight for branch in branches if _is_positive(branch))
    return away < 0 if request.sampler in CFG_PP else away < 1


def _is_positive(branch: Branch) -> bool:
    return branch.name.startswith("positive")
