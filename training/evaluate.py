"""Evaluate a checkpoint: ``python -m training.evaluate --checkpoint PATH``
(or ``luseel-evaluate``).

Prints the report and writes summary.json, rows.csv, report.md and figures.
"""

from __future__ import annotations

import argparse
import sys

import torch

from luseel_model import load_model
from luseel_model.errors import LuseelError
from training.captions import Captions
from training.evaluation import evaluate, load_evaluation_config
from training.heads import load_head
from training.pool import ClipPool
from training.report import markdown, write_report


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="luseel-evaluate",
        description="Evaluate a checkpoint on recordings that training never saw.",
        epilog="What isn't given here comes from the configuration.",
    )
    parser.add_argument("--checkpoint", help="path or name of a checkpoint (default: the shipped)")
    parser.add_argument("--config", default="evaluation",
                        help="name in training/configs or path of a YAML file (default: "
                        "%(default)s)")
    parser.add_argument("--out", default="runs/evaluation", help="folder of the report (default: "
                        "%(default)s)")
    parser.add_argument("--packed", help="folder of packed recordings")
    parser.add_argument("--split", choices=("train", "valid", "test"))
    parser.add_argument("--heads", nargs="+", help="names or files of heads")
    parser.add_argument("--sources", type=int, help="sounds in a mixture")
    parser.add_argument("--mixtures", type=int, help="mixtures per head")
    parser.add_argument("--seconds", type=float, help="length of a mixture")
    parser.add_argument("--wording", choices=("label", "held_out"), help="words of the queries")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--no-sdr", dest="sdr", action="store_false", default=None,
                        help="leave out SDR, which takes most of the time")
    parser.add_argument("--device", help="cpu, cuda, ...")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    names = ("packed", "split", "heads", "sources", "mixtures", "seconds", "wording", "seed", "sdr")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        config = load_evaluation_config(args.config, changes)
        model = load_model(args.checkpoint, args.device)
        pool = ClipPool.load(config.packed, config.split)
        heads = [load_head(name) for name in config.heads]
        summary, rows = evaluate(model, pool, heads, config, Captions.load())
    except LuseelError as error:
        print(f"luseel-evaluate: {error}", file=sys.stderr)
        return 2
    files = write_report(summary, rows, args.out)
    print(markdown(summary))
    print("written: " + ", ".join(str(path) for path in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
