"""The thread that takes the audio, and what the node leaves out while nobody listens."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy  # noqa: E402
from ear_model import RATE  # noqa: E402
from rclpy.event_handler import SubscriptionEventCallbacks  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from ros_helpers import Peer, ros_context, running, spinning  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from luseel_ros import callback_thread, conversions  # noqa: E402
from luseel_ros.callback_thread import SubscriptionThread  # noqa: E402

PATIENCE = 60.0  # [s]


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def node():
    """A node that an executor spins, in a thread that isn't ours."""
    with ros_context() as context:
        with spinning(rclpy.create_node("ears", context=context)) as node:
            yield node


def subscribe(node, thread, topic, callback, **options):
    return node.create_subscription(
        String, topic, callback, QoSProfile(depth=100, **options.pop("qos", {})),
        callback_group=thread, **options)


def publisher(node, topic, **qos):
    return node.create_publisher(String, topic, QoSProfile(depth=100, **qos))


def send(publisher, texts):
    for text in texts:
        publisher.publish(String(data=text))


def test_messages_come_in_order_in_this_thread_only(node):
    got, asked = [], []
    thread = SubscriptionThread(node, "mine")
    thread.every(0.05, lambda: asked.append(threading.current_thread().name))

    def take(message):
        got.append((threading.current_thread().name, message.data))
        if message.data == "3":
            raise ValueError("a bad message")  # the next is a better one

    subscribe(node, thread, "words", take)
    thread.start()
    words = publisher(node, "words")
    assert until(words.get_subscription_count)
    send(words, "0123456789")
    assert until(lambda: len(got) >= 10) and until(lambda: len(asked) >= 2)
    assert got == [("mine", str(i)) for i in range(10)] and set(asked) == {"mine"}
    # one that is made later, by another thread, and one that is taken away
    more = []
    second = subscribe(node, thread, "more", lambda message: more.append(message.data))
    other = publisher(node, "more")
    assert until(other.get_subscription_count)
    send(other, "a")
    assert until(lambda: more == ["a"])
    node.destroy_subscription(second)
    send(words, "x")
    assert until(lambda: got[-1] == ("mine", "x"))
    thread.stop()
    assert not thread._thread.is_alive()
    send(words, "y")
    time.sleep(0.3)
    assert got[-1] == ("mine", "x")


def test_messages_wait_while_it_rests_and_none_is_lost(node):
    got, waits = [], []
    thread = SubscriptionThread(node, "mine")

    def take(message):
        got.append(message.data)
        thread.rest(0.5 if len(got) == 1 else 0.0)

    once = thread._once

    def counted():
        waits.append(time.monotonic())
        once()

    thread._once = counted
    subscribe(node, thread, "words", take)
    thread.start()
    words = publisher(node, "words")
    assert until(words.get_subscription_count)
    send(words, "a")
    assert until(lambda: got)
    time.sleep(0.05)
    send(words, "bcdefghij")
    before = len(waits)
    assert until(lambda: len(got) == 10) and "".join(got) == "abcdefghij"
    assert len(waits) - before <= 2  # all of them after one wait
    begin = time.monotonic()
    thread.rest(30.0)
    thread.stop()  # doesn't wait for the rest
    assert time.monotonic() - begin < 10


def test_an_unfit_publisher_is_told_of_there(node):
    told = []
    thread = SubscriptionThread(node, "mine")
    subscribe(node, thread, "words", print, qos={"reliability": ReliabilityPolicy.RELIABLE},
              event_callbacks=SubscriptionEventCallbacks(incompatible_qos=lambda event: told.append(
                  (threading.current_thread().name, event.last_policy_kind.name))))
    thread.start()
    publisher(node, "words", reliability=ReliabilityPolicy.BEST_EFFORT)
    assert until(lambda: told) and told[0][0] == "mine" and "RELIABILITY" in told[0][1]
    thread.stop()


