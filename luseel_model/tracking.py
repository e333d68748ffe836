"""Tracking of one queried sound: is it there, from which direction, and where is it?

    tracker = Tracker()
    state = tracker.update(stamp_s, likelihood, confidence)           # each hop
    state = tracker.update(stamp_s, likelihood, confidence, odometry.over(start, end, stamp_s))
    state.id, state.azimuth, state.azimuth_std, state.hypotheses, state.position

Successive windows overlap, so their likelihoods are largely the same observation: each counts with
the power hop / window, so that the hops of one window together count once. It is tempered further
by the confidence: a window without the sound says nothing about its direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from .angles import circular_std
from .config import AZIMUTH_BINS
from .errors import ConfigError
from .tracking_bearing import BearingConfig, BearingFilter, Hypothesis, find_hypotheses
from .tracking_motion import HeadMotion, Odometry, Pose
from .tracking_position import Position, PositionConfig, PositionFilter

__all__ = ["HeadMotion", "Hypothesis", "Odometry", "Pose", "Position", "TrackState", "Tracker",
           "TrackingConfig"]


@dataclass(frozen=True)
class TrackingConfig:
    """What a tracker takes for granted.

    Attributes:
        window: seconds that a likelihood looks back over.
        lag: seconds from the middle of the window to the time that the direction is told for.
        slope: log-odds of presence for each unit of confidence above the threshold. 8 is the
            ratio of what the shipped model gives for sounds that are there and are not.
        presence_seconds: windows closer together than this tell of presence only in part.
        on_rate, off_rate: per second, how often the sound begins and ends.
        on, off: probability of presence from which a track begins, and below which it pauses.
        memory: seconds of silence after which a track ends.
        bearing, position: of the two filters.
    """

    window: float = 2.0
    lag: float = 0.5
    slope: float = 8.0
    presence_seconds: float = 1.0
    on_rate: float = 0.1
    off_rate: float = 0.1
    on: float = 0.7
    off: float = 0.3
    memory: float = 10.0
    bearing: BearingConfig = field(default_factory=BearingConfig)
    position: PositionConfig = field(default_factory=PositionConfig)

    def __post_init__(self) -> None:
        if not (self.window > 0 and self.presence_seconds > 0 and self.memory >= 0):
            raise ConfigError(f"window {self.window}, presence_seconds {self.presence_seconds}, "
                              f"memory {self.memory}: expected above 0 (memory: 0 or more)")
        if not 0 < self.off < self.on < 1:
            raise ConfigError(f"off {self.off}, on {self.on}: expected 0 < off < on < 1")


@dataclass(frozen=True)
class TrackState:
    """What is known of a sound at one time. Without a track all but `stamp_s` and `presence` is
    None, NaN or empty.

    Attributes:
        stamp_s: the time, seconds.
        presence: probability that the sound is there, 0 to 1.
        id: number of the track, from 1 on; None: nothing is heard.
        age_s: seconds since the track began, pauses included.
        azimuth: of the best hypothesis, degrees in [0, 360), counter-clockwise, 90 left, seen
            from the head as it looks at `stamp_s`.
        azimuth_std: circular standard deviation of all that is believed, degrees: large while
            front and back are in doubt.
        hypotheses: the directions it may have, most probable first.
        belief: (360,) float32 probability of each direction from the head, adding up to 1; None.
        position: where it is, in the odometry's frame; None as long as that can't be told.
    """

    stamp_s: float
    presence: float
    id: int | None = None
    age_s: float = math.nan
    azimuth: float = math.nan
    azimuth_std: float = math.nan
    hypotheses: tuple[Hypothesis, ...] = ()
    belief: np.ndarray | None = None
    position: Position | None = None


class Presence:
    """Whether the sound is there: a two-state hidden Markov model on the confidence, with
    hysteresis.

    Args:
        config: slope, presence_seconds, on_rate, off_rate, on, off.
    """

    def __init__(self, config: TrackingConfig):
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Nothing heard so far."""
        config = self._config
        self.probability = config.on_rate / (config.on_rate + config.off_rate) * 0.2
        self.is_on = False

    def trust(self, confidence: float, threshold: float) -> float:
        """Probability that the sound is in one window, by its confidence alone."""
        return 1 / (1 + math.exp(-self._config.slope * (confidence - threshold)))

    def update(self, seconds: float, confidence: float, threshold: float) -> bool:
        """Take in a window's confidence; tells whether the sound is taken to be there."""
        config = self._config
        total = config.on_rate + config.off_rate
        stay, rest = math.exp(-total * seconds), config.on_rate / total
        prior = rest + (self.probability - rest) * stay
        evidence = config.slope * (confidence - threshold) * min(
            1.0, seconds / config.presence_seconds)
        odds = math.log(prior / (1 - prior)) + evidence
        self.probability = 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))
        limit = config.off if self.is_on else config.on
        self.is_on = self.probability >= limit
        return self.is_on


