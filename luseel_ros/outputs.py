"""What the node publishes: events, extracted audio, poses, markers, and where it is mounted."""

from __future__ import annotations

import math
import threading
from typing import Any, Callable, Mapping

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped, TransformStamped
from luseel.msg import SoundEvent, SoundEventArray
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from luseel_model.query import Capabilities
from luseel_model.streaming import StreamResult
from luseel_model.tracking import TrackState

from . import conversions, parameters
from .audio_io import AudioBlock, AudioWriter
from .queries import ActiveQuery

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # not among the wheels; every ROS distribution has it
    TFMessage = None

MARKER_HOPS = 6  # hops until RViz drops a marker that is no longer renewed


class Outputs:
    """The publishers of the node's results.

    `publish` runs in the thread of the model, all else in that of the callbacks; both may come at
    any time.

    Args:
        node: whose topics these are.
        values: its parameters.
        refused: called with a text when a subscriber's quality of service doesn't fit.
        gives: what the model gives: without sound there is no topic of extracted audio, without
            direction none of poses, positions and markers.
    """

    def __init__(self, node, values: Mapping[str, Any], refused: Callable[[str], None],
                 gives: Capabilities):
        self._node, self._gives = node, gives
        self._kind = values["extracted_type"]
        self._qos = parameters.output_qos(values)
        self._refused = refused
        self._lock = threading.Lock()
        self._events = self._publisher(SoundEventArray, "~/events")
        self._markers = self._pose = self._extracted = None
        if gives.direction:
            self._markers = self._publisher(MarkerArray, "~/markers")
            self._pose = self._publisher(PoseStamped, "~/pose")
        # With the query's id in the message one topic does for all; without, each has its own.
        if gives.sound and self._kind == "luseel":
            self._extracted = AudioWriter(node, self._kind, "~/extracted", self._qos)
        self._poses: dict[str, Any] = {}
        self._positions: dict[str, Any] = {}
        self._writers: dict[str, AudioWriter] = {}
        self._shown: dict[str, str] = {}  # frame of the markers in RViz, by query

    def _publisher(self, kind, topic: str):
        def unfit(event):
            self._refused(
                f"a subscriber of {publisher.topic_name} asks for a quality of service that this "
                f"publisher doesn't offer ({event.last_policy_kind.name}): it gets nothing. Let it "
                "ask for less, or set output_reliability to reliable")

        publisher = self._node.create_publisher(
            kind, topic, self._qos,
            event_callbacks=PublisherEventCallbacks(incompatible_qos=unfit))
        return publisher

    def set_queries(self, queries: Mapping[str, ActiveQuery]) -> None:
        """Make and take away the topics that belong to one query each."""
        with self._lock:
            for query_id in [*self._poses]:
                if query_id not in queries:
                    self._node.destroy_publisher(self._poses.pop(query_id))
                    self._node.destroy_publisher(self._positions.pop(query_id))
            for query_id in [*self._writers]:
                if query_id not in queries:
                    self._writers.pop(query_id).destroy()
            for query_id in queries:
                if self._gives.direction and query_id not in self._poses:
                    self._poses[query_id] = self._publisher(PoseStamped, f"~/poses/{query_id}")
                    self._positions[query_id] = self._publisher(
                        PoseWithCovarianceStamped, f"~/positions/{query_id}")
                if self._gives.sound and self._extracted is None and (
                        query_id not in self._writers):
                    self._writers[query_id] = AudioWriter(
                        self._node, self._kind, f"~/extracted/{query_id}", self._qos)

    def publish(self, result: StreamResult, queries: Mapping[str, ActiveQuery], hop: float,
                header_of: Callable[[int], Header | None], threshold: float,
                tracks: Mapping[str, TrackState] | None = None, odom_frame: str = "") -> None:
        """All that one hop says.

        Args:
            queries: the present ones; estimates of others, or of other words, are left out.
            hop: seconds, for the lifetime of the markers.
            header_of: capture time and frame of a sample of the stream; None: not known any more.
            threshold: of the queries without their own.
            tracks: what the trackers know, by the id of the query.
            odom_frame: of their positions.
        """
        header = header_of(result.hop_start)
        if header is None:
            return
        with self._lock:
            # Nothing is made that nobody gets; the markers are the costliest of all.
            watched, directions = _heard(self._markers), _heard(self._pose)
            wanted = watched or directions or _heard(self._events, *self._poses.values())
            events, markers, best = [], [], None
            for estimate in result.estimates:
                query = queries.get(estimate.key)
                if query is None or query.words != estimate.query:
                    continue  # replaced while the model ran
                self._publish_audio(result.sample_rate, estimate, header_of)
                track = (tracks or {}).get(query.id)
                position = track.position if track is not None else None
                if position is not None:
                    there = Header(stamp=header.stamp, frame_id=odom_frame)
                    if query.id in self._positions and _heard(self._positions[query.id]):
                        self._positions[query.id].publish(
                            conversions.position_pose(position, there))
                    if watched:
                        markers.append(conversions.position_marker(
                            query.id, position, there, query.index))
                if not wanted:
                    continue
                event = conversions.sound_event(
                    query.id, query.words, estimate.azimuth, estimate.likelihood,
                    estimate.confidence, query.threshold or threshold, result.processing_time,
                    track)
                events.append(event)
                if watched:
                    markers += conversions.event_markers(event, header, query.index)
                if event.active or event.track_id:
                    own = self._poses.get(query.id)
                    if own is not None and _heard(own):
                        _publish_pose(own, event, header)
                    if math.isfinite(conversions.best_azimuth(event)) and (
                            best is None or event.confidence > best.confidence):
                        best = event
            if best is not None and directions:
                _publish_pose(self._pose, best, header)
            if wanted:
                self._events.publish(SoundEventArray(header=header, events=events))
            if watched or self._shown:
                self._publish_markers(events if watched else [], markers, header, hop)

    def _publish_audio(self, sample_rate: int, estimate, header_of) -> None:
        if not estimate.audio.shape[1]:
            return
        writer = self._extracted or self._writers.get(estimate.key)
        if writer is None or not writer.listened_to:
            return
        header = header_of(estimate.first_sample)
        if header is not None:
            writer.publish(AudioBlock(
                estimate.audio.T, sample_rate, conversions.time_to_ns(header.stamp),
                header.frame_id, estimate.first_sample % 2**64, estimate.key))

    def _publish_markers(self, events: list[SoundEvent], markers: list, header: Header,
                         hop: float) -> None:
        lifetime = conversions.seconds_to_duration(MARKER_HOPS * hop)
        for marker in markers:
            marker.lifetime = lifetime
        current = {event.query_id: header.frame_id for event in events}
        for query_id in sorted(self._shown.keys() - current.keys()):
            markers += conversions.delete_markers(query_id, header)
        self._shown = current
        if markers:
            self._markers.publish(MarkerArray(markers=markers))

    def clear_markers(self) -> None:
        """Take all markers out of RViz."""
        with self._lock:
            shown, self._shown = self._shown, {}
            if shown:
                self._markers.publish(MarkerArray(markers=[
                    marker for query_id, frame in sorted(shown.items())
                    for marker in conversions.delete_markers(query_id, Header(frame_id=frame))]))

    def destroy(self) -> None:
        """Take the topics off the graph."""
        with self._lock:
            for publisher in (self._events, self._markers, self._pose, *self._poses.values(),
                              *self._positions.values()):
                if publisher is not None:
                    self._node.destroy_publisher(publisher)
            for writer in (self._extracted, *self._writers.values()):
                if writer is not None:
                    writer.destroy()
            self._poses, self._positions, self._writers = {}, {}, {}


