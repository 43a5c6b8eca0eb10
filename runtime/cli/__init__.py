"""The `tintype` command: it parses, calls and prints. `main` is the only way out, so no traceback reaches a user.

Nothing heavier than click is imported before a command is known, for `tintype --help` must answer within 0.3 s; and
nothing at all outside `run`, so that Ctrl-C during the imports is no traceback either.
"""

from __future__ import annotations

import contextlib
import sys

__all__ = ["main", "run"]


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 failed, 2 bad usage, 3 blocked, 130 interrupted."""
    try:
        _collect_seldom()
        _open_standard_streams()
        import signal

        from tintype.cli.interrupt import end_calls_on_signals

        for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(ending) == signal.SIG_DFL:  # nohup has its own
                signal.signal(ending, _leave)
        end_calls_on_signals()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before or after `run`, which answers for what it calls
        code = 130
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """One command line, errors turned into messages; returns the exit code."""
    from tintype.cli.failure import notes_of, report

    try:
        from tintype.cli.commands import tintype

        _say_anything()
        code = tintype.main(args=arguments, prog_name="tintype", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as leaving:  # SIGTERM
        from tintype.cli.say import say

        for note in notes_of(leaving):
            say(note, err=True)
        raise
    except (Exception, KeyboardInterrupt) as error:
        return report(error, as_json="--json" in arguments)
    return code if isinstance(code, int) else 0


def _collect_seldom() -> None:
    """What modules are made of stays: to look through it again and again is a tenth of a command's time."""
    import gc

    gc.set_threshold(20_000, *gc.get_threshold()[1:])


def _open_standard_streams() -> None:
    """A stream that the caller closed (`>&-`) leads nowhere; the next file that is opened must not take its place."""
    import os

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                while os.open(os.devnull, os.O_RDWR) < number:
                    pass
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: PTH123, SIM115


def _say_anything() -> None:
    """A prompt or a path may hold what the terminal's encoding can't say; it is then escaped."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _leave(signum: int, _frame: object) -> None:
    """Unwind the stack, so that unfinished files are taken away, and end as the shell expects."""
    sys.exit(128 + signum)
