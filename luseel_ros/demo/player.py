"""The other nodes of the demo in one: microphones, a language node, and a listener."""

from __future__ import annotations

import collections
import threading
import time

import numpy as np
from luseel.msg import AudioChunk, SoundEventArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header, String

from luseel_model.angles import from_rep103

from .. import conversions
from .checks import Estimate, Heard
from .scene import Scene

CHUNK = 0.1  # [s]
FRAME = "microphones"  # the fixed frame of config/luseel.rviz


class Player(Node):
    """Plays a scene on `audio`, asks its queries on `query` and keeps what the node answers.

    Args:
        scene: what to play.
        target: full name of the node that is shown, with its namespace.
        hop: seconds between its events.
        speed: 1 is real time.
    """

    def __init__(self, scene: Scene, target: str, hop: float, speed: float = 1.0, **kwargs):
        super().__init__("luseel_demo", **kwargs)
        self.scene, self.hop, self.speed = scene, hop, speed
        self.heard = [Heard(query) for query in scene.queries]
        self.latencies: list[float] = []  # [s] from the end of a hop to its events' arrival
        self.position = 0.0  # [s] played so far
        self.finished = threading.Event()
        self._target = target
        self._begin_ns = 0  # stamp of the first sample
        self._begin = 0.0
        self._played = 0
        self._asked = 0
        self._ids: dict[str, Heard] = {}
        self._blocks: dict[str, list] = collections.defaultdict(list)
        self._audio = self.create_publisher(
            AudioChunk, "audio", QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE))
        self._query = self.create_publisher(String, "query", 10)
        self.create_subscription(SoundEventArray, f"{target}/events", self._on_events, 50)
        self.create_subscription(AudioChunk, f"{target}/extracted", self._on_extracted, 50)
        self._timer = None

    # -- getting together ---------------------------------------------------------------------

    def connected(self) -> bool:
        """Whether the node listens to all that is played and is heard."""
        return (self._audio.get_subscription_count() > 0
                and self._query.get_subscription_count() > 0
                and self.count_publishers(f"{self._target}/events") > 0
                and self.count_publishers(f"{self._target}/extracted") > 0)

    # -- playing ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to play; `finished` is set at the end."""
        self._begin = time.monotonic()
        self._begin_ns = self.get_clock().now().nanoseconds
        self._timer = self.create_timer(0.01, self._play)

    def _play(self) -> None:
        now = (time.monotonic() - self._begin) * self.speed
        rate = self.scene.sample_rate
        size = round(CHUNK * rate)
        queries = self.scene.queries
        # A microphone hands over a chunk when its last sample is recorded. The query comes with
        # the first chunk of its time, as from somebody who asks while listening.
        while self._played < self.scene.mixture.shape[1] and (self._played + size) / rate <= now:
            while self._asked < len(queries) and queries[self._asked].at <= self._played / rate:
                self._query.publish(String(data=queries[self._asked].text))
                self._asked += 1
            samples = self.scene.mixture[:, self._played:self._played + size]
            header = Header(stamp=self._stamp(self._played), frame_id=FRAME)
            self._audio.publish(
                conversions.array_to_chunk(samples, rate, self._played, header))
            self._played += samples.shape[1]
        self.position = self._played / rate
        if self._played >= self.scene.mixture.shape[1]:
            self.destroy_timer(self._timer)
            self.finished.set()

    def _stamp(self, sample: int):
        return conversions.add_samples(
            conversions.ns_to_time(self._begin_ns), sample, self.scene.sample_rate)

    # -- listening ----------------------------------------------------------------------------

    def _on_events(self, message: SoundEventArray) -> None:
        if not message.events:
            return
        stamp = (conversions.time_to_ns(message.header.stamp) - self._begin_ns) / 1e9
        end = stamp + self.hop
        self.latencies.append((time.monotonic() - self._begin) - end / self.speed)
        for event in message.events:
            heard = self._ids.get(event.query_id)
            if heard is None:
                heard = next((h for h in reversed(self.heard[:self._asked])
                              if h.query.text == event.query_text), None)
                if heard is None:
                    continue  # of before this demo
                self._ids[event.query_id] = heard
                heard.blocks = self._blocks[event.query_id]
            heard.estimates.append(Estimate(
                end, float(from_rep103(event.azimuth)), event.confidence, event.active,
                np.array(event.likelihood)))

    def _on_extracted(self, message: AudioChunk) -> None:
        # By its id: the first block of a query may come before the first event that has its words.
        audio = np.frombuffer(message.samples, np.float32).reshape(-1, message.channels).T
        self._blocks[message.query_id].append((message.first_sample, audio))

    def current(self) -> Heard | None:
        """What is asked for just now."""
        asked = self.heard[:self._asked]
        return asked[-1] if asked else None
