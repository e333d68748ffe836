"""Microphones and files as sources, and the node that publishes them: times, losses, errors."""

import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from luseel_model import sources
from luseel_model.errors import AudioError
from luseel_model.sources import (
    CaptureClock, FileSource, Microphone, MicrophoneInfo, find_microphone, level_db)

RATE, FRAMES = 16000, 800
EPOCH = 1_700_000_000_000_000_000  # the caller's clock when the stream's says 0 [ns]
DEVICES = [MicrophoneInfo(0, "HDA Intel PCH: ALC3246 Analog (hw:0,0)", "ALSA", 2, 44100.0, False),
           MicrophoneInfo(4, "USB Binaural Ears", "ALSA", 2, 16000.0, True),
           MicrophoneInfo(5, "USB Camera", "ALSA", 1, 48000.0, False),
           MicrophoneInfo(6, "ReSpeaker 4 Mic Array", "JACK", 6, 16000.0, False)]


class FakeStream:
    """What sounddevice.InputStream is to us; the test is its sound card."""

    def __init__(self, **settings):
        self.settings = SimpleNamespace(**settings)
        self.callback = settings["callback"]
        self.time, self.latency, self.started, self.closed = 0.0, 0.01, False, False

    def start(self):
        self.started = True

    def close(self):
        self.closed = True

    def deliver(self, captured, samples, overflow=False, delay=0.02, adc=None):
        """A block whose first sample was captured at that time of the stream's clock."""
        self.time = captured + len(samples) / RATE + delay
        self.callback(samples, len(samples),
                      SimpleNamespace(inputBufferAdcTime=captured if adc is None else adc),
                      SimpleNamespace(input_overflow=overflow))


def microphone(**options):
    """A microphone on a fake stream -> (microphone, stream); its clock is the stream's + EPOCH."""
    streams = []

    def open_stream(**settings):
        streams.append(FakeStream(**settings))
        return streams[0]
    clock = options.pop("clock", lambda stream: EPOCH + round(stream.time * 1e9))
    mic = Microphone(4, now_ns=lambda: clock(streams[0]), open_stream=open_stream,
                     devices=lambda: DEVICES, **options)
    return mic, streams[0]


def block(value=0.0, frames=FRAMES, channels=2):
    return np.full((frames, channels), value, np.float32)


# -- time of capture -----------------------------------------------------------------------------

def test_capture_clock_takes_the_jitter_out_and_finds_the_true_rate():
    random = np.random.default_rng(1)
    drift = 120e-6  # the card is that much slow
    clock = CaptureClock(RATE)
    truth = 5.0 + np.arange(4000) * FRAMES / RATE * (1 + drift)
    measured = truth + random.normal(0, 2e-3, truth.size)
    filtered = np.array([clock.update(i * FRAMES, t) for i, t in enumerate(measured)])
    error = (filtered - truth)[1000:]
    assert np.sqrt(np.mean(error**2)) < 0.5e-3 < np.sqrt(np.mean((measured - truth) ** 2))
    assert abs(np.mean(error)) < 1e-4
    assert clock.rate == pytest.approx(RATE / (1 + drift), rel=30e-6)
    # 1 s after the start the mean over all blocks is already better than a single one
    assert abs(filtered[20] - truth[20]) < 2e-3


