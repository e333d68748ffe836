"""Half an hour of audio through the node: is anything lost, does memory grow, is it fast enough?

    python tools/field/soak.py                     (``make soak``)
    python tools/field/soak.py --minutes 2 --out .

The node runs in a process of its own and gets audio over DDS as fast as it keeps up (never more
than AHEAD seconds wait, less than it may buffer; with --pace 1 in real time). Counted are the
events (one per hop, none left out), the extracted samples of each query (gapless), the node's
memory and its own counters. Writes soak.json, soak.md and soak.png. Exit status 1: a check failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import (
    REPORTS, SOUNDS, T0, Blocks, Client, FieldError, NodeProcess, Source, context, machine,
    percentiles, threads_of, where, write_report)
from tqdm import tqdm

from luseel_model.streaming import find_profile
from luseel_ros import conversions

AHEAD = 1.0  # [s] of audio beyond the last event that may be on its way; besides, two hops
SAMPLE_PERIOD = 2.0  # [s] between two looks at the memory
STALLED = 300.0  # [s] without an event that a busy machine may need
SETTLED = 0.2  # share of the run after which memory should no longer grow
FLAT = 16.0  # [MB] by which it may


class Soak:
    """One run.

    Args:
        minutes: of audio.
        queries: how many at once.
        profile: of the node.
        rate: of the audio, Hz.
        chunk: seconds in a message.
        pace: seconds of wall time per second of audio; 0: as fast as the node keeps up.
        parameters: more ROS parameters for the node.
        threads: CPU threads of the node.
        program: in place of the node's, see `NodeProcess`.
    """

    def __init__(self, minutes: float, queries: int = 3, profile: str = "balanced",
                 rate: int = 16000, chunk: float = 0.05, pace: float = 0.0, parameters=None,
                 threads: int = 2, program=None):
        self.minutes, self.profile, self.pace, self.rate = minutes, profile, pace, rate
        self.texts = SOUNDS[:queries]
        self.chunk, self.threads, self.program = chunk, threads, program
        self.parameters = {"profile": profile, "audio_reliability": "reliable",
                           "audio_depth": 1000, "max_queries": max(8, queries),
                           **(parameters or {})}
        self.hop = self.parameters.get("hop") or find_profile(profile).hop

    def run(self, log: Path, progress: bool | None = None) -> dict:
        """Do it -> the report."""
        described = machine()
        with context() as ros, NodeProcess(
                ros, log, self.parameters, self.threads, self.program) as node:
            client = Client(ros)
            try:
                client.connect(node)
                ids = client.listen_for(self.texts)
                report = self._play(client, node, ids, progress)
                client.until(lambda: False, 1.5)  # a last report of the node
                report["node"] = dict(client.diagnostics)
            finally:
                client.close()
            code, seconds = node.stop()
            said = node.output
        report.update(
            machine=described, exit_status=code, exit_seconds=round(seconds, 2),
            tracebacks=said.count("Traceback"),
            warnings=sum(line.startswith("[WARN]") or " [WARN] " in line
                         for line in said.splitlines()))
        report["failed"] = self._failures(report)
        return report

    def _play(self, client: Client, node: NodeProcess, ids, progress) -> dict:
        source, blocks = Source(self.rate, self.chunk), Blocks()
        starts, work, memory = [], [], []

        def on_event(message):
            if message.events:
                starts.append(conversions.time_to_ns(message.header.stamp))
                work.append(conversions.duration_to_ns(message.events[0].processing_time) / 1e9)

        client.on_event, client.on_extracted = on_event, blocks.add
        total = round(self.minutes * 60 / self.chunk)
        begin = last = looked = time.monotonic()
        heard, slowest = 0, 0.0
        bar = tqdm(total=round(self.minutes * 60), unit="s", desc="audio",
                   disable=progress is False)
        for number in range(total):
            client.audio.publish(source.next())
            client.executor.spin_once(timeout_sec=0)
            while True:
                now = time.monotonic()
                if len(starts) > heard:
                    heard, last = len(starts), now
                done = (starts[-1] - T0) / 1e9 + self.hop if starts else 0.0
                waiting = source.seconds - done
                due = begin + source.seconds * self.pace
                if self.pace and now >= due or not self.pace and waiting < AHEAD + 2 * self.hop:
                    break
                client.executor.spin_once(timeout_sec=0.02)
                if not node.running:
                    raise FieldError(f"the node ended; it said:\n{node.output[-3000:]}")
                if now - last > STALLED:
                    raise FieldError(f"no event for {STALLED:g} s at {source.seconds:.1f} s of "
                                     f"audio; the node said:\n{node.output[-3000:]}")
            slowest = max(slowest, waiting)
            if now - looked > SAMPLE_PERIOD or not number:
                looked = now
                memory.append((now - begin, source.seconds, node.memory()))
                bar.update(round(source.seconds) - bar.n)
        expected = int(source.seconds / self.hop + 1e-9)
        client.until(lambda: len(starts) >= expected, 60)
        client.until(lambda: False, 0.5)
        wall = time.monotonic() - begin
        bar.close()
        memory.append((wall, source.seconds, node.memory()))
        gaps = np.diff(np.array(starts)) / 1e9
        skipped = int(np.round(gaps / self.hop - 1).sum()) if len(gaps) else 0
        return {
            "audio_minutes": round(source.seconds / 60, 3), "wall_minutes": round(wall / 60, 3),
            "speed": round(source.seconds / wall, 2), "profile": self.profile, "hop": self.hop,
            "queries": len(ids), "sample_rate": self.rate, "threads": self.threads,
            "pace": self.pace, "messages": total,
            "hops_expected": expected, "hops": len(starts),
            "first_hop_late": round((starts[0] - T0) / 1e9, 3) if starts else None,
            "hops_skipped": skipped, "gaps_in_extracted": blocks.gaps,
            "extracted_seconds": {k: round(blocks.samples[k] / self.rate, 3) for k in ids},
            "processing_seconds": percentiles(work),
            "real_time_factor": {k: round(v / self.hop, 3) for k, v in percentiles(work).items()},
            "most_waiting_seconds": round(slowest, 3), "memory_mb": _memory(memory),
            "memory_over_time": [[round(v, 2) for v in row] for row in memory],
        }

    def _failures(self, report: dict) -> list[str]:
        """What the checks found."""
        failed, seconds = [], report["audio_minutes"] * 60
        if report["hops"] != report["hops_expected"] or report["hops_skipped"]:
            failed.append(f"{report['hops']} hops of {report['hops_expected']} came, "
                          f"{report['hops_skipped']} were skipped")
        if report["gaps_in_extracted"]:
            failed.append(f"{report['gaps_in_extracted']} gaps in the extracted audio")
        least = seconds - find_profile(self.profile).latency - self.hop - 0.3
        short = {k: v for k, v in report["extracted_seconds"].items() if v < least}
        if short:
            failed.append(f"extracted audio is short of {least:.1f} s: {short}")
        if report["memory_mb"]["growth"] > FLAT:
            failed.append(f"memory grew by {report['memory_mb']['growth']} MB")
        if report["exit_status"] != 0:
            failed.append(f"exit status {report['exit_status']}")
        if report["tracebacks"]:
            failed.append(f"{report['tracebacks']} tracebacks in the log")
        return failed


def _memory(rows) -> dict:
    """Start, end, and the growth from the median of a fifth after settling to that of the last."""
    values = np.array([row[2] for row in rows])
    part = max(1, int(len(values) * SETTLED))
    settled = np.median(values[part:2 * part]) if len(values) > 2 * part else values[0]
    return {"start": round(float(values[0]), 1), "end": round(float(values[-1]), 1),
            "most": round(float(values.max()), 1), "settled": round(float(settled), 1),
            "growth": round(float(np.median(values[-part:]) - settled), 1)}


def markdown(report: dict) -> str:
    """The report, to read."""
    memory, factor = report["memory_mb"], report["real_time_factor"]
    extracted = ", ".join(f"{v:g} s" for v in report["extracted_seconds"].values())
    pace = (f"{report['pace']:g} s per second" if report["pace"] else
            f"as fast as the node keeps up, {report['speed']:g} times real time")
    lines = [
        "# Soak", "",
        f"{where(report['machine'])}; {threads_of(report['threads'])}. "
        f"{report['audio_minutes']:g} minutes of audio at {report['sample_rate']} Hz in "
        f"{report['messages']} messages, {report['queries']} queries, profile "
        f"{report['profile']}, played {pace}, in {report['wall_minutes']:g} minutes.", "",
        "| what | measured |", "|---|---|",
        f"| events, one per hop of {report['hop']:g} s | {report['hops']} of "
        f"{report['hops_expected']}, {report['hops_skipped']} skipped |",
        f"| gaps in the extracted audio | {report['gaps_in_extracted']} |",
        f"| extracted audio per query | {extracted} |",
        f"| memory of the node | {memory['start']:g} MB at the start, {memory['settled']:g} "
        f"settled, {memory['end']:g} at the end: {memory['growth']:+g} MB |",
        f"| computing time over hop, p50 / p95 / p99 | {factor['p50']:.1%} / {factor['p95']:.1%} / "
        f"{factor['p99']:.1%} |",
        f"| end on SIGINT | status {report['exit_status']} after {report['exit_seconds']:g} s |",
        f"| tracebacks, warnings in the log | {report['tracebacks']}, {report['warnings']} |", "",
        "All checks passed." if not report["failed"] else "FAILED: " + "; ".join(report["failed"])]
    return "\n".join(lines) + "\n"


def plot(report: dict, path: Path) -> None:
    """Memory against the audio played."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = np.array(report["memory_over_time"])
    figure, axes = pyplot.subplots(figsize=(6, 2.6), layout="constrained")
    axes.plot(rows[:, 1] / 60, rows[:, 2])
    axes.set(xlabel="audio played [min]", ylabel="memory of the node [MB]",
             ylim=(0, 1.15 * rows[:, 2].max()))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of audio (default: 30)")
    parser.add_argument("--queries", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--profile", default="balanced", help="default: %(default)s")
    parser.add_argument("--rate", type=int, default=16000, help="Hz (default: %(default)s)")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds of wall time per second "
                        "of audio; 0 (default): as fast as the node keeps up")
    parser.add_argument("--model", default="", help="checkpoint (default: the shipped)")
    parser.add_argument("--threads", type=int, default=2, help="of the node (default: 2)")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    args = parser.parse_args(argv)
    soak = Soak(args.minutes, args.queries, args.profile, args.rate, pace=args.pace,
                parameters={"model": args.model}, threads=args.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = soak.run(Path(folder) / "node.log")
    except FieldError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    write_report(args.out, "soak", report, markdown(report))
    plot(report, args.out / "soak.png")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
