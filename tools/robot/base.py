"""A robot on two wheels: how it moves, what it bumps into, what its odometry and its scan say.

Plain Python; metres, seconds, radians counter-clockwise (REP-103). A floor is a rectangle from the
origin to (length, width) with boxes on it that can't be entered, each (x0, y0, x1, y1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MAX_SPEED = 0.4  # [m/s] forward and backward
MAX_TURN = 1.2  # [rad/s]
ACCELERATION = 0.8  # [m/s²]
TURN_ACCELERATION = 3.0  # [rad/s²]
RADIUS = 0.22  # [m] of the base, which is round
STEP = 0.02  # [s] of the integration

#: Errors of the odometry. Each run draws a constant error of the wheels' size and of their distance
#: from each other (standard deviations), and slip adds noise with the way.
DISTANCE_SCALE = 0.02  # of the distance
YAW_SCALE = 0.02  # of the turn
YAW_NOISE = math.radians(1.0)  # [rad/sqrt(m)] of driving
TURN_NOISE = math.radians(0.5)  # [rad/sqrt(rad)] of turning
DISTANCE_NOISE = 0.01  # [m/sqrt(m)]

SCAN_RANGE = 1.5  # [m]
SCAN_RAYS = 72  # all around: ray i at i · 5°


def wrap(angle):
    """Any angle in radians, wrapped to [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


@dataclass(frozen=True)
class Pose:
    """Where something stands: x, y in metres, yaw in radians."""

    x: float
    y: float
    yaw: float

    def to_local(self, x, y):
        """A place seen from this pose: metres ahead, metres to the left; numbers or arrays."""
        dx, dy = x - self.x, y - self.y
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return c * dx + s * dy, -s * dx + c * dy

    def to_outer(self, x, y):
        """The reverse of :meth:`to_local`."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return self.x + c * x - s * y, self.y + s * x + c * y

    def bearing(self, x: float, y: float) -> float:
        """Direction to a place from here, radians from straight ahead, in [-pi, pi)."""
        return wrap(math.atan2(y - self.y, x - self.x) - self.yaw)


@dataclass(frozen=True)
class Floor:
    """What the base can run into.

    Attributes:
        size: length along x and width along y, metres.
        boxes: (n, 4) x0, y0, x1, y1 of each, metres.
    """

    size: tuple[float, float]
    boxes: np.ndarray

    def clearance(self, x, y) -> np.ndarray:
        """Distance to the nearest wall or box, metres; negative outside or inside one.

        Args:
            x, y: arrays (...) or numbers.
        """
        x, y = np.asarray(x, float), np.asarray(y, float)
        free = np.minimum.reduce([x, self.size[0] - x, y, self.size[1] - y])
        for x0, y0, x1, y1 in self.boxes:
            dx, dy = np.maximum(x0 - x, x - x1), np.maximum(y0 - y, y - y1)
            outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
            free = np.minimum(free, outside + np.minimum(np.maximum(dx, dy), 0))
        return free

    def scan(self, pose: Pose, rays: int = SCAN_RAYS, reach: float = SCAN_RANGE) -> np.ndarray:
        """Distances to the nearest wall or box, (rays,), infinite where farther than ``reach``.

        Ray i points i · 360/rays degrees counter-clockwise from straight ahead.
        """
        angle = pose.yaw + np.arange(rays) * (2 * math.pi / rays)
        way = np.stack([np.cos(angle), np.sin(angle)], 1)
        place = np.array([pose.x, pose.y])
        with np.errstate(divide="ignore", invalid="ignore"):
            # From inside, a wall is met where the ray leaves the rectangle.
            leave = np.where(way > 0, (np.array(self.size) - place) / way, -place / way)
            found = np.nanmin(np.where(way == 0, np.inf, leave), axis=1)
            for x0, y0, x1, y1 in self.boxes:
                first = (np.array([x0, y0]) - place) / way
                second = (np.array([x1, y1]) - place) / way
                enter = np.nanmax(np.minimum(first, second), axis=1)
                exit_ = np.nanmin(np.maximum(first, second), axis=1)
                hit = (enter <= exit_) & (enter >= 0)
                found = np.where(hit, np.minimum(found, enter), found)
        return np.where(found <= reach, found, np.inf)


class Base:
    """The robot: the truth and what its odometry makes of it.

    The odometry starts at 0, 0, 0: its frame is where the robot was switched on.

    Args:
        floor: what it can run into.
        start: its true pose.
        seed: of the errors of the odometry; None: there are none.
    """

    def __init__(self, floor: Floor, start: Pose, seed: int | None = 0):
        self.floor, self.start = floor, start
        self.pose, self.odometry = start, Pose(0.0, 0.0, 0.0)
        self.speed = self.turn = 0.0
        self.path = 0.0  # metres driven in truth
        self.bumped = False  # in the newest step
        self.bumps = 0  # how often it ran into something
        self._random = None if seed is None else np.random.default_rng(seed)
        draw = self._random.standard_normal(2) if self._random else np.zeros(2)
        self._scale = 1 + DISTANCE_SCALE * draw[0], 1 + YAW_SCALE * draw[1]

    def step(self, speed: float, turn: float, seconds: float) -> None:
        """Follow a command (m/s, rad/s) within the limits of the base."""
        speed = min(max(speed, -MAX_SPEED), MAX_SPEED)
        turn = min(max(turn, -MAX_TURN), MAX_TURN)
        before = self.bumped
        self.bumped = False
        count = max(1, round(seconds / STEP))
        dt = seconds / count
        for _ in range(count):
            self.speed += min(max(speed - self.speed, -ACCELERATION * dt), ACCELERATION * dt)
            self.turn += min(max(turn - self.turn, -TURN_ACCELERATION * dt),
                             TURN_ACCELERATION * dt)
            self._move(self.speed * dt, self.turn * dt)
        self.bumps += self.bumped and not before

    def _move(self, way: float, turn: float) -> None:
        middle = self.pose.yaw + turn / 2
        x, y = self.pose.x + way * math.cos(middle), self.pose.y + way * math.sin(middle)
        here = self.floor.clearance(self.pose.x, self.pose.y)
        there = self.floor.clearance(x, y)
        if there < RADIUS and there < here:  # it may still move away
            x, y, way, self.speed, self.bumped = self.pose.x, self.pose.y, 0.0, 0.0, True
        self.pose = Pose(x, y, wrap(self.pose.yaw + turn))
        self.path += abs(way)
        noise = self._random.standard_normal(2) if self._random else np.zeros(2)
        seen_way = self._scale[0] * way + DISTANCE_NOISE * math.sqrt(abs(way)) * noise[0] \
            if self._random else way
        seen_turn = (self._scale[1] * turn + noise[1] * math.hypot(
            YAW_NOISE * math.sqrt(abs(way)), TURN_NOISE * math.sqrt(abs(turn)))
                     if self._random else turn)
        odometry = self.odometry
        middle = odometry.yaw + seen_turn / 2
        self.odometry = Pose(odometry.x + seen_way * math.cos(middle),
                             odometry.y + seen_way * math.sin(middle),
                             wrap(odometry.yaw + seen_turn))

    def scan(self) -> np.ndarray:
        """Distances around the centre of the base, as :meth:`Floor.scan`."""
        return self.floor.scan(self.pose)
