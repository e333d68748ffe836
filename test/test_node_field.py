"""What a robot does to the node, over real DDS: several queries, changes while it runs, simulated
time, quality of service, lost memory, several nodes, signals."""

import contextlib
import functools
import importlib.util
import math
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy  # noqa: E402
import ros_helpers  # noqa: E402
from builtin_interfaces.msg import Duration, Time  # noqa: E402
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from ear_model import RATE, EarModel  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from luseel.msg import AudioChunk, Query, QueryArray, SoundEventArray  # noqa: E402
from rcl_interfaces.srv import DescribeParameters  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from ros_helpers import LATCHED, T0, FieldPeer, ros_context, spinning, stamp_ns  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402
from visualization_msgs.msg import Marker  # noqa: E402

from luseel_ros import conversions, outputs, parameters  # noqa: E402
from luseel_ros.diagnostics import resident_bytes  # noqa: E402
from luseel_ros.node import LuseelNode  # noqa: E402

running = functools.partial(ros_helpers.running, peer_kind=FieldPeer, warm_up=False)


def values_of(status):
    return {value.key: value.value for value in status.values}


# -- queries --------------------------------------------------------------------------------------

def test_several_queries_by_message_and_service_and_the_list_of_them():
    with running(max_queries=3) as (_, peer):
        assert peer.connected() and peer.listed() == {}
        peer.commands.publish(Query(action=Query.ADD, id="dog", text="dog barking"))
        assert peer.until(lambda: peer.listed() == {"dog": "dog barking"})
        answer = peer.request(action=Query.ADD, text="a baby", threshold=0.25,
                              lifetime=Duration(sec=100))
        assert answer.success and answer.id == "q2"
        assert peer.until(lambda: peer.listed() == {"dog": "dog barking", "q2": "a baby"})
        entry = peer.lists[-1].queries[1]
        assert entry.threshold == 0.25 and 90 < entry.lifetime.sec <= 100
        peer.play(1.0)
        assert peer.until(lambda: peer.ids() == ["dog", "q2"])
        assert {c.query_id for c in peer.extracted} == {"dog", "q2"}
        # who comes later gets the present list
        late = []
        peer.node.create_subscription(QueryArray, "/luseel/queries", late.append, LATCHED)
        assert peer.until(lambda: late)
        assert [q.id for q in late[0].queries] == ["dog", "q2"]
        # refusals say why, and change nothing
        for fields, words in ((dict(text=""), "empty"), (dict(text="x", id="a/b"), "can't be used"),
                              (dict(text="x", threshold=2.0), "threshold"),
                              (dict(text="x", lifetime=Duration(sec=-1)), "lifetime"),
                              (dict(action=Query.REMOVE, id="cat"), "no query 'cat'"),
                              (dict(action=9), "action 9")):
            answer = peer.request(**fields)
            assert not answer.success and words in answer.reason and not answer.id
        assert peer.request(text="third").success
        answer = peer.request(text="fourth")
        assert not answer.success and "max_queries is 3" in answer.reason
        assert peer.request(action=Query.REMOVE, text="third").success
        # words on `query` replace all; the clear action and blanks leave none
        peer.ask("owl")
        assert peer.until(lambda: list(peer.listed().values()) == ["owl"])
        peer.commands.publish(Query(action=Query.CLEAR))
        assert peer.until(lambda: peer.listed() == {})
        peer.events.clear()
        peer.play(0.6)
        assert peer.until(lambda: peer.events and not peer.ids())


