"""The direction of one sound over time: a Bayes filter on the circle.

What is believed is a histogram over three things at once: the azimuth (360 bins), how fast it
changes (a few angular speeds), and whether the model takes front for back just now. The last one is
a state of its own, because such a confusion comes from the place of head, source and walls: looking
again from the same pose repeats it, and makes it no surer. Only another pose, or time, draws the
dice anew; after a turn of the head the two hypotheses call for different likelihoods, and the wrong
one dies. (A point-mass filter: Bucy and Senne 1971; the speeds are a jump Markov system, Blom and
Bar-Shalom 1988.)

Azimuths here are degrees counter-clockwise in a frame that doesn't turn with the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .angles import wrap_degrees
from .config import AZIMUTH_BINS

_ORDER = np.arange(AZIMUTH_BINS // 2 + 1)  # of the Fourier coefficients
_RADIANS = np.deg2rad(1.0)
_REACH = 20  # [bins] either side of a peak that belong to its hypothesis
_HYPOTHESES = 4
_LEAST_WEIGHT = 0.03  # of a hypothesis that is told


@dataclass(frozen=True)
class BearingConfig:
    """What the filter takes for granted.

    Attributes:
        speeds: angular speeds of the source, degrees per second; 0 must be one of them.
        speed_rate: per second, how often a source begins to move or moves faster.
        slow_rate: per second, how often it slows down to the next speed or stands still.
        drift: how far a direction strays in a second at each speed, degrees (random walk).
        move_std: how far it strays for each metre that the head moves, degrees; a source at 3 m
            abeam changes its direction by 19.
        jump_rate: per second, how often the sound begins anew at any other place.
        measurement_std: degrees, error of the model beyond what its likelihood says.
        outliers: share of windows whose likelihood says nothing.
        flips: share of windows in which front and back are confused.
        flip_seconds, flip_turn: seconds, and degrees of turning, after which it is open again
            whether they are.
    """

    speeds: tuple[float, ...] = (-40.0, -20.0, 0.0, 20.0, 40.0)
    speed_rate: float = 0.05
    slow_rate: float = 0.4
    drift: tuple[float, ...] = (12.0, 10.0, 2.0, 10.0, 12.0)
    move_std: float = 10.0
    jump_rate: float = 0.01
    measurement_std: float = 4.0
    outliers: float = 0.1
    flips: float = 0.15
    flip_seconds: float = 4.0
    flip_turn: float = 25.0


@dataclass(frozen=True)
class Hypothesis:
    """One direction that the sound may have.

    Attributes:
        azimuth: degrees in [0, 360), counter-clockwise.
        std: its standard deviation, degrees.
        weight: probability, 0 to 1.
    """

    azimuth: float
    std: float
    weight: float


def find_hypotheses(belief: np.ndarray) -> tuple[Hypothesis, ...]:
    """The peaks of a belief, most probable first.

    Args:
        belief: (360,) probabilities that add up to 1, bin i at i degrees.

    Returns:
        1 to 4 hypotheses; each takes what lies within 20 degrees of its peak.
    """
    left, offset, found = belief.copy(), np.arange(-_REACH, _REACH + 1), []
    tops = (belief >= np.roll(belief, 1)) & (belief >= np.roll(belief, -1))
    for _ in range(2 * _HYPOTHESES):
        peak = middle = int(left.argmax())
        for _ in range(2):  # around the peak, then around the mean
            place = (middle + offset) % AZIMUTH_BINS
            part = left[place]
            weight = float(part.sum())
            mean = float(part @ offset) / weight if weight > 0 else 0.0
            middle = round(middle + mean)
        if found and (weight < _LEAST_WEIGHT or len(found) == _HYPOTHESES):
            break
        if found and (not tops[peak] or belief[peak] < 2 * left.mean()):
            left[place] = 0.0  # the slope of a greater one, or as good as nothing
            continue
        spread = math.sqrt(max(float(part @ (offset - mean) ** 2) / weight, 0.0))
        found.append(Hypothesis(float(wrap_degrees(place[_REACH] + mean)), spread, weight))
        left[place] = 0.0
    return tuple(sorted(found, key=lambda hypothesis: -hypothesis.weight))


def _gauss(std: float | np.ndarray) -> np.ndarray:
    """Fourier coefficients of a wrapped normal of that many degrees."""
    return np.exp(-0.5 * np.square(_ORDER * (np.asarray(std)[..., None] * _RADIANS)))


def _turn(degrees: float | np.ndarray) -> np.ndarray:
    """What turns Fourier coefficients counter-clockwise by that many degrees."""
    return np.exp(-1j * _ORDER * (np.asarray(degrees)[..., None] * _RADIANS))


@dataclass(frozen=True)
class Measurement:
    """What a window says, in the frame that doesn't turn.

    Attributes:
        table: (2, 360) likelihood of each azimuth if front and back are not confused, and if.
        exponent: how much of it is new and to be believed, 0 to 1.
    """

    table: np.ndarray
    exponent: float


class BearingFilter:
    """See the module.

    Args:
        config: what is taken for granted.
    """

    def __init__(self, config: BearingConfig | None = None):
        self.config = config = config or BearingConfig()
        self._speeds = np.array(config.speeds)
        self._drift = np.array(config.drift)
        self._flips = np.array([1 - config.flips, config.flips])
        # Per second, between neighbouring speeds: generator of the chain.
        count, order = len(self._speeds), np.argsort(self._speeds)
        self._rates = np.zeros((count, count))
        for a, b in zip(order, order[1:]):
            for start, end in ((a, b), (b, a)):
                faster = abs(self._speeds[end]) > abs(self._speeds[start])
                self._rates[start, end] = config.speed_rate if faster else config.slow_rate
        np.fill_diagonal(self._rates, -self._rates.sum(1))
        self._prior_speed = np.where(self._speeds == 0, 0.8, 0.2 / max(count - 1, 1))
        self._prior_speed /= self._prior_speed.sum()
        self.reset()

    def reset(self) -> None:
        """Believe nothing."""
        self._belief = self._prior()

    def _prior(self) -> np.ndarray:
        shape = (2, len(self._speeds), AZIMUTH_BINS)
        return np.broadcast_to(self._flips[:, None, None] * self._prior_speed[:, None]
                               / AZIMUTH_BINS, shape).copy()

    def rotate(self, degrees: float) -> None:
        """Turn all that is believed: the frame has changed."""
        self._belief = self._back(np.fft.rfft(self._belief) * _turn(degrees))

    def predict(self, seconds: float, moved: float = 0.0, turned: float = 0.0,
                shift: float = 0.0, shift_std: float | None = None) -> None:
        """What becomes of the belief while time passes.

        Args:
            seconds: since the last call.
            moved: metres that the head moved, turned: degrees that it turned meanwhile.
            shift: by how many degrees the direction changes because the head moved, where the
                place of the source is known.
            shift_std: standard deviation of that, degrees; None: the place isn't known.
        """
        config = self.config
        stray = config.move_std * moved if shift_std is None else shift_std
        std = np.sqrt(self._drift ** 2 * seconds + stray ** 2)
        spectrum = np.fft.rfft(self._belief) * (
            _gauss(std) * _turn(self._speeds * seconds + shift))
        steps = 2 ** max(3, math.ceil(math.log2(max(8 * seconds, 1))))  # small ones: stays a chain
        mix = np.linalg.matrix_power(
            np.eye(len(self._rates)) + self._rates * seconds / steps, steps)
        belief = self._back(np.einsum("fvk,vw->fwk", spectrum, mix))
        again = 1 - math.exp(-seconds / config.flip_seconds - abs(turned) / config.flip_turn)
        belief = (1 - again) * belief + again * self._flips[:, None, None] * belief.sum(0)
        jump = 1 - math.exp(-config.jump_rate * seconds)
        self._belief = (1 - jump) * belief + jump * self._prior()

    def measure(self, likelihood: np.ndarray, exponent: float, yaw: float = 0.0,
                turn_std: float = 0.0) -> Measurement | None:
        """Take in what a window says.

        Args:
            likelihood: (360,), non-negative, bin i at i degrees counter-clockwise from where the
                head looks; any scale.
            exponent: 0 to 1, how much of it is new and to be believed.
            yaw: degrees, where the head looked.
            turn_std: degrees, how much that changed within the window.

        Returns:
            what was taken in, or None where the likelihood says nothing (all 0).
        """
        config = self.config
        likelihood = np.asarray(likelihood, np.float64)
        total = likelihood.sum()
        if not total > 0:
            return None
        spectrum = np.fft.rfft(likelihood / total)
        spectrum *= _gauss(math.hypot(config.measurement_std, turn_std))
        # The mirrored one, at 180 degrees minus azimuth, is conjugate and turned by half a circle.
        both = np.stack([spectrum, spectrum.conj() * _turn(180.0)]) * _turn(yaw)
        table = np.maximum(np.fft.irfft(both, AZIMUTH_BINS), 0.0)
        table = (1 - config.outliers) * table + config.outliers / AZIMUTH_BINS
        belief = self._belief * table[:, None] ** exponent
        self._belief = belief / belief.sum()
        return Measurement(table, exponent)

    @staticmethod
    def _back(spectrum: np.ndarray) -> np.ndarray:
        # Turning by parts of a bin may ring a little below 0.
        belief = np.maximum(np.fft.irfft(spectrum, AZIMUTH_BINS), 0.0)
        return belief / belief.sum()

    @property
    def flipped(self) -> float:
        """Probability that front and back are confused just now."""
        return float(self._belief[1].sum())

    @property
    def speed(self) -> float:
        """Expected angular speed, degrees per second, counter-clockwise."""
        return float(self._belief.sum((0, 2)) @ self._speeds)

    def belief(self, yaw: float = 0.0, ahead: float = 0.0) -> np.ndarray:
        """Probability of each direction, seen from a head that looks to `yaw`.

        Args:
            yaw: degrees.
            ahead: seconds by which to look ahead: a window tells of its middle, not of its end.

        Returns:
            (360,) that add up to 1, bin i at i degrees counter-clockwise from where it looks.
        """
        spectrum = np.fft.rfft(self._belief.sum(0)) * _turn(self._speeds * ahead - yaw)
        return self._back(spectrum.sum(0))