def test_it_ends_with_the_context():
    with ros_context() as context:
        node = rclpy.create_node("ears", context=context)
        thread = SubscriptionThread(node, "mine")
        subscribe(node, thread, "words", print)
        thread.start()
        rclpy.shutdown(context=context)
        assert until(lambda: not thread._thread.is_alive())
        thread.stop()


def test_short_messages_in_real_time_are_taken_together(monkeypatch):
    """As long as none of them completes a hop; and not a sample is lost."""
    waits = []
    once = SubscriptionThread._once

    def counted(self):
        waits.append(time.monotonic())
        once(self)

    monkeypatch.setattr(callback_thread.SubscriptionThread, "_once", counted)
    with running(hop=0.4) as (node, peer):
        assert peer.connected()
        peer.ask("dog")
        assert peer.until(lambda: node.queries.all())
        begin = time.monotonic()
        for number in range(300):
            peer.spin(max(0.0, begin + 0.01 * (number + 1) - time.monotonic()))
            peer.audio.publish(peer.chunk(seconds=0.01))
        assert peer.until(lambda: sum(len(c.samples) for c in peer.extracted) // 2 > 2.4 * RATE)
        assert node._session.real_time
        assert peer.until(lambda: node.statistics["blocks"] == 300)
        assert len(waits) < 200 and not node.statistics["missing"]
    position, blocks = 0, []
    for chunk in peer.extracted:
        assert chunk.first_sample == position
        blocks.append(np.frombuffer(chunk.samples, np.float32).reshape(-1, 2).T)
        position += blocks[-1].shape[1]
    np.testing.assert_allclose(
        np.concatenate(blocks, 1), np.concatenate(peer.sent, 1)[:, :position], atol=1e-6)


@pytest.mark.parametrize("options, rests", [({}, True), ({"audio_depth": 3}, False)])
def test_no_rest_before_the_end_of_a_hop_nor_beyond_the_queue(options, rests, monkeypatch):
    monkeypatch.setattr("luseel_ros.node.REST", 0.2)
    with running(hop=0.4, **options) as (node, peer):
        assert peer.connected()
        peer.play(1.0)
        assert peer.until(lambda: node._session is not None and node._session.result)
        session = node._session
        session.result = (6400, 6400, 0.0)  # a hop ends at 0.4 s, and so on
        spare = [round(node._spare(session, 6400 + 800 * n, 800), 3) for n in range(9)]
        # with messages of 0.05 s: 0.4 s are left, the last 0.05 s of which come in one message
        assert spare == ([0.2, 0.2, 0.2, 0.2, 0.15, 0.1, 0.05, 0.0, 0.2] if rests else [0.0] * 9)


def test_nothing_is_made_that_nobody_gets(monkeypatch):
    made = []
    sound_event, chunk = conversions.sound_event, conversions.array_to_chunk
    monkeypatch.setattr(conversions, "sound_event",
                        lambda *a: made.append("event") or sound_event(*a))
    monkeypatch.setattr(conversions, "array_to_chunk",
                        lambda *a: made.append("audio") or chunk(*a))

    class Silent(Peer):
        """Sends, and listens to nothing."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for subscription in [*self.node.subscriptions]:
                self.node.destroy_subscription(subscription)

        def chunk(self, **kwargs):
            message = super().chunk(**kwargs)
            made.clear()  # that was ours
            return message

    with running(peer_kind=Silent) as (node, peer):
        assert peer.connected()
        peer.ask("dog")
        assert peer.until(lambda: node.queries.all())
        peer.play(1.0)
        assert peer.until(lambda: node.statistics["hops"] >= 4) and not made
        events = []
        from luseel.msg import SoundEventArray
        peer.node.create_subscription(SoundEventArray, "/luseel/events", events.append, 10)
        assert peer.until(lambda: node.count_subscribers("/luseel/events"))
        peer.spin(0.2)
        peer.play(1.0)
        assert peer.until(lambda: any(m.events for m in events))
        assert "audio" not in made
