"""A ROS domain for each test, and a peer that talks to the node."""

import contextlib
import threading
import time

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from domain_coordinator import domain_id
from ear_model import RATE, EarModel
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from luseel.msg import AudioChunk, Query, QueryArray, SoundEventArray
from luseel.srv import SetQuery
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header, String
from visualization_msgs.msg import MarkerArray

from luseel_ros import conversions

T0 = 1_700_000_000_000_000_000  # capture time of sample 0 [ns]
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@contextlib.contextmanager
def ros_context():
    """An initialised rclpy context on a domain that nothing else on this machine uses."""
    with domain_id() as domain:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=int(domain))
        try:
            yield context
        finally:
            rclpy.try_shutdown(context=context)


@contextlib.contextmanager
def spinning(node):
    """The node's callbacks run in a thread."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)

    def spin():
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown()
        thread.join(5)
        node.destroy_node()


@contextlib.contextmanager
def running(fake=None, load=None, reliability=ReliabilityPolicy.RELIABLE, peer_first=None,
            peer_kind=None, **parameters):
    """The node in a thread, and a peer on the same domain -> (node, peer).

    `peer_first` is called with the peer before there is a node.
    """
    from luseel_ros.node import LuseelNode

    fake = fake or EarModel()
    parameters = {"hop": 0.2, **parameters}
    with ros_context() as context:
        peer = (peer_kind or Peer)(context, audio_reliability=reliability)
        try:
            if peer_first:
                peer_first(peer)
            node = LuseelNode(
                load=load or (lambda name, device: fake), context=context,
                parameter_overrides=[rclpy.Parameter(k, value=v) for k, v in parameters.items()])
            with spinning(node):
                yield node, peer
        finally:
            peer.close()


class Peer:
    """Everything that talks to the node: microphones, a language node, a listener."""

    def __init__(self, context, node_name="/luseel", audio_reliability=ReliabilityPolicy.RELIABLE):
        self.node = rclpy.create_node("peer", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.name = node_name
        self.events, self.extracted, self.markers = [], [], []
        self.audio = self.node.create_publisher(
            AudioChunk, "audio", QoSProfile(depth=100, reliability=audio_reliability))
        self.query = self.node.create_publisher(String, "query", 10)
        for kind, topic, into in (
                (SoundEventArray, "events", self.events), (AudioChunk, "extracted", self.extracted),
                (MarkerArray, "markers", self.markers)):
            self.node.create_subscription(kind, f"{node_name}/{topic}", into.append, 100)
        self.position = 0
        self.random = np.random.default_rng(0)
        self.sent = []

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()

    def until(self, condition, timeout=15.0):
        """Spin until the condition holds; returns whether it does."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                return False
            self.executor.spin_once(timeout_sec=0.02)
        return True

    def spin(self, seconds):
        self.until(lambda: False, seconds)

    def connected(self):
        """The node listens, and what it publishes arrives here."""
        return self.until(lambda: self.audio.get_subscription_count() >= 1
                          and self.query.get_subscription_count() >= 1
                          and self.node.count_publishers(f"{self.name}/events") >= 1)

    def chunk(self, seconds=0.05, left=1.0, right=0.3, rate=RATE, **fields):
        """The next chunk of noise, with exact stamps; `fields` replace those of the message."""
        count = round(seconds * rate)
        audio = self.random.uniform(-1, 1, (2, count)).astype(np.float32)
        audio *= np.float32([[left], [right]])
        stamp = conversions.add_samples(conversions.ns_to_time(T0), self.position, rate)
        chunk = conversions.array_to_chunk(
            audio, rate, self.position, Header(stamp=stamp, frame_id="mic"))
        for name, value in fields.items():
            setattr(chunk, name, value)
        self.position += count
        self.sent.append(audio)
        return chunk

    def play(self, seconds, pace=0.2, **kwargs):
        """Chunks of 50 ms, `pace` times as long as real time between them."""
        for _ in range(round(seconds / 0.05)):
            self.audio.publish(self.chunk(**kwargs))
            self.spin(0.05 * pace)

    def ask(self, text):
        self.query.publish(String(data=text))

    def service(self, kind, name, request, timeout=30.0, patience=6.0):
        """Call a service of the node; a client whose discovery the middleware lost, as happens once
        in some thousands, is made anew after ``patience`` seconds."""
        for _ in range(round(timeout / patience)):
            client = self.node.create_client(kind, f"{self.name}/{name}")
            try:
                if self.until(client.service_is_ready, patience):
                    future = client.call_async(request)
                    assert self.until(future.done, timeout), f"no answer from {name}"
                    return future.result()
            finally:
                self.node.destroy_client(client)
        raise AssertionError(f"no service {name}")

    def state(self):
        return self.service(GetState, "get_state", GetState.Request()).current_state.label

    def transition(self, name):
        number = getattr(Transition, f"TRANSITION_{name.upper()}")
        return self.service(ChangeState, "change_state", ChangeState.Request(
            transition=Transition(id=number))).success

    def latched_publisher(self):
        return self.node.create_publisher(String, "query", QoSProfile(
            depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))


class FieldPeer(Peer):
    """A peer that also listens to queries, poses and diagnostics."""

    def __init__(self, context, **kwargs):
        super().__init__(context, **kwargs)
        self.lists, self.pose, self.poses, self.reports = [], [], {}, []
        self.commands = self.node.create_publisher(Query, f"{self.name}/set_query", 10)
        self.node.create_subscription(
            QueryArray, f"{self.name}/queries", self.lists.append, LATCHED)
        self.node.create_subscription(PoseStamped, f"{self.name}/pose", self.pose.append, 100)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.reports.append, 10)

    def connected(self):
        return super().connected() and self.until(
            lambda: self.commands.get_subscription_count() >= 1 and self.lists)

    def request(self, **fields):
        return self.service(SetQuery, "set_query", SetQuery.Request(query=Query(**fields)))

    def set_parameter(self, name, value):
        return self.service(
            SetParametersAtomically, "set_parameters_atomically",
            SetParametersAtomically.Request(parameters=[
                rclpy.Parameter(name, value=value).to_parameter_msg()])).result

    def listed(self):
        """The newest list of queries, as {id: words}."""
        return {q.id: q.text for q in self.lists[-1].queries} if self.lists else None

    def status(self, part, good=lambda status: True, timeout=20):
        """The first status of a part from now on that is as wanted; None: there was none."""
        self.reports.clear()
        found = []

        def look():
            found[:] = [s for r in self.reports for s in r.status
                        if s.name == f"{self.name.lstrip('/')}: {part}" and good(s)]
            return bool(found)

        self.until(look, timeout)
        return found[0] if found else None

    def ids(self):
        """Query ids of the newest events."""
        return [e.query_id for e in self.events[-1].events] if self.events else []


def stamp_ns(stamp: Time) -> int:
    return conversions.time_to_ns(stamp)
