"""Train a network: ``python -m training.train --config luseel-small`` (or ``luseel-train``)."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch

from luseel_model.errors import LuseelError
from training.corpus import toy
from training.trainer import Trainer, load_train_config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="luseel-train", description=__doc__)
    parser.add_argument("--config", default="luseel-small",
                        help="name in training/configs or path of a YAML file "
                        "(default: %(default)s)")
    parser.add_argument("--out",
                        help="folder of the run (default: runs/NAME); a run in it is resumed")
    parser.add_argument("--device", help="cpu, cuda, ... (default: CUDA where there is one)")
    parser.add_argument("--init", help="checkpoint whose weights start the run")
    parser.add_argument("--minutes", type=float, help="stop after this time; resume any time")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                        help="change one key of the configuration, e.g. optimizer.patience=3")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        config = load_train_config(args.config, args.changes)
        if Path(config.data.packed) == toy.FOLDER and not (toy.FOLDER / "kinds.txt").is_file():
            print(f"making the toy corpus of generated sounds in {toy.FOLDER}")
            toy.build(toy.FOLDER)
        trainer = Trainer(config, args.out or f"runs/{config.name}", args.device, args.init)
    except LuseelError as error:
        print(f"luseel-train: {error}", file=sys.stderr)
        return 2
    # a server's shutdown ends the run as Ctrl-C does: saved
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{config.name}: {trainer.network.parameter_count() / 1e6:.2f} M parameters, "
          f"{len(trainer.train_pool)} recordings of {len(trainer.train_pool.kinds)} kinds, "
          f"from step {trainer.step} to {config.steps} on {trainer.device} -> {trainer.out}")
    try:
        trainer.run(args.minutes)
    except KeyboardInterrupt:
        print(f"luseel-train: stopped at once; the same command resumes from the last save in "
              f"{trainer.out}", file=sys.stderr)
        return 130
    if trainer.best_step:
        print(f"best validation loss {trainer.best:.3f} at step {trainer.best_step}: "
              f"{trainer.out / 'best.safetensors'}")
    else:
        print(f"stopped at step {trainer.step}, before the first validation; the same command "
              "resumes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