def test_stamps_are_capture_times_of_the_first_sample():
    random = np.random.default_rng(2)
    mic, stream = microphone(channels=(1, 0))
    assert stream.started and vars(stream.settings)["samplerate"] == RATE
    assert (stream.settings.device, stream.settings.channels, stream.settings.dtype) == (
        4, 2, "float32")
    for i in range(200):
        samples = np.stack([np.full(FRAMES, i), np.full(FRAMES, -i)], 1).astype(np.float32)
        # the callback comes late by anything; PortAudio's time doesn't suffer from that
        stream.deliver(1 + i * FRAMES / RATE, samples, delay=random.uniform(0.001, 0.3))
        got = mic.read(0)
        assert (got.first_sample, got.sample_rate) == (i * FRAMES, RATE)
        assert got.samples.dtype == np.float32 and got.samples.shape == (2, FRAMES)
        np.testing.assert_array_equal(got.samples, samples.T[::-1])  # channels as asked
        assert abs(got.time_ns - EPOCH - 10**9 - i * FRAMES * 10**9 // RATE) < 1e5
    mic.close()
    mic.close()
    assert stream.closed and mic.ended and not mic.gone and mic.read(0) is None


@pytest.mark.parametrize("adc", [0.0, -1.0, 1e6])
def test_without_a_time_of_portaudio_the_callback_tells(adc):
    mic, stream = microphone()
    for i in range(50):
        stream.deliver(1 + i * FRAMES / RATE, block(), delay=0.03, adc=adc)
        got = mic.read(0)
    # 30 ms late, of which the stream knows 10 as its latency
    assert got.time_ns - EPOCH == pytest.approx(1e9 + 49 * FRAMES / RATE * 1e9 + 20e6, abs=1e6)


def test_a_stepped_system_clock_moves_the_stamps_at_once_and_loses_nothing():
    step = [0]
    mic, stream = microphone(clock=lambda s: EPOCH + step[0] + round(s.time * 1e9))
    stamps = []
    for i in range(40):
        step[0] = 0 if i < 20 else 7 * 10**9
        stream.deliver(1 + i * FRAMES / RATE, block())
        stamps.append(mic.read(0).time_ns)
    differences = np.diff(stamps)
    assert differences[19] == pytest.approx(7.05e9, abs=1e6)
    assert np.allclose(np.delete(differences, 19), 50e6, atol=1e6)
    assert mic.counters.overruns == mic.counters.lost == 0


# -- losses --------------------------------------------------------------------------------------

@pytest.mark.parametrize("said, blocks_until_known", [(True, 0), (False, 3)])
def test_lost_audio_leaves_a_gap_in_the_numbers(said, blocks_until_known):
    """An overrun that PortAudio reports, and one that only the times of the blocks show."""
    random = np.random.default_rng(3)
    mic, stream = microphone()
    got, lost = [], 4000
    for i in range(60):
        begin = i * FRAMES + (lost if i >= 30 else 0)
        stream.deliver(1 + begin / RATE + random.normal(0, 5e-4), block(),
                       overflow=said and i == 30)
        got.append((mic.read(0), begin))
    known = 30 + blocks_until_known
    for i, (heard, begin) in enumerate(got):
        if not 30 <= i < known:
            assert abs(heard.first_sample - begin) <= 0.002 * RATE, i
            assert abs(heard.time_ns - EPOCH - 10**9 - begin / RATE * 1e9) < 2e6
    gaps = [b.first_sample - a.first_sample - FRAMES
            for (a, _), (b, _) in zip(got, got[1:])]
    assert [i + 1 for i, gap in enumerate(gaps) if gap] == [known]
    assert mic.counters.overruns == 1 and mic.counters.lost == gaps[known - 1]


def test_late_blocks_that_catch_up_are_not_lost():
    mic, stream = microphone()
    for i in range(40):
        stream.deliver(1 + i * FRAMES / RATE + (0.2 if i in (20, 21) else 0), block())
        got = mic.read(0)
        assert got.first_sample == i * FRAMES
        assert abs(got.time_ns - EPOCH - 10**9 - i * FRAMES * 10**9 // RATE) < 1e5
    assert mic.counters.lost == mic.counters.overruns == 0


def test_what_nobody_reads_is_dropped_oldest_first_and_counted():
    mic, stream = microphone(buffer_seconds=0.2)
    for i in range(10):
        stream.deliver(1 + i * FRAMES / RATE, block(i))
    numbers = [mic.read(0).first_sample for _ in range(4)]
    assert numbers == [6 * FRAMES, 7 * FRAMES, 8 * FRAMES, 9 * FRAMES]
    assert mic.read(0) is None and mic.counters.dropped == 6 * FRAMES and not mic.ended


def test_an_unplugged_device_ends_the_stream():
    mic, stream = microphone()
    stream.deliver(1.0, block())
    stream.settings.finished_callback()
    assert mic.gone and not mic.ended
    assert mic.read(0) is not None and mic.ended
    mic.close()


# -- choosing a device ---------------------------------------------------------------------------

@pytest.mark.parametrize("wanted, index", [
    (None, 4), ("", 4), (0, 0), ("6", 6), ("respeaker", 6), ("USB Binaural", 4), ("jack", 6)])
def test_devices_by_index_and_by_part_of_the_name(wanted, index):
    assert find_microphone(wanted, DEVICES).index == index


@pytest.mark.parametrize("wanted, devices, words", [
    ("usb", DEVICES, "2 input devices fit 'usb'.*4: USB Binaural Ears.*5: USB Camera"),
    ("piano", DEVICES, "no input device 'piano'"), (3, DEVICES, "no input device 3"),
    (None, [], "no microphone: PortAudio sees no device")])
def test_devices_that_cannot_be_told(wanted, devices, words):
    with pytest.raises(AudioError, match=words):
        find_microphone(wanted, devices)


@pytest.mark.parametrize("options, words", [
    ({"device": 5}, "has 1 channel"), ({"device": 4, "channels": (0, 2)}, "channel 2 was asked"),
    ({"device": 4, "channels": (0,)}, "two numbers"), ({"sample_rate": 100}, "sample rate 100"),
    ({"block_seconds": 0}, "block_seconds")])
def test_microphones_that_cannot_be_opened(options, words):
    with pytest.raises(AudioError, match=words):
        Microphone(**{"device": 4, **options}, open_stream=FakeStream, devices=lambda: DEVICES)


def test_a_stream_that_does_not_start_is_closed():
    made = []

    class Broken(FakeStream):
        def start(self):
            made.append(self)
            raise RuntimeError("Device unavailable")
    with pytest.raises(AudioError, match="can't start.*Device unavailable"):
        Microphone(4, open_stream=Broken, devices=lambda: DEVICES)
    assert made[0].closed


def test_the_real_portaudio():
    """As far as a machine without a microphone allows: it lists none, and opening one says why."""
    pytest.importorskip("sounddevice", exc_type=Exception)
    if sources.list_microphones():
        pytest.skip("there is a microphone here")
    with pytest.raises(AudioError, match="no microphone: PortAudio sees no device"):
        Microphone()
    with pytest.raises(AudioError, match="can't open the microphone"):
        Microphone(4, devices=lambda: DEVICES)  # PortAudio knows no device 4


# -- files ---------------------------------------------------------------------------------------

@pytest.fixture
def wav(tmp_path):
    audio = np.random.default_rng(0).uniform(-1, 1, (RATE + 100, 2)).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", audio, RATE, "FLOAT")
    return tmp_path / "in.wav", audio


def read_all(source, limit=1000):
    got = []
    while not source.ended and len(got) < limit:
        if (piece := source.read(0.01)) is not None:
            got.append(piece)
    return got


def test_a_file_is_stamped_by_its_samples(wav):
    path, audio = wav
    source = FileSource(path, channels=(1, 0), speed=0, start_ns=EPOCH)
    got = read_all(source)
    np.testing.assert_array_equal(np.concatenate([b.samples for b in got], 1), audio.T[::-1])
    assert [b.first_sample for b in got] == list(range(0, RATE + 100, FRAMES))
    assert all(b.time_ns == EPOCH + b.first_sample * 62_500 for b in got)
    source.close()


def test_a_file_is_paced_by_the_clock_that_is_given(wav):
    path, _ = wav
    now = [100.0]
    source = FileSource(path, speed=2.0, start_ns=EPOCH, paced_by=lambda: now[0])
    assert source.read(0.0) is None and source.read(0.0) is None
    now[0] += 0.0249  # a block of 50 ms takes 25 at double speed
    assert source.read(0.0) is None
    now[0] += 0.0002
    assert source.read(0.0).first_sample == 0 and source.read(0.0) is None
    now[0] += 0.5  # who comes late gets what has come due meanwhile, in order
    numbers = [b.first_sample for b in read_all(source, 20)]
    assert numbers == list(range(FRAMES, 21 * FRAMES, FRAMES))


def test_a_file_is_never_faster_than_real_time(wav):
    begin = time.monotonic()
    got = read_all(FileSource(wav[0], speed=4.0))
    assert time.monotonic() - begin >= (RATE + 100) / RATE / 4 - 0.001
    assert sum(b.samples.shape[1] for b in got) == RATE + 100


def test_a_loop_counts_on(wav):
    got = read_all(FileSource(wav[0], speed=0, loop=True), 50)
    ends = np.cumsum([b.samples.shape[1] for b in got])
    assert [b.first_sample for b in got[1:]] == ends[:-1].tolist() and ends[-1] > 2 * RATE


def test_files_that_cannot_be_used(tmp_path):
    soundfile.write(tmp_path / "mono.wav", np.zeros(10), RATE)
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), RATE)
    for name, words in (("nope.wav", "can't read"), ("mono.wav", "has 1 channel"),
                        ("none.wav", "holds no audio")):
        with pytest.raises(AudioError, match=words):
            FileSource(tmp_path / name)


