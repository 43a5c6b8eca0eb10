"""Each value of a request is used as it stands or refused, with what would work."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

from tintype.bounds import MAX_PROMPT_BYTES
from tintype.errors import RequestError, near_names

if TYPE_CHECKING:
    from tintype.bundle.manifest import SizeLimits


def text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{field} should be text, not {value!r}", fix=f"give {field} as a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{field} holds {value[error.start]!r}, which is half of a character", fix="type that character again"
        ) from None
    return value


def words(field: str, value: Any) -> str:
    """Text that fits a record, and that no tokenizer takes long for."""
    value = text(field, value)
    if len(value.encode()) > MAX_PROMPT_BYTES:
        raise RequestError(
            f"{field} has {len(value.encode()):,} bytes; {MAX_PROMPT_BYTES:,} are the most", fix=f"shorten the {field}"
        )
    return value


def name(field: str, value: Any, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise RequestError(f"there is no {field} {str(value)[:60]!r}", fix=near_names(str(value)[:60], known))
    return value


def yes_or_no(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{field} should be true or false, not {_shortened(value)}", fix="give True or False")
    return value


def whole_number(field: str, value: Any, least: int, most: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise RequestError(
            f"{field} should be a whole number, not {value!r}", fix=f"give {least:,} to {most:,}"
        ) from None
    if not least <= number <= most:
        raise RequestError(f"{field} {_shortened(number)} is out of range", fix=f"give {least:,} to {most:,}")
    return number


def number(field: str, value: Any, least: float, most: float) -> float:
    remedy = f"give a number from {least:g} to {most:g}"
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"{field} should be a number, not {_shortened(value)}", fix=remedy) from None
    if not (math.isfinite(number) and least <= number <= most):
        raise RequestError(f"{field} {number:g} is out of range", fix=remedy)
    return number


def side(field: str, value: Any, size: SizeLimits) -> int:
    pixels = whole_number(field, value, -(10**18), 10**18)
    if not size.allows(pixels):
        near = ", or ".join(str(side) for side in _near_sides(pixels, size))
        raise RequestError(
            f"{field} {pixels:,} is no size this model makes: "
            f"multiples of {size.multiple} from {size.minimum} to {size.maximum} pixels",
            fix=f"ask for {near}",
        )
    return pixels


def _near_sides(pixels: int, size: SizeLimits) -> list[int]:
    """The one or two sides nearest to `pixels` that the model makes, the nearer first."""
    below = min(max(pixels // size.multiple * size.multiple, size.minimum), size.maximum)
    above = min(max(below + size.multiple, size.minimum), size.maximum) if pixels > below else below
    return sorted({below, above}, key=lambda side: abs(side - pixels))


def _shortened(value: Any) -> str:
    """A value as it reads in a message, without thousands of digits."""
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**30 else "with so many digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