def test_queries_change_without_a_seam_in_the_others():
    with running() as (_, peer):
        assert peer.connected()
        assert peer.request(id="dog", text="dog").success
        peer.play(1.0)
        assert peer.request(id="cat", text="cat").success
        peer.play(1.0)
        assert peer.request(action=Query.REMOVE, id="cat").success
        peer.play(1.0)
        assert peer.until(lambda: sum(
            len(c.samples) // 2 for c in peer.extracted if c.query_id == "dog") > 2.5 * RATE)
        position, blocks = 0, []
        for chunk in (c for c in peer.extracted if c.query_id == "dog"):
            assert chunk.first_sample == position
            blocks.append(np.frombuffer(chunk.samples, np.float32).reshape(-1, 2).T)
            position += blocks[-1].shape[1]
        sent = np.concatenate(peer.sent, 1)
        np.testing.assert_allclose(np.concatenate(blocks, 1), sent[:, :position], atol=1e-6)
        assert any(c.query_id == "cat" for c in peer.extracted)


def test_thresholds_and_lifetimes_are_those_of_each_query():
    with running(confidence_threshold=0.5) as (_, peer):
        assert peer.connected()
        assert peer.request(id="easy", text="a", threshold=0.05).success
        assert peer.request(id="hard", text="b", threshold=0.95).success
        assert peer.request(id="usual", text="c").success
        assert peer.request(id="short", text="d", lifetime=Duration(sec=3)).success
        peer.play(0.8, left=0.2, right=0.1)  # confidence about 0.8
        assert peer.until(lambda: set(peer.ids()) >= {"easy", "hard", "usual"})
        active = {e.query_id: e.active for e in peer.events[-1].events}
        assert active["easy"] and not active["hard"] and active["usual"]
        assert peer.set_parameter("confidence_threshold", 0.9).successful
        peer.events.clear()
        peer.play(0.6, left=0.2, right=0.1)
        assert peer.until(lambda: peer.ids())
        active = {e.query_id: e.active for e in peer.events[-1].events}
        assert active["easy"] and not active["usual"]
        assert peer.until(lambda: "short" not in peer.listed())
        assert set(peer.listed()) == {"easy", "hard", "usual"}
        refused = peer.set_parameter("max_queries", 2)
        assert not refused.successful and "there are 3 queries" in refused.reason


def test_latched_queries_are_picked_up_once_and_in_order():
    with ros_context() as context:
        peer = FieldPeer(context)
        early = peer.node.create_publisher(Query, "/luseel/set_query", LATCHED)
        for fields in (dict(id="a", text="dog"), dict(id="b", text="cat"),
                       dict(id="a", text="wolf"), dict(action=Query.REMOVE, id="b"),
                       dict(id="c", text="owl")):
            early.publish(Query(**fields))
        node = LuseelNode(
            load=lambda name, device: EarModel(), context=context,
            parameter_overrides=[rclpy.Parameter("hop", value=0.2)])
        try:
            with spinning(node):
                assert peer.until(lambda: peer.listed() == {"a": "wolf", "c": "owl"})
                assert peer.request(action=Query.REMOVE, id="c").success
                late = peer.node.create_publisher(Query, "/luseel/set_query", LATCHED)
                late.publish(Query(id="d", text="hen"))  # `early` hands over its own once more
                assert peer.until(lambda: "d" in peer.listed())
                peer.spin(1.5)
                assert peer.listed()["a"] == "wolf" and "b" not in peer.listed()
        finally:
            peer.close()


# -- outputs --------------------------------------------------------------------------------------

class TwoEars(EarModel):
    """'left' is at 90 degrees and sure, 'right' at 270 and less so, 'absent' isn't there."""

    def infer_window(self, window, queries):
        azimuth = np.array([270.0 if q == "right" else 90.0 for q in queries])
        confidence = np.array([{"left": 0.9, "right": 0.7}.get(q, 0.1) for q in queries])
        likelihood = np.full((len(queries), 360), 0.01, np.float32)
        likelihood[np.arange(len(queries)), azimuth.astype(int)] = 1
        return SimpleNamespace(audio=np.stack([window] * len(queries)), azimuth=azimuth,
                               likelihood=likelihood, confidence=confidence)


def yaw(pose):
    q = pose.pose.orientation
    return math.atan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y**2 + q.z**2))


