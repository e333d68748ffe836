"""Audio messages of three packages in and out: blocks of float32 samples on this side of them.

| kind | audio_common_msgs | audio | format |
|---|---|---|---|
| ``luseel`` | (luseel itself) | AudioChunk | float32, in every message |
| ``ros_drivers`` | that of ros-drivers | AudioDataStamped, AudioData | AudioInfo, another topic |
| ``mgonzs13`` | that of mgonzs13 | AudioStamped | in every message |

Two of the packages have the same name, so that at most one of them is installed. Nothing about a
format is guessed: what isn't declared, or contradicts itself, is refused with the reason
(docs/audio_messages.md).
"""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Callable

import numpy as np
from luseel.msg import AudioChunk
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import InvalidHandle
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header

from luseel_model.errors import AudioError, LuseelError
from luseel_model.streaming import MAX_RATE, MIN_RATE

from . import conversions
from .callback_thread import SubscriptionThread

KINDS = ("luseel", "ros_drivers", "mgonzs13")
WATCH_PERIOD = 0.5  # [s] between two looks at what the publishers of a topic send

# The names are GStreamer's (GstAudioFormat): (numpy type, bytes of a sample). 24-bit samples have
# no numpy type of their own.
SAMPLE_FORMATS = {"S8": ("i1", 1), "U8": ("u1", 1)}
for _order, _name in (("<", "LE"), (">", "BE")):
    SAMPLE_FORMATS |= {
        f"S16{_name}": (f"{_order}i2", 2), f"S24{_name}": (f"{_order}i3", 3),
        f"S24_32{_name}": (f"{_order}i4", 4), f"S32{_name}": (f"{_order}i4", 4),
        f"F32{_name}": (f"{_order}f4", 4), f"F64{_name}": (f"{_order}f8", 8)}

# PortAudio's sample formats, which mgonzs13's AudioInfo.format holds: (field, numpy type, code of
# the array). paInt24 (4) has no field.
PORTAUDIO_FORMATS = {
    1: ("paFloat32", "float32_data", "f4", "f"), 2: ("paInt32", "int32_data", "i4", "i"),
    8: ("paInt16", "int16_data", "i2", "h"), 16: ("paInt8", "int8_data", "i1", "b"),
    32: ("paUInt8", "uint8_data", "u1", "B")}
PORTAUDIO_NAMES = {"F32": 1, "S32": 2, "S16": 8, "S8": 16, "U8": 32}

INSTALL = {
    "ros_drivers": "install ros-drivers' (sudo apt install ros-$ROS_DISTRO-audio-common-msgs; with "
                   "pip: tools/audio_common_msgs/build.py ros_drivers)",
    "mgonzs13": "install mgonzs13's (build its audio_common in the workspace; with pip: "
                "tools/audio_common_msgs/build.py mgonzs13)"}


class MessagesError(LuseelError):
    """The messages of that kind can't be used: not installed, or the other package of the name."""


@dataclass(frozen=True)
class AudioBlock:
    """A piece of an audio stream.

    Attributes:
        samples: float32 (frames, channels), finite, full scale is -1 to 1. May be a view on the
            message: not to be written.
        sample_rate: [Hz].
        stamp_ns: capture time of the first frame, nanoseconds since the epoch of the stamp's clock.
        frame_id: frame of the microphones; may be empty.
        first_sample: index of the first frame, from the start of the stream; None from messages
            that don't count.
        query_id: which query it was extracted for; empty for raw audio.
        stamped: False: the message had no stamp, and stamp_ns is its time of arrival less its
            length, which varies with the load of the machine and the network.
    """

    samples: np.ndarray
    sample_rate: int
    stamp_ns: int
    frame_id: str
    first_sample: int | None
    query_id: str = ""
    stamped: bool = True


# -- which package ---------------------------------------------------------------------------------

