"""One run: the home, the robot in it and the record of what happened. No ROS in here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from base import Base, Pose
from home import HOP, Ears, Home

from luseel_model.angles import angular_error
from luseel_model.heads import Head

ARRIVAL = 1.0  # [m] from the target, within which it must stop
NEAR = 0.5  # [m]; nearer than this a direction means little and isn't scored


@dataclass
class Heard:
    """One message about the sound, as it came.

    Attributes:
        time: that it is told for, seconds.
        azimuth, std: tracked, degrees from ahead; NaN: nothing is heard.
        raw, confidence, likelihood: of the hop alone; likelihood (360,).
        truth, distance: where the target was, seen from the robot's true pose, degrees and metres.
    """

    time: float
    azimuth: float
    std: float
    raw: float
    confidence: float
    likelihood: np.ndarray
    truth: float
    distance: float


@dataclass
class Record:
    """All that is needed to score and to draw a run. Lists have one entry a step of 0.1 s.

    Attributes:
        times: seconds, at the end of the step.
        poses, odometry: (x, y, yaw).
        states: of the navigator.
        places: (n) of the target and the others, (P, 2).
        sounding: (P,) bool.
        heard: messages.
        positions: (time, x, y, covariance (2, 2)), in the frame of the odometry.
    """

    times: list[float] = field(default_factory=list)
    poses: list[tuple[float, float, float]] = field(default_factory=list)
    odometry: list[tuple[float, float, float]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    sounding: list[list[bool]] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    positions: list[tuple[float, float, float, np.ndarray]] = field(default_factory=list)


class World:
    """The home with the robot in it, step by step of 0.1 s.

    Args:
        home: where.
        head: whose ears; None: the run needs no sound, and :meth:`step` gives none.
        odometry_errors: whether the odometry has errors.
    """

    def __init__(self, home: Home, head: Head | None, odometry_errors: bool = True):
        self.home = home
        self.base = Base(home.floor, home.start, home.seed if odometry_errors else None)
        self.ears = Ears(home, head) if head is not None else None
        self.time = 0.0
        self.steps = 0
        self.record = Record()

    def step(self, speed: float, turn: float, state: str = "") -> np.ndarray | None:
        """Drive for 0.1 s -> what the ears heard meanwhile, (2, samples)."""
        before = self.base.pose
        self.base.step(speed, turn, HOP)
        audio = None
        if self.ears is not None:
            audio = self.ears.hear(self.time, before, self.base.pose)
        self.steps += 1
        self.time = self.steps * HOP  # without a drift of the sum
        record = self.record
        record.times.append(self.time)
        for rows, pose in ((record.poses, self.base.pose), (record.odometry, self.base.odometry)):
            rows.append((pose.x, pose.y, pose.yaw))
        record.states.append(state)
        record.places.append(np.array([s.at(self.time)[:2] for s in self.home.sources]))
        record.sounding.append([s.sounds(self.time - HOP) for s in self.home.sources])
        return audio

    def pose_at(self, time: float) -> Pose:
        """The true pose at a time that has been, to the step."""
        index = round(time / HOP) - 1
        if index < 0:
            return self.home.start
        return Pose(*self.record.poses[min(index, len(self.record.poses) - 1)])

    def true_azimuth(self, time: float) -> float:
        """Of the target then, degrees from ahead, in [0, 360)."""
        x, y, _ = self.home.target.at(time)
        return math.degrees(self.pose_at(time).bearing(x, y)) % 360.0

    def hear(self, time: float, azimuth: float, std: float, raw: float, confidence: float,
             likelihood: np.ndarray) -> None:
        """Put a message about the sound on record; degrees."""
        self.record.heard.append(Heard(time, azimuth, std, raw, confidence,
                                       np.asarray(likelihood, np.float32),
                                       self.true_azimuth(time),
                                       self.home.distance(self.pose_at(time), time)))

    @property
    def distance(self) -> float:
        """Metres from the robot to the target now."""
        return self.home.distance(self.base.pose, self.time)

    def score(self, arrived: bool) -> dict:
        """What came of it.

        Returns:
            success: declared arrived within a metre of the target; declared; seconds; distance
            (m) to the target at the end; path (m) and its ratio to the shortest way; bumps;
            position_error: of the last place told, as seen from the robot (m). With the target
            half a metre away or farther: bearing_error, the mean error of the tracked bearings
            (degrees); raw_error, that of the hops that count as the sound (confidence 0.5 or
            more); confused, the share of tracked bearings that are wrong by over 45°.
        """
        record = self.record
        far = [h for h in record.heard if h.distance >= NEAR]
        tracked = [h for h in far if math.isfinite(h.azimuth)]
        raw = [h for h in far if h.confidence >= 0.5 and math.isfinite(h.raw)]
        errors = np.array([angular_error(h.azimuth, h.truth) for h in tracked])
        place_error = None
        if record.positions:
            _, x, y, _ = record.positions[-1]
            # seen from the robot: the drift of the odometry is not the tracker's fault
            told = self.base.odometry.to_local(x, y)
            truth = self.base.pose.to_local(*self.home.target.at(self.time)[:2])
            place_error = round(math.dist(told, truth), 3)
        return {
            "success": bool(arrived and self.distance <= ARRIVAL), "declared": bool(arrived),
            "seconds": round(self.time, 1), "distance": round(self.distance, 3),
            "path": round(self.base.path, 2),
            "path_ratio": round(self.base.path / self.home.shortest, 2),
            "bumps": self.base.bumps,
            "bearing_error": _mean(errors),
            "raw_error": _mean([angular_error(h.raw, h.truth) for h in raw]),
            "confused": _mean(errors > 45.0) if len(errors) else None,
            "position_error": place_error,
        }


def _mean(values) -> float | None:
    return round(float(np.mean(values)), 3) if len(values) else None
