"""A head: its horizontal impulse responses, as the simulation uses them and a network that
searches with them (head_search.py). Files are made by ``luseel calibrate --head`` of
claps and by ``luseel-heads`` of SOFA.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import AZIMUTH_BINS as AZIMUTHS
from .errors import ConfigError

#: The head that comes with the package (head_data/ATTRIBUTION.md).
MIT_KEMAR = Path(__file__).parent / "head_data" / "mit_kemar.safetensors"


def gaps(azimuth: np.ndarray) -> np.ndarray:
    """(n,) rising azimuths in [0, 360) → degrees from each to the next, the last to the first."""
    return np.diff(np.append(azimuth, azimuth[0] + 360.0))


def neighbours(azimuth: np.ndarray, wanted: np.ndarray | float
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Between which measured directions others lie.

    Args:
        azimuth: (n,) degrees, rising, in [0, 360).
        wanted: (...) degrees, any wrap.

    Returns:
        (...) each: index of the direction before and after, and how much of the way lies behind,
        0 to 1.
    """
    wanted = np.mod(np.asarray(wanted, np.float64), 360.0)
    low = np.searchsorted(azimuth, wanted, side="right") - 1  # -1: the last one, before the first
    part = np.mod(wanted - azimuth[low], 360.0) / gaps(azimuth)[low]
    return low, (low + 1) % len(azimuth), part


@dataclass
class Head:
    """Head-related impulse responses of one head.

    Attributes:
        name: its name.
        hrir: (360, 2 ears [left, right], taps) float32 at 16 kHz; row i is azimuth i degrees,
            counter-clockwise from the front, 90 left. Mean energy over directions and ears is 1.
        metadata: as strings, where known: licence, source, attribution; calibration (JSON) of
            measured heads; directions and heard (band) of claps.
    """

    name: str
    hrir: torch.Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hrir.ndim != 3 or tuple(self.hrir.shape[:2]) != (AZIMUTHS, 2):
            raise ConfigError(f"head {self.name}: expected (360, 2, taps), got "
                              f"{tuple(self.hrir.shape)}")

    @property
    def taps(self) -> int:
        """Length of the impulse responses, samples."""
        return self.hrir.shape[-1]

    def at(self, azimuth: torch.Tensor | float) -> torch.Tensor:
        """Impulse responses for azimuths (...) in degrees, any wrap: (..., 2, taps).

        Between two rows, a linear mix of both: they differ by less than 0.2 samples of delay.
        """
        azimuth = torch.as_tensor(azimuth, dtype=torch.float64).to(self.hrir.device)
        azimuth = torch.remainder(azimuth, AZIMUTHS)
        low = azimuth.floor()
        part = (azimuth - low).to(self.hrir.dtype)[..., None, None]
        low = low.long() % AZIMUTHS
        return torch.lerp(self.hrir[low], self.hrir[(low + 1) % AZIMUTHS], part)

    def warped(self, scale: float) -> "Head":
        """The head of another size: impulse responses stretched in time by ``scale`` (> 1: larger).

        Delays grow with the head, and all spectral detail moves down by as much; the mean energy
        stays 1. The response gets no longer, so what a stretch pushes past its end is lost.
        """
        if scale == 1.0:
            return self
        taps = self.taps
        cutoff = min(1.0, scale)
        position = np.arange(taps)[:, None] / scale - np.arange(taps)[None, :]
        width = 24.0
        window = np.where(np.abs(position) < width, np.cos(np.pi * position / (2 * width)) ** 2, 0)
        kernel = torch.as_tensor(cutoff * np.sinc(cutoff * position) * window).to(self.hrir)
        hrir = self.hrir @ kernel.T
        hrir = hrir / hrir.square().sum(-1).mean().sqrt()
        return Head(f"{self.name}*{scale:.3f}", hrir, dict(self.metadata))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file atomically.

        Raises:
            ConfigError: it can't be written.
        """
        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"hrir": self.hrir.float().cpu().contiguous()}, str(temporary),
                      {"format": "luseel-head-1", "name": self.name, **self.metadata})
            temporary.chmod(0o644)  # safetensors writes 0600, of no use to others once installed
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise ConfigError(f"can't write {path}: {error}") from None

    @classmethod
    def open(cls, path: str | Path) -> "Head":
        """Read a file written by :meth:`save`.

        Raises:
            ConfigError: the file is not a head.
        """
        foreign = f"{path} is not a head made by luseel calibrate or luseel-heads"
        try:
            with safe_open(str(path), "pt") as file:
                metadata = dict(file.metadata() or {})
                hrir = file.get_tensor("hrir")
        except Exception as error:  # safetensors raises its own classes and OSError alike
            raise ConfigError(f"{foreign}: {error}") from None
        if metadata.pop("format", "") != "luseel-head-1":
            raise ConfigError(foreign)
        return cls(metadata.pop("name", Path(path).stem), hrir, metadata)
