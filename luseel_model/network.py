"""What the networks of all model families have in common."""

from __future__ import annotations

from torch import nn


class Network(nn.Module):
    """A network without its frozen text or image encoders, which are no part of the module."""

    def parameter_count(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters())
