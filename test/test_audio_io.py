"""Audio messages of all three packages, in and out: samples, stamps, and what is refused."""
import array
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
import time
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy  # noqa: E402
from luseel.msg import AudioChunk  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from ros_helpers import ros_context, spinning  # noqa: E402

from luseel_model.errors import AudioError  # noqa: E402
from luseel_ros import audio_io  # noqa: E402
from luseel_ros.audio_io import AudioBlock, AudioReader, AudioWriter  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def build_script():
    path = ROOT / "tools" / "audio_common_msgs" / "build.py"
    spec = importlib.util.spec_from_file_location("audio_common_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- samples ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, data, expected", [
    ("S8", "80 c0 00 40 7f", [-1, -0.5, 0, 0.5, 127 / 128]),
    ("U8", "00 40 80 c0 ff", [-1, -0.5, 0, 0.5, 127 / 128]),
    ("S16LE", "0080 00c0 0000 0040 ff7f", [-1, -0.5, 0, 0.5, 32767 / 32768]),
    ("S16BE", "8000 c000 0000 4000 7fff", [-1, -0.5, 0, 0.5, 32767 / 32768]),
    ("S24LE", "000080 0000c0 000000 000040 ffff7f", [-1, -0.5, 0, 0.5, 1 - 2**-23]),
    ("S24BE", "800000 c00000 000000 400000 7fffff", [-1, -0.5, 0, 0.5, 1 - 2**-23]),
    # GStreamer: "24 bits in 32 bits"; the upper byte holds the sign, or anything.
    ("S24_32LE", "000080ff 0000c000 00000000 000040aa ffff7f00", [-1, -0.5, 0, 0.5, 1 - 2**-23]),
    ("S24_32BE", "ff800000 00c00000 00000000 aa400000 007fffff", [-1, -0.5, 0, 0.5, 1 - 2**-23]),
    ("S32LE", "00000080 000000c0 00000000 00000040 00010000", [-1, -0.5, 0, 0.5, 2**-23]),
    ("S32BE", "80000000 c0000000 00000000 40000000 00000100", [-1, -0.5, 0, 0.5, 2**-23]),
    ("F32LE", "000080bf 000000bf 00000000 0000003f 00000040", [-1, -0.5, 0, 0.5, 2]),
    ("F32BE", "bf800000 bf000000 00000000 3f000000 40000000", [-1, -0.5, 0, 0.5, 2]),
    ("F64LE", "000000000000f0bf 000000000000e03f", [-1, 0.5]),
    ("F64BE", "bff0000000000000 3fe0000000000000", [-1, 0.5]),
])
def test_formats_by_hand(name, data, expected):
    data = bytes.fromhex(data)
    for source in (data, array.array("B", data)):  # a field of a message is an array
        samples = audio_io.decode_samples(source, name, 1)
        assert samples.dtype == np.float32
        np.testing.assert_array_equal(samples, np.float32(expected)[:, None])
    back = audio_io.encode_samples(samples, name)
    np.testing.assert_array_equal(
        audio_io.decode_samples(back, name, 1), np.float32(expected)[:, None])
    if "_32" not in name:
        assert back == data


def test_every_format_is_covered():
    covered = {mark.args[1][i][0] for mark in test_formats_by_hand.pytestmark
               if mark.name == "parametrize" for i in range(len(mark.args[1]))}
    assert covered == set(audio_io.SAMPLE_FORMATS)


@pytest.mark.parametrize("name", [n for n in audio_io.SAMPLE_FORMATS if n[0] != "F"])
def test_too_loud_is_limited_and_never_turns_over(name):
    loud = np.float32([[1.0, -1.0], [1.5, -1.5], [1e9, -1e9]])
    back = audio_io.decode_samples(audio_io.encode_samples(loud, name), name, 2)
    assert (back[:, 0] > 0.99).all() and (back[:, 1] == -1).all()


def test_frames_are_interleaved(tmp_path):
    """As in a WAV file, written by the standard library."""
    ramp = np.arange(-300, 300, dtype="<i2").reshape(-1, 3)
    with wave.open(str(tmp_path / "ramp.wav"), "wb") as file:
        file.setparams((3, 2, 16000, 0, "NONE", ""))
        file.writeframes(ramp.tobytes())
    with wave.open(str(tmp_path / "ramp.wav")) as file:
        data = file.readframes(file.getnframes())
    np.testing.assert_array_equal(
        audio_io.decode_samples(data, "S16LE", 3), ramp.astype(np.float32) / 32768)


