"""How fast a network is on this machine: ``luseel benchmark``.

What is timed is :meth:`~luseel_model.inference.Extractor.infer_window`, as the node and long
recordings call it: a full window in, extracted ears and directions out on the CPU. Queries are
embedded before, as they are cached. For the profiles of a stream the same is timed in their
precision; what a stream adds to the model's time is measured by ``tools/field/latency.py``.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .config import TextConfig
from .errors import LuseelError
from .inference import Extractor, pick_device
from .luseel import LuSeeL, LuSeeLConfig, LuSeeLExtractor
from .streaming import PROFILES, autocast, resolve_precision

QUERIES = ("dog barking", "a baby is crying", "where is the rain?", "footsteps on gravel",
           "a door slams", "birds singing", "a clock ticking", "people talking")
COUNTS = (1, 3, 8)


@dataclass
class QueryTiming:
    """Seconds for one window with ``queries`` queries: median and 95th percentile."""

    queries: int
    p50: float
    p95: float


@dataclass
class ProfileTiming:
    """The same with the precision of a stream's profile.

    Attributes:
        profile: its name in :data:`~luseel_model.streaming.PROFILES`.
        precision: what it comes to on this machine.
        hop, lookahead, latency: of the profile, seconds; without computing time.
        timings: seconds per hop.
    """

    profile: str
    precision: str
    hop: float
    lookahead: float
    latency: float
    timings: list[QueryTiming]


@dataclass
class Benchmark:
    """What :func:`benchmark` measured.

    Attributes:
        model, parameters, window: name, trainable parameters, seconds of audio in a window.
        device, threads: processor, and the threads torch uses on a CPU.
        hop: seconds from one window to the next in a stream.
        rounds: how often each was timed; all variants take turns in a round.
        timings: for several numbers of queries in one call, in float32.
        separate_p50: median seconds of as many calls with one query each as the last of
            ``timings`` has queries.
        note: what is not as in use, or empty.
        profiles: of streams, those whose hop fits the window.
    """

    model: str
    parameters: int
    window: float
    device: str
    threads: int
    hop: float
    rounds: int
    timings: list[QueryTiming]
    separate_p50: float
    note: str = ""
    profiles: list[ProfileTiming] = field(default_factory=list)

    @property
    def sharing_gain(self) -> float:
        """Time of separate calls over that of one call: what shared encoders save."""
        return self.separate_p50 / self.timings[-1].p50

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; real-time factors are time over hop."""
        def factors(timings: list[QueryTiming], hop: float) -> list[dict[str, Any]]:
            return [{**asdict(t), "real_time_factor_p50": t.p50 / hop,
                     "real_time_factor_p95": t.p95 / hop} for t in timings]

        profiles = [{**asdict(p), "timings": factors(p.timings, p.hop)} for p in self.profiles]
        return {**asdict(self), "timings": factors(self.timings, self.hop), "profiles": profiles,
                "sharing_gain": self.sharing_gain}

    def markdown(self) -> str:
        """A table to read or to paste."""
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        lines = [
            f"{self.model}, {self.parameters / 1e6:.1f} M parameters, windows of {self.window:g} s,"
            f" on {self.device}{threads}; {self.rounds} rounds",
            "",
            f"| queries | time per window, p50 | p95 | share of a {self.hop:g} s hop, p50 | p95 |",
            "|---|---|---|---|---|"]
        for t in self.timings:
            lines.append(f"| {t.queries} | {1e3 * t.p50:.1f} ms | {1e3 * t.p95:.1f} ms | "
                         f"{t.p50 / self.hop:.1%} | {t.p95 / self.hop:.1%} |")
        last = self.timings[-1]
        if last.queries > 1:
            lines += ["", f"{last.queries} queries in one call: {1e3 * last.p50:.1f} ms; in "
                      f"{last.queries} calls: {1e3 * self.separate_p50:.1f} ms, "
                      f"{self.sharing_gain:.2f} times as long (p50)"]
        if self.profiles:
            counts = [t.queries for t in self.profiles[0].timings]
            queries = [f"{n} quer{'ies' if n > 1 else 'y'}" for n in counts]
            lines += [
                "", "Streams: milliseconds per hop, p50 / p95, and their share of the hop (p95); "
                "latency: longest wait of a sample, to which they add", "",
                "| profile | hop | look-ahead | latency | precision | "
                + " | ".join(queries) + " |", "|---|---|---|---|---|" + "---|" * len(counts)]
            for p in self.profiles:
                lines.append(
                    f"| {p.profile} | {p.hop:g} s | {p.lookahead:g} s | {p.latency:g} s | "
                    f"{p.precision} | " + " | ".join(
                        f"{1e3 * t.p50:.0f} / {1e3 * t.p95:.0f} ms, {t.p95 / p.hop:.0%}"
                        for t in p.timings) + " |")
        slow = [str(t.queries) for t in self.timings if t.p95 > self.hop]
        if slow:
            lines += ["", f"Slower than real time with {' and '.join(slow)} queries (p95 above the "
                      "hop)"]
        return "\n".join([*lines, "", self.note] if self.note else lines)


