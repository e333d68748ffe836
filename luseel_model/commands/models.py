"""``luseel models``: the shipped checkpoints, what they take and give, and how good they are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from ..errors import LuseelError


def register(commands) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "models", help="list the shipped checkpoints",
        description="What each of the shipped checkpoints takes and gives, its size, measured "
        "figures and the licence of its weights. More is in its model card, the .md file beside it.")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the list; the exit status."""
    from .. import checkpoint

    paths = sorted(checkpoint.CHECKPOINT_FOLDER.glob("*.safetensors"),
                   key=lambda path: (path.stem != checkpoint.SHIPPED, path.stem))
    if not paths:
        raise LuseelError(f"no checkpoints in {checkpoint.CHECKPOINT_FOLDER}")
    found = [_about(path) for path in paths]
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for about in found:
        default = " (default)" if about["name"] == checkpoint.SHIPPED else ""
        print(f"{about['name']}{default}: {about['family']}, {about['parameters'] / 1e6:.1f} M "
              f"parameters, {about['megabytes']:.1f} MB, window {about['window']:g} s, "
              f"trained on {about['kinds']} kinds of sounds")
        print(f"    {about['interface']}")
        for name in ("figures", "license"):
            if about[name]:
                print(f"    {'licence' if name == 'license' else name}: {about[name]}")
    return 0


def _about(path: Path) -> dict[str, Any]:
    from ..checkpoint import read_checkpoint
    from ..families import family_of

    config, _, info = read_checkpoint(path)
    family = family_of(config)
    card = card_facts(path.with_suffix(".md"))
    return {
        "name": path.stem, "family": family.title,
        "parameters": family.network_class(config).parameter_count(),
        "megabytes": path.stat().st_size / 1e6, "window": config.window,
        "steps": info.get("step", "?"),  # of its last training run
        "kinds": len(set(info.get("kinds", [])) - set(info.get("unseen", []))),
        "interface": family.extractor_class.capabilities_of(config).describe(),
        "figures": card.get("figures", ""), "license": card.get("license", ""),
    }


def card_facts(path: Path) -> dict[str, Any]:
    """The YAML between the first two lines of dashes of a model card; empty without a card."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        return {}
    facts = yaml.safe_load(text[4:text.index("\n---\n", 4)])
    return facts if isinstance(facts, dict) else {}
