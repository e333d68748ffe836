"""`luseel listen`: what is drawn, listening to files and microphones, listening to a node."""

import argparse
import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from ear_model import RATE, EarModel
from rich.console import Console

from luseel_model import cli, listen
from luseel_model.listen import Heard, Listener, Snapshot, View
from luseel_model.sources import Block, CaptureCounters, FileSource

def peak(azimuth, width=0):
    likelihood = np.zeros(360, np.float32)
    likelihood[np.arange(azimuth - width, azimuth + width + 1) % 360] = 1
    return likelihood


def heard(azimuth=90.0, query="dog barking", active=True, **fields):
    likelihood = np.zeros(360) if np.isnan(azimuth) else peak(round(azimuth))
    return Heard("q1", query, azimuth, likelihood, 0.8, active, **fields)


def noise(seconds, left=0.5, right=0.1):
    audio = np.random.default_rng(0).uniform(-1, 1, (round(seconds * RATE), 2))
    return (audio * [left, right]).astype(np.float32)


# -- drawing -------------------------------------------------------------------------------------

@pytest.mark.parametrize("azimuth, cell", [
    (0, 18), (5, 18), (355, 19), (356, 18), (6, 17), (90, 9), (180, 0), (270, 27), (190, 35)])
def test_the_strip_has_the_front_in_its_middle_and_left_on_its_left(azimuth, cell):
    text = listen.strip(peak(azimuth))
    assert len(text) == 36 and text[cell] == "█" and text.count(" ") == 35


def test_the_strip_shows_what_is_small_and_survives_what_is_not_finite():
    likelihood = peak(0)
    likelihood[90] = 0.04
    likelihood[180] = np.nan
    text = listen.strip(likelihood)
    assert text[18] == "█" and text[9] in "▁▂" and text[0] == " "
    assert listen.strip(np.zeros(360)) == " " * 36 and listen.strip(np.ones(360)) == "█" * 36


@pytest.mark.parametrize("azimuth, expected", [
    (0, "↑"), (90, "←"), (180, "↓"), (270, "→"), (45, "↖"), (315, "↗"), (350, "↑"), (np.nan, " ")])
def test_arrows_point_as_seen_from_above(azimuth, expected):
    assert listen.arrow(azimuth) == expected


@pytest.mark.parametrize("azimuth, above, left", [
    (0, True, None), (180, False, None), (90, None, True), (270, None, False), (45, True, True)])
def test_the_rose_has_the_front_on_top_and_left_on_its_left(azimuth, above, left):
    rows = listen.compass_rose([heard(float(azimuth))]).plain.split("\n")
    row = next(i for i, text in enumerate(rows) if "1" in text)
    column = rows[row].index("1")
    assert len(rows) == 11 and rows[0][11] == "F" and rows[5][1] == "L" and rows[5][21] == "R"
    assert above is None and row == 5 or above == (row < 5) and row != 5
    assert left is None and column == 11 or left == (column < 11) and column != 11


def test_two_sounds_in_one_direction_are_both_in_the_rose():
    text = listen.compass_rose([heard(60.0), heard(62.0), heard(58.0, active=False)]).plain
    assert all(mark in text for mark in "123")


def screen(width=120, terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=40,
                   color_system="truecolor" if terminal else None)


def test_the_picture():
    console = screen()
    console.print(listen.picture(Snapshot(
        "mic", 12.5, (heard(), heard(np.nan, "rain", False)), (-20.0, -120.0), 0.256,
        ("the model is too slow",), 3)))
    text = console.file.getvalue()
    for words in ("mic  12.5 s  latency 256 ms", "dog barking", "90° ← left", "████░  80%",
                  "-20 dB", "silent", "rain", "–", "the model is too slow"):
        assert words in text, words
    console = screen(60)
    console.print(listen.picture(Snapshot("mic")))
    assert "no audio yet" in console.file.getvalue() and "no query" in console.file.getvalue()


def test_words_of_others_do_not_steer_the_terminal():
    evil = "dog\x1b[2J\x1b]0;title\x07\r[red]x[/]\u202e"
    for terminal in (False, True):
        console = screen(terminal=terminal)
        with View(console) as view:
            view.show(Snapshot(evil, heard=(heard(query=evil),), notes=(evil,), hop=1))
        text = console.file.getvalue()
        assert "\x1b[2J" not in text and "\x1b]0" not in text and "\u202e" not in text
        assert "\x07" not in text and "[red]x[/]" in text
    assert listen.printable("héllo 世界") == "héllo 世界"


def test_without_a_terminal_there_is_a_line_for_each_hop():
    console = screen()
    snapshot = Snapshot("mic", 1.0, (heard(),), (-20.0, -30.4), 0.2, (), 1)
    with View(console) as view:
        for each in (snapshot, replace(snapshot, level=(-1.0, -1.0)), replace(snapshot, hop=2)):
            view.show(each)
    assert console.file.getvalue().split("\n") == 2 * [
        "mic  1.0 s  latency 200 ms; level -20 -30 dB; “dog barking” 90° (left) 80%"] + [""]


