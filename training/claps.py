"""Claps around a robot's head, simulated: what `luseel calibrate` is tried on.

A head with known responses is given known faults (channels swapped, one ear late, louder or
inverted, the head turned) and hears claps from known directions, so that what a calibration finds
can be compared with the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

from luseel_model.calibration import Measurement, Sound, analyse, measure
from luseel_model.heads import Head
from training import SAMPLE_RATE
from training.heads import delayed

#: Seconds from clap to clap.
GAP = 0.7
CLAP_SECONDS = 0.05
#: Where the floor's reflection comes from: ears and hands 1 m above it, 1.7 m apart.
FLOOR_DEGREES = -50.0
#: A mild room (see `record_claps`), noise against the loudest peak, and claps all around, degrees.
ROOM, NOISE_DB = 0.5, -40.0
AROUND = tuple(range(0, 360, 30))


@dataclass(frozen=True)
class Faults:
    """What is wrong with a pair of ears; named as in luseel_model.calibration.Calibration.

    Attributes:
        swap: the channels are right, left; the others are of the right ear against the left one.
        polarity: -1 inverts the right ear.
        delay_us: how much later it hears, microseconds.
        gain_db: how much louder it is, dB.
    """

    swap: bool = False
    polarity: int = 1
    delay_us: float = 0.0
    gain_db: float = 0.0

    def apply(self, audio: np.ndarray, rate: float) -> np.ndarray:
        """(..., 2, N) as ears with these faults give it, float64."""
        late = delayed(audio[..., 1, :], self.delay_us * 1e-6 * rate)
        right = self.polarity * late * 10 ** (self.gain_db / 20)
        ears = [audio[..., 0, :], right]
        return np.stack(ears[::-1] if self.swap else ears, -2)


def _as_level(azimuth: float, elevation: float) -> float:
    """The level direction whose delay between the ears is that of a higher or lower one, on the
    same side and as far in front or behind; degrees."""
    lateral = np.rad2deg(np.arcsin(np.sin(np.deg2rad(azimuth)) * np.cos(np.deg2rad(elevation))))
    return lateral if np.cos(np.deg2rad(azimuth)) >= 0 else 180 - lateral


def clap(random: np.random.Generator, rate: float, seconds: float = CLAP_SECONDS) -> np.ndarray:
    """Noise around 2 kHz that dies away within some 3 ms; from 0.1 s on, a steady one."""
    time = np.arange(int(seconds * rate)) / rate
    decay = np.exp(-time / 0.003) if seconds < 0.1 else np.ones_like(time)
    band = butter(1, [900, 4000], "bandpass", fs=rate, output="sos")
    return sosfilt(band, random.standard_normal(time.size) * decay)


def record_claps(hrir: np.ndarray, directions: Sequence[float], rate: float = 16000,
                 faults: Faults = Faults(), *, turn: float = 0.0, noise_db: float = -45.0,
                 room: float = 0.0, seconds: float = CLAP_SECONDS, seed: int = 3) -> np.ndarray:
    """A recording of claps, one at each direction, by a head with faults.

    Args:
        hrir: (360, 2, taps) responses of the head at ``rate``, one a degree.
        directions: degrees counter-clockwise from the robot's front.
        turn: degrees by which the head looks to the left of the robot's front.
        noise_db: of white noise at each ear, against the loudest peak.
        room: loudness of a mild room: a floor's reflection at this gain (3 ms late), six of walls (6 to 30 ms
            late) and a tail that falls by 60 dB in 0.4 s. 0: none.
        seconds: how long each sound lasts (`clap`).
        seed: of the claps, their levels, the room and the noise.

    Returns:
        (2, N) float64, the loudest peak 0.4 before the faults.
    """
    random = np.random.default_rng(seed)
    gap = int((GAP + max(0, seconds - CLAP_SECONDS)) * rate)
    out = np.zeros((2, gap * (len(directions) + 1)))
    for i, azimuth in enumerate(directions):
        dry = clap(random, rate, seconds) * 10 ** (random.uniform(-3, 3) / 20)
        images = [(azimuth - turn, 0.0, 1.0)]
        if room:
            images += [(_as_level(azimuth - turn, FLOOR_DEGREES), 0.003, room)]
            images += [(random.uniform(0, 360), random.uniform(0.006, 0.03),
                        room * random.uniform(0.3, 0.7)) for _ in range(6)]
            for late in random.uniform(0.02, 0.3, 40):
                images.append((random.uniform(0, 360), late, 0.5 * room * 10 ** (-3 * late / 0.4)))
        for angle, late, gain in images:
            low, part = int(np.floor(angle)), angle % 1
            ears = (1 - part) * hrir[low % 360] + part * hrir[(low + 1) % 360]
            begin = int((i + 0.6) * gap) + int(late * rate)
            wet = gain * fftconvolve(dry[None], ears, axes=-1)
            out[:, begin: begin + wet.shape[1]] += wet[:, :out.shape[1] - begin]
    out = faults.apply(out * (0.4 / np.abs(out).max()), rate)
    return out + random.standard_normal(out.shape) * 0.4 * 10 ** (noise_db / 20)


def heard_claps(head: Head, directions: Sequence[float], faults: Faults = Faults(), *,
                room: float = ROOM, noise_db: float = NOISE_DB, **options
                ) -> tuple[np.ndarray, list[Sound], Measurement]:
    """What `luseel calibrate` makes of one simulated recording of claps.

    Args: see :func:`record_claps`; here in a mild room with some noise.

    Returns:
        the recording, its sounds, and what they tell.
    """
    audio = record_claps(head.hrir.numpy().astype(np.float64), directions, SAMPLE_RATE, faults,
                         room=room, noise_db=noise_db, **options)
    sounds = analyse(audio, SAMPLE_RATE, directions)
    return audio, sounds, measure(sounds)
