"""``luseel benchmark``: how fast a model is on this machine."""

from __future__ import annotations

import argparse
import json

from ..errors import LuseelError


def register(commands) -> None:
    """Add the command to the subparsers."""
    speed = commands.add_parser(
        "benchmark", help="measure how fast a model is on this machine",
        description="Time one window of audio with one, three and eight queries, and eight queries "
        "in one call against eight calls. Leave the machine idle meanwhile.")
    speed.add_argument("--model", help="checkpoint: name or .safetensors (default: the shipped)")
    speed.add_argument("--untrained", action="store_true",
                       help="time a network with random weights instead")
    speed.add_argument("--config", help="its configuration: luseel, luseel-small or a YAML file "
                       "(default: luseel-small)")
    speed.add_argument("--device", help="cpu, cuda, ...")
    speed.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    speed.add_argument("--hop", type=float, default=0.5,
                       help="seconds between two windows of a stream (default: %(default)s)")
    speed.add_argument("--rounds", type=int, default=30, help="default: %(default)s")
    speed.add_argument("--json", action="store_true", help="print the figures as JSON")
    speed.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures; the exit status."""
    import torch

    from ..benchmark import benchmark, untrained
    from ..checkpoint import SHIPPED
    from ..families import load_config
    from ..inference import load_model

    if args.config and not args.untrained:
        raise LuseelError("--config needs --untrained: a checkpoint has its own configuration")
    if args.untrained and args.model:
        raise LuseelError("--model is a trained network: leave out it or --untrained")
    if args.threads is not None:
        if args.threads < 1:
            raise LuseelError(f"--threads must be 1 or more, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.untrained:
        model, note = untrained(load_config(args.config or SHIPPED), args.device)
    else:
        model, note = load_model(args.model, args.device), ""
    result = benchmark(model, args.rounds, args.hop, note=note)
    print(json.dumps(result.to_dict(), indent=1) if args.json else result.markdown())
    return 0
