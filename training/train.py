"""Train a network: ``python -m training.train --config luseel-small`` (or ``luseel-train``).

Several GPUs: ``torchrun --nproc-per-node 4 -m training.train --config paper/luseel``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from luseel_model.errors import LuseelError
from training.distributed import Processes
from training.dry_run import dry_run
from training.tasks import find_task
from training.trainer import Trainer, load_train_config


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that trains."""
    parser.add_argument("--device", help="cpu, cuda, ... (default: CUDA where there is one)")
    parser.add_argument("--minutes", type=float, help="stop after this time; resume any time")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                        help="change one key of the configuration, e.g. optimizer.patience=3")


def run_command(name: str, args: argparse.Namespace,
                action: Callable[[argparse.Namespace], int]) -> int:
    """Do what a command that trains has to do; returns the exit status, 2 for errors of the user
    and 130 where it was stopped."""
    if args.threads:
        torch.set_num_threads(args.threads)
    # a server's shutdown ends the run as Ctrl-C does: saved
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return action(args)
    except LuseelError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped at once; the same command resumes from the last save",
              file=sys.stderr)
        return 130


def train(args: argparse.Namespace) -> int:
    """Train, or say what a training would take."""
    config = load_train_config(args.config, args.changes)
    out = Path(args.out or f"runs/{config.name}")
    if args.dry_run:
        print(dry_run(config, out, args.rate))
        return 0
    processes = Processes.join()
    try:
        with contextlib.ExitStack() as stack:
            if not processes.is_first:  # all say the same
                stack.enter_context(contextlib.redirect_stdout(
                    stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            if processes.is_first:
                find_task(config.family).make_data(config)
            processes.wait()
            trainer = Trainer(config, out, args.device, args.init, processes)
            together = f", {processes.size} processes" if processes.size > 1 else ""
            data = trainer.task.describe()
            print(f"{config.name}: {trainer.network.parameter_count() / 1e6:.2f} M parameters, "
                  f"{data + ', ' if data else ''}from step {trainer.step} to {config.steps} on "
                  f"{trainer.device}{together} -> {trainer.out}")
            trainer.run(args.minutes)
            if trainer.best_step:
                print(f"best validation {trainer.task.score} {trainer.best:.3f} at step "
                      f"{trainer.best_step}: {trainer.out / 'best.safetensors'}")
            else:
                print(f"stopped at step {trainer.step}, before the first validation; the same "
                      "command resumes")
    finally:
        processes.leave()
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="luseel-train", description=__doc__)
    parser.add_argument("--config", default="luseel-small",
                        help="name in training/configs or path of a YAML file "
                        "(default: %(default)s)")
    parser.add_argument("--out",
                        help="folder of the run (default: runs/NAME); a run in it is resumed")
    parser.add_argument("--init", help="checkpoint whose weights start the run")
    add_run_options(parser)
    parser.add_argument("--dry-run", action="store_true",
                        help="only say how large the run is: parameters, steps, memory, time")
    parser.add_argument("--rate", type=float, metavar="STEPS_PER_S",
                        help="for --dry-run: a measured rate (default: of the run in the folder)")
    return run_command("luseel-train", parser.parse_args(argv), train)


if __name__ == "__main__":
    sys.exit(main())
