"""`luseel bag`: audio files to rosbag2 and back without loss, read by others too, and played."""

import itertools
import sqlite3
import threading
import time

import numpy as np
import pytest
import soundfile
import yaml

pytest.importorskip("rosbags")
pytest.importorskip("rclpy")

from luseel.msg import AudioChunk  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from ros_helpers import ros_context, spinning  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from luseel_model.errors import LuseelError  # noqa: E402
from luseel_ros.tools import bag  # noqa: E402
from luseel_ros.tools.__main__ import main  # noqa: E402

RATE = 22050
START = 1_700_000_000_250_000_001  # more digits than a float holds


@pytest.fixture
def wav(tmp_path, monkeypatch):
    """A recording of 1.03 s with values beyond full scale; its folder is the current one."""
    monkeypatch.chdir(tmp_path)
    audio = np.random.default_rng(0).normal(0, 0.5, (22713, 2)).astype(np.float32)
    audio[7] = [3.5, -1e-42]
    soundfile.write("in.wav", audio, RATE, "FLOAT")
    return audio


def make_bag(name="talk", **options):
    return bag.wav_to_bag("in.wav", name, start_ns=START, queries=["a dog"], progress=False,
                          **options)


def read_with_others(folder, storage):
    """(topic, log time, message) of a bag by readers that aren't ours nor of rosbags."""
    if storage == "mcap":
        from mcap.reader import make_reader
        from mcap_ros2.decoder import DecoderFactory
        with open(folder / "talk.mcap", "rb") as file:
            reader = make_reader(file, decoder_factories=[DecoderFactory()])
            # decoded by the definitions that the file itself holds
            return [(channel.topic, message.log_time, decoded) for _, channel, message, decoded
                    in reader.iter_decoded_messages()]
    with sqlite3.connect(folder / "talk.db3") as base:
        rows = base.execute("SELECT topics.name, topics.type, timestamp, data FROM messages JOIN "
                            "topics ON topics.id = topic_id ORDER BY messages.id").fetchall()
    kinds = {"luseel/msg/AudioChunk": AudioChunk, "std_msgs/msg/String": String}
    return [(topic, stamp, deserialize_message(data, kinds[kind]))
            for topic, kind, stamp, data in rows]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_round_trip_is_exact_and_others_read_the_bag(wav, tmp_path, storage, capsys):
    assert main(["bag", "from-wav", "in.wav", "talk", "--storage", storage, "--query", "a dog",
                 "--start-time", "1700000000.250000001", "--frame-id", "head", "-q"]) == 0
    messages = read_with_others(tmp_path / "talk", storage)
    assert messages[0][:2] == ("/query", START) and messages[0][2].data == "a dog"
    position = 0
    for topic, logged, chunk in messages[1:]:
        count = len(chunk.samples) // 2
        assert topic == "/audio" and chunk.header.frame_id == "head"
        assert (chunk.first_sample, chunk.sample_rate, chunk.channels) == (position, RATE, 2)
        stamp = chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec
        assert abs(stamp - START - position * 10**9 / RATE) <= 1
        assert abs(logged - START - (position + count) * 10**9 / RATE) <= 1
        np.testing.assert_array_equal(
            np.asarray(chunk.samples, np.float32).reshape(-1, 2), wav[position:position + count])
        position += count
    assert position == len(wav) and len(messages) == 12

    # what `ros2 bag info` shows
    info = yaml.safe_load((tmp_path / "talk/metadata.yaml").read_text())[
        "rosbag2_bagfile_information"]
    assert (info["storage_identifier"], info["message_count"]) == (storage, 12)
    assert info["starting_time"]["nanoseconds_since_epoch"] == START
    topics = {t["topic_metadata"]["name"]: t for t in info["topics_with_message_count"]}
    assert topics["/audio"]["message_count"] == 11
    assert topics["/query"]["topic_metadata"]["offered_qos_profiles"][0]["durability"] == \
        "transient_local"
    # the hash that the real message has
    assert topics["/audio"]["topic_metadata"]["type_description_hash"] == type_hash()

    capsys.readouterr()
    assert main(["bag", "to-wav", "talk", "-o", "out", "-q"]) == 0
    printed = capsys.readouterr().out
    assert "2023-11-14 22:13:20.250000001 UTC" in printed and "talk_audio.wav" in printed
    back, rate = soundfile.read(tmp_path / "out/talk_audio.wav", dtype="float32")
    assert rate == RATE and soundfile.info(tmp_path / "out/talk_audio.wav").subtype == "FLOAT"
    np.testing.assert_array_equal(back, wav)


