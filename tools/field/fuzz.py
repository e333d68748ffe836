"""Random and malformed messages against the node: does anything stop it?

    python tools/field/fuzz.py                     (``make fuzz``)
    python tools/field/fuzz.py --messages 500 --seed 7 --only audio,bytes

The node runs in a process of its own and gets messages of the classes in CLASSES over DDS. What is
sent follows from the seed alone. Every CHECK messages, and at the end, it must answer a valid query
on valid audio: an event and gapless extracted audio under that query's id. Writes fuzz.json and
fuzz.md with the counts per class and the node's own counters. Exit status 1: a check failed.
"""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import math
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration, Time
from harness import (
    REPORTS, SOUNDS, T0, Blocks, Client, FieldError, NodeProcess, Source, context, machine, where,
    write_report)
from luseel.msg import AudioChunk, Query
from luseel.srv import SetQuery
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from std_msgs.msg import Float64, Header, String
from tqdm import tqdm

CHECK = 1000  # messages between two checks that the node still answers
PACED = 25  # messages between two calls of a service, which let the node keep up
ANSWER_SECONDS = 300.0  # a busy machine may take long
AGAIN = 5.0  # [s] after which a query is set again: a queued message may have replaced it

FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-45, 3.4e38, -3.4e38, 4e9, 1e300)
RATES = (0, 1, 7, 3999, 4000, 8000, 16000, 44100, 48000, 384000, 384001, 2**31, 2**32 - 1)
COUNTS = (0, 1, 2, 3, 7, 64, 320, 1601, 1600, 16000, 96000)
WORDS = ("", " ", "\n\t", "dog", "dog barking", "x" * 257, "x" * 60000, "ß" * 256, "🐕" * 300,
         "a\x01b", "\u202edog", "\ufeff", "'; DROP TABLE", "../../etc/passwd", "%s%n", "{0}",
         "e\u0301" * 90, "q1", "where is the baby?")
IDS = ("", "q1", "q2", "a", "A_b_c", "1a", "_a", "a__b", "a/b", "~", "/", "a b", "é", "x" * 64,
       "x" * 65, "x" * 5000, "luseel", "\n")
FRAMES = ("mic", "", "/mic", "no such frame", "x" * 3000, "🎤")


