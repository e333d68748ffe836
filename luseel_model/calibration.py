"""A robot's two ears put right: which is which, their delay, level and polarity, a turned head.

The network was trained on heads that are mirror-symmetric: a sound in front or behind reaches both
ears at the same time and equally loud, and a sound from the right is that from the left with the
ears exchanged. A robot's microphones are seldom so. A few claps at known directions tell
(:func:`measure`, or ``luseel calibrate`` from a shell); the result is a :class:`Calibration`, a
small YAML file, which :func:`luseel_model.load_model` applies to all audio.

Signs: a delay is how much later the right ear hears, a level how much louder the right ear is.
Angles are degrees counter-clockwise from the front, 90 is left.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from .angles import compass, wrap_degrees
from .config import AZIMUTH_BINS, build_config, read_yaml
from .errors import AudioError, ConfigError, LuseelError

VERSION = 1
MAX_DELAY_US = 2000.0  # farther apart than 0.7 m: not a head
MAX_GAIN_DB = 40.0

# -- estimation: what counts as what (values chosen on measured heads, see docs/calibration.md)

_BAND = (300.0, 3500.0)   # [Hz] of the delay: above, the correlation has several peaks
_LEVEL_BAND = (800.0, 6300.0)
_UPSAMPLING = 16
_BEFORE, _DIRECT, _FADE = 0.001, 0.0045, 0.0025  # [s] of a clap: what comes before the walls
_DEAD_TIME = 0.15         # [s] between two events at least
_SPEED_OF_SOUND = 343.0   # [m/s]
#: Standard deviations of what is known before: the delay (µs) over azimuth is mostly that of a
#: ball, with some 20 µs of sin 2θ and sin 3θ; levels (dB) vary more.
_SHAPE_DELAY, _SHAPE_LEVEL = 25.0, 3.0
_HEAD_DELAY = (700.0, 400.0)
_TURN, _TURN_UNKNOWN = 15.0, 2.0  # degrees: where it can be measured, and where it can't
#: What no model of a head explains in one direction, and what more at the sides.
_DELAY_NOISE, _DELAY_NOISE_SIDE = 5.0, 10.0
_LEVEL_NOISE, _LEVEL_NOISE_SIDE = 0.6, 1.5
_AIM = 2.0               # degrees: who claps stands there by this
_FRONT_SLOPE = 9.5       # [µs] of delay for a degree, in front and behind


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


# -- recordings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sound:
    """One clap, or other broadband sound, and what it says.

    Attributes:
        azimuth: degrees, where it was.
        time: seconds from the start of its recording.
        correlation: (lags,) GCC-PHAT of the channels, on a 16 times finer grid.
        lags_us: (lags,) how much later channel 2 hears.
        level_db: level of channel 2 over channel 1, dB; NaN where it can't be told.
        snr_db: (2,) level over the noise before it, of each channel.
        clipped: its loudest samples are cut off.
    """

    azimuth: float
    time: float
    correlation: np.ndarray
    lags_us: np.ndarray
    level_db: float
    snr_db: np.ndarray
    clipped: bool

    def delay_us(self, polarity: int) -> float:
        """Lag of channel 2, from the highest peak, refined by a parabola."""
        correlation = polarity * self.correlation
        peak = int(np.clip(correlation.argmax(), 1, len(correlation) - 2))
        before, centre, after = correlation[peak - 1: peak + 2]
        bend = before - 2 * centre + after
        shift = float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
        return float(self.lags_us[peak] + shift * (self.lags_us[1] - self.lags_us[0]))


def find_sounds(audio: np.ndarray, rate: float) -> list[float]:
    """Where sounds set in: times in seconds.

    A sound sets in where the level rises by 10 dB within 30 ms, 10 dB above the noise and at most
    26 dB below the loudest; 0.15 s later at the earliest the next one may follow.

    Args:
        audio: (2, N).
    """
    hop = max(1, round(0.002 * rate))
    band = np.square(_bandpass(audio, rate)).sum(0)
    frames = len(band) // hop
    if frames < 20:
        return []
    level = 10 * np.log10(band[:frames * hop].reshape(frames, hop).mean(1) + 1e-14)
    floor = np.percentile(level, 20)
    threshold = max(floor + 10.0, level.max() - 26.0)
    found: list[int] = []
    last = -math.inf
    for frame in np.flatnonzero(level >= threshold):
        earlier = level[max(0, frame - 15): max(0, frame - 1)]
        # a recording that begins in the middle of a sound has no onset there
        risen = len(earlier) > 0 and level[frame: frame + 5].max() > np.median(earlier) + 10.0
        if risen and (frame - last) * hop >= _DEAD_TIME * rate:
            found.append(int(frame))
            last = frame
    return [_onset(band, frame * hop, rate) / rate for frame in found]


def _onset(power: np.ndarray, near: int, rate: float) -> int:
    """First sample of the sound around ``near``: a tenth of the peak's power."""
    begin = max(0, near - round(0.006 * rate))
    part = power[begin: near + round(0.012 * rate)]
    return begin + int(np.argmax(part >= 0.1 * part.max()))