def _heard(*publishers) -> bool:
    """Whether anybody subscribes one of them."""
    return any(publisher is not None and publisher.get_subscription_count()
               for publisher in publishers)


def _publish_pose(publisher, event: SoundEvent, header: Header) -> None:
    pose = conversions.direction_pose(event, header)
    if pose is not None:
        publisher.publish(pose)


class Mount:
    """The pose of the microphones on the robot, as a static transform.

    Published latched on /tf_static, as tf2_ros does, whenever it changes.
    """

    def __init__(self, node, warn: Callable[[str], None]):
        self._node, self._warn = node, warn
        self._publisher = None
        self._sent = None

    def update(self, values: Mapping[str, Any], frame: str) -> None:
        """Publish what the parameters say, if it is new.

        Args:
            frame: of the microphones; empty: not known yet.
        """
        parent = values["mount.parent_frame"]
        if not parent or not frame:
            return
        pose = tuple(values[f"mount.{name}"] for name in ("x", "y", "z", "roll", "pitch", "yaw"))
        if (parent, frame, pose) == self._sent:
            return
        self._sent = (parent, frame, pose)
        if parent == frame:
            self._warn(f"mount.parent_frame is the microphones' own frame '{frame}': no transform "
                       "is published")
            return
        if TFMessage is None:
            self._warn("mount.parent_frame is set, but there is no tf2_msgs: install the package "
                       "of that name, or publish the transform yourself")
            return
        if self._publisher is None:
            self._publisher = self._node.create_publisher(
                TFMessage, "/tf_static",
                QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        transform = TransformStamped(child_frame_id=frame)
        transform.header = Header(
            stamp=self._node.get_clock().now().to_msg(), frame_id=parent)
        translation, rotation = transform.transform.translation, transform.transform.rotation
        translation.x, translation.y, translation.z = pose[:3]
        rotation.x, rotation.y, rotation.z, rotation.w = conversions.quaternion(*pose[3:])
        self._publisher.publish(TFMessage(transforms=[transform]))

    def destroy(self) -> None:
        """Withdraw it (a transform that was heard stays known to the hearers)."""
        if self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
        self._publisher = self._sent = None