@pytest.mark.parametrize("size, name, channels", [(1, "S16LE", 1), (6, "S16LE", 2), (4, "S24LE", 1),
                                                  (8, "F32LE", 255)])
def test_part_of_a_frame_is_an_error(size, name, channels):
    with pytest.raises(AudioError, match=f"^{size} bytes don't divide into frames of {channels}"):
        audio_io.decode_samples(bytes(size), name, channels)
    assert audio_io.decode_samples(b"", name, channels).shape == (0, channels)


def test_names_of_formats():
    assert audio_io.sample_format_name(" s24_32le ") == "S24_32LE"
    for text, words in (("", "no sample_format"), ("S16", "S16LE or S16BE"), ("F32", "order"),
                        ("S20LE", "not known"), ("int16", "not known")):
        with pytest.raises(AudioError, match=words):
            audio_io.sample_format_name(text)


# -- luseel/AudioChunk -----------------------------------------------------------------------------

def exchange(publish, **options):
    """What a reader of another context makes of `publish(node)` -> (blocks, reasons).

    Ends when something came and 0.3 s of nothing followed.
    """
    blocks, reasons = [], []
    with ros_context() as context:
        other = rclpy.Context()
        rclpy.init(context=other, domain_id=context.get_domain_id())
        source = rclpy.create_node("source", context=other)
        node = rclpy.create_node("sink", context=context)
        reader = AudioReader(node, "luseel", "audio", QoSProfile(depth=100), blocks.append,
                             reasons.append, **options)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            publish(source, reader, lambda: executor.spin_once(timeout_sec=0.05))
            for _ in range(400):
                before = len(blocks) + len(reasons)
                for _ in range(6):
                    executor.spin_once(timeout_sec=0.05)
                if before and len(blocks) + len(reasons) == before:
                    break
            assert reader.topic_name == "/audio"
            reader.destroy()
            reader.destroy()  # twice is no error
        finally:
            executor.shutdown()
            node.destroy_node()
            source.destroy_node()
            rclpy.try_shutdown(context=other)
    return blocks, reasons


def test_audio_chunks_there_and_back():
    audio = np.random.default_rng(0).uniform(-1, 1, (2, 160, 3)).astype(np.float32)
    sent = [AudioBlock(audio[0], 16000, 1_700_000_000_000_000_001, "mic", 5),
            AudioBlock(audio[1], 48000, 1_700_000_000_500_000_000, "", None, "q1")]

    def publish(node, reader, spin):
        writer = AudioWriter(node, "luseel", "audio", QoSProfile(depth=10))
        while not (reader.publisher_count and writer._publisher.get_subscription_count()):
            spin()
        for block in sent:
            writer.publish(block)

    blocks, reasons = exchange(publish)
    assert reasons == [] and len(blocks) == 2
    for block, expected in zip(blocks, sent):
        np.testing.assert_array_equal(block.samples, expected.samples)
        assert block.stamped and block.samples.dtype == np.float32
        assert not block.samples.flags.writeable
        assert (block.sample_rate, block.stamp_ns, block.frame_id, block.query_id) == (
            expected.sample_rate, expected.stamp_ns, expected.frame_id, expected.query_id)
    # The second follows the first where the source doesn't count.
    assert [block.first_sample for block in blocks] == [5, 165]


def test_bad_audio_chunks_are_refused_with_the_reason():
    chunk = dict(sample_rate=16000, channels=2, samples=[0.5] * 8)
    bad = [(dict(channels=0), "0 channel(s): binaural audio has two"),
           (dict(channels=1), "1 channel(s): binaural audio has two"),
           (dict(channels=65535), "binaural audio has two"), (dict(samples=[0.0] * 7), "don't div"),
           (dict(samples=[]), "without samples"), (dict(sample_rate=0), "sample rate 0 Hz"),
           (dict(sample_rate=2**32 - 1), "sample rate 4294967295 Hz"),
           (dict(samples=[0.0, np.nan]), "1 samples are not finite")]

    def publish(node, reader, spin):
        publisher = node.create_publisher(AudioChunk, "audio", 100)
        while not (reader.publisher_count and publisher.get_subscription_count()):
            spin()
        for fields, _ in bad:
            publisher.publish(AudioChunk(**chunk | fields))
        publisher.publish(AudioChunk(**chunk))

    blocks, reasons = exchange(publish, channels=2)
    assert len(blocks) == 1 and blocks[0].samples.shape == (4, 2)
    assert len(reasons) == len(bad)
    for reason, (_, words) in zip(reasons, bad):
        assert words in reason
    # No stamp: the time of arrival, less the length.
    assert not blocks[0].stamped
    assert 0 <= time.time_ns() - 250_000 - blocks[0].stamp_ns < 600e9