def installed_kind() -> str | None:
    """Which audio_common_msgs is installed, by its messages: ros_drivers, mgonzs13 or None.

    Raises:
        MessagesError: a package of that name is there, but can't be loaded or is neither of them.
    """
    try:
        import audio_common_msgs
    except ModuleNotFoundError as error:
        if error.name == "audio_common_msgs":
            return None
        raise MessagesError(f"audio_common_msgs can't be loaded: {error}") from error
    try:
        from audio_common_msgs import msg
    except ImportError as error:
        raise MessagesError(
            f"audio_common_msgs in {list(audio_common_msgs.__path__)} can't be loaded ({error}): "
            "build it for this Python and this ROS") from error

    def has(name, **fields):
        found = getattr(msg, name, None)
        found = found.get_fields_and_field_types() if found else {}
        return all(found.get(field) == kind for field, kind in fields.items())

    if has("AudioData", data="sequence<uint8>") and has(
            "AudioDataStamped", header="std_msgs/Header", audio="audio_common_msgs/AudioData"
            ) and has("AudioInfo", channels="uint8", sample_rate="uint32", sample_format="string",
                      coding_format="string"):
        return "ros_drivers"
    if has("AudioStamped", header="std_msgs/Header", audio="audio_common_msgs/Audio") and has(
            "Audio", audio_data="audio_common_msgs/AudioData", info="audio_common_msgs/AudioInfo"
            ) and has("AudioInfo", format="int32", channels="int32", rate="int32", chunk="int32"):
        return "mgonzs13"
    raise MessagesError(
        f"audio_common_msgs in {list(audio_common_msgs.__path__)} is neither ros-drivers' nor a "
        "version of mgonzs13's that is known here (4.0): " + INSTALL["ros_drivers"])


def load_messages(kind: str) -> SimpleNamespace:
    """The message classes of a kind, by name.

    Raises:
        MessagesError: an unknown kind, or its package isn't the one that is installed.
    """
    if kind == "luseel":
        return SimpleNamespace(AudioChunk=AudioChunk)
    if kind not in KINDS:
        raise MessagesError(f"unknown kind of audio messages '{kind}': expected {', '.join(KINDS)}")
    installed = installed_kind()
    if installed is None:
        raise MessagesError(f"'{kind}' needs audio_common_msgs, which isn't installed: "
                            + INSTALL[kind] + ", or choose 'luseel'")
    if installed != kind:
        raise MessagesError(
            f"'{kind}' needs another audio_common_msgs than the installed one, which is that of "
            f"'{installed}' (two packages have this name): choose '{installed}', or "
            + INSTALL[kind])
    from audio_common_msgs import msg

    names = {"ros_drivers": ("AudioData", "AudioDataStamped", "AudioInfo"),
             "mgonzs13": ("Audio", "AudioData", "AudioInfo", "AudioStamped")}[kind]
    return SimpleNamespace(**{name: getattr(msg, name) for name in names})


# -- samples ---------------------------------------------------------------------------------------

def sample_format_name(text: str) -> str:
    """The name in SAMPLE_FORMATS that the text says, in any case.

    Raises:
        AudioError: none, or one that doesn't say everything, such as S16 without a byte order.
    """
    name = text.strip().upper()
    if name in SAMPLE_FORMATS:
        return name
    if not name:
        raise AudioError("no sample_format is declared: expected one such as S16LE")
    if f"{name}LE" in SAMPLE_FORMATS:
        raise AudioError(f"sample_format '{text}' doesn't say the order of the bytes: expected "
                         f"{name}LE or {name}BE")
    raise AudioError(
        f"sample_format '{text[:40]}' is not known: expected one of {', '.join(SAMPLE_FORMATS)}")


def decode_samples(data, sample_format: str, channels: int) -> np.ndarray:
    """Float32 (frames, channels), full scale -1 to 1, of interleaved samples in bytes.

    Integers are divided by the magnitude of their most negative value; U8 is centred on 128.

    Args:
        data: bytes, or an array of them.
        sample_format: a name in SAMPLE_FORMATS.
        channels: at least 1.

    Raises:
        AudioError: a length that isn't a whole number of frames.
    """
    dtype, width = SAMPLE_FORMATS[sample_format]
    size = len(data)
    if size % (width * channels):
        raise AudioError(
            f"{size} bytes don't divide into frames of {channels} channel(s) in {sample_format}, "
            f"{width * channels} bytes each: is the declared format that of the audio?")
    if not size:
        return np.zeros((0, channels), np.float32)
    if sample_format.startswith("S24"):
        return _decode_24(data, sample_format, channels)
    return _to_float(np.frombuffer(data, dtype)).reshape(-1, channels)


