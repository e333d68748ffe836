"""How late the node's results are, with each profile and 1, 3 and 8 queries; and what streaming and
ROS cost beside the model.

    python tools/field/latency.py                  (``make latency``)
    python tools/field/latency.py --seconds 8 --profiles balanced --out .

The node runs in a process of its own and gets audio over DDS in real time, in messages of 50 ms
that are sent when their last sample has been captured. Latencies are from the capture of a sample
to the arrival of its extraction at a subscriber in another process, on one machine and so one
clock. The overhead is CPU time, measured with one thread of torch in the same run as the model's
own, so that other load on the machine changes it less: what is done in many short turns takes up to
twice as long where the caches belong to others in between. Writes latency.json and latency.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import (
    REPORTS, SOUNDS, Client, FieldError, NodeProcess, Source, context, machine, percentiles,
    threads_of, where, write_report)
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from tqdm import tqdm

from luseel_model.streaming import PROFILES
from luseel_ros import conversions

COUNTS = (1, 3, 8)
SETTLE = 3.0  # [s] after a change of profile or queries that don't count
GRID = 0.01  # [s] between two samples whose latency counts
PATIENCE = 300.0  # [s] that a busy machine may need for a run of the model
TARGET = 1.0  # [s] p99 of the output latency with the profile balanced and 3 queries
OVERHEAD = 0.1  # of the model's time
CHUNK = 0.05  # [s] in a message
CHUNKS = (0.01, 0.02, CHUNK, 0.1)


class Player:
    """Plays to the node in real time and notes when what comes back."""

    def __init__(self, client: Client, node: NodeProcess):
        self.client, self.node = client, node
        self.source = Source(begin_ns=time.time_ns())
        self.begin = time.monotonic()
        self.clear()
        client.on_event, client.on_extracted = self._on_event, self._on_extracted

    def clear(self) -> None:
        """Start to count."""
        self.audio, self.events, self.work = [], [], []

    def play(self, seconds: float) -> None:
        """Real time goes by."""
        end = self.source.seconds + seconds
        while self.source.seconds < end:
            if not self.node.running:
                raise FieldError(f"the node ended; it said:\n{self.node.output[-3000:]}")
            # a message is there when its last sample is
            self.client.spin_until(
                self.begin + self.source.seconds + self.source.count / self.source.rate)
            self.client.audio.publish(self.source.next())

    def _on_event(self, message) -> None:
        if message.events:
            now = time.time_ns()
            self.events.append((now - conversions.time_to_ns(message.header.stamp)) / 1e9)
            self.work.append(
                conversions.duration_to_ns(message.events[0].processing_time) / 1e9)

    def _on_extracted(self, message) -> None:
        oldest = (time.time_ns() - conversions.time_to_ns(message.header.stamp)) / 1e9
        length = len(message.samples) / message.channels / message.sample_rate
        self.audio.extend(oldest - np.arange(0, length, GRID))


def measure(player: Player, profile: str, queries: int, seconds: float) -> dict:
    """One row of the table."""
    client, hop = player.client, PROFILES[profile].hop
    answer = client.ask(
        client.node.create_client(SetParameters, f"{client.name}/set_parameters"),
        SetParameters.Request(parameters=[Parameter(name="profile", value=ParameterValue(
            type=ParameterType.PARAMETER_STRING, string_value=profile))]))
    if not answer.results[0].successful:
        raise FieldError(f"the profile {profile} was refused: {answer.results[0].reason}")
    client.listen_for(SOUNDS[:queries])
    player.play(SETTLE)
    player.clear()
    player.play(seconds)
    expected = seconds / hop
    return {
        "profile": profile, "queries": queries, "stated": round(PROFILES[profile].latency, 3),
        "audio_latency": percentiles(player.audio),
        # since the capture of the last sample of the hop
        "event_latency": percentiles(np.array(player.events) - hop),
        "computing": percentiles(player.work),
        "real_time_factor_p95": round(percentiles(player.work)["p95"] / hop, 3),
        # one more or less at the edges of the time
        "hops_lost": max(0, round(expected) - len(player.events) - 1)}


def table(log: Path, profiles, counts, seconds: float, parameters=None, threads: int = 2,
          progress: bool | None = None) -> list[dict]:
    """The rows of all profiles and numbers of queries."""
    rows = []
    parameters = {"profile": profiles[0], "max_queries": max(8, *counts), **(parameters or {})}
    with context() as ros, NodeProcess(ros, log, parameters, threads) as node:
        client = Client(ros)
        try:
            client.connect(node)
            player = Player(client, node)
            cases = [(profile, count) for profile in profiles for count in counts]
            for profile, count in tqdm(cases, unit="case", disable=progress is False):
                rows.append(measure(player, profile, count, seconds))
        finally:
            client.close()
        node.stop()
    return rows


def overhead(folder: Path, seconds: float, queries: int = 3, parameters=None) -> dict:
    """CPU time of the node beside the model's, in real time with the profile balanced."""
    return overheads(folder, seconds, [CHUNK], queries, parameters)[0]


