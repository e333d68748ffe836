"""Where a sound is, from its directions at several places: a Bayes filter on a grid.

A grid rather than a fit to a list of bearings: a window's whole likelihood goes in, with its
outliers and its second direction behind the ears, and the map shows all the places that go with
what was heard, be it a ray, two of them or a spot. Nothing needs a first guess, nothing is thrown
away too early, and whether there is a position at all can be read off the map: when most of it has
drawn together within a small area, seen under different angles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .tracking_bearing import Measurement
from .tracking_motion import Pose


@dataclass(frozen=True)
class PositionConfig:
    """What the filter takes for granted.

    Attributes:
        size: side of the map in metres; it goes along with the head.
        cell: side of a cell, metres.
        reach: metres; sources farther away are not expected.
        drift: how far a source strays in a second, metres (random walk). It also makes old
            bearings, of the odometry's older errors, count less and less.
        jump_rate: per second, how often the sound begins anew at any other place.
        same_place: windows' worth of likelihood that count from one place. More of them repeat the
            same errors of head and walls.
        move, turn: metres, and degrees, that make it another place.
        max_std: metres; the largest standard deviation, in any direction, of a position that is
            told.
        radius: metres around the best place in which ...
        share: ... so much of the probability must lie.
        parallax: degrees; under angles so different the position must have been seen.
    """

    size: float = 18.0
    cell: float = 0.18
    reach: float = 8.0
    drift: float = 0.1
    jump_rate: float = 0.01
    same_place: float = 1.0
    move: float = 0.3
    turn: float = 20.0
    max_std: float = 1.0
    radius: float = 2.0
    share: float = 0.5
    parallax: float = 12.0


@dataclass(frozen=True)
class Position:
    """Where a sound is, in the odometry's frame.

    Attributes:
        x, y: metres.
        covariance: (2, 2) of x and y, square metres.
        bearings: windows that went into it.
    """

    x: float
    y: float
    covariance: np.ndarray
    bearings: int

    def bearing_from(self, pose: Pose) -> tuple[float, float, float]:
        """Direction (degrees in the frame), its standard deviation (degrees) and the distance
        (metres) as seen from a pose."""
        dx, dy = self.x - pose.x, self.y - pose.y
        distance = math.hypot(dx, dy)
        across = np.array([-dy, dx]) / max(distance, 1e-6)
        std = math.sqrt(float(across @ self.covariance @ across))
        return (math.degrees(math.atan2(dy, dx)),
                math.degrees(math.atan2(std, max(distance, 1e-6))), distance)


class PositionFilter:
    """See the module.

    Args:
        config: what is taken for granted.
    """

    def __init__(self, config: PositionConfig | None = None):
        self.config = config = config or PositionConfig()
        cells = round(config.size / config.cell)
        self._axis = ((np.arange(cells) - (cells - 1) / 2) * config.cell).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._belief: np.ndarray | None = None  # (x, y)
        self._center = (0.0, 0.0)
        self._places: list[tuple[float, float]] = []
        self._last: Pose | None = None
        self._left = 0.0  # windows' worth that still count from this place
        self._bearings = 0
        self.position: Position | None = None

    def update(self, seconds: float, measurement: Measurement | None, flipped: float,
               pose: Pose) -> Position | None:
        """Take in what a window says.

        Args:
            seconds: since the last call.
            measurement: what the `BearingFilter` took in; None: nothing, time just passes.
            flipped: probability that front and back are confused in it.
            pose: of the head that heard it.

        Returns:
            the position, or None as long as none can be told.
        """
        config = self.config
        if self._belief is None:
            if measurement is None:
                return None
            self._center = (pose.x, pose.y)
        self._follow(pose)
        angle, distance = self._seen_from(pose)
        # Uniform in the distance, not in the area: sounds of interest are mostly near.
        prior = (distance < config.reach) / np.maximum(distance, 0.5)
        prior /= prior.sum()
        if self._belief is None:
            self._belief = prior
        self._blur(config.drift ** 2 * seconds)
        jump = 1 - math.exp(-config.jump_rate * seconds)
        belief = (1 - jump) * self._belief + jump * prior
        exponent = self._new(measurement, pose)
        if exponent > 0:
            table = ((1 - flipped) * measurement.table[0] + flipped * measurement.table[1])
            table = (table ** exponent).astype(np.float32)
            factor = table.take(np.rint(angle).astype(np.intp), mode="wrap")
            # Nearer than half a metre a cell is wider than what is heard.
            belief *= np.where(distance < 0.5, table.mean(), factor)
            self._bearings += 1
        self._belief = belief / belief.sum()
        self.position = self._tell()
        return self.position

    def _new(self, measurement: Measurement | None, pose: Pose) -> float:
        """How much of a measurement counts, given those from about the same place."""
        config = self.config
        if self._last is None:
            self._left = config.same_place
        else:
            moved = math.hypot(pose.x - self._last.x, pose.y - self._last.y)
            turned = abs(math.remainder(pose.yaw - self._last.yaw, 360.0))
            self._left = min(config.same_place, self._left + config.same_place * (
                moved / config.move + turned / config.turn))
        self._last = pose
        if measurement is None:
            return 0.0
        exponent = min(measurement.exponent, self._left)
        self._left -= exponent
        if exponent > 0 and (not self._places or math.dist(
                self._places[-1], (pose.x, pose.y)) > 0.5 * config.move):
            self._places = [*self._places[-63:], (pose.x, pose.y)]
        return exponent

    def _follow(self, pose: Pose) -> None:
        """Move the map along when the head comes near its middle's border."""
        config = self.config
        steps = [0, 0]
        for axis, (here, middle) in enumerate(zip((pose.x, pose.y), self._center)):
            if abs(here - middle) > config.size / 8:
                steps[axis] = round((here - middle) / config.cell)
        if not any(steps):
            return
        self._center = (self._center[0] + steps[0] * config.cell,
                        self._center[1] + steps[1] * config.cell)
        if self._belief is None:
            return
        cells, moved = len(self._axis), np.zeros_like(self._belief)
        kept = [slice(max(0, step), cells + min(0, step)) for step in steps]
        new = [slice(max(0, -step), cells + min(0, -step)) for step in steps]
        moved[new[0], new[1]] = self._belief[kept[0], kept[1]]
        total = moved.sum()
        self._belief = moved / total if total > 0 else None

    def _seen_from(self, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        """Direction (degrees) and distance (metres) of all cells."""
        dx = (self._axis + np.float32(self._center[0] - pose.x))[:, None]
        dy = (self._axis + np.float32(self._center[1] - pose.y))[None]
        return np.arctan2(dy, dx) * np.float32(180 / np.pi), np.sqrt(dx * dx + dy * dy)

    def _blur(self, variance: float) -> None:
        """Diffusion by that many square metres, in each direction."""
        part = min(variance / (2 * self.config.cell ** 2), 0.25)
        belief = self._belief
        for _ in range(2):  # along x, then y
            spread = (1 - 2 * part) * belief
            spread[1:] += part * belief[:-1]
            spread[:-1] += part * belief[1:]
            belief = spread.T
        self._belief = belief

    def _tell(self) -> Position | None:
        config, belief = self.config, self._belief
        x, y = np.unravel_index(int(belief.argmax()), belief.shape)
        x, y = float(self._axis[x]), float(self._axis[y])
        for _ in range(2):  # the mean of what lies around the peak, then around that mean
            near_x, near_y = (np.flatnonzero(np.abs(self._axis - v) < config.radius)
                              for v in (x, y))
            dx, dy = self._axis[near_x] - x, self._axis[near_y] - y
            part = belief[near_x[0]:near_x[-1] + 1, near_y[0]:near_y[-1] + 1] * (
                dx[:, None] ** 2 + dy[None] ** 2 < config.radius ** 2)
            mass = float(part.sum())
            if mass < config.share:
                return None
            along_x, along_y = part.sum(1) / mass, part.sum(0) / mass
            mean_x, mean_y = float(along_x @ dx), float(along_y @ dy)
            x, y = x + mean_x, y + mean_y
        xy = float((dx - mean_x) @ part @ (dy - mean_y)) / mass
        cell = config.cell ** 2 / 12  # within its cell the place is open
        covariance = np.array([[float(along_x @ (dx - mean_x) ** 2) + cell, xy],
                               [xy, float(along_y @ (dy - mean_y) ** 2) + cell]])
        if np.linalg.eigvalsh(covariance)[-1] > config.max_std ** 2:
            return None
        place = (x + self._center[0], y + self._center[1])
        if self._parallax(place) < config.parallax:
            return None
        return Position(*place, covariance, self._bearings)

    def _parallax(self, place: tuple[float, float]) -> float:
        """Angle, in degrees, that the lines from the places of hearing to `place` span."""
        if len(self._places) < 2:
            return 0.0
        away = np.array(place) - np.array(self._places)
        angle = np.arctan2(away[:, 1], away[:, 0])
        return float(np.degrees(np.ptp(np.remainder(angle - angle[-1] + np.pi, 2 * np.pi))))
