"""The demo: `python -m luseel_ros.demo`.

Starts the real node in its own process, plays a binaural scene of real recordings to it in real
time, asks for sounds in words, shows directions against the truth, and ends with WAV files, a
picture and a summary. Exit status: 0 all right, 1 a direction or an extraction was wrong, 2 the
demo could not run.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import rclpy
import soundfile
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rich.console import Console
from rich.live import Live
from rich.table import Table

from luseel_model.angles import angular_error, compass

from .checks import MAX_ERROR, MIN_SI_SNRI, Heard, Verdict, assemble, judge
from .picture import draw
from .player import Player
from .scene import DATA, Scene, load_scene

NODE = "/luseel"
START_SECONDS = 180.0  # for loading the model on a slow machine
DRAIN_SECONDS = 2.0  # after the last chunk, for the last results


class DemoError(Exception):
    """The demo can't run; the text says why."""


class NodeProcess:
    """`python -m luseel_ros.run` as a child; its output goes to a file."""

    def __init__(self, log: Path, parameters: dict[str, object]):
        self.log = log
        arguments = [sys.executable, "-m", "luseel_ros.run", "--ros-args"]
        for name, value in parameters.items():
            # YAML, as ROS reads it, knows all of JSON: any path comes through
            arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
        self._file = open(log, "w")
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=self._file, stderr=subprocess.STDOUT)

    def trouble(self) -> str | None:
        """Why the node isn't going to work, if so."""
        text = self.log.read_text(errors="replace")
        if self._process.poll() is not None:
            return f"the node ended with status {self._process.returncode}:\n{text[-2000:]}"
        if "autostart failed" in text:
            return "the node says:\n" + "\n".join(re.findall(r"\[ERROR\].*", text))
        return None

    def warnings(self) -> list[str]:
        """What the node warned of."""
        return re.findall(r"\[WARN\].*?\[luseel\]: (.*)", self.log.read_text(errors="replace"))

    def stop(self) -> None:
        """End it, as Ctrl-C would; by force if it takes longer than that may."""
        for number, patience in ((signal.SIGINT, 5.0), (signal.SIGKILL, 5.0)):
            if self._process.poll() is None:
                self._process.send_signal(number)
                try:
                    self._process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        self._file.close()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="luseel_demo", description=__doc__.splitlines()[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for results")
    parser.add_argument("--scene", type=Path, default=DATA,
                        help="folder with a scene.json made by training.make_demo_scene")
    parser.add_argument("--model", default="", help="checkpoint; empty: the shipped one")
    parser.add_argument("--device", default="", help="cpu, cuda, ...; empty: as the machine has it")
    parser.add_argument("--hop", type=float, default=0.5, help="seconds between two results")
    parser.add_argument("--speed", type=float, default=1.0,
                        help="1 is real time; less for a machine that can't keep up")
    options = parser.parse_args(arguments)
    if not (options.hop > 0 and options.speed > 0):
        parser.error("--hop and --speed must be positive")
    return options


# -- showing -----------------------------------------------------------------------------------


def live_table(player: Player) -> Table:
    """What the node said last, beside the truth."""
    now = player.position
    there = ", ".join(f"{s.label} {s.azimuth:.0f}°" for s in player.scene.sounds_at(now - 0.05))
    table = Table(title=f"{now:4.1f} / {player.scene.seconds:.0f} s   playing: {there}",
                  title_justify="left")
    for name, justify in (("query", "left"), ("truth", "right"), ("estimate", "right"),
                          ("", "left"), ("error", "right"), ("confidence", "right"),
                          ("extracted", "right")):
        table.add_column(name, justify=justify)
    for heard in player.heard:
        query = heard.query
        if now < query.at:
            continue
        cells = [query.text, f"{query.sound.azimuth:.0f}°"]
        if heard.estimates:
            last = heard.estimates[-1]
            error = float(angular_error(last.azimuth, query.sound.azimuth))
            colour = "green" if error <= MAX_ERROR else "red"
            seconds = sum(audio.shape[1] for _, audio in heard.blocks) / player.scene.sample_rate
            cells += [f"{last.azimuth:.0f}°", compass(last.azimuth),
                      f"[{colour}]{error:.0f}°[/]", f"{100 * last.confidence:.0f}%",
                      f"{seconds:.1f} s"]
        table.add_row(*cells, style="bold" if heard is player.current() else "dim")
    return table


def live_line(player: Player) -> str:
    """The same for a log file: one line."""
    heard = player.current()
    if heard is None or not heard.estimates:
        return f"{player.position:5.1f} s"
    last, truth = heard.estimates[-1], heard.query.sound.azimuth
    return (f"{player.position:5.1f} s  “{heard.query.text}”: {last.azimuth:3.0f}° "
            f"(truth {truth:.0f}°, error {float(angular_error(last.azimuth, truth)):3.0f}°), "
            f"confidence {100 * last.confidence:.0f}%")


def watch(player: Player, node: NodeProcess, console: Console) -> None:
    """Show the scene while it plays, and check that the node lives."""
    def check():
        if why := node.trouble():
            raise DemoError(why)

    if console.is_terminal:
        with Live(live_table(player), console=console, refresh_per_second=8) as live:
            while not player.finished.wait(0.1):
                check()
                live.update(live_table(player))
            time.sleep(DRAIN_SECONDS)
            live.update(live_table(player))
    else:
        while not player.finished.wait(1.0):
            check()
            console.print(live_line(player), highlight=False, soft_wrap=True)
        time.sleep(DRAIN_SECONDS)


# -- results -----------------------------------------------------------------------------------


def write_results(out: Path, scene: Scene, heard: list[Heard], verdicts: list[Verdict],
                  about: dict) -> None:
    """WAV files, picture, summary.json."""
    rate = scene.sample_rate
    soundfile.write(out / "mixture.wav", scene.mixture.T, rate, "PCM_16")
    queries = []
    for number, (item, verdict) in enumerate(zip(heard, verdicts), 1):
        query = item.query
        name = f"{number}_{re.sub(r'[^a-z0-9]+', '_', query.text.lower()).strip('_')}"
        first, audio = assemble(item, scene)
        start, stop = round(query.at * rate), round(query.until * rate)
        extracted = np.zeros_like(scene.mixture)
        extracted[:, first:first + audio.shape[1]] = audio
        for kind, signal_ in (("mixture", scene.mixture), ("extracted", extracted),
                              ("truth", query.sound.track)):
            soundfile.write(out / f"{name}_{kind}.wav", np.clip(signal_[:, start:stop], -1, 1).T,
                            rate, "PCM_16")
        queries.append({
            "query": query.text, "sound": query.sound.label, "from_s": query.at,
            "until_s": query.until, "files": f"{name}_*.wav",
            "azimuth_truth": query.sound.azimuth, "azimuth": _number(verdict.azimuth),
            "median_error": _number(verdict.error), "within_10": _number(verdict.within_10),
            "confidence": _number(verdict.confidence), "judged_hops": verdict.judged,
            "si_snr_mixture_db": _number(verdict.si_snr_in),
            "si_snr_db": _number(verdict.si_snr), "si_snri_db": _number(verdict.si_snri),
            "compared_s": verdict.seconds, "right": verdict.right})
    (out / "summary.json").write_text(json.dumps(
        {"scene": scene.title, **about, "queries": queries,
         "right": all(v.right for v in verdicts)}, indent=2, ensure_ascii=False) + "\n")
    draw(out / "demo.png", scene, heard, verdicts)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def summary_table(heard: list[Heard], verdicts: list[Verdict]) -> Table:
    """The verdicts."""
    table = Table(title="summary", title_justify="left")
    for name, justify in (("query", "left"), ("truth", "right"), ("estimate", "right"),
                          ("error", "right"), ("≤ 10°", "right"), ("SI-SNR in dB", "right"),
                          ("SI-SNRi", "right"), ("verdict", "left")):
        table.add_column(name, justify=justify)
    for item, verdict in zip(heard, verdicts):
        wrong = [word for word, right in (("direction", verdict.direction_right),
                                          ("extraction", verdict.extraction_right)) if not right]
        table.add_row(
            item.query.text, f"{item.query.sound.azimuth:.0f}°", f"{verdict.azimuth:.0f}°",
            f"{verdict.error:.1f}°", f"{100 * verdict.within_10:.0f}%",
            f"{verdict.si_snr_in:.1f} → {verdict.si_snr:.1f}", f"{verdict.si_snri:.1f} dB",
            f"[red]wrong {' and '.join(wrong)}[/]" if wrong else "[green]right[/]")
    return table


# -- running -----------------------------------------------------------------------------------


def run(options: argparse.Namespace, console: Console) -> bool:
    """Play, judge, write; whether all was right."""
    scene = load_scene(options.scene)
    out = options.out
    if out.exists() and not out.is_dir():
        raise DemoError(f"{out} is a file; give a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*_extracted.wav"), *out.glob("*_truth.wav"), *out.glob("*_mixture.wav")):
        old.unlink()
    # Nobody else's topics: not those of this machine's other nodes, nor of the network.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 101)))
    console.print(f"Scene: {scene.title} ({scene.seconds:.0f} s). "
                  "To watch from another shell:\n"
                  f"  export ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']} "
                  f"ROS_AUTOMATIC_DISCOVERY_RANGE={os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE']}",
                  highlight=False, soft_wrap=True)
    parameters = {"hop": options.hop, "model": options.model, "device": options.device}
    node = NodeProcess(out / "node.log", parameters)
    executor = player = spinner = None
    try:
        rclpy.init(args=[], signal_handler_options=rclpy.SignalHandlerOptions.NO)
        player = Player(scene, NODE, options.hop, options.speed)
        executor = SingleThreadedExecutor()
        executor.add_node(player)
        spinner = threading.Thread(target=_spin, args=(executor,), daemon=True)
        spinner.start()
        begin = time.monotonic()
        with console.status("Starting the node (python -m luseel_ros.run), loading the model"):
            while not player.connected():
                if why := node.trouble():
                    raise DemoError(why)
                if time.monotonic() - begin > START_SECONDS:
                    raise DemoError(f"the node isn't active after {START_SECONDS:.0f} s; "
                                    f"its messages are in {node.log}")
                time.sleep(0.05)
        console.print(f"The node is active after {time.monotonic() - begin:.1f} s.",
                      highlight=False)
        player.start()
        watch(player, node, console)
    finally:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C leaves nothing
        node.stop()
        if executor is not None:
            executor.shutdown()
            spinner.join(5.0)
            player.destroy_node()
        rclpy.try_shutdown()
        signal.signal(signal.SIGINT, handler)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    verdicts = [judge(heard, scene, options.hop) for heard in player.heard]
    about = {"hop_s": options.hop, "speed": options.speed, "node_warnings": node.warnings()}
    if player.latencies:
        about["latency_s"] = {
            "median": round(float(np.median(player.latencies)), 3),
            "largest": round(float(np.max(player.latencies)), 3)}
    write_results(out, scene, player.heard, verdicts, about)
    console.print(summary_table(player.heard, verdicts))
    say(f"Right means: median error at most {MAX_ERROR:.0f}° while the sound is there, SI-SNRi "
        f"(closer to the truth than the mixture, by) at least {MIN_SI_SNRI:.0f} dB.")
    if player.latencies:
        say(f"Events came {about['latency_s']['median']:.2f} s (median, at most "
            f"{about['latency_s']['largest']:.2f} s) after the last sample that they tell of.")
    for warning in about["node_warnings"]:
        console.print(f"[yellow]The node warned:[/] {warning}", highlight=False)
    if any("too slow" in warning for warning in about["node_warnings"]):
        say("This machine is too slow, or too busy, for real time: try --speed 0.5.")
    for what, where in (("listen", "*_mixture.wav, *_extracted.wav, *_truth.wav"),
                        ("look", "demo.png"), ("figures", "summary.json"),
                        ("the node's log", "node.log")):
        say(f"  {what + ':':16}{out}/{where}")
    return all(verdict.right for verdict in verdicts)


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    options = parse(arguments)
    width = None if sys.stdout.isatty() else max(shutil.get_terminal_size((140, 40)).columns, 140)
    console = Console(width=width)

    def terminate(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        return 0 if run(options, console) else 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    except (DemoError, ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False,
                                   soft_wrap=True)
        return 2
    finally:
        gc.freeze()  # as in the node: the interpreter's last collections take seconds otherwise


if __name__ == "__main__":
    sys.exit(main())
