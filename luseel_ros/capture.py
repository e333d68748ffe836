"""The node `luseel_capture`: a stereo microphone, or a file in its place, as a stream of audio.

    ros2 run luseel luseel_capture --list-devices
    ros2 run luseel luseel_capture --ros-args -p device:="USB Audio" -p frame_id:=head
    ros2 run luseel luseel_capture --ros-args -p file:=kitchen.wav -p wait_for_subscribers:=1

Audio leaves with the capture time of each chunk's first sample. What was lost on the way (overruns)
is counted, said, and left out of the numbering: `first_sample` jumps over it.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from typing import Any, Callable

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import remove_ros_args
from rosgraph_msgs.msg import Clock

from luseel_model.errors import AudioError, LuseelError
from luseel_model.listen import print_microphones
from luseel_model.sources import Block, FileSource, Microphone, Source

from .audio_io import KINDS, AudioBlock, AudioWriter
from .conversions import ns_to_time
from .parameters import Parameter

RELIABILITIES = ("reliable", "best_effort")
WARNING_PERIOD = 5.0  # [s] between two warnings
LINGER = 0.5  # [s] for the last messages of a file to reach who listens

PARAMETERS = {
    "file": Parameter("", "Play this stereo file in place of a microphone; empty: a microphone"),
    "device": Parameter("", "Microphone: its index, or part of its name; empty: the default one"),
    "sample_rate": Parameter(
        0, "Sample rate of the microphone [Hz]; 0: its own. A file has the rate it has",
        (0, 384000)),
    "channels": Parameter(
        [0, 1], "Which channels of the microphone or the file are the left and the right ear; the "
        "first is 0"),
    "chunk_seconds": Parameter(0.05, "Length of the messages [s]", (0.005, 2.0)),
    "buffer_seconds": Parameter(
        5.0, "Audio of the microphone that may wait to be published [s]; older is dropped",
        (0.1, 60.0)),
    "frame_id": Parameter("microphones", "Frame of the microphones: x forward, y left, z up"),
    "audio_type": Parameter(
        "luseel", "Message type of the topic audio: luseel/AudioChunk, or that of one of the two "
        "packages named audio_common_msgs", choices=KINDS),
    "sample_format": Parameter(
        "", "Sample format, where the message type leaves a choice, e.g. S16LE; empty: 16 bits"),
    "audio_depth": Parameter(50, "Queue of the publisher, in messages", (1, 10000)),
    "audio_reliability": Parameter(
        "reliable", "reliable reaches any subscriber; best_effort never waits for a slow one",
        choices=RELIABILITIES),
    "speed": Parameter(
        1.0, "How fast a file is played: 1 is real time, 0 as fast as it is read. Stamps advance "
        "with the audio, whatever the speed", (0.0, 1000.0)),
    "loop": Parameter(False, "Play the file again and again"),
    "start_time": Parameter(
        0.0, "Stamp of the first sample of a file, in seconds since the epoch; 0: the time when it "
        "starts", (0.0, 4e9)),
    "publish_clock": Parameter(
        False, "Publish the time of the audio on /clock, for nodes with use_sim_time that shall "
        "keep to a file's time"),
    "wait_for_subscribers": Parameter(
        0, "Start a file when so many nodes listen", (0, 100)),
}


def open_source(values: dict[str, Any], now_ns: Callable[[], int],
                paced_by: Callable[[], float] | None) -> Source:
    """What these parameters ask for.

    Raises:
        AudioError: it can't be opened.
    """
    if values["file"]:
        return FileSource(
            values["file"], values["channels"], values["chunk_seconds"], values["speed"],
            values["loop"], round(values["start_time"] * 1e9) or None, now_ns, paced_by)
    return Microphone(
        values["device"], values["sample_rate"] or None, values["channels"],
        values["chunk_seconds"], max(values["buffer_seconds"], values["chunk_seconds"]), now_ns)


class CaptureNode(Node):
    """Publishes a microphone or a file on `audio`.

    Args:
        open_source: called with the parameters by name, the node's clock [ns] and, with simulated
            time, the clock that sets the pace of a file [s]; gives the source.
        kwargs: for `rclpy.node.Node`.

    Attributes:
        done: set when nothing will be published any more.
        failed: why, if not because the file was over.

    Raises:
        LuseelError: the source can't be opened, or parameters contradict each other.
    """

    def __init__(self, open_source=open_source, **kwargs):
        super().__init__("luseel_capture", **kwargs)
        self.done, self.failed = threading.Event(), None
        self._stop = threading.Event()
        self._source: Source | None = None
        self._thread: threading.Thread | None = None
        self._said = self._newest_warning = None
        try:
            values = self._read_parameters()
            self._frame, self._wanted = values["frame_id"], values["wait_for_subscribers"]
            simulated = self.get_parameter("use_sim_time").value
            if simulated and not values["file"]:
                raise AudioError("a microphone hears real time: use_sim_time is for files only")
            if simulated and values["publish_clock"]:
                raise AudioError("publish_clock makes the time that use_sim_time waits for: only "
                                 "one of them")
            if values["publish_clock"] and not values["file"]:
                raise AudioError("publish_clock is for files: a microphone hears real time")
            self._simulated = simulated
            self._writer = AudioWriter(
                self, values["audio_type"], "audio",
                QoSProfile(depth=values["audio_depth"], reliability=ReliabilityPolicy[
                    values["audio_reliability"].upper()]), values["sample_format"])
            self._clock_topic = self.create_publisher(Clock, "/clock", 10) \
                if values["publish_clock"] else None
            self._source = open_source(
                values, self._now_ns, self._now_seconds if simulated else None)
        except BaseException:
            super().destroy_node()
            raise
        self.get_logger().info(
            f"{self._source.name}: {self._source.sample_rate} Hz, chunks of "
            f"{values['chunk_seconds']:g} s on {self._writer.topic_name}")
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        self._thread.start()

    def _read_parameters(self) -> dict[str, Any]:
        for name, parameter in PARAMETERS.items():
            descriptor = parameter.descriptor()
            descriptor.read_only = True
            descriptor.additional_constraints = descriptor.additional_constraints.replace(
                "Takes effect at once", "Read when the node starts")
            descriptor.dynamic_typing = name == "device"  # an index is a number
            self.declare_parameter(name, parameter.default, descriptor)
        values = {name: self.get_parameter(name).value for name in PARAMETERS}
        for name, parameter in PARAMETERS.items():
            if parameter.choices and values[name] not in parameter.choices:
                raise LuseelError(
                    f"{name}: '{values[name]}' is none of {', '.join(parameter.choices)}")
        if not isinstance(values["device"], (str, int)) or isinstance(values["device"], bool):
            raise LuseelError("device: give an index or part of a name")
        return values

    def destroy_node(self) -> None:
        """Stop, give the microphone back, then destroy the node."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)
            self._source.close()
        super().destroy_node()

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _now_seconds(self) -> float:
        return self._now_ns() / 1e9

    # -- the thread that captures --------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._await_start()
            while not self._stop.is_set():
                block = self._source.read(0.1)
                if block is not None:
                    self._publish(block)
                self._say_losses()
                if block is None and self._source.ended:
                    break
            if getattr(self._source, "gone", False):
                self.failed = f"the microphone {self._source.name!r} has gone"
            elif not self._stop.is_set():
                self._stop.wait(LINGER)
        except Exception as error:  # also of ROS, when it is shut down meanwhile
            if not self._stop.is_set() and self.context.ok():
                self.failed = str(error) if isinstance(error, LuseelError) else \
                    f"{type(error).__name__}: {error}"
        finally:
            self.done.set()

    def _await_start(self) -> None:
        """Until enough nodes listen and, with simulated time, until there is a time."""
        if self._source.live:
            return
        wanted, said = self._wanted, False
        while not self._stop.is_set():
            few = wanted - self.count_subscribers(self._writer.topic_name)
            if few <= 0 and not (self._simulated and self._now_ns() == 0):
                return
            if not said:
                said = True
                self.get_logger().info("waiting for " + (
                    f"{wanted} subscriber(s)" if few > 0 else "/clock (use_sim_time is set)"))
            self._stop.wait(0.05)

    def _publish(self, block: Block) -> None:
        count = block.samples.shape[1]
        if self._clock_topic is not None:
            # a microphone hands a chunk over when its last sample is there
            end = block.time_ns + round(count * 1e9 / block.sample_rate)
            self._clock_topic.publish(Clock(clock=ns_to_time(end)))
        self._writer.publish(AudioBlock(
            block.samples.T, block.sample_rate, block.time_ns, self._frame, block.first_sample))

    def _say_losses(self) -> None:
        counters = self._source.counters
        losses = (counters.overruns, counters.lost, counters.dropped)
        now = time.monotonic()
        if losses == (self._said or (0, 0, 0)) or (
                self._newest_warning and now - self._newest_warning < WARNING_PERIOD):
            return
        self._said, self._newest_warning = losses, now
        rate = self._source.sample_rate
        self.get_logger().warning(
            f"audio was lost: {counters.overruns} overruns of the device so far (about "
            f"{counters.lost / rate:.2f} s), {counters.dropped / rate:.2f} s dropped because "
            "publishing was too slow")


