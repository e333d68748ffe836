"""The node over real DDS: audio and words in, the sound and its direction out."""

import collections
import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy  # noqa: E402
from builtin_interfaces.msg import Time  # noqa: E402
from ear_model import RATE, EarModel  # noqa: E402
from rcl_interfaces.srv import DescribeParameters, SetParametersAtomically  # noqa: E402
from rclpy.event_handler import PublisherEventCallbacks  # noqa: E402
from rclpy.qos import ReliabilityPolicy  # noqa: E402
from ros_helpers import T0, Peer, ros_context, running, stamp_ns  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402
from visualization_msgs.msg import Marker  # noqa: E402

from luseel_model import load_model  # noqa: E402
from luseel_model.errors import CheckpointError  # noqa: E402
from luseel_ros import conversions  # noqa: E402
from luseel_ros.diagnostics import PERIOD  # noqa: E402
from luseel_ros.queries import LATCHED_SECONDS  # noqa: E402


def heard(peer, count=1):
    return peer.until(lambda: sum(bool(m.events) for m in peer.events) >= count)


def asked(node):
    """The node's queries as (id, words)."""
    return [(query.id, query.words) for query in node.queries.all().values()]


def listen(peer, query="dog barking"):
    assert peer.connected()
    if query:
        peer.ask(query)
        peer.spin(0.2)


@pytest.mark.parametrize("reliability", [ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT])
def test_audio_in_events_and_extraction_out(reliability):
    with running(reliability=reliability) as (_, peer):
        listen(peer)
        peer.play(2.0)
        assert heard(peer, 9)
        message = next(m for m in peer.events if m.events)
        event = message.events[0]
        assert (event.query_id, event.query_text, event.active) == ("q1", "dog barking", True)
        assert message.header.frame_id == "mic"
        # one array per hop, stamped with the capture time of the hop's first sample
        stamps = [stamp_ns(m.header.stamp) for m in peer.events]
        assert stamps == [T0 + i * 200_000_000 for i in range(len(stamps))]
        # gapless, stamped by its own first sample, and equal to what went in
        position, blocks = 0, []
        for chunk in peer.extracted:
            assert chunk.query_id == "q1" and chunk.header.frame_id == "mic"
            assert (chunk.sample_rate, chunk.channels) == (RATE, 2)
            assert chunk.first_sample == position
            assert stamp_ns(chunk.header.stamp) == T0 + position * 62_500
            blocks.append(np.frombuffer(chunk.samples, np.float32).reshape(-1, 2).T)
            position += blocks[-1].shape[1]
        out, sent = np.concatenate(blocks, 1), np.concatenate(peer.sent, 1)
        assert position > RATE
        np.testing.assert_allclose(out, sent[:, :position], atol=1e-6)


def test_a_source_on_the_left_has_positive_yaw_and_right_is_mirrored():
    with running() as (_, peer):
        listen(peer)
        peer.play(1.0, left=1.0, right=0.2)
        assert heard(peer, 4)
        event = peer.events[-1].events[0]
        assert event.azimuth == pytest.approx(math.pi / 2, abs=1e-6)
        assert event.direction.y == pytest.approx(1) and np.argmax(event.likelihood) == 90
        peer.play(1.5, left=0.2, right=1.0)
        assert peer.until(lambda: peer.events[-1].events[0].azimuth < 0)
        event = peer.events[-1].events[0]
        assert event.azimuth == pytest.approx(-math.pi / 2, abs=1e-6)
        assert event.direction.y == pytest.approx(-1)
        arrow = next(m for m in peer.markers[-1].markers if m.type == Marker.ARROW)
        assert arrow.points[1].y == pytest.approx(-1)


def test_lifecycle_frees_the_model_and_can_start_again():
    loaded = []

    def load(name, device):
        model = EarModel()
        loaded.append(weakref.ref(model))
        return model

    with running(load=load, autostart=False) as (_, peer):
        assert peer.state() == "unconfigured" and not loaded
        for again in (1, 2):
            assert peer.transition("configure") and peer.state() == "inactive"
            assert len(loaded) == again and loaded[-1]() is not None
            peer.ask("dog barking")
            assert peer.audio.get_subscription_count() == 0
            assert peer.transition("activate") and peer.state() == "active"
            peer.events.clear()
            listen(peer, "dog barking")
            peer.play(0.6)
            assert heard(peer)
            assert peer.transition("deactivate") and peer.state() == "inactive"
            peer.spin(0.3)
            peer.events.clear(), peer.extracted.clear()
            peer.play(0.6)
            peer.spin(0.3)
            assert not peer.events and not peer.extracted
            assert peer.transition("cleanup") and peer.state() == "unconfigured"
            gc.collect()
            assert loaded[-1]() is None
        assert peer.transition("unconfigured_shutdown") and peer.state() == "finalized"


