"""``luseel bag``: audio files to rosbag2 and back, and bags played to a node.

Reads and writes bags with rosbags, which needs no ROS installation; only `play` talks to ROS.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import decimal
import importlib
import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import numpy as np

from luseel_model.errors import AudioError, LuseelError
from luseel_model.listen import printable

AUDIO, WORDS = "luseel/msg/AudioChunk", "std_msgs/msg/String"
NANOSECONDS = 1_000_000_000
MAX_STAMP = 2**31 * NANOSECONDS  # builtin_interfaces/Time counts seconds in 32 bits
MAX_GAP = 60.0  # [s] of lost audio that becomes silence; after more, a new file begins
MAX_REPEAT = 1.0  # [s] of audio that came twice; further back, a new recording has begun
CLOCK_PERIOD = 0.02  # [s] between two messages on /clock
RF64_BYTES = 4_000_000_000  # a plain WAV counts its bytes in 32 bits


class BagError(LuseelError):
    """A bag can't be read, written or played; the text says why."""


def _rosbags():
    try:
        import rosbags.highlevel
        import rosbags.rosbag2
        import rosbags.typesys
    except ImportError as error:
        raise BagError(f"luseel bag needs the package rosbags ({error}): "
                       "pip install 'luseel[bag]', or pip install rosbags") from None
    return rosbags


def typestore():
    """The message types of ROS 2, and those of this package from its installed definitions."""
    import luseel_ros  # noqa: F401  (sets the ament prefix where pip has installed the package)
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    rosbags = _rosbags()
    store = rosbags.typesys.get_typestore(rosbags.typesys.Stores.LATEST)
    try:
        folder = Path(get_package_share_directory("luseel")) / "msg"
    except (PackageNotFoundError, OSError):
        raise BagError("the message definitions of luseel aren't installed: source the workspace "
                       "that holds it (source install/setup.bash)") from None
    types = {}
    for path in sorted(folder.glob("*.msg")):
        types.update(rosbags.typesys.get_types_from_msg(
            path.read_text(), f"luseel/msg/{path.stem}"))
    store.register(types)
    return store


# -- WAV to bag ----------------------------------------------------------------------------------