def main(args: list[str] | None = None) -> int:
    """Run the node until the file is over, or until SIGINT or SIGTERM; the exit status."""
    arguments = sys.argv if args is None else ["luseel_capture", *args]
    parser = argparse.ArgumentParser(
        prog="luseel_capture", description="Publish a stereo microphone, or a file, as ROS audio.",
        epilog="Parameters: " + ", ".join(PARAMETERS) + " (--ros-args -p NAME:=VALUE)")
    parser.add_argument("--list-devices", action="store_true",
                        help="list the microphones, then end")
    options = parser.parse_args(remove_ros_args(arguments)[1:])
    status, node = 0, None
    try:
        if options.list_devices:
            return print_microphones()
        rclpy.init(args=arguments)
        node = CaptureNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while rclpy.ok() and not node.done.is_set():
            executor.spin_once(timeout_sec=0.1)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (LuseelError, ParameterException) as error:
        print(f"luseel_capture: {error}", file=sys.stderr)
        status = 1
    finally:
        if node is not None:
            node.destroy_node()
            if node.failed:
                print(f"luseel_capture: {node.failed}", file=sys.stderr)
                status = 1
        rclpy.try_shutdown()
    if args is None:  # a process of its own
        sys.stdout.flush()
        sys.stderr.flush()
        # The interpreter's own end would look at each object of torch: seconds on a busy machine,
        # for memory that goes back to the system anyway.
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
