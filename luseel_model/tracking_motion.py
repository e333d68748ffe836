"""Where the head was when: poses from odometry, interpolated at the time of a window.

Frames are those of REP-103: x forward, y left, metres; yaw counter-clockwise, here in degrees like
all angles of luseel_model. Poses are those of the head (the microphones) in the odometry's frame.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from .errors import ConfigError

_SAMPLES = 9  # places in a window where the head is looked up
_JUMP_SPEED = 10.0  # [m/s] faster than any robot with ears: the odometry was set anew
_JUMP = 0.5  # [m] that a slip may look like without being taken for that


@dataclass(frozen=True)
class Pose:
    """Where the head is and looks.

    Attributes:
        x, y: metres in the odometry's frame.
        yaw: degrees counter-clockwise, any turn.
    """

    x: float
    y: float
    yaw: float

    def mounted(self, x: float, y: float, yaw: float) -> "Pose":
        """The pose of something at (x, y) metres, turned by yaw degrees, on what has this pose."""
        cos, sin = math.cos(math.radians(self.yaw)), math.sin(math.radians(self.yaw))
        return Pose(self.x + cos * x - sin * y, self.y + sin * x + cos * y, self.yaw + yaw)


@dataclass(frozen=True)
class HeadMotion:
    """The head during a window, and at the time that a direction is told for.

    Attributes:
        heard: mean pose over the window: what its likelihood refers to.
        now: pose at the time the direction is told for.
        turn_std: standard deviation of the yaw within the window, degrees: a window heard while
            turning is blurred by it.
        epoch: changes when the odometry's frame was set anew, so that older poses mean nothing.
    """

    heard: Pose
    now: Pose
    turn_std: float = 0.0
    epoch: int = 0

    def since(self, earlier: "HeadMotion") -> tuple[float, float]:
        """How far the head that hears has moved (metres) and turned (degrees, the shorter way)."""
        old, new = earlier.heard, self.heard
        return (math.hypot(new.x - old.x, new.y - old.y),
                math.remainder(new.yaw - old.yaw, 360.0))

    @classmethod
    def still(cls, pose: Pose) -> "HeadMotion":
        """A head that keeps its pose all through the window."""
        return cls(pose, pose)


class Odometry:
    """The newest poses with their times.

    Args:
        seconds: how long they are kept.
        patience: for how many seconds beyond its ends the first and the last pose are taken to
            hold; further away nothing is known.
    """

    def __init__(self, seconds: float = 10.0, patience: float = 0.5):
        if not (seconds > 0 and patience >= 0):
            raise ConfigError(f"seconds {seconds}, patience {patience}: expected above 0, and 0 "
                              "or more")
        self._seconds, self._patience = seconds, patience
        self._times: list[float] = []
        self._poses: list[tuple[float, float, float]] = []
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._times)

    @property
    def span(self) -> tuple[float, float]:
        """First and last time, seconds; there must be a pose."""
        return self._times[0], self._times[-1]

    def clear(self) -> None:
        """Forget all poses: those that come have another frame."""
        self._times, self._poses = [], []
        self.epoch += 1

    def add(self, stamp_s: float, pose: Pose) -> bool:
        """Add the pose at a time in seconds; times must rise.

        A time that goes back by more than `patience`, or a jump that no robot can drive, sets the
        frame anew.

        Returns:
            whether it was taken: False for one that isn't finite or comes late.
        """
        x, y, yaw = float(pose.x), float(pose.y), float(pose.yaw)
        if not all(map(math.isfinite, (stamp_s, x, y, yaw))):
            return False
        if self._times:
            step = stamp_s - self._times[-1]
            if -self._patience <= step <= 0:
                return False
            old_x, old_y, old_yaw = self._poses[-1]
            moved = math.hypot(x - old_x, y - old_y)
            if step < 0 or moved > _JUMP + _JUMP_SPEED * step:
                self.clear()
            else:  # without a seam at 360, so that it can be interpolated
                yaw = old_yaw + (yaw - old_yaw + 180.0) % 360.0 - 180.0
        self._times.append(stamp_s)
        self._poses.append((x, y, yaw))
        if self._times[0] < stamp_s - 2 * self._seconds:  # seldom: cutting a list costs time
            first = bisect_left(self._times, stamp_s - self._seconds)
            del self._times[:first], self._poses[:first]
        return True

    def at(self, stamp_s: float) -> Pose | None:
        """The pose at a time in seconds; None where none is known."""
        found = self._find(np.array([stamp_s]))
        return None if found is None else Pose(*found[0].tolist())

    def over(self, start_s: float, end_s: float, now_s: float) -> HeadMotion | None:
        """The head from `start_s` to `end_s`, and at `now_s`; None where that isn't known."""
        found = self._find(np.array([*np.linspace(start_s, end_s, _SAMPLES), now_s]))
        if found is None:
            return None
        window = found[:-1]
        return HeadMotion(Pose(*window.mean(0).tolist()), Pose(*found[-1].tolist()),
                          float(window[:, 2].std()), self.epoch)

    def _find(self, stamps: np.ndarray) -> np.ndarray | None:
        """(n, 3) x, y, yaw at n times."""
        if not self._times or not (self._times[0] - self._patience <= stamps.min()
                                   and stamps.max() <= self._times[-1] + self._patience):
            return None
        first = max(bisect_left(self._times, stamps.min()) - 1, 0)
        times, poses = np.array(self._times[first:]), np.array(self._poses[first:])
        return np.stack([np.interp(stamps, times, poses[:, i]) for i in range(3)], 1)
