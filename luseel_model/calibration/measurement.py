"""From sounds at known directions to a calibration, by a fitted symmetric head."""

from __future__ import annotations

import dataclasses
import math
from typing import Sequence

import numpy as np

from ..angles import compass
from ..config import AZIMUTH_BINS
from .ears import MAX_DELAY_US, Calibration, CalibrationError, Direction
from .sounds import Sound

# values chosen on measured heads, see docs/calibration.md
_SPEED_OF_SOUND = 343.0   # [m/s]
#: Standard deviations of what is known before: the delay (µs) over azimuth is mostly that of a
#: ball, with some 20 µs of sin 2θ and sin 3θ; levels (dB) vary more.
_SHAPE_DELAY, _SHAPE_LEVEL = 25.0, 3.0
_HEAD_DELAY = (700.0, 400.0)
_TURN, _TURN_UNKNOWN = 15.0, 2.0  # degrees: where it can be measured, and where it can't
#: What no model of a head explains in one direction, and what more at the sides.
_DELAY_NOISE, _DELAY_NOISE_SIDE = 5.0, 10.0
_LEVEL_NOISE, _LEVEL_NOISE_SIDE = 0.6, 1.5
_OUTLIER = 3.0           # standard deviations from which on a delay counts less and less
_FAR_OFF = 60.0          # [µs] from which on it is named
_AIM = 2.0               # degrees: who claps stands there by this
_FRONT_SLOPE = 9.5       # [µs] of delay for a degree, in front and behind


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A calibration and how well it is known.

    Attributes:
        calibration: what to apply.
        delay_std_us, gain_std_db, turn_std_degrees: standard deviations; the turn's is None where
            the recording can't tell it (the turn then is 0), and 0 where it was given.
        expected_us: (len(measured),) delays of the fitted symmetric head with the bias, in the
            sense of ``calibration.measured``.
        shape: parameters of the fitted delay (see :func:`delay_model`).
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
        return sign * delay_model(self.shape, np.asarray(azimuth, np.float64))

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


def delay_model(shape: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
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
        off = (delay - delay_model(x, azimuth)) / noise
        # Cauchy's: a clap that a reflection was taken for doesn't bend all others
        off = np.sign(off) * _OUTLIER * np.sqrt(np.log1p(np.square(off / _OUTLIER)))
        return np.concatenate([off, (x - prior) / deviation])

    most = np.array([np.inf, np.inf, np.inf, 3 * _SHAPE_DELAY, 3 * _SHAPE_DELAY])
    # the near ear hears first: without a bound, swapped ears explain a small head nearly as well
    least = np.array([-np.inf, 0.0, -np.inf, *-most[3:]])
    found = least_squares(residuals, prior, x_scale=deviation, bounds=(least, most))
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
    head = abs(float(delay_model(shape, shape[2] + np.arange(AZIMUTH_BINS)).max() - shape[0]))
    fitted = delay_model(shape, azimuth)
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
                     "800 µs): directions will be poor without its responses (--head)")
    for direction, error in zip(directions, np.abs(sign * delay - fitted)):
        if error > _FAR_OFF:
            notes.append(f"the sound at {direction.azimuth:g}° is {error:.0f} µs off the others and "
                         "counts little: a reflection, or another direction?")
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
    off = np.abs((-1 if swap else 1) * delay - delay_model(shape, azimuth))
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