def overheads(folder: Path, seconds: float, chunks, queries: int = 3, parameters=None,
              progress: bool | None = False) -> list[dict]:
    """As `overhead`, one after the other with messages of each length [s]."""
    hop = (parameters or {}).get("hop") or PROFILES["balanced"].hop
    totals = folder / "meter.json"
    program = [str(Path(__file__).with_name("metered_node.py")), str(totals)]
    with context() as ros, NodeProcess(
            ros, folder / "metered.log", parameters, threads=1, program=program) as node:
        client = Client(ros)
        try:
            client.connect(node)
            player = Player(client, node)
            client.listen_for(SOUNDS[:queries])
            costs = []
            for chunk in tqdm(chunks, unit="length", disable=progress is False):
                player.source.count = round(chunk * player.source.rate)
                player.play(SETTLE)
                before = _record(player, totals)
                player.play(seconds)
                after = _record(player, totals)
                costs.append({"chunk": chunk, **shares(before, after, queries, hop)})
        finally:
            client.close()
        node.stop()
    return costs


def _record(player: Player, path: Path) -> dict:
    """The next record of the meter; the audio goes on until it is there."""
    asked = time.monotonic()  # the same clock in all processes
    while True:
        player.play(0.2)
        if path.exists() and (record := json.loads(path.read_text()))["time"] > asked and (
                record["calls"]["model"]):
            return record
        if time.monotonic() - asked > PATIENCE:
            raise FieldError(f"the model didn't run within {PATIENCE:g} s")


def shares(before: dict, after: dict, queries: int, hop: float) -> dict:
    """Of the CPU time between two records of the meter, as shares of the model's."""
    model, stream, push, process, seconds = (
        after[key] - before[key] for key in ("model", "stream", "push", "process", "time"))
    runs = after["calls"]["model"] - before["calls"]["model"]
    if not runs or model <= 0:
        raise FieldError("the model didn't run")
    # On a machine too busy for real time hops are dropped: as much as all of them would have taken.
    whole = model / runs * seconds / hop
    threads = {name: took - before.get("threads", {}).get(name, 0.0)
               for name, took in after.get("threads", {}).items()}
    parts = {  # milliseconds in a second
        "model": model, "streaming": stream - model + push,
        "audio": threads.pop("audio", push) - push,
        "results": threads.pop("inference", stream) - stream, "dds": threads.pop("dds", 0.0),
        "others": sum(threads.values())}
    return {
        "parts": {name: round(1e3 * took / seconds, 2) for name, took in parts.items()},
        "queries": queries, "seconds": round(seconds, 2), "runs": runs,
        "hops_lost": max(0, round(seconds / hop) - runs - 1),
        "model_cpu": round(model, 3), "model_cpu_of_all_hops": round(whole, 3),
        "streaming_cpu": round(stream - model + push, 3),
        "ros_cpu": round(process - stream - push, 3),
        "streaming": round((stream - model + push) / whole, 4),
        "ros": round((process - stream - push) / whole, 4),
        "total": round((process - model) / whole, 4)}


