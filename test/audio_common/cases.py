"""Audio of one of the two audio_common_msgs over real DDS; run by test_audio_io.py, in an
environment that has it. The node side is another process (echo.py)."""
import array
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
import soundfile
from audio_common_msgs import msg
from builtin_interfaces.msg import Time
from luseel.msg import AudioChunk, QueryArray, SoundEventArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header, String

from luseel_ros import audio_io

QOS = QoSProfile(depth=1000)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
KIND = os.environ["LUSEEL_AUDIO_KIND"]
OTHER = {"ros_drivers": "mgonzs13", "mgonzs13": "ros_drivers"}[KIND]
ros_drivers = pytest.mark.skipif(KIND != "ros_drivers", reason="the other package")
mgonzs13 = pytest.mark.skipif(KIND != "mgonzs13", reason="the other package")
TOPICS = {"ros_drivers": ["early", "latched", "volatile", "formats", "bad", "quarrel", "plain",
                          "unstamped_out", "declared", "strict", "fuzz", "in/audio_stamped",
                          "foreign"],
          "mgonzs13": ["formats", "bad", "no_stamp", "strict", "fuzz", "foreign"]}[KIND]
PATIENCE = 60.0  # [s]

# What libsndfile calls the formats: subtype, byte order.
SNDFILE = {"S8": ("PCM_S8", "FILE"), "U8": ("PCM_U8", "FILE"), "S16LE": ("PCM_16", "LITTLE"),
           "S16BE": ("PCM_16", "BIG"), "S24LE": ("PCM_24", "LITTLE"), "S24BE": ("PCM_24", "BIG"),
           "S32LE": ("PCM_32", "LITTLE"), "S32BE": ("PCM_32", "BIG"), "F32LE": ("FLOAT", "LITTLE"),
           "F32BE": ("FLOAT", "BIG"), "F64LE": ("DOUBLE", "LITTLE"), "F64BE": ("DOUBLE", "BIG")}


def in_bytes(audio, sample_format):
    """libsndfile's bytes of float audio (frames, channels)."""
    subtype, endian = SNDFILE[sample_format]
    file = io.BytesIO()
    soundfile.write(file, audio, 16000, format="RAW", subtype=subtype, endian=endian)
    return file.getvalue()


def from_bytes(data, sample_format, channels):
    """libsndfile's float32 (frames, channels) of the bytes."""
    subtype, endian = SNDFILE[sample_format]
    return soundfile.read(io.BytesIO(data), format="RAW", subtype=subtype, endian=endian,
                          channels=channels, samplerate=16000, dtype="float32",
                          always_2d=True)[0]


def noise(frames=320, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (frames, channels)).astype(np.float32)


