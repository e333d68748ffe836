"""Scenes of an array as a training takes them, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Scenes:
    """B scenes of S sounds.

    Attributes:
        audio: (B, M, N) float32.
        azimuth: (B, S) degrees, or (B, S, T) over time; NaN where a sound has no direction.
        weight: like ``azimuth``, in [0, 1]: how much each direction counts.
        kind: (B, S) index into the kinds.
        askable: (B, S) bool: sounds that words can mean and that have a direction.
        sources: (B, S, N) as the first microphone hears them, None where that isn't known.
    """

    audio: Tensor
    azimuth: Tensor
    weight: Tensor
    kind: Tensor
    askable: Tensor
    sources: Tensor | None = None
