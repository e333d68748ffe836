"""What a model family gives the trainer: its network, batches, losses and validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luseel_model.families import family_of
from training.corpus import toy
from training.train_config import TrainConfig

__all__ = ["Task", "TrainConfig"]


class Task(ABC):
    """One family's side of a run. The trainer does the rest: freezing, averaging, AdamW, schedule,
    clipping, logs, checkpoints, exact resumption, several processes.

    A run calls, in this order: the constructor; ``network`` is given the weights of ``--init``, or
    :meth:`start`; :meth:`ready`; for each step :meth:`batch` and :meth:`losses`; now and then
    :meth:`validate`. The trainer has seeded torch's own generator before and keeps its state, for
    initialisation and dropout; all other chance is the task's, in :meth:`state_dict`.

    Args:
        config: the run, of ``config_class``.
        device: where batches are made and the network is trained; the trainer moves the network
            there after :meth:`ready`.
        seed: of this process; those that share a run have different ones, and so batches of their
            own.
    Raises:
        LuseelError: the run, its model and its data contradict each other, or data is missing.
    """

    config_class: ClassVar[type[TrainConfig]]
    #: Which value of :meth:`validate` the best checkpoint has the lowest of.
    score: ClassVar[str] = "score"

    def __init__(self, config: TrainConfig, device: torch.device, seed: int):
        self.config, self.device, self.seed = config, device, seed
        self.network = self.build_network(config)
        config.check(self.network.config)

    # -- before a run

    @classmethod
    def make_data(cls, config: TrainConfig) -> None:
        """Make what is missing and can be made: the toy corpus where ``data.packed`` is data/toy.
        Of several processes one is asked, before any constructor."""
        if config.packed:
            toy.build_if_asked_for(config.packed)

    @classmethod
    def build_network(cls, config: TrainConfig) -> nn.Module:
        """The network of the run, untrained, on the CPU. Needs no data where that can be, so that
        ``--dry-run`` needs none."""
        model = config.model_config()
        return family_of(model).network_class(model)

    @classmethod
    def noise_losses(cls, config: TrainConfig, network: nn.Module, scenes: int
                     ) -> dict[str, Tensor] | None:
        """:meth:`losses` of ``scenes`` (2 or more) of noise, on the CPU and without data: what
        ``--dry-run`` counts a step's memory by. None: it isn't known."""
        return None

    def start(self) -> None:
        """For a run that starts neither from a checkpoint nor from its own last save: weights of
        pretrained parts."""

    def ready(self) -> None:
        """The network has its first weights; it is still on the CPU."""

    def describe(self) -> str:
        """The data in a few words, for the line that announces a run."""
        return ""

    # -- the run

    @abstractmethod
    def batch(self, step: int, size: int) -> Any:
        """Make the next batch: ``size`` scenes for step ``step`` (from 0)."""

    @abstractmethod
    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Weighted terms, scalars, whose sum is minimised. What may run in the run's precision is
        run ``with self.autocast()``."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Means over fixed scenes of the valid split, the same for every seed and in every call;
        the value called :attr:`score` is the lower the better. The network has the averaged
        weights and is in evaluation mode, without gradients. Changes no generator of training.
        """

    def state_dict(self) -> dict[str, Any]:
        """State of all that is random or counted here: tensors, numbers, strings, and lists and
        dictionaries of them. This one is that of ``simulator`` and ``generator``."""
        return {"simulator": self.simulator.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the run whose :meth:`state_dict` this is; tensors may be on the device."""
        self.simulator.load_state_dict(state["simulator"])
        self.generator.set_state(state["generator"].cpu())

    def info(self) -> dict[str, Any]:
        """What a checkpoint says about its training: kinds of sounds, ... Anything JSON can hold.
        """
        return {}

    def autocast(self) -> torch.autocast:
        """The run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16,
                              enabled=self.config.precision == "bfloat16")
