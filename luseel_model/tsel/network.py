"""Text-queried target sound event localization (paper 001): audio of an array and words in,
a likelihood over azimuth out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arrays import MicrophoneArray
from ..errors import ConfigError
from ..network import Network
from .config import TselConfig
from .gcc import gcc_head, maps_of
from .steered import SteeredNetwork

LABEL_PEAK = 1 / math.sqrt(2 * math.pi * 5.0)  # of the normalised label, variance 5 deg²


@dataclass
class TselOutput:
    """What the network says of B clips and Q queries.

    Attributes:
        logits: (B, Q, 360), or (B, Q, T, 360) of a network for moving sounds.
        presence: (B, Q) logits that the sound is there; None from the paper's networks.
        share: (B, Q, bands, frames) logits of the sound's share in the separator's bands, or None.
    """

    logits: Tensor
    presence: Tensor | None = None
    share: Tensor | None = None


class Tsel(Network):
    """Direction of the described sound.

    Args:
        config: see :class:`~luseel_model.tsel.config.TselConfig`.
    """

    def __init__(self, config: TselConfig):
        super().__init__()
        self.config = config
        self.array = config.array
        self.body = SteeredNetwork(config) if config.features == "steered" else gcc_head(config)

    def forward(self, audio: Tensor, tokens: Tensor, mask: Tensor,
                semantic: Tensor | None = None) -> TselOutput:
        """
        Args:
            audio: (B, M, N) at ``config.sample_rate``, in the order of the array's microphones.
            tokens: (B, Q, L, E) frozen text embeddings.
            mask: (B, Q, L) bool, True where there is a token.
            semantic: (B, E) CLAP audio embeddings, where ``config.clap_audio``.
        """
        if audio.dim() != 3 or audio.shape[1] != self.array.microphones:
            raise ValueError(f"audio must have shape (batch, {self.array.microphones}, samples), "
                             f"got {tuple(audio.shape)}")
        if self.config.features == "steered":
            found = self.body(audio, tokens, mask)
            return TselOutput(found.logits, found.presence, found.share)
        with torch.autocast(audio.device.type, enabled=False):
            maps = maps_of(audio.float(), self.config)
        return TselOutput(self.body(maps, tokens, mask, semantic))

    def likelihood(self, logits: Tensor) -> Tensor:
        """Logits (..., 360) → likelihood in [0, 1], 1 where it is as certain as the label."""
        return (logits.float().softmax(-1) / LABEL_PEAK).clamp(max=1.0)

    def set_array(self, array: MicrophoneArray) -> None:
        """Listen with another array than the one of the configuration.

        Raises:
            ConfigError: a network that has learnt its array can't.
        """
        if self.config.features != "steered":
            if array.positions != self.array.positions:
                raise ConfigError(f"the model {self.config.name} has learnt the array "
                                  f"{self.array.name}: train it with another one, or use a model "
                                  "with steered features (docs/tsel.md)")
            return
        self.array = array
        self.body.set_array(array)
