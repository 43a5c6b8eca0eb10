"""The one place where an exception becomes what a person reads: `error: ...`, `fix: ...` and an exit code.

An exception's notes come first, such as which pictures are written. With --json the same goes to stdout as one object,
{"error": {"type", "message", "fix", "notes"}} and the error's own fields. TINTYPE_DEBUG=1 adds the traceback; without
it there never is one.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import click

from tintype.cli.say import say, say_json, say_lines
from tintype.errors import NO_ROOM, TintypeError

INTERRUPTED = 130  # 128 + SIGINT, what shells report for a program that Ctrl-C ended
# Of errors, told with --json.
FIELDS = ("free_bytes", "kind", "least_bytes", "licence", "pictures", "reason", "rule", "score", "threshold", "where")
SEE_TRACEBACK = "run it again with TINTYPE_DEBUG=1 to see where; that text belongs in a bug report"

# What a missing module means for the person who typed the command.
EXTRA_OF_MODULE = {
    "torch": "export",
    "diffusers": "export",
    "transformers": "export",
    "onnxscript": "export",
    "accelerate": "peers",
    "onnxruntime": "cpu",
}


class Failure(NamedTuple):
    kind: str
    message: str
    fix: str
    exit_code: int
    fields: Mapping[str, object] = {}  # what the error carries besides, for --json


def report(error: BaseException, *, as_json: bool = False) -> int:
    """Print what went wrong and what to do about it; returns the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return _close_stdout()
    failure = describe(error)
    if os.environ.get("TINTYPE_DEBUG", "0") not in ("", "0"):
        say_lines("".join(traceback.format_exception(error)), err=True)
    try:
        _print(failure, notes_of(error), as_json=as_json)
        sys.stdout.flush()
    except OSError:  # nobody reads any more, or the disk of what does is full
        _close_stdout()
    return failure.exit_code


def notes_of(error: BaseException) -> list[str]:
    """What was noted of an exception on its way (`BaseException.add_note`)."""
    if isinstance(error, click.Abort) and error.__cause__ is not None:  # click's own of KeyboardInterrupt
        error = error.__cause__
    return list(getattr(error, "__notes__", ()))


def _print(failure: Failure, notes: Sequence[str], *, as_json: bool) -> None:
    for note in notes:
        say(note, err=True)
    say(f"error: {failure.message}", err=True)
    if failure.fix:
        say(f"  fix: {failure.fix}", err=True)
    if as_json:
        detail = {
            "type": failure.kind,
            "message": failure.message,
            "fix": failure.fix,
            "notes": notes,
            **failure.fields,
        }
        say_json({"error": detail, "exit_code": failure.exit_code})


def describe(error: BaseException) -> Failure:
    """What a person needs to know about an exception."""
    kind = type(error).__name__
    if isinstance(error, TintypeError):
        fields = {name: value for name, value in vars(error).items() if name in FIELDS and value is not None}
        return Failure(kind, error.message, error.fix, error.exit_code, fields)
    if isinstance(error, click.ClickException):
        return Failure("UsageError", _sentence(error), _usage_fix(error), error.exit_code)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Failure("Interrupted", "interrupted", "", INTERRUPTED)
    if isinstance(error, MemoryError):
        return Failure(kind, "there is not enough memory", "ask for a smaller --size, or close other programs", 1)
    if isinstance(error, ModuleNotFoundError):
        return _missing_module(error)
    if isinstance(error, OSError):
        return _system_error(error)
    first_line = str(error).strip().partition("\n")[0]
    message = f"unexpected {kind}: {first_line}" if first_line else f"unexpected {kind}"
    return Failure(kind, message, SEE_TRACEBACK, 1)


def _sentence(error: click.ClickException) -> str:
    text = error.format_message().strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _usage_fix(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "tintype"
    return f"see {command} --help"


def _missing_module(error: ModuleNotFoundError) -> Failure:
    name = (error.name or "").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(name)
    fix = f"pip install 'tintype[{extra}]'" if extra else "install tintype again: pip install --force-reinstall tintype"
    return Failure("InstallError", f"the Python module {error.name or '?'} is not installed", fix, 1)


def _system_error(error: OSError) -> Failure:
    reason = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in NO_ROOM:
        return Failure(type(error).__name__, f"{where}{reason}", "free some space, or write elsewhere", 1)
    return Failure(type(error).__name__, f"{where}{reason}", SEE_TRACEBACK, 1)


def _close_stdout() -> int:
    """The reader left early, as `| head` does; Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
