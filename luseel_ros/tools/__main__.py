"""The command ``luseel`` with its ROS 2 parts, where no entry points tell of them (colcon)."""

from __future__ import annotations

import importlib
import sys

from luseel_model import cli

from . import COMMANDS


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    def loader(name):
        return lambda: importlib.import_module(f"luseel_ros.tools.{name}").register

    return cli.main(argv, {**cli.installed_commands(), **{n: loader(n) for n in COMMANDS}})


if __name__ == "__main__":
    sys.exit(main())