def _decode_24(data, sample_format: str, channels: int) -> np.ndarray:
    """24 bits, in three bytes or in the lower ones of four, put into the upper ones of 32."""
    order = "<" if sample_format.endswith("LE") else ">"
    if "_32" in sample_format:
        # What the upper byte holds is not defined: it is shifted out.
        whole = np.frombuffer(data, f"{order}i4") << np.int32(8)
    else:
        raw = np.frombuffer(data, "u1").reshape(-1, 3)
        whole = np.zeros((len(raw), 4), np.uint8)
        whole[:, slice(1, 4) if order == "<" else slice(0, 3)] = raw
        whole = whole.reshape(-1).view(f"{order}i4")
    return _to_float(whole).reshape(-1, channels)


def _to_float(samples: np.ndarray) -> np.ndarray:
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if kind == "f":
        return samples.astype(np.float32, copy=False)
    out = samples.astype(np.float32)
    if kind == "u":
        out -= np.float32(1 << (8 * size - 1))
    out *= np.float32(2.0 ** (1 - 8 * size))
    return out


def encode_samples(samples: np.ndarray, sample_format: str) -> bytes:
    """The inverse of `decode_samples`: rounded to the nearest integer, limited to full scale.

    Args:
        samples: float32 (frames, channels), finite.
        sample_format: a name in SAMPLE_FORMATS.
    """
    dtype, width = SAMPLE_FORMATS[sample_format]
    samples = np.ascontiguousarray(samples)
    if "f" in dtype:
        return samples.astype(dtype, copy=False).tobytes()
    bits = 24 if sample_format.startswith("S24") else 8 * width
    top = 2.0 ** (bits - 1)
    # Doubles: they hold each 32-bit integer, so that the largest one isn't rounded past the end.
    whole = np.clip(np.rint(np.multiply(samples, top, dtype=np.float64)), -top, top - 1)
    if dtype == "u1":
        return (whole + top).astype(np.uint8).tobytes()
    if width == 3:
        whole = whole.astype(f"{dtype[0]}i4").reshape(-1, 1).view(np.uint8)
        return whole[:, slice(0, 3) if dtype[0] == "<" else slice(1, 4)].tobytes()
    return whole.astype(dtype).tobytes()


def _check(samples: np.ndarray, sample_rate: int, want_rate: int, want_channels: int) -> np.ndarray:
    """The samples (frames, channels), if this is audio at all and what was asked for."""
    _check_format(samples.shape[1], sample_rate, want_rate, want_channels)
    if not len(samples):
        raise AudioError("a message without samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{np.count_nonzero(~np.isfinite(samples))} samples are not finite")
    samples.flags.writeable = False
    return samples


def _check_format(channels: int, sample_rate: int, want_rate: int, want_channels: int) -> None:
    if want_channels and channels != want_channels:
        raise AudioError(
            f"{channels} channel(s): {conversions.expected_channels(want_channels)}")
    if channels < 1:
        raise AudioError(f"{channels} channels are declared: expected at least 1")
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise AudioError(f"sample rate {sample_rate} Hz: expected {MIN_RATE} to {MAX_RATE}")
    if want_rate and sample_rate != want_rate:
        raise AudioError(f"sample rate {sample_rate} Hz, but {want_rate} Hz is expected")


