"""Where the sound is, by other means than the node: the two that the navigator is compared with.

Both end in the same tracker as the node (:mod:`luseel_model.tracking`), so that only what they hear
differs. :class:`Loudest` follows the loudest direction: GCC-PHAT of the last two seconds, mapped
to azimuths by the delays that GCC-PHAT finds in the responses of the robot's own head. Front and
back sound the same to it: its likelihood has both, and turning tells them apart.
:class:`TrueDirection` is told the direction of the target while that sounds. No ROS in here.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage
import scipy.signal
import torch
from base import Pose

from luseel_model import tracking
from luseel_model.angles import wrap_degrees
from luseel_model.features import gcc_phat
from luseel_model.heads import Head
from training import SAMPLE_RATE

WINDOW = 2.0  # [s], as the model's
EVENT_HOP = 0.5  # [s] between two estimates, as the node's
_AZIMUTHS = np.arange(360)


def odometry_pose(pose: Pose) -> tracking.Pose:
    """For the tracker, which has degrees."""
    return tracking.Pose(pose.x, pose.y, math.degrees(pose.yaw))


class Loudest:
    """Likelihood of each direction to be the loudest one.

    Args:
        head: of the robot.
    """

    _LAGS, _FINE, _FRAME = 40, 8, SAMPLE_RATE // 20

    def __init__(self, head: Head):
        # What GCC-PHAT itself finds in the head's responses, from each direction.
        silence = self._FRAME - head.taps // 2
        sound = torch.nn.functional.pad(head.hrir, (silence, silence))
        found = self._fine(gcc_phat(sound, self._FRAME, self._LAGS)[:, 1])
        delay = (found.argmax(1) / self._FINE - self._LAGS // 2)
        delay = scipy.ndimage.median_filter(delay, 9, mode="wrap")  # single high peaks aside
        # Front and back sound the same to it.
        self.delay = 0.5 * (delay + delay[(180 - _AZIMUTHS) % 360])
        self._audio = np.zeros((2, round(WINDOW * SAMPLE_RATE)), np.float32)

    def _fine(self, correlation: torch.Tensor) -> np.ndarray:
        """(n, lags) on a finer grid of lags, (n, lags * 8)."""
        return scipy.signal.resample(correlation.numpy(), self._LAGS * self._FINE, axis=1)

    def push(self, audio: np.ndarray) -> None:
        """Take in more ear signals, (2, samples)."""
        self._audio = np.concatenate([self._audio, audio], 1)[:, -self._audio.shape[1]:]

    def estimate(self) -> tuple[np.ndarray, float]:
        """Likelihood (360,) of the window, 1 at its peak, and confidence: is there any sound?"""
        correlation = gcc_phat(torch.from_numpy(self._audio)[None], self._FRAME, self._LAGS)[0]
        # Frames count by their energy: it is to be the loudest sound.
        frame, samples = self._FRAME, np.pad(self._audio, ((0, 0), (self._FRAME, self._FRAME)))
        energy = torch.tensor([float(np.square(samples[:, k * frame:(k + 2) * frame]).sum())
                               for k in range(len(correlation))])
        weight = energy / energy.sum().clamp(min=1e-12)
        mean = self._fine((weight[:, None] * correlation).sum(0, keepdim=True))[0].clip(min=0)
        lags = np.arange(len(mean)) / self._FINE - self._LAGS // 2
        likelihood = np.interp(self.delay, lags, mean) ** 2
        level = math.sqrt(float(np.square(self._audio).mean()))
        return likelihood / max(float(likelihood.max()), 1e-12), float(level > 1e-3)


class TrueDirection:
    """The truth, 3° wide.

    Args:
        world: knows where the target is.
    """

    _STD = 3.0

    def __init__(self, world):
        self._world = world

    def estimate(self, time: float) -> tuple[np.ndarray, float]:
        """Likelihood (360,) for that time, and 1 if the target sounded within the last window."""
        truth = self._world.true_azimuth(time)
        off = wrap_degrees(_AZIMUTHS - truth + 180.0) - 180.0
        moments = np.arange(max(0.0, time - WINDOW), time + EVENT_HOP, 0.1)
        there = any(self._world.home.target.sounds(t) for t in moments)
        return np.exp(-0.5 * (off / self._STD) ** 2), float(there)


class Follower:
    """A source of estimates and its tracker, one hop at a time.

    Args:
        source: a :class:`Loudest` or :class:`TrueDirection`.
    """

    def __init__(self, source):
        self.source = source
        self.tracker = tracking.Tracker()
        self._odometry = tracking.Odometry()

    def odometry(self, time: float, pose: Pose) -> None:
        """The newest pose."""
        self._odometry.add(time, odometry_pose(pose))

    def update(self, end: float) -> tuple[tracking.TrackState, np.ndarray, float]:
        """The hop that ends at that time: what is known, likelihood and confidence of the hop.

        As the node does, it tells of the time at which the hop began.
        """
        time = end - EVENT_HOP
        if isinstance(self.source, Loudest):
            likelihood, confidence = self.source.estimate()
            motion = self._odometry.over(max(end - WINDOW, 0.0), end, time)
        else:
            likelihood, confidence = self.source.estimate(time)
            pose = self._odometry.at(time)
            motion = tracking.HeadMotion.still(pose) if pose else None
        state = self.tracker.update(time, likelihood, confidence, motion)
        return state, likelihood, confidence
