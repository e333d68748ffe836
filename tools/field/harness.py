"""What the field tools share: the node in a process of its own, a client that talks to it over DDS,
and reports.

The node is the one that users start. Environment: ROS_DOMAIN_ID is used where it is set, else a
domain that nothing else on this machine uses.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "docs/reports"
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from luseel.msg import AudioChunk, SoundEventArray  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402

from luseel_ros import conversions  # noqa: E402

with contextlib.suppress(ImportError):
    from diagnostic_msgs.msg import DiagnosticArray
with contextlib.suppress(ImportError):
    from luseel.msg import Query
    from luseel.srv import SetQuery

RATE = 16000
T0 = 1_700_000_000_000_000_000  # capture time of sample 0, where no clock is asked [ns]
SOUNDS = ("dog barking", "a baby is crying", "rain", "footsteps", "a door slams", "birds singing",
          "a clock ticking", "people talking")
START_SECONDS = 600.0  # a busy machine takes minutes to import torch


class FieldError(Exception):
    """The trial itself went wrong; the message says what."""


@contextlib.contextmanager
def context():
    """An initialised rclpy context on the domain of ROS_DOMAIN_ID, or on a free one."""
    with contextlib.ExitStack() as stack:
        if "ROS_DOMAIN_ID" in os.environ:
            domain = int(os.environ["ROS_DOMAIN_ID"])
        else:
            from domain_coordinator import domain_id
            domain = int(stack.enter_context(domain_id()))
        ros = rclpy.Context()
        rclpy.init(context=ros, domain_id=domain)
        stack.callback(lambda: rclpy.try_shutdown(context=ros))
        yield ros


class NodeProcess:
    """The node, started as a user does, with its output in a file.

    Args:
        ros: the context whose domain it joins.
        log: path of the file.
        parameters: ROS parameters by name.
        threads: CPU threads of torch.
        program: what to run in place of the node's module.
    """

    def __init__(self, ros, log: Path, parameters=None, threads: int = 1, program=None):
        self.log = Path(log)
        words = [word for name, value in (parameters or {}).items()
                 for word in ("-p", f"{name}:={_ros_value(value)}")]
        env = dict(os.environ, ROS_DOMAIN_ID=str(ros.get_domain_id()),
                   OMP_NUM_THREADS=str(threads), PYTHONUNBUFFERED="1",
                   PYTHONPATH=os.pathsep.join(
                       filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        program = program or ["-m", "luseel_ros.run"]
        self._file = open(self.log, "wb")
        self.process = subprocess.Popen(
            [sys.executable, *program, "--ros-args", *words], env=env, stdout=self._file,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def output(self) -> str:
        """All that it has said."""
        return self.log.read_text(errors="replace")

    def memory(self) -> float:
        """Resident memory in MB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise FieldError("the node has ended")

    def stop(self, end=signal.SIGINT, timeout: float = 30.0) -> tuple[int, float]:
        """Signal it -> its exit status, seconds until it ended; killed after `timeout`."""
        begin = time.monotonic()
        if self.running:
            self.process.send_signal(end)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._file.close()
        return code, time.monotonic() - begin

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.running:
            self.process.kill()
            self.process.wait()
        self._file.close()


def _ros_value(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value) if isinstance(value, str) else str(value)