def test_levels():
    sine = np.sin(np.arange(16000) * 2 * math.pi * 440 / RATE)
    assert level_db(np.stack([sine, 0.1 * sine])) == pytest.approx([-3.01, -23.01], abs=0.02)
    assert level_db(np.zeros((2, 5))).tolist() == [-120, -120] == level_db(
        np.zeros((2, 0))).tolist()
    assert np.isfinite(level_db(np.float32([[np.nan, 1e30], [np.inf, 0]]))).all()


# -- the node ------------------------------------------------------------------------------------

@pytest.fixture
def ros():
    pytest.importorskip("rclpy")
    from ros_helpers import ros_context
    with ros_context() as context:
        yield context


def listener(context, topic="/audio"):
    import rclpy
    from luseel.msg import AudioChunk
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    node, heard = rclpy.create_node("listener", context=context), []
    node.create_subscription(AudioChunk, topic, heard.append, QoSProfile(
        depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT))
    return node, heard


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def stamp_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def parameters(**values):
    import rclpy
    return [rclpy.Parameter(name, value=value) for name, value in values.items()]


def test_the_node_publishes_a_microphone_with_its_gaps(ros, capfd):
    from luseel_ros.capture import CaptureNode
    from ros_helpers import spinning
    mic, stream = microphone()
    node, heard = listener(ros)
    asked = []

    def open_source(values, now_ns, paced_by):
        asked.append((values, now_ns(), paced_by))
        return mic
    with spinning(node):
        capture = CaptureNode(open_source, context=ros, parameter_overrides=parameters(
            device=4, frame_id="head", sample_rate=16000))
        assert wait_for(lambda: capture.count_subscribers("/audio") == 1)
        # a match that one side sees may still be on its way to the other
        assert wait_for(lambda: node.count_publishers("/audio") == 1)
        time.sleep(0.5)
        for i in range(20):
            begin = i * FRAMES + (1600 if i >= 10 else 0)
            stream.deliver(1 + begin / RATE, block(i / 100), overflow=i == 10)
        assert wait_for(lambda: len(heard) == 20)
        assert not capture.done.is_set()
        stream.settings.finished_callback()
        assert wait_for(capture.done.is_set)
        assert "USB Binaural Ears, ALSA' has gone" in capture.failed
        capture.destroy_node()
    assert stream.closed
    values, now, paced_by = asked[0]
    assert values["device"] == 4 and values["sample_rate"] == 16000 and paced_by is None
    assert abs(now - time.time_ns()) < 300e9  # the node's clock is the system's
    for i, message in enumerate(heard):
        begin = i * FRAMES + (1600 if i >= 10 else 0)
        assert abs(message.first_sample - begin) <= 1
        assert abs(stamp_ns(message) - EPOCH - 10**9 - begin * 62_500) < 1e6
        assert (message.header.frame_id, message.channels, message.query_id) == ("head", 2, "")
        np.testing.assert_array_equal(np.asarray(message.samples), block(i / 100).ravel())
    assert "audio was lost: 1 overruns" in capfd.readouterr().err


