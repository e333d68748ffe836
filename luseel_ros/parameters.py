"""The parameters of the node: what they mean, what they may be, and when a change takes effect."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Mapping

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from luseel_model.errors import QueryError
from luseel_model.streaming import PRECISIONS, PROFILES, ExtractionStream

from .audio_io import KINDS
from .ids import validate_id

RELIABILITIES = ("best_effort", "reliable")
# When a change takes effect: said in the descriptor, and checked.
EFFECTS = {
    "now": "Takes effect at once",
    "stream": "Takes effect at once; the stream starts anew with the next audio",
    "configure": "Takes effect when the node is configured",
    "start": "Read when the node starts",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter: its default, what it is, its range or choices, when a change takes effect."""

    default: Any
    description: str
    limits: tuple[float, float] | None = None
    effect: str = "now"
    choices: tuple[str, ...] | None = None

    def descriptor(self) -> ParameterDescriptor:
        """For `declare_parameter`."""
        constraints = EFFECTS[self.effect]
        if self.choices:
            constraints = f"One of {_names(self.choices)}. {constraints}"
        descriptor = ParameterDescriptor(
            description=self.description, additional_constraints=constraints,
            read_only=self.effect == "start")
        if self.limits and isinstance(self.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=self.limits[0], to_value=self.limits[1])]
        elif self.limits:
            descriptor.integer_range = [
                IntegerRange(from_value=self.limits[0], to_value=self.limits[1], step=1)]
        return descriptor


PARAMETERS = {
    "model": Parameter(
        "", "Checkpoint: a name or a path; empty: the one that comes with the package",
        effect="configure"),
    "device": Parameter(
        "", "Where the model runs, e.g. cpu or cuda; empty: cuda if there is one, else cpu",
        effect="configure"),
    "calibration": Parameter(
        "", "Path of a YAML file with the calibration of these microphones; empty: none",
        effect="configure"),
    "head": Parameter(
        "", "Path of a file with the responses of these ears (made by luseel calibrate --head, or "
        "luseel-heads of a SOFA file); empty: those of the head that the model was trained on",
        effect="configure"),
    "array": Parameter(
        "", "Path of a YAML file with the places of the microphones, or the name of a known array; "
        "empty: the array that the model was trained on. For models that hear with an array",
        effect="configure"),
    "warm_up": Parameter(
        True, "Run the model once on silence while configuring, so that the first result is not "
        "late", effect="configure"),

    "profile": Parameter(
        "balanced", "Hop, cross-fade and look-ahead that go together: low_latency answers soonest, "
        "accurate hears most", choices=tuple(PROFILES)),
    "hop": Parameter(
        0.0, "Seconds between two runs of the model, which are between two events; 0: that of the "
        "profile", (0.0, 10.0)),
    "precision": Parameter(
        "", "Arithmetic of the model: float32, bfloat16, or auto (bfloat16 where the processor is "
        "faster in it); empty: that of the profile", choices=("", *PRECISIONS)),
    "buffer_seconds": Parameter(
        4.0, "Seconds of audio that may wait for the model; the oldest beyond that are dropped",
        (0.2, 120.0), "stream"),
    "max_gap": Parameter(
        1.0, "Seconds of lost audio that are bridged with silence; after a longer gap, the stream "
        "starts anew", (0.0, 10.0), "stream"),
    "stamp_tolerance": Parameter(
        0.1, "Seconds by which a stamp may be off before it counts as lost or repeated audio "
        "(without sample numbers) or as a jump of the clock (with them)",
        (0.001, 10.0), "stream"),

    "audio_type": Parameter(
        "luseel", "Message type of the topic audio: luseel/AudioChunk, or that of one of the two "
        "packages named audio_common_msgs", effect="configure", choices=KINDS),
    "audio_sample_rate": Parameter(
        0, "Sample rate [Hz] that the audio must have; 0: whatever it says (4000 to 384000)",
        (0, 384000), "configure"),
    "audio_sample_format": Parameter(
        "", "With audio_sample_rate in place of a missing AudioInfo (ros_drivers), e.g. S16LE; "
        "empty: there must be one", effect="configure"),
    "audio_info_topic": Parameter(
        "", "Topic of the AudioInfo (ros_drivers); empty: audio_info beside audio",
        effect="configure"),
    "audio_depth": Parameter(
        50, "Queue of the audio subscription, in messages", (1, 10000), "configure"),
    "audio_reliability": Parameter(
        "best_effort", "best_effort takes from any publisher; reliable is for long messages, or "
        "over a lossy network", effect="configure", choices=RELIABILITIES),
    "extracted_type": Parameter(
        "luseel", "Message type of the extracted audio. luseel: all on ~/extracted, with the "
        "query_id; the others: a topic ~/extracted/<id> for each query",
        effect="configure", choices=KINDS),
    "output_depth": Parameter(
        50, "Queue of each publisher, in messages", (1, 10000), "configure"),
    "output_reliability": Parameter(
        "reliable", "reliable reaches any subscriber; best_effort never waits for a slow one",
        effect="configure", choices=RELIABILITIES),

    "confidence_threshold": Parameter(
        0.5, "An event is active from this confidence on, if its query has no threshold of its own",
        (0.0, 1.0)),
    "track_memory": Parameter(
        10.0, "Seconds of silence after which the track of a sound ends; the next one gets a new "
        "number", (0.0, 600.0)),
    "position_stddev": Parameter(
        1.0, "A position is published from this standard deviation [m] on, in its worst direction",
        (0.05, 5.0)),
    "max_queries": Parameter(8, "Most queries at one time; each costs computing time", (1, 256)),
    "image_query_id": Parameter(
        "image", "Id of the query that the pictures on ~/query_image are part of; empty: these are "
        "ignored"),
    "image_region": Parameter(
        [0, 0, 0, 0], "The part of these pictures that counts: x, y, width, height in pixels; "
        "width and height 0: all of it"),
    "image_rate": Parameter(
        2.0, "Most of these pictures taken in a second; each costs a run of the image encoder",
        (0.1, 60.0)),
    "image_frames_seconds": Parameter(
        2.0, "Seconds of these pictures that make a clip, for models that take moving pictures",
        (0.1, 60.0)),
    "image_reliability": Parameter(
        "best_effort", "Of ~/query_image: best_effort takes from any camera; reliable is for large "
        "pictures", effect="configure", choices=RELIABILITIES),
    "frame_id": Parameter(
        "", "Frame of the microphones in all outputs; empty: that of the audio"),
    "mount.parent_frame": Parameter(
        "", "Frame that the microphones are mounted on; their pose is published on /tf_static. "
        "Empty: it is not published"),
    "mount.x": Parameter(0.0, "Microphones in parent_frame, forward [m]", (-100.0, 100.0)),
    "mount.y": Parameter(0.0, "Microphones in parent_frame, left [m]", (-100.0, 100.0)),
    "mount.z": Parameter(0.0, "Microphones in parent_frame, up [m]", (-100.0, 100.0)),
    "mount.roll": Parameter(0.0, "Microphones in parent_frame, about x [rad]",
                            (-2 * math.pi, 2 * math.pi)),
    "mount.pitch": Parameter(0.0, "Microphones in parent_frame, about y [rad]",
                             (-2 * math.pi, 2 * math.pi)),
    "mount.yaw": Parameter(0.0, "Microphones in parent_frame, about z, to the left [rad]",
                           (-2 * math.pi, 2 * math.pi)),
    "autostart": Parameter(
        True, "Configure and activate without being asked. false: wait for the transitions "
        "(launch file, ros2 lifecycle)", effect="start"),
}


