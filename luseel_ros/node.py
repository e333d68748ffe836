"""The lifecycle node `luseel`: audio and words in, the sound and its direction out.

Callbacks only check messages and hand samples over. The model runs in a thread of its own, so that
a slow network never delays a callback or a lifecycle service; whatever doesn't fit is dropped,
counted and said.
"""

from __future__ import annotations

import collections
import gc
import threading
import time
from dataclasses import dataclass, field

import rclpy
import torch
from luseel.msg import AudioChunk, SoundEventArray
from rcl_interfaces.msg import (
    FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult)
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header, String
from visualization_msgs.msg import MarkerArray

from luseel_model import load_model
from luseel_model.errors import LuseelError
from luseel_model.inference import validate_query
from luseel_model.streaming import ExtractionStream, StreamResult

from . import conversions

WARNING_PERIOD = 5.0  # [s] between two warnings of one kind
SILENCE_PERIOD = 5.0  # [s] without audio until the node says so
STAMP_REACH = 2.0  # [s] after the end of a chunk up to which its stamp is extrapolated
LATCHED_PERIOD = 0.25  # [s] between two looks for publishers of latched queries
LATCHED_SECONDS = 1.0  # [s] that a new one has to hand over the query it holds
STOP_SECONDS = 10.0  # [s] that the run of the model may take that is under way when it's to stop
MARKER_HOPS = 6  # hops until RViz drops a marker that is no longer renewed

# name: (default, description, range or None, when a change takes effect)
PARAMETERS = {
    "model": ("", "Checkpoint: a name or a path; empty: the one that comes with the package",
              None, "configure"),
    "device": ("", "Where the model runs, e.g. cpu or cuda; empty: cuda if there is one, else cpu",
               None, "configure"),
    "hop": (0.5, "Seconds between two runs of the model, which are between two events",
            (0.1, 10.0), "configure"),
    "buffer_seconds": (4.0, "Seconds of audio that may wait for the model; the oldest beyond "
                       "that are dropped", (0.2, 120.0), "configure"),
    "warm_up": (True, "Run the model once on silence while configuring, so that the first result "
                "is not late", None, "configure"),
    "audio_depth": (50, "Queue of the audio subscription, in messages", (1, 10000), "configure"),
    "audio_reliability": ("best_effort", "best_effort (takes from any publisher) or reliable "
                          "(for long messages, or over a lossy network)", None, "configure"),
    "confidence_threshold": (0.5, "An event is active from this confidence on", (0.0, 1.0), "now"),
    "frame_id": ("", "Frame of the microphones in all outputs; empty: that of the audio",
                 None, "now"),
    "autostart": (True, "Configure and activate without being asked. false: wait for the "
                  "transitions (launch file, ros2 lifecycle)", None, "start"),
}


@dataclass
class _Session:
    """One uninterrupted stream at one sample rate."""

    stream: ExtractionStream
    # (restarts of the stream before it, index of its first sample on the stream's time line,
    # samples, capture time [ns], frame, first_sample as it came) of each of the newest chunks
    chunks: collections.deque = field(default_factory=lambda: collections.deque(maxlen=4096))
    said: dict = field(default_factory=dict)  # counters at the last warning


