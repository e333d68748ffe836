"""``luseel listen``: what the model hears in a microphone or a file, live in the terminal.

`View` draws it (a picture that is renewed on a terminal, else lines); what it draws is a
`Snapshot`, wherever that comes from.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Iterator, Sequence

import numpy as np

from .angles import compass
from .errors import LuseelError
from .sources import FLOOR_DB, Block, FileSource, Microphone, Source, level_db, list_microphones

ARROWS = "↑↖←↙↓↘→↗"  # front, front left, left, ...: the order of angles.compass
BARS = " ▁▂▃▄▅▆▇█"
LEVEL_SPAN = 60.0  # [dB] that the level meters show, up to full scale
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
REFRESH = 0.1  # [s] between two pictures


@dataclass(frozen=True)
class Heard:
    """What is known of one query.

    Attributes:
        key, query: its id and its words.
        azimuth: degrees in [0, 360), counter-clockwise, 0 front, 90 left; NaN: no direction.
        likelihood: (360,), bin i at i degrees, in [0, 1].
        confidence: in [0, 1].
        active: whether the sound counts as there.
    """

    key: str
    query: str
    azimuth: float
    likelihood: np.ndarray
    confidence: float
    active: bool


@dataclass(frozen=True)
class Snapshot:
    """What one picture shows.

    Attributes:
        source: where the audio comes from.
        position: seconds since its beginning, None if unknown.
        heard: one for each query.
        level: (left, right) in dB of full scale, None before the first audio.
        latency: seconds from the capture of the newest hop's end to its result; None if unknown.
        notes: what else a person should know.
        hop: counts the results; two snapshots of one hop differ in level and notes only.
    """

    source: str
    position: float | None = None
    heard: tuple[Heard, ...] = ()
    level: tuple[float, float] | None = None
    latency: float | None = None
    notes: tuple[str, ...] = ()
    hop: int = 0

    def to_dict(self) -> dict:
        """Plain values for JSON, without the likelihood."""
        return {
            "seconds": _number(self.position), "latency": _number(self.latency),
            "level_dbfs": [_number(x) for x in self.level] if self.level else None,
            "notes": list(self.notes),
            "queries": [{
                "id": h.key, "query": h.query, "azimuth_degrees": _number(h.azimuth),
                "confidence": _number(h.confidence), "active": h.active} for h in self.heard]}


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 3)


# -- drawing -------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Words of others for a terminal: what would steer it (escape sequences) is replaced."""
    return "".join(c if c.isprintable() else "�" for c in text)


def arrow(azimuth: float) -> str:
    """An arrow as seen from above, front up; a blank without a direction."""
    return " " if math.isnan(azimuth) else ARROWS[round(azimuth / 45.0) % 8]


def strip(likelihood: np.ndarray, cells: int = 36) -> str:
    """The likelihood over the direction as bars: back, left, FRONT (middle), right, back.

    Args:
        likelihood: (360,), bin i at i degrees counter-clockwise, in [0, 1].
        cells: how many characters; divides 360. Each shows the largest value in it.
    """
    width = 360 // cells
    # from 180 degrees down to -180, so that left is on the left; 0 in the middle of a cell
    degrees = 180 + width // 2 - np.arange(360)
    values = np.clip(np.nan_to_num(np.asarray(likelihood, np.float64)), 0, 1)[degrees % 360]
    # a square root: small side peaks stay visible
    steps = np.ceil(np.sqrt(values.reshape(cells, width).max(1)) * (len(BARS) - 1) - 0.5)
    return "".join(BARS[int(step)] for step in np.clip(steps, 0, len(BARS) - 1))


def bar(fraction: float, cells: int) -> str:
    """A horizontal bar of so many characters, `fraction` of it filled (0 to 1)."""
    filled = round(min(max(fraction, 0.0), 1.0) * cells)
    return "█" * filled + "░" * (cells - filled)


