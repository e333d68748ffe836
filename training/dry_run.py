"""What a training run takes, before it starts: ``luseel-train --config paper/luseel --dry-run``.

Needs neither data nor a GPU: the network and its losses are run once, forward, on noise.
"""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

import torch

from luseel_model.errors import ConfigError
from training.tasks import find_task
from training.train_config import TrainConfig

_SCENES = 2  # batch normalisation needs two
_GIB = 1 << 30


def saved_bytes(config: TrainConfig, network: torch.nn.Module) -> int | None:
    """Bytes that autograd keeps for the backward pass of one scene, parameters left out: counted by
    running network and losses on noise, on the CPU, in the run's precision. None where the task
    can't do that."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = find_task(config.family).noise_losses(config, network, _SCENES)
        if terms is None:
            return None
        total = torch.stack(list(terms.values())).sum()
    # the graph, and so the storages, have lived until here: no address was counted twice
    assert math.isfinite(float(total.detach()))
    return sum(kept.values()) // _SCENES


def measured_rate(out: Path) -> float | None:
    """Steps per second in the log of the run in ``out``, the median of its last 20 rows."""
    try:
        with open(out / "log.csv", newline="", encoding="utf-8") as file:
            rows = [float(row["steps_per_s"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return None
    return statistics.median(rows[-20:]) if rows else None


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def dry_run(config: TrainConfig, out: Path, rate: float | None = None) -> str:
    """The report, several lines of text.

    Args:
        out: folder of the run; its log tells the rate where there is one.
        rate: measured steps per second.
    Raises:
        ConfigError: the run and its model contradict each other.
    """
    if rate is not None and not rate > 0:
        raise ConfigError(f"--rate must be above 0, got {rate:g}")
    torch.manual_seed(config.seed)
    network = find_task(config.family).build_network(config)
    config.check(network.config)
    parts = {name: sum(p.numel() for p in part.parameters())
             for name, part in network.named_children()}
    count = network.parameter_count()
    sizes = ", ".join(f"{name} {n / 1e6:.2f}" for name, n in
                      sorted(parts.items(), key=lambda item: -item[1]) if n >= 5e4)
    optimizer, check = config.optimizer, config.validation
    lines = [
        f"{config.name}: {count:,} trainable parameters (M: {sizes})",
        f"steps: {config.steps:,} at most; {optimizer.warmup_steps:,} of warm-up to a rate of "
        f"{optimizer.learning_rate:g}; validated every {check.every:,}"
        + (f"; the rate is halved after {optimizer.patience} validations without improvement, and "
           f"the run ends after {check.stop_patience}: how many steps that takes can't be known "
           "before" if optimizer.schedule == "plateau" else "")]
    if config.first_steps:
        first = getattr(config, config.batch_key(0))
        lines.append(f"of these the first {config.first_steps:,} with {first} scenes, for the tags "
                     "alone")
    lines += _data(config)
    weights = 4 * count
    scene = saved_bytes(config, network)
    known = scene is not None
    lines.append(
        "memory of each process, GiB: "
        + ", ".join(f"{name} {size / _GIB:.2f}" for name, size in (
            ("parameters", weights), ("gradients", weights), ("optimizer (AdamW)", 2 * weights),
            ("averaged weights", weights)))
        + (f", activations {scene / _GIB:.3f} a scene" if known else
           f"; activations aren't known for the family {config.family}"))
    if known:
        lines += [
            f"(activations: what autograd saved of {_SCENES} scenes of noise on this CPU in "
            f"{config.precision}, network and losses; not in it: recordings and queries, kernels' "
            "work space, the allocator's reserve)",
            "processes: scenes of each, GiB with activations"]
    for processes in (1, 2, 4, 8) if known else ():
        if config.batch_size % processes:
            continue
        share = config.batch_size // processes
        copies = 5 if processes == 1 else 6  # DistributedDataParallel's buckets
        lines.append(f"{processes:9d}: {share:5d}, {(copies * weights + share * scene) / _GIB:.1f}")
    found = rate or measured_rate(out)
    if found is None:
        lines.append(
            "time: not known, nothing was measured on the machine that is to train. Let it train "
            f"there for some minutes (--minutes 5), then --dry-run again: it takes the rate from "
            f"{out / 'log.csv'}; or give --rate")
    else:
        source = "as given" if rate else f"median of the last rows of {out / 'log.csv'}"
        lines.append(
            f"time at {found:g} steps/s ({source}), validation not counted: "
            f"{_duration(check.every / found)} from validation to validation, "
            f"{_duration(config.steps / found)} for all {config.steps:,} steps")
    return "\n".join(lines)


def _data(config: TrainConfig) -> list[str]:
    scenes = f"scenes: {config.batch_size} a step, {config.batch_size * config.steps:,} at most"
    if not config.packed:
        return [scenes]
    folder = Path(config.packed)
    try:
        with open(folder / "train.csv", newline="", encoding="utf-8") as file:
            recordings = sum(1 for _ in csv.DictReader(file))
        size = (folder / "train.npy").stat().st_size + (folder / "valid.npy").stat().st_size
    except FileNotFoundError:
        return [f"{scenes}; there are no recordings in {folder} to count an epoch by"]
    return [f"{scenes}; an epoch of {recordings:,} scenes, as many as recordings in {folder}, "
            f"takes {math.ceil(recordings / config.batch_size):,} steps; the recordings take "
            f"{size / _GIB:.2f} GiB in each process"]