def wav_to_bag(source: str | Path, out: str | Path, storage: str = "mcap", topic: str = "/audio",
               frame_id: str = "microphones", start_ns: int | None = None,
               chunk_seconds: float = 0.1, queries: list[str] | tuple[str, ...] = (),
               progress: bool | None = None) -> int:
    """Write an audio file as a rosbag2 of luseel/AudioChunk.

    The samples stay what they are in float32. A chunk is stamped with the capture time of its
    first sample, and logged at the end of its last, when a microphone would have sent it. Nothing
    is left behind if it fails.

    Args:
        source: WAV, FLAC, OGG, ..., any number of channels.
        out: the bag, a folder that isn't there yet.
        storage: "mcap" or "sqlite3".
        start_ns: capture time of the first sample; None: now.
        queries: words for the topic /query, at the start.
        progress: a bar; None: on a terminal.

    Returns:
        the number of messages.

    Raises:
        LuseelError: what was given can't be used.
    """
    import soundfile
    from tqdm import tqdm

    from luseel_model.query import validate_query

    rosbags = _rosbags()
    out = Path(out)
    plugins = {"mcap": rosbags.rosbag2.StoragePlugin.MCAP,
               "sqlite3": rosbags.rosbag2.StoragePlugin.SQLITE3}
    if storage not in plugins:
        raise BagError(f"storage {storage!r}: choose mcap or sqlite3")
    if out.exists():
        raise BagError(f"{out} is there already: name another bag")
    if not out.absolute().parent.is_dir():
        raise BagError(f"the folder of {out} doesn't exist")
    if not 0.001 <= chunk_seconds <= 60:
        raise BagError(f"chunks of {chunk_seconds:g} s: expected 0.001 to 60")
    queries = [validate_query(query) for query in queries]
    start_ns = time.time_ns() if start_ns is None else int(start_ns)
    try:
        file = soundfile.SoundFile(str(source))
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"can't read {source}: {error}") from None
    with file:
        if not file.frames:
            raise AudioError(f"{source} holds no audio")
        if not 0 <= start_ns < MAX_STAMP - file.frames * NANOSECONDS // file.samplerate:
            raise BagError(f"a start at {start_ns / 1e9:g} s doesn't fit into a stamp of ROS")
        store = typestore()
        scratch = Path(tempfile.mkdtemp(prefix=".luseel-bag-", dir=out.absolute().parent))
        try:
            # the files in a bag have its name
            with rosbags.rosbag2.Writer(scratch / out.name, version=9,
                                        storage_plugin=plugins[storage]) as writer:
                count = _write_messages(writer, store, file, str(source), topic, frame_id,
                                        start_ns, chunk_seconds, queries, progress, tqdm)
            os.rename(scratch / out.name, out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return count


def _write_messages(writer, store, file, name, topic, frame_id, start_ns, chunk_seconds, queries,
                    progress, tqdm) -> int:
    audio_type = store.types[AUDIO]
    header_type, time_type = store.types["std_msgs/msg/Header"], \
        store.types["builtin_interfaces/msg/Time"]
    count = 0
    if queries:
        connection = writer.add_connection("/query", WORDS, typestore=store,
                                           offered_qos_profiles=[_qos(latched=True)])
        for query in queries:
            writer.write(connection, start_ns, store.serialize_cdr(
                store.types[WORDS](data=query), WORDS))
            count += 1
    connection = writer.add_connection(
        topic, AUDIO, typestore=store, offered_qos_profiles=[_qos(latched=False)])
    rate, first = file.samplerate, 0
    size = max(1, round(chunk_seconds * rate))
    with tqdm(total=round(file.frames / rate, 1), unit="s", desc="writing",
              disable=None if progress is None else not progress) as bar:
        for samples in _blocks(file, size, name):
            stamp = start_ns + _samples_to_ns(first, rate)
            end = start_ns + _samples_to_ns(first + len(samples), rate)
            message = audio_type(
                header=header_type(frame_id=frame_id, stamp=time_type(
                    sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS)),
                first_sample=first, sample_rate=rate, channels=samples.shape[1],
                samples=np.ascontiguousarray(samples).ravel(), query_id="")
            writer.write(connection, end, store.serialize_cdr(message, AUDIO))
            first += len(samples)
            count += 1
            bar.update(len(samples) / rate)
    return count


def _blocks(file, size: int, name: str) -> Iterator[np.ndarray]:
    import soundfile

    try:
        while len(samples := file.read(size, dtype="float32", always_2d=True)):
            yield samples
    except soundfile.LibsndfileError as error:
        raise AudioError(f"can't read on in {name}: {error}") from None


def _samples_to_ns(samples: int, rate: int) -> int:
    shift, rest = divmod(samples * NANOSECONDS, rate)
    return shift + (2 * rest >= rate)


def _qos(latched: bool):
    from rosbags import interfaces as i

    forever = i.QosTime(2147483647, 4294967295)  # rosbag2's own infinity
    return i.Qos(
        i.QosHistory.KEEP_LAST, 10 if latched else 50, i.QosReliability.RELIABLE,
        i.QosDurability.TRANSIENT_LOCAL if latched else i.QosDurability.VOLATILE,
        forever, forever, i.QosLiveliness.AUTOMATIC, forever, False)


# -- reading -------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_bag(path: str | Path):
    """A rosbags reader of a bag, which knows the types of this package.

    Raises:
        BagError: it isn't one, or is damaged.
    """
    rosbags = _rosbags()
    path = Path(path)
    if not path.exists():
        raise BagError(f"there is no bag {path}")
    if path.suffix in (".mcap", ".db3") and (path.parent / "metadata.yaml").is_file():
        path = path.parent  # one file of a bag stands for the bag
    try:
        reader = rosbags.highlevel.AnyReader([path], default_typestore=typestore())
        reader.open()
    except LuseelError:
        raise
    except Exception as error:  # of rosbags, of YAML, of SQLite: whatever is broken in there
        raise BagError(f"{path} is no rosbag2 that can be read: {error}") from None
    try:
        yield reader
    finally:
        reader.close()


@dataclass
class WavStream:
    """One stream of a bag as a WAV file.

    Attributes:
        path: of the file.
        topic, query_id: which stream.
        sample_rate, channels: in Hz; number.
        start_ns: capture time of the first sample.
        first_sample: its index.
        samples: in the file, per channel.
        silence: samples of them that were lost and are silence.
        repeated: samples that came twice and are there once.
    """

    path: Path
    topic: str
    query_id: str
    sample_rate: int
    channels: int
    start_ns: int
    first_sample: int
    samples: int = 0
    silence: int = 0
    repeated: int = 0


class _WavWriter:
    """Writes chunks of one stream; lost samples become silence."""

    def __init__(self, info: WavStream, large: bool):
        import soundfile

        self.info = info
        self.part = info.path.with_name(info.path.name + ".part")
        self._file = soundfile.SoundFile(
            str(self.part), "w", info.sample_rate, info.channels, "FLOAT",
            format="RF64" if large else "WAV")

    def fits(self, chunk) -> bool:
        """Whether the chunk belongs to this file."""
        skipped = self._skipped(chunk)
        if chunk.first_sample == 0 and _stamp_ns(chunk) > self.info.start_ns:
            return False  # counted from 0 again
        return ((chunk.sample_rate, chunk.channels) == (self.info.sample_rate, self.info.channels)
                and -MAX_REPEAT <= skipped / self.info.sample_rate <= MAX_GAP)

    def write(self, chunk, samples: np.ndarray) -> None:
        skipped = self._skipped(chunk)
        if skipped > 0:
            self._file.write(np.zeros((skipped, self.info.channels), np.float32))
            self.info.samples += skipped
            self.info.silence += skipped
        elif skipped < 0:
            self.info.repeated += min(-skipped, len(samples))
            samples = samples[-skipped:]
        self._file.write(samples)
        self.info.samples += len(samples)

    def _skipped(self, chunk) -> int:
        return int(chunk.first_sample) - (self.info.first_sample + self.info.samples)

    def close(self) -> None:
        self._file.close()


def bag_to_wav(bag: str | Path, out: str | Path = ".", topics: list[str] | tuple[str, ...] = (),
               progress: bool | None = None) -> list[WavStream]:
    """Write the audio in a bag (luseel/AudioChunk) to WAV files, in float32.

    One file for each topic and query_id, and another one where a stream starts anew or changes its
    format. Lost samples become silence. Nothing is left behind if it fails.

    Args:
        bag: a rosbag2, any storage.
        out: a .wav file, if there is one stream; else a folder.
        topics: which; empty: all.
        progress: a bar; None: on a terminal.

    Returns:
        what was written.

    Raises:
        LuseelError: what was given can't be used.
    """
    from tqdm import tqdm

    out = Path(out)
    single = out.suffix.lower() == ".wav"
    if single and out.exists():
        raise BagError(f"{out} is there already: name another file with -o")
    if single and not out.absolute().parent.is_dir():
        raise BagError(f"the folder of {out} doesn't exist")
    writers: dict[tuple[str, str], list[_WavWriter]] = {}
    done = []
    with open_bag(bag) as reader:
        there = sorted({c.topic for c in reader.connections if c.msgtype == AUDIO})
        wanted = [_absolute(topic) for topic in topics] or there
        if not there or set(wanted) - set(there):
            kinds = ", ".join(sorted({f"{c.topic} ({c.msgtype})" for c in reader.connections}))
            raise BagError(f"{bag} has no audio (luseel/AudioChunk) on "
                           f"{', '.join(sorted(set(wanted) - set(there))) or 'any topic'}; it "
                           f"holds {printable(kinds) or 'nothing'}")
        connections = [c for c in reader.connections if c.topic in wanted and c.msgtype == AUDIO]
        size = sum(p.stat().st_size for p in Path(bag).rglob("*")) if Path(bag).is_dir() else 0
        try:
            total = sum(c.msgcount for c in connections)
            for connection, _, raw in tqdm(
                    reader.messages(connections), total=total, unit="messages", desc="reading",
                    disable=None if progress is None else not progress):
                _take(reader.deserialize(raw, AUDIO), connection.topic, writers, Path(bag), out,
                      single, size > RF64_BYTES)
            for writer in (w for parts in writers.values() for w in parts):
                writer.close()
                os.replace(writer.part, writer.info.path)
                done.append(writer.info)
        except LuseelError:
            raise
        except OSError as error:
            raise BagError(f"can't write into {out}: {error}") from None
        except Exception as error:
            raise BagError(f"{bag} can't be read to its end: {error}") from None
        finally:
            for writer in (w for parts in writers.values() for w in parts):
                writer.close()
                writer.part.unlink(missing_ok=True)
    return done


def _take(chunk, topic, writers, bag: Path, out: Path, single: bool, large: bool) -> None:
    channels, rate = int(chunk.channels), int(chunk.sample_rate)
    if channels < 1 or rate < 1 or len(chunk.samples) % channels:
        raise AudioError(f"a message on {topic} contradicts itself: {len(chunk.samples)} samples, "
                         f"{channels} channels, {rate} Hz")
    parts = writers.setdefault((topic, chunk.query_id), [])
    if not parts or not parts[-1].fits(chunk):
        if single and (parts or len(writers) > 1):
            raise BagError(f"there is more than one stream in {bag}: name a folder with -o, or one "
                           "topic with --topic")
        if not single:
            out.mkdir(parents=True, exist_ok=True)
        path = out if single else out / _file_name(bag, topic, chunk.query_id, len(parts) + 1)
        if path.exists() or any(path == w.info.path for ws in writers.values() for w in ws):
            raise BagError(f"{path} is there already: name another folder with -o")
        parts.append(_WavWriter(WavStream(
            path, topic, chunk.query_id, rate, channels, _stamp_ns(chunk),
            int(chunk.first_sample)), large))
    parts[-1].write(chunk, chunk.samples.reshape(-1, channels))


def _stamp_ns(chunk) -> int:
    return chunk.header.stamp.sec * NANOSECONDS + chunk.header.stamp.nanosec


def _file_name(bag: Path, topic: str, query_id: str, part: int) -> str:
    words = [bag.resolve().stem, *topic.strip("/").split("/"), query_id, str(part) * (part > 1)]
    # what comes from a bag must not lead out of the folder
    safe = ("".join(c if c.isalnum() or c in "-_." else "-" for c in w)[:80] for w in words if w)
    return "_".join(safe).lstrip(".") + ".wav"


def _absolute(topic: str) -> str:
    return "/" + topic.lstrip("/")


# -- playing -------------------------------------------------------------------------------------


def play_bag(bag: str | Path, rate: float = 1.0, clock: bool = False, loop: bool = False,
             topics: list[str] | tuple[str, ...] = (), remap: dict[str, str] | None = None,
             wait_for: int = 0, node=None, stop=lambda: False,
             progress: bool | None = None) -> int:
    """Publish what is in a bag, in the time it was logged.

    Messages go out as they are, stamps included, with the quality of service that they were
    recorded with. Types that aren't installed are left out, and said.

    Args:
        bag: a rosbag2, any storage.
        rate: how fast; 1 is real time.
        clock: publish the bag's time on /clock.
        loop: again and again.
        topics: which; empty: all.
        remap: other names of topics.
        wait_for: begin when each audio topic has so many subscribers.
        node: an rclpy node; None: one of its own.
        stop: asked often; true ends it.
        progress: a bar; None: on a terminal.

    Returns:
        the number of messages published.

    Raises:
        LuseelError: what was given can't be used.
    """
    import rclpy
    from rclpy.duration import Duration
    from rosgraph_msgs.msg import Clock
    from tqdm import tqdm

    if not (rate > 0 and math.isfinite(rate)):
        raise BagError(f"--rate {rate:g}: expected more than 0")
    remap = {_absolute(a): _absolute(b) for a, b in (remap or {}).items()}
    own = node is None
    if own:
        node = rclpy.create_node("luseel_bag_player")
    publishers: dict[int, object] = {}
    ticker = node.create_publisher(Clock, "/clock", 10) if clock else None
    count = 0
    try:
        with open_bag(bag) as reader:
            there = {c.topic for c in reader.connections}
            missing = {_absolute(t) for t in topics} - there
            if missing:
                raise BagError(f"{bag} has no {', '.join(sorted(missing))}; it has "
                               f"{printable(', '.join(sorted(there)))}")
            connections = []
            for connection in reader.connections:
                if topics and connection.topic not in map(_absolute, topics):
                    continue
                if clock and connection.topic == "/clock":
                    continue
                kind = _message_class(connection.msgtype)
                if kind is None:
                    node.get_logger().warning(
                        f"{connection.topic} is left out: {connection.msgtype} isn't installed")
                    continue
                connections.append(connection)
                publishers[connection.id] = node.create_publisher(
                    kind, remap.get(connection.topic, connection.topic), _rclpy_qos(connection))
            if not connections:
                raise BagError(f"nothing in {bag} can be played")
            _await_subscribers(node, publishers, connections, wait_for, stop)
            while not stop():
                begin, first, ticked = time.monotonic(), None, -math.inf
                with tqdm(total=round(reader.duration / 1e9, 1), unit="s", desc="playing",
                          disable=None if progress is None else not progress) as bar:
                    for connection, stamp, raw in reader.messages(connections):
                        first = stamp if first is None else first
                        due = (stamp - first) / 1e9
                        while not stop():
                            now = min((time.monotonic() - begin) * rate, due)
                            if ticker is not None and (
                                    now - ticked >= CLOCK_PERIOD * rate or now == due):
                                ticker.publish(Clock(clock=_ros_time(first + round(now * 1e9))))
                                ticked = now
                            if now >= due:
                                break
                            time.sleep(min((due - now) / rate, CLOCK_PERIOD))
                        if stop():
                            break
                        publishers[connection.id].publish(bytes(raw))
                        count += 1
                        bar.update(due - bar.n)
                if not loop:
                    break
        for publisher in publishers.values():
            if not stop():
                publisher.wait_for_all_acked(Duration(seconds=2.0))
    finally:
        if own:
            node.destroy_node()
        else:
            for publisher in [*publishers.values(), *([ticker] if ticker else [])]:
                node.destroy_publisher(publisher)
    return count


def _message_class(name: str):
    package, _, kind = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError):
        return None