class LuseelNode(LifecycleNode):
    """Extracts and locates the sound that the current query describes.

    Subscribes `audio` (luseel/AudioChunk, raw binaural audio) and `query` (std_msgs/String,
    replaces the current query; empty stops); publishes `~/extracted` (luseel/AudioChunk),
    `~/events` (luseel/SoundEventArray) and `~/markers` (visualization_msgs/MarkerArray).

    Args:
        load: called as load(name_or_path, device) to get the model.
        kwargs: for `rclpy.lifecycle.LifecycleNode`.
    """

    def __init__(self, load=load_model, **kwargs):
        super().__init__("luseel", **kwargs)
        self._load = load
        for name, (default, description, limits, effect) in PARAMETERS.items():
            self.declare_parameter(name, default, _descriptor(default, description, limits, effect))
        self.add_on_set_parameters_callback(self._check_parameters)

        self._lock = threading.Lock()  # guards _query, _session and its chunks
        self._publishing = threading.Lock()  # guards _shown; once _stop is set nothing is published
        self._query: tuple[str, str] | None = None  # id and words
        self._query_count = 0
        self._newest_query = 0  # source timestamp [ns]
        self._latched = None  # the subscription for latched queries, while it is open
        self._latched_close = 0.0  # monotonic time
        self._latched_held: tuple[int, str] | None = None  # source timestamp and words
        self._latched_known: set[tuple] = set()  # publishers
        self._session: _Session | None = None
        self._warned: dict[str, tuple[float, int]] = {}
        self._model = None
        self._queries = self._latched_watch = None
        self._publishers_here = []
        self._worker: threading.Thread | None = None
        self._stop = threading.Event()
        self._shown: set[str] = set()  # queries with markers in RViz
        self._last_audio = self._last_silence = 0.0
        self._starter = None
        if self.get_parameter("autostart").value:
            self._starter = self.create_timer(0.0, self._start)

    # -- lifecycle ---------------------------------------------------------------------------

    def _start(self) -> None:
        """What `autostart` does, once the node spins."""
        self.destroy_timer(self._starter)
        self._starter = None
        if self._state_machine.current_state[1] != "unconfigured":
            return  # somebody was faster
        if (self.trigger_configure() != TransitionCallbackReturn.SUCCESS
                or self.trigger_activate() != TransitionCallbackReturn.SUCCESS):
            self.get_logger().error(
                "autostart failed. Mend what the message above names, then: "
                f"ros2 lifecycle set {self.get_fully_qualified_name()} configure")

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        """Load and warm the model; on failure say why and stay unconfigured."""
        begin = time.monotonic()
        name, device = self.get_parameter("model").value, self.get_parameter("device").value
        try:
            reliability = self._audio_reliability()
            model = self._load(name or None, device or None)
            # The times of the stream are checked against the model's window now, not with the
            # first audio.
            self._new_stream(model, model.sample_rate)
            if self.get_parameter("warm_up").value:
                model.warm_up()
        except Exception as error:  # anything: a missing file, a foreign one, no memory on the GPU
            self.get_logger().error(f"can't configure: {_words(error)}")
            self._free()
            return TransitionCallbackReturn.FAILURE
        self._model = model
        self._audio_qos = QoSProfile(
            depth=self.get_parameter("audio_depth").value, reliability=reliability)
        self._extracted = self.create_lifecycle_publisher(AudioChunk, "~/extracted", 50)
        self._events = self.create_lifecycle_publisher(SoundEventArray, "~/events", 10)
        self._markers = self.create_lifecycle_publisher(MarkerArray, "~/markers", 10)
        self._publishers_here = [self._extracted, self._events, self._markers]
        # Queries are heard while inactive too: the newest counts once the node is active.
        self._queries = self.create_subscription(String, "query", self._on_query, 10)
        self._latched_watch = self.create_timer(LATCHED_PERIOD, self._watch_latched)
        self.get_logger().info(
            f"configured in {time.monotonic() - begin:.1f} s: model {model.name} on {model.device},"
            f" {model.window:g} s window, {self.get_parameter('hop').value:g} s hop")
        return super().on_configure(state)

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        """Start to listen."""
        self._session = None
        self._last_audio = time.monotonic()
        result = super().on_activate(state)  # the publishers, before anything is published
        self._stop = threading.Event()  # a new one: an older worker that still runs stays stopped
        self._worker = threading.Thread(
            target=self._work, args=(self._stop,), name="inference", daemon=True)
        self._worker.start()
        self._audio = self.create_subscription(
            AudioChunk, "audio", self._on_audio, self._audio_qos)
        self.get_logger().info(
            f"active: listening to {self._audio.topic_name}, "
            + (f"query '{self._query[1]}'" if self._query else "no query yet"))
        return result

    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        """Stop to listen; the model stays loaded and the query stays known."""
        self._stop_listening()
        return super().on_deactivate(state)

    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        """Free the model and forget the query."""
        self._free()
        return super().on_cleanup(state)

    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        """Free everything, from any state."""
        self._stop_listening()
        self._free()
        return super().on_shutdown(state)

    def on_error(self, state: State) -> TransitionCallbackReturn:
        """Free everything and go back to unconfigured, from where one can try again."""
        self._stop_listening()
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Stop the thread of the model, then destroy the node."""
        self._stop_listening()
        super().destroy_node()

    def _stop_listening(self) -> None:
        if self._worker is None:
            return
        with self._publishing:
            self._stop.set()
            try:
                if self._shown:
                    self._markers.publish(MarkerArray(markers=[
                        marker for query_id in sorted(self._shown)
                        for marker in conversions.delete_markers(query_id, Header())]))
            except Exception:  # at the end of the process there may be no ROS any more
                if self.context.ok():
                    raise
            self._shown = set()
        self._worker.join(STOP_SECONDS)
        if self._worker.is_alive() and self.context.ok():
            self.get_logger().warning(
                f"the model still runs after {STOP_SECONDS:g} s; its result will be left out")
        self.destroy_subscription(self._audio)
        self._worker = self._session = None

    def _free(self) -> None:
        for subscription in (self._queries, self._latched):
            if subscription is not None:
                self.destroy_subscription(subscription)
        if self._latched_watch is not None:
            self.destroy_timer(self._latched_watch)
        for publisher in self._publishers_here:
            self.destroy_lifecycle_publisher(publisher)
        self._queries = self._latched = self._latched_watch = self._latched_held = None
        self._latched_known = set()  # a latched query counts again when configured again
        self._publishers_here = []
        self._query = self._model = None
        self._newest_query = 0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- parameters --------------------------------------------------------------------------

    def _check_parameters(self, parameters) -> SetParametersResult:
        state = self._state_machine.current_state[1]
        for parameter in parameters:
            if parameter.name == "audio_reliability" and parameter.value not in (
                    "best_effort", "reliable"):
                return SetParametersResult(
                    successful=False, reason="audio_reliability: best_effort or reliable")
            effect = PARAMETERS.get(parameter.name, (None,) * 4)[3]
            if effect == "configure" and state in ("inactive", "active"):
                return SetParametersResult(
                    successful=False,
                    reason=f"{parameter.name} takes effect when configuring: deactivate and "
                           "clean up first")
        return SetParametersResult(successful=True)

    def _audio_reliability(self) -> ReliabilityPolicy:
        return ReliabilityPolicy[self.get_parameter("audio_reliability").value.upper()]

    def _new_stream(self, model, sample_rate: int) -> ExtractionStream:
        return ExtractionStream(
            model, sample_rate, hop=self.get_parameter("hop").value,
            buffer_seconds=self.get_parameter("buffer_seconds").value)

    # -- callbacks ---------------------------------------------------------------------------

    def _on_query(self, message: String, info) -> None:
        self._newest_query = max(info["source_timestamp"], self._newest_query)
        self._take_query(message.data)

    def _watch_latched(self) -> None:
        """Take over the query that a latched (transient-local) publisher sent before we listened.

        What anybody sends from now on comes, in order, through the ordinary subscription. For the
        rest a transient-local one is opened for a moment, when there is such a publisher: kept
        open, every ordinary publisher would log it as incompatible.
        """
        if self._latched is not None:
            if time.monotonic() < self._latched_close:
                return
            self.destroy_subscription(self._latched)
            held, self._latched, self._latched_held = self._latched_held, None, None
            if held is not None and held[0] > self._newest_query:  # nothing has overtaken it
                self._newest_query = held[0]
                self._take_query(held[1])
        publishers = {
            tuple(publisher.endpoint_gid)
            for publisher in self.get_publishers_info_by_topic(self._queries.topic_name)
            if publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL}
        if publishers - self._latched_known:
            self._latched = self.create_subscription(
                String, "query", self._on_latched,
                QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL),
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))
            self._latched_close = time.monotonic() + LATCHED_SECONDS
        self._latched_known = publishers

    def _on_latched(self, message: String, info) -> None:
        held = (info["source_timestamp"], message.data)
        self._latched_held = max(held, self._latched_held or held)

    def _take_query(self, text: str) -> None:
        text = text.strip()
        if self._query is not None and text == self._query[1]:
            return
        try:
            query = None
            if text:
                text = validate_query(text)
                query = (f"q{self._query_count + 1}", text)
                self._query_count += 1
        except LuseelError as error:
            self._warn("query", f"query refused: {error}")
            return
        with self._lock:
            self._query = query
            if self._session is not None:
                self._session.stream.set_queries(dict([query] if query else []))
        self.get_logger().info(f"query {query[0]}: '{query[1]}'" if query else "no query any more")

    def _on_audio(self, message: AudioChunk) -> None:
        try:
            if message.query_id:
                raise LuseelError("it is an extraction (query_id is set), not raw audio; "
                                  "is the topic 'audio' remapped to an output?")
            samples = conversions.chunk_to_array(message)
            self._last_audio = time.monotonic()
            session = self._session
            if session is None or session.stream.sample_rate != message.sample_rate:
                session = self._new_session(message.sample_rate)
        except LuseelError as error:
            self._warn("audio", f"audio chunk ignored: {error}")
            return
        first = message.first_sample
        newest = session.chunks[-1] if session.chunks else None
        if newest is not None and first == 0 == newest[-1]:
            first = None  # a source that doesn't count: chunks follow each other
            self._warn("first_sample", "first_sample stays 0: lost audio can't be noticed")
        stamp = conversions.time_to_ns(message.header.stamp)
        if stamp == 0:
            self._warn("stamp", "audio without stamp: the time of arrival is taken instead")
            stamp = self.get_clock().now().nanoseconds - (
                samples.shape[1] * conversions.NANOSECONDS // message.sample_rate)
        with self._lock:  # the worker may want the stamp as soon as the samples are in
            start = session.stream.push(samples, first)
            session.chunks.append(
                (session.stream.counters.restarts, start, samples.shape[1], stamp,
                 message.header.frame_id, message.first_sample))
        self._say_losses(session)

    def _new_session(self, sample_rate: int) -> _Session:
        with self._lock:
            if self._session is not None:
                self._warn("rate", f"the sample rate changed from "
                           f"{self._session.stream.sample_rate} to {sample_rate} Hz: starting anew")
            session = _Session(self._new_stream(self._model, sample_rate))
            if self._query is not None:
                session.stream.set_queries(dict([self._query]))
            self._session = session
            return session

    # -- the thread of the model -------------------------------------------------------------

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set() and self.context.ok():
            session = self._session
            try:
                if session is None or not session.stream.wait(0.1):
                    if session is None:
                        stop.wait(0.02)
                    self._say_silence()
                    continue
                result = session.stream.process()
                with self._publishing:
                    if result is not None and not stop.is_set():
                        self._publish(session, result)
            except Exception as error:  # the node outlives whatever one window brings about
                if self.context.ok() and not stop.is_set():
                    self._warn("model", f"no result for one hop: {_words(error)}")

    def _publish(self, session: _Session, result: StreamResult) -> None:
        query = self._query
        header = self._header(session, result.restarts, result.hop_start)
        if header is None:
            return
        threshold = self.get_parameter("confidence_threshold").value
        events, markers = [], []
        for estimate in result.estimates:
            if query is None or estimate.key != query[0]:
                continue  # replaced while the model ran
            if estimate.audio.shape[1]:
                at = self._header(session, result.restarts, estimate.first_sample)
                if at is not None:
                    self._extracted.publish(conversions.array_to_chunk(
                        estimate.audio, result.sample_rate, estimate.first_sample, at,
                        estimate.key))
            event = conversions.sound_event(
                estimate.key, estimate.query, estimate.azimuth, estimate.likelihood,
                estimate.confidence, threshold, result.processing_time)
            events.append(event)
            markers += conversions.event_markers(event, header, int(estimate.key[1:]))
        self._events.publish(SoundEventArray(header=header, events=events))
        lifetime = conversions.seconds_to_duration(
            MARKER_HOPS * self.get_parameter("hop").value)
        for marker in markers:
            marker.lifetime = lifetime
        current = {event.query_id for event in events}
        for query_id in sorted(self._shown - current):
            markers += conversions.delete_markers(query_id, header)
        self._shown = current
        if markers:
            self._markers.publish(MarkerArray(markers=markers))

    def _header(self, session: _Session, restarts: int, sample: int) -> Header | None:
        """Capture time and frame of a sample of the stream; None if its chunk is forgotten.

        ``restarts`` of the stream before it: says which time line the number belongs to.
        """
        rate = session.stream.sample_rate
        with self._lock:
            chunks = session.chunks.copy()
        for line, start, count, stamp, frame, _ in reversed(chunks):
            if line == restarts and start <= sample < start + count + STAMP_REACH * rate:
                return Header(
                    stamp=conversions.add_samples(
                        conversions.ns_to_time(stamp), sample - start, rate),
                    frame_id=self.get_parameter("frame_id").value or frame)
        return None

    # -- what went wrong ---------------------------------------------------------------------

    def _say_losses(self, session: _Session) -> None:
        counters, rate = session.stream.counters, session.stream.sample_rate
        for name, words in (
                ("dropped", "the model is too slow: {} s of audio dropped so far"),
                ("missing", "audio messages were lost: {} s so far"),
                ("repeated", "audio that was there already: {} s ignored so far"),
                ("invalid", "{n} samples that are not finite, or absurdly large, taken as 0"),
                ("restarts", "first_sample jumped: the stream started anew ({n} times so far)")):
            value = getattr(counters, name)
            if value != session.said.get(name, 0) and self._warn(
                    name, words.format(f"{value / rate:.2f}", n=value)):
                session.said[name] = value

    def _say_silence(self) -> None:
        now = time.monotonic()
        waited = now - self._last_audio
        if waited > SILENCE_PERIOD and now - self._last_silence > SILENCE_PERIOD:
            self._last_silence = now
            self._warn("silence", f"no audio for {waited:.0f} s on {self._audio.topic_name} "
                       f"({self._audio.get_publisher_count()} publishers)")

    def _warn(self, kind: str, text: str) -> bool:
        """Log a warning, at most every WARNING_PERIOD of one kind; tells whether it was logged."""
        now = time.monotonic()
        last, silent = self._warned.get(kind, (-WARNING_PERIOD, 0))
        if now - last < WARNING_PERIOD:
            self._warned[kind] = (last, silent + 1)
            return False
        self._warned[kind] = (now, 0)
        again = f" ({silent + 1} times since last said)" if silent else ""
        self.get_logger().warning(text + again)
        return True


def _words(error: Exception) -> str:
    """The error for a person: our own speak for themselves, others need their type."""
    return str(error) if isinstance(error, LuseelError) else f"{type(error).__name__}: {error}"


def _descriptor(default, description, limits, effect) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=description, read_only=effect == "start")
    if effect == "configure":
        descriptor.additional_constraints = "Takes effect when the node is configured"
    if limits and isinstance(default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=limits[0], to_value=limits[1])]
    elif limits:
        descriptor.integer_range = [
            IntegerRange(from_value=limits[0], to_value=limits[1], step=1)]
    return descriptor


def main(args=None) -> None:
    """Run the node until SIGINT or SIGTERM."""
    rclpy.init(args=args)
    node = None
    try:
        node = LuseelNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        # The interpreter's last collections would look at each object of torch and transformers:
        # seconds on a busy machine, for memory that goes back to the system anyway.
        gc.freeze()


if __name__ == "__main__":
    main()