class Side:
    """The other nodes of the robot: sources and listeners that know only the messages."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("others", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.kind = msg.AudioDataStamped if KIND == "ros_drivers" else msg.AudioStamped
        self.out, self.chunks, self.reasons, self.infos = {}, {}, {}, {}
        for topic in TOPICS:
            out = msg.AudioData if topic == "unstamped_out" else self.kind
            for into, kind, name in ((self.out, out, "out"), (self.chunks, AudioChunk, "chunk"),
                                     (self.reasons, String, "refused")):
                into[topic] = []
                self.node.create_subscription(
                    kind, f"{topic}/{name}", into[topic].append, QOS)
        self.senders = {}
        if KIND == "ros_drivers":  # before the node side is there
            self.inform("latched", 16000, 2, "S16BE")
        self.child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("echo.py")), KIND, *TOPICS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdout.readline() == "ready\n"

    def close(self):
        self.child.stdin.close()
        end, code = self.child.stdout.read(), self.child.wait(PATIENCE)
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)
        assert (end, code) == ("end\n", 0)

    def until(self, condition, timeout=PATIENCE):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "nothing came"
            self.executor.spin_once(timeout_sec=0.02)

    def sender(self, kind, topic, qos=QOS, listeners=1):
        key = (kind, topic, str(qos))
        if key not in self.senders:
            self.senders[key] = publisher = self.node.create_publisher(kind, topic, qos)
            self.until(lambda: publisher.get_subscription_count() >= listeners)
        return self.senders[key]

    def inform(self, topic, rate, channels, sample_format, coding="wave", wait=False, **where):
        info = msg.AudioInfo(channels=channels, sample_rate=rate, sample_format=sample_format,
                             bitrate=192, coding_format=coding)
        self.sender(msg.AudioInfo, f"{topic}_info", LATCHED, int(wait), **where).publish(info)

    def send(self, topic, message):
        """-> (chunk, raw message) that come back, or the reason why not."""
        seen = len(self.chunks[topic]), len(self.reasons[topic]), len(self.out[topic])
        self.sender(type(message), topic).publish(message)
        self.until(lambda: (len(self.chunks[topic]) > seen[0] and len(self.out[topic]) > seen[2])
                   or len(self.reasons[topic]) > seen[1])
        if len(self.reasons[topic]) > seen[1]:
            assert len(self.chunks[topic]) == seen[0]
            return self.reasons[topic][-1].data
        return self.chunks[topic][-1], self.out[topic][-1]

    def until_sent(self, topic, message, words=None):
        """Again and again until it is delivered, or refused with these words: AudioInfo and audio
        come on different topics, so that one may be faster than the other."""
        end = time.monotonic() + PATIENCE
        while True:
            result = self.send(topic, message)
            if (words is None and isinstance(result, tuple)) or (
                    words is not None and isinstance(result, str) and words in result):
                return result
            assert time.monotonic() < end, result
            self.until(lambda: True)


@pytest.fixture(scope="module")
def side():
    side = Side()
    yield side
    side.close()


def stamp(number=0):
    return Header(stamp=Time(sec=1_700_000_000 + number, nanosec=123_456_789), frame_id="mic")


def stamped(data, number=0):
    return msg.AudioDataStamped(
        header=stamp(number), audio=msg.AudioData(data=array.array("B", data)))


def samples(chunk):
    return np.frombuffer(chunk.samples, np.float32).reshape(-1, chunk.channels)


# -- both ------------------------------------------------------------------------------------------

def test_the_installed_package_is_told_by_its_messages():
    assert audio_io.installed_kind() == KIND
    assert audio_io.load_messages(KIND).AudioInfo is msg.AudioInfo
    with pytest.raises(audio_io.MessagesError) as error:
        audio_io.load_messages(OTHER)
    assert f"choose '{KIND}'" in str(error.value) and "install" in str(error.value)


def test_another_type_on_the_topic_is_reported(side):
    side.sender(AudioChunk, "foreign", listeners=0)
    side.until(lambda: side.reasons["foreign"])
    reason = side.reasons["foreign"][0].data
    assert "luseel/msg/AudioChunk" in reason and "is expected" in reason
    side.until(lambda: True)
    assert len(side.reasons["foreign"]) == 1  # said once


def int16_of(message):
    """The samples (frames, channels) of a message of 16 bits."""
    values = (np.frombuffer(message.audio.data, "<i2") if KIND == "ros_drivers"
              else np.array(message.audio.audio_data.int16_data, np.int16))
    return values.reshape(-1, 2)


def test_the_node_itself_takes_and_gives_this_kind(side):
    """Words and 16-bit audio in; the events, and the sound as the same kind and on the same time
    line out. The model gives back what it hears: each sample must be that of its time."""
    events, lists, out, infos = [], [], [], []
    for kind, topic, into, qos in (
            (SoundEventArray, "/luseel/events", events, QOS),
            (QueryArray, "/luseel/queries", lists, LATCHED),
            (side.kind, "/luseel/extracted/q1", out, QOS),
            (msg.AudioInfo, "/luseel/extracted/q1_info", infos, LATCHED)):
        side.node.create_subscription(kind, topic, into.append, qos)
    sent = np.round(32767 * noise(60 * 16000, 2) * [1.0, 0.3]).astype("<i2")
    begin = stamp().stamp.sec * 10**9 + stamp().stamp.nanosec

    def at(message):  # number of its first sample
        moment = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        return round((moment - begin) * 16e-6)

    options = (f"audio_type:={KIND}", f"extracted_type:={KIND}", "hop:=0.2", "warm_up:=false")
    node = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ear_node.py")), "--ros-args",
         *(word for option in options for word in ("-p", option))])
    try:
        audio = side.sender(side.kind, "audio")
        words = side.sender(String, "query")
        if KIND == "ros_drivers":
            side.inform("audio", 16000, 2, "S16LE", wait=True)
        words.publish(String(data="dog"))
        side.until(lambda: lists and lists[-1].queries)
        side.until(lambda: side.node.count_subscribers("/luseel/extracted/q1") and
                   side.node.count_publishers("/luseel/extracted/q1"))
        for start in range(0, len(sent), 1600):
            if sum(len(int16_of(block)) for block in out) >= 32000:
                break
            data = sent[start:start + 1600].tobytes()
            message = stamped(data) if KIND == "ros_drivers" else portaudio(data)
            message.header.stamp = Time(sec=(begin + start * 62_500) // 10**9,
                                        nanosec=(begin + start * 62_500) % 10**9)
            audio.publish(message)
            end = time.monotonic() + 0.02
            side.until(lambda: time.monotonic() > end)
        node.send_signal(signal.SIGTERM)
        assert node.wait(PATIENCE) == 0
    finally:
        node.kill()
        node.wait()
    assert sum(len(int16_of(block)) for block in out) >= 32000
    position = at(out[0])  # what came before the AudioInfo or before the listener is not there
    for block in out:
        samples, first = int16_of(block), at(block)
        assert first == position and block.header.frame_id == "mic"
        np.testing.assert_array_equal(samples, sent[first:first + len(samples)])
        position += len(samples)
    heard = [message for message in events if message.events]
    assert len(heard) >= 10
    for message, following in zip(heard, heard[1:]):
        assert at(following) - at(message) == 3200
        assert message.events[0].query_text == "dog" and message.events[0].azimuth > 0  # left
    if KIND == "ros_drivers":
        assert (infos[-1].channels, infos[-1].sample_rate, infos[-1].sample_format) == (
            2, 16000, "S16LE")
    else:
        info = out[-1].audio.info
        assert (info.channels, info.rate, info.format) == (2, 16000, 8)


# -- ros-drivers -----------------------------------------------------------------------------------

@ros_drivers
def test_audio_before_any_info_is_refused_and_read_after_it(side):
    data = in_bytes(noise(), "S16LE")
    reason = side.send("early", stamped(data))
    assert "no AudioInfo on /early_info yet" in reason
    side.inform("early", 48000, 2, "S16LE", wait=True)
    chunk, out = side.until_sent("early", stamped(data, 7))
    assert (chunk.sample_rate, chunk.channels, chunk.header) == (48000, 2, stamp(7))
    np.testing.assert_array_equal(samples(chunk), from_bytes(data, "S16LE", 2))
    assert out.header == stamp(7) and out.audio.data.tobytes() == data


@ros_drivers
def test_info_that_was_latched_long_before(side):
    data = in_bytes(noise(), "S16BE")
    chunk, _ = side.until_sent("latched", stamped(data))
    np.testing.assert_array_equal(samples(chunk), from_bytes(data, "S16BE", 2))


@ros_drivers
def test_info_of_a_publisher_that_does_not_latch(side):
    data = in_bytes(noise(channels=1), "F32LE")
    sender = side.sender(msg.AudioInfo, "volatile_info", QoSProfile(
        depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    info = msg.AudioInfo(
        channels=1, sample_rate=44100, sample_format="f32le", coding_format="WAVE")
    # Best effort: the first may be lost. audio_capture repeats it every 5 s.
    result, end = "", time.monotonic() + PATIENCE
    while isinstance(result, str):
        assert time.monotonic() < end, result
        sender.publish(info)
        result = side.send("volatile", stamped(data))
    chunk, _ = result
    assert (chunk.sample_rate, chunk.channels) == (44100, 1)
    np.testing.assert_array_equal(samples(chunk), from_bytes(data, "F32LE", 1))


@ros_drivers
def test_every_format_as_its_info_says_and_a_change_of_it(side):
    infos = []
    side.node.create_subscription(msg.AudioInfo, "formats/out_info", infos.append, LATCHED)
    for number, name in enumerate(SNDFILE):
        channels, rate = 1 + number % 3, 8000 + 100 * number
        data = in_bytes(noise(240, channels, number), name)
        side.inform("formats", rate, channels, name, wait=True)
        end = time.monotonic() + PATIENCE
        while True:  # until the new info is there
            result = side.send("formats", stamped(data, number))
            if isinstance(result, tuple) and result[0].sample_rate == rate:
                break
            assert time.monotonic() < end, result
        chunk, out = result
        expected = from_bytes(data, name, channels)
        np.testing.assert_array_equal(samples(chunk), expected, name)
        assert chunk.channels == channels and chunk.header == stamp(number)
        # Back as S16LE, to half a step; and the info says so.
        back = from_bytes(out.audio.data.tobytes(), "S16LE", channels)
        assert np.abs(back - expected).max() <= 0.5001 / 32768, name
        side.until(lambda: infos and infos[-1].sample_rate == rate)
        assert infos[-1] == msg.AudioInfo(
            channels=channels, sample_rate=rate, sample_format="S16LE", coding_format="wave",
            bitrate=16 * channels * rate)


@ros_drivers
def test_what_is_not_declared_or_impossible_is_refused(side):
    good = in_bytes(noise(), "S16LE")
    for fields, words in (
            ((16000, 2, "S16LE", "mp3"), "format:=wave"), ((16000, 2, "S16LE", ""), "'wave'"),
            ((16000, 2, ""), "no sample_format"), ((16000, 2, "S16"), "S16LE or S16BE"),
            ((16000, 2, "ADPCM"), "not known"), ((16000, 2, "\ud7ff🐕" * 999), "not known"),
            ((16000, 0, "S16LE"), "0 channels"), ((0, 2, "S16LE"), "sample rate 0 Hz"),
            ((2**32 - 1, 2, "S16LE"), "sample rate 4294967295 Hz")):
        side.inform("bad", *fields, wait=True)
        reason = side.until_sent("bad", stamped(good), words)
        assert "AudioInfo on /bad_info" in reason
    side.inform("bad", 16000, 2, "S16LE", wait=True)
    side.until_sent("bad", stamped(good))
    assert "without samples" in side.send("bad", stamped(b""))
    assert "don't divide into frames of 2 channel(s) in S16LE" in side.send(
        "bad", stamped(good[:-1]))
    assert "don't divide" in side.send("bad", stamped(good[:-2]))  # one channel short
    side.inform("bad", 16000, 2, "F32LE", wait=True)
    nan = noise()
    nan[5, 1], nan[7, 0] = np.nan, np.inf
    side.until_sent("bad", stamped(nan.tobytes()), "2 samples are not finite")
    side.until_sent("bad", stamped(noise().tobytes()))


@ros_drivers
def test_two_sources_that_contradict_each_other(side):
    data = in_bytes(noise(), "S16LE")
    side.inform("quarrel", 16000, 2, "S16LE", wait=True)
    side.until_sent("quarrel", stamped(data))
    # A second node in a context of its own, so that it can go like a process.
    context = rclpy.Context()
    rclpy.init(context=context)
    second = rclpy.create_node("second", context=context)
    publisher = second.create_publisher(msg.AudioInfo, "quarrel_info", LATCHED)
    publisher.publish(msg.AudioInfo(
        channels=2, sample_rate=44100, sample_format="S16LE", coding_format="wave"))
    reason = side.until_sent("quarrel", stamped(data), "contradict each other")
    assert "16000 Hz" in reason and "44100 Hz" in reason
    second.destroy_node()
    rclpy.try_shutdown(context=context)
    chunk, _ = side.until_sent("quarrel", stamped(data))  # the first one's, latched, counts again
    assert chunk.sample_rate == 16000


@ros_drivers
def test_plain_audio_data_takes_the_time_of_arrival(side):
    data = in_bytes(noise(1600), "S16LE")
    side.inform("plain", 16000, 2, "S16LE", wait=True)
    before = time.time_ns()
    # Matched only once the reader has seen what the topic carries.
    chunk, _ = side.until_sent("plain", msg.AudioData(data=array.array("B", data)))
    arrived = chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec + 100_000_000
    assert before <= arrived <= time.time_ns() and chunk.header.frame_id == ""
    np.testing.assert_array_equal(samples(chunk), from_bytes(data, "S16LE", 2))


@ros_drivers
def test_two_readers_of_one_process_change_to_plain_audio_data(side):
    """A process has one type on a topic, so that neither can change as long as the other hasn't."""
    side.sender(msg.AudioData, "pair", listeners=0)
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("pair", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    reasons = []
    readers = [audio_io.AudioReader(node, KIND, "pair", QOS, print, reasons.append)
               for _ in range(2)]
    end = time.monotonic() + PATIENCE
    while not all(reader.publisher_count for reader in readers):
        assert time.monotonic() < end, reasons
        executor.spin_once(timeout_sec=0.05)
    executor.shutdown()
    for reader in readers:
        reader.destroy()
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@ros_drivers
def test_plain_audio_data_and_float_out(side):
    data = in_bytes(noise(), "S24LE")
    side.inform("unstamped_out", 16000, 2, "S24LE", wait=True)
    chunk, out = side.until_sent("unstamped_out", stamped(data))
    assert isinstance(out, msg.AudioData)
    np.testing.assert_array_equal(
        np.frombuffer(out.data, "<f4").reshape(-1, 2), from_bytes(data, "S24LE", 2))


@ros_drivers
def test_a_declaration_stands_in_for_the_info_but_not_against_it(side):
    data = in_bytes(noise(), "S16LE")
    chunk, _ = side.until_sent("declared", stamped(data))
    assert (chunk.sample_rate, chunk.channels) == (16000, 2)
    side.inform("declared", 16000, 2, "S16BE", wait=True)
    side.until_sent("declared", stamped(data), "S16BE, but S16LE is declared")
    side.inform("declared", 44100, 2, "S16LE")
    side.until_sent("declared", stamped(data), "44100 Hz, but 16000 Hz is expected")


@ros_drivers
def test_mono_where_two_channels_are_expected(side):
    side.inform("strict", 16000, 1, "S16LE", wait=True)
    side.until_sent("strict", stamped(in_bytes(noise(), "S16LE")), "binaural audio has two")


@ros_drivers
def test_info_lies_beside_audio_stamped(side):
    data = in_bytes(noise(), "S16LE")
    side.sender(msg.AudioInfo, "in/audio_info", LATCHED).publish(msg.AudioInfo(
        channels=2, sample_rate=16000, sample_format="S16LE", coding_format="wave"))
    side.until_sent("in/audio_stamped", stamped(data))


@ros_drivers
def test_random_messages_never_stop_it(side):
    random = np.random.default_rng(1)
    names = [*audio_io.SAMPLE_FORMATS, "", "S16", "mp3", "\x00", "🐕"]
    audio = side.sender(msg.AudioDataStamped, "fuzz")
    info = side.sender(msg.AudioInfo, "fuzz_info", LATCHED)
    for number in range(500):
        if number % 5 == 0:
            info.publish(msg.AudioInfo(
                channels=int(random.integers(256)) if number % 2 else 2,
                sample_rate=int(random.choice([0, 1, 16000, 2**32 - 1])),
                sample_format=str(random.choice(names)), bitrate=int(random.integers(2**32)),
                coding_format=str(random.choice(["wave", "wave", "wave", "", "mp3"]))))
        message = stamped(random.bytes(int(random.choice([0, 1, 7, 480, 4800]))))
        message.header.stamp = Time(sec=int(random.integers(-2**31, 2**31)),
                                    nanosec=int(random.integers(2**32)))
        audio.publish(message)
        side.executor.spin_once(timeout_sec=0)
    side.until(lambda: len(side.chunks["fuzz"]) + len(side.reasons["fuzz"]) >= 500)
    side.inform("fuzz", 16000, 2, "S16LE")
    data = in_bytes(noise(), "S16LE")
    end = time.monotonic() + PATIENCE
    while side.until_sent("fuzz", stamped(data, 1))[1].audio.data.tobytes() != data:
        assert time.monotonic() < end
    assert side.child.poll() is None
    for chunk in side.chunks["fuzz"]:
        assert np.isfinite(samples(chunk)).all()


# -- mgonzs13 --------------------------------------------------------------------------------------

# PortAudio's numbers (portaudio.h), the field, the code of its array, libsndfile's name
PORTAUDIO = {"paFloat32": (1, "float32_data", "f", "F32LE"),
             "paInt32": (2, "int32_data", "i", "S32LE"), "paInt16": (8, "int16_data", "h", "S16LE"),
             "paInt8": (16, "int8_data", "b", "S8"), "paUInt8": (32, "uint8_data", "B", "U8")}


def portaudio(data, name="paInt16", channels=2, rate=16000, number=0, **info):
    code, field, typecode, _ = PORTAUDIO[name]
    values = array.array(typecode, data)
    fields = dict(format=code, channels=channels, rate=rate,
                  chunk=len(values) // max(channels, 1)) | info
    return msg.AudioStamped(header=stamp(number), audio=msg.Audio(
        audio_data=msg.AudioData(**{field: values}), info=msg.AudioInfo(**fields)))


@mgonzs13
def test_every_portaudio_format(side):
    for number, (name, (_, _, _, sndfile)) in enumerate(PORTAUDIO.items()):
        channels, rate = 1 + number % 3, 8000 + 100 * number
        data = in_bytes(noise(240, channels, number), sndfile)
        chunk, out = side.send("formats", portaudio(data, name, channels, rate, number))
        expected = from_bytes(data, sndfile, channels)
        np.testing.assert_array_equal(samples(chunk), expected, name)
        assert (chunk.sample_rate, chunk.channels) == (rate, channels)
        assert chunk.header == out.header == stamp(number)
        # Back as paInt16, to half a step, with all that its info says.
        assert out.audio.info == msg.AudioInfo(format=8, channels=channels, rate=rate, chunk=240)
        values = np.array(out.audio.audio_data.int16_data).reshape(-1, channels) / 32768
        assert np.abs(values - expected).max() <= 0.5001 / 32768, name
        data = out.audio.audio_data
        assert not (data.float32_data or data.int32_data or data.int8_data or data.uint8_data)


@mgonzs13
def test_info_that_contradicts_itself_or_the_data_is_refused(side):
    data = in_bytes(noise(), "S16LE")
    both = portaudio(data)
    both.audio.audio_data.float32_data = [0.0] * 640
    for message, words in (
            (both, "float32_data, int16_data is filled: expected int16_data alone"),
            (portaudio(data, format=1), "format is 1 (paFloat32), but int16_data is filled"),
            (portaudio(data, format=4), "paInt24"), (portaudio(data, format=0), "format is 0"),
            (portaudio(data, format=-1), "format is -1"), (portaudio(data, format=9), "is 9"),
            (portaudio(data, channels=0), "channels is 0"),
            (portaudio(data, channels=-2), "channels is -2"),
            (portaudio(data, rate=0), "sample rate 0 Hz"),
            (portaudio(data, rate=-16000), "sample rate -16000 Hz"),
            (portaudio(data, chunk=319), "640 values in int16_data, but info says 319 frames"),
            (portaudio(data, chunk=0), "says 0 frames"),
            (portaudio(data, chunk=-320, channels=-2), "channels is -2"),
            (portaudio(data[:-2], chunk=320), "639 values"),
            (portaudio(data, chunk=2**31 - 1, channels=2**31 - 1), "640 values"),
            (portaudio(b""), "without samples"),
            (portaudio(np.float32([0, np.nan, np.inf, 0]).tobytes(), "paFloat32"),
             "2 samples are not finite")):
        assert words in side.send("bad", message)
    chunk, _ = side.send("bad", portaudio(data))
    np.testing.assert_array_equal(samples(chunk), from_bytes(data, "S16LE", 2))


@mgonzs13
def test_without_a_stamp_the_time_of_arrival_is_taken(side):
    message = portaudio(in_bytes(noise(1600), "S16LE"))
    message.header.stamp = Time()
    before = time.time_ns()
    chunk, _ = side.send("no_stamp", message)
    arrived = chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec + 100_000_000
    assert before <= arrived <= time.time_ns() and chunk.header.frame_id == "mic"


@mgonzs13
def test_other_channels_or_rate_than_expected(side):
    data = in_bytes(noise(), "S16LE")
    assert "binaural audio has two" in side.send("strict", portaudio(data, channels=1))
    assert "16000 Hz is expected" in side.send("strict", portaudio(data, rate=44100))
    side.send("strict", portaudio(data))[0]


@mgonzs13
def test_random_messages_never_stop_it_either(side):
    random = np.random.default_rng(1)
    audio = side.sender(msg.AudioStamped, "fuzz")
    names = list(PORTAUDIO)
    for number in range(500):
        name = names[number % len(names)]
        size = array.array(PORTAUDIO[name][2]).itemsize * int(random.choice([0, 1, 7, 480]))
        message = portaudio(random.bytes(size), name)
        if number % 2:
            setattr(message.audio.info, str(random.choice(["format", "channels", "rate", "chunk"])),
                    int(random.integers(-2**31, 2**31)))
        message.header.stamp = Time(sec=int(random.integers(-2**31, 2**31)),
                                    nanosec=int(random.integers(2**32)))
        audio.publish(message)
        side.executor.spin_once(timeout_sec=0)
    side.until(lambda: len(side.chunks["fuzz"]) + len(side.reasons["fuzz"]) >= 500)
    data = in_bytes(noise(), "S16LE")
    chunk, out = side.send("fuzz", portaudio(data, number=1))
    assert out.audio.audio_data.int16_data.tobytes() == data and side.child.poll() is None
    for chunk in side.chunks["fuzz"]:
        assert np.isfinite(samples(chunk)).all()