def compass_rose(heard: Sequence[Heard], radius: int = 5):
    """A circle seen from above, front up, with the number of each query where it is heard.

    Returns:
        a `rich.text.Text` of 2 * radius + 1 lines.
    """
    from rich.text import Text

    height, width = 2 * radius + 1, 4 * radius + 3
    cells = [[(" ", "")] * width for _ in range(height)]

    def place(azimuth: float, reach: float) -> tuple[int, int]:
        angle = math.radians(azimuth)
        return (round(radius - reach * radius * math.cos(angle)),
                round(width // 2 - reach * 2 * radius * math.sin(angle)))

    def put(azimuth: float, character: str, style: str, reach: float = 1.0) -> None:
        row, column = place(azimuth, reach)
        cells[row][column] = (character, style)

    for degrees in range(0, 360, 10):
        put(degrees, "·", "dim")
    put(0, "F", "bold")
    put(90, "L", "bold")
    put(180, "B", "bold")
    put(270, "R", "bold")
    put(0, "+", "dim", 0.0)
    for index, item in enumerate(heard):
        if not math.isnan(item.azimuth):
            colour = COLOURS[index % len(COLOURS)]
            mark = str(index + 1) if index < 9 else "*"
            reach = 0.75
            while reach > 0.3:  # one that is there already is not covered
                row, column = place(item.azimuth, reach)
                if cells[row][column][0] in " ·":
                    break
                reach -= 0.1
            put(item.azimuth, mark, f"bold reverse {colour}" if item.active else f"dim {colour}",
                reach)
    return Text("\n").join(
        Text.assemble(*((c, style) if style else c for c, style in row)) for row in cells)


def picture(snapshot: Snapshot):
    """The whole view, as something that rich prints."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), show_edge=False)
    for name in ("", "query", "direction", "confidence", "back · left · FRONT · right · back"):
        table.add_column(name, justify="right" if name == "direction" else "left",
                         no_wrap=name != "query")
    for index, heard in enumerate(snapshot.heard):
        colour = COLOURS[index % len(COLOURS)]
        style = f"bold {colour}" if heard.active else f"dim {colour}"
        angle = "–" if math.isnan(heard.azimuth) else \
            f"{heard.azimuth:3.0f}° {arrow(heard.azimuth)} {compass(heard.azimuth)}"
        table.add_row(
            Text(str(index + 1), style), Text(printable(heard.query), style), Text(angle, style),
            Text(f"{bar(heard.confidence, 5)} {100 * heard.confidence:3.0f}%", style),
            Text(strip(heard.likelihood), style))
    level = Text("no audio yet", "dim")
    if snapshot.level:
        level = Text("   ").join(
            Text(f"{name} {bar(1 + db / LEVEL_SPAN, 20)} "
                 + (f"{db:4.0f} dB" if db > FLOOR_DB else "silent"),
                 "red" if db > -3 else "")
            for name, db in zip("LR", snapshot.level))
    head = Text.assemble((_head(snapshot), "bold"))
    below = [Text(printable(note), "yellow") for note in snapshot.notes]
    if not snapshot.heard:
        below.insert(0, Text("no query", "dim"))
    return Group(head, level, Columns([compass_rose(snapshot.heard), table], padding=(0, 2)),
                 *below)


def line(snapshot: Snapshot) -> str:
    """The same in one line of plain text."""
    words = [_head(snapshot)]
    if snapshot.level:
        words.append("level {:.0f} {:.0f} dB".format(*snapshot.level))
    for heard in snapshot.heard:
        angle = "no direction" if math.isnan(heard.azimuth) else \
            f"{heard.azimuth:.0f}° ({compass(heard.azimuth)})"
        words.append(f"“{printable(heard.query)}” {angle} {100 * heard.confidence:.0f}%"
                     + ("" if heard.active else " (not there)"))
    return "; ".join([*words, *map(printable, snapshot.notes)])


def _head(snapshot: Snapshot) -> str:
    words = printable(snapshot.source)
    if snapshot.position is not None:
        words += f"  {snapshot.position:.1f} s"
    if snapshot.latency is not None:
        words += f"  latency {1000 * snapshot.latency:.0f} ms"
    return words


class View:
    """Shows snapshots: a picture that stays in its place on a terminal; else one line per hop.

    Use it as a context manager. `as_json` prints one JSON object per hop instead.
    """

    def __init__(self, console=None, as_json: bool = False):
        from rich.console import Console

        self._console = console or Console()
        self._as_json = as_json
        self._live = None
        self._shown = 0

    def __enter__(self) -> View:
        if self._console.is_terminal and not self._as_json:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False,
                              vertical_overflow="visible")
            self._live.__enter__()
        return self

    def __exit__(self, *error) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def show(self, snapshot: Snapshot) -> None:
        """Draw it; without a terminal only if it is of a new hop."""
        if self._live is not None:
            self._live.update(picture(snapshot), refresh=True)
        elif snapshot.hop > self._shown:
            self._shown = snapshot.hop
            text = json.dumps(snapshot.to_dict(), ensure_ascii=False) if self._as_json else \
                line(snapshot)
            self._console.file.write(text + "\n")
            self._console.file.flush()


# -- listening without ROS -----------------------------------------------------------------------


class Listener:
    """Runs a model over a source.

    Args:
        model: as for `luseel_model.streaming.ExtractionStream`.
        source: a `Microphone`, a `FileSource` or the like.
        queries: what to listen for.
        threshold: a sound counts as there from this confidence on.
        now_ns: the clock of the source's stamps.
        stream: further arguments of `ExtractionStream`.

    Raises:
        LuseelError: a query that can't be used, or times that contradict each other.
    """

    def __init__(self, model, source: Source, queries: Sequence[str], threshold: float = 0.5,
                 now_ns=time.time_ns, **stream):
        from .streaming import ExtractionStream

        self._source, self._threshold, self._now_ns = source, threshold, now_ns
        self._stream = ExtractionStream(model, source.sample_rate, **stream)
        self._stream.set_queries({f"q{i}": q for i, q in enumerate(queries, 1)})
        self._newest: collections.deque[Block] = collections.deque(maxlen=2000)
        self._levels: collections.deque[np.ndarray] = collections.deque(maxlen=4)
        self._snapshot = Snapshot(source.name)
        self._stop = threading.Event()
        self._error: BaseException | None = None

    def snapshots(self) -> Iterator[Snapshot]:
        """What is heard, after each hop and some times between; ends with the source.

        Raises:
            LuseelError: the source or the model failed.
        """
        if not self._source.live and not getattr(self._source, "speed", 1.0):
            yield from self._as_fast_as_possible()
            return
        reader = threading.Thread(target=self._read, name="audio", daemon=True)
        reader.start()
        try:
            while reader.is_alive() or self._stream.ready:
                if self._stream.wait(REFRESH):
                    self._take(self._stream.process(), live=True)
                self._look()
                yield self._snapshot
            if self._error is not None:
                raise self._error
            yield from self._rest()
        finally:
            self._stop.set()
            reader.join(2.0)

    def _read(self) -> None:
        try:
            while not self._stop.is_set() and not self._source.ended:
                block = self._source.read(0.1)
                if block is not None:
                    self._push(block)
        except BaseException as error:  # for the other thread
            self._error = error

    def _as_fast_as_possible(self) -> Iterator[Snapshot]:
        while not self._source.ended:
            block = self._source.read()
            if block is not None:
                self._push(block)
            while self._stream.ready:
                self._take(self._stream.process(), live=False)
                self._look()
                yield self._snapshot
        yield from self._rest()

    def _rest(self) -> Iterator[Snapshot]:
        """What was held back for the look-ahead, and the last piece that isn't a whole hop."""
        for result in self._stream.finish():
            if result.hop_end > result.hop_start:  # else it only holds extracted audio
                self._take(result, live=False)
                self._look()
                yield self._snapshot

    def _push(self, block: Block) -> None:
        self._newest.append(block)
        self._levels.append(level_db(block.samples))
        self._stream.push(block.samples, block.first_sample)

    def _take(self, result, live: bool) -> None:
        if result is None:
            return
        latency = None
        end = self._captured(result.hop_end) if live else None
        if end is not None:
            latency = (self._now_ns() - end) / 1e9
        heard = tuple(
            Heard(e.key, e.query, e.azimuth, e.likelihood, e.confidence,
                  e.confidence >= self._threshold) for e in result.estimates)
        self._snapshot = Snapshot(
            self._source.name, result.hop_end / self._source.sample_rate, heard,
            self._snapshot.level, latency, (), self._snapshot.hop + 1)

    def _captured(self, sample: int) -> int | None:
        """Capture time of a sample [ns], if its block isn't forgotten."""
        for block in reversed(self._newest.copy()):
            if block.first_sample <= sample:
                return block.time_ns + round(
                    (sample - block.first_sample) * 1e9 / block.sample_rate)
        return None

    def _look(self) -> None:
        """Renew the level and the notes."""
        levels = list(self._levels)
        rate, notes = self._source.sample_rate, []
        lost = self._source.counters.lost + self._source.counters.dropped
        if self._source.counters.overruns or lost:
            notes.append(f"the microphone lost {lost / rate:.2f} s "
                         f"({self._source.counters.overruns} overruns)")
        if self._stream.counters.dropped:
            notes.append(f"the model is too slow: {self._stream.counters.dropped / rate:.1f} s of "
                         "audio dropped; try a smaller model or a longer --hop")
        if self._stream.counters.invalid:
            notes.append(f"{self._stream.counters.invalid} samples are not finite")
        self._snapshot = replace(
            self._snapshot, notes=tuple(notes),
            level=tuple(float(x) for x in np.max(levels, axis=0)) if levels else None)


# -- the command ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``luseel listen`` that need no ROS."""
    parser.add_argument("query", nargs="*", help='what to listen for, e.g. "a dog barking"')
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--mic", nargs="?", const="", metavar="DEVICE",
                        help="listen to this microphone: index or part of the name (without: the "
                        "default one)")
    source.add_argument("--file", metavar="WAV", help="listen to this stereo file")
    source.add_argument("--list-mics", action="store_true", help="list the microphones, then end")
    direct = parser.add_argument_group("with --mic and --file")
    direct.add_argument("--model", help="checkpoint: name or .safetensors (default: the shipped)")
    direct.add_argument("--device", help="where the model runs: cpu, cuda, ...")
    direct.add_argument("--profile", default="balanced",
                        help="low_latency, balanced or accurate (default: %(default)s)")
    direct.add_argument("--hop", type=float, help="seconds between two results (default: the "
                        "profile's)")
    direct.add_argument("--rate", type=int, help="sample rate of the microphone in Hz (default: "
                        "its own)")
    direct.add_argument("--channels", type=int, nargs=2, default=(0, 1), metavar=("LEFT", "RIGHT"),
                        help="channels of the left and the right ear, the first is 0 (default: "
                        "0 1)")
    direct.add_argument("--speed", type=float, default=1.0,
                        help="how fast to play a file; 0: as fast as the model can (default: 1)")
    direct.add_argument("--threshold", type=float, default=0.5,
                        help="a sound counts as there from this confidence on (default: "
                        "%(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object per hop")


def print_microphones(out=None) -> int:
    """List the devices with an input; returns the exit status."""
    out = out or sys.stdout
    devices = list_microphones()
    if not devices:
        raise LuseelError("PortAudio sees no device with an input")
    for device in devices:
        mark = "*" if device.default else " "
        few = "" if device.channels >= 2 else "  (one channel: not binaural)"
        out.write(f"{mark} {device.index:3d}  {device.name}, {device.host}  {device.channels} "
                  f"channels  {device.sample_rate:g} Hz{few}\n")
    out.write("* is the default\n")
    return 0


def listen_directly(args: argparse.Namespace, view: View | None = None) -> int:
    """``luseel listen`` to a microphone or a file; Ctrl-C ends it. Returns the exit status."""
    from .inference import load_model
    from .query import validate_query

    if not args.query:
        raise LuseelError('what should be listened for? Add words, e.g. "a dog barking"')
    for query in args.query:
        validate_query(query)
    if not 0 <= args.threshold <= 1:
        raise LuseelError(f"--threshold {args.threshold:g}: expected 0 to 1")
    # the source first: it fails at once where the model takes seconds
    if args.file is not None:
        def open_source():
            return FileSource(args.file, args.channels, speed=args.speed)
    else:
        def open_source():
            return Microphone(args.mic or None, args.rate, args.channels)
    open_source().close()
    model = load_model(args.model, args.device)
    model.warm_up()
    source = open_source()
    try:
        listener = Listener(model, source, args.query, args.threshold,
                            profile=args.profile, hop=args.hop)
        with view or View(as_json=args.json) as screen:
            for snapshot in listener.snapshots():
                screen.show(snapshot)
    except KeyboardInterrupt:
        pass  # the ordinary end
    finally:
        source.close()
    if getattr(source, "gone", False):
        raise LuseelError(f"the microphone {source.name!r} has gone")
    return 0


def run(args: argparse.Namespace) -> int:
    """The command, without ROS."""
    if args.list_mics:
        return print_microphones()
    if args.mic is None and args.file is None:
        raise LuseelError("listen to what? --mic or --file x.wav. (Without either, the command "
                          "shows what a running node hears; that needs the ROS 2 part of luseel.)")
    return listen_directly(args)


def register(commands) -> None:
    """Add the command to the subparsers of ``luseel``."""
    parser = commands.add_parser(
        "listen", help="show live what is heard in a microphone or a file",
        description="Show live where the described sounds are. Ctrl-C ends it.")
    add_arguments(parser)
    parser.set_defaults(run=run)