def test_the_node_plays_a_file_with_its_own_time(ros, wav):
    from luseel_ros.capture import CaptureNode
    from ros_helpers import spinning
    from rosgraph_msgs.msg import Clock
    path, audio = wav
    node, heard = listener(ros)
    clocks = []
    node.create_subscription(Clock, "/clock", clocks.append, 1000)
    with spinning(node):
        capture = CaptureNode(context=ros, parameter_overrides=parameters(
            file=str(path), speed=0.0, start_time=1000.5, publish_clock=True,
            wait_for_subscribers=1, chunk_seconds=0.1))
        assert wait_for(capture.done.is_set) and capture.failed is None
        assert wait_for(lambda: len(heard) == 11)
        capture.destroy_node()
    np.testing.assert_array_equal(
        np.concatenate([np.asarray(m.samples) for m in heard]).reshape(-1, 2), audio)
    assert [stamp_ns(m) for m in heard] == [1_000_500_000_000 + i * 10**8 for i in range(11)]
    # the time of /clock is that of the newest sample
    times = [m.clock.sec * 10**9 + m.clock.nanosec for m in clocks]
    assert times == sorted(times) and times[-1] == 1_000_500_000_000 + 1_006_250_000


def test_with_simulated_time_a_file_waits_for_it(ros, wav):
    import rclpy
    from luseel_ros.capture import CaptureNode
    from ros_helpers import spinning
    from rosgraph_msgs.msg import Clock
    node, heard = listener(ros)
    ticker = node.create_publisher(Clock, "/clock", 10)
    with spinning(node):
        capture = CaptureNode(context=ros, parameter_overrides=parameters(
            file=str(wav[0]), chunk_seconds=0.1, wait_for_subscribers=1, use_sim_time=True))
        executor = rclpy.executors.SingleThreadedExecutor(context=ros)
        executor.add_node(capture)

        def tick(seconds, until):
            def done():
                ticker.publish(Clock(clock=rclpy.time.Time(seconds=seconds).to_msg()))
                executor.spin_once(timeout_sec=0.02)
                return until()
            return wait_for(done)
        for _ in range(10):
            executor.spin_once(timeout_sec=0.02)
        assert not heard  # no time yet
        assert tick(50.0, lambda: capture.get_clock().now().nanoseconds == 50 * 10**9)
        end = time.monotonic() + 0.5
        tick(50.0, lambda: time.monotonic() > end)
        assert not heard  # time stands still
        assert tick(50.35, lambda: len(heard) == 3)
        end = time.monotonic() + 0.5
        tick(50.35, lambda: time.monotonic() > end)
        assert [stamp_ns(m) for m in heard] == [50 * 10**9 + i * 10**8 for i in range(3)]
        executor.shutdown()
        capture.destroy_node()


