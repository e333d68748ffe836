"""What is wrong with a pair of ears, as a small file that puts audio and directions right.

Signs and angles: see the package.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..angles import wrap_degrees
from ..config import build_config, read_yaml
from ..errors import ConfigError, LuseelError

VERSION = 1
MAX_DELAY_US = 2000.0  # farther apart than 0.7 m: not a head
MAX_GAIN_DB = 40.0


class CalibrationError(LuseelError):
    """The recording can't tell what the ears are like; the message says what to record instead."""


@dataclasses.dataclass(frozen=True)
class Direction:
    """What was measured at one direction, before any correction.

    Attributes:
        azimuth: degrees, where the sound was.
        delay_us: lag of channel 2 behind channel 1, microseconds, with the polarity made equal.
        level_db: level of channel 2 over channel 1; NaN where it can't be told.
        spread_us: standard deviation of the delay over the sounds, 0 for a single one.
        sounds: how many.
    """

    azimuth: float
    delay_us: float
    level_db: float
    spread_us: float = 0.0
    sounds: int = 1


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is wrong with a pair of ears; :meth:`apply` puts it right.

    Attributes:
        version: of the file format.
        swap: the channels are right, left and are exchanged first. All else is of the exchanged.
        polarity: -1 where one ear is inverted against the other.
        delay_us: how much later the right ear hears than a symmetric head's, microseconds.
        gain_db: how much louder the right ear is than a symmetric head's, dB.
        turn_degrees: by how much the head looks to the left of the robot's front; directions are
            turned by as much, so that 0 is the robot's front.
        head_delay_us: largest interaural delay, i.e. the size of the head; information only.
        residual_us: root mean square of what the delays are off a symmetric head's; information.
        measured: the directions it comes from; information.

    Raises:
        ConfigError: a value that no pair of ears has.
    """

    version: int = VERSION
    swap: bool = False
    polarity: int = 1
    delay_us: float = 0.0
    gain_db: float = 0.0
    turn_degrees: float = 0.0
    head_delay_us: float | None = None
    residual_us: float | None = None
    measured: tuple[Direction, ...] = ()

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ConfigError(f"version {self.version} of a calibration; this program reads "
                              f"{VERSION}: run `luseel calibrate` again")
        if self.polarity not in (1, -1):
            raise ConfigError(f"polarity must be 1 or -1, got {self.polarity}")
        for name, limit in (("delay_us", MAX_DELAY_US), ("gain_db", MAX_GAIN_DB),
                            ("turn_degrees", 180.0)):
            if not abs(getattr(self, name)) <= limit:  # NaN too
                raise ConfigError(f"{name} must be within ±{limit:g}, got {getattr(self, name)}")

    @property
    def changes_audio(self) -> bool:
        """Whether :meth:`apply` does anything."""
        return self.swap or self.polarity != 1 or self.delay_us != 0 or self.gain_db != 0

    def apply(self, audio, sample_rate: float):
        """Audio as a symmetric pair of ears would have heard it.

        Each ear takes half of the gain and of the delay, so that a sound stays where it is in
        time: no state is carried, windows of a stream can be treated one by one. Within
        1 ms + half of ``delay_us`` of either end, the audio beyond counts as silence.

        Args:
            audio: (..., 2, N), NumPy or torch; channels as recorded.
            sample_rate: its rate, Hz.
        Returns:
            the same kind, shape and type, ears [left, right].
        """
        if not self.changes_audio:
            return audio
        tensor = torch.as_tensor(audio)
        if self.swap:
            tensor = tensor.flip(-2)
        kernel = _kernels(self.delay_us, self.gain_db, self.polarity, float(sample_rate))
        kernel = kernel.to(tensor)
        if kernel.shape[-1] == 1:
            tensor = tensor * kernel[:, 0]
        else:
            flat = tensor.reshape(-1, 2, tensor.shape[-1])
            tensor = torch.nn.functional.conv1d(
                flat, kernel, padding=kernel.shape[-1] // 2, groups=2).reshape(tensor.shape)
        return tensor if isinstance(audio, Tensor) else tensor.numpy()

    def turn_azimuth(self, azimuth):
        """Directions the ears heard, (...) in degrees, from the robot's front instead."""
        return wrap_degrees(azimuth + self.turn_degrees) if self.turn_degrees else azimuth

    def turn_likelihood(self, likelihood: np.ndarray) -> np.ndarray:
        """Likelihoods (..., 360) the ears heard, turned to the robot's front (linear between
        bins)."""
        if not self.turn_degrees:
            return likelihood
        low = math.floor(self.turn_degrees)
        part = self.turn_degrees - low
        turned = (1 - part) * np.roll(likelihood, low, -1) + part * np.roll(likelihood, low + 1, -1)
        return turned.astype(likelihood.dtype)

    def save(self, path: str | Path) -> None:
        """Write the YAML file.

        Raises:
            ConfigError: it can't be written.
        """
        def number(value: float | None, digits: int) -> str:
            return "null" if value is None or math.isnan(value) else f"{value:.{digits}f}"

        rows = [f"  - {{azimuth: {d.azimuth:g}, delay_us: {d.delay_us:.1f}, level_db: "
                f"{'.nan' if math.isnan(d.level_db) else f'{d.level_db:.2f}'}, spread_us: "
                f"{d.spread_us:.1f}, sounds: {d.sounds}}}" for d in self.measured]
        def line(key: str, value: str, comment: str) -> str:
            return f"{f'{key}: {value}':24}# {comment}"

        text = "\n".join([
            "# A robot's ears, measured by `luseel calibrate`. Put right in this order:",
            f"version: {self.version}",
            line("swap", str(self.swap).lower(), "left and right are exchanged"),
            line("polarity", str(self.polarity), "-1: the right ear is inverted"),
            line("delay_us", number(self.delay_us, 1), "the right ear hears later by this"),
            line("gain_db", number(self.gain_db, 2), "the right ear is louder by this"),
            line("turn_degrees", number(self.turn_degrees, 1),
                 "the head looks left of the robot's front by this"),
            "# For information only:",
            line("head_delay_us", number(self.head_delay_us, 0), "largest delay between the ears"),
            line("residual_us", number(self.residual_us, 1), "what no symmetric head explains"),
            "# Before any correction: delay and level of channel 2 against channel 1",
            "measured:" + ("" if rows else " []"), *rows]) + "\n"
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"can't write {path}: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read a YAML file of :meth:`save`, or one written by hand (all keys are optional).

        Raises:
            ConfigError: no such file, an unknown key or an impossible value, named.
        """
        try:
            return build_config(cls, read_yaml(path))
        except OSError as error:
            raise ConfigError(f"can't read the calibration {path}: {error}") from None
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if str(path) in text else f"{path}: {text}") from None


@functools.lru_cache(maxsize=16)
def _kernels(delay_us: float, gain_db: float, polarity: int, rate: float) -> Tensor:
    """Filters of both ears (2, 1, taps): half of delay and gain each, taken away."""
    side = np.array([1.0, -1.0])  # left is delayed, right is hastened
    gain = 10 ** (side * gain_db / 40) * np.array([1, polarity])
    if not delay_us:
        return torch.from_numpy(gain[:, None, None])
    shift = side * delay_us * 0.5e-6 * rate
    half = 32 + math.ceil(abs(shift[0]))
    position = np.arange(-half, half + 1) - shift[:, None]
    window = np.i0(8.0 * np.sqrt(np.clip(1 - (position / 32.5) ** 2, 0, None))) / np.i0(8.0)
    kernel = np.sinc(position) * np.where(np.abs(position) < 32.5, window, 0)
    kernel *= (gain / kernel.sum(-1))[:, None]
    # reversed, for torch's conv1d is a correlation
    return torch.from_numpy(kernel[:, None, ::-1].copy())
