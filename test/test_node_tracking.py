"""What the node says of tracks and positions, over real DDS, with a model of known answers."""

import contextlib
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")
OdometryMessage = pytest.importorskip("nav_msgs.msg").Odometry

import rclpy  # noqa: E402
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from ros_helpers import RATE, T0, Peer, ros_context, spinning, stamp_ns  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from visualization_msgs.msg import Marker  # noqa: E402

from luseel_ros import conversions  # noqa: E402
from luseel_ros import tracking as tracking_module  # noqa: E402
from luseel_ros.node import LuseelNode  # noqa: E402

HOP = 0.2
STEP = 0.1  # [s] of a chunk


class CompassModel:
    """Reads the answer off the audio: azimuth / 360 is the left ear's level, the confidence the
    right one's. With `mirrored` it can't tell front from back."""

    sample_rate, window, device, name = RATE, 0.4, "cpu", "compass"

    def __init__(self, mirrored=False):
        self.mirrored = mirrored

    def warm_up(self):
        pass

    def infer_window(self, window, queries):
        left, confidence = np.median(window, axis=1)
        azimuth, count = 360 * float(left), len(queries)
        likelihood = self.peak(azimuth)
        if self.mirrored:
            likelihood = np.maximum(likelihood, self.peak(180 - azimuth))
        return SimpleNamespace(
            audio=np.stack([window] * count), azimuth=np.full(count, azimuth % 360),
            likelihood=np.stack([likelihood] * count).astype(np.float32),
            confidence=np.full(count, float(confidence)))

    @staticmethod
    def peak(azimuth, std=5.0):
        off = (np.arange(360) - azimuth + 180) % 360 - 180
        return np.exp(-0.5 * (off / std) ** 2)


class TrackPeer(Peer):
    """A robot with odometry, which listens to what the node says of tracks."""

    def __init__(self, context, reliability=ReliabilityPolicy.RELIABLE):
        super().__init__(context)
        self.odom = self.node.create_publisher(
            OdometryMessage, "odom", QoSProfile(depth=100, reliability=reliability))
        self.pose, self.positions = [], []
        self.node.create_subscription(PoseStamped, f"{self.name}/poses/q1", self.pose.append, 100)
        self.node.create_subscription(
            PoseWithCovarianceStamped, f"{self.name}/positions/q1", self.positions.append, 100)

    def connected(self):
        return super().connected() and self.until(
            lambda: self.node.count_publishers(f"{self.name}/positions/q1") >= 1)

    def hear(self, azimuth, confidence=0.9, pose=None, clock=0):
        """A chunk that says so, with odometry (x, y, yaw [degrees]) at both its ends."""
        now = T0 + conversions.samples_to_ns(self.position, RATE)
        count = round(STEP * RATE)
        for stamp in (now, now + conversions.samples_to_ns(count, RATE)) if pose else ():
            message = OdometryMessage(child_frame_id="base_link")
            message.header = Header(stamp=conversions.ns_to_time(stamp + clock), frame_id="odom")
            message.pose.pose.position.x, message.pose.pose.position.y = map(float, pose[:2])
            turn = message.pose.pose.orientation
            turn.x, turn.y, turn.z, turn.w = conversions.quaternion(0, 0, math.radians(pose[2]))
            self.odom.publish(message)
        audio = np.float32([[azimuth % 360 / 360], [confidence]]).repeat(count, 1)
        self.audio.publish(conversions.array_to_chunk(
            audio, RATE, self.position,
            Header(stamp=conversions.ns_to_time(now), frame_id="head")))
        self.position += count
        self.spin(0.02)

    def heard(self):
        """Wait for the event of the newest hop, and give it."""
        last = T0 + conversions.samples_to_ns(self.position, RATE) - round(2e9 * HOP)
        assert self.until(lambda: self.events and stamp_ns(self.events[-1].header.stamp) >= last,
                          60)
        return self.events[-1].events[0]


@contextlib.contextmanager
def running(model=None, reliability=ReliabilityPolicy.RELIABLE, odometry=True, **values):
    """The node in a thread, active and asked, and a peer that is connected -> (node, peer)."""
    values = {"hop": HOP, "warm_up": False, "buffer_seconds": 120.0, **values}
    with ros_context() as context:
        peer = TrackPeer(context, reliability)
        node = LuseelNode(
            load=lambda name, device: model or CompassModel(), context=context,
            parameter_overrides=[rclpy.Parameter(k, value=v) for k, v in values.items()])
        try:
            with spinning(node):
                assert peer.until(lambda: peer.query.get_subscription_count() >= 1, 60)
                peer.ask("a baby is crying")
                assert peer.connected()
                assert peer.until(
                    lambda: (peer.odom.get_subscription_count() >= 1) == odometry, 30)
                yield node, peer
        finally:
            peer.close()


def yaw_of(pose):
    return 2 * math.atan2(pose.pose.orientation.z, pose.pose.orientation.w)


