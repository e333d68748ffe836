"""``luseel listen`` with ROS: shows in the terminal what a running node hears.

With --mic or --file it listens itself, without any node (luseel_model.listen).
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from dataclasses import replace

import numpy as np

from luseel_model import listen
from luseel_model.listen import Heard, Snapshot, View
from luseel_model.sources import level_db

SILENCE = 2.0  # [s] without messages until that is said
HOP_SAMPLES = 5  # events from whose stamps the hop is told


class NodeListener:
    """Keeps the newest of what a node publishes.

    Args:
        node: an rclpy node, which somebody else spins.
        target: full name of the node to listen to.
        audio_topic, audio_type: the audio whose level is shown.
    """

    def __init__(self, node, target: str, audio_topic: str = "audio",
                 audio_type: str = "luseel"):
        from luseel.msg import SoundEventArray
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        from ..audio_io import AudioReader

        self._node, self._target = node, target
        self._lock = threading.Lock()
        self._snapshot = Snapshot(target)
        self._stamps: list[int] = []
        self._levels: list[np.ndarray] = []
        self._level: tuple[float, float] | None = None
        self._newest_audio = self._newest_events = time.monotonic()
        self._note = ""
        any_publisher = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_subscription(
            SoundEventArray, f"{target}/events", self._on_events, any_publisher)
        self._audio = AudioReader(node, audio_type, audio_topic, any_publisher, self._on_audio,
                                  self._on_refused)

    def snapshot(self) -> Snapshot:
        """What is known now."""

        with self._lock:
            notes, now = [], time.monotonic()
            if not self._node.count_publishers(f"{self._target}/events"):
                notes.append(f"no node publishes {self._target}/events")
            elif now - self._newest_events > SILENCE:
                notes.append(f"no events for {now - self._newest_events:.0f} s")
            if now - self._newest_audio > SILENCE:
                notes.append(f"no audio for {now - self._newest_audio:.0f} s on "
                             f"{self._audio.topic_name}")
            if self._note:
                notes.append(self._note)
            if self._levels:
                level = np.max(self._levels, axis=0)
                self._level, self._levels = (float(level[0]), float(level[-1])), []
            return replace(self._snapshot, level=self._level, notes=tuple(notes))

    def _on_refused(self, why: str) -> None:
        with self._lock:
            self._note = f"audio: {why}"

    def _on_audio(self, block) -> None:
        level = level_db(np.asarray(block.samples).T)
        with self._lock:
            self._levels.append(level[:2])
            del self._levels[:-200]
            self._newest_audio, self._note = time.monotonic(), ""

    def _on_events(self, message) -> None:
        from luseel_model.angles import from_rep103

        from ..conversions import time_to_ns

        stamp = time_to_ns(message.header.stamp)
        now = self._node.get_clock().now().nanoseconds
        heard = tuple(Heard(
            event.query_id, event.query_text, float(from_rep103(event.azimuth)),
            np.array(event.likelihood), float(event.confidence), bool(event.active))
            for event in message.events)
        with self._lock:
            self._newest_events = time.monotonic()
            self._stamps = [*self._stamps[-HOP_SAMPLES:], stamp]
            # the least: where the node is too slow, it leaves hops out
            steps = np.diff(self._stamps)
            hop = float(steps[steps > 0].min()) if np.any(steps > 0) else 0.0
            latency = (now - stamp - hop) / 1e9  # from the end of the hop
            self._snapshot = Snapshot(
                self._target, None, heard, None,
                latency if hop > 0 and 0 <= latency < 60 else None, (), self._snapshot.hop + 1)


def register(commands) -> None:
    """Add the command to the subparsers of ``luseel``."""
    parser = commands.add_parser(
        "listen", help="show live what a node, a microphone or a file has to hear",
        description="Show live where the described sounds are: as a running node hears them or, "
        "with --mic or --file, without any node. Ctrl-C ends it.")
    listen.add_arguments(parser)
    node = parser.add_argument_group("with a node")
    node.add_argument("--node", default="/luseel", help="its name (default: %(default)s)")
    node.add_argument("--audio-topic", default="audio", help="default: %(default)s")
    node.add_argument("--audio-type", default="luseel",
                      help="luseel, ros_drivers or mgonzs13 (default: %(default)s)")
    node.add_argument("--seconds", type=float, help="end by itself after so long")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``luseel listen``; Ctrl-C ends it. Returns the exit status."""
    if args.list_mics or args.mic is not None or args.file is not None:
        return listen.run(args)
    return listen_to_node(args)


def listen_to_node(args: argparse.Namespace, view: View | None = None) -> int:
    """Show what the node publishes. Queries, if any, replace those that the node has."""
    from luseel.msg import Query

    from luseel_model.query import validate_query

    from .spinning import spinning_node

    queries = [validate_query(query) for query in args.query]
    target = "/" + args.node.strip("/")
    with contextlib.suppress(KeyboardInterrupt), spinning_node("luseel_listen") as node:
        listener = NodeListener(node, target, args.audio_topic, args.audio_type)
        asking = node.create_publisher(Query, f"{target}/set_query", 100)
        begin, pending = time.monotonic(), bool(queries)
        with view or View(as_json=args.json) as screen:
            while args.seconds is None or time.monotonic() - begin < args.seconds:
                if pending and asking.get_subscription_count():
                    asking.publish(Query(action=Query.CLEAR))
                    for query in queries:
                        asking.publish(Query(action=Query.ADD, text=query))
                    pending = False
                snapshot = listener.snapshot()
                if pending:
                    snapshot = replace(snapshot, notes=(
                        *snapshot.notes, f"nobody takes queries on {asking.topic_name} yet"))
                screen.show(snapshot)
                time.sleep(listen.REFRESH)
    return 0
