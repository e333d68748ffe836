"""The closed loop over DDS: the world, the real luseel_node, the navigator node, simulated time.

The world publishes /clock, `audio`, `odom` and `scan` every 0.1 s of its time, waits for the node's
event of the hop and for the navigator's command, and goes on: as fast as the machine can, with the
same result on a slow one. A command takes effect with the next step; what the model says of a hop
reaches the navigator 0 to 0.1 s after the end of the hop.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tools/field"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

import harness  # noqa: E402
import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from base import Pose  # noqa: E402
from geometry_msgs.msg import PoseWithCovarianceStamped, Twist  # noqa: E402
from home import HOP, QUERY, Home  # noqa: E402
from luseel.msg import AudioChunk, Query, SoundEventArray  # noqa: E402
from luseel.srv import SetQuery  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from navigator import ARRIVED  # noqa: E402
from navigator_node import NavigatorNode, seconds  # noqa: E402
from perception import EVENT_HOP, Follower, Loudest, TrueDirection  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import LaserScan  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from world import World  # noqa: E402

from luseel_model.angles import from_rep103  # noqa: E402
from luseel_model.heads import Head  # noqa: E402
from luseel_ros import conversions  # noqa: E402
from training import SAMPLE_RATE  # noqa: E402

NAVIGATORS = ("luseel", "loudest", "true")
FRAME = "base_link"
T0 = 1_700_000_000  # [s] at which the first run begins
GAP = 100.0  # [s] between two runs: the node starts anew
LEAD = 2.0  # [s] before a run in which the odometry is heard already
PATIENCE = 300.0  # [s] that a busy machine may take for one hop
THRESHOLD = 0.5  # confidence from which a hop rather counts as the sound: the node's default


class Loop:
    """The graph, for any number of runs.

    Args:
        head: of the robot.
        listening: whether luseel_node is needed.
        model: checkpoint; empty: the shipped one.
        threshold: of the query.
        log: file for what the node says; None: a temporary one.
    """

    def __init__(self, head: Head, listening: bool = True, model: str = "",
                 threshold: float = THRESHOLD, log=None):
        self.head, self._threshold = head, threshold
        self._runs, self._now = 0, float(T0)
        self._begin, self._now_ns = self._now, T0 * 10**9
        self._holder = harness.context()
        self._ros = self._holder.__enter__()
        self._process = None
        self._temporary = tempfile.TemporaryDirectory()
        try:
            self.node = rclpy.create_node("home", context=self._ros)
            self.executor = SingleThreadedExecutor(context=self._ros)
            self.executor.add_node(self.node)
            create = self.node.create_publisher
            self._clock = create(Clock, "/clock", 10)
            self._audio = create(AudioChunk, "audio", 100)
            self._odometry, self._scan = create(Odometry, "odom", 10), create(LaserScan, "scan", 10)
            self._set_query = self.node.create_client(SetQuery, "/luseel/set_query")
            self.node.create_subscription(Twist, "cmd_vel", self._on_command, 10)
            if listening:
                path = Path(log) if log else Path(self._temporary.name) / "node.log"
                self._process = harness.NodeProcess(
                    self._ros, path, {"use_sim_time": True, "hop": EVENT_HOP, "model": model,
                                      "audio_reliability": "reliable"},
                    threads=int(os.environ.get("OMP_NUM_THREADS", "1")))
                self._until(lambda: self._set_query.service_is_ready()
                            and self._audio.get_subscription_count() > 0
                            and self._odometry.get_subscription_count() > 0,
                            harness.START_SECONDS, "the node to become active")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the node and leave the graph."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if hasattr(self, "executor"):
            self.executor.shutdown()
            self.node.destroy_node()
        self._holder.__exit__(None, None, None)
        self._temporary.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def next_query(self) -> str:
        """The id that the query of the next run will have."""
        return f"target{self._runs + 1}"

    @property
    def begin_ns(self) -> int:
        """When the newest run began, by the simulated clock."""
        return round(self._begin * 1e9)

    @property
    def now_ns(self) -> int:
        """The simulated clock."""
        return self._now_ns

    # -- waiting -----------------------------------------------------------------------------

    def _until(self, condition, timeout: float = PATIENCE, what: str = "an answer") -> None:
        end = time.monotonic() + timeout
        while not condition():
            if self._process is not None and not self._process.running:
                raise harness.FieldError(f"the node has ended:\n{self._process.output[-3000:]}")
            if time.monotonic() > end:
                said = self._process.output[-2000:] if self._process else ""
                raise harness.FieldError(f"waited {timeout:g} s for {what}\n{said}")
            self.executor.spin_once(timeout_sec=0.05)

    def _on_command(self, message: Twist) -> None:
        self._commands += 1
        self._command = message.linear.x, message.angular.z

    # -- one run -------------------------------------------------------------------------------

    def run(self, home: Home, who: str, limit: float = 90.0, progress=None) -> tuple[dict, World]:
        """One home with one navigator.

        Args:
            who: one of NAVIGATORS.
            limit: seconds of simulated time.
            progress: called with the world after each step.

        Returns:
            the score (:meth:`world.World.score`) with wall_seconds, and the world with its record.
        """
        begin = time.monotonic()
        query, self._begin = self.next_query, self._now
        self._runs += 1
        world = World(home, self.head if who != "true" else None)
        source = "/luseel" if who == "luseel" else f"/{who}"
        self._commands, self._command = 0, (0.0, 0.0)
        self._heard: dict[float, bool] = {}
        follower = None
        own = []  # publishers and subscriptions of this run
        if who == "luseel":
            self._ask(Query(action=Query.ADD, id=query, text=QUERY, threshold=self._threshold))
        else:
            follower = Follower(Loudest(self.head) if who == "loudest" else TrueDirection(world))
            events = self.node.create_publisher(SoundEventArray, f"{source}/events", 10)
            places = self.node.create_publisher(
                PoseWithCovarianceStamped, f"{source}/positions/{query}", 10)
            own += [events, places]
        subscriptions = [
            self.node.create_subscription(
                SoundEventArray, f"{source}/events",
                lambda m: self._on_events(m, query, world), 10),
            self.node.create_subscription(
                PoseWithCovarianceStamped, f"{source}/positions/{query}",
                lambda m: self._on_position(m, world), 10)]
        navigator = NavigatorNode(source, query, context=self._ros)
        self.executor.add_node(navigator)
        try:
            self._until(lambda: self._odometry.get_subscription_count() > (who == "luseel")
                        and self._scan.get_subscription_count() > 0
                        and navigator.count_publishers(f"{source}/events") > 0
                        and self.node.count_publishers("cmd_vel") > 0, 60.0, "the graph")
            self._lead_in(world)
            state = navigator.navigator
            while world.time < limit - HOP / 2 and state.state != ARRIVED:
                answered = self._commands
                audio = world.step(*self._command, state.state)
                if follower is not None:
                    follower.odometry(world.time, world.base.odometry)
                    if audio is not None:
                        follower.source.push(audio)
                self._tell(world, audio if who == "luseel" else None)
                # first the command, so that a hop's event always counts from the next step on
                self._until(lambda: self._commands > answered, what="a command")
                if world.steps % round(EVENT_HOP / HOP) == 0:
                    hop = round(world.time - EVENT_HOP, 3)
                    if follower is not None:
                        self._publish(follower, world, query, events, places)
                    self._until(lambda: hop in self._heard, what=f"the event of {hop:g} s")
                if progress is not None:
                    progress(world)
            arrived = state.state == ARRIVED
            world.record.states[-1] = state.state
        finally:
            self.executor.remove_node(navigator)
            navigator.destroy_node()
            for one in subscriptions:
                self.node.destroy_subscription(one)
            for one in own:
                self.node.destroy_publisher(one)
            self._now = self._begin + limit + GAP
            if who == "luseel":
                self._ask(Query(action=Query.REMOVE, id=query))
        score = world.score(arrived)
        score["wall_seconds"] = round(time.monotonic() - begin, 1)
        return score, world

    def _ask(self, query: Query) -> None:
        future = self._set_query.call_async(SetQuery.Request(query=query))
        self._until(future.done, 60.0, "the query to be taken")
        if not future.result().success:
            raise harness.FieldError(f"the query was refused: {future.result().reason}")

    def _stamp(self, moment: float):
        return conversions.ns_to_time(round((self._begin + moment) * 1e9))

    def _set_clock(self, moment: float) -> None:
        stamp = self._stamp(moment)
        self._now_ns = conversions.time_to_ns(stamp)
        self._clock.publish(Clock(clock=stamp))

    def _tell(self, world: World, audio: np.ndarray | None) -> None:
        """Publish what belongs to the step that has just ended."""
        now = world.time
        self._set_clock(now)
        ranges = world.base.scan()
        scan = LaserScan(header=Header(stamp=self._stamp(now), frame_id=FRAME), angle_min=0.0,
                         angle_max=2 * math.pi * (1 - 1 / len(ranges)),
                         angle_increment=2 * math.pi / len(ranges), range_max=2.0,
                         ranges=ranges.astype(np.float32).tolist())
        self._scan.publish(scan)
        self._odometry.publish(self._odometry_message(world.base.odometry, now))
        if audio is not None:
            first = round((now - HOP) * SAMPLE_RATE)
            self._audio.publish(conversions.array_to_chunk(
                audio, SAMPLE_RATE, first,
                Header(stamp=self._stamp(first / SAMPLE_RATE), frame_id=FRAME)))

    def _odometry_message(self, pose: Pose, moment: float) -> Odometry:
        message = Odometry(header=Header(stamp=self._stamp(moment), frame_id="odom"),
                           child_frame_id=FRAME)
        message.pose.pose.position.x, message.pose.pose.position.y = pose.x, pose.y
        turn = message.pose.pose.orientation
        turn.x, turn.y, turn.z, turn.w = conversions.quaternion(0.0, 0.0, pose.yaw)
        return message

    def _lead_in(self, world: World) -> None:
        """The robot has stood there for a while: the node knows its pose over the first window."""
        for k in range(-round(LEAD / HOP), 1):
            self._set_clock(k * HOP)
            self._odometry.publish(self._odometry_message(world.base.odometry, k * HOP))
            self.executor.spin_once(timeout_sec=0.01)

    # -- what comes back -------------------------------------------------------------------------

    def _on_events(self, message: SoundEventArray, query: str, world: World) -> None:
        moment = round(seconds(message.header.stamp) - self._begin, 3)
        for event in message.events:
            if event.query_id == query and 0 <= moment <= world.time:
                self._heard[moment] = True
                known = event.track_id != 0
                world.hear(
                    moment, float(from_rep103(event.track_azimuth)) if known else math.nan,
                    math.degrees(event.track_azimuth_stddev) if known else math.nan,
                    float(from_rep103(event.azimuth)), event.confidence,
                    np.array(event.likelihood))

    def _on_position(self, message: PoseWithCovarianceStamped, world: World) -> None:
        place = message.pose.pose.position
        covariance = np.reshape(message.pose.covariance, (6, 6))[:2, :2].copy()
        world.record.positions.append(
            (seconds(message.header.stamp) - self._begin, place.x, place.y, covariance))

    def _publish(self, follower: Follower, world: World, query: str, events, places) -> None:
        """What the node publishes, of a baseline."""
        state, likelihood, confidence = follower.update(world.time)
        header = Header(stamp=self._stamp(state.stamp_s), frame_id=FRAME)
        event = conversions.sound_event(query, QUERY, float(likelihood.argmax()), likelihood,
                                        confidence, 0.5, 0.0)
        event.presence = float(state.presence)
        event.track_id = state.id or 0
        event.track_azimuth = float(conversions.to_rep103(state.azimuth))
        event.track_azimuth_stddev = math.radians(state.azimuth_std)
        position = state.position
        if position is not None:
            places.publish(conversions.position_pose(
                position, Header(stamp=header.stamp, frame_id="odom")))
        events.publish(SoundEventArray(header=header, events=[event]))
