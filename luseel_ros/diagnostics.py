"""What the node counts, and how it says so on /diagnostics."""

from __future__ import annotations

import collections
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

PERIOD = 1.0  # [s] between two reports
RECENT = 10.0  # [s] for which something that went wrong makes a WARN
LATENCIES = 1000  # newest hops whose latency is kept
PERCENTS = (50, 95, 99)
BUSY = 0.8  # real-time factor from which there is a WARN
FOREIGN_CLOCK = 60.0  # [s] of latency beyond which stamps come from another clock

OK, WARN, ERROR, STALE = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR,
                          DiagnosticStatus.STALE)


class Statistics:
    """Counts of what happened since the node was configured. Safe to use from several threads.

    Counters by name: `blocks` and `samples` received, `refused` blocks, `refused_queries`,
    `missing`, `repeated`, `dropped` and `invalid` samples, `restarts` of the stream,
    `clock_jumps`, `changes` of rate, `failed` hops, `halvings`, `reloads` of the model,
    `incompatible` publishers or subscribers, `hops`.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: collections.Counter = collections.Counter()
        self._last: dict[str, float] = {}  # monotonic time at which a counter last grew
        self._hops: collections.deque = collections.deque(maxlen=LATENCIES)
        self._arrivals: collections.deque = collections.deque(maxlen=4096)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        if number:
            with self._lock:
                self._counts[name] += number
                self._last[name] = time.monotonic()

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def recent(self, *names: str) -> list[str]:
        """Which of these counters grew lately."""
        now = time.monotonic()
        with self._lock:
            return [name for name in names if now - self._last.get(name, -1e9) <= RECENT]

    def block(self, samples: int) -> None:
        """A block of audio came."""
        now = time.monotonic()
        with self._lock:
            self._counts["blocks"] += 1
            self._counts["samples"] += samples
            self._arrivals.append((now, samples))

    def hop(self, seconds: float, processing: float, since_capture: float,
            since_arrival: float) -> None:
        """A hop of so many seconds was published, so long after its last sample."""
        self.count("hops")
        with self._lock:
            self._hops.append((seconds, processing, since_capture, since_arrival))

    def forget_latencies(self) -> None:
        """After a jump of the clock, those of before say nothing."""
        with self._lock:
            self._hops.clear()

    def arrival_rate(self) -> float:
        """Samples per second that came in the last seconds, by the steady clock; 0: too few."""
        now = time.monotonic()
        with self._lock:
            recent = [item for item in self._arrivals if now - item[0] <= RECENT]
        if len(recent) < 3 or recent[-1][0] - recent[0][0] < 0.5:
            return 0.0
        return sum(count for _, count in recent[1:]) / (recent[-1][0] - recent[0][0])

    def real_time_factor(self) -> float | None:
        """Computing time per second of audio, over the newest hops; None: there were none."""
        with self._lock:
            newest = list(self._hops)[-20:]
        if not newest:
            return None
        return sum(hop[1] for hop in newest) / sum(hop[0] for hop in newest)

    def latencies(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds from the capture and from the arrival of the last sample of each hop to its
        results."""
        with self._lock:
            hops = np.array(self._hops or np.zeros((0, 4)))
        return hops[:, 2], hops[:, 3]