def test_blocks_that_are_no_audio():
    with ros_context() as context, spinning(rclpy.create_node("n", context=context)) as node:
        writer = AudioWriter(node, "luseel", "audio", 10)
        for shape in ((4,), (4, 0), (1, 2, 3)):
            with pytest.raises(AudioError, match="expected .frames, channels."):
                writer.publish(AudioBlock(np.zeros(shape, np.float32), 16000, 0, "", 0))
        writer.destroy()
        with pytest.raises(audio_io.MessagesError, match="can't send S16LE"):
            AudioWriter(node, "luseel", "audio", 10, sample_format="S16LE")


@pytest.mark.parametrize("rules, topic, expected", [
    ([], "audio", "/robot/audio_info"), ([], "/mic/audio_stamped", "/mic/audio_info"),
    ([], "~/extracted", "/robot/n/extracted_info"),
    (["audio:=/mic/audio_stamped"], "audio", "/mic/audio_info"),
    (["audio:=/mic/audio", "audio_info:=/elsewhere"], "audio", "/elsewhere"),
])
def test_where_the_info_of_a_topic_is(rules, topic, expected):
    args = [word for rule in rules for word in ("-r", rule)]
    with ros_context() as context:
        node = rclpy.create_node("n", context=context, namespace="robot",
                                 cli_args=["--ros-args", *args] if args else None)
        assert node.resolve_topic_name(audio_io.default_info_topic(node, topic)) == expected
        node.destroy_node()


# -- which package ---------------------------------------------------------------------------------

def test_an_unknown_kind_is_named():
    with pytest.raises(audio_io.MessagesError, match="expected luseel, ros_drivers, mgonzs13"):
        audio_io.load_messages("odas")


@pytest.mark.parametrize("kind", ["ros_drivers", "mgonzs13"])
def test_without_the_package_the_error_says_how_to_install_it(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "audio_common_msgs", None)
    with ros_context() as context, spinning(rclpy.create_node("n", context=context)) as node:
        for build in (lambda: AudioReader(node, kind, "audio", 10, print, print),
                      lambda: AudioWriter(node, kind, "audio", 10)):
            with pytest.raises(audio_io.MessagesError, match="isn't installed: install") as error:
                build()
            assert f"build.py {kind}" in str(error.value)


def fake_package(folder, text):
    package = folder / "audio_common_msgs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "msg.py").write_text(textwrap.dedent(text))


@pytest.mark.parametrize("text, words", [
    ("raise ImportError('libaudio.so: cannot open shared object file')", "build it for this Pyth"),
    # mgonzs13's before 4.0: an AudioDataStamped that isn't ros-drivers'
    ("class AudioDataStamped:\n    get_fields_and_field_types = dict", "neither ros-drivers' nor"),
])
def test_another_package_of_that_name(tmp_path, monkeypatch, text, words):
    fake_package(tmp_path, text)
    for name in [name for name in sys.modules if name.startswith("audio_common_msgs")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(audio_io.MessagesError, match=re.escape(words)):
            audio_io.load_messages("ros_drivers")
    finally:
        for name in ("audio_common_msgs", "audio_common_msgs.msg"):
            sys.modules.pop(name, None)


def test_int24_has_no_field():
    audio = SimpleNamespace(info=SimpleNamespace(format=4), audio_data=None)
    with pytest.raises(AudioError, match="paInt16"):
        audio_io.decode_portaudio(audio)


@pytest.mark.parametrize("kind, passed", [("ros_drivers", 16), ("mgonzs13", 8)])
def test_in_an_environment_of_its_own(kind, passed):
    """cases.py with one of the two packages, which this builds unless it is there."""
    build = build_script()
    if not build.installed("ros-std-msgs"):
        pytest.skip("the packages are built for the ROS 2 wheels only; this is a distribution")
    prefix = build.default_prefix(kind)
    build.build([kind], {kind: prefix})
    env = build.environment(prefix)
    env["LUSEEL_AUDIO_KIND"] = kind
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(
            HERE / "audio_common" / "cases.py")],
        env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, cwd=ROOT, timeout=1200)
    assert done.returncode == 0, done.stdout
    # The rest is for the other package.
    assert re.search(rf"\b{passed} passed", done.stdout), done.stdout
