"""How the robot decides where to drive, from what it is told about a sound. No ROS in here.

It hears bearings with their uncertainty, places with their covariance, its odometry and a short
range scan, and knows nothing else of the home. What it does:

LISTEN    stands still until the sound is heard; turns by 90° after a while without.
EXPLORE   after that was in vain, drives a little to where the hops that were not sure of hearing it
          pointed most: nearer there it may be heard.
FACE      turns to the sound. With the turn goes the doubt whether it is in front or behind.
DRIVE     goes to the place of the sound; as long as that isn't known, towards the sound but a
          little to one side, because driving straight at it never tells how far it is.
CONFIRM   faces that place from nearby and listens once more: so near the direct sound is strong,
          and a place that doesn't sound is left again.
ARRIVED   is what it declares then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from base import MAX_SPEED, RADIUS, Pose, wrap

LISTEN, EXPLORE, FACE, DRIVE, CONFIRM, ESCAPE, ARRIVED = (
    "listen", "explore", "face", "drive", "confirm", "escape", "arrived")


@dataclass(frozen=True)
class Bearing:
    """One message about the sound.

    Attributes:
        time: seconds, that the direction is told for.
        azimuth: radians from straight ahead, counter-clockwise; NaN: nothing is heard.
        std: of it, radians.
        likelihood: (360,) of the newest hop alone, bin i at i degrees; None: not told.
        confidence: of the newest hop alone, 0 to 1.
    """

    time: float
    azimuth: float
    std: float
    likelihood: np.ndarray | None = None
    confidence: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where the sound is said to be: x, y metres in the frame of the odometry, largest standard
    deviation (metres) in any direction, and when that was said."""

    time: float
    x: float
    y: float
    std: float


@dataclass(frozen=True)
class Habits:
    """How it behaves; metres, seconds, radians."""

    turn: float = 0.9  # [rad/s] at most
    settle: float = 2.5  # until the first bearing is believed
    pause: float = 1.5  # of listening between two moves
    patience: float = 6.0  # of silence until it turns to listen elsewhere, ...
    turns: int = 2  # ... so many times, until it drives elsewhere ...
    explore: float = 4.0  # ... for so long
    memory: float = 3.0  # for which a bearing is acted on, ...
    place_memory: float = 10.0  # ... and a place: the sound may pause
    facing: float = math.radians(15)
    doubt: float = math.radians(35)  # of a bearing that isn't driven by
    behind: float = math.radians(75)  # a bearing so far aside is faced first
    side: float = math.radians(35)  # by which it drives past, until it knows the place
    near: float = 0.65  # to the place, where it stops
    arrived: float = 0.9  # to the place, after listening once more
    votes: int = 3  # hops that it listens to there, ...
    heard: float = 0.7  # ... of this confidence or more
    aside: float = math.radians(55)  # from the place, that a hop may point
    window: float = 1.5  # from the beginning of the time that a hop looks back over to its stamp
    give_up: float = 8.0  # of waiting for hops there
    distrust: float = 20.0  # for which a place that doesn't sound is left alone, ...
    around: float = 0.8  # ... and all within this distance of it
    sure: float = 0.5  # standard deviation of a place that it drives to, ...
    there: float = 0.8  # ... and of one that it is at already
    clearance: float = RADIUS + 0.08
    look: float = 0.6  # ahead of the robot that must be free
    stuck: float = 3.0  # without getting anywhere