def test_a_missing_checkpoint_is_said_and_the_node_stays_unconfigured(capfd):
    def load(name, device):
        raise CheckpointError(f"no checkpoint at '{name}': expected a .safetensors file")

    with running(load=load, model="/nowhere/x.safetensors") as (_, peer):
        assert peer.state() == "unconfigured"
        peer.spin(0.3)
        assert peer.state() == "unconfigured"
        assert not peer.transition("configure")
        assert peer.state() == "unconfigured"
    text = capfd.readouterr().err
    assert "no checkpoint at '/nowhere/x.safetensors'" in text and "autostart failed" in text


def test_times_that_do_not_fit_the_window_fail_when_configuring(capfd):
    with running(hop=5.0) as (_, peer):
        assert peer.state() == "unconfigured"
    assert "window" in capfd.readouterr().err


BAD = {
    "nan": (dict(), [math.nan] * 1600, "not finite"),
    "inf": (dict(), [math.inf, -math.inf] * 800, "not finite"),
    "absurd": (dict(), [1e38] * 1600, "absurdly large"),
    "mono": (dict(channels=1), None, "binaural audio has two"),
    "no channels": (dict(channels=0), None, "binaural audio has two"),
    "many channels": (dict(channels=65535), None, "binaural audio has two"),
    "odd length": (dict(), [0.0] * 1601, "don't divide"),
    "empty": (dict(), [], "without samples"),
    "rate 0": (dict(sample_rate=0), None, "sample rate 0"),
    "absurd rate": (dict(sample_rate=2**32 - 1), None, "sample rate 4294967295"),
    "own output": (dict(query_id="q1"), None, "not raw audio"),
    "jump ahead": (dict(first_sample=2**64 - 1), None, "jumped"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_audio_is_named_and_survived(name, capfd):
    fields, samples, words = BAD[name]
    with running() as (_, peer):
        listen(peer)
        peer.play(0.6)
        assert heard(peer)
        bad = peer.chunk(**fields)
        if samples is not None:
            bad.samples = samples
        peer.audio.publish(bad)
        peer.spin(0.2)
        peer.events.clear()
        peer.play(1.0)
        assert heard(peer, 3)
        assert all(math.isfinite(x) for m in peer.events for e in m.events
                   for x in (e.azimuth, e.confidence, e.azimuth_stddev, *e.likelihood))
        assert all(np.isfinite(np.frombuffer(c.samples, np.float32)).all() for c in peer.extracted)
    assert words in capfd.readouterr().err


def test_bad_queries_leave_the_old_one(capfd):
    with running() as (_, peer):
        listen(peer, "dog barking")
        for text in ("x" * 5000, "\n\t ", "dog barking  "):
            peer.play(0.4)
            assert heard(peer)
            event = peer.events[-1].events[0]
            assert (event.query_id, event.query_text) == ("q1", "dog barking")
            if text.strip():  # blanks alone stop, as an empty query does: tested elsewhere
                peer.ask(text)
                peer.spin(0.2)
            peer.events.clear()
        for text in ("🐕 bellend", "a\x01b", "'; DROP TABLE", "ß" * 200):
            peer.ask(text)
            peer.play(0.6)
            assert heard(peer)
    assert "query refused" in capfd.readouterr().err


def test_a_query_replaces_the_other_and_an_empty_one_stops():
    with running() as (_, peer):
        listen(peer, "dog")
        peer.play(0.6)
        assert heard(peer)
        peer.ask("cat")
        peer.spin(0.2)
        peer.play(0.6)
        assert peer.until(lambda: peer.events[-1].events
                          and peer.events[-1].events[0].query_id == "q2")
        gone = [m for array in peer.markers for m in array.markers if m.action == Marker.DELETE]
        assert {m.ns for m in gone} == {"q1"}
        peer.ask("")
        peer.spin(0.2)
        peer.events.clear(), peer.extracted.clear()
        peer.play(0.6)
        assert peer.until(lambda: len(peer.events) >= 3)
        assert not any(m.events for m in peer.events[1:]) and len(peer.extracted) <= 1
        gone = [m for array in peer.markers for m in array.markers if m.action == Marker.DELETE]
        assert {m.ns for m in gone} == {"q1", "q2"}


def test_a_latched_query_of_before_is_picked_up_once():
    latched = {}

    def before(peer):
        latched["publisher"] = peer.latched_publisher()
        latched["publisher"].publish(String(data="baby crying"))

    with running(peer_first=before) as (node, peer):
        listen(peer, None)
        assert peer.until(lambda: asked(node))
        peer.play(0.6)
        assert heard(peer)
        assert peer.events[-1].events[0].query_text == "baby crying"
        for text in ("dog", "cat", "dog", "owl"):
            latched["publisher"].publish(String(data=text))
        assert peer.until(lambda: asked(node)[0][1] == "owl")
        peer.spin(0.3)
        assert asked(node) == [("q5", "owl")]
        peer.ask("hen")  # an ordinary publisher afterwards
        assert peer.until(lambda: asked(node) == [("q6", "hen")])


def test_queries_keep_their_order_while_a_latched_one_is_fetched():
    """Live ones reach both of the node's subscriptions then; each counts once."""
    def before(peer):
        peer.latched = peer.latched_publisher()
        peer.latched.publish(String(data="baby crying"))

    with running(peer_first=before) as (node, peer):
        assert peer.until(lambda: peer.latched.get_subscription_count() == 2)
        for text in ("dog", "cat", "dog", "owl"):
            peer.latched.publish(String(data=text))
        assert peer.until(lambda: asked(node) == [("q4", "owl")])
        peer.spin(PERIOD + LATCHED_SECONDS + 0.3)
        assert peer.latched.get_subscription_count() == 1
        assert asked(node) == [("q4", "owl")]


def test_a_latched_publisher_that_comes_later_is_noticed_and_an_old_query_stays_old():
    def before(peer):
        peer.latched = peer.latched_publisher()
        peer.latched.publish(String(data="baby crying"))

    with running(peer_first=before) as (node, peer):
        assert peer.until(lambda: asked(node) == [("q1", "baby crying")])
        peer.ask("hen")
        assert peer.until(lambda: asked(node) == [("q2", "hen")])
        # nothing to fetch from this one, and the other's "baby crying" comes along again
        late = peer.latched_publisher()
        assert peer.until(lambda: late.get_subscription_count() == 2)
        assert peer.until(lambda: late.get_subscription_count() == 1)
        assert asked(node) == [("q2", "hen")]
        # sent before anybody listens to it
        peer.latched_publisher().publish(String(data="owl"))
        assert peer.until(lambda: asked(node) == [("q3", "owl")])


def test_an_ordinary_publisher_fits_all_subscriptions():
    """Where there is no latched publisher: else each ordinary one would log a warning."""
    unfit = []

    def publisher(peer):
        return peer.node.create_publisher(
            String, "query", 10,
            event_callbacks=PublisherEventCallbacks(incompatible_qos=unfit.append))

    with running(peer_first=publisher) as (_, peer):
        listen(peer)
        publisher(peer)
        peer.spin(2 * PERIOD + 0.3)
    assert not unfit


def test_stamps_are_there_as_soon_as_the_audio_is(monkeypatch):
    """Chunks of a hop and no query: the thread is back before the callback has ended."""
    class Slow(collections.deque):
        def append(self, item):
            time.sleep(0.05)
            super().append(item)

    with running() as (node, peer):
        listen(peer, None)
        new_session = node._new_session

        def slow_session(rate):
            session = new_session(rate)
            session.chunks = Slow()
            return session

        monkeypatch.setattr(node, "_new_session", slow_session)
        for _ in range(5):
            peer.audio.publish(peer.chunk(0.2))
            peer.spin(0.1)
        assert peer.until(lambda: len(peer.events) == 5)
        assert [stamp_ns(m.header.stamp) - T0 for m in peer.events] == [
            i * 200_000_000 for i in range(5)]


def test_a_result_of_before_a_restart_keeps_its_stamp():
    """The source starts to count anew while the model runs; its numbers come again."""
    with running(EarModel(seconds=0.4), warm_up=False) as (_, peer):
        listen(peer)
        peer.position = 2 * RATE
        first = peer.chunk(0.2)
        peer.audio.publish(first)
        peer.spin(0.2)  # the model runs
        peer.position = RATE // 2  # 1.5 s back; the stamps, taken from a clock, go on
        for i in range(8):
            header = Header(stamp=conversions.ns_to_time(T0 + 100_000_000_000 + i * 50_000_000),
                            frame_id="mic")
            peer.audio.publish(peer.chunk(header=header))
        assert heard(peer, 3)
        assert [stamp_ns(m.header.stamp) - T0 for m in peer.events] == [
            2_000_000_000, 100_000_000_000, 100_200_000_000]


def test_a_model_that_takes_too_long_to_stop_is_left_alone(monkeypatch, capfd):
    """Its result comes when the publishers are gone: it is dropped, without a word."""
    monkeypatch.setattr("luseel_ros.node.STOP_SECONDS", 0.1)
    model = EarModel()
    with running(model) as (_, peer):
        listen(peer)
        peer.play(0.4)
        assert heard(peer)
        model.seconds, runs = 1.5, model.runs
        peer.play(0.4)
        assert peer.until(lambda: model.runs > runs)
        peer.markers.clear()
        assert peer.transition("deactivate")
        assert peer.until(lambda: any(
            m.action == Marker.DELETE for array in peer.markers for m in array.markers))
        assert peer.transition("cleanup") and peer.state() == "unconfigured"
        model.seconds = 0.0
        peer.events.clear()
        assert peer.transition("configure") and peer.transition("activate")
        listen(peer, "cat")
        peer.play(1.0)
        assert heard(peer, 3)
        peer.spin(1.5)  # the old thread comes to its end
        assert all(m.events for m in peer.events)
        assert {e.query_text for m in peer.events for e in m.events} == {"cat"}
        assert not [t for t in threading.enumerate() if t.name == "inference"][1:]
    text = capfd.readouterr().err
    assert "still runs" in text and "no result" not in text and "Traceback" not in text


def test_a_slow_model_drops_says_so_and_delays_nobody(capfd):
    with running(EarModel(seconds=0.5), buffer_seconds=0.4, warm_up=False) as (_, peer):
        listen(peer)
        peer.play(3.0, pace=0.5)
        begin = time.monotonic()
        assert peer.state() == "active"
        assert time.monotonic() - begin < 0.45  # the model takes longer than this answer
        assert heard(peer, 2)
        stamps = [stamp_ns(m.header.stamp) - T0 for m in peer.events]
        assert stamps == sorted(stamps) and any(np.diff(stamps) > 200_000_000)
    assert "too slow" in capfd.readouterr().err


def test_a_change_of_rate_starts_anew_at_that_rate(capfd):
    with running() as (_, peer):
        listen(peer)
        peer.play(0.6)
        assert heard(peer)
        peer.extracted.clear()
        peer.position = 0
        peer.play(1.0, rate=48000)
        assert peer.until(lambda: any(c.sample_rate == 48000 for c in peer.extracted))
        chunk = next(c for c in peer.extracted if c.sample_rate == 48000)
        assert chunk.first_sample == 0 and stamp_ns(chunk.header.stamp) == T0
    assert "from 16000 to 48000" in capfd.readouterr().err


def test_sources_without_stamps_or_counters(capfd):
    with running() as (_, peer):
        listen(peer)
        for _ in range(20):
            peer.audio.publish(peer.chunk(first_sample=0, header=Header(stamp=Time())))
            peer.spin(0.02)
        assert heard(peer, 3)
        now = time.time_ns()
        assert all(abs(stamp_ns(m.header.stamp) - now) < 20e9 for m in peer.events)
        assert [c.first_sample for c in peer.extracted][0] == 0
    text = capfd.readouterr().err
    assert "has no stamps" in text and "first_sample stays 0" in text


def test_lost_messages_are_said(capfd):
    with running() as (_, peer):
        listen(peer)
        peer.play(0.6)
        peer.chunk(), peer.chunk()  # never sent
        peer.play(0.6)
        assert heard(peer, 5)
    assert "messages were lost: 0.10 s" in capfd.readouterr().err


def test_a_model_that_fails_is_said_and_survived(capfd):
    class Failing(EarModel):
        def infer_window(self, window, queries):
            if self.runs in (3, 4):
                self.runs += 1
                raise RuntimeError("CUDA out of memory")
            return super().infer_window(window, queries)

    with running(Failing(), warm_up=False) as (_, peer):
        listen(peer)
        peer.play(2.0)
        assert heard(peer, 7)
    assert "CUDA out of memory" in capfd.readouterr().err


def test_parameters_are_described_bounded_and_applied_or_refused():
    with running() as (node, peer):
        listen(peer)

        def set_parameter(name, value):
            return peer.service(SetParametersAtomically, "set_parameters_atomically",
                                SetParametersAtomically.Request(parameters=[
                                    rclpy.Parameter(name, value=value).to_parameter_msg()])).result

        assert set_parameter("confidence_threshold", 1.0).successful
        assert set_parameter("frame_id", "head").successful
        peer.play(0.4)
        peer.events.clear()
        peer.play(0.6, left=0.05, right=0.0)
        assert heard(peer)
        assert peer.events[-1].header.frame_id == "head" and not peer.events[-1].events[0].active
        assert not set_parameter("confidence_threshold", 1.5).successful
        refused = set_parameter("model", "x")
        assert not refused.successful and "configuring" in refused.reason
        assert not set_parameter("audio_reliability", "perhaps").successful
        assert not set_parameter("autostart", False).successful
        names = ["model", "device", "hop", "confidence_threshold", "frame_id", "autostart",
                 "audio_depth", "audio_reliability", "buffer_seconds", "warm_up"]
        described = peer.service(DescribeParameters, "describe_parameters",
                                 DescribeParameters.Request(names=names)).descriptors
        assert all(d.description for d in described)
        assert described[2].floating_point_range[0].to_value == 10.0
        assert described[6].integer_range[0].from_value == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A real network, tiny and untrained."""
    from model_fixtures import changed, make_network

    from luseel_model.checkpoint import save_checkpoint
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    config = changed("tiny")
    save_checkpoint(path, make_network(config).state_dict(), config)
    return path


@contextlib.contextmanager
def process(context, *parameters):
    """The node as a user starts it, in its own process."""
    env = dict(os.environ, ROS_DOMAIN_ID=str(context.get_domain_id()), OMP_NUM_THREADS="1")
    child = subprocess.Popen(
        [sys.executable, "-m", "luseel_ros.run", "--ros-args", "-r", "__ns:=/robot", "-r",
         "audio:=/audio", "-r", "query:=/query",
         *(part for p in parameters for part in ("-p", p))],
        env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_two_processes(checkpoint, end):
    """Audio and words over DDS to the node in its own process, with a real network, and back."""
    with ros_context() as context:
        peer = Peer(context, "/robot/luseel")
        try:
            with process(context, f"model:={checkpoint}", "hop:=0.1", "device:=cpu") as child:
                assert peer.until(lambda: peer.audio.get_subscription_count() > 0, 300)
                listen(peer, "where is the dog barking?")
                peer.play(2.0, pace=1.0)
                assert heard(peer, 15)
                event = peer.events[-1].events[0]
                assert event.query_text == "where is the dog barking?"
                assert -math.pi < event.azimuth <= math.pi and 0 <= event.confidence <= 1
                assert event.direction.x == pytest.approx(math.cos(event.azimuth), abs=1e-5)
                assert max(event.likelihood) > 0
                position = 0
                for chunk in peer.extracted:
                    assert chunk.first_sample == position
                    position += len(chunk.samples) // 2
                assert position > RATE and any(np.any(c.samples) for c in peer.extracted)
                begin = time.monotonic()
                child.send_signal(end)
                errors = child.communicate(timeout=5)[1]
                assert child.returncode == 0, errors
                assert time.monotonic() - begin < 3
                assert "Traceback" not in errors
        finally:
            peer.close()


@pytest.mark.parametrize("broken", ["missing", "truncated", "foreign"])
def test_bad_checkpoints_are_said(checkpoint, tmp_path, broken, capfd):
    path = tmp_path / "x.safetensors"
    if broken == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:5000])
    elif broken == "foreign":
        from safetensors.numpy import save_file
        save_file({"a": np.zeros(3)}, path)
    with running(load=load_model, model=str(path)) as (_, peer):
        assert peer.state() == "unconfigured"
        peer.spin(0.2)
        assert peer.state() == "unconfigured"
    text = capfd.readouterr().err
    assert "can't configure" in text and str(path) in text