def test_json_has_plain_numbers():
    console = screen(terminal=True)
    with View(console, as_json=True) as view:
        view.show(Snapshot("mic", 1.0, (heard(np.nan, active=False),), None, None, ("slow",), 1))
    assert json.loads(console.file.getvalue()) == {
        "seconds": 1.0, "latency": None, "level_dbfs": None, "notes": ["slow"], "queries": [{
            "id": "q1", "query": "dog barking", "azimuth_degrees": None, "confidence": 0.8,
            "active": False}]}


# -- listening -----------------------------------------------------------------------------------

def test_a_file_as_fast_as_possible(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.concatenate([
        noise(1.0), noise(1.05, 0.1, 0.5)]), RATE, "FLOAT")
    source = FileSource(tmp_path / "in.wav", speed=0)
    listener = Listener(EarModel(), source, ["dog", "cat"], hop=0.2, buffer_seconds=1.0)
    shown = list(listener.snapshots())
    by_hop = {s.hop: s for s in shown}
    assert sorted(by_hop) == list(range(1, 12))  # ten of 0.2 s, and what is left
    assert [round(by_hop[i].position, 3) for i in (1, 2, 10, 11)] == [0.2, 0.4, 2.0, 2.05]
    assert [h.query for h in by_hop[1].heard] == ["dog", "cat"]
    assert by_hop[4].heard[0].azimuth == 90 and by_hop[10].heard[0].azimuth == 270
    assert all(h.active for h in by_hop[4].heard) and by_hop[4].latency is None
    # uniform noise of ±0.5 has an RMS of 0.5 / sqrt(3)
    assert by_hop[4].level == pytest.approx((-10.8, -24.8), abs=0.3)
    assert not any(s.notes for s in shown)


class Ears:
    """A live source: blocks of noise, as the test wants them."""

    sample_rate, name, live, ended = RATE, "ears", True, False

    def __init__(self, blocks, delay_ns):
        self._blocks, self._delay, self.counters = blocks, delay_ns, CaptureCounters()
        self.closed = False

    def read(self, timeout=0.2):
        number = next(self._blocks, None)
        if number is None:
            self.ended = True
            return None
        time.sleep(0.002)
        if number == 20:
            self.counters.overruns, self.counters.lost = 1, 800
        return Block(noise(0.05).T, RATE, 800 * number, time.time_ns() - self._delay)

    def close(self):
        self.closed = True


def test_latency_is_from_the_capture_of_the_hop_to_its_result():
    source = Ears(iter(range(40)), delay_ns=3_000_000_000)
    shown = list(Listener(EarModel(), source, ["dog"], hop=0.2, buffer_seconds=60).snapshots())
    latencies = [s.latency for s in shown if s.latency is not None]
    # each block began 3 s ago when it came, and the hop's last sample is 0.05 s later
    assert min(latencies) > 2.9 and np.median(latencies) < 20
    assert "the microphone lost 0.05 s (1 overruns)" in shown[-1].notes
    assert shown[-1].heard[0].azimuth == 90


def test_what_a_source_raises_comes_through():
    def blocks():
        yield 0
        raise OSError("unplugged")
    with pytest.raises(OSError, match="unplugged"):
        list(Listener(EarModel(), Ears(blocks(), 0), ["dog"], hop=0.2).snapshots())


# -- the command ---------------------------------------------------------------------------------

@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `luseel listen` in a folder with a recording, with the model above."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", noise(1.0), RATE, "FLOAT")
    monkeypatch.setattr("luseel_model.inference.load_model", lambda name, device: EarModel())
    return lambda *arguments: cli.main(["listen", *arguments], {})