class Navigator:
    """Call the four inputs as they come, and :meth:`command` whenever the wheels want one."""

    def __init__(self, habits: Habits | None = None):
        self.habits = habits or Habits()
        self.state = LISTEN
        self.heading = math.nan  # where it wants to go, radians in the odometry's frame
        self._since = math.nan  # of the state
        self._pose: Pose | None = None
        self._history: list[tuple[float, Pose]] = []
        self._points = np.zeros((0, 2))
        self._rays = 0
        self._bearing: tuple[float, float, float] | None = None  # time, world azimuth, std
        self._place: Place | None = None
        self._side = 0
        self._search = math.nan  # yaw to turn to while nothing is heard
        self._tries = 0
        self._silences = 0  # how many times it listened in vain
        self._hints = np.zeros(360)  # by azimuth in the odometry's frame, of all hops
        self._progress: tuple[float, Pose] | None = None
        self._first = True
        self._still = math.inf  # since when it faces the place
        self._votes: list[bool] = []
        self._rejected: list[tuple[float, float, float]] = []  # time, x, y

    # -- inputs ------------------------------------------------------------------------------

    def odometry(self, time: float, pose: Pose) -> None:
        """Where the wheels say the robot is."""
        if math.isnan(self._since):
            self._since = time
        self._pose = pose
        self._history = [*self._history[-100:], (time, pose)]

    def scan(self, ranges: np.ndarray) -> None:
        """Distances all around, (rays,) metres, ray i at i · 360/rays degrees; inf: free."""
        ranges = np.asarray(ranges, float)
        seen = np.flatnonzero(np.isfinite(ranges))
        angle = seen * (2 * math.pi / len(ranges))
        self._points = ranges[seen, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        self._rays = len(ranges)

    def hear(self, bearing: Bearing) -> None:
        """What is known of the direction now."""
        if not self._history:
            return
        pose = min(self._history, key=lambda entry: abs(entry[0] - bearing.time))[1]
        if bearing.likelihood is not None:
            share = np.asarray(bearing.likelihood) / max(float(np.sum(bearing.likelihood)), 1e-9)
            self._hints += bearing.confidence * np.roll(share, round(math.degrees(pose.yaw)))
        if self.state == CONFIRM and bearing.time >= self._still + self.habits.window:
            self._vote(bearing, pose)
        if not math.isfinite(bearing.azimuth):
            return
        self._bearing = bearing.time, wrap(pose.yaw + bearing.azimuth), bearing.std

    def place(self, place: Place) -> None:
        """What is known of the place now."""
        self._place = place

    # -- what is believed ----------------------------------------------------------------------

    def _known(self, time: float) -> Place | None:
        """The place, if it is fresh, and sure or so near that the robot is there."""
        place = self._place
        if place is None or time - place.time > self.habits.place_memory:
            return None
        if place.std > (self.habits.there if self._is_near(place) else self.habits.sure) or any(
                time - then < self.habits.distrust
                and math.dist((x, y), (place.x, place.y)) < self.habits.around
                for then, x, y in self._rejected):
            return None
        return place

    def _vote(self, bearing: Bearing, pose: Pose) -> None:
        """Whether a hop points to the place. Within the place's own uncertainty any may."""
        if bearing.likelihood is None or bearing.confidence < self.habits.heard:
            return
        if self._distance(self._place) < self._place.std:
            self._votes.append(True)
            return
        towards = math.degrees(pose.bearing(self._place.x, self._place.y))
        off = np.abs((np.arange(360) - towards + 180.0) % 360.0 - 180.0)
        there = bearing.likelihood[off <= math.degrees(self.habits.aside)].max()
        self._votes.append(bool(there >= 0.5 * np.max(bearing.likelihood)))

    def _direction(self, time: float) -> tuple[float, float] | None:
        """Direction in the odometry's frame and its standard deviation, if fresh."""
        if self._bearing is None or time - self._bearing[0] > self.habits.memory:
            return None
        return self._bearing[1:]

    def _distance(self, place: Place) -> float:
        return math.hypot(place.x - self._pose.x, place.y - self._pose.y)

    def _is_near(self, place: Place) -> bool:
        return self._distance(place) < self.habits.near

    # -- decisions -----------------------------------------------------------------------------

    def command(self, time: float) -> tuple[float, float]:
        """Speed (m/s) and turn (rad/s) from now on."""
        if self._pose is None or not self._rays:
            return 0.0, 0.0
        for _ in range(4):  # a state that ends at once hands over to the next
            before = self.state
            speed, turn = getattr(self, f"_{self.state}")(time)
            if self.state == before:
                break
        return speed, turn

    def _enter(self, state: str, time: float) -> tuple[float, float]:
        self.state, self._since = state, time
        self._progress, self._votes, self._still = None, [], math.inf
        return 0.0, 0.0

    def _listen(self, time: float):
        habits, spent = self.habits, time - self._since
        if spent < (habits.settle if self._first else habits.pause):
            return 0.0, 0.0
        direction = self._direction(time)
        if direction is not None and self._bearing[0] > self._since:
            self._first, self._search, self._silences = False, math.nan, 0
            return self._enter(FACE, time)
        if self._known(time):
            return self._enter(DRIVE, time)
        if spent > habits.patience:
            self._silences += 1
            if self._silences % (habits.turns + 1) == 0:
                return self._enter(EXPLORE, time)
            self._search = wrap(self._pose.yaw + math.pi / 2)
            return self._enter(FACE, time)
        return 0.0, 0.0

    def _explore(self, time: float):
        if time - self._since > self.habits.explore or self._direction(time) is not None:
            return self._enter(LISTEN, time)
        if self._hints.any():  # a direction is told to some degrees
            around = scipy.ndimage.uniform_filter1d(self._hints, 31, mode="wrap")
            self.heading = math.radians(float(around.argmax()))
        else:
            self.heading = self._pose.yaw + self._widest()
        return self._steer(wrap(self.heading - self._pose.yaw), self.habits.look)

    def _face(self, time: float):
        direction, place = self._direction(time), self._known(time)
        if place is not None and self._is_near(place):
            return self._enter(CONFIRM, time)
        if not math.isnan(self._search):
            goal, std = self._search, math.inf
            if direction is not None and self._bearing[0] > self._since:
                self._search = math.nan
        elif direction is None:
            return self._enter(LISTEN, time)
        else:
            goal, std = direction
        self.heading = goal
        error = wrap(goal - self._pose.yaw)
        if abs(error) > self.habits.facing:
            return 0.0, self._turn(error)
        if math.isinf(std):
            self._search = math.nan
            return self._enter(LISTEN, time)
        self._tries += 1
        if std > self.habits.doubt and self._tries < 3:
            return self._enter(LISTEN, time)
        self._tries = 0
        return self._enter(DRIVE, time)

    def _drive(self, time: float):
        habits, place, direction = self.habits, self._known(time), self._direction(time)
        if place is not None:
            if self._is_near(place):
                return self._enter(CONFIRM, time)
            goal = math.atan2(place.y - self._pose.y, place.x - self._pose.x)
            reach = min(habits.look, self._distance(place))
        elif direction is None:
            return self._enter(LISTEN, time)
        else:
            goal, reach = direction[0], habits.look
            if abs(wrap(goal - self._pose.yaw)) > habits.behind + habits.side:
                return self._enter(FACE, time)
            if direction[1] > 1.5 * habits.doubt and time - self._since > 3.0:
                return self._enter(LISTEN, time)
            if not self._side:
                self._side = self._freer_side(wrap(goal - self._pose.yaw))
            goal += self._side * habits.side
        if self._is_stuck(time):
            self._side = -self._side
            self._search = wrap(self._pose.yaw + self._widest())
            return self._enter(ESCAPE, time)
        self.heading = goal
        return self._steer(wrap(goal - self._pose.yaw), reach)

    def _escape(self, time: float):
        """Drives to where there is room, for a moment."""
        if time - self._since > 3.0:
            self._search = math.nan
            return self._enter(DRIVE, time)
        self.heading = self._search
        return self._steer(wrap(self._search - self._pose.yaw), self.habits.look)

    def _confirm(self, time: float):
        habits, place = self.habits, self._known(time)
        if place is None or self._distance(place) > habits.arrived:
            return self._enter(DRIVE if place is not None else LISTEN, time)
        error = self._pose.bearing(place.x, place.y)
        if math.isinf(self._still):  # turns to it once; the place may still move a little
            if abs(error) > habits.facing and time - self._since < 4.0:
                return 0.0, self._turn(error)
            self._still = time
        if len(self._votes) < habits.votes and time - self._still < habits.give_up:
            return 0.0, 0.0
        if 2 * sum(self._votes) >= len(self._votes):
            return self._enter(ARRIVED, time)
        self._rejected.append((time, place.x, place.y))
        return self._enter(LISTEN, time)

    def _arrived(self, time: float):
        return 0.0, 0.0

    # -- driving -------------------------------------------------------------------------------

    def _turn(self, error: float) -> float:
        return min(max(2.0 * error, -self.habits.turn), self.habits.turn)

    def _room(self, angle: np.ndarray, reach: float) -> np.ndarray:
        """How far the robot could go in each direction (n,) from ahead, up to ``reach``."""
        way = np.stack([np.cos(angle), np.sin(angle)], 1)
        if not len(self._points):
            return np.full(len(angle), reach)
        along = way @ self._points.T
        across = np.abs(way[:, :1] * self._points[:, 1] - way[:, 1:] * self._points[:, 0])
        body = self.habits.clearance
        stops = along - np.sqrt(np.maximum(body ** 2 - across ** 2, 0))
        stops = np.where((along > 0) & (across < body), np.maximum(stops, 0), np.inf)
        return np.minimum(stops.min(1), reach)

    def _angles(self) -> np.ndarray:
        return wrap(np.arange(self._rays) * (2 * math.pi / self._rays))

    def _steer(self, error: float, reach: float) -> tuple[float, float]:
        """Towards ``error`` radians from ahead, around what is in the way."""
        angles = np.append(self._angles(), error)
        room = self._room(angles, reach)
        cost = np.abs(wrap(angles - error)) + 0.3 * np.abs(angles)
        cost = np.where(room >= reach - 1e-6, cost, cost + 10 * (reach - room) / reach + 3)
        best = float(angles[cost.argmin()])
        ahead = float(self._room(np.zeros(1), reach)[0])
        speed = MAX_SPEED * max(0.0, math.cos(best)) ** 2 if abs(best) < 1.2 else 0.0
        if ahead < reach:
            speed = min(speed, max(0.0, ahead - 0.02))
        return speed, self._turn(best)

    def _freer_side(self, error: float) -> int:
        left, right = self._room(np.array([error + self.habits.side, error - self.habits.side]),
                                 10.0)
        return 1 if left >= right else -1

    def _widest(self) -> float:
        """The direction with the most room, the one nearest to ahead of equal ones."""
        angles = self._angles()
        return float(angles[(self._room(angles, 1.2) - 0.05 * np.abs(angles)).argmax()])

    def _is_stuck(self, time: float) -> bool:
        if self._progress is None or math.hypot(
                self._pose.x - self._progress[1].x, self._pose.y - self._progress[1].y) > 0.15:
            self._progress = time, self._pose
        return time - self._progress[0] > self.habits.stuck
