"""The node with a meter: which part of its CPU time is the model's, which the stream's?

Started by latency.py with the path of a file, which gets the totals each second.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from luseel_model.inference import Extractor  # noqa: E402
from luseel_model.streaming import ExtractionStream  # noqa: E402

PERIOD = 1.0  # [s]


class Meter:
    """CPU seconds of the calling threads, by what they called. With one thread of torch that is
    all that the call costs."""

    def __init__(self):
        self.seconds = {"model": 0.0, "stream": 0.0, "push": 0.0}
        self.calls = {"model": 0, "stream": 0, "push": 0}

    def watch(self, owner, method: str, name: str) -> None:
        """Count what this method takes."""
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            begin = time.thread_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.thread_time() - begin
                self.calls[name] += 1

        setattr(owner, method, timed)

    def write(self, path: Path) -> None:
        """All totals, and those of the process and its threads, without the meter's own, at one
        moment."""
        own = time.thread_time()
        text = json.dumps({**self.seconds, "calls": self.calls, "threads": cpu_of_threads(),
                           "process": time.process_time() - own, "time": time.monotonic()})
        part = path.with_suffix(".part")
        part.write_text(text)
        os.replace(part, path)


def cpu_of_threads() -> dict[str, float]:
    """CPU seconds by the names of Python's threads but this; all others, DDS's, are `dds`."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    seconds: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) == threading.get_native_id():
            continue
        name = names.get(int(task.name), "dds")
        with contextlib.suppress(OSError):  # it has ended
            took = int((task / "schedstat").read_text().split()[0]) / 1e9
            seconds[name] = seconds.get(name, 0.0) + took
    return seconds


def main() -> None:
    """Run the node until a signal."""
    path = Path(sys.argv.pop(1))
    meter = Meter()
    meter.watch(Extractor, "infer_window", "model")
    meter.watch(ExtractionStream, "process", "stream")
    meter.watch(ExtractionStream, "push", "push")

    def report():
        while True:
            meter.write(path)
            time.sleep(PERIOD)

    threading.Thread(target=report, daemon=True).start()
    from luseel_ros import run
    run.main()


if __name__ == "__main__":
    main()
