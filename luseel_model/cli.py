"""``luseel``: extract a described sound from a file, listen live, calibrate a robot's ears, list
the models, time them.

Other packages add commands through the entry-point group ``luseel.commands``: the name of the
command, and a function that adds its parser to the subparsers it gets (and sets ``run``, called
with the parsed arguments, which returns the exit status). ``listen`` of another package takes the
place of the one here.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import entry_points
from typing import Callable, Mapping

from . import listen
from .commands import benchmark, calibrate, extract, models
from .errors import LuseelError

COMMANDS = "luseel.commands"  # entry points of other packages


def _unusable(commands, name: str, error: Exception) -> None:
    """A command that only says why it can't be used."""
    def run(args: argparse.Namespace) -> int:
        raise LuseelError(f"the command {name} can't be used: {type(error).__name__}: {error}")

    parser = commands.choices.get(name)
    if parser is None:
        parser = commands.add_parser(name, help="(can't be used here)", prefix_chars="\0")
        parser.add_argument("rest", nargs="*")
    parser.set_defaults(run=run)


def installed_commands() -> dict[str, Callable[[], Callable]]:
    """Name -> what loads the function, of the commands that installed packages add."""
    return {entry.name: entry.load for entry in entry_points(group=COMMANDS)}


def main(argv: list[str] | None = None,
         extra: Mapping[str, Callable[[], Callable]] | None = None) -> int:
    """Entry point; returns the exit status (2: what was given can't be used).

    Args:
        argv: the arguments; None: those of the process.
        extra: further commands, as `installed_commands` gives them; None: the installed ones.
    """
    parser = argparse.ArgumentParser(
        prog="luseel", description="Pull a described sound out of a binaural recording "
        "and say where it comes from (degrees counter-clockwise: 0 front, 90 left).")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (extract, models, benchmark, calibrate):
        command.register(commands)
    plug_ins = installed_commands() if extra is None else extra
    if "listen" not in plug_ins:
        listen.register(commands)
    for name, load in sorted(plug_ins.items()):
        try:
            load()(commands)
        except Exception as error:  # of another package: the other commands must go on working
            _unusable(commands, name, error)
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return args.run(args)
    except LuseelError as error:
        print(f"luseel: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("luseel: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
