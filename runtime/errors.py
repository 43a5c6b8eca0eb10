"""The error tree. Every message says what is wrong, every fix says what to do; what code needs to know is a field.

TintypeError
├── RequestError     what the user asked for cannot be done as asked     (exit 2)
│   └── LoraError    a LoRA cannot be read, or does not fit this model
├── BlockedError     a policy, or a safety checker, forbids it             (exit 3)
├── BundleError      a bundle is missing, damaged, hostile or too new
├── LicenceError     a licence that binds was not accepted yet
├── InstallError     onnxruntime is missing, doubled or of the wrong kind
├── ProviderError    a named device cannot be used
├── BuildError       lowering or optimizing a graph failed
│   └── UncutError   a graph cannot run in the pieces that were asked for
├── MemoryBudgetError nothing fits the budget
├── NumericError     a graph produced NaN or infinity
├── CancelledError   a run was ended from another thread
├── OutputError      the picture could not be written
├── RecordError      a record cannot be read, or cannot be honoured here
└── ExportError      a checkpoint cannot be read, or a parity gate failed
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from typing import Self

from tintype.bounds import MAX_MESSAGE_CHARS

# By which the system says that a file has no room: a full disk, a quota, a limit of one file's size.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Controls of ASCII and of Unicode: what moves a cursor, ends a line, turns the direction of writing or isn't seen.
_CONTROLS = (  # compiled when it is first needed, which `tintype --help` does without
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str, most: int = MAX_MESSAGE_CHARS) -> str:
    """Any text as one line that a terminal shows and nothing more: controls as Python escapes them, its middle cut out
    where it is longer than `most` characters."""
    escaped = re.sub(_CONTROLS, lambda control: control[0].encode("unicode_escape").decode(), _shortened(text, most))
    return _shortened(escaped, most)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[5 - most // 3 :]}"


class TintypeError(Exception):
    """What went wrong (`message`) and its remedy (`fix`); `exit_code` is what the command line ends with.

    Both are one printable line of bounded length, whatever a stranger's file put into them.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str) -> None:
        self.message, self.fix = printable(message), printable(fix)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}"

    def with_fix(self, fix: str) -> Self:
        """The same error, its fields and notes too, with another remedy."""
        other = type(self)(self.message, fix=fix)
        other.__dict__.update(self.__dict__, fix=other.fix)
        return other


class RequestError(TintypeError, ValueError):
    exit_code = 2


class LoraError(RequestError):
    pass


class BlockedError(TintypeError):
    """rule: by its name, and `safety` for the safety checker's; where: prompt, negative_prompt or picture.

    score, threshold: the checker's. pictures: indices of those of the run that are blocked; the others were made.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        fix: str,
        rule: str = "",
        where: str = "",
        score: float | None = None,
        threshold: float | None = None,
        pictures: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(message, fix=fix)
        self.rule, self.where, self.score, self.threshold, self.pictures = rule, where, score, threshold, pictures


class BundleError(TintypeError):
    pass


class LicenceError(TintypeError):
    """licence: as the bundle's card calls it."""

    def __init__(self, message: str, *, fix: str, licence: str = "") -> None:
        super().__init__(message, fix=fix)
        self.licence = licence


class InstallError(TintypeError):
    pass


class ProviderError(TintypeError):
    """reason: why a device cannot be used, in itself, where that is known."""

    def __init__(self, message: str, *, fix: str, reason: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.reason = reason


class BuildError(TintypeError):
    """kind: what it failed for: `disk` (no space left) or `memory`; None where it is neither."""

    def __init__(self, message: str, *, fix: str, kind: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.kind = kind


class UncutError(BuildError):
    pass


class MemoryBudgetError(TintypeError):
    """least_bytes: the smallest budget that would do, where a plan found none."""

    def __init__(self, message: str, *, fix: str, least_bytes: int | None = None) -> None:
        super().__init__(message, fix=fix)
        self.least_bytes = least_bytes


class NumericError(TintypeError):
    pass


class CancelledError(TintypeError):
    pass


class OutputError(TintypeError):
    pass


class RecordError(TintypeError):
    """reasons: why the same picture can't be promised, a sentence each, where that is what is wrong."""

    def __init__(self, message: str, *, fix: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message, fix=fix)
        self.reasons = reasons


class ExportError(TintypeError):
    """kind: `disk` or `memory`, where there is too little; then least_bytes are needed and free_bytes are free."""

    def __init__(
        self,
        message: str,
        *,
        fix: str,
        kind: str | None = None,
        least_bytes: int | None = None,
        free_bytes: int | None = None,
    ) -> None:
        super().__init__(message, fix=fix)
        self.kind, self.least_bytes, self.free_bytes = kind, least_bytes, free_bytes


def near_names(name: str, choices: Iterable[str]) -> str:
    """A sentence for a name that isn't known: the near ones first, else all of them."""
    known = list(choices)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose one of {', '.join(known)}"
