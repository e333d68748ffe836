"""How long the node's process lives after SIGINT and SIGTERM, whatever it is doing.

    python tools/field/signals.py
    python tools/field/signals.py --times 2 --out .

The node runs in a process of its own, as users start it. It is stopped while it hears audio over
DDS and the model runs nearly all the time (a hop of 0.1 s), and while it loads the model. What is
measured is the time from the signal to the end of the process. Writes signals.json and signals.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from harness import (
    REPORTS, SOUNDS, START_SECONDS, Client, FieldError, NodeProcess, Source, context, machine,
    where, write_report)
from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SITUATIONS = {"active": "it is active: 3 queries, audio, the model runs",
              "loading": "it loads the model"}
TARGET = 1.0  # [s]
BUSY = 2.0  # [s] of audio before the signal


def listening(client: Client, node: NodeProcess, phase: float) -> None:
    """Have it work for a while; `phase` in [0, 1) says where in a hop the signal will come."""
    client.connect(node)
    client.listen_for(SOUNDS[:3])
    events = []
    client.on_event = events.append
    source, begin = Source(begin_ns=time.time_ns()), time.monotonic()
    while source.seconds < BUSY or not events:
        if not node.running or source.seconds > START_SECONDS:
            raise FieldError(f"no events came; the node said:\n{node.output[-3000:]}")
        client.spin_until(begin + source.seconds + source.count / source.rate)
        client.audio.publish(source.next())
    client.spin_until(time.monotonic() + 0.1 * phase)


def loading(client: Client, node: NodeProcess, phase: float) -> None:
    """Wait until it is there but doesn't listen yet."""
    if not client.until(lambda: not node.running or client.node.count_publishers("/diagnostics"),
                        START_SECONDS) or not node.running:
        raise FieldError(f"the node didn't start; it said:\n{node.output[-3000:]}")
    client.spin_until(time.monotonic() + 0.3 * phase)


def once(situation: str, number: signal.Signals, phase: float, parameters=None) -> dict:
    """One start and one end."""
    parameters = {"hop": 0.1, "device": "cpu", **(parameters or {})}
    with tempfile.TemporaryDirectory() as name, context() as ros, NodeProcess(
            ros, Path(name) / "node.log", parameters, threads=1) as node:
        client = Client(ros)
        try:
            (listening if situation == "active" else loading)(client, node, phase)
            load = os.getloadavg()[0]
            code, seconds = node.stop(number)
        finally:
            client.close()
        return {"situation": situation, "signal": number.name, "seconds": round(seconds, 3),
                "status": code, "traceback": "Traceback" in node.output, "load": round(load, 1)}


def markdown(report: dict) -> str:
    """The report, to read."""
    lines = [
        "# SIGINT and SIGTERM", "",
        f"{where(report['machine'])}. Seconds from the signal to the end of the process, "
        f"{report['times']} times each; the node has 1 thread.", "",
        "| while | signal | seconds: median / longest | load of the machine |", "|---|---|---|---|"]
    for situation, text in SITUATIONS.items():
        for number in SIGNALS:
            rows = [row for row in report["rows"]
                    if (row["situation"], row["signal"]) == (situation, number.name)]
            seconds = sorted(row["seconds"] for row in rows)
            loads = [row["load"] for row in rows]
            lines.append(f"| {text} | {number.name} | {seconds[len(seconds) // 2]:.2f} / "
                         f"{seconds[-1]:.2f} | {min(loads):g} to {max(loads):g} |")
    lines += ["", "All ended with status 0, without a traceback, within a second."
              if not report["failed"] else "MISSED: " + "; ".join(report["failed"])]
    return "\n".join(lines) + "\n"


def misses(rows: list[dict]) -> list[str]:
    """What wasn't as it should be."""
    return [f"{row['signal']} while {SITUATIONS[row['situation']]}: {row['seconds']:.2f} s, status "
            f"{row['status']}" + ", a traceback" * row["traceback"] for row in rows
            if row["seconds"] > TARGET or row["status"] or row["traceback"]]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, choices=range(1, 101), metavar="N",
                        help="each signal in each situation (default: 5)")
    parser.add_argument("--model", default="", help="checkpoint (default: the shipped)")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the report")
    args = parser.parse_args(argv)
    report = {"machine": machine(), "times": args.times, "rows": []}
    cases = [(situation, number, time_ / args.times) for time_ in range(args.times)
             for situation in SITUATIONS for number in SIGNALS]
    try:
        for case in tqdm(cases, unit="end"):
            report["rows"].append(once(*case, {"model": args.model}))
    except FieldError as error:
        print(f"signals: {error}", file=sys.stderr)
        return 1
    report["failed"] = misses(report["rows"])
    write_report(args.out, "signals", report, markdown(report))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
