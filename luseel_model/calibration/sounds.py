"""Claps, or other broadband sounds, in a recording: where each is and what it says of the ears."""

from __future__ import annotations

import dataclasses
import math
from typing import Sequence

import numpy as np

from ..errors import AudioError
from .ears import MAX_DELAY_US, CalibrationError

# what counts as what: values chosen on measured heads, see docs/calibration.md
_BAND = (300.0, 3500.0)   # [Hz] of the delay: above, the correlation has several peaks
_LEVEL_BAND = (800.0, 6300.0)
_UPSAMPLING = 16
_BEFORE, _DIRECT, _FADE = 0.001, 0.0045, 0.0025  # [s] of a clap: what comes before the walls
_DEAD_TIME = 0.15         # [s] between two events at least


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
        lasting: it is measured over its whole length, with the room; a clap is before the walls.
    """

    azimuth: float
    time: float
    correlation: np.ndarray
    lags_us: np.ndarray
    level_db: float
    snr_db: np.ndarray
    clipped: bool
    lasting: bool = False

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
    from ..inference import validate_audio  # which applies calibrations itself

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
    level = audio - audio.mean(1, keepdims=True)  # microphones without a capacitor
    return [_measure_sound(level, rate, time, end, azimuths[i // each],
                           _is_clipped(audio[:, round(time * rate):][:, :round(0.02 * rate)]))
            for i, (time, end) in enumerate(zip(times, ends))]


def _measure_sound(audio: np.ndarray, rate: float, time: float, end: float, azimuth: float,
                   clipped: bool) -> Sound:
    begin = round(time * rate)
    frames, size = _frames(audio, rate, begin, round(end * rate))
    length = 1 << math.ceil(math.log2(2 * size))
    spectra = np.fft.rfft(frames, length)                       # (frames, 2, bins)
    power = np.square(np.abs(spectra)).mean(0)
    noise = noise_power(audio, rate, begin, size, length, lasting=len(frames) > 1)
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
                 clipped=clipped,
                 lasting=len(frames) > 1)


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
    part = direct_sound(audio, rate, begin, _DIRECT, _FADE)
    return part[None], part.shape[1]


def direct_sound(audio: np.ndarray, rate: float, begin: int, seconds: float,
                 fade: float) -> np.ndarray:
    """What (2, N) hold from 1 ms before sample ``begin`` until ``seconds`` after it, and ``fade``
    more to fade out: (2, size)."""
    before, direct, fade = (round(t * rate) for t in (_BEFORE, seconds, fade))
    size = before + direct + fade
    ramp = 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, fade))
    rise = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, max(before // 2, 2)))
    window = np.concatenate([rise, np.ones(size - fade - len(rise)), ramp])
    part = audio[:, max(0, begin - before): begin - before + size]
    part = np.pad(part, ((0, 0), (max(0, before - begin), 0)))
    part = np.pad(part, ((0, 0), (0, size - part.shape[1])))
    return part * window


def noise_power(audio: np.ndarray, rate: float, begin: int, size: int, length: int,
                lasting: bool = False) -> np.ndarray:
    """Power (2, bins) of what was there just before the sound at sample ``begin``.

    Args:
        size: of the sound's frames; their spectra have ``length``.
        lasting: its frames are under a Hann window, of a clap under a flat one.
    """
    window = np.hanning(size)
    stop = begin - round(0.004 * rate)
    starts = [s for s in range(stop - size, max(-1, stop - round(0.3 * rate)), -size // 2)
              if s >= 0]
    if not starts:
        return np.zeros((2, length // 2 + 1))
    parts = np.stack([audio[:, s: s + size] * window for s in starts])
    flat = 1.0 if lasting else (size * 0.85) / np.square(window).sum()
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
