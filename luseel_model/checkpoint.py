"""Self-describing checkpoints: safetensors, the model's family and configuration in the metadata.

Never a pickle: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from .config import build_config, to_dict
from .errors import CheckpointError, ConfigError
from .families import DEFAULT, family_of, find_family

FORMAT = "luseel-1"
CHECKPOINT_FOLDER = Path(__file__).parent / "checkpoints"
SHIPPED = "luseel-small"


def save_checkpoint(path: str | Path, state: Mapping[str, torch.Tensor], config: Any,
                    info: Mapping[str, Any] | None = None, half: bool = False) -> None:
    """Write ``state`` and ``config`` atomically (a reader never sees half a file).

    Args:
        info: anything JSON can hold that describes the training (data, steps, figures).
        half: store floating-point weights as float16 (half the size; loaded as float32).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, value in state.items():
        value = value.detach().cpu().contiguous()
        tensors[key] = value.half() if half and value.is_floating_point() else value
    metadata = {"format": FORMAT, "family": family_of(config).name,
                "config": json.dumps(to_dict(config)),
                "info": json.dumps(dict(info or {}))}
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata=metadata)
    # safetensors makes files that only their owner may read; a checkpoint is for others too
    temporary.chmod(0o644)
    os.replace(temporary, path)


def find_checkpoint(name_or_path: str | Path | None) -> Path:
    """Path of a checkpoint: None is the shipped one, a bare name one of the package's."""
    if name_or_path is None or str(name_or_path) == "":
        name_or_path = SHIPPED
    path = Path(name_or_path).expanduser()
    shipped = CHECKPOINT_FOLDER / f"{name_or_path}.safetensors"
    # the name counts even where a training run's folder is called the same
    if path.suffix == "" and (shipped.is_file() or not path.exists()):
        path = shipped
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in CHECKPOINT_FOLDER.glob("*.safetensors")))
            raise CheckpointError(
                f"no checkpoint called {str(name_or_path)!r}; shipped are: {known or 'none'}. "
                "Give one of these, or the path of a .safetensors file.")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: give the path of a .safetensors file, or "
                              "leave it out for the shipped one")
    return path


def read_checkpoint(path: str | Path) -> tuple[Any, dict[str, torch.Tensor], dict]:
    """Configuration, float32 weights and training information of a checkpoint.

    Raises:
        CheckpointError: not a safetensors file, truncated, or not written by this project.
    """
    path = find_checkpoint(path)
    try:
        # at once: safe_open opens the file twice, and training may replace it in between
        data = path.read_bytes()
        state = load(data)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} can't be read as safetensors ({error}): it is truncated or another kind of "
            "file (PyTorch's pickles are never loaded). Fetch it again, or train one.") from None
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a LuSeeL checkpoint ({FORMAT}): give one that "
            "luseel-train wrote, or leave it out for the shipped one")
    try:
        family = find_family(metadata.get("family", DEFAULT))
        config = build_config(family.config_class, json.loads(metadata["config"]))
        info = json.loads(metadata.get("info", "{}"))
    except (KeyError, json.JSONDecodeError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: its configuration can't be read: {error}. It may be damaged or come from "
            "another version: fetch it again, or update this package.") from None
    if not isinstance(info, dict):
        raise CheckpointError(
            f"{path}: what it says about its training is a {type(info).__name__}, not a mapping. "
            "It may be damaged: fetch it again, or train one.")
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    return config, state, info


def load_network(path: str | Path | None, device: str | torch.device = "cpu"
                 ) -> tuple[nn.Module, dict]:
    """Build the network a checkpoint describes, in evaluation mode, and its information."""
    config, state, info = read_checkpoint(path)
    network = family_of(config).network_class(config)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{find_checkpoint(path)}: the weights don't fit the configuration in it; fetch it "
            f"again, or train one. {error}") from None
    return network.to(device).eval(), info