class Fuzz:
    """All the ways to be wrong, drawn from one seed.

    Args:
        client: talks to the node.
        stranger: a ROS node in another context, for topics of other types.
        seed: of all that is random.
        only: classes to draw from; None: all.
    """

    def __init__(self, client: Client, stranger, seed: int, only=None):
        self.client, self.random = client, random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.sent: collections.Counter = collections.Counter()
        self.refused: collections.Counter = collections.Counter()
        self.accepted: collections.Counter = collections.Counter()
        node, name = client.node, client.name
        best = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        latched = QoSProfile(depth=5, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.audio_best = node.create_publisher(AudioChunk, "audio", best)
        self.query = node.create_publisher(Query, f"{name}/set_query", 100)
        self.latched_words = node.create_publisher(String, "query", latched)
        self.latched_query = node.create_publisher(Query, f"{name}/set_query", latched)
        self.wrong = []
        for kind, topic in ((String, "audio"), (Float64, "query"), (String, f"{name}/set_query"),
                            (String, f"{name}/extracted"), (Float64, f"{name}/events")):
            self.wrong.append((kind, stranger.create_publisher(kind, topic, 10)))
        self.set_parameters = node.create_client(SetParameters, f"{name}/set_parameters")
        self.get_parameters = node.create_client(GetParameters, f"{name}/get_parameters")
        self.list_parameters = node.create_client(ListParameters, f"{name}/list_parameters")
        self.names: list[str] = []
        self.position = 0
        self.classes = [kind for kind in CLASSES if only is None or kind in only]
        self.weights = [CLASSES[kind] for kind in self.classes]

    def one(self) -> None:
        """Send one message of a random class."""
        kind = self.random.choices(self.classes, self.weights)[0]
        getattr(self, kind)()
        self.sent[kind] += 1

    def pause(self) -> None:
        """Let the node catch up: it has answered a service."""
        self.client.ask(self.get_parameters, GetParameters.Request(names=["hop"]), ANSWER_SECONDS)

    # -- parts -------------------------------------------------------------------------------

    def pick(self, choices):
        return self.random.choice(choices)

    def stamp(self) -> Time:
        """In the past, in the future, none, or the end of time."""
        return self.pick((
            Time(), Time(sec=2**31 - 1, nanosec=999_999_999), Time(sec=-2**31),
            Time(sec=1, nanosec=2**32 - 1),
            Time(sec=int(time.time()) + self.random.randint(-10**6, 10**6)),
            Time(sec=T0 // 10**9, nanosec=self.random.randrange(10**9))))

    def samples(self, count: int) -> array.array:
        """Noise, with what no sound has in some places."""
        values = self.numbers.normal(0, 0.1, count).astype(np.float32)
        if count and self.random.random() < 0.5:
            places = self.numbers.integers(0, count, max(1, count // 10))
            with np.errstate(over="ignore"):
                values[places] = np.float32(self.pick(FLOATS))
        return array.array("f", values.tobytes())

    def words(self) -> str:
        if self.random.random() < 0.7:
            return self.pick(WORDS)
        return "".join(chr(self.pick((
            self.random.randrange(1, 128), self.random.randrange(128, 0xd800),
            self.random.randrange(0xe000, 0x110000)))) for _ in range(self.random.randrange(400)))

    def some_query(self) -> Query:
        return Query(
            action=self.pick((Query.ADD,) * 4 + (Query.REMOVE,) * 2
                             + (Query.CHANGE, Query.CLEAR, 4, 77, 255)),
            id=self.pick(IDS), text=self.words(),
            threshold=float(np.float32(self.pick((0.0, 0.5, 1.0, *FLOATS[:-1])))),
            lifetime=self.pick((
                Duration(), Duration(sec=-1), Duration(sec=-2**31), Duration(sec=2**31 - 1),
                Duration(nanosec=1), Duration(nanosec=2**32 - 1), Duration(sec=1),
                Duration(sec=-1, nanosec=999_999_999))))

    # -- classes: each method sends one message ------------------------------------------------

    def audio(self) -> None:
        """Chunks of any size, rate, channels, numbering, stamp and content."""
        count = self.pick(COUNTS)
        first = self.pick((
            self.position, self.position, 0, 1, 2**64 - 1, 2**63, self.position + 5,
            max(0, self.position - 1000), self.random.randrange(2**64)))
        message = AudioChunk(
            header=Header(stamp=self.stamp(), frame_id=self.pick(FRAMES)), first_sample=first,
            sample_rate=self.pick(RATES), channels=self.pick((0, 1, 2, 2, 2, 3, 8, 65535)),
            samples=self.samples(count), query_id=self.pick(("", "", "", "", "q1", "x" * 1000)))
        self.position = min(first + count // 2, 2**63)
        self.pick((self.client.audio, self.audio_best)).publish(message)

    def nearly(self) -> None:
        """Audio with a single thing wrong, or nothing."""
        message = AudioChunk(
            header=Header(stamp=Time(sec=T0 // 10**9), frame_id="mic"),
            first_sample=self.position, sample_rate=16000, channels=2, samples=self.samples(1600))
        self.position = min(self.position + 800, 2**63)
        for name, value in (self.pick((
                ("sample_rate", self.pick(RATES)), ("channels", self.pick((0, 1, 3))),
                ("first_sample", self.random.randrange(2**64)), ("query_id", "q1"),
                ("samples", self.samples(self.pick(COUNTS))),
                ("header", Header(stamp=self.stamp())), ("query_id", ""))),):
            setattr(message, name, value)
        self.client.audio.publish(message)

    def text(self) -> None:
        """Words on the topic query."""
        self.pick((self.client.words, self.client.words, self.latched_words)).publish(
            String(data=self.words()))

    def message(self) -> None:
        """Query messages: any id, action, threshold and lifetime."""
        self.pick((self.query, self.query, self.latched_query)).publish(self.some_query())

    def service(self) -> None:
        """The same through the service, which must give a reason when it refuses."""
        answer = self.client.ask(self.client.set_query, SetQuery.Request(query=self.some_query()),
                                 ANSWER_SECONDS)
        (self.accepted if answer.success else self.refused)["service"] += 1
        if not answer.success and not answer.reason:
            raise FieldError("a query was refused without a reason")

    def rapid(self) -> None:
        """Add and remove the same queries as fast as possible."""
        for _ in range(20):
            number = self.random.randrange(12)
            self.query.publish(Query(
                action=self.pick((Query.ADD, Query.REMOVE)), id=f"r{number}",
                text=SOUNDS[number % len(SOUNDS)]))

    def types(self) -> None:
        """Other types under the names of the node's topics."""
        kind, publisher = self.pick(self.wrong)
        publisher.publish(kind(data=self.words() if kind is String else self.pick(FLOATS)))

    def bytes(self) -> None:
        """Serialized messages with bytes flipped, cut off, or made up."""
        good, publisher = self.pick((
            (AudioChunk(sample_rate=16000, channels=2, samples=self.samples(64)),
             self.client.audio),
            (String(data="dog barking"), self.client.words),
            (Query(id="q1", text="dog barking"), self.query)))
        data = bytearray(serialize_message(good))
        how = self.random.randrange(4)
        if how == 0:
            for _ in range(self.random.randrange(1, 6)):
                data[self.random.randrange(len(data))] = self.random.randrange(256)
        elif how == 1:
            del data[self.random.randrange(4, len(data)):]
        elif how == 2:
            data[4:] = self.random.randbytes(self.random.randrange(200))
        else:  # a length that isn't there
            at = self.random.randrange(4, len(data) - 3)
            data[at:at + 4] = (2**32 - 1 - self.random.randrange(3)).to_bytes(4, "little")
        publisher.publish(bytes(data))

    def parameter(self) -> None:
        """Parameters of random value and type; refusals must have a reason."""
        if not self.names:
            answer = self.client.ask(self.list_parameters, ListParameters.Request(),
                                     ANSWER_SECONDS)
            self.names = sorted(answer.result.names)
        value = self.pick((
            ParameterValue(type=ParameterType.PARAMETER_DOUBLE,
                           double_value=self.pick((0.25, 0.5, *FLOATS))),
            ParameterValue(type=ParameterType.PARAMETER_INTEGER,
                           integer_value=self.pick((0, 1, 4, -1, 2**63 - 1, -2**63))),
            ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=self.words()),
            ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=self.pick((
                "balanced", "low_latency", "accurate", "float32", "bfloat16", "reliable"))),
            ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=True),
            ParameterValue(type=ParameterType.PARAMETER_NOT_SET),
            ParameterValue(type=ParameterType.PARAMETER_DOUBLE_ARRAY, double_array_value=[1.0])))
        name = self.pick(self.names) if self.random.random() < 0.95 else self.words()
        result = self.client.ask(self.set_parameters, SetParameters.Request(
            parameters=[Parameter(name=name, value=value)]), ANSWER_SECONDS).results[0]
        (self.accepted if result.successful else self.refused)["parameter"] += 1
        if not result.successful and not result.reason:
            raise FieldError(f"the parameter {name!r} was refused without a reason")


# class: how often, relative to the others
CLASSES = {"audio": 30, "nearly": 15, "text": 12, "message": 15, "service": 6, "rapid": 2,
           "types": 4, "bytes": 8, "parameter": 8}


@contextlib.contextmanager
def stranger_on(domain: int):
    """A ROS node in a context of its own: in one context, a topic has one type only."""
    ros = rclpy.Context()
    rclpy.init(context=ros, domain_id=domain)
    try:
        yield rclpy.create_node("stranger", context=ros)
    finally:
        rclpy.try_shutdown(context=ros)


def answers(client: Client, node: NodeProcess, number: int) -> float:
    """Ask a valid query on valid audio -> seconds until its event and extracted audio came.

    Raises:
        FieldError: they didn't.
    """
    begin = asked = time.monotonic()
    query_id = client.listen_for([SOUNDS[0]], prefix=f"check{number}n")[0]
    heard, blocks = [], Blocks()

    def on_event(message):
        heard.extend(e for e in message.events if e.query_id == query_id)

    def on_extracted(message):
        if message.query_id == query_id:
            blocks.add(message)

    client.on_event, client.on_extracted = on_event, on_extracted
    # far from all that was sent before: the stream starts anew
    source = Source(begin_ns=T0, first=(number + 1) * 10_000_000)

    def answered():
        return len(heard) >= 2 and blocks.samples[query_id] >= source.rate // 2

    while not answered():
        client.audio.publish(source.next())
        client.until(answered, source.count / source.rate)
        if not node.running:
            raise FieldError(f"the node ended; it said:\n{node.output[-3000:]}")
        if not heard and time.monotonic() - asked > AGAIN:  # an earlier message came after it
            client.listen_for([SOUNDS[0]], prefix=f"check{number}n")
            asked = time.monotonic()
        if time.monotonic() - begin > ANSWER_SECONDS:
            raise FieldError(
                f"no answer to a valid query within {ANSWER_SECONDS:g} s: {len(heard)} events, "
                f"{blocks.samples[query_id]} samples; the node said:\n{node.output[-3000:]}")
    client.on_event = client.on_extracted = lambda message: None
    event = heard[-1]
    if event.query_text != SOUNDS[0] or not 0 <= event.confidence <= 1 or blocks.gaps:
        raise FieldError(f"a wrong answer: {event.query_text!r}, confidence {event.confidence}, "
                         f"{blocks.gaps} gaps")
    return time.monotonic() - begin


def run(messages: int, seed: int, log: Path, only=None, parameters=None, program=None,
        check: int = CHECK, progress: bool | None = None) -> dict:
    """Do it -> the report.

    Raises:
        FieldError: the node couldn't be started.
    """
    described = machine()
    parameters = {"audio_reliability": "reliable", "audio_depth": 10000, "hop": 0.25,
                  **(parameters or {})}
    with context() as ros, NodeProcess(ros, log, parameters, program=program) as node, \
            stranger_on(ros.get_domain_id()) as stranger:
        client = Client(ros)
        fuzz, failed, waits, memory = None, [], [], []
        begin = time.monotonic()
        try:
            client.connect(node)
            waits.append(answers(client, node, 0))
            memory.append(node.memory())
            fuzz = Fuzz(client, stranger, seed, only)
            for number in tqdm(range(1, messages + 1), unit="message", disable=progress is False):
                fuzz.one()
                if number % PACED == 0:
                    fuzz.pause()
                if number % check == 0 or number == messages:
                    waits.append(answers(client, node, number))
                    memory.append(node.memory())
            client.until(lambda: False, 1.5)  # a last report of the node
        except FieldError as error:
            if fuzz is None:
                raise
            failed.append(f"after {sum(fuzz.sent.values())} messages: {error}")
        finally:
            client.close()
        code, seconds = node.stop()
        said = node.output
    if code:
        failed.append(f"exit status {code}")
    if "Traceback" in said:
        failed.append(f"{said.count('Traceback')} tracebacks, the first:\n"
                      + said[said.index("Traceback"):][:3000])
    return {
        "machine": described, "seed": seed, "messages": sum(fuzz.sent.values()),
        "wall_minutes": round((time.monotonic() - begin) / 60, 2),
        "classes": {kind: {"sent": fuzz.sent[kind], "what": getattr(Fuzz, kind).__doc__,
                           **({"accepted": fuzz.accepted[kind], "refused": fuzz.refused[kind]}
                              if kind in ("service", "parameter") else {})}
                    for kind in fuzz.classes},
        "checks": len(waits), "answer_seconds": [round(w, 2) for w in waits],
        "memory_mb": [round(m, 1) for m in memory], "exit_status": code,
        "exit_seconds": round(seconds, 2), "node": dict(client.diagnostics), "failed": failed}


def markdown(report: dict) -> str:
    """The report, to read."""
    lines = [
        "# Fuzz", "",
        f"{where(report['machine'])}. {report['messages']} messages with seed {report['seed']} in "
        f"{report['wall_minutes']:g} minutes; a valid query on valid audio was answered "
        f"{report['checks']} times (before, every so often, and after), within "
        f"{max(report['answer_seconds']):g} s at most. Memory of the node: "
        f"{report['memory_mb'][0]:g} MB before, {report['memory_mb'][-1]:g} MB after. It ended on "
        f"SIGINT with status {report['exit_status']} after {report['exit_seconds']:g} s.", "",
        "| class | sent | what |", "|---|---|---|"]
    for kind, row in report["classes"].items():
        more = (f" ({row['accepted']} accepted, {row['refused']} refused with a reason)"
                if "refused" in row else "")
        lines.append(f"| {kind} | {row['sent']} | {row['what']}{more} |")
    if report["node"]:
        lines += ["", "What the node counted:", "", "| counter | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in report["node"].items()]
    lines += ["", "All checks passed." if not report["failed"] else
              "FAILED: " + "; ".join(report["failed"])]
    return "\n".join(lines) + "\n"


def _cell(value: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in value).replace("|", "/")
    return text if len(text) <= 60 else text[:57] + "..."


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=10000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--only", help=f"classes, with commas between: {', '.join(CLASSES)}")
    parser.add_argument("--model", default="", help="checkpoint (default: the shipped)")
    parser.add_argument("--log", type=Path, help="keep the node's output in this file")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    args = parser.parse_args(argv)
    only = args.only.split(",") if args.only else None
    if unknown := set(only or ()) - set(CLASSES):
        parser.error(f"no class {', '.join(sorted(unknown))}: {', '.join(CLASSES)}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = run(args.messages, args.seed, args.log or Path(folder) / "node.log", only,
                         {"model": args.model})
    except FieldError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 1
    write_report(args.out, "fuzz", report, markdown(report))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
