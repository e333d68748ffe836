"""Make a checkpoint ready to be shipped: half precision, with what is known of it inside.

    python -m training.export runs/luseel-small/best.safetensors \\
        luseel_model/checkpoints/luseel-small.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from luseel_model.checkpoint import read_checkpoint, save_checkpoint
from luseel_model.errors import LuseelError

SHIPPED_BYTES = 20_000_000  # larger files make a repository slow to clone


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="best.safetensors of a run")
    parser.add_argument("out", help="file to write")
    parser.add_argument("--full", action="store_true", help="keep float32")
    args = parser.parse_args(argv)
    try:
        config, state, info = read_checkpoint(args.checkpoint)
    except LuseelError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    save_checkpoint(args.out, state, config, info, half=not args.full)
    size = Path(args.out).stat().st_size
    print(f"{args.out}: {size / 1e6:.1f} MB")
    if size > SHIPPED_BYTES:
        print(f"export: above the {SHIPPED_BYTES / 1e6:.0f} MB of a shipped checkpoint",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