def type_hash():
    """RIHS01 of AudioChunk, as the middleware tells it."""
    with ros_context() as context:
        import rclpy
        node = rclpy.create_node("hash", context=context)
        publisher = node.create_publisher(AudioChunk, "audio", 1)
        found = node.get_publishers_info_by_topic("/audio")[0].topic_type_hash
        node.destroy_publisher(publisher)
        node.destroy_node()
    return str(found)


def write_chunks(folder, chunks, topic="/audio"):
    """A bag of chunks (first_sample, samples (n, 2), query_id, rate)."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    store = bag.typestore()
    header, stamp = store.types["std_msgs/msg/Header"], store.types["builtin_interfaces/msg/Time"]
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(topic, bag.AUDIO, typestore=store)
        for number, (first, samples, query_id, rate) in enumerate(chunks):
            writer.write(connection, number, store.serialize_cdr(store.types[bag.AUDIO](
                header=header(frame_id="", stamp=stamp(sec=number, nanosec=0)),
                first_sample=first, sample_rate=rate, channels=2,
                samples=np.float32(samples).ravel(), query_id=query_id), bag.AUDIO))


def test_losses_become_silence_and_a_new_stream_a_new_file(tmp_path):
    a, b, c = (np.full((100, 2), value, np.float32) for value in (0.1, 0.2, 0.3))
    write_chunks(tmp_path / "b", [
        (1000, a, "", 16000), (1150, b, "", 16000), (1200, c, "", 16000),  # 50 lost, 50 twice
        (0, a, "", 16000), (100, b, "", 8000),  # starts anew; another rate
        (7, c, "q1", 16000)])
    streams = bag.bag_to_wav(tmp_path / "b", tmp_path / "out", progress=False)
    assert [(s.path.name, s.samples, s.silence, s.repeated, s.sample_rate, s.first_sample)
            for s in streams] == [
        ("b_audio.wav", 300, 50, 50, 16000, 1000), ("b_audio_2.wav", 100, 0, 0, 16000, 0),
        ("b_audio_3.wav", 100, 0, 0, 8000, 100), ("b_audio_q1.wav", 100, 0, 0, 16000, 7)]
    audio, _ = soundfile.read(tmp_path / "out/b_audio.wav", dtype="float32")
    expected = np.concatenate([a, np.zeros((50, 2)), b, c[50:]]).astype(np.float32)
    np.testing.assert_array_equal(audio, expected)
    with pytest.raises(LuseelError, match="more than one stream"):
        bag.bag_to_wav(tmp_path / "b", tmp_path / "one.wav", progress=False)
    with pytest.raises(LuseelError, match="is there already"):
        bag.bag_to_wav(tmp_path / "b", tmp_path / "out", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "out"]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_names_from_a_bag_stay_in_the_folder(tmp_path):
    write_chunks(tmp_path / "b", [(0, np.zeros((10, 2)), "../../evil", 16000)])
    stream, = bag.bag_to_wav(tmp_path / "b", tmp_path / "out", progress=False)
    assert stream.path.parent == tmp_path / "out" and "/" not in stream.path.name
    assert not (tmp_path.parent / "evil.wav").exists()


@pytest.mark.parametrize("make, words", [
    (lambda: make_bag("in.wav"), "is there already"),
    (lambda: make_bag("no/where"), "doesn't exist"),
    (lambda: make_bag(storage="zip"), "mcap or sqlite3"),
    (lambda: bag.wav_to_bag("nope.wav", "b"), "can't read nope.wav"),
    (lambda: bag.wav_to_bag("in.wav", "b", start_ns=2**31 * 10**9), "stamp of ROS"),
    (lambda: bag.wav_to_bag("in.wav", "b", queries=[" "]), "query"),
    (lambda: bag.bag_to_wav("nope"), "no bag nope"),
    (lambda: bag.bag_to_wav("in.wav"), "no rosbag2"),
    (lambda: bag.play_bag("in.wav", rate=0), "--rate 0"),
])
def test_what_cannot_be_done_is_said_and_leaves_nothing(wav, tmp_path, make, words):
    with pytest.raises(LuseelError, match=words):
        make()
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_damaged_bag_is_refused(wav, tmp_path, storage):
    make_bag(storage=storage)
    file = next(p for p in (tmp_path / "talk").iterdir() if p.name != "metadata.yaml")
    data = file.read_bytes()
    file.write_bytes(data[:len(data) // 2])
    with pytest.raises(LuseelError, match="talk"):
        bag.bag_to_wav("talk", "out", progress=False)
    assert not list(tmp_path.glob("out/*"))


def test_ctrl_c_leaves_nothing(wav, tmp_path, monkeypatch, capsys):
    blocks = bag._blocks

    def interrupted(*args):
        yield from itertools.islice(blocks(*args), 3)
        raise KeyboardInterrupt
    monkeypatch.setattr(bag, "_blocks", interrupted)
    assert main(["bag", "from-wav", "in.wav", "talk", "-q"]) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]
    monkeypatch.setattr(bag, "_blocks", blocks)
    make_bag()
    take, calls = bag._take, itertools.count()

    def interrupted_take(*args):
        if next(calls) == 3:
            raise KeyboardInterrupt
        take(*args)
    monkeypatch.setattr(bag, "_take", interrupted_take)
    assert main(["bag", "to-wav", "talk", "-o", "out.wav", "-q"]) == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.wav", "talk"]


def test_playing_over_dds(wav, tmp_path):
    import rclpy
    make_bag(storage="sqlite3")
    with ros_context() as context:
        player = rclpy.create_node("player", context=context)
        heard, clocks, late = [], [], []
        node = rclpy.create_node("listener", context=context)
        node.create_subscription(AudioChunk, "/head/audio", lambda m: heard.append(
            (time.monotonic(), m)), QoSProfile(depth=100))
        node.create_subscription(Clock, "/clock", clocks.append, QoSProfile(
            depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT))
        with spinning(node):
            done, begin = [], time.monotonic()
            thread = threading.Thread(target=lambda: done.append(bag.play_bag(
                "talk", rate=2.0, clock=True, remap={"audio": "head/audio"}, wait_for=1,
                node=player, progress=False)))
            thread.start()
            # who comes late still gets the query, as it was recorded
            node.create_subscription(String, "/query", late.append, QoSProfile(
                depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
            thread.join(60)
            end = time.monotonic() + 20
            while len(heard) < 11 and time.monotonic() < end:
                time.sleep(0.02)
        player.destroy_node()
    assert done == [12]
    chunks = [m for _, m in heard]
    assert [m.first_sample for m in chunks] == list(range(0, len(wav), 2205))
    np.testing.assert_array_equal(
        np.concatenate([np.asarray(m.samples) for m in chunks]).reshape(-1, 2), wav)
    assert chunks[0].header.stamp.sec * 10**9 + chunks[0].header.stamp.nanosec == START
    # the last is due 1.03 s after the begin, at double speed; never sooner than that
    assert heard[-1][0] - begin > 0.51
    assert [m.data for m in late] == ["a dog"]
    times = [m.clock.sec * 10**9 + m.clock.nanosec for m in clocks]
    assert times == sorted(times) and len(times) > 10
    assert START <= times[0] and times[-1] <= START + 1.04e9


def test_playing_what_is_not_there(wav):
    import rclpy
    make_bag()
    with ros_context() as context:
        node = rclpy.create_node("player", context=context)
        with pytest.raises(LuseelError, match="has no /nope; it has /audio, /query"):
            bag.play_bag("talk", topics=["nope"], node=node, progress=False)
        node.destroy_node()