def _rclpy_qos(connection):
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    profile = QoSProfile(depth=100)
    for offered in connection.ext.offered_qos_profiles[:1]:
        if offered.reliability.name == "BEST_EFFORT":
            profile.reliability = ReliabilityPolicy.BEST_EFFORT
        if offered.durability.name == "TRANSIENT_LOCAL":
            profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
    return profile


def _await_subscribers(node, publishers, connections, wanted: int, stop) -> None:
    waited = [publishers[c.id] for c in connections if c.msgtype == AUDIO] or \
        list(publishers.values())
    if wanted and any(p.get_subscription_count() < wanted for p in waited):
        node.get_logger().info(f"waiting for {wanted} subscriber(s)")
    while not stop() and any(p.get_subscription_count() < wanted for p in waited):
        time.sleep(0.02)


def _ros_time(nanoseconds: int):
    from ..conversions import ns_to_time

    return ns_to_time(nanoseconds)


# -- the command ---------------------------------------------------------------------------------


def register(commands) -> None:
    """Add the command to the subparsers of ``luseel``."""
    parser = commands.add_parser(
        "bag", help="audio files to ROS bags and back, and bags played",
        description="Convert audio files to rosbag2 and back, and play bags to a node.")
    actions = parser.add_subparsers(dest="action", required=True)
    new = actions.add_parser("from-wav", help="write an audio file as a bag")
    new.add_argument("wav", help="stereo recording (WAV, FLAC, OGG, ...)")
    new.add_argument("bag", help="folder of the new bag")
    new.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap",
                     help="default: %(default)s")
    new.add_argument("--query", action="append", default=[], metavar="WORDS",
                     help="put these words on /query at the start")
    new.add_argument("--topic", default="/audio", help="default: %(default)s")
    new.add_argument("--frame-id", default="microphones", help="default: %(default)s")
    new.add_argument("--start-time", type=_nanoseconds, metavar="SECONDS",
                     help="capture time of the first sample since the epoch (default: now)")
    new.add_argument("--chunk", type=float, default=0.1, metavar="SECONDS",
                     help="length of the messages (default: %(default)s)")
    new.set_defaults(run=_from_wav)
    back = actions.add_parser("to-wav", help="write the audio in a bag to WAV files")
    back.add_argument("bag")
    back.add_argument("-o", "--out", default=".", help="folder, or .wav file for a single stream "
                      "(default: the current folder)")
    back.add_argument("--topic", action="append", default=[], help="only this one (repeatable)")
    back.set_defaults(run=_to_wav)
    play = actions.add_parser("play", help="publish what is in a bag")
    play.add_argument("bag")
    play.add_argument("--rate", type=float, default=1.0, help="how fast (default: 1)")
    play.add_argument("--clock", action="store_true",
                      help="publish the bag's time on /clock, for nodes with use_sim_time")
    play.add_argument("--loop", action="store_true", help="again and again, until Ctrl-C")
    play.add_argument("--topic", action="append", default=[], help="only this one (repeatable)")
    play.add_argument("--remap", action="append", default=[], metavar="FROM:=TO",
                      help="another name for a topic (repeatable)")
    play.add_argument("--wait", type=int, default=0, metavar="N",
                      help="begin when the audio has so many subscribers (default: at once)")
    play.set_defaults(run=_play)
    for action in (new, back, play):
        action.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def _nanoseconds(text: str) -> int:
    """Seconds in decimal digits to nanoseconds: a float has too few of them."""
    try:
        return int(decimal.Decimal(text).scaleb(9).to_integral_value())
    except (decimal.InvalidOperation, ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None


def _from_wav(args: argparse.Namespace) -> int:
    count = wav_to_bag(args.wav, args.bag, args.storage, _absolute(args.topic), args.frame_id,
                       args.start_time, args.chunk, args.query, False if args.quiet else None)
    print(f"{count} messages -> {args.bag} ({args.storage})")
    return 0


def _to_wav(args: argparse.Namespace) -> int:
    for stream in bag_to_wav(args.bag, args.out, args.topic, False if args.quiet else None):
        seconds, rest = divmod(stream.start_ns, NANOSECONDS)
        when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
        print(f"{stream.topic}{' ' + printable(stream.query_id) if stream.query_id else ''}: "
              f"{stream.samples / stream.sample_rate:.2f} s, {stream.channels} channels, "
              f"{stream.sample_rate} Hz, from {when:%Y-%m-%d %H:%M:%S}.{rest:09d} UTC -> "
              f"{stream.path}")
        if stream.silence or stream.repeated:
            print(f"  {stream.silence} lost samples are silence, {stream.repeated} that came twice "
                  "are there once")
    return 0


def _play(args: argparse.Namespace) -> int:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    remap = {}
    for pair in args.remap:
        if pair.count(":=") != 1:
            raise BagError(f"--remap {pair}: expected FROM:=TO")
        remap.update([pair.split(":=")])
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        count = play_bag(args.bag, args.rate, args.clock, args.loop, args.topic, remap, args.wait,
                         progress=False if args.quiet else None)
        print(f"{count} messages played")
    except KeyboardInterrupt:
        print("stopped")
        return 130
    finally:
        rclpy.try_shutdown()
    return 0
