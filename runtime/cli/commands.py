"""The table of commands, each loaded when it is called: the runtime's own, and those that join by entry point."""

from __future__ import annotations

import importlib
from typing import Any

import click

from tintype.cli.say import say, say_lines

ENTRY_POINT_GROUP = "tintype.commands"

# name -> (where the click command is, its line in --help); None means an entry point names it.
OWN_COMMANDS: dict[str, tuple[str | None, str]] = {
    "generate": ("tintype.cli.generate:generate", "Make a picture from words."),
    "edit": ("tintype.cli.edit:edit", "Make a picture from a picture and words."),
    "info": ("tintype.cli.info:info", "Say what a bundle or a checkpoint is."),
    "verify": ("tintype.cli.verify:verify", "Say whether a picture was made by Tintype."),
    "devices": ("tintype.cli.devices:devices", "List the devices that work here, and what the others lack."),
    "plan": ("tintype.cli.plan:plan", "Say what a picture will take in memory and time."),
    "build": ("tintype.cli.build:build", "Prepare a bundle for this machine ahead of time."),
    "merge": ("tintype.cli.merge:merge", "Merge LoRAs into a bundle: an overlay of it, which draws as fast."),
    "calibrate": ("tintype.cli.calibrate:calibrate", "Measure what tells pictures that a model has by heart."),
    "models": ("tintype.cli.models:models", "List the models that are here, or remove one."),
    "licence": ("tintype.cli.licence:licence", "Accept a model's licence, once, where it binds."),
    "cache": ("tintype.cli.cache:cache", "List what was built for this machine, or remove it."),
    "export": (None, "Turn a checkpoint into a bundle (extra: export)."),
    "bench": (None, "Measure latency and memory on this machine."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and lines without importing any of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*OWN_COMMANDS, *sorted(set(_entry_points()) - set(OWN_COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = OWN_COMMANDS.get(cmd_name, (None, ""))[0] or _entry_points().get(cmd_name)
        return None if place is None else _load(place)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, OWN_COMMANDS.get(name, (None, ""))[1]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise _unknown_command(name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def _load(place: str) -> click.Command:
    module, _, attribute = place.partition(":")
    command: Any = getattr(importlib.import_module(module), attribute)
    return command


def _entry_points() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}


def _unknown_command(name: str, known: list[str]) -> Exception:
    from tintype.errors import RequestError, near_names

    if " " in name.strip():
        fix = f"to draw it: tintype generate {name!r} -o picture.png"
    else:
        fix = near_names(name, known)
    return RequestError(f"there is no command {name!r}", fix=fix)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from tintype._version import __version__

        say(f"tintype {__version__}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exits: 1 failed, 2 bad usage, 3 blocked, 130 stopped. Folders: TINTYPE_CACHE, TINTYPE_MODELS.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.pass_context
def tintype(context: click.Context) -> None:
    """Pictures from words on the machine at hand."""
    if context.invoked_subcommand is None:
        say_lines(context.get_help(), err=True)
        context.exit(2)