class Client:
    """Everything that talks to the node: microphones, a language node, a listener."""

    def __init__(self, ros, node_name: str = "/luseel"):
        self.node = rclpy.create_node("field", context=ros)
        self.executor = SingleThreadedExecutor(context=ros)
        self.executor.add_node(self.node)
        self.name = node_name
        self.audio = self.node.create_publisher(AudioChunk, "audio", 1000)
        self.words = self.node.create_publisher(String, "query", 100)
        self.set_query = self.node.create_client(SetQuery, f"{node_name}/set_query")
        self.on_event, self.on_extracted = (lambda m: None), (lambda m: None)
        self.node.create_subscription(
            SoundEventArray, f"{node_name}/events", lambda m: self.on_event(m), 1000)
        self.node.create_subscription(
            AudioChunk, f"{node_name}/extracted", lambda m: self.on_extracted(m), 1000)
        self._reports: dict[str, dict[str, str]] = {}
        if "DiagnosticArray" in globals():
            self.node.create_subscription(
                DiagnosticArray, "/diagnostics", self._on_diagnostics, QoSProfile(depth=10))

    def close(self) -> None:
        """Leave the graph."""
        self.executor.shutdown()
        self.node.destroy_node()

    def _on_diagnostics(self, message) -> None:
        for status in message.status:
            self._reports[status.name] = {item.key: item.value for item in status.values}

    @property
    def diagnostics(self) -> dict[str, str]:
        """What the node last said of itself on /diagnostics, all parts in one."""
        return {key: value for part in self._reports.values() for key, value in part.items()}

    def until(self, condition, timeout: float, step: float = 0.02) -> bool:
        """Spin until the condition holds; tells whether it does."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                return False
            self.executor.spin_once(timeout_sec=step)
        return True

    def spin_until(self, moment: float) -> None:
        """Handle what comes until that monotonic time."""
        while (rest := moment - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=min(rest, 0.05))

    def connect(self, node: NodeProcess, timeout: float = START_SECONDS) -> None:
        """Wait until the node is active and hears us."""
        def active():
            return not node.running or (
                self.audio.get_subscription_count() and self.words.get_subscription_count()
                and self.set_query.service_is_ready()
                and self.node.count_publishers(f"{self.name}/events"))
        if not self.until(active, timeout) or not node.running:
            raise FieldError(f"the node didn't become active; it said:\n{node.output[-3000:]}")

    def ask(self, service, request, timeout: float = 60.0):
        """The answer of a service, or a FieldError."""
        future = service.call_async(request)
        if not self.until(future.done, timeout):
            service.remove_pending_request(future)
            raise FieldError(f"no answer from {service.srv_name} within {timeout:g} s")
        return future.result()

    def listen_for(self, texts, prefix: str = "field") -> list[str]:
        """Replace the node's queries by these; returns their ids."""
        self.ask(self.set_query, SetQuery.Request(query=Query(action=Query.CLEAR)))
        ids = []
        for i, text in enumerate(texts):
            answer = self.ask(self.set_query, SetQuery.Request(
                query=Query(action=Query.ADD, id=f"{prefix}{i + 1}", text=text)))
            if not answer.success:
                raise FieldError(f"the query {text!r} was refused: {answer.reason}")
            ids.append(answer.id)
        return ids


class Source:
    """A microphone that repeats ten seconds of two noises, each swelling at its own pace.

    Args:
        rate: samples per second.
        chunk: seconds in a message.
        begin_ns: capture time of sample 0.
    """

    def __init__(self, rate: int = RATE, chunk: float = 0.05, begin_ns: int = T0, first: int = 0):
        self.rate, self.count, self.begin_ns = rate, round(chunk * rate), begin_ns
        self.position = first
        random = np.random.default_rng(5)
        t = np.arange(10 * rate) / rate
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * np.stack([0.5 * t, 0.7 * t]))
        tones = np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 1000 * t)])
        self._audio = (0.05 * swell * (tones + random.normal(0, 0.5, (2, len(t))))).astype(
            np.float32)

    @property
    def seconds(self) -> float:
        """How much was given out."""
        return self.position / self.rate

    def next(self) -> AudioChunk:
        """The next message."""
        index = (self.position + np.arange(self.count)) % self._audio.shape[1]
        stamp = conversions.add_samples(
            conversions.ns_to_time(self.begin_ns), self.position, self.rate)
        message = conversions.array_to_chunk(
            self._audio[:, index], self.rate, self.position, Header(stamp=stamp, frame_id="mic"))
        self.position += self.count
        return message


class Blocks:
    """Counts extracted blocks per query: are they gapless?"""

    def __init__(self):
        self.samples: collections.Counter = collections.Counter()
        self.gaps = 0
        self._next: dict[str, int] = {}

    def add(self, message: AudioChunk) -> None:
        """One message of ~/extracted."""
        count = len(message.samples) // max(1, message.channels)
        expected = self._next.get(message.query_id)
        if expected is not None and message.first_sample != expected:
            self.gaps += 1
        self._next[message.query_id] = message.first_sample + count
        self.samples[message.query_id] += count


def percentiles(values, points=(50, 95, 99)) -> dict[str, float]:
    """p50, p95, p99 and max, rounded to 0.1 ms."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return {**{f"p{p}": math.nan for p in points}, "max": math.nan}
    out = {f"p{p}": round(float(np.percentile(values, p)), 4) for p in points}
    return {**out, "max": round(float(values.max()), 4)}


def machine() -> dict[str, str | int | float]:
    """Where this was measured; the load says whether it was idle."""
    name = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return {"processor": name, "cores": len(os.sched_getaffinity(0)),
            "load_before": round(os.getloadavg()[0], 1), "python": platform.python_version()}


def where(described: dict) -> str:
    """The machine in words."""
    return (f"{described['processor']}, {described['cores']} cores; load of the machine before: "
            f"{described['load_before']}")


def threads_of(count: int) -> str:
    """The threads of the node, in words."""
    return f"the node has {count} thread{'s' * (count != 1)}"


def write_report(folder: Path, name: str, report: dict, text: str) -> None:
    """Write NAME.json and NAME.md, and print the latter."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    print(text)
    print(f"written: {folder / name}.json, .md")
