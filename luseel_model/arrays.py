"""Microphone arrays: where the microphones are, and what that means for a sound from somewhere.

An array is described by a YAML file::

    name: head-ring
    positions:              # metres; x to the front, y to the left, z up
      - [0.06, 0.06, 0.0]
      - [-0.06, 0.06, 0.0]
      - [0.0, -0.08, 0.0]

The microphones come in the order of the audio channels. Directions are degrees counter-clockwise
from the front, 90 is left; elevations are degrees above the horizon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from .config import build_config, read_yaml
from .errors import ConfigError

SOUND_SPEED = 343.0  # m/s
#: Farther apart than this (m), positions were surely given in another unit.
_WIDEST = 5.0


@dataclass(frozen=True)
class MicrophoneArray:
    """Places of M microphones.

    Attributes:
        name: shown to users.
        positions: M times x, y, z in metres, in the order of the audio channels.
    """

    name: str
    positions: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        if len(self.positions) < 2:
            raise ConfigError(f"array {self.name}: a direction needs two microphones or more")
        if not all(math.isfinite(value) for place in self.positions for value in place):
            raise ConfigError(f"array {self.name}: positions must be finite numbers of metres")
        distances = [math.dist(*pair) for pair in combinations(self.positions, 2)]
        if min(distances) < 1e-3:
            raise ConfigError(f"array {self.name}: two microphones are less than 1 mm apart")
        if max(distances) > _WIDEST:
            raise ConfigError(f"array {self.name}: microphones {max(distances):g} m apart: give "
                              "the positions in metres")

    @property
    def microphones(self) -> int:
        return len(self.positions)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of microphones, (0, 1), (0, 2), ..."""
        return list(combinations(range(self.microphones), 2))

    def delays(self, azimuth: Tensor, elevation: Tensor | float = 0.0) -> Tensor:
        """When a plane wave arrives at each microphone, after its arrival at the origin.

        Args:
            azimuth: (...) degrees.
            elevation: degrees, broadcastable to ``azimuth``.
        Returns:
            (M, ...) seconds.
        """
        azimuth = torch.deg2rad(torch.as_tensor(azimuth))
        elevation = torch.deg2rad(torch.as_tensor(elevation, dtype=azimuth.dtype))
        ground, up = torch.cos(elevation), torch.sin(elevation) + 0 * azimuth
        towards = torch.stack([ground * torch.cos(azimuth), ground * torch.sin(azimuth), up])
        places = torch.tensor(self.positions, dtype=azimuth.dtype, device=azimuth.device)
        return -torch.tensordot(places, towards, dims=1) / SOUND_SPEED

    def pair_delays(self, azimuth: Tensor, elevation: Tensor | float = 0.0) -> Tensor:
        """How much later the second microphone of each pair hears a plane wave, (P, ...) in seconds.
        """
        delays = self.delays(azimuth, elevation)
        first, second = zip(*self.pairs)
        return delays[list(second)] - delays[list(first)]

    def symmetries(self, tolerance: float = 1e-3) -> list[tuple[float, bool, tuple[int, ...]]]:
        """Turns of a scene about the vertical axis that only reorder the microphones.

        Args:
            tolerance: metres by which a microphone may miss its place.
        Returns:
            (turn, is_mirrored, order): when every azimuth a becomes turn + a, or turn - a where
            the scene is mirrored, channel i hears what channel order[i] heard. The first is the
            scene as it is. Turns are multiples of 15 degrees.
        """
        found = []
        for mirrored in (False, True):
            for turn in range(0, 360, 15):
                c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
                order: list[int] = [-1] * self.microphones
                for i, (x, y, z) in enumerate(self.positions):
                    y = -y if mirrored else y
                    moved = (c * x - s * y, s * x + c * y, z)
                    for j, place in enumerate(self.positions):
                        if math.dist(moved, place) < tolerance:
                            order[j] = i
                if sorted(order) == list(range(self.microphones)):
                    found.append((float(turn), mirrored, tuple(order)))
        return found


def square_array(side: float, name: str = "square") -> MicrophoneArray:
    """Four microphones at the corners of a square (paper 001, section VI.A: side 0.10 to 0.13 m).

    Counter-clockwise from the front left: 45, 135, 225 and 315 degrees.
    """
    half = side / 2
    return MicrophoneArray(name, ((half, half, 0.0), (-half, half, 0.0), (-half, -half, 0.0),
                                  (half, -half, 0.0)))


#: The square in the middle of the paper's range.
SQUARE = square_array(0.115)


def load_array(name_or_path: str | Path) -> MicrophoneArray:
    """``square``, or an array from a YAML file.

    Raises:
        ConfigError: there is no such array, or its description is wrong.
    """
    if str(name_or_path) == SQUARE.name:
        return SQUARE
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"no microphone array {str(name_or_path)!r}: there is {SQUARE.name}; "
                          "for another, give the path of a YAML file (docs/tsel.md)")
    data = {"name": path.stem, **read_yaml(path)}
    try:
        return build_config(MicrophoneArray, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
