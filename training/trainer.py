"""The trainer: one YAML in, checkpoints, CSV and TensorBoard logs out; resumes exactly.

One trainer for all model families; what differs is a task's (training/tasks). The order of a step:
the task's batch, its losses, update, average weights. All random numbers come from generators whose
state is saved, so that a run that was interrupted and resumed equals an uninterrupted one. Several
processes may share a run (distributed.py).
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from luseel_model.checkpoint import read_checkpoint, save_checkpoint
from luseel_model.config import to_dict
from luseel_model.errors import CheckpointError, ConfigError
from training.distributed import Processes
from training.tasks import find_task
from training.train_config import TrainConfig, load_train_config

__all__ = ["TrainConfig", "Trainer", "load_train_config"]

_SEED_STRIDE = 1_000_003  # between the seeds of processes that share a run


class Trainer:
    """Trains one network.

    Args:
        config: the run.
        out: folder for ``best.safetensors``, ``last.safetensors``, ``resume.pt``, ``log.csv``,
            ``validation.csv`` and TensorBoard files. A ``resume.pt`` in it is resumed.
        device: 'cpu', 'cuda', ...; default: CUDA where there is one.
        init: checkpoint whose weights start the run (fine-tuning).
        processes: those that share the run; the first one logs, validates and saves.
    """

    def __init__(self, config: TrainConfig, out: str | Path, device: str | None = None,
                 init: str | Path | None = None, processes: Processes = Processes()):
        self.config, self.out, self.processes = config, Path(out), processes
        self.device = processes.device(device)
        for step in (0, config.steps - 1):  # before anything is loaded
            self._batch_size(step)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        seed = config.seed + _SEED_STRIDE * processes.rank  # every process makes its own batches
        self.task = find_task(config.family)(config, self.device, seed)
        self.network = self.task.network
        if init is not None:
            try:
                self.network.load_state_dict(
                    grown_state(self.network.state_dict(), read_checkpoint(init)[1]))
            except (RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"the weights of {init} don't fit the model {config.model}: {error}") from None
        elif not (self.out / "resume.pt").exists():
            self.task.start()
        self.task.ready()
        self.network.to(self.device)
        self._freeze(config.train_only)
        self._step_losses = processes.wrap(_Losses(self))
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        decay, plain = [], []
        for parameter in filter(lambda p: p.requires_grad, self.network.parameters()):
            (decay if parameter.dim() > 1 else plain).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": config.optimizer.weight_decay},
             {"params": plain, "weight_decay": 0.0}],
            lr=config.optimizer.learning_rate, betas=(0.9, 0.98))
        if processes.rank:
            torch.manual_seed(seed)

        self.step, self.best, self.best_step, self.stale, self.rate_factor = 0, math.inf, 0, 0, 1.0
        self.elapsed = 0.0  # seconds of training and validation, of all runs into this folder
        self._seconds, self._scenes_done = {"simulation": 0.0, "network": 0.0}, 0
        if (self.out / "resume.pt").exists():
            self._resume()
        if processes.is_first:
            (self.out / "config.json").write_text(json.dumps(to_dict(config), indent=1))

    def _batch_size(self, step: int) -> int:
        """Scenes that this process makes for step ``step``."""
        key = self.config.batch_key(step)
        return self.processes.share(getattr(self.config, key), key)

    def _freeze(self, kept: Sequence[str]) -> None:
        parts = dict(self.network.named_children()) | dict(self.network.named_parameters())
        if unknown := sorted(set(kept) - set(parts)):
            raise ConfigError(f"train_only: the network has no {', '.join(unknown)}")
        for name, parameter in self.network.named_parameters():
            if kept and not (name in kept or name.split(".")[0] in kept):
                parameter.requires_grad_(False)

    def _train_mode(self) -> None:
        """Training mode; what is frozen behaves as in use: no dropout, no new statistics."""
        self.network.train()
        if kept := self.config.train_only:
            for name, part in self.network.named_children():
                part.train(name in kept)

    # -- state

    def _resume(self) -> None:
        path = self.out / "resume.pt"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            others = state["others"]
            if len(others) + 1 != self.processes.size:
                raise CheckpointError(
                    f"{path} was saved by {len(others) + 1} processes: go on with as many, or "
                    "start another run from its weights with --init "
                    f"{self.out / 'last.safetensors'}")
            self.network.load_state_dict(state["network"])
            self.average = state["average"]
            self.optimizer.load_state_dict(state["optimizer"])
            for name in ("step", "best", "best_step", "stale", "rate_factor", "elapsed"):
                setattr(self, name, state[name])
            rank = self.processes.rank
            self._set_chance(others[rank - 1] if rank else state["chance"])
        except CheckpointError:
            raise
        except (RuntimeError, KeyError, EOFError, ValueError, TypeError,
                pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} doesn't fit this run ({error}): train into another folder, or delete it "
                "to start over") from error
        if self.processes.is_first:  # what was logged after the save happens again
            for name in ("log.csv", "validation.csv"):
                _truncate_csv(self.out / name, self.step)

    def _chance(self) -> dict[str, Any]:
        """State of all that is random in this process."""
        state = {"task": self.task.state_dict(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def _set_chance(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state["task"])
        torch.set_rng_state(state["torch"].cpu())
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu())

    def save_resume(self) -> None:
        """Write everything that an exact resumption needs, atomically."""
        chance, *others = self.processes.gather(self._chance())
        if not self.processes.is_first:
            return
        state = {
            "network": self.network.state_dict(), "average": self.average,
            "optimizer": self.optimizer.state_dict(), "chance": chance, "others": others,
            **{n: getattr(self, n) for n in ("step", "best", "best_step", "stale", "rate_factor",
                                             "elapsed")},
        }
        temporary = self.out / "resume.pt.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / "resume.pt")

    def save_network(self, name: str, **info: Any) -> None:
        if not self.processes.is_first:
            return
        info = {"training": self.config.name, "step": self.step, **self.task.info(),
                "training_seconds": round(self.elapsed, 3), **info}
        save_checkpoint(self.out / name, self._evaluated_state(), self.network.config, info)

    def _evaluated_state(self) -> dict[str, Tensor]:
        return self.average if self.config.optimizer.average else self.network.state_dict()

    # -- one step

    def learning_rate(self, step: int) -> float:
        """Rate of step ``step`` (from 0)."""
        config = self.config.optimizer
        rate = config.learning_rate * self.rate_factor
        rate *= min(1.0, (step + 1) / max(1, config.warmup_steps))
        if config.schedule == "decay" and config.decay_steps:
            left = self.config.steps - step
            rate *= max(0.02, min(1.0, left / config.decay_steps))
        return rate

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The task's losses of a batch, at the run's step."""
        return self.task.losses(batch, self.step)

    def train_step(self) -> dict[str, Tensor]:
        """Loss, gradient norm and weighted terms of one step."""
        config = self.config
        started = time.perf_counter()
        size = self._batch_size(self.step)
        batch = self.task.batch(self.step, size)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the batch is made now, not only asked for
        simulated = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self._train_mode()
        terms = self._step_losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.optimizer.clip_norm)
        if torch.isfinite(norm):  # one broken batch must not spoil the run
            self.optimizer.step()
        self.step += 1
        self._update_average()
        self._scenes_done += size
        self._seconds["simulation"] += simulated - started
        self._seconds["network"] += time.perf_counter() - simulated
        return {"loss": loss, "grad_norm": norm, **terms}

    def _update_average(self) -> None:
        decay = self.config.optimizer.average
        if not decay:
            return
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for key, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    # -- validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The task's validation, with the averaged weights."""
        trained = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self._evaluated_state())
        self.network.eval()
        try:
            return self.task.validate()
        finally:
            self.network.load_state_dict(trained)

    # -- the run

    def run(self, max_minutes: float | None = None) -> dict[str, float]:
        """Train to the end (or for ``max_minutes``), resuming where the folder left off.

        Ctrl-C (or SIGTERM) finishes the step and saves before it stops; a second one stops at
        once, and leaves what was last saved. Returns the last validation (nothing in processes
        other than the first). A signal or the time limit of one process stops all after the same
        step.
        """
        config, first = self.config, self.processes.is_first
        writer = SummaryWriter(self.out / "tensorboard", purge_step=self.step + 1) if first \
            else None
        deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
        result: dict[str, float] = {}
        bar = tqdm(total=config.steps, initial=self.step, desc=config.name, unit="step",
                   dynamic_ncols=True, disable=not first)
        clock = time.monotonic()
        sums: dict[str, list[Tensor]] = {}
        try:
            with _interrupts_after_step() as interrupted:
                while (self.step < config.steps
                       and self.stale < config.validation.stop_patience
                       and not self.processes.any(bool(interrupted)
                                                  or time.monotonic() >= deadline)):
                    for key, value in self.train_step().items():
                        sums.setdefault(key, []).append(value.detach())
                    bar.update()
                    clock, before = time.monotonic(), clock
                    self.elapsed += clock - before
                    if self.step % config.log_every == 0:
                        if first:
                            self._log(sums, writer, bar)
                        sums = {}
                    if self.step % config.validation.every == 0 or self.step == config.steps:
                        if self.step > config.first_steps:
                            result = self._validation_round(writer)
                    if self.step % config.save_every == 0:
                        self.save_resume()
                self.save_resume()
                self.save_network("last.safetensors")
                if not first:
                    pass
                elif interrupted:
                    tqdm.write("interrupted and saved; the same command resumes")
                elif self.stale >= config.validation.stop_patience:
                    tqdm.write(f"no improvement in {self.stale} validations: stopped")
        finally:
            bar.close()
            if writer is not None:
                writer.close()
        return result

    def _validation_round(self, writer: SummaryWriter | None) -> dict[str, float]:
        """The first process validates, all learn what it means for the schedule."""
        result = self._validated(writer) if writer is not None else {}
        self.best, best_step, stale, self.rate_factor = self.processes.from_first(
            [self.best, self.best_step, self.stale, self.rate_factor])
        self.best_step, self.stale = int(best_step), int(stale)
        return result

    def _validated(self, writer: SummaryWriter) -> dict[str, float]:
        result = self.validate()
        score = result[self.task.score]
        if score < self.best:
            self.best, self.best_step, self.stale = score, self.step, 0
            self.save_network("best.safetensors", validation=result)
        else:
            self.stale += 1
            if self.config.optimizer.schedule == "plateau" and \
                    self.stale % self.config.optimizer.patience == 0:
                self.rate_factor /= 2
        for key, value in result.items():
            writer.add_scalar(f"validation/{key}", value, self.step)
        _append_csv(self.out / "validation.csv", {"step": self.step, **result})
        tqdm.write(f"step {self.step}: " + "  ".join(f"{k} {v:.3g}" for k, v in result.items()))
        return result

    def _log(self, sums: dict[str, list[Tensor]], writer: SummaryWriter, bar: tqdm) -> None:
        count = len(sums["loss"])  # fewer than log_every after a resumption
        row = {key: float(torch.stack(values).mean()) for key, values in sums.items()}
        row["learning_rate"] = self.learning_rate(self.step - 1)
        total = sum(self._seconds.values())
        row["steps_per_s"] = count / total
        for part, seconds in self._seconds.items():
            row[f"{part}_scenes_per_s"] = self._scenes_done / seconds
        self._scenes_done = 0
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        for key, value in row.items():
            writer.add_scalar(f"train/{key}", value, self.step)
        _append_csv(self.out / "log.csv", {"step": self.step, **row})
        bar.set_postfix_str(f"loss {row['loss']:.2f}, "
                            f"scenes/s: {row['simulation_scenes_per_s']:.0f} simulated, "
                            f"{row['network_scenes_per_s']:.0f} trained")