def test_a_track_has_a_number_an_age_and_a_direction_to_the_left():
    with running() as (_, peer):
        for _ in range(40):
            peer.hear(60.0)
        event = peer.heard()
        assert event.track_id == 1 and event.presence > 0.9 and event.active
        assert event.track_azimuth == pytest.approx(math.radians(60), abs=math.radians(2))
        assert 0 < event.track_azimuth_stddev < math.radians(60)
        assert 1.0 < event.track_age.sec + event.track_age.nanosec * 1e-9 < 4.0
        best = event.hypotheses[0]
        assert best.azimuth == event.track_azimuth and 0.6 < best.weight <= 1
        assert 0 < best.azimuth_stddev < math.radians(15)
        # a window that says something else for a moment changes the raw direction alone
        for _ in range(6):
            peer.hear(300.0)
        event = peer.heard()
        assert event.azimuth == pytest.approx(math.radians(-60), abs=0.02)
        assert event.track_azimuth == pytest.approx(math.radians(60), abs=math.radians(4))
        assert peer.until(lambda: peer.pose and stamp_ns(peer.pose[-1].header.stamp) >= stamp_ns(
            peer.events[-1].header.stamp))
        assert yaw_of(peer.pose[-1]) == pytest.approx(event.track_azimuth, abs=1e-5)
        assert peer.pose[-1].header.frame_id == "head"


def test_nothing_is_told_in_silence_and_a_new_track_gets_a_new_number():
    with running(track_memory=1.0) as (_, peer):
        for _ in range(20):
            peer.hear(100.0, 0.1)
        event = peer.heard()
        assert event.track_id == 0 and event.presence < 0.3 and not event.hypotheses
        assert math.isnan(event.track_azimuth) and math.isnan(event.track_azimuth_stddev)
        assert not peer.pose and not peer.positions
        numbers = []
        for confidence, chunks in ((0.9, 25), (0.1, 60), (0.9, 25)):
            for _ in range(chunks):
                peer.hear(100.0, confidence)
            numbers.append(peer.heard().track_id)
        assert numbers == [1, 0, 2]


@pytest.mark.parametrize("reliability", [
    ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT])
def test_turning_tells_front_from_back(reliability):
    """By odometry of reliable and of best-effort publishers."""
    with running(CompassModel(mirrored=True), reliability) as (_, peer):
        for _ in range(25):
            peer.hear(40.0, pose=(0, 0, 0))
        doubt = peer.heard()
        assert len(doubt.hypotheses) >= 2 and doubt.hypotheses[0].weight < 0.8
        for i in range(60):
            yaw = 3.0 * min(i, 30)
            peer.hear(40.0 - yaw, pose=(0, 0, yaw))
        event = peer.heard()
        assert event.hypotheses[0].weight > 0.95
        assert event.track_azimuth == pytest.approx(math.radians(-50), abs=math.radians(4))
        assert event.track_id == doubt.track_id == 1


@pytest.mark.parametrize("mount", [{}, {"mount.parent_frame": "base_link", "mount.x": 0.3,
                                        "mount.y": -0.1, "mount.yaw": math.pi / 2}])
def test_a_position_in_the_frame_of_the_odometry(mount):
    source = (1.2, 1.8)
    head = (mount.get("mount.x", 0), mount.get("mount.y", 0),
            math.degrees(mount.get("mount.yaw", 0)))
    with running(**mount) as (_, peer):
        for i in range(100):
            x = min(0.03 * i, 2.7)
            seen = math.degrees(math.atan2(source[1] - head[1], source[0] - x - head[0])) - head[2]
            peer.hear(seen, pose=(x, 0, 0))
        peer.heard()
        assert peer.until(lambda: peer.positions)
        message = peer.positions[-1]
        assert message.header.frame_id == "odom"
        where = message.pose.pose.position
        assert math.dist((where.x, where.y), source) < 0.5 and where.z == 0
        covariance = message.pose.covariance.reshape(6, 6)
        assert covariance[0, 1] == covariance[1, 0] and np.linalg.det(covariance[:2, :2]) > 0
        assert max(np.linalg.eigvalsh(covariance[:2, :2])) <= 1.0
        assert (np.diag(covariance)[2:] == -1).all() and message.pose.pose.orientation.w == 1
        ellipses = []  # those of the same hop, which may come later

        def found():
            ellipses[:] = [m for array in peer.markers for m in array.markers
                           if m.ns == "q1/position" and m.header.stamp == message.header.stamp]
            return bool(ellipses)

        assert peer.until(found, 60) and ellipses[-1].header.frame_id == "odom"
        assert ellipses[-1].type == Marker.CYLINDER and ellipses[-1].scale.x >= (
            ellipses[-1].scale.y) > 0.1
        assert math.dist((ellipses[-1].pose.position.x, ellipses[-1].pose.position.y),
                         (where.x, where.y)) < 1e-6
        # in silence there is none
        for _ in range(30):
            peer.hear(0.0, 0.05, pose=(2.7, 0, 0))
        peer.heard()
        peer.spin(0.2)
        peer.positions.clear()
        for _ in range(5):
            peer.hear(0.0, 0.05, pose=(2.7, 0, 0))
        peer.heard()
        peer.spin(0.2)
        assert not peer.positions