def decode_portaudio(audio) -> np.ndarray:
    """Float32 (frames, channels) of mgonzs13's Audio: one array is filled, as its info says.

    Raises:
        AudioError: the info contradicts itself or the data, or nothing is filled.
    """
    info, data = audio.info, audio.audio_data
    if info.format == 4:
        raise AudioError("info.format is 4 (paInt24), for which the message has no field: let the "
                         "source capture paInt16 (8), paInt32 (2) or paFloat32 (1)")
    if info.format not in PORTAUDIO_FORMATS:
        known = ", ".join(f"{number} {entry[0]}" for number, entry in PORTAUDIO_FORMATS.items())
        raise AudioError(f"info.format is {info.format}: expected one of PortAudio's, {known}")
    name, field, dtype, _ = PORTAUDIO_FORMATS[info.format]
    filled = [entry[1] for entry in PORTAUDIO_FORMATS.values() if len(getattr(data, entry[1]))]
    if not filled:
        raise AudioError("a message without samples")
    if filled != [field]:
        raise AudioError(f"info.format is {info.format} ({name}), but {', '.join(filled)} "
                         f"is filled: expected {field} alone")
    if info.channels < 1:
        raise AudioError(f"info.channels is {info.channels}: expected at least 1")
    values = getattr(data, field)
    if info.chunk < 1 or info.channels * info.chunk != len(values):
        raise AudioError(
            f"{len(values)} values in {field}, but info says {info.chunk} frames (chunk) of "
            f"{info.channels} channel(s)")
    return _to_float(np.frombuffer(values, dtype)).reshape(-1, info.channels)


# -- in --------------------------------------------------------------------------------------------

