"""ROS messages and arrays: left is left, stamps are exact, samples keep their ears."""

import math

import numpy as np
import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time  # noqa: E402
from luseel.msg import AudioChunk  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from visualization_msgs.msg import Marker  # noqa: E402

from luseel_model.errors import AudioError  # noqa: E402
from luseel_ros import conversions  # noqa: E402


def event(azimuth, confidence=0.9, width=5.0, threshold=0.5):
    distance = (np.arange(360) - azimuth + 180) % 360 - 180
    likelihood = np.exp(-0.5 * (distance / width) ** 2).astype(np.float32)
    return conversions.sound_event("q1", "dog", azimuth, likelihood, confidence, threshold, 0.25)


@pytest.mark.parametrize("degrees, yaw, x, y", [
    (0, 0, 1, 0), (90, math.pi / 2, 0, 1), (180, math.pi, -1, 0), (270, -math.pi / 2, 0, -1),
    (45, math.pi / 4, math.sqrt(0.5), math.sqrt(0.5)), (359, -math.pi / 180, None, None)])
def test_left_is_positive_yaw(degrees, yaw, x, y):
    message = event(degrees)
    assert message.azimuth == pytest.approx(yaw, abs=1e-6)
    if x is not None:
        assert message.direction.x == pytest.approx(x, abs=1e-6)
        assert message.direction.y == pytest.approx(y, abs=1e-6)
    assert message.direction.z == 0
    assert int(np.argmax(message.likelihood)) == degrees


def test_event_fields():
    message = event(90, confidence=0.5, width=5.0)
    assert message.active and message.query_id == "q1" and message.query_text == "dog"
    assert math.degrees(message.azimuth_stddev) == pytest.approx(5.0, rel=0.01)
    assert (message.processing_time.sec, message.processing_time.nanosec) == (0, 250_000_000)
    assert not event(90, confidence=0.49).active
    flat = conversions.sound_event("q", "x", 0.0, np.zeros(360), 2.0, 0.5, 1e-3)
    assert math.isfinite(flat.azimuth_stddev) and flat.confidence == 1.0


def test_a_model_without_localization():
    message = conversions.sound_event("q", "x", math.nan, np.zeros(360), 0.7, 0.5, 0.1)
    assert math.isnan(message.azimuth) and math.isnan(message.azimuth_stddev) and message.active
    assert (message.direction.x, message.direction.y) == (0, 0)
    (text,) = conversions.event_markers(message, Header())
    assert text.text == "x\n70%"


def test_samples_keep_their_ears_both_ways():
    audio = np.random.default_rng(0).normal(size=(2, 777)).astype(np.float32)
    header = Header(stamp=Time(sec=5, nanosec=7), frame_id="mic")
    chunk = conversions.array_to_chunk(audio, 16000, 2**40, header, "q3")
    assert chunk.samples[0] == audio[0, 0] and chunk.samples[1] == audio[1, 0]
    assert (chunk.channels, chunk.sample_rate, chunk.first_sample) == (2, 16000, 2**40)
    assert chunk.query_id == "q3" and chunk.header == header
    np.testing.assert_array_equal(conversions.chunk_to_array(chunk), audio)


@pytest.mark.parametrize("fields, words", [
    (dict(channels=1), "two"), (dict(channels=0), "two"), (dict(channels=8), "two"),
    (dict(sample_rate=0), "sample rate 0"), (dict(sample_rate=2**32 - 1), "sample rate"),
    (dict(samples=[0.0] * 5), "divide"), (dict(samples=[]), "without samples")])
def test_bad_chunks_are_named(fields, words):
    good = dict(channels=2, sample_rate=16000, samples=[0.0] * 4)
    with pytest.raises(AudioError, match=words):
        conversions.chunk_to_array(AudioChunk(**{**good, **fields}))


@pytest.mark.parametrize("sec, nanosec, samples, rate, expected", [
    (10, 0, 16000, 16000, (11, 0)),
    (10, 999_999_999, 1, 16000, (11, 62_499)),
    (10, 0, -1, 16000, (9, 999_937_500)),
    (10, 0, 1, 44100, (10, 22_676)),           # 22675.7 ns
    (1_700_000_000, 123, 44100 * 86400, 44100, (1_700_086_400, 123)),
    (1_700_000_000, 5, 3 * 10**9 + 1, 48000, (1_700_062_500, 20_838)),
    (0, 0, -5, 16000, (0, 0)),                 # a Time can't lie before its epoch
])
def test_stamps_are_exact(sec, nanosec, samples, rate, expected):
    stamp = conversions.add_samples(Time(sec=sec, nanosec=nanosec), samples, rate)
    assert (stamp.sec, stamp.nanosec) == expected


def test_markers_point_there_and_go_away():
    header = Header(frame_id="mic")
    ring, arrow, text = conversions.event_markers(event(90), header)
    assert [m.type for m in (ring, arrow, text)] == [
        Marker.LINE_STRIP, Marker.ARROW, Marker.TEXT_VIEW_FACING]
    assert {(m.ns, m.id) for m in (ring, arrow, text)} == {("q1", 0), ("q1", 1), ("q1", 2)}
    assert all(m.header.frame_id == "mic" for m in (ring, arrow, text))
    assert len(ring.points) == 361 and ring.points[0] == ring.points[360]
    far = max(ring.points, key=lambda p: math.hypot(p.x, p.y))
    assert far.y == pytest.approx(1.0) and far.x == pytest.approx(0, abs=1e-6)
    assert arrow.points[1].y == pytest.approx(1.0)
    assert "dog" in text.text and "+90" in text.text
    faint = conversions.event_markers(event(90, confidence=0.1), header)
    assert faint[1].color.a < arrow.color.a and faint[2].color.a < text.color.a
    gone = conversions.delete_markers("q1", header)
    assert {(m.ns, m.id) for m in gone} == {("q1", 0), ("q1", 1), ("q1", 2)}
    assert all(m.action == Marker.DELETE for m in gone)


def test_queries_get_different_colours():
    colours = [conversions.query_color(i) for i in range(6)]
    assert min(np.abs(np.subtract(a, b)).sum()
               for i, a in enumerate(colours) for b in colours[:i]) > 0.2
