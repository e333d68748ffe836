"""The trackers of the node's queries, and the odometry that they go by. What they do is in
luseel_model.tracking; here messages become poses, and each query gets its tracker."""

from __future__ import annotations

import itertools
import math
import threading
from typing import Any, Callable, Mapping

from rclpy.qos import QoSProfile, ReliabilityPolicy

from luseel_model.streaming import StreamResult
from luseel_model.tracking import HeadMotion, Odometry, Pose, Tracker, TrackingConfig, TrackState

from . import conversions
from .queries import ActiveQuery

try:
    from nav_msgs.msg import Odometry as OdometryMessage
except ImportError:  # without it directions are tracked as if the head stood still
    OdometryMessage = None

# Best effort, so that any publisher fits; enough for the messages that wait while a hop of audio
# is taken.
ODOMETRY_QOS = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
ODOMETRY_SECONDS = 30.0  # of poses that are kept: audio may wait for the model


class Tracks:
    """A tracker for each query.

    `update` runs in the thread of the model, odometry comes in that of the callbacks.

    Args:
        node: whose subscription `odom` is.
        warn: called with a text when the odometry can't be used.
    """

    def __init__(self, node, warn: Callable[[str], None]):
        self._node, self._warn = node, warn
        self._numbers = itertools.count(1)  # of all tracks of this node
        self._lock = threading.Lock()  # guards the odometry and what is said of it
        self._odometry = Odometry(ODOMETRY_SECONDS)
        self._frames = ("", "")
        self._mount = ("", 0.0, 0.0, 0.0)
        self._trackers: dict[str, tuple[str, Tracker]] = {}
        self._subscription = None

    @property
    def frame(self) -> str:
        """Frame of the positions: that of the odometry; empty: none came yet."""
        return self._frames[0]

    def listen(self, callback_group=None) -> None:
        """Begin without any track, and take odometry in the thread of this callback group."""
        self._trackers = {}
        if OdometryMessage is None:
            self._node.get_logger().info(
                "there is no nav_msgs: directions are tracked without odometry, and there are no "
                "positions. Install the package of that name")
            return
        self._subscription = self._node.create_subscription(
            OdometryMessage, "odom", self._on_odometry, ODOMETRY_QOS,
            callback_group=callback_group)

    def unlisten(self) -> None:
        """Take no more odometry, and forget it."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        with self._lock:
            self._odometry = Odometry(ODOMETRY_SECONDS)
            self._frames = ("", "")

    def mounted(self, values: Mapping[str, Any]) -> None:
        """Where the microphones are, from the node's parameters."""
        with self._lock:
            self._mount = (values["mount.parent_frame"], values["mount.x"], values["mount.y"],
                           math.degrees(values["mount.yaw"]))

    def _on_odometry(self, message) -> None:
        where, turn = message.pose.pose.position, message.pose.pose.orientation
        yaw = math.degrees(math.atan2(2 * (turn.w * turn.z + turn.x * turn.y),
                                      1 - 2 * (turn.y * turn.y + turn.z * turn.z)))
        pose, frames = Pose(where.x, where.y, yaw), (message.header.frame_id,
                                                     message.child_frame_id)
        stamp = conversions.time_to_ns(message.header.stamp) / conversions.NANOSECONDS
        with self._lock:
            parent, *place = self._mount
            if frames != self._frames:
                if self._frames != ("", ""):
                    self._odometry.clear()
                self._frames = frames
            if parent and (parent == frames[1] or not frames[1]):
                pose = pose.mounted(*place)
            self._odometry.add(stamp, pose)
        if parent and frames[1] and parent != frames[1]:
            self._warn(f"the odometry is that of {frames[1]}, the microphones are mounted on "
                       f"{parent} (mount.parent_frame): they are taken to be at {frames[1]}")

    def update(self, result: StreamResult, queries: Mapping[str, ActiveQuery], stamp_ns: int,
               window: float, hop: float, values: Mapping[str, Any]) -> dict[str, TrackState]:
        """Take in what a hop says.

        Args:
            queries: the present ones.
            stamp_ns: capture time of the first sample of the hop, for which directions are told.
            window, hop: seconds.
            values: the node's parameters.

        Returns:
            state by the id of the query; none for a model without localization.
        """
        stamp, states = stamp_ns / conversions.NANOSECONDS, {}
        motion = self._motion(stamp + hop - window, stamp + hop, stamp)
        kept = {}
        for estimate in result.estimates:
            query = queries.get(estimate.key)
            if query is None or query.words != estimate.query or not math.isfinite(
                    estimate.azimuth):
                continue
            words, tracker = self._trackers.get(query.id, ("", None))
            if tracker is None or words != query.words:
                tracker = Tracker(TrackingConfig(window=window), self._numbers)
            kept[query.id] = query.words, tracker
            # a window tells of its middle, the hop begins later
            tracker.adapt(lag=window / 2 - hop, memory=values["track_memory"],
                          max_std=values["position_stddev"])
            states[query.id] = tracker.update(
                stamp, estimate.likelihood, estimate.confidence, motion,
                query.threshold or values["confidence_threshold"])
        self._trackers = kept
        return states

    def _motion(self, start: float, end: float, now: float) -> HeadMotion | None:
        with self._lock:
            if not len(self._odometry):
                return None
            motion = self._odometry.over(start, end, now)
            if motion is None and self._odometry.span[0] < start:
                self._warn(
                    f"the odometry ends {end - self._odometry.span[1]:.1f} s before the audio: "
                    "directions are tracked as if the head stood still. Do its stamps and those of "
                    "the audio come from one clock?")
            return motion