@dataclass
class Report:
    """What a `DiagnosticArray` is made of.

    Attributes:
        name: full name of the node.
        state: of its lifecycle.
        statistics: see there.
        about: key and value pairs of model, audio and queries.
        sample_rate: declared by the audio [Hz]; 0: none came.
        true_rate: the rate that the stamps speak of if it is another one.
        silent: seconds since the last audio; None: it isn't listened to.
        failing: why the last hop failed; empty: it didn't.
        reduced: what the node does without because memory ran out; empty: nothing.
        queries: ids and words.
    """

    name: str
    state: str
    statistics: Statistics
    about: Mapping[str, Any] = field(default_factory=dict)
    sample_rate: int = 0
    true_rate: float | None = None
    silent: float | None = None
    patience: float = 5.0
    publishers: int = 0
    failing: str = ""
    reduced: str = ""
    queries: Mapping[str, str] = field(default_factory=dict)

    def array(self, stamp) -> DiagnosticArray:
        """The message."""
        return DiagnosticArray(header=Header(stamp=stamp), status=[
            self._status("audio", *self._audio()), self._status("model", *self._model()),
            self._status("queries", *self._queries())])

    def _status(self, part: str, level: bytes, message: str,
                values: Mapping[str, Any]) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=level, name=f"{self.name.lstrip('/')}: {part}", message=message,
            hardware_id=str(self.about.get("frame", "")),
            values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()])

    def _audio(self):
        count, rate = self.statistics, self.sample_rate
        values = {
            "topic": self.about.get("topic", ""), "type": self.about.get("audio_type", ""),
            "publishers": self.publishers, "sample rate [Hz]": rate,
            "arriving [samples/s]": round(count.arrival_rate()),
            "messages": count["blocks"], "refused messages": count["refused"],
            "gaps: missing [s]": _seconds(count["missing"], rate),
            "overlaps: repeated [s]": _seconds(count["repeated"], rate),
            "restarts": count["restarts"], "clock jumps": count["clock_jumps"],
            "changes of rate": count["changes"], "samples not finite": count["invalid"],
            "incompatible publishers or subscribers": count["incompatible"]}
        if self.silent is None:
            return STALE, f"not listening: {self.state}", values
        if self.silent > self.patience and "refused" not in count.recent("refused"):
            why = f"{self.publishers} publishers"
            if count["incompatible"] and self.publishers:
                why += ", one with another quality of service"
            return STALE, f"no audio for {self.silent:.0f} s ({why})", values
        if self.silent > self.patience:
            return ERROR, "all audio is refused; the log says why", values
        if self.true_rate is not None:
            return ERROR, (f"the audio says {rate} Hz, its stamps say {self.true_rate:.0f} Hz: "
                           "one of them is wrong"), values
        names = {"refused": "messages refused", "missing": "audio lost",
                 "repeated": "audio came twice", "restarts": "the stream started anew",
                 "clock_jumps": "the clock jumped", "changes": "the sample rate changed",
                 "invalid": "samples that are not finite",
                 "incompatible": "incompatible quality of service"}
        if recent := count.recent(*names):
            return WARN, ", ".join(names[name] for name in recent), values
        if not rate:
            return OK, "listening, no audio yet", values
        return OK, f"{rate} Hz", values

    def _model(self):
        count = self.statistics
        factor = count.real_time_factor()
        captured, arrived = count.latencies()
        values = {"state": self.state, **{
            key: self.about[key] for key in (
                "model", "takes and gives", "device", "profile", "precision", "hop [s]", "window [s]") if key in
            self.about},
            "hops": count["hops"], "failed hops": count["failed"], "reloads": count["reloads"],
            "dropped [s]": _seconds(count["dropped"], self.sample_rate),
            "real-time factor": "" if factor is None else f"{factor:.3f}",
            "reduced": self.reduced}
        for name, seconds in (("capture", captured), ("arrival", arrived)):
            seconds = seconds[np.isfinite(seconds)]
            found = np.percentile(seconds, PERCENTS) if len(seconds) else [None] * len(PERCENTS)
            for percent, value in zip(PERCENTS, found):
                values[f"latency since {name}, p{percent} [s]"] = (
                    "" if value is None else f"{value:.3f}")
        values["memory, resident [MB]"] = f"{resident_bytes() / 1e6:.0f}"
        if "gpu" in self.about:
            values["memory, GPU [MB]"] = f"{self.about['gpu'] / 1e6:.0f}"
        if self.state != "active":
            return STALE, self.state, values
        if self.failing:
            return ERROR, self.failing, values
        if factor is not None and factor >= 1:
            return ERROR, f"too slow: real-time factor {factor:.2f}; audio is dropped", values
        if self.reduced:
            return WARN, self.reduced, values
        if count.recent("dropped"):
            return WARN, "too slow: audio was dropped", values
        if count.recent("failed"):
            return WARN, "some hops failed", values
        if factor is not None and factor > BUSY:
            return WARN, f"nearly too slow: real-time factor {factor:.2f}", values
        known = captured[np.isfinite(captured)]
        if len(known) and abs(np.median(known)) > FOREIGN_CLOCK:
            return WARN, (f"stamps lie {np.median(known):.0f} s before this node's clock: is it "
                          "another clock (use_sim_time)?"), values
        if factor is None:
            return OK, "waiting for audio", values
        return OK, f"real-time factor {factor:.2f}", values

    def _queries(self):
        values = {"queries": len(self.queries), "max_queries": self.about.get("max_queries", ""),
                  "refused": self.statistics["refused_queries"], **self.queries}
        if self.state not in ("active", "inactive"):
            return STALE, self.state, values
        if self.statistics.recent("refused_queries"):
            return WARN, "a query was refused; the log says why", values
        if not self.queries:
            return OK, "no query: nothing is listened for", values
        return OK, f"{len(self.queries)} queries" if len(self.queries) > 1 else "1 query", values


class Diagnostics:
    """Publishes a report while anybody listens, in every state of the lifecycle.

    Args:
        node: that reports.
        report: gives the report.
    """

    def __init__(self, node, report):
        self._node, self._report = node, report
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def publish(self) -> None:
        """Now, if anybody listens; to be called each PERIOD."""
        if self._publisher.get_subscription_count():
            self._publisher.publish(self._report().array(self._node.get_clock().now().to_msg()))


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system doesn't tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _seconds(samples: int, rate: int) -> str:
    return f"{samples / rate:.3f}" if rate else "0"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