class AudioReader:
    """Subscribes audio of one kind and hands it on as blocks.

    Callbacks run where the node spins, or in `thread`. `refuse` is called for each message that
    can't be used; a bad message never raises.

    Args:
        node: an rclpy node.
        kind: one of KINDS. ros_drivers takes AudioDataStamped, or AudioData when that is what the
            publishers of the topic send.
        topic: of the audio, relative or absolute.
        qos: of the audio; AudioInfo has its own.
        deliver: called with each AudioBlock.
        refuse: called with the reason why a message, or what is published there, can't be used.
        sample_rate, channels: what is expected; anything else is refused. 0: whatever is declared.
        event_callbacks: of the audio subscription, e.g. for an incompatible QoS.
        sample_format: ros_drivers only: with `sample_rate` and `channels` the user's declaration
            that stands in for an AudioInfo; one that comes must agree with it.
        info_topic: ros_drivers only; default: `default_info_topic`.
        thread: that takes the messages, not started yet; stop it before `destroy`.

    Raises:
        MessagesError: the messages of that kind aren't installed, or an impossible declaration.
    """

    def __init__(self, node, kind: str, topic: str, qos, deliver: Callable[[AudioBlock], None],
                 refuse: Callable[[str], None], sample_rate: int = 0, channels: int = 0,
                 event_callbacks: SubscriptionEventCallbacks | None = None,
                 sample_format: str = "", info_topic: str = "",
                 thread: SubscriptionThread | None = None):
        self._node, self._kind, self._qos, self._thread = node, kind, qos, thread
        self._deliver, self._refuse, self._events = deliver, refuse, event_callbacks
        self._want = (sample_rate, channels)
        self._messages = load_messages(kind)
        self._said: set[str] = set()
        self._topic, self._name = topic, node.resolve_topic_name(topic)
        self._audio = self._type = self._timer = None
        self._infos: list = []
        self._destroyed = False
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        try:
            if kind == "ros_drivers":
                self._want_format = self._declared(sample_format)
                self._info_topic = info_topic or default_info_topic(node, topic)
                self._await_info()
            self._subscribe({"luseel": "AudioChunk", "ros_drivers": "AudioDataStamped",
                             "mgonzs13": "AudioStamped"}[kind])
            if thread is not None:
                thread.every(WATCH_PERIOD, self._watch)
            else:
                self._timer = node.create_timer(WATCH_PERIOD, self._watch, clock=self._clock)
        except Exception:
            self.destroy()
            raise

    @property
    def topic_name(self) -> str:
        """Of the audio, as remapped."""
        return self._name

    @property
    def publisher_count(self) -> int:
        """How many publishers the audio comes from."""
        return self._audio.get_publisher_count() if self._audio is not None else 0

    def destroy(self) -> None:
        """Unsubscribe. Nothing is delivered afterwards by the thread that runs the callbacks."""
        self._destroyed = True
        self._deliver = self._refuse = lambda _: None
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        for subscription in [self._audio, *self._infos]:
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._timer = self._audio = None
        self._infos = []

    # What the publishers send.

    def _subscribe(self, name: str) -> None:
        before, self._audio = self._audio, None
        if before is not None:  # first, because a process has one type on a topic
            self._node.destroy_subscription(before)
        self._type = name
        self._audio = self._node.create_subscription(
            getattr(self._messages, name), self._topic, self._on_audio, self._qos,
            callback_group=self._thread, event_callbacks=self._events)

    def _watch(self) -> None:
        """AudioData or AudioDataStamped, and publishers of another type, which DDS leaves out."""
        if self._destroyed:
            return
        try:
            if self._audio is None:
                self._subscribe(self._type)
            self._look_at_types()
            if self._kind == "ros_drivers" and self._contradicted and (
                    self._node.count_publishers(self._infos[0].topic_name) <= 1):
                self._await_info()
        except InvalidHandle:
            pass  # destroyed in the meantime
        except RuntimeError as error:  # rclpy's; another reader of this process hasn't changed yet
            self._once(str(error), f"can't subscribe to {self._name} yet: {error}")

    def _look_at_types(self) -> None:
        types = sorted({info.topic_type
                        for info in self._node.get_publishers_info_by_topic(self._name)})
        package = "luseel" if self._kind == "luseel" else "audio_common_msgs"
        if not types or f"{package}/msg/{self._type}" in types:
            return
        other = {"AudioData": "AudioDataStamped", "AudioDataStamped": "AudioData"}.get(self._type)
        if other and f"{package}/msg/{other}" in types:
            self._subscribe(other)
            return
        self._once(types, f"{self._name} carries {', '.join(types)}, but {package}/msg/"
                   f"{self._type} is expected: remap the topic, or choose the kind of audio "
                   "messages that fits")

    def _once(self, key, reason: str) -> None:
        if str(key) not in self._said:
            self._said.add(str(key))
            self._refuse(reason)

    # Messages.

    def _on_audio(self, message) -> None:
        try:
            block = self._block(message)
        except AudioError as error:
            self._refuse(str(error))
            return
        self._deliver(block)

    def _block(self, message) -> AudioBlock:
        first = None
        query_id = ""
        if self._kind == "luseel":
            if message.channels < 1 or len(message.samples) % message.channels:
                _check_format(message.channels, message.sample_rate, *self._want)
                raise AudioError(f"{len(message.samples)} interleaved samples don't divide into "
                                 f"{message.channels} channels")
            samples = (np.frombuffer(message.samples, np.float32) if len(message.samples)
                       else np.zeros(0, np.float32)).reshape(-1, message.channels)
            rate, first, query_id = message.sample_rate, message.first_sample, message.query_id
        elif self._kind == "mgonzs13":
            samples, rate = decode_portaudio(message.audio), message.audio.info.rate
        else:
            if self._format is None:
                raise AudioError(self._problem)
            rate, channels, sample_format = self._format
            # One of the type before may still be in the queue: ask the message, not _type.
            samples = decode_samples(
                getattr(message, "audio", message).data, sample_format, channels)
        samples = _check(samples, rate, *self._want)
        header = getattr(message, "header", None)
        stamp = conversions.time_to_ns(header.stamp) if header else 0
        return AudioBlock(
            samples, rate, stamp if stamp > 0 else self._arrival(header, len(samples), rate),
            header.frame_id if header else "", first, query_id, stamped=stamp > 0)

    def _arrival(self, header: Header | None, frames: int, rate: int) -> int:
        if "stamp" not in self._said:
            self._said.add("stamp")
            self._node.get_logger().warning(
                f"the audio on {self._name} has no stamps"
                + ("" if header else " (AudioData; audio_capture publishes AudioDataStamped, too)")
                + ": the time of arrival is taken instead, less the length of the message")
        return max(0, self._node.get_clock().now().nanoseconds
                   - frames * conversions.NANOSECONDS // rate)

    # The format, from ros-drivers' AudioInfo or the user. Either _format or _problem is set.

    def _declared(self, sample_format: str) -> tuple[int, int, str] | None:
        if not sample_format:
            return None
        try:
            name = sample_format_name(sample_format)
            if not all(self._want):
                raise AudioError("sample_format needs sample_rate and channels beside it")
            _check_format(self._want[1], self._want[0], 0, 0)
        except AudioError as error:
            raise MessagesError(f"the declared format can't be used: {error}") from error
        return (*self._want, name)

    def _await_info(self) -> None:
        """Subscribe AudioInfo, anew: a latched one comes again."""
        for subscription in self._infos:
            self._node.destroy_subscription(subscription)
        self._info, self._format, self._contradicted = None, self._want_format, False
        # Two: a transient-local subscription takes what was latched, but nothing from an ordinary
        # publisher.
        self._infos = [
            self._node.create_subscription(
                self._messages.AudioInfo, self._info_topic, self._on_info,
                QoSProfile(depth=1, reliability=reliability, durability=durability),
                callback_group=self._thread,
                # Each publisher fits one of them at least: no warnings about the other.
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))
            for reliability, durability in (
                (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
                (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE))]
        self._problem = (
            f"no AudioInfo on {self._infos[0].topic_name} yet, so the format is unknown: remap or "
            "set the topic of the AudioInfo, let the source publish one, or declare the format "
            "by parameters")

    def _on_info(self, message) -> None:
        info = (message.sample_rate, message.channels, message.sample_format,
                message.coding_format)
        if info == self._info or self._contradicted or not self._infos:
            return
        count = self._node.count_publishers(self._infos[0].topic_name)
        if self._info is not None and count > 1:
            self._contradicted, self._format = True, None
            self._problem = (
                f"{count} publishers on {self._infos[0].topic_name} contradict each other "
                f"({_words(self._info)}; {_words(info)}): give each microphone topics of its own")
            return
        self._info = info
        try:
            self._format, self._problem = self._understood(*info), ""
        except AudioError as error:
            self._format = None
            self._problem = f"AudioInfo on {self._infos[0].topic_name}: {error}"

    def _understood(self, rate, channels, sample_format, coding) -> tuple[int, int, str]:
        if coding.strip().lower() != "wave":
            raise AudioError(
                f"coding_format is '{coding[:40]}', but only uncompressed audio, 'wave', is read: "
                "let the source send that (audio_capture: -p format:=wave)")
        name = sample_format_name(sample_format)
        _check_format(channels, rate, *self._want)
        if self._want_format and name != self._want_format[2]:
            raise AudioError(f"sample_format is {name}, but {self._want_format[2]} is declared "
                             "by parameter")
        return rate, channels, name


def _words(info: tuple) -> str:
    return f"{info[0]} Hz, {info[1]} channel(s), '{info[2]}', '{info[3]}'"


def default_info_topic(node, topic: str) -> str:
    """Where the AudioInfo of a ros-drivers topic is: `audio_info` beside `audio` and
    `audio_stamped`, as audio_capture has it.

    It goes along when the topic of the audio is remapped, unless it is remapped itself.
    """
    name = topic.removesuffix("_stamped") + "_info"
    if node.resolve_topic_name(name) != node.resolve_topic_name(name, only_expand=True):
        return name
    return node.resolve_topic_name(topic).removesuffix("_stamped") + "_info"


# -- out -------------------------------------------------------------------------------------------

class AudioWriter:
    """Publishes blocks as audio of one kind.

    ros_drivers and mgonzs13 have no place for `first_sample` and `query_id`: give each stream a
    writer, and so a topic, of its own.

    Args:
        node: an rclpy node.
        kind: one of KINDS.
        topic: of the audio; AudioInfo of ros_drivers is latched on `default_info_topic`.
        qos: of the audio.
        sample_format: ros_drivers: a name in SAMPLE_FORMATS. mgonzs13: F32, S32, S16, S8 or U8.
            Default: 16 bits (S16LE, S16), as the sources of both packages have it. luseel: none.
        stamped: ros_drivers only: AudioDataStamped, else AudioData (what audio_play takes).

    Raises:
        MessagesError: the messages of that kind aren't installed, or an unknown sample_format.
    """

    def __init__(self, node, kind: str, topic: str, qos, sample_format: str = "",
                 stamped: bool = True):
        self._node, self._kind, self._stamped = node, kind, stamped
        self._messages = messages = load_messages(kind)
        self._info_publisher = self._info = None
        self._position = 0
        sample_format = sample_format.strip().upper() or {
            "luseel": "F32", "ros_drivers": "S16LE", "mgonzs13": "S16"}[kind]
        known = {"luseel": ["F32"], "ros_drivers": list(SAMPLE_FORMATS),
                 "mgonzs13": list(PORTAUDIO_NAMES)}[kind]
        if sample_format not in known:
            raise MessagesError(
                f"'{kind}' can't send {sample_format}: expected one of {', '.join(known)}")
        self._format = sample_format
        if kind == "luseel":
            message = messages.AudioChunk
        elif kind == "mgonzs13":
            message = messages.AudioStamped
        else:
            message = messages.AudioDataStamped if stamped else messages.AudioData
            self._info_publisher = node.create_publisher(
                messages.AudioInfo, default_info_topic(node, topic),
                QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        self._publisher = node.create_publisher(message, topic, qos)

    @property
    def topic_name(self) -> str:
        """Of the audio, as remapped."""
        return self._publisher.topic_name

    @property
    def listened_to(self) -> bool:
        """Whether anybody subscribes the audio, or needs to be told its format beforehand."""
        return self._publisher.get_subscription_count() > 0 or (
            self._info_publisher is not None and self._info is None)

    def publish(self, block: AudioBlock) -> None:
        """Publish one block, after its AudioInfo where that is a topic and has changed.

        Raises:
            AudioError: samples that are not (frames, channels), or more than 255 channels for
                ros_drivers.
        """
        samples = np.asarray(block.samples, np.float32)
        if samples.ndim != 2 or samples.shape[1] < 1:
            raise AudioError(f"samples of shape {samples.shape}: expected (frames, channels)")
        header = Header(stamp=conversions.ns_to_time(block.stamp_ns), frame_id=block.frame_id)
        if self._kind == "luseel":
            first = self._position if block.first_sample is None else block.first_sample
            self._position = first + len(samples)
            message = conversions.array_to_chunk(
                samples.T, block.sample_rate, first, header, block.query_id)
        elif self._kind == "mgonzs13":
            message = self._portaudio(samples, block.sample_rate, header)
        else:
            self._send_info(samples.shape[1], block.sample_rate)
            data = self._messages.AudioData(
                data=array.array("B", encode_samples(samples, self._format)))
            message = data if not self._stamped else self._messages.AudioDataStamped(
                header=header, audio=data)
        self._publisher.publish(message)

    def _portaudio(self, samples: np.ndarray, rate: int, header: Header):
        number = PORTAUDIO_NAMES[self._format]
        _, field, _, code = PORTAUDIO_FORMATS[number]
        order = {"little": "LE", "big": "BE"}[sys.byteorder]
        name = self._format if self._format in SAMPLE_FORMATS else self._format + order
        messages = self._messages
        data = messages.AudioData(**{field: array.array(code, encode_samples(samples, name))})
        info = messages.AudioInfo(
            format=number, channels=samples.shape[1], rate=int(rate), chunk=len(samples))
        return messages.AudioStamped(
            header=header, audio=messages.Audio(audio_data=data, info=info))

    def _send_info(self, channels: int, rate: int) -> None:
        if (channels, rate) == self._info:
            return
        if channels > 255:
            raise AudioError(f"{channels} channels: ros-drivers' AudioInfo counts up to 255")
        self._info = (channels, rate)
        self._info_publisher.publish(self._messages.AudioInfo(
            channels=channels, sample_rate=int(rate), sample_format=self._format,
            bitrate=8 * SAMPLE_FORMATS[self._format][1] * channels * int(rate),
            coding_format="wave"))

    def destroy(self) -> None:
        """Take the publishers away."""
        for publisher in (self._publisher, self._info_publisher):
            if publisher is not None:
                self._node.destroy_publisher(publisher)
        self._publisher = self._info_publisher = None
