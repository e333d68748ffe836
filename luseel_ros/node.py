"""The lifecycle node `luseel`: audio and words in, the sounds and their directions out.

Callbacks only check messages and hand samples over. The model runs in a thread of its own, so that
a slow network never delays a callback or a lifecycle service; whatever doesn't fit is dropped,
counted and said. Audio comes in a third thread, because that is cheaper (callback_thread.py); all
other callbacks run where the node is spun.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import torch
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from std_msgs.msg import Header

from luseel_model import load_model
from luseel_model.arrays import load_array
from luseel_model.errors import ConfigError, LuseelError
from luseel_model.query import Query, as_query
from luseel_model.streaming import ExtractionStream, StreamResult

from . import conversions, parameters
from .audio_io import AudioBlock, AudioReader, load_messages
from .callback_thread import SubscriptionThread
from .camera import Camera
from .diagnostics import PERIOD, Diagnostics, Report, Statistics
from .outputs import Mount, Outputs
from .parameters import PARAMETERS
from .queries import QueryInterface, QueryList
from .steady_model import SteadyModel, free_memory, words
from .timeline import JUMP, Block, Timeline
from .tracking import Tracks

WARNING_PERIOD = 5.0  # [s] between two warnings of one kind
SILENCE_PERIOD = 5.0  # [s] without audio until the node says so
STOP_SECONDS = 10.0  # [s] that the run of the model may take that is under way when it's to stop
MAX_MISSING = 3600.0  # [s] beyond which a jump of the sample numbers isn't counted as lost audio
REST = 0.4  # [s] at most for which audio may wait that doesn't complete a hop yet
CLOCK_JUMP = 2.0  # [s] forward from which simulated time has jumped; backward any
# Parameters of the trackers.
TRACKED = ("confidence_threshold", "track_memory", "position_stddev")
# What a stream counts, and what is said of it: seconds {s} or number {n} so far.
LOSSES = {
    "dropped": "the model is too slow: {s} s of audio dropped so far",
    "missing": "audio messages were lost: {s} s so far",
    "repeated": "audio that was there already: {s} s ignored so far",
    "invalid": "{n} samples that are not finite, or absurdly large, taken as 0",
    "restarts": "first_sample jumped: the stream started anew ({n} times so far)",
    "halvings": "no memory left: fewer queries at a time from now on",
    "failed": ""}


@dataclass
class _Session:
    """One uninterrupted stream at one sample rate."""

    stream: ExtractionStream
    timeline: Timeline
    counted: tuple = (0,) * len(LOSSES)  # by the stream, at the last look
    result: tuple[int, int, float] | None = None  # end and length of the last hop, and when it was
    real_time: bool = False  # audio doesn't come faster than it was recorded


class LuseelNode(LifecycleNode):
    """Extracts and locates the sounds that the current queries describe.

    docs/node.md lists topics, services and parameters.

    Args:
        load: called as load(name_or_path, device) to get the model, with calibration=path and
            head=path where there are such.
        kwargs: for `rclpy.lifecycle.LifecycleNode`.
    """

    def __init__(self, load=load_model, **kwargs):
        super().__init__("luseel", **kwargs)
        self._load = load
        self._lock = threading.Lock()  # guards _session, its timeline and _mount
        self._publishing = threading.Lock()  # once _stop is set, nothing is published
        self.queries = QueryList()
        self.statistics = Statistics()
        self._session: _Session | None = None
        self._warned: dict[str, tuple[float, int]] = {}
        self._model: SteadyModel | None = None
        self._asking: QueryInterface | None = None
        self._camera: Camera | None = None
        self._outputs: Outputs | None = None
        self._audio: AudioReader | None = None
        self._listening: SubscriptionThread | None = None
        self._worker: threading.Thread | None = None
        self._stop = threading.Event()
        self._last_audio = self._last_silence = 0.0
        self._frame = ""  # of the newest audio
        self._failing = ""  # why the last hop failed
        self._starter = self._jumps = None
        self._tracks = Tracks(self, lambda text: self._warn("odometry", text))
        self.add_on_set_parameters_callback(self._check_parameters)
        parameters.declare(self)
        self.add_post_set_parameters_callback(self._parameters_changed)
        self._mount = Mount(self, lambda text: self._warn("mount", text))
        self._diagnostics = Diagnostics(self, self._report)
        # One timer for what is due each second, because each time that one is due costs more than
        # what it does; by the steady clock: simulated time may stand still.
        self.create_timer(PERIOD, self._each_second, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=Duration(seconds=CLOCK_JUMP),
                          min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=self._on_clock_jump)
        if self.get_parameter("autostart").value:
            # by the steady clock: simulated time may stand still
            self._starter = self.create_timer(
                0.0, self._start, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # -- lifecycle ---------------------------------------------------------------------------

    @property
    def _state(self) -> str:
        return self._state_machine.current_state[1]

    def _start(self) -> None:
        """What `autostart` does, once the node spins."""
        self.destroy_timer(self._starter)
        self._starter = None
        if self._state != "unconfigured":
            return  # somebody was faster
        if (self.trigger_configure() != TransitionCallbackReturn.SUCCESS
                or self.trigger_activate() != TransitionCallbackReturn.SUCCESS):
            self.get_logger().error(
                "autostart failed. Mend what the message above names, then: "
                f"ros2 lifecycle set {self.get_fully_qualified_name()} configure")

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        """Load and warm the model; on failure say why and stay unconfigured."""
        begin = time.monotonic()
        values = parameters.values(self)
        try:
            for kind in ("audio_type", "extracted_type"):
                load_messages(values[kind])  # before the model: it takes longer
            self._model = self._new_model(values)
            # The times of the stream are checked against the model's window now, not with the
            # first audio.
            stream = parameters.new_stream(self._model, self._model.sample_rate, values)
            if values["warm_up"]:
                self._model.warm_up()
            self.statistics, self._failing = Statistics(), ""
            able = self._model.capabilities
            self.queries = QueryList(values["max_queries"], self._check_query)
            self._outputs = Outputs(self, values, self._on_unfit, able)
            # Queries are heard while inactive too: they count once the node is active.
            self._asking = QueryInterface(
                self, self.queries, self._queries_changed, self._query_refused,
                only_frames="frames" in able.clues and "image" not in able.clues)
            self._camera = Camera(self, values, self._asking.show, self._query_refused,
                                  moving="frames" in able.clues)
        except Exception as error:  # anything: a missing file, a foreign one, no memory on the GPU
            self.get_logger().error(f"can't configure: {words(error)}")
            self._free()
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(
            f"configured in {time.monotonic() - begin:.1f} s: model {self._model.name} "
            f"({able.describe()}) on {self._model.device}, {self._model.window:g} s window, "
            f"{stream.profile.hop:g} s hop")
        return super().on_configure(state)

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        """Start to listen."""
        values = parameters.values(self)
        self._session = None
        self._last_audio = time.monotonic()
        self._listening = SubscriptionThread(self, "audio")
        try:
            self._audio = AudioReader(
                self, values["audio_type"], "audio", parameters.audio_qos(values),
                self._on_audio, self._audio_refused, sample_rate=values["audio_sample_rate"],
                channels=self._model.microphones, sample_format=values["audio_sample_format"],
                info_topic=values["audio_info_topic"], thread=self._listening,
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_unfit_audio))
        except Exception as error:  # no such message type here, for one
            self.get_logger().error(f"can't activate: {words(error)}")
            self._stop_listening()
            return TransitionCallbackReturn.FAILURE
        self._stop = threading.Event()  # a new one: an older worker that still runs stays stopped
        self._worker = threading.Thread(
            target=self._work, args=(self._stop, self._outputs), name="inference", daemon=True)
        self._worker.start()
        self._mount.update(values, values["frame_id"])
        self._tracks.mounted(values)
        if self._model.capabilities.direction:
            self._tracks.listen(self._listening)
        self._listening.start()
        self.get_logger().info(
            f"active: listening to {self._audio_topic()}, "
            + (", ".join(str(query) for query in self.queries.all().values())
               or "no query yet"))
        return super().on_activate(state)

    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        """Stop to listen; the model stays loaded and the queries stay known."""
        self._stop_listening()
        return super().on_deactivate(state)

    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        """Free the model and forget the queries."""
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
        if self._jumps is not None:
            self._jumps.unregister()
            self._jumps = None
        super().destroy_node()

    def _stop_listening(self) -> None:
        with self._publishing:
            self._stop.set()
        if self._listening is not None:
            self._listening.stop()
            self._listening = None
        if self._audio is not None:
            self._audio.destroy()
            self._audio = None
        self._tracks.unlisten()
        if self._worker is None:
            return
        try:
            self._outputs.clear_markers()
        except Exception:  # at the end of the process there may be no ROS any more
            if self.context.ok():
                raise
        self._worker.join(STOP_SECONDS)
        if self._worker.is_alive() and self.context.ok():
            self.get_logger().warning(
                f"the model still runs after {STOP_SECONDS:g} s; its result will be left out")
        self._worker = self._session = None

    def _free(self) -> None:
        for part in (self._camera, self._asking, self._outputs, self._mount):
            if part is not None:
                part.destroy()
        self._camera = self._asking = self._outputs = self._session = self._model = None
        self.queries = QueryList()
        free_memory()

    def _new_model(self, values) -> SteadyModel:
        more = {name: values[name] for name in ("calibration", "head") if values[name]}

        def load(device: str):
            model = self._load(values["model"] or None, device or None, **more)
            if values["array"]:
                if not hasattr(model, "set_array"):
                    raise ConfigError(f"the model {model.name} hears with its own two ears, not "
                                      "with an array of microphones: leave the parameter array "
                                      "empty")
                model.set_array(load_array(values["array"]))
            return model

        def reloaded():
            self.statistics.count("reloads")

        return SteadyModel(load, values["device"], lambda text: self._warn("memory", text),
                           reloaded)

    # -- parameters --------------------------------------------------------------------------

    def _check_parameters(self, changed) -> SetParametersResult:
        reason = self._why_not({parameter.name: parameter.value for parameter in changed})
        return SetParametersResult(successful=reason is None, reason=reason or "")

    def _why_not(self, changed: dict) -> str | None:
        configured = self._state in ("inactive", "active")
        for name, value in changed.items():
            if reason := parameters.problem(name, value):
                return reason
            if configured and name in PARAMETERS and PARAMETERS[name].effect == "configure":
                return (f"{name} takes effect when configuring: deactivate and clean up first")
        if changed.get("max_queries", len(self.queries)) < len(self.queries):
            return (f"max_queries {changed['max_queries']}: there are {len(self.queries)} queries; "
                    "remove some first")
        if configured:
            try:
                parameters.new_stream(self._model, self._model.sample_rate,
                                      {**parameters.values(self), **changed})
            except ConfigError as error:
                return str(error)
        return None

    def _parameters_changed(self, changed) -> None:
        names = {parameter.name for parameter in changed}
        if self._state not in ("inactive", "active"):
            return
        values = parameters.values(self)
        self.queries.maximum = values["max_queries"]
        session = self._session
        if session is not None and names & {"profile", "hop", "precision"}:
            session.stream.set_profile(**parameters.stream_times(values))
        if names & {name for name, p in PARAMETERS.items() if p.effect == "stream"}:
            self._forget_session()
        self._tracks.mounted(values)
        if self._state == "active":
            self._update_mount()

    def _update_mount(self) -> None:
        with self._lock:
            values = parameters.values(self)
            self._mount.update(values, values["frame_id"] or self._frame)

    def _forget_session(self) -> None:
        """Start anew with the next audio, by the parameters of now."""
        with self._lock:  # one that is being made has the parameters of before
            self._session = None

    # -- queries -----------------------------------------------------------------------------

    def _queries_changed(self) -> None:
        queries = self.queries.all()
        self._outputs.set_queries(queries)
        with self._lock:
            if self._session is not None:
                self._session.stream.set_queries({q.id: q.asked for q in queries.values()})

    def _check_query(self, query: str | Query) -> Query:
        """By the model that is loaded now."""
        return getattr(self._model, "check_query", as_query)(query)

    def _query_refused(self, text: str) -> None:
        self.statistics.count("refused_queries")
        self._warn("query", text)

    # -- audio -------------------------------------------------------------------------------

    def _on_audio(self, block: AudioBlock) -> None:
        try:
            conversions.check_block(block, self._model.microphones)
            session = self._session
            if session is None or session.stream.sample_rate != block.sample_rate:
                session = self._new_session(block.sample_rate)
        except LuseelError as error:
            self._audio_refused(str(error))
            return
        self._last_audio = time.monotonic()
        count, first, stamp = len(block.samples), block.first_sample, block.stamp_ns
        if first == 0 == session.timeline.first_number:
            first = None  # a source that doesn't count
            self._warn("first_sample", "first_sample stays 0: lost audio is noticed by its stamps "
                       "only")
        session.timeline.first_number = block.first_sample
        with self._lock:  # the worker may want the stamp as soon as the samples are in
            place = session.timeline.place(stamp, count, first)
        if place.what == JUMP and session.timeline.true_rate is None:
            self.statistics.count("clock_jumps")
            self._warn("clock", f"the stamps of the audio jumped by {place.off / 1e9:+.3f} s"
                       + ("" if first is not None else ": starting anew"))
            if first is None:
                session = self._new_session(block.sample_rate)
                with self._lock:
                    place = session.timeline.place(stamp, count, None)
        with self._lock:
            start = session.stream.push(block.samples.T, place.first_sample)
            session.timeline.add(Block(session.stream.counters.restarts, start, count, stamp,
                                       block.frame_id, self._last_audio))
        self.statistics.block(count)
        if block.frame_id != self._frame:
            self._frame = block.frame_id
            self._update_mount()
        self._count_losses(session)
        if session.real_time and block.stamped:  # else the time of arrival must be known
            self._listening.rest(self._spare(session, start + count, count))

    def _spare(self, session: _Session, position: int, count: int) -> float:
        """Seconds in which no message completes a hop, with messages of that length; little enough
        that they find room in the queue."""
        end, hop, _ = session.result
        left = hop - (position - end) % hop - count
        few = self.get_parameter("audio_depth").value // 4 * count
        return min(REST, min(left, few) / session.stream.sample_rate)

    def _audio_refused(self, reason: str) -> None:
        self.statistics.count("refused")
        self._warn("audio", f"audio ignored: {reason}")

    def _new_session(self, sample_rate: int) -> _Session:
        with self._lock:
            values = parameters.values(self)
            old = self._session
            if old is not None and old.stream.sample_rate != sample_rate:
                self.statistics.count("changes")
                self._warn("rate", f"the sample rate changed from {old.stream.sample_rate} to "
                           f"{sample_rate} Hz: starting anew")
            session = _Session(
                parameters.new_stream(self._model, sample_rate, values),
                Timeline(sample_rate, values["stamp_tolerance"], values["max_gap"]))
            if old is not None:
                session.stream.max_queries_at_once = old.stream.max_queries_at_once
            session.stream.set_queries({q.id: q.asked for q in self.queries.all().values()})
            self._session = session
            return session

    def _audio_topic(self) -> str:
        return self.resolve_topic_name("audio")

    def _on_unfit_audio(self, event) -> None:
        self._on_unfit(
            f"a publisher of {self._audio_topic()} doesn't offer the quality of service that this "
            f"node asks for ({event.last_policy_kind.name}): nothing is heard of it. Set "
            "audio_reliability to best_effort, or let it publish reliably")

    def _on_unfit(self, text: str) -> None:
        self.statistics.count("incompatible")
        self._warn("qos " + text, text)

    def _on_clock_jump(self, jump: TimeJump) -> None:
        """The node's clock jumped: simulated time started, or started over."""
        nanoseconds = jump.delta.nanoseconds
        self.queries.shift(nanoseconds)
        self.statistics.forget_latencies()
        if self._state == "active":
            self.statistics.count("clock_jumps")
            self._warn("ros clock", f"the node's clock jumped by {nanoseconds / 1e9:+.3f} s")
            if nanoseconds < 0:
                self._forget_session()  # what comes now has nothing to do with what was

    # -- the thread of the model -------------------------------------------------------------

    def _work(self, stop: threading.Event, outputs: Outputs) -> None:
        while not stop.is_set() and self.context.ok():
            session = self._session
            try:
                if session is None or not session.stream.wait(0.1):
                    if session is None:
                        stop.wait(0.1)
                    self._say_silence()
                    continue
                result = session.stream.process()
                if result is not None:
                    self._note_pace(session, result)
                    with self._publishing:
                        if not stop.is_set():
                            self._publish(session, result, outputs)
                    self._failing = ""
            except Exception as error:  # the node outlives whatever one window brings about
                if self.context.ok() and not stop.is_set():
                    self._failing = f"no result for one hop: {words(error)}"
                    self._warn("model", self._failing)
                    if session is not None:
                        self._count_losses(session)

    @staticmethod
    def _note_pace(session: _Session, result: StreamResult) -> None:
        now, hop, last = time.monotonic(), result.hop_end - result.hop_start, session.result
        session.result = (result.hop_end, hop, now)
        session.real_time = last is not None and (
            result.hop_end - last[0]) / result.sample_rate < 1.5 * (now - last[2])

    def _publish(self, session: _Session, result: StreamResult, outputs: Outputs) -> None:
        frame = self.get_parameter("frame_id").value

        def header_of(sample: int) -> Header | None:
            with self._lock:
                block = session.timeline.find(result.restarts, sample)
            if block is None:
                return None
            time_ns = block.stamp + conversions.samples_to_ns(
                sample - block.start, result.sample_rate)
            return Header(stamp=conversions.ns_to_time(time_ns), frame_id=frame or block.frame)

        hop = (result.hop_end - result.hop_start) / result.sample_rate
        queries, header = self.queries.all(), header_of(result.hop_start)
        values = {name: self.get_parameter(name).value for name in TRACKED}
        tracks = {} if header is None else self._tracks.update(
            result, queries, conversions.time_to_ns(header.stamp), self._model.window, hop, values)
        outputs.publish(result, queries, hop, header_of, values["confidence_threshold"], tracks,
                        self._tracks.frame)
        with self._lock:
            last = session.timeline.find(result.restarts, result.hop_end - 1)
        if last is not None:
            end = last.stamp + conversions.samples_to_ns(
                result.hop_end - last.start, result.sample_rate)
            self.statistics.hop(
                hop, result.processing_time,
                (self.get_clock().now().nanoseconds - end) / conversions.NANOSECONDS,
                time.monotonic() - last.arrival)

    def _each_second(self) -> None:
        self._diagnostics.publish()
        if self._asking is not None:
            self._asking.look()

    # -- what went wrong ---------------------------------------------------------------------

    def _count_losses(self, session: _Session) -> None:
        """Add what the stream counted since the last look, and say what is new."""
        counters, rate = session.stream.counters, session.stream.sample_rate
        values = tuple(getattr(counters, name) for name in LOSSES)
        with self._lock:
            before, session.counted = session.counted, values
        if values == before:
            return
        for (name, text), value, old in zip(LOSSES.items(), values, before):
            new = value - old
            if new > MAX_MISSING * rate:  # sample numbers gone mad are no length of audio
                continue
            self.statistics.count(name, new)
            if new and text:
                total = self.statistics[name]
                self._warn(name, text.format(s=f"{total / rate:.2f}", n=total))

    def _say_silence(self) -> None:
        now = time.monotonic()
        waited = now - self._last_audio
        if waited > SILENCE_PERIOD and now - self._last_silence > SILENCE_PERIOD:
            self._last_silence = now
            self._warn("silence", f"no audio for {waited:.0f} s on {self._audio_topic()} "
                       f"({self.count_publishers(self._audio_topic())} publishers)")

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

    def _report(self) -> Report:
        values, session, model = parameters.values(self), self._session, self._model
        about = {"topic": self._audio_topic(), "audio_type": values["audio_type"],
                 "frame": values["frame_id"] or self._frame, "max_queries": values["max_queries"],
                 "profile": values["profile"]}
        reduced = ""
        if model is not None:
            about |= {"model": model.name, "takes and gives": model.capabilities.describe(),
                      "device": model.device, "window [s]": model.window}
            reduced = model.reduced
            if str(model.device).startswith("cuda"):
                about["gpu"] = torch.cuda.memory_allocated(model.device)
        if session is not None:
            about |= {"hop [s]": session.stream.profile.hop,
                      "precision": session.stream.precision}
            if session.stream.max_queries_at_once:
                reduced = reduced or (f"{session.stream.max_queries_at_once} queries at a time, "
                                      "because memory ran out")
        active = self._state == "active"
        with self._lock:
            true_rate = session.timeline.true_rate if session else None
        return Report(
            name=self.get_fully_qualified_name(), state=self._state, statistics=self.statistics,
            about=about, sample_rate=session.stream.sample_rate if session else 0,
            true_rate=true_rate,
            silent=time.monotonic() - self._last_audio if active else None,
            patience=SILENCE_PERIOD, publishers=self.count_publishers(self._audio_topic()),
            failing=self._failing, reduced=reduced,
            queries={q.id: q.words for q in self.queries.all().values()})


def main(args=None) -> None:
    """Run the node until SIGINT or SIGTERM; for `python -m luseel_ros.node`, too."""
    from .run import main as run
    run(args)


if __name__ == "__main__":
    main()