class Tracker:
    """Follows one sound. Deterministic; no thread may use it while another one does.

    Args:
        config: what is taken for granted.
        numbers: gives the next track's number; trackers that share one never use a number twice.
            None: 1, 2, ...
    """

    def __init__(self, config: TrackingConfig | None = None, numbers=None):
        self.config = config or TrackingConfig()
        self._numbers = numbers
        self._last_id = 0
        self._presence = Presence(self.config)
        self._bearing = BearingFilter(self.config.bearing)
        self._position = PositionFilter(self.config.position)
        self.reset()

    def reset(self) -> None:
        """Forget the sound; the next track gets a new number."""
        self._stamp: float | None = None
        self._heard: float | None = None  # when the sound was last there
        self._begun = 0.0
        self._id: int | None = None
        self._motion: HeadMotion | None = None
        self._presence.reset()
        self._forget()

    def adapt(self, lag: float, memory: float, max_std: float) -> None:
        """Change `lag` and `memory` (`TrackingConfig`) and the position's `max_std`, metres,
        without forgetting anything."""
        now = (self.config.lag, self.config.memory, self._position.config.max_std)
        if (lag, memory, max_std) != now:
            self._position.config = replace(self._position.config, max_std=max_std)
            self.config = replace(self.config, lag=lag, memory=memory,
                                  position=self._position.config)

    def _forget(self) -> None:
        self._id = None
        self._bearing.reset()
        self._position.reset()

    def update(self, stamp_s: float, likelihood: np.ndarray, confidence: float,
               pose: HeadMotion | Pose | None = None, threshold: float = 0.5) -> TrackState:
        """Take in what one hop says.

        Args:
            stamp_s: the time that the direction is told for, seconds; `lag` after the middle of
                the window. After a step back, or of over a minute, all starts anew.
            likelihood: (360,), at least 0, bin i at i degrees counter-clockwise from the front of
                the head; any scale. All 0: nothing is said.
            confidence: that the sound is in the window, 0 to 1.
            pose: of the head, or None where that isn't known; it is then taken to stand still.
            threshold: confidence at which presence and absence are equally probable.

        Returns:
            what is known now.

        Raises:
            ConfigError: a likelihood of another shape, or values that are not finite.
        """
        likelihood = np.asarray(likelihood, np.float64)
        if likelihood.shape != (AZIMUTH_BINS,) or not (likelihood >= 0).all() or not (
                math.isfinite(stamp_s) and math.isfinite(confidence)
                and np.isfinite(likelihood).all()):
            raise ConfigError("expected a likelihood of shape (360,), at least 0, and finite "
                              "numbers")
        motion = HeadMotion.still(pose) if isinstance(pose, Pose) else pose
        if self._stamp is not None and not 0 <= stamp_s - self._stamp <= 60.0:
            self.reset()
        hop = self.config.window / 4  # of the first one nothing is known
        seconds = hop if self._stamp is None else stamp_s - self._stamp
        self._stamp = stamp_s
        self._follow(seconds, motion)

        confidence = min(max(confidence, 0.0), 1.0)
        is_on = self._presence.update(seconds, confidence, threshold)
        if is_on:
            self._heard = stamp_s
        elif self._id is None:
            if self._presence.probability < self.config.off:
                self._forget()  # what chance brought about
        elif stamp_s - self._heard > self.config.memory:
            self._forget()
        self._measure(seconds, likelihood,
                      self._presence.trust(confidence, threshold) * min(
                          1.0, seconds / self.config.window))
        if not is_on:
            return TrackState(stamp_s, self._presence.probability)
        if self._id is None:
            self._last_id = self._last_id + 1 if self._numbers is None else next(self._numbers)
            self._id, self._begun = self._last_id, stamp_s
        return self._tell(stamp_s)

    def _follow(self, seconds: float, motion: HeadMotion | None) -> None:
        """Let time pass for the direction, with what the head did meanwhile."""
        last, self._motion = self._motion, motion if motion is not None else self._motion
        if motion is None or last is None or motion.epoch != last.epoch:
            if motion is not None:  # a new frame: go on with the direction as seen from the head
                self._bearing.rotate(motion.heard.yaw - (last.heard.yaw if last else 0.0))
                self._position.reset()
            self._bearing.predict(seconds)
            return
        old, new = last.heard, motion.heard
        (moved, turned), place = motion.since(last), self._position.position
        shift, std = 0.0, None
        if place is not None and moved > 0:
            before, after = place.bearing_from(old), place.bearing_from(new)
            shift = math.remainder(after[0] - before[0], 360.0)
            # Wrong by as much, in part, as the distance isn't known.
            std = min(abs(shift) * after[1] / 20.0 + 1.0, self.config.bearing.move_std * moved)
        self._bearing.predict(seconds, moved, turned, shift, std)

    def _measure(self, seconds: float, likelihood: np.ndarray, exponent: float) -> None:
        motion = self._motion
        taken = self._bearing.measure(
            likelihood, exponent, motion.heard.yaw if motion else 0.0,
            motion.turn_std if motion else 0.0)
        # in silence, with nothing to remember, there is nothing to do
        if motion is not None and (
                self._id is not None or self._presence.probability >= self.config.off):
            self._position.update(seconds, taken, self._bearing.flipped, motion.heard)

    def _tell(self, stamp_s: float) -> TrackState:
        yaw = self._motion.now.yaw if self._motion else 0.0
        belief = self._bearing.belief(yaw, self.config.lag)
        hypotheses = find_hypotheses(belief)
        return TrackState(
            stamp_s, self._presence.probability, self._id, stamp_s - self._begun,
            hypotheses[0].azimuth, float(circular_std(belief)), hypotheses,
            belief.astype(np.float32), self._position.position)