class _Losses(nn.Module):
    """:meth:`Trainer.losses` as the forward pass of a module, for DistributedDataParallel."""

    def __init__(self, trainer: Trainer):
        super().__init__()
        self.network = trainer.network
        self.trainer = trainer

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.trainer.losses(batch)


@contextlib.contextmanager
def _interrupts_after_step():
    """Hold Ctrl-C and SIGTERM back, so that a step is never saved half done.

    Gives a list that the first signal fills; a second one raises KeyboardInterrupt.
    """
    interrupted: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread only
        return
    previous = {number: signal.signal(number, handle)
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def grown_state(own: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a smaller network in a larger one: new channels start at zero, new modules as
    they are initialised. Raises ValueError where something doesn't fit."""
    extra = sorted(set(given) - set(own))
    if extra:
        raise ValueError(f"the network has no {', '.join(extra[:3])}")
    state = {}
    for key, value in own.items():
        small = given.get(key, value)
        if small.shape != value.shape:
            if small.dim() != value.dim() or any(
                    a > b for a, b in zip(small.shape, value.shape)):
                raise ValueError(f"{key}: {tuple(small.shape)} doesn't fit {tuple(value.shape)}")
            large = torch.zeros_like(value)
            large[tuple(slice(n) for n in small.shape)] = small
            small = large
        state[key] = small
    return state


def _truncate_csv(path: Path, step: int) -> None:
    """Drop the rows after ``step``."""
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    with open(path.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows[:1] + [r for r in rows[1:] if r and int(r[0]) <= step])
    os.replace(path.with_suffix(".tmp"), path)


def _append_csv(path: Path, row: dict[str, float]) -> None:
    """Append a row; columns that a file's head lacks (a later stage's terms) start a new head."""
    header = None
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            header = list(rows[0]) if rows else None
    if header is not None and set(row) - set(header):
        names = header + [key for key in row if key not in header]
        with open(path.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(path.with_suffix(".tmp"), path)
        header = names
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header or list(row))
        if header is None:
            writer.writeheader()
        writer.writerow(row)
