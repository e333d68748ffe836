"""Between ROS messages and arrays: samples, stamps, directions, markers. No signal processing.

Angles: luseel_model speaks degrees in [0, 360), counter-clockwise, 0 front, 90 left; messages speak
radians in (-pi, pi], REP-103: same zero, same sense. This module is the only place where one
becomes the other.
"""

from __future__ import annotations

import array
import colorsys
import math

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, PoseStamped, PoseWithCovarianceStamped, Vector3
from luseel.msg import AudioChunk, DirectionHypothesis, SoundEvent
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker

from luseel_model.angles import circular_std, to_rep103
from luseel_model.errors import AudioError
from luseel_model.streaming import MAX_RATE, MIN_RATE
from luseel_model.tracking import Position, TrackState

from .timeline import NANOSECONDS, samples_to_ns  # noqa: F401  (for those who convert)

RING_RADIUS = 0.5  # [m] of the likelihood ring where the likelihood is 0 ...
RING_HEIGHT = 0.5  # [m] ... and how much further out it is where the likelihood is 1
ARROW_LENGTH = 1.0  # [m]; says nothing about the range, which is unknown
ELLIPSE = math.sqrt(5.991)  # standard deviations that hold 95% in the plane (chi-square)


def chunk_to_array(chunk: AudioChunk) -> np.ndarray:
    """Samples of a raw binaural chunk, float32 (2, n) [left, right]; a view, not to be written.

    Raises:
        AudioError: not two channels, a length that doesn't fit them, no samples, or an impossible
            rate. Values that are not finite are left to the stream, which counts them.
    """
    if chunk.channels != 2:
        raise AudioError(f"{chunk.channels} channel(s): binaural audio has two, [left, right]")
    if not MIN_RATE <= chunk.sample_rate <= MAX_RATE:
        raise AudioError(f"sample rate {chunk.sample_rate} Hz: expected {MIN_RATE} to {MAX_RATE}")
    if len(chunk.samples) % 2:
        raise AudioError(f"{len(chunk.samples)} interleaved samples don't divide into 2 channels")
    if not chunk.samples:
        raise AudioError("a chunk without samples")
    return np.frombuffer(chunk.samples, np.float32).reshape(-1, 2).T


def check_block(block, channels: int = 2) -> None:
    """Whether an `AudioBlock` is raw audio of so many channels that a stream can take.

    Raises:
        AudioError: it isn't, and why. Values that are not finite are left to the stream, which
            counts them.
    """
    if block.query_id:
        raise AudioError("it is an extraction (query_id is set), not raw audio; is the topic "
                         "'audio' remapped to an output?")
    if block.samples.ndim != 2 or block.samples.shape[1] != channels:
        there = block.samples.shape[1] if block.samples.ndim == 2 else 1
        raise AudioError(f"{there} channel(s): {expected_channels(channels)}")
    if not MIN_RATE <= block.sample_rate <= MAX_RATE:
        raise AudioError(f"sample rate {block.sample_rate} Hz: expected {MIN_RATE} to {MAX_RATE}")
    if not len(block.samples):
        raise AudioError("a message without samples")


def expected_channels(channels: int) -> str:
    """What to say of audio that has another number of them."""
    if channels == 2:
        return "binaural audio has two, [left, right]"
    return f"{channels} are expected, one from each microphone of the model's array"


def array_to_chunk(audio: np.ndarray, sample_rate: int, first_sample: int, header: Header,
                   query_id: str = "") -> AudioChunk:
    """An AudioChunk of float audio (channels, n) in [-1, 1]; `header` is used as it is."""
    interleaved = np.ascontiguousarray(np.asarray(audio, np.float32).T)
    # array.array is what the generated class takes without a check of each element.
    return AudioChunk(
        header=header, first_sample=int(first_sample), sample_rate=int(sample_rate),
        channels=audio.shape[0], samples=array.array("f", interleaved.tobytes()),
        query_id=query_id)