def test_poses_and_markers_of_each_query():
    with running(TwoEars()) as (_, peer):
        assert peer.connected()
        got = {name: [] for name in ("left", "right", "absent")}
        for name in got:
            assert peer.request(id=name, text=name).success
            peer.node.create_subscription(
                PoseStamped, f"/luseel/poses/{name}", got[name].append, 10)
        assert peer.until(lambda: all(
            peer.node.count_publishers(f"/luseel/poses/{name}") for name in got))
        peer.spin(0.5)
        peer.play(1.0)
        assert peer.until(lambda: got["left"] and got["right"] and peer.pose and peer.markers)
        assert yaw(got["left"][-1]) == pytest.approx(math.pi / 2, abs=1e-5)
        assert yaw(got["right"][-1]) == pytest.approx(-math.pi / 2, abs=1e-5)
        assert yaw(peer.pose[-1]) == pytest.approx(math.pi / 2, abs=1e-5)  # the surest
        assert not got["absent"]  # a guess is no pose
        position = got["left"][-1].pose.position
        assert (position.x, position.y, position.z) == (0, 0, 0)  # the range is unknown
        assert got["left"][-1].header.frame_id == "mic"
        stamp = stamp_ns(got["left"][-1].header.stamp)  # topics arrive in any order
        assert peer.until(lambda: stamp in {stamp_ns(m.header.stamp) for m in peer.events})
        markers = {(m.ns, m.type): m for m in peer.markers[-1].markers}
        assert {ns for ns, _ in markers} == set(got)
        colours = {ns: (m.color.r, m.color.g, m.color.b) for (ns, _), m in markers.items()}
        assert len(set(colours.values())) == 3
        arrows = {ns: m for (ns, kind), m in markers.items() if kind == Marker.ARROW}
        assert arrows["left"].color.a > arrows["right"].color.a > arrows["absent"].color.a
        assert arrows["left"].points[1].y > 0 > arrows["right"].points[1].y
        assert peer.request(action=Query.REMOVE, id="right").success
        assert peer.until(lambda: not peer.node.count_publishers("/luseel/poses/right"))


def test_audio_without_room_for_an_id_has_a_topic_for_each_query(monkeypatch):
    """For the messages of others, which tests of their own publish for real."""
    writers = {}

    class Writer:
        listened_to = True

        def __init__(self, node, kind, topic, qos):
            self.blocks, self.alive = [], True
            writers[topic] = self
            assert kind == "mgonzs13"

        def publish(self, block):
            assert self.alive
            self.blocks.append(block)

        def destroy(self):
            self.alive = False

    monkeypatch.setattr(outputs, "AudioWriter", Writer)
    monkeypatch.setattr("luseel_ros.node.load_messages", lambda kind: None)
    with running(extracted_type="mgonzs13") as (_, peer):
        assert peer.connected()
        assert peer.request(id="dog", text="dog").success
        assert peer.request(id="cat", text="cat").success
        peer.play(0.8)
        assert peer.until(lambda: len(writers) == 2 and all(w.blocks for w in writers.values()))
        assert set(writers) == {"~/extracted/dog", "~/extracted/cat"}
        block = writers["~/extracted/dog"].blocks[0]
        assert block.query_id == "dog" and block.samples.shape[1] == 2
        assert (block.stamp_ns, block.first_sample, block.frame_id) == (T0, 0, "mic")
        assert peer.request(action=Query.REMOVE, id="dog").success
        assert not writers["~/extracted/dog"].alive and writers["~/extracted/cat"].alive