class RandomText:
    """Stands in for a text encoder: random embeddings of six tokens, the same for equal words."""

    def __init__(self, config: TextConfig, device: torch.device | str = "cpu"):
        self.width, self.device = config.embedding, device
        self._cache: dict[str, Tensor] = {}

    def embed(self, queries: Sequence[str]) -> list[Tensor]:
        """(6, width) for each query."""
        for query in queries:
            if query not in self._cache:
                generator = torch.Generator().manual_seed(len(self._cache))
                self._cache[query] = torch.randn(6, self.width, generator=generator).to(self.device)
        return [self._cache[query] for query in queries]


def untrained(config: LuSeeLConfig, device: str | None = None) -> tuple[Extractor, str]:
    """A network with random weights, and what to say about its text encoder.

    Weights don't change the time. MiniLM is used as configured, and so is T5 from a local folder;
    in place of one from a hub, which would be fetched, queries get random embeddings.
    """
    place = pick_device(device)
    torch.manual_seed(0)
    network = LuSeeL(config).to(place)
    note = "Untrained network: only its speed means anything."
    text = None
    if config.text.encoder == "t5" and not Path(config.text.weights).is_dir():
        text = RandomText(config.text, place)
        note += f" Random embeddings in place of the text encoder {config.text.weights}."
    return LuSeeLExtractor(network, f"{config.name} (untrained)", text=text), note


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "cpu"


def benchmark(model: Extractor, rounds: int = 30, hop: float = 0.5,
              queries: Sequence[str] = QUERIES, note: str = "",
              progress: bool | None = None, counts: Sequence[int] = COUNTS) -> Benchmark:
    """Time a model on windows of noise.

    Args:
        model: ready to use.
        rounds: each of them times one window with each number of queries, in each precision that a
            profile asks for, and as many calls with one query each as the last number has. Side by
            side, so that other load on the machine falls on all of them alike.
        hop: seconds from one window to the next, for the first table.
        queries: the descriptions to ask for.
        note: goes into the result.
        progress: show a progress bar; None shows it on a terminal.
        counts: numbers of queries, rising; those above the number of `queries` are left out.
    Raises:
        LuseelError: no rounds or queries, or a hop that isn't above 0.
    """
    if rounds < 1:
        raise LuseelError(f"rounds must be 1 or more, got {rounds}")
    if not 0 < hop < float("inf"):
        raise LuseelError(f"the hop must be above 0 s, got {hop}")
    counts = [count for count in counts if 0 < count <= len(queries)]
    if not counts:
        raise LuseelError(f"no number of queries to time with {len(queries)} queries")
    generator = np.random.default_rng(0)
    window = 0.05 * generator.standard_normal((2, model.window_samples)).astype(np.float32)
    profiles = {name: p for name, p in PROFILES.items() if p.latency <= model.window + 1e-9}
    precisions = {name: resolve_precision(p.precision, model.device)
                  for name, p in profiles.items()}
    variants = [(precision, count) for precision in sorted({"float32", *precisions.values()},
                                                           reverse=True) for count in counts]
    together: dict[tuple[str, int], list[float]] = {variant: [] for variant in variants}
    separate: list[float] = []

    def timed(precision: str, *calls: Sequence[str]) -> float:
        begin = time.perf_counter()
        with autocast(precision, model.device):
            for call in calls:
                model.infer_window(window, call)  # its result lies on the CPU: nothing to wait for
        return time.perf_counter() - begin

    for precision, count in variants:  # first calls are slower: memory, kernels, the text encoder
        timed(precision, queries[:count])
    for _ in tqdm(range(rounds), desc="benchmark", unit="round", leave=False,
                  disable=None if progress is None else not progress):
        for precision, count in variants:
            together[precision, count].append(timed(precision, queries[:count]))
        separate.append(timed("float32", *([query] for query in queries[:counts[-1]])))

    def timings(precision: str) -> list[QueryTiming]:
        return [QueryTiming(count, *(float(v) for v in np.percentile(
            together[precision, count], (50, 95)))) for count in counts]

    return Benchmark(
        model=model.name, parameters=model.network.parameter_count(), window=model.window,
        device=_processor(model.device),
        threads=torch.get_num_threads() if model.device.type == "cpu" else 0, hop=hop,
        rounds=rounds, timings=timings("float32"), separate_p50=float(np.median(separate)),
        note=note, profiles=[
            ProfileTiming(name, precisions[name], p.hop, p.lookahead, round(p.latency, 6),
                          timings(precisions[name])) for name, p in profiles.items()])
