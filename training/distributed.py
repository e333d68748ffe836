"""One training run by several processes, each with a device of its own.

    torchrun --nproc-per-node 4 -m training.train --config paper/luseel

Gradients are averaged by DistributedDataParallel; batch normalisation takes its statistics over all
processes, so that the run doesn't depend on how many share its batches.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from typing import Any, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from luseel_model.errors import ConfigError
from luseel_model.inference import pick_device

#: How long the others wait for the first process, which validates and saves.
_PATIENCE = datetime.timedelta(hours=2)


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that train together; without any argument: one that is alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> "Processes":
        """Meet the other processes that torchrun started; alone without torchrun."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return cls()
        # values that all must agree on go by the CPU, gradients by the devices
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
        return cls(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", 0)))

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process logs, validates and saves."""
        return self.rank == 0

    def device(self, name: str | torch.device | None) -> torch.device:
        """The device of this process; ``name`` as for pick_device."""
        device = pick_device(name)
        if self.size == 1 or device.type != "cuda":
            return device
        device = pick_device(f"cuda:{self.local_rank}")
        torch.cuda.set_device(device)
        return device

    def share(self, scenes: int, what: str) -> int:
        """How many of a global batch this process makes.

        Raises:
            ConfigError: they can't be shared equally.
        """
        if scenes % self.size:
            raise ConfigError(f"{what} {scenes} can't be shared equally by {self.size} processes: "
                              f"make it a multiple of {self.size}")
        return scenes // self.size

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether any process says so; the same answer in all of them."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def from_first(self, values: Sequence[float]) -> list[float]:
        """The numbers that the first process gives."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.broadcast(tensor, 0)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, in the order of the ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with averaged gradients and common statistics of batches."""
        if self.size == 1:
            return module
        group = dist.new_group(timeout=_PATIENCE)
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.__class__ = CommonBatchNorm  # in place: the optimizer has its parameters
                part.group = group
        # the stages of a run train parts of the network only; buffers are the same everywhere
        return DistributedDataParallel(module, find_unused_parameters=True,
                                       broadcast_buffers=False)


class CommonBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of (B, C, ...) over the batches of all processes.

    torch's SyncBatchNorm does the same on GPUs only, where no test of ours could follow it.
    """

    group: Any = None

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # float64: the variance is a difference of large numbers
        wide = x.double().movedim(1, -1)
        rows = wide.flatten(0, -2)
        sums = torch.cat([rows.sum(0), rows.square().sum(0), rows.new_full((1,), len(rows))])
        sums = _Sum.apply(sums, self.group)
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            rate = self.momentum
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), rate)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), rate)
        scaled = ((wide - mean) * torch.rsqrt(variance + self.eps)).to(self.weight)
        return (scaled * self.weight + self.bias).movedim(-1, 1).to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None