def test_the_mount_is_published_as_a_static_transform(monkeypatch):
    class Message(SimpleNamespace):
        pass

    sent, said = [], []
    monkeypatch.setattr(outputs, "TFMessage", Message)
    node = SimpleNamespace(
        create_publisher=lambda kind, topic, qos: sent.append((topic, qos)) or SimpleNamespace(
            publish=sent.append),
        get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(to_msg=Time)))
    values = {name: p.default for name, p in parameters.PARAMETERS.items()}
    mount = outputs.Mount(node, said.append)
    mount.update(values, "mic")
    assert not sent  # nobody asked for it
    values |= {"mount.parent_frame": "base_link", "mount.x": 0.1, "mount.z": 1.2,
               "mount.yaw": math.pi / 2}
    mount.update(values, "")
    assert not sent  # the microphones' frame isn't known yet
    mount.update(values, "mic")
    mount.update(values, "mic")
    (topic, qos), message = sent  # once
    assert topic == "/tf_static" and qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
    transform, = message.transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("base_link", "mic")
    assert transform.transform.translation.z == 1.2
    rotation = transform.transform.rotation
    assert (rotation.z, rotation.w) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))
    mount.update({**values, "mount.parent_frame": "mic"}, "mic")
    assert len(sent) == 2 and "own frame" in said[-1]
    monkeypatch.setattr(outputs, "TFMessage", None)
    mount.update({**values, "mount.x": 5.0}, "mic")
    assert "tf2_msgs" in said[-1]


def test_the_static_transform_over_dds():
    TFMessage = pytest.importorskip("tf2_msgs.msg").TFMessage
    with running(**{"mount.parent_frame": "base_link", "mount.x": 0.25}) as (_, peer):
        got = []
        peer.node.create_subscription(TFMessage, "/tf_static", got.append, LATCHED)
        assert peer.connected()
        peer.play(0.2)
        assert peer.until(lambda: got)
        transform, = got[-1].transforms
        assert transform.child_frame_id == "mic" and transform.transform.translation.x == 0.25
        assert peer.set_parameter("mount.x", 0.5).successful
        assert peer.until(lambda: got[-1].transforms[0].transform.translation.x == 0.5)


# -- time and loss --------------------------------------------------------------------------------

