"""Tables I and II of paper 001 on the open corpus (docs/tsel.md).

    python -m training.localization_table rooms         # the rooms, once; the same command resumes
    python -m training.localization_table train         # all systems; the same command resumes
    python -m training.localization_table evaluate      # on unseen recordings; resumes
    python -m training.localization_table table
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from luseel_model.errors import ConfigError
from training.arrays.rooms import DATA_FOLDER, make_bank
from training.corpus import toy
from training.localization_table.evaluate import CELLS, HeldOutScenes, find_cells, run_cell
from training.localization_table.systems import SYSTEMS, Loudest, System, Trained, system_name
from training.localization_table.table import summary, write_table
from training.train import add_run_options, run_command
from training.trainer import Trainer, load_train_config

#: Rooms and sources of each bank and split.
ROOMS = {"square": {"train": (80, 12), "valid": (16, 12), "test": (16, 12)},
         "square-path": {"train": (16, 72), "valid": (6, 72), "test": (6, 72)}}


def _systems(names: list[str] | None) -> list[System]:
    known = {system_name(system.key): system for system in SYSTEMS}
    for name in names or []:
        if name not in known:
            raise ConfigError(f"no system {name!r}; there are: {', '.join(known)}")
    return [system for name, system in known.items() if names is None or name in names]


def rooms(args: argparse.Namespace) -> int:
    """Make the rooms that are missing."""
    for name, splits in ROOMS.items():
        for split, (count, positions) in splits.items():
            print(make_bank(args.rooms, name, split, count, positions, jobs=args.jobs,
                            path=name.endswith("-path"), progress=True).summary())
    return 0


def _start(system: System, runs: Path) -> str | Path | None:
    """Checkpoint that a system's training starts from."""
    if not system.start:
        return None
    own = runs / system.start / "best.safetensors"
    return own if own.is_file() else system.start


def train(args: argparse.Namespace) -> int:
    """Train the systems one after the other."""
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
    for system in _systems(args.systems):
        if not system.key:
            continue
        config = load_train_config(system.key, args.changes)
        toy.build_if_asked_for(config.data.packed)
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if left is not None and left <= 0:
            print(f"stopped before {config.name}; the same command goes on")
            return 0
        trainer = Trainer(config, Path(args.runs) / system_name(system.key), args.device,
                          _start(system, Path(args.runs)))
        print(f"{config.name}: {trainer.network.parameter_count() / 1e6:.2f} M parameters, from "
              f"step {trainer.step} to {config.steps}")
        if trainer.step < config.steps:
            trainer.run(left)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Ask every system for the sounds of every cell that it can answer about."""
    if args.checkpoint and len(args.systems or ()) != 1:
        raise ConfigError("--checkpoint is of one system: name it with --systems")
    for cell in find_cells(args.cells):
        scenes = HeldOutScenes(cell, args.packed, args.rooms)
        for system in _systems(args.systems):
            if system.moving and not cell.moving:
                continue
            name = system_name(system.key)
            path = args.checkpoint or Path(args.runs) / name / "best.safetensors"
            if system.key and not args.checkpoint and not path.is_file():
                print(f"{name} left out: no {path}")
                continue
            ready = Trained.load(path, name) if system.key else Loudest()
            rows = run_cell(ready, cell, scenes, args.scenes,
                            Path(args.results) / name / f"{cell.key}.csv")
            print(f"{name}, {cell.title}: {summary(rows)}")
    return 0


def make_table(args: argparse.Namespace) -> int:
    """Write the tables from the results."""
    path = write_table(args.results, args.out)
    print(path.read_text(encoding="utf-8"))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.localization_table",
                                     description="Tables I and II of paper 001.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action, summary: str) -> argparse.ArgumentParser:
        part = commands.add_parser(name, help=summary, description=summary)
        part.set_defaults(action=action, threads=None)
        return part

    made = command("rooms", rooms, "Make the rooms; the same command resumes.")
    made.add_argument("--jobs", type=int, default=1, help="processes")
    trained = command("train", train, "Train all systems in order; the same command resumes.")
    add_run_options(trained)
    tested = command("evaluate", evaluate, "Ask the trained systems; the same command resumes.")
    tested.add_argument("--packed", default="data/packed", help="default: %(default)s")
    tested.add_argument("--scenes", type=int, default=200, help="of each cell")
    tested.add_argument("--cells", nargs="+", help="only these: "
                        + ", ".join(cell.key for cell in CELLS))
    tested.add_argument("--checkpoint", help="of the one system given: a path, or the name of a "
                        "shipped one (default: the best of its run)")
    tested.add_argument("--threads", type=int, help="CPU threads")
    tabled = command("table", make_table, "Write the tables from the results.")
    tabled.add_argument("--out", default="docs/reports/localization_table",
                        help="default: %(default)s")
    for part in (made, tested):
        part.add_argument("--rooms", default=str(DATA_FOLDER), help="default: %(default)s")
    for part in (trained, tested):
        part.add_argument("--runs", default="runs/localization", help="default: %(default)s")
        part.add_argument("--systems", nargs="+", metavar="SYSTEM", help="only these: "
                          + ", ".join(system_name(system.key) for system in SYSTEMS))
    for part in (tested, tabled):
        part.add_argument("--results", default="runs/localization_table",
                          help="default: %(default)s")
    args = parser.parse_args(argv)
    return run_command("localization_table", args, args.action)


if __name__ == "__main__":
    sys.exit(main())