def markdown(report: dict) -> str:
    """The report, to read."""
    cost = report["overhead"]
    lines = [
        "# Latency", "",
        f"{where(report['machine'])}; {threads_of(report['threads'])}. Audio in real time over "
        f"DDS, {report['seconds']:g} s for each row.", "",
        "Extracted audio: seconds from the capture of a sample to the arrival of its extraction. "
        "Events: seconds from the capture of the last sample of a hop to the arrival of its event. "
        "Stated: hop + cross-fade + look-ahead, the longest wait without computing; a message's "
        "50 ms and the computing time come on top.", "",
        "| profile | queries | stated [s] | audio p50 / p95 / p99 [s] | events p50 / p99 [s] | "
        "computing p50 / p95 [ms] | of the hop, p95 | hops lost |",
        "|---|---|---|---|---|---|---|---|"]
    for row in report["rows"]:
        audio, event, work = row["audio_latency"], row["event_latency"], row["computing"]
        lines.append(
            f"| {row['profile']} | {row['queries']} | {row['stated']:g} | {audio['p50']:.2f} / "
            f"{audio['p95']:.2f} / {audio['p99']:.2f} | {event['p50']:.3f} / {event['p99']:.3f} | "
            f"{1e3 * work['p50']:.0f} / {1e3 * work['p95']:.0f} | "
            f"{row['real_time_factor_p95']:.0%} | {row['hops_lost']} |")
    if cost:
        lines += [
            "", f"Overhead, balanced, {cost['queries']} queries, one thread, real time for "
            f"{cost['seconds']:g} s: the model takes {cost['model_cpu_of_all_hops']:g} s of CPU "
            f"({cost['runs']} runs measured, {cost['hops_lost']} hops lost); streaming "
            f"{cost['streaming_cpu']:g} s ({cost['streaming']:.1%} of that), ROS and "
            f"all else {cost['ros_cpu']:g} s ({cost['ros']:.1%}), together "
            f"{cost['total']:.1%}."]
    if costs := report.get("overheads"):
        lines += [
            "", "The same with messages of other lengths; milliseconds of CPU time in a second, of "
            "which the thread that takes the audio, making and sending of results, DDS's threads, "
            "and the rest (timers, services, diagnostics):", "",
            "| message [ms] | the model | streaming | audio | results | DDS | the rest | together, "
            "of the model's |", "|---|---|---|---|---|---|---|---|"]
        for row in costs:
            lines.append(
                f"| {1e3 * row['chunk']:g} | " + " | ".join(
                    f"{row['parts'][name]:.1f}" for name in
                    ("model", "streaming", "audio", "results", "dds", "others"))
                + f" | {row['total']:.1%} |")
    lines += ["", "All targets met." if not report["failed"] else
              "MISSED: " + "; ".join(report["failed"])]
    return "\n".join(lines) + "\n"


def misses(report: dict) -> list[str]:
    """Which targets were missed."""
    failed = []
    for row in report["rows"]:
        if row["profile"] == "balanced" and row["queries"] <= 3:
            if not row["audio_latency"]["p99"] < TARGET:
                failed.append(f"balanced, {row['queries']} queries: p99 of the audio's latency "
                              f"{row['audio_latency']['p99']:.2f} s")
            if not row["real_time_factor_p95"] < 1 or row["hops_lost"]:
                failed.append(f"balanced, {row['queries']} queries: not in real time")
    if report["overhead"] and report["overhead"]["total"] >= OVERHEAD:
        failed.append(f"overhead {report['overhead']['total']:.1%}")
    return failed


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each row (default: 30)")
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES), choices=list(PROFILES))
    parser.add_argument("--queries", nargs="+", type=int, default=list(COUNTS),
                        choices=range(1, len(SOUNDS) + 1), metavar="N", help="default: 1 3 8")
    parser.add_argument("--overhead-seconds", type=float, default=60.0,
                        help="with messages of each length; 0 leaves it out (default: 60)")
    parser.add_argument("--model", default="", help="checkpoint (default: the shipped)")
    parser.add_argument("--threads", type=int, default=2, help="of the node (default: 2)")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    args = parser.parse_args(argv)
    report = {"machine": machine(), "threads": args.threads, "seconds": args.seconds}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder, model = Path(name), {"model": args.model}
            report["rows"] = table(folder / "node.log", args.profiles, args.queries, args.seconds,
                                   model, args.threads)
            report["overhead"] = None
            if args.overhead_seconds:
                report["overheads"] = overheads(
                    folder, args.overhead_seconds, CHUNKS, parameters=model, progress=None)
                report["overhead"] = next(
                    cost for cost in report["overheads"] if cost["chunk"] == CHUNK)
    except FieldError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    report["failed"] = misses(report)
    write_report(args.out, "latency", report, markdown(report))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