def time_to_ns(stamp: Time) -> int:
    """Nanoseconds since the epoch of the stamp's clock."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def ns_to_time(nanoseconds: int) -> Time:
    """The stamp of so many nanoseconds since the epoch, clamped to what a Time can hold."""
    nanoseconds = min(max(int(nanoseconds), 0), (2**31 - 1) * NANOSECONDS + NANOSECONDS - 1)
    sec, nanosec = divmod(nanoseconds, NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def add_samples(stamp: Time, samples: int, sample_rate: int) -> Time:
    """The stamp `samples` (of either sign) later, exact to the nanosecond (rounded once)."""
    return ns_to_time(time_to_ns(stamp) + samples_to_ns(samples, sample_rate))


def seconds_to_duration(seconds: float) -> Duration:
    """A Duration of that length, to the nanosecond."""
    sec, nanosec = divmod(round(seconds * NANOSECONDS), NANOSECONDS)
    return Duration(sec=sec, nanosec=nanosec)


def duration_to_ns(duration: Duration) -> int:
    """Nanoseconds of a Duration, of either sign."""
    return duration.sec * NANOSECONDS + duration.nanosec


def quaternion(roll: float, pitch: float, yaw: float) -> tuple[float, float, float, float]:
    """x, y, z, w of a rotation about the fixed axes x, y, z in this order (REP-103), in radians."""
    x, y, z, w = 0.0, 0.0, 0.0, 1.0
    for axis, angle in enumerate((roll, pitch, yaw)):
        turn = [0.0, 0.0, 0.0]
        turn[axis], c = math.sin(angle / 2), math.cos(angle / 2)
        a, b, d = turn  # the later rotation stands on the left of the product
        x, y, z, w = (c * x + a * w + b * z - d * y, c * y + b * w + d * x - a * z,
                      c * z + d * w + a * y - b * x, c * w - a * x - b * y - d * z)
    return x, y, z, w


def direction_pose(event: SoundEvent, header: Header) -> PoseStamped | None:
    """The direction of an event as a pose: at the microphones, x pointing to the sound.

    The tracked direction, or without a track that of the window. The position is always 0: a
    direction has no range. None without a direction (NaN).
    """
    azimuth = best_azimuth(event)
    if not math.isfinite(azimuth):
        return None
    pose = PoseStamped(header=header)
    out = pose.pose.orientation
    out.x, out.y, out.z, out.w = quaternion(0.0, 0.0, azimuth)
    return pose


def best_azimuth(event: SoundEvent) -> float:
    """The tracked azimuth of an event, or without a track that of the window, in radians."""
    return float(event.track_azimuth if event.track_id else event.azimuth)


def position_pose(position: Position, header: Header) -> PoseWithCovarianceStamped:
    """A position in the frame of the odometry, which `header` names.

    z and the orientation aren't known: their variances are -1, their values 0 (w 1).
    """
    message = PoseWithCovarianceStamped(header=header)
    where = message.pose.pose.position
    where.x, where.y = float(position.x), float(position.y)
    message.pose.pose.orientation.w = 1.0
    covariance = np.diag([0.0, 0.0, -1.0, -1.0, -1.0, -1.0])
    covariance[:2, :2] = position.covariance
    message.pose.covariance = covariance.ravel()
    return message


def unit_vector(azimuth: float) -> Vector3:
    """The horizontal unit vector to an azimuth in degrees: x forward, y left, z 0.

    Without a direction (NaN, from a model without localization): the null vector.
    """
    if not math.isfinite(azimuth):
        return Vector3()
    yaw = math.radians(float(azimuth))
    return Vector3(x=math.cos(yaw), y=math.sin(yaw), z=0.0)


def sound_event(query_id: str, query_text: str, azimuth: float, likelihood: np.ndarray,
                confidence: float, threshold: float, processing_time: float,
                track: TrackState | None = None) -> SoundEvent:
    """A SoundEvent from what the model says.

    Args:
        azimuth: degrees in [0, 360), counter-clockwise, 90 left; NaN, which the message passes
            on, from a model without localization.
        likelihood: (360,), bin i at i degrees.
        confidence, threshold: in [0, 1]; active from the threshold on.
        processing_time: seconds.
        track: what the query's tracker knows; None: it has none.
    """
    event = SoundEvent(
        query_id=query_id, query_text=query_text,
        active=bool(confidence >= threshold), confidence=float(np.clip(confidence, 0, 1)),
        azimuth=float(to_rep103(float(azimuth))),
        azimuth_stddev=(math.radians(float(circular_std(likelihood)))
                        if math.isfinite(azimuth) else math.nan),
        direction=unit_vector(azimuth),
        likelihood=np.clip(likelihood, 0, 1).astype(np.float32),
        processing_time=seconds_to_duration(processing_time),
        presence=float(np.clip(confidence, 0, 1)) if track is None else track.presence,
        track_azimuth=math.nan, track_azimuth_stddev=math.nan)
    if track is not None and track.id is not None:
        event.track_id = track.id
        event.track_age = seconds_to_duration(track.age_s)
        event.track_azimuth = float(to_rep103(track.azimuth))
        event.track_azimuth_stddev = math.radians(track.azimuth_std)
        event.hypotheses = [DirectionHypothesis(
            azimuth=float(to_rep103(hypothesis.azimuth)),
            azimuth_stddev=math.radians(hypothesis.std), weight=hypothesis.weight)
            for hypothesis in track.hypotheses]
    return event


def query_color(index: int) -> tuple[float, float, float]:
    """Red, green, blue in [0, 1] of the index-th query: hues that stay far apart."""
    return colorsys.hsv_to_rgb((0.58 + index * 0.618034) % 1.0, 0.75, 1.0)


def event_markers(event: SoundEvent, header: Header, index: int = 0) -> list[Marker]:
    """What RViz shows of one event, in the plane of the microphones.

    A ring (LINE_STRIP) that bulges where the likelihood is high, an ARROW to the tracked direction
    (without a track to that of the window) and a TEXT. Namespace: the query_id; ids 0, 1, 2. The
    arrow and the text fade with the presence. Lengths mean nothing: the range is unknown.
    """
    red, green, blue = query_color(index)

    def marker(number: int, kind: int, alpha: float) -> Marker:
        out = Marker(header=header, ns=event.query_id, id=number, type=kind, action=Marker.ADD)
        out.pose.orientation.w = 1.0
        out.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
        return out

    sure, azimuth = event.presence if event.track_id else event.confidence, best_azimuth(event)
    way, fade = unit_vector(math.degrees(azimuth)), 0.1 + 0.9 * sure
    ring = marker(0, Marker.LINE_STRIP, 0.8)
    ring.scale.x = 0.02
    likelihood = np.asarray(event.likelihood, np.float64)
    radius = RING_RADIUS + RING_HEIGHT * likelihood
    yaw = np.deg2rad(np.arange(len(radius)))
    points = np.stack([radius * np.cos(yaw), radius * np.sin(yaw)], 1).tolist()
    ring.points = [Point(x=x, y=y, z=0.0) for x, y in points + points[:1]]

    arrow = marker(1, Marker.ARROW, fade)
    arrow.scale.x, arrow.scale.y, arrow.scale.z = 0.04, 0.1, 0.15  # shaft, head, head length
    tip = Point(x=ARROW_LENGTH * way.x, y=ARROW_LENGTH * way.y, z=0.0)
    arrow.points = [Point(), tip]

    text = marker(2, Marker.TEXT_VIEW_FACING, fade)
    text.scale.z = 0.12
    text.pose.position = Point(x=1.15 * tip.x, y=1.15 * tip.y, z=0.15)
    angle = f"{math.degrees(azimuth):+.0f}°  " if math.isfinite(azimuth) else ""
    text.text = f"{event.query_text}\n{angle}{100 * sure:.0f}%"
    return [ring, arrow, text] if angle else [text]


def position_marker(query_id: str, position: Position, header: Header, index: int = 0) -> Marker:
    """The ellipse that holds a position with 95% probability, a flat CYLINDER on the floor.

    Namespace: <query_id>/position; id 0.
    """
    variances, axes = np.linalg.eigh(position.covariance)
    marker = Marker(header=header, ns=f"{query_id}/position", type=Marker.CYLINDER,
                    action=Marker.ADD)
    marker.pose.position.x, marker.pose.position.y = float(position.x), float(position.y)
    out = marker.pose.orientation
    out.x, out.y, out.z, out.w = quaternion(0.0, 0.0, math.atan2(axes[1, 1], axes[0, 1]))
    marker.scale.x, marker.scale.y = (
        2 * ELLIPSE * math.sqrt(max(float(v), 0.0)) for v in variances[::-1])
    marker.scale.z = 0.02
    red, green, blue = query_color(index)
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=0.4)
    return marker


def delete_markers(query_id: str, header: Header) -> list[Marker]:
    """Takes the markers of a query out of RViz again."""
    return [Marker(header=header, ns=query_id, id=number, action=Marker.DELETE)
            for number in range(3)]
