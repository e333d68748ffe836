"""The node with a meter: which part of its CPU time is the model's, which the stream's?

Started by latency.py with the path of a file, which gets the totals each second.
"""

from __future__ import annotations

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
        """All totals, and those of the process, at one moment."""
        text = json.dumps({**self.seconds, "calls": self.calls, "process": time.process_time(),
                           "time": time.monotonic()})
        part = path.with_suffix(".part")
        part.write_text(text)
        os.replace(part, path)


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