def test_listening_to_a_file(command, capsys):
    assert command("dog", "a cat", "--file", "in.wav", "--speed", "0", "--hop", "0.2",
                   "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["seconds"] for line in lines] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [q["query"] for q in lines[-1]["queries"]] == ["dog", "a cat"]
    assert lines[-1]["queries"][0]["azimuth_degrees"] == 90


def test_in_real_time_it_takes_as_long_as_the_file(command, capsys):
    begin = time.monotonic()
    assert command("dog", "--file", "in.wav", "--hop", "0.2") == 0
    assert time.monotonic() - begin >= 1.0
    lines = capsys.readouterr().out.splitlines()
    assert 4 <= len(lines) <= 6 and all("“dog” 90° (left)" in line for line in lines)
    assert "latency" in lines[0]


@pytest.mark.parametrize("arguments, words", [
    (("dog",), "listen to what?"), (("--file", "in.wav"), "what should be listened for?"),
    (("dog", "--file", "no.wav"), "can't read no.wav"),
    ((" ", "--file", "in.wav"), "query"),
    (("dog", "--file", "in.wav", "--profile", "best"), "no profile 'best'"),
    (("dog", "--file", "in.wav", "--threshold", "2"), "expected 0 to 1"),
    (("dog", "--file", "in.wav", "--channels", "0", "2"), "channel 2 was asked for")])
def test_what_cannot_be_used_is_one_line(command, capsys, arguments, words):
    assert command(*arguments) == 2
    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1


def test_ctrl_c_is_the_ordinary_end(command, monkeypatch, capsys):
    sources, showing = [], View.show

    def interrupted(self, snapshot):
        showing(self, snapshot)
        raise KeyboardInterrupt
    monkeypatch.setattr(View, "show", interrupted)
    opened = FileSource

    def remember(*args, **kwargs):
        sources.append(opened(*args, **kwargs))
        return sources[-1]
    monkeypatch.setattr(listen, "FileSource", remember)
    assert command("dog", "--file", "in.wav", "--speed", "0", "--hop", "0.2") == 0
    assert "“dog”" in capsys.readouterr().out and all(s.ended for s in sources)


def test_commands_of_other_packages(capsys):
    """They are added; one that can't be loaded says why, only when it is asked for."""
    def register(commands):
        commands.add_parser("shout").set_defaults(run=lambda args: print("LOUD") or 0)

    def broken():
        raise ImportError("no module named piano")
    extra = {"shout": lambda: register, "play": broken}
    assert cli.main(["shout"], extra) == 0 and capsys.readouterr().out == "LOUD\n"
    assert cli.main(["play", "--loud", "x"], extra) == 2
    assert "can't be used: ImportError: no module named piano" in capsys.readouterr().err
    assert cli.main(["models"], extra) == 0


# -- listening to a node -------------------------------------------------------------------------

def test_listening_to_a_node(monkeypatch):
    """Over real DDS: what the node publishes is shown, and it is asked for the words."""
    rclpy = pytest.importorskip("rclpy")
    import threading

    from luseel.msg import AudioChunk, Query, SoundEventArray
    from ros_helpers import ros_context
    from std_msgs.msg import Header

    from luseel_ros import conversions
    from luseel_ros.tools import listen as ros_listen

    with ros_context() as context:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(context.get_domain_id()))
        node, asked = rclpy.create_node("robot", context=context), []
        node.create_subscription(Query, "/robot/ears/set_query", asked.append, 100)
        events = node.create_publisher(SoundEventArray, "/robot/ears/events", 10)
        audio = node.create_publisher(AudioChunk, "/head/audio", 10)
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(node)
        parser = argparse.ArgumentParser()
        ros_listen.register(parser.add_subparsers())
        shown, end = [], threading.Event()

        class Screen(View):
            def show(self, snapshot):
                shown.append(snapshot)
                if end.is_set():
                    raise KeyboardInterrupt

        args = parser.parse_args(["listen", "dog", "a cat", "--node", "robot/ears",
                                  "--audio-topic", "/head/audio"])
        status = []
        thread = threading.Thread(target=lambda: status.append(
            ros_listen.listen_to_node(args, Screen(screen()))), daemon=True)
        thread.start()

        def until(condition, seconds=60, publish=True):
            limit, number = time.monotonic() + seconds, 0
            while not condition() and time.monotonic() < limit:
                if publish:
                    stamp = conversions.ns_to_time(time.time_ns() - 700_000_000)
                    events.publish(SoundEventArray(header=Header(stamp=stamp), events=[
                        conversions.sound_event("q7", "dog", 270.0, peak(270), 0.8, 0.5, 0.1)]))
                    audio.publish(conversions.array_to_chunk(
                        noise(0.1).T, RATE, 1600 * number, Header(stamp=stamp)))
                number += 1
                executor.spin_once(timeout_sec=0.05)
            return condition()
        assert until(lambda: len(asked) >= 3)
        assert [(m.action, m.text) for m in asked] == [
            (Query.CLEAR, ""), (Query.ADD, "dog"), (Query.ADD, "a cat")]
        assert until(lambda: shown and shown[-1].heard and shown[-1].level)
        newest = shown[-1]
        assert (newest.heard[0].key, newest.heard[0].query) == ("q7", "dog")
        assert newest.heard[0].azimuth == pytest.approx(270) and newest.heard[0].active
        assert newest.heard[0].likelihood.argmax() == 270
        assert newest.level == pytest.approx((-10.8, -24.8), abs=0.5)
        assert until(lambda: any("no events for" in n for n in shown[-1].notes), publish=False)
        assert any("no audio for" in n for n in shown[-1].notes)
        end.set()
        thread.join(20)
        assert status == [0]
        executor.shutdown()
        node.destroy_node()