@pytest.mark.parametrize("values, words", [
    ({"use_sim_time": True}, "a microphone hears real time"),
    ({"publish_clock": True}, "publish_clock is for files"),
    ({"file": "nope.wav"}, "can't read nope.wav"),
    ({"audio_type": "wav"}, "'wav' is none of"), ({"device": 1.5}, "device: give an index")])
def test_parameters_that_cannot_be(ros, values, words):
    from luseel_model.errors import LuseelError
    from luseel_ros.capture import CaptureNode
    with pytest.raises(LuseelError, match=words):
        CaptureNode(context=ros, parameter_overrides=parameters(**values))


def test_every_parameter_is_described(ros, wav):
    from luseel_ros import capture
    node = capture.CaptureNode(context=ros, parameter_overrides=parameters(
        file=str(wav[0]), wait_for_subscribers=1))
    for name in capture.PARAMETERS:
        descriptor = node.describe_parameter(name)
        assert descriptor.description and descriptor.read_only
        assert "Read when the node starts" in descriptor.additional_constraints
    node.destroy_node()


def test_as_a_process_it_ends_cleanly(ros, wav):
    """SIGINT while a file loops: status 0, and no traceback."""
    from ros_helpers import spinning
    environment = dict(os.environ, ROS_DOMAIN_ID=str(ros.get_domain_id()))
    command = [sys.executable, "-m", "luseel_ros.capture", "--ros-args", "-p"]
    node, heard = listener(ros)
    with spinning(node):
        process = subprocess.Popen([*command, f"file:={wav[0]}", "-p", "loop:=true"],
                                   env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert wait_for(lambda: len(heard) >= 5, 120)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0 and "Traceback" not in errors
    assert all(b.first_sample == a.first_sample + len(a.samples) // 2
               for a, b in zip(heard, heard[1:]))


def test_what_it_cannot_do_is_one_line(ros, capsys, monkeypatch):
    from luseel_ros import capture
    monkeypatch.setenv("ROS_DOMAIN_ID", str(ros.get_domain_id()))
    assert capture.main(["--ros-args", "-p", "file:=nope.wav"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("luseel_capture: can't read nope.wav") and "\n" not in error
    assert capture.main(["--ros-args", "-p", "speed:=-1.0"]) == 1
    assert "speed" in capsys.readouterr().err