def _bandpass(audio: np.ndarray, rate: float) -> np.ndarray:
    from scipy.signal import butter, sosfiltfilt

    edges = [300.0, min(8000.0, 0.45 * rate)]
    return sosfiltfilt(butter(2, edges, "bandpass", fs=rate, output="sos"), audio, axis=-1)


def _check_channels(audio: np.ndarray, name: str) -> None:
    """A :class:`CalibrationError` where the channels aren't two working microphones."""
    level = np.sqrt(np.square(audio - audio.mean(1, keepdims=True)).mean(1))
    if level.max() == 0:
        raise CalibrationError(f"{name} is silent: check the microphones and their gain")
    for channel in (0, 1):
        if level[channel] < 1e-4 * level.max():
            raise CalibrationError(
                f"channel {channel + 1} of {name} is dead ({'left' if channel == 0 else 'right'} "
                "as recorded): check its microphone and cable")
    if np.array_equal(audio[0], audio[1]) or \
            np.abs(np.corrcoef(audio)[0, 1]) > 0.99999:
        raise CalibrationError(f"both channels of {name} are the same signal (mono): record the "
                               "two microphones on a channel each")


def analyse(audio: np.ndarray, rate: float, azimuths: Sequence[float],
            name: str = "the recording") -> list[Sound]:
    """Find the sounds of a recording and measure each.

    Args:
        audio: (2, N), channels as recorded.
        rate: Hz.
        azimuths: where the sounds were, in their order, degrees. n directions for k·n sounds mean
            k sounds in a row at each. One direction holds for all, and a recording of one that
            has no onset (a steady noise) counts as a whole.
        name: for messages.
    Raises:
        CalibrationError: not stereo, a dead channel, twice the same one, or another number of
            sounds.
    """
    from .inference import validate_audio  # which applies calibrations itself

    try:
        audio = validate_audio(audio, rate).astype(np.float64)
    except AudioError as error:
        raise CalibrationError(f"{name}: {error}") from None
    if rate < 8000:
        raise CalibrationError(f"{name} has a rate of {rate:g} Hz: 8000 are needed at least")
    if not all(math.isfinite(a) for a in azimuths):
        raise CalibrationError(f"directions must be numbers of degrees, got {list(azimuths)}")
    _check_channels(audio, name)
    times = find_sounds(audio, rate)
    if not times and len(azimuths) == 1:
        times = [0.0]
    if not times or len(times) % len(azimuths):
        at = f" at {', '.join(f'{t:.2f}' for t in times)} s" if times else ""
        raise CalibrationError(
            f"{name} has {len(times)} sounds{at}, but {len(azimuths)} directions were given: make "
            "one clap at each (or equally many in a row at each), half a second apart at least, "
            "louder than all else, or give one file for each direction")
    each = len(times) // len(azimuths)
    ends = [*times[1:], audio.shape[1] / rate]
    return [_measure_sound(audio, rate, time, end, azimuths[i // each])
            for i, (time, end) in enumerate(zip(times, ends))]


def _measure_sound(audio: np.ndarray, rate: float, time: float, end: float,
                   azimuth: float) -> Sound:
    begin = round(time * rate)
    frames, size = _frames(audio, rate, begin, round(end * rate))
    length = 1 << math.ceil(math.log2(2 * size))
    spectra = np.fft.rfft(frames, length)                       # (frames, 2, bins)
    power = np.square(np.abs(spectra)).mean(0)
    noise = _noise_power(audio, rate, begin, size, length, frames)
    frequency = np.fft.rfftfreq(length, 1 / rate)
    cross = (np.conj(spectra[:, 0]) * spectra[:, 1]).mean(0)
    # PHAT where both channels are above the noise (weights after Knapp and Carter 1976)
    clean = np.clip(1 - noise / np.maximum(power, 1e-300), 0, 1).prod(0)
    low, high = _BAND
    taper = np.clip((frequency - low) / 200.0 + 1, 0, 1) * np.where(
        frequency < high, np.cos(np.pi * frequency / (2 * high)), 0)
    cross = cross / np.maximum(np.abs(cross), 1e-300) * clean * taper
    fine = length * _UPSAMPLING
    correlation = np.fft.irfft(cross, fine)
    correlation = correlation * fine / max(2 * np.abs(cross).sum(), 1e-300)
    reach = math.ceil(MAX_DELAY_US * 1e-6 * rate * _UPSAMPLING)
    lags = np.arange(-reach, reach + 1)
    inside = (frequency >= low) & (frequency <= min(8000.0, 0.45 * rate))
    snr = 10 * np.log10(power[:, inside].sum(1) / np.maximum(noise[:, inside].sum(1), 1e-300))
    return Sound(azimuth=float(azimuth), time=time, correlation=correlation[lags % fine],
                 lags_us=lags / (rate * _UPSAMPLING) * 1e6,
                 level_db=_level_difference(power, noise, frequency, rate), snr_db=snr,
                 clipped=_is_clipped(audio[:, begin: begin + round(0.02 * rate)]))


def _frames(audio: np.ndarray, rate: float, begin: int, end: int) -> tuple[np.ndarray, int]:
    """Frames (n, 2, size) of the sound at ``begin``: the direct sound of a clap alone, or frames
    of 32 ms throughout a lasting sound."""
    def level(start: float, stop: float) -> float:
        part = audio[:, begin + round(start * rate): min(end, begin + round(stop * rate))]
        return float(np.square(part).mean()) if part.size else 0.0

    if level(0.05, 0.15) > 0.25 * level(0.0, 0.02):
        size = round(0.032 * rate)
        window = np.hanning(size)
        stop = min(end - round(0.02 * rate), begin + round(3.0 * rate))
        starts = range(begin + round(0.005 * rate), stop - size, size // 2)
        if len(starts) >= 3:
            return np.stack([audio[:, s: s + size] * window for s in starts]), size
    before, direct, fade = (round(t * rate) for t in (_BEFORE, _DIRECT, _FADE))
    size = before + direct + fade
    ramp = 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, fade))
    rise = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, max(before // 2, 2)))
    window = np.concatenate([rise, np.ones(size - fade - len(rise)), ramp])
    part = audio[:, max(0, begin - before): begin - before + size]
    part = np.pad(part, ((0, 0), (max(0, before - begin), 0)))
    part = np.pad(part, ((0, 0), (0, size - part.shape[1])))
    return (part * window)[None], size


def _noise_power(audio: np.ndarray, rate: float, begin: int, size: int, length: int,
                 frames: np.ndarray) -> np.ndarray:
    """Power (2, bins) of what was there just before the sound, under an equally strong window."""
    window = np.hanning(size)
    stop = begin - round(0.004 * rate)
    starts = [s for s in range(stop - size, max(-1, stop - round(0.3 * rate)), -size // 2)
              if s >= 0]
    if not starts:
        return np.zeros((2, length // 2 + 1))
    parts = np.stack([audio[:, s: s + size] * window for s in starts])
    # a clap's window is flat, of a lasting sound it is this one
    flat = 1.0 if len(frames) > 1 else (size * 0.85) / np.square(window).sum()
    return np.square(np.abs(np.fft.rfft(parts, length))).mean(0) * flat


def _level_difference(power: np.ndarray, noise: np.ndarray, frequency: np.ndarray,
                      rate: float) -> float:
    """Mean over third octaves of the level of channel 2 over channel 1, dB."""
    low, high = _LEVEL_BAND
    centres = [low * 2 ** (i / 3) for i in range(40) if low * 2 ** (i / 3) <= min(high, 0.4 * rate)]
    differences = []
    for centre in centres:
        inside = (frequency >= centre * 2 ** (-1 / 6)) & (frequency < centre * 2 ** (1 / 6))
        both, floor = power[:, inside].sum(1), noise[:, inside].sum(1)
        if inside.any() and (both > 4 * floor).all():
            both = both - floor
            differences.append(10 * math.log10(both[1] / both[0]))
    return float(np.mean(differences)) if len(differences) >= 4 else math.nan


def _is_clipped(part: np.ndarray) -> bool:
    """Three samples at the loudest value, near full scale."""
    return any(channel.max() >= 0.95 and (channel >= 0.9995 * channel.max()).sum() >= 3
               for channel in np.abs(part) if channel.size)


# -- the ears --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A calibration and how well it is known.

    Attributes:
        calibration: what to apply.
        delay_std_us, gain_std_db, turn_std_degrees: standard deviations; the turn's is None where
            the recording can't tell it (the turn then is 0), and 0 where it was given.
        expected_us: (len(measured),) delays of the fitted symmetric head with the bias, in the
            sense of ``calibration.measured``.
        shape: parameters of the fitted delay (see :func:`_delay_model`).
        notes: remarks for a person.
    """

    calibration: Calibration
    delay_std_us: float
    gain_std_db: float
    turn_std_degrees: float | None
    expected_us: np.ndarray
    shape: np.ndarray
    notes: tuple[str, ...] = ()

    def delay_at(self, azimuth: np.ndarray) -> np.ndarray:
        """Fitted lag of channel 2 behind channel 1 (µs) for directions (...) in degrees."""
        sign = -1 if self.calibration.swap else 1
        return sign * _delay_model(self.shape, np.asarray(azimuth, np.float64))

    def verdict(self) -> list[str]:
        """The result in plain words, a line each."""
        found = self.calibration
        lines = [
            "the ears are swapped: left and right get exchanged" if found.swap else
            "left and right are where they should be",
        ]
        if found.polarity < 0:
            lines.append("one microphone is inverted against the other: corrected")
        side = "right" if found.delay_us > 0 else "left"
        lines.append(
            f"the {side} ear hears {abs(found.delay_us):.0f} µs late (±{self.delay_std_us:.0f}): "
            "corrected" if abs(found.delay_us) >= 3 else
            f"both ears hear at the same time (within {self.delay_std_us + 3:.0f} µs)")
        side = "right" if found.gain_db > 0 else "left"
        lines.append(
            f"the {side} microphone is {abs(found.gain_db):.1f} dB louder "
            f"(±{self.gain_std_db:.1f}): corrected" if abs(found.gain_db) >= 0.3 else
            f"both microphones are equally loud (within {self.gain_std_db + 0.3:.1f} dB)")
        side = "left" if found.turn_degrees > 0 else "right"
        if self.turn_std_degrees is None:
            lines.append("whether the head looks straight ahead can't be told from these "
                         "directions; it is taken to, and each degree it doesn't is some 10 µs "
                         "of delay")
        elif abs(found.turn_degrees) >= 1:
            lines.append(f"the head looks {abs(found.turn_degrees):.1f}° to the {side} "
                         f"(±{self.turn_std_degrees:.1f}): directions are turned by as much")
        elif self.turn_std_degrees:
            lines.append(f"the head looks straight ahead (within {1 + self.turn_std_degrees:.0f}°)")
        width = _SPEED_OF_SOUND * found.head_delay_us * 1e-6 / (math.pi / 2 + 1) * 2
        lines.append(f"the head delays by up to {found.head_delay_us:.0f} µs, as a ball "
                     f"{100 * width:.0f} cm wide does")
        lines.append(f"a symmetric head explains the delays within {found.residual_us:.0f} µs")
        return [*lines, *self.notes]


def _delay_model(shape: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """Lag of the right ear, µs: bias + a ball's delay (Woodworth) and two more odd terms, turned.

    Args:
        shape: [bias, delay at 90°, turn in degrees, sin 2θ, sin 3θ].
    """
    bias, side, turn, second, third = shape
    theta = np.deg2rad(azimuth - turn)
    lateral = np.arcsin(np.clip(np.sin(theta), -1, 1))
    ball = (lateral + np.sin(lateral)) / (math.pi / 2 + 1)
    return bias + side * ball + second * np.sin(2 * theta) + third * np.sin(3 * theta)


def _fit_delay(azimuth: np.ndarray, delay: np.ndarray, noise: np.ndarray, turn: float
               ) -> tuple[np.ndarray, np.ndarray, float]:
    """Most probable shape, its standard deviations, and what it costs.

    Args:
        turn: standard deviation of the turn, as far as it is known before, degrees.
    """
    from scipy.optimize import least_squares

    prior = np.array([0.0, _HEAD_DELAY[0], 0.0, 0.0, 0.0])
    deviation = np.array([2 * MAX_DELAY_US, _HEAD_DELAY[1], turn, _SHAPE_DELAY, _SHAPE_DELAY])

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.concatenate([(delay - _delay_model(x, azimuth)) / noise,
                               (x - prior) / deviation])

    most = np.array([np.inf, np.inf, np.inf, 3 * _SHAPE_DELAY, 3 * _SHAPE_DELAY])
    found = least_squares(residuals, prior, x_scale=deviation, bounds=(-most, most))
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    return found.x, np.sqrt(np.diag(covariance)), float(found.cost)


def _fit_level(azimuth: np.ndarray, level: np.ndarray, turn: float
               ) -> tuple[np.ndarray, np.ndarray]:
    """[bias, sin θ, sin 2θ, sin 3θ] of the right ear's level, dB, and standard deviations."""
    theta = np.deg2rad(azimuth - turn)
    design = np.stack([np.ones_like(theta), *(np.sin(k * theta) for k in (1, 2, 3))], 1)
    noise = _LEVEL_NOISE + _LEVEL_NOISE_SIDE * np.abs(np.sin(theta))
    prior = np.diag(1 / np.square([30.0, 20.0, _SHAPE_LEVEL, _SHAPE_LEVEL]))
    weighted = design / np.square(noise)[:, None]
    covariance = np.linalg.inv(design.T @ weighted + prior)
    return covariance @ (weighted.T @ level), np.sqrt(np.diag(covariance))


def _find_polarity(sounds: Sequence[Sound]) -> int:
    """-1 where the correlations' deepest troughs outdo their highest peaks.

    Raises:
        CalibrationError: neither does.
    """
    reach = [np.abs(s.lags_us) <= MAX_DELAY_US for s in sounds]
    peak = np.array([s.correlation[r].max() for s, r in zip(sounds, reach)])
    trough = np.array([-s.correlation[r].min() for s, r in zip(sounds, reach)])
    if max(peak.max(), trough.max()) < 0.2:
        raise CalibrationError("the two channels have nothing in common: the sounds don't stand "
                               "out of the noise in both, or the microphones are far apart; clap "
                               "louder and nearer, at 1 to 2 m")
    return 1 if peak.sum() >= trough.sum() else -1


def measure(sounds: Sequence[Sound], straight: bool = False) -> Measurement:
    """Find out what is wrong with the ears that heard ``sounds``.

    A symmetric head's delay and level difference are odd over azimuth; what isn't is the bias. A
    head with some freedom (a ball of unknown size plus two small odd terms, turned by some angle)
    is fitted together with the bias, so that the directions need not be symmetric themselves.

    Args:
        sounds: from :func:`analyse`, of one or more recordings.
        straight: the head is known to look to the robot's front.
    Raises:
        CalibrationError: the directions or the recording's quality can't tell.
    """
    notes: list[str] = []
    best = np.max([s.snr_db for s in sounds], axis=0)
    for channel in (0, 1):
        if best[channel] < 3:
            raise CalibrationError(f"channel {channel + 1} hears none of the sounds: its "
                                   "microphone is dead, covered or turned down")
    if all(s.clipped for s in sounds):
        raise CalibrationError("all sounds are clipped: record with less gain")
    polarity = _find_polarity(sounds)
    directions = _directions(sounds, polarity)
    azimuth = np.array([d.azimuth for d in directions])
    delay = np.array([d.delay_us for d in directions])
    noise = _deviation(directions)

    side = np.sin(np.deg2rad(azimuth))
    if np.ptp(side) < 0.7:
        raise CalibrationError(
            "these directions can't tell left from right: "
            f"{_listed(azimuth)} are all on one side or all straight ahead. Clap at the left (90) "
            "and the right (270) as well, and in front (0) and behind (180) at best")
    swap, shape, deviation, turned = _choose(azimuth, delay, noise, straight)
    head = abs(float(_delay_model(shape, shape[2] + np.arange(AZIMUTH_BINS)).max() - shape[0]))
    fitted = _delay_model(shape, azimuth)
    sign = -1 if swap else 1
    residual = float(np.sqrt(np.mean(np.square(sign * delay - fitted))))
    if deviation[0] > 30.0:
        raise CalibrationError(
            f"{_listed(azimuth)} can't tell a delay of one ear from the head's own: clap in front "
            "(0) and behind (180), or at equal angles left and right (90 and 270) as well")
    gain, gain_std = _gain(directions, sounds, swap, shape[2] if turned else 0.0, notes)
    if not 400 <= head <= 1000:
        notes.append("the head is much "
                     f"{'smaller' if head < 400 else 'larger'} than those of training (640 to "
                     "800 µs): directions will be poor; fine-tune on its own responses")
    spreads = [d.spread_us for d in directions if d.sounds > 1]
    if spreads and max(spreads) > 40:
        notes.append(f"sounds of one direction differ by {max(spreads):.0f} µs: clap from "
                     "one place, away from walls")
    turn_std = 0.0 if straight else float(deviation[2]) if turned else None
    calibration = Calibration(
        swap=swap, polarity=polarity, delay_us=round(float(shape[0]), 1),
        gain_db=round(gain, 2), turn_degrees=round(float(shape[2]), 1) if turned else 0.0,
        head_delay_us=round(head, 1), residual_us=round(residual, 1),
        measured=tuple(directions))
    return Measurement(calibration, float(deviation[0]), gain_std, turn_std, sign * fitted,
                       shape, tuple(notes))


def _choose(azimuth: np.ndarray, delay: np.ndarray, noise: np.ndarray, straight: bool
            ) -> tuple[bool, np.ndarray, np.ndarray, bool]:
    """Swapped?, the fitted shape (of exchanged ears), its deviations, is the turn known?"""
    fits = {}
    for swap in (False, True):
        sign = -1 if swap else 1
        shape, deviation, cost = _fit_delay(azimuth, sign * delay, noise,
                                            1e-6 if straight else _TURN)
        turned = not straight and deviation[2] < 4.0
        if not straight and not turned:
            shape, deviation, cost = _fit_delay(azimuth, sign * delay, noise, _TURN_UNKNOWN)
        fits[swap] = (cost, shape, deviation, turned)
    swap = fits[True][0] < fits[False][0]
    _, shape, deviation, turned = fits[swap]
    off = np.abs((-1 if swap else 1) * delay - _delay_model(shape, azimuth))
    residual = float(np.sqrt(np.mean(np.square(off))))
    if residual > 80.0 or (turned and abs(shape[2]) > 30):
        raise CalibrationError(
            f"the delays don't fit the directions (off by {residual:.0f} µs, most at "
            f"{azimuth[off.argmax()]:g}°): were the claps made in this order, "
            "counter-clockwise seen from above (90 left, 270 right), away from walls?")
    if not 100.0 < abs(shape[1]) < 1500.0:
        raise CalibrationError(
            f"a sound from the side has a delay of {abs(shape[1]):.0f} µs, at a head's ears 400 to "
            "1000: are these the two ears' microphones, and were the claps at the ears' height?")
    # a delay of 0.5 ms explains a single side as well as a swap does
    if shape[1] <= 0 or abs(fits[True][0] - fits[False][0]) < 4.0:
        raise CalibrationError(
            f"{_listed(azimuth)} can't tell whether the ears are swapped: clap at the left (90) "
            "and the right (270) as well, in front (0) and behind (180)")
    return swap, shape, deviation, turned


def _deviation(directions: Sequence[Direction]) -> np.ndarray:
    """Standard deviations of the delays, µs, by all that may be wrong with them."""
    azimuth = np.deg2rad([d.azimuth for d in directions])
    parts = [np.full(len(directions), _DELAY_NOISE), _DELAY_NOISE_SIDE * np.sin(azimuth),
             _AIM * _FRONT_SLOPE * np.cos(azimuth),
             np.array([d.spread_us / math.sqrt(d.sounds) for d in directions])]
    return np.sqrt(np.square(parts).sum(0))


def _directions(sounds: Sequence[Sound], polarity: int) -> list[Direction]:
    result = []
    for azimuth in sorted({s.azimuth % 360.0 for s in sounds}):
        here = [s for s in sounds if s.azimuth % 360.0 == azimuth]
        delays = [s.delay_us(polarity) for s in here]
        levels = [s.level_db for s in here if not s.clipped and not math.isnan(s.level_db)]
        result.append(Direction(
            azimuth, round(float(np.median(delays)), 1),
            round(float(np.median(levels)), 2) if levels else math.nan,
            round(float(np.std(delays, ddof=1)), 1) if len(delays) > 1 else 0.0, len(here)))
    return result


def _gain(directions: Sequence[Direction], sounds: Sequence[Sound], swap: bool, turn: float,
          notes: list[str]) -> tuple[float, float]:
    """Level of the right ear over the left one and its standard deviation, dB."""
    clipped = sum(s.clipped for s in sounds)
    if clipped:
        notes.append(f"{clipped} of {len(sounds)} sounds are clipped and don't count for the "
                     "level: record with less gain")
    known = [d for d in directions if not math.isnan(d.level_db)]
    if not known:
        raise CalibrationError(
            "all sounds are clipped or too weak to compare the ears' levels: "
            + ("record with less gain" if clipped else "clap louder or nearer"))
    azimuth = np.array([d.azimuth for d in known])
    level = np.array([d.level_db for d in known]) * (-1 if swap else 1)
    found, deviation = _fit_level(azimuth, level, turn)
    if deviation[0] > 2.0:
        raise CalibrationError(
            "the directions whose level is known "
            f"({_listed(azimuth)}) can't tell a louder microphone from the head's shadow: clap in "
            "front (0) and behind (180)")
    if found[1] > max(3.0, 3 * deviation[1]):
        raise CalibrationError(
            "delays and levels contradict each other: the ear that hears a sound first hears it "
            "softer. Were the claps made in this order, away from walls?")
    return float(found[0]), float(deviation[0])


def _listed(azimuth: np.ndarray) -> str:
    names = [f"{a:g}° ({compass(a)})" for a in azimuth]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plot_measurement(measurement: Measurement, path: str | Path) -> None:
    """Write a picture of delays and levels over azimuth: measured, fitted, and after correction.

    Args:
        path: PNG, SVG or PDF.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = measurement.calibration
    sign = -1 if found.swap else 1
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    azimuth = np.arange(0, 361)
    top.plot(azimuth, measurement.delay_at(azimuth), color="tab:orange",
             label="a symmetric head with this bias")
    perfect = measurement.shape.copy()
    perfect[[0, 2]] = 0
    top.plot(azimuth, _delay_model(perfect, azimuth.astype(float)), color="tab:green", ls="--",
             label="after the correction")
    at = [d.azimuth for d in found.measured]
    top.errorbar(at, [d.delay_us for d in found.measured],
                 [d.spread_us for d in found.measured], fmt="o", color="tab:blue", capsize=3,
                 label="measured")
    top.set(ylabel="lag of channel 2 in µs", title=f"swap {'yes' if found.swap else 'no'}, delay "
            f"{found.delay_us:.0f} µs, gain {found.gain_db:.1f} dB, turn "
            f"{found.turn_degrees:.1f}°")
    levels = np.array([d.level_db for d in found.measured])
    bottom.plot(at, levels, "o", color="tab:blue", label="measured")
    bottom.plot(np.mod(np.array(at) - found.turn_degrees, 360), sign * levels - found.gain_db, "x",
                color="tab:green", label="after the correction")
    bottom.set(ylabel="level of channel 2 in dB", xlabel="azimuth in degrees (90 left)",
               xlim=(-5, 365), xticks=[0, 90, 180, 270, 360])
    for axes in (top, bottom):
        axes.axhline(0, color="0.8", lw=1, zorder=0)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