def test_odometry_of_another_clock_is_said():
    with running() as (node, peer):
        for _ in range(30):
            peer.hear(60.0, pose=(0, 0, 0), clock=-1_000_000_000_000)
        assert peer.heard().track_id == 1  # tracked as if the head stood still
        assert "odometry" in node._warned and not peer.positions


def test_without_nav_msgs_directions_are_tracked_all_the_same(monkeypatch):
    monkeypatch.setattr(tracking_module, "OdometryMessage", None)
    with running(odometry=False) as (node, peer):
        for _ in range(30):
            peer.hear(200.0)
        event = peer.heard()
        assert event.track_id == 1
        assert event.track_azimuth == pytest.approx(math.radians(-160), abs=math.radians(3))
        assert node.count_subscribers("odom") == 0


def test_parameters_of_tracking_change_while_it_runs():
    with running() as (node, peer):
        for _ in range(25):
            peer.hear(60.0)
        assert peer.heard().track_id == 1
        node.set_parameters([rclpy.Parameter("track_memory", value=0.5)])
        for confidence, chunks in ((0.05, 40), (0.9, 25)):
            for _ in range(chunks):
                peer.hear(60.0, confidence)
        assert peer.heard().track_id == 2
        refused = node.set_parameters([rclpy.Parameter("position_stddev", value=-1.0)])
        assert not refused[0].successful


def test_a_cleanup_forgets_tracks_but_not_their_numbers():
    with running() as (_, peer):
        for _ in range(25):
            peer.hear(60.0)
        assert peer.heard().track_id == 1
        assert peer.transition("deactivate") and peer.transition("activate")
        time.sleep(0.1)
        assert peer.until(lambda: peer.audio.get_subscription_count() >= 1, 30)
        for _ in range(30):
            peer.hear(60.0)
        assert peer.heard().track_id == 2


# -- the example that sends goals --------------------------------------------------------------


@pytest.mark.parametrize("sound, robot, goal", [
    ((3.0, 0.0), (0.0, 0.0), (2.2, 0.0, 0.0)),
    ((0.0, 3.0), (0.0, 1.0), (0.0, 2.2, math.pi / 2)),
    ((-2.0, -2.0), (0.0, 0.0), (-2 + 0.8 / math.sqrt(2), -2 + 0.8 / math.sqrt(2),
                                -3 * math.pi / 4)),
    ((0.5, 0.0), (0.0, 0.0), (0.0, 0.0, 0.0)), ((1.0, 1.0), (1.0, 1.0), (1.0, 1.0, 0.0))])
def test_a_goal_lies_before_the_sound(sound, robot, goal):
    from luseel_ros.tools.goto import goal_before
    assert goal_before(sound, robot, 0.8) == pytest.approx(goal)


def test_goals_are_sent_for_sure_positions_and_when_they_change():
    from luseel_ros.tools.goto import GoTo

    with ros_context() as context:
        peer = rclpy.create_node("peer", context=context)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(peer)
        goals = []
        peer.create_subscription(PoseStamped, "goal_pose", goals.append, 10)
        odom = peer.create_publisher(OdometryMessage, "odom", 10)
        positions = peer.create_publisher(
            PoseWithCovarianceStamped, "/luseel/positions/baby", 10)
        with spinning(GoTo("baby", context=context)):

            def until(condition, timeout=30.0):
                end = time.monotonic() + timeout
                while not condition() and time.monotonic() < end:
                    executor.spin_once(timeout_sec=0.02)
                return condition()

            def say(x, y, std):
                odom.publish(OdometryMessage(header=Header(frame_id="odom")))
                until(lambda: False, 0.2)
                message = PoseWithCovarianceStamped(header=Header(frame_id="odom"))
                message.pose.pose.position.x, message.pose.pose.position.y = x, y
                message.pose.covariance[0] = message.pose.covariance[7] = std ** 2
                positions.publish(message)

            assert until(lambda: odom.get_subscription_count() and goals is not None
                         and positions.get_subscription_count()
                         and peer.count_publishers("goal_pose"))
            say(4.0, 1.0, 1.5)
            say(0.0, 3.0, 0.3)
            assert until(lambda: goals)
            say(0.05, 3.05, 0.3)
            say(0.0, -3.0, 0.3)
            assert until(lambda: len(goals) == 2)
        executor.shutdown()
        peer.destroy_node()
    first, second = goals
    assert first.header.frame_id == "odom"
    assert (first.pose.position.x, first.pose.position.y) == pytest.approx((0, 2.2))
    assert yaw_of(first) == pytest.approx(math.pi / 2)
    assert yaw_of(second) == pytest.approx(-math.pi / 2)