def _names(choices: tuple[str, ...]) -> str:
    return ", ".join(choice or "(empty)" for choice in choices)


def declare(node) -> None:
    """Declare all of them; values from the command line or a file that break a rule are refused.

    Raises:
        rclpy.exceptions.InvalidParameterValueException: such a value, with what is wrong.
    """
    for name, parameter in PARAMETERS.items():
        node.declare_parameter(name, parameter.default, parameter.descriptor())


def values(node) -> dict[str, Any]:
    """All parameters of the node by name."""
    return {name: node.get_parameter(name).value for name in PARAMETERS}


def problem(name: str, value: Any) -> str | None:
    """What is wrong with a value beyond type and range, which ROS checks; None if nothing is."""
    parameter = PARAMETERS.get(name)
    if parameter is None:
        return None
    if parameter.choices and value not in parameter.choices:
        return f"{name}: '{value}' is none of {_names(parameter.choices)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name}: {value} is not a number"
    if name in ("frame_id", "mount.parent_frame") and re.search(r"^/|\s", value):
        return f"{name}: '{value}' is no name of a frame (no leading slash, no blanks)"
    if name == "image_query_id" and value:
        try:
            validate_id(value)
        except QueryError as error:
            return f"image_query_id: {error}"
    if name == "image_region" and (
            len(value) != 4 or min(value) < 0 or (value[2] == 0) != (value[3] == 0)):
        return (f"image_region: {list(value)}: expected x, y, width, height in pixels, from 0 on; "
                "width and height 0 together mean all of the picture")
    if name == "hop" and 0 < value < 0.1:
        return f"hop: {value:g} s is too short: at least 0.1, or 0 for that of the profile"
    return None


def stream_times(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `ExtractionStream.set_profile` takes, from the parameters."""
    return {"profile": values["profile"], "hop": values["hop"] or None,
            "precision": values["precision"] or None}


def new_stream(model, sample_rate: int, values: Mapping[str, Any]) -> ExtractionStream:
    """The stream that these parameters ask for.

    Raises:
        ConfigError: they contradict each other or the model's window.
    """
    return ExtractionStream(
        model, sample_rate, **stream_times(values), buffer_seconds=values["buffer_seconds"],
        max_gap=values["max_gap"])


def audio_qos(values: Mapping[str, Any]) -> QoSProfile:
    """Of the subscription to audio."""
    return QoSProfile(depth=values["audio_depth"],
                      reliability=ReliabilityPolicy[values["audio_reliability"].upper()])


def output_qos(values: Mapping[str, Any]) -> QoSProfile:
    """Of what the node publishes."""
    return QoSProfile(depth=values["output_depth"],
                      reliability=ReliabilityPolicy[values["output_reliability"].upper()])


LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