def test_a_gap_is_bridged_with_silence_and_a_long_one_starts_anew():
    with running() as (_, peer):
        assert peer.connected()
        peer.ask("dog")
        peer.play(0.6)
        lost = np.concatenate([peer.chunk() and peer.sent[-1] for _ in range(6)], 1)  # 0.3 s
        peer.play(1.0)
        assert peer.until(lambda: sum(len(c.samples) // 2 for c in peer.extracted) > 1.5 * RATE)
        audio = np.concatenate([np.frombuffer(c.samples, np.float32).reshape(-1, 2).T
                                for c in peer.extracted], 1)
        sent = np.concatenate(peer.sent, 1)[:, :audio.shape[1]].copy()
        start = round(0.6 * RATE)
        sent[:, start:start + lost.shape[1]] = 0
        np.testing.assert_allclose(audio, sent, atol=1e-6)
        peer.position += 5 * RATE
        peer.extracted.clear()
        peer.play(0.8)
        assert peer.until(lambda: peer.extracted)
        first = peer.extracted[0]
        assert first.first_sample >= 6.9 * RATE
        assert stamp_ns(first.header.stamp) == T0 + first.first_sample * 62_500
        values = values_of(peer.status("audio", lambda s: s.level == DiagnosticStatus.WARN))
        assert values["gaps: missing [s]"] == "5.300" and values["restarts"] == "1"


def test_a_jump_of_the_source_clock_passes_through_and_is_said(capfd):
    with running() as (_, peer):
        assert peer.connected()
        peer.ask("dog")
        peer.play(0.6)
        for _ in range(12):
            chunk = peer.chunk()
            shifted = stamp_ns(chunk.header.stamp) - 1000 * 10**9
            chunk.header.stamp = conversions.ns_to_time(shifted)
            peer.audio.publish(chunk)
            peer.spin(0.02)
        assert peer.until(lambda: T0 - 1000 * 10**9 + 800_000_000 in {
            stamp_ns(m.header.stamp) for m in peer.events})
        chunks = [c for c in peer.extracted if len(c.samples)]
        for before, after in zip(chunks, chunks[1:]):  # the audio goes on
            assert after.first_sample == before.first_sample + len(before.samples) // 2
        status = peer.status("audio", lambda s: "clock jumped" in s.message)
        assert values_of(status)["clock jumps"] == "1"
    assert "jumped by -1000.000 s" in capfd.readouterr().err


def test_simulated_time_rules_lifetimes_and_survives_a_jump_back():
    from rosgraph_msgs.msg import Clock
    with running(use_sim_time=True) as (node, peer):
        clock = peer.node.create_publisher(Clock, "/clock", 10)

        def tick(seconds):
            stamp = conversions.ns_to_time(round(seconds * 1e9))
            for _ in range(100):
                clock.publish(Clock(clock=stamp))
                peer.spin(0.05)
                if node.get_clock().now().nanoseconds == round(seconds * 1e9):
                    return True
            return False

        assert peer.connected()
        assert tick(1000.0)
        assert peer.request(id="dog", text="dog", lifetime=Duration(sec=5)).success
        assert stamp_ns(peer.lists[-1].header.stamp) == 1000 * 10**9
        assert tick(1001.5)
        assert tick(100.0)  # the bag starts over: 3.5 s are left
        peer.play(0.6)
        assert peer.until(lambda: peer.ids() == ["dog"])
        assert tick(101.5) and tick(103.0)
        peer.spin(0.3)
        assert "dog" in peer.listed()
        assert tick(103.6)
        assert peer.until(lambda: peer.listed() == {})


def test_a_wrong_rate_is_an_error_in_the_diagnostics():
    with running() as (_, peer):
        assert peer.connected()
        for _ in range(30):  # 48 kHz audio that calls itself 16 kHz
            chunk = peer.chunk()
            chunk.header.stamp = conversions.add_samples(
                conversions.ns_to_time(T0), chunk.first_sample, 48000)
            peer.audio.publish(chunk)
            peer.spin(0.01)
        status = peer.status("audio", lambda s: s.level == DiagnosticStatus.ERROR)
        assert status and "48000 Hz" in status.message


# -- parameters -----------------------------------------------------------------------------------

def test_hop_and_profile_change_while_it_runs():
    with running(hop=0.2) as (_, peer):
        assert peer.connected()
        peer.ask("dog")
        peer.play(0.6)
        assert peer.until(lambda: len(peer.events) >= 3)
        assert peer.set_parameter("hop", 0.1).successful
        peer.events.clear()
        peer.play(0.6)
        assert peer.until(lambda: len(peer.events) >= 5)
        stamps = np.diff([stamp_ns(m.header.stamp) for m in peer.events])
        assert stamps[-1] == 100_000_000
        position = 0
        for chunk in peer.extracted:
            assert chunk.first_sample == position
            position += len(chunk.samples) // 2
        assert peer.set_parameter("profile", "low_latency").successful
        for name, value, words in (
                ("hop", 5.0, "window"), ("hop", 0.05, "too short"), ("profile", "best", "best"),
                ("precision", "int4", "int4"), ("audio_type", "mgonzs13", "configuring"),
                ("frame_id", "/map", "no name of a frame"), ("mount.yaw", math.nan, ""),
                ("buffer_seconds", 1e9, ""), ("max_queries", 0, ""), ("model", 5, "")):
            refused = peer.set_parameter(name, value)
            assert not refused.successful and words in refused.reason, name
            assert refused.reason, name


def test_every_parameter_is_described():
    with running() as (_, peer):
        names = list(parameters.PARAMETERS)
        described = peer.service(DescribeParameters, "describe_parameters",
                                 DescribeParameters.Request(names=names)).descriptors
        assert [d.name for d in described] == names
        for one in described:
            assert one.description and one.additional_constraints, one.name
            default = parameters.PARAMETERS[one.name].default
            if isinstance(default, (int, float)) and not isinstance(default, bool):
                assert one.floating_point_range or one.integer_range, one.name


def test_a_wrong_value_at_the_start_is_said_and_ends_the_process():
    for parameter, words in (("profile:=best", "low_latency"), ("hop:=99.0", "hop")):
        done = subprocess.run(
            [sys.executable, "-m", "luseel_ros.run", "--ros-args", "-p", parameter],
            capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and words in done.stderr
        assert "Traceback" not in done.stderr


# -- quality of service ---------------------------------------------------------------------------

def test_an_incompatible_publisher_is_reported(capfd):
    with running(audio_reliability="reliable",
                 reliability=ReliabilityPolicy.BEST_EFFORT) as (_, peer):
        assert peer.until(lambda: peer.node.count_subscribers("/audio") >= 1)
        status = peer.status(
            "audio", lambda s: values_of(s)["incompatible publishers or subscribers"] == "1")
        assert status and "incompatible" in status.message
        peer.play(0.3)
        assert not peer.events
    assert "audio_reliability to best_effort" in capfd.readouterr().err


def test_outputs_are_as_reliable_as_asked(capfd):
    with running(output_reliability="best_effort", output_depth=3) as (_, peer):
        heard = []
        peer.node.create_subscription(
            SoundEventArray, "/luseel/events", heard.append,
            QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT))
        assert peer.connected()
        peer.play(0.8)
        assert peer.until(lambda: heard)
        assert not peer.events  # that subscription asks for a reliable publisher
        info, = peer.node.get_publishers_info_by_topic("/luseel/events")
        assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    assert "output_reliability to reliable" in capfd.readouterr().err


# -- lifecycle and memory -------------------------------------------------------------------------

def test_memory_is_freed_by_cleanup():
    class Large(EarModel):
        def __init__(self):
            super().__init__()
            self.weights = np.ones(40_000_000)  # 320 MB, in RAM because it is written

    with running(load=lambda name, device: Large(), autostart=False) as (_, peer):
        sizes = []
        for _ in range(3):
            assert peer.transition("configure") and peer.transition("activate")
            assert peer.connected()
            peer.ask("dog")
            peer.play(0.4)
            assert peer.until(lambda: peer.events)
            loaded = resident_bytes()
            assert peer.transition("deactivate") and peer.transition("cleanup")
            sizes.append(resident_bytes())
            assert loaded - sizes[-1] > 300e6
            peer.events.clear()
        assert sizes[2] - sizes[0] < 20e6


def test_out_of_memory_falls_back_to_fewer_queries_and_to_the_cpu(capfd):
    import torch

    class Small(EarModel):
        """A GPU with room for one query, and then for none."""

        def __init__(self, device):
            super().__init__()
            self.device, self.full = device or "cuda", False

        def infer_window(self, window, queries):
            if self.device == "cuda" and (len(queries) > 1 or self.full):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().infer_window(window, queries)

    models = []

    def load(name, device):
        models.append(Small(device))
        return models[-1]

    with running(load=load) as (_, peer):
        assert peer.connected()
        for name in ("dog", "cat", "owl"):
            assert peer.request(id=name, text=name).success
        peer.play(0.6)
        assert peer.until(lambda: peer.ids() == ["dog", "cat", "owl"])
        assert [m.device for m in models] == ["cuda"]
        assert peer.status("model", lambda s: "1 queries" in values_of(s)["reduced"])
        models[0].full = True
        peer.events.clear()
        peer.play(0.8)
        assert peer.until(lambda: peer.ids() == ["dog", "cat", "owl"])
        assert [m.device for m in models] == ["cuda", "cpu"]
        assert peer.status("model", lambda s: "on the CPU" in values_of(s)["reduced"])
    text = capfd.readouterr().err
    assert "fewer queries at a time" in text and "goes on on the CPU" in text


def test_an_error_while_activating_leaves_a_clean_node_that_can_try_again(monkeypatch, capfd):
    with running(autostart=False) as (node, peer):
        assert peer.transition("configure")

        def broken(*args, **kwargs):
            raise RuntimeError("no more handles")

        with monkeypatch.context() as patch:
            patch.setattr("luseel_ros.node.AudioReader", broken)
            assert not peer.transition("activate")
        assert peer.state() == "inactive"
        with monkeypatch.context() as patch:  # an error that nobody foresaw
            patch.setattr(node._mount, "update", broken)
            assert not peer.transition("activate")
        assert peer.state() == "unconfigured"
        assert node._model is None and not peer.audio.get_subscription_count()
        assert peer.transition("configure") and peer.transition("activate")
        assert peer.connected()
        peer.ask("dog")
        peer.play(0.6)
        assert peer.until(lambda: peer.ids())
    assert "no more handles" in capfd.readouterr().err


def test_the_model_is_loaded_as_the_parameters_say():
    loaded = []

    def load(*args, **kwargs):
        loaded.append((args, kwargs))
        return EarModel()

    with running(load=load, model="a.safetensors", device="cpu", calibration="ears.yaml",
                 head="mine.safetensors") as (_, peer):
        assert peer.state() == "active"
    assert loaded == [(("a.safetensors", "cpu"), {
        "calibration": "ears.yaml", "head": "mine.safetensors"})]


def test_audio_types_that_are_not_installed_are_said_when_configuring(capfd):
    if "audio_common_msgs" in sys.modules or importlib.util.find_spec(
            "audio_common_msgs"):
        pytest.skip("they are installed here")
    with running(audio_type="mgonzs13") as (_, peer):
        assert peer.state() == "unconfigured"
    assert "audio_common_msgs" in capfd.readouterr().err


def test_diagnostics_tell_how_it_goes():
    with running() as (_, peer):
        assert peer.connected()
        peer.ask("dog")
        peer.play(1.0)
        status = peer.status("model", lambda s: int(values_of(s)["hops"]) >= 4)
        values = values_of(status)
        assert values["model"] == "ears" and values["device"] == "cpu"
        assert 0 < float(values["real-time factor"]) < 1
        assert float(values["latency since arrival, p50 [s]"]) <= float(
            values["latency since arrival, p99 [s]"]) < 10
        assert status.level == DiagnosticStatus.WARN and "another clock" in status.message  # T0
        audio = peer.status("audio")
        assert audio.level == DiagnosticStatus.OK and audio.hardware_id == "mic"
        assert values_of(audio)["sample rate [Hz]"] == str(RATE)
        queries = values_of(peer.status("queries"))
        assert queries["q1"] == "dog"
        assert peer.transition("deactivate")
        assert peer.status("model", lambda s: s.level == DiagnosticStatus.STALE).message == \
            "inactive"


# -- processes ------------------------------------------------------------------------------------

FAKE = """
import sys, time
sys.path.insert(0, {tests!r})
from ear_model import EarModel
import luseel_ros.node as node
def load(name, device):
    time.sleep({load})
    return EarModel(seconds={seconds})
node.LuseelNode.__init__.__defaults__ = (load,)
from luseel_ros.run import main
main(sys.argv)
"""


@contextlib.contextmanager
def process(context, *arguments, seconds=0.0, load=0.0):
    """The node in a process of its own, with a model that takes its time."""
    env = dict(os.environ, ROS_DOMAIN_ID=str(context.get_domain_id()), OMP_NUM_THREADS="1")
    code = FAKE.format(tests=os.path.dirname(__file__), seconds=seconds, load=load)
    child = subprocess.Popen([sys.executable, "-c", code, "--ros-args", *arguments], env=env,
                             stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def ends_cleanly(child, number):
    """The child ends with status 0 and without a traceback; returns the seconds it took."""
    begin = time.monotonic()
    child.send_signal(number)
    errors = child.communicate(timeout=10)[1]
    took = time.monotonic() - begin
    assert child.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return took


def patience():
    """A second, where the processor is free; more where others wait for it, too."""
    return max(1.0, 1.5 * os.getloadavg()[0] / os.cpu_count())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_node_whose_model_runs(number):
    with ros_context() as context:
        peer = FieldPeer(context)
        try:
            with process(context, "-p", "hop:=0.2", "-p", "warm_up:=false", seconds=30) as child:
                assert peer.until(lambda: peer.audio.get_subscription_count() > 0, 180)
                peer.ask("dog")
                peer.play(0.6)
                assert peer.status("model", lambda s: values_of(s)["state"] == "active")
                assert ends_cleanly(child, number) < patience()
        finally:
            peer.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_node_that_loads_its_model(number):
    with ros_context() as context:
        peer = FieldPeer(context)
        try:
            with process(context, load=60) as child:
                assert peer.until(
                    lambda: peer.node.count_publishers("/diagnostics") > 0, 180)
                peer.spin(0.3)  # configuring
                assert ends_cleanly(child, number) < patience()
        finally:
            peer.close()


def test_a_signal_while_python_still_imports():
    child = subprocess.Popen([sys.executable, "-X", "importtime", "-m", "luseel_ros.run"],
                             stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        for line in child.stderr:  # torch is on its way, the handlers are set
            if "torch" in line:
                break
        threading.Thread(target=child.stderr.read, daemon=True).start()
        child.send_signal(signal.SIGINT)
        assert child.wait(5) == 0  # loading a large library may hold up the thread that hears it
    finally:
        child.kill()


def test_two_nodes_side_by_side_with_namespaces_and_remapping():
    """Two heads on one robot, each with its own microphones, and one query for both."""
    with ros_context() as context:
        node = rclpy.create_node("peer", context=context)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)

        def until(condition, timeout=180):
            end = time.monotonic() + timeout
            while not condition() and time.monotonic() < end:
                executor.spin_once(timeout_sec=0.05)
            return condition()

        common = ("-r", "query:=/query", "-p", "hop:=0.2", "-p", "warm_up:=false")
        events = {"/front/luseel": [], "/back/ears": []}
        audio = {name: node.create_publisher(AudioChunk, topic, 50) for name, topic in (
            ("/front/luseel", "/front/audio"), ("/back/ears", "/mics/back"))}
        words = node.create_publisher(String, "/query", 10)
        for name, into in events.items():
            node.create_subscription(SoundEventArray, f"{name}/events", into.append, 50)
        try:
            with process(context, "-r", "__ns:=/front", *common), \
                    process(context, "-r", "__ns:=/back", "-r", "__node:=ears", "-r",
                            "audio:=/mics/back", *common):
                assert until(lambda: words.get_subscription_count() == 2 and all(
                    p.get_subscription_count() == 1 for p in audio.values())
                    and all(node.count_publishers(f"{name}/events") for name in events))
                words.publish(String(data="dog"))
                until(lambda: False, 0.5)
                for i in range(20):
                    for name, (left, right) in (("/front/luseel", (0.5, 0.1)),
                                                ("/back/ears", (0.1, 0.5))):
                        samples = np.tile(np.float32([[left], [right]]), (1, 800))
                        audio[name].publish(conversions.array_to_chunk(
                            samples, RATE, 800 * i, Header(
                                stamp=conversions.ns_to_time(T0 + i * 50_000_000),
                                frame_id=name[1:])))
                    until(lambda: False, 0.02)
                assert until(lambda: all(any(m.events for m in e) for e in events.values()), 20)
        finally:
            executor.shutdown()
            node.destroy_node()
        for name, side in (("/front/luseel", 1), ("/back/ears", -1)):
            message = next(m for m in reversed(events[name]) if m.events)
            assert message.header.frame_id == name[1:]
            assert math.copysign(1, message.events[0].azimuth) == side
