"""The tools that try the node for long: short runs over real DDS, and what their checks find."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_fixtures import changed, make_network

from luseel_model.checkpoint import save_checkpoint

sys.path.append(str(Path(__file__).parents[1] / "tools/field"))

try:
    import rclpy  # noqa: F401
    ros = pytest.mark.usefixtures()
except ImportError:
    ros = pytest.mark.skip("needs ROS")
else:
    import fuzz
    import harness
    import latency
    import soak


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A real network, tiny and untrained."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    config = changed("tiny")
    save_checkpoint(path, make_network(config).state_dict(), config)
    return str(path)


# -- look-ahead --------------------------------------------------------------------------------


class Clairvoyant:
    """Gives the sources back, with noise over the last 0.1 s of each window."""

    name, sample_rate, window, window_samples = "clairvoyant", 16000, 2.0, 32000

    def __init__(self, mixture):
        self.mixture = mixture
        self.random = np.random.default_rng(0)

    def infer_windows(self, windows, queries):
        return [self.infer_window(window, queries) for window in windows]

    def infer_window(self, window, queries):
        window, count = np.asarray(window), len(queries)
        whole, audio = self.mixture.audio.numpy(), np.zeros((count, 2, 32000), np.float32)
        known = window[0].nonzero()[0]  # in a stream, what was before and comes after is silence
        if len(known):
            at = int(np.flatnonzero(whole[0] == window[0, known[0]])[0])
            audio[..., known[0]:known[-1] + 1] = self.mixture.sources[
                ..., at:at + known[-1] + 1 - known[0]]
        audio += self.random.normal(0, 1e-3, audio.shape).astype(np.float32)
        audio[..., -1600:] += self.random.normal(0, 0.5, (count, 2, 1600)).astype(np.float32)
        return SimpleNamespace(audio=audio, azimuth=np.zeros(count), confidence=np.ones(count),
                               likelihood=np.zeros((count, 360), np.float32))


def test_lookahead_finds_where_windows_are_bad():
    pytest.importorskip("torchmetrics", reason="needs what evaluation needs")
    import lookahead
    sources = torch.randn(2, 2, 96000, generator=torch.Generator().manual_seed(0))
    mixture = SimpleNamespace(sources=sources, audio=sources.sum(0), kind=["dog", "cat"])
    report = lookahead.measure(Clairvoyant(mixture), [mixture], progress=False)
    assert report["mixtures"] == 1
    for part in report["lookahead"]:
        gain = {row["lookahead"]: row["gain_db"] for row in part["rows"]}
        assert gain[0.0] == 0 < gain[0.05] < gain[0.1] and gain[0.1] > 20
        assert gain[0.5] == pytest.approx(gain[0.1], abs=0.5)
    rows = {row["profile"]: row["si_snri_db"] for row in report["profiles"]}
    assert rows["accurate"] > rows["low_latency"]
    text = lookahead.markdown(report)
    assert "| accurate |" in text and "| 0.25 |" in text
    json.dumps(report)


# -- soak --------------------------------------------------------------------------------------


@ros
def test_a_short_soak(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "FLAT", 100.0)  # a quarter of a minute is too short to settle
    trial = soak.Soak(0.25, queries=3, parameters={"model": checkpoint, "hop": 0.2,
                                                   "device": "cpu"}, threads=1)
    report = trial.run(tmp_path / "node.log", progress=False)
    assert report["failed"] == [], (tmp_path / "node.log").read_text()
    assert report["hops"] == 75 and report["audio_minutes"] == 0.25
    assert all(v > 14 for v in report["extracted_seconds"].values())
    assert len(report["extracted_seconds"]) == 3 and report["memory_mb"]["end"] > 50
    assert report["node"]["hops"] == "75" and report["exit_status"] == 0
    harness.write_report(tmp_path, "soak", report, soak.markdown(report))
    soak.plot(report, tmp_path / "soak.png")
    assert "All checks passed" in (tmp_path / "soak.md").read_text()
    assert json.loads((tmp_path / "soak.json").read_text())["queries"] == 3
    assert (tmp_path / "soak.png").stat().st_size > 1000


@ros
def test_the_soak_finds_what_is_wrong():
    good = {"hops": 10, "hops_expected": 10, "hops_skipped": 0, "gaps_in_extracted": 0,
            "audio_minutes": 1.0, "extracted_seconds": {"a": 59.3}, "memory_mb": {"growth": 3.0},
            "exit_status": 0, "tracebacks": 0}
    trial = soak.Soak(1.0)
    assert trial._failures(good) == []
    for change, said in (({"hops": 9}, "9 hops of 10"), ({"hops_skipped": 1}, "1 were skipped"),
                         ({"gaps_in_extracted": 2}, "2 gaps"), ({"exit_status": -9}, "status -9"),
                         ({"extracted_seconds": {"a": 50.0}}, "short"), ({"tracebacks": 1}, "1 tr"),
                         ({"memory_mb": {"growth": 40.0}}, "grew by 40")):
        (failure,) = trial._failures({**good, **change})
        assert said in failure
    leak = [(i, i, 500 + i) for i in range(100)]
    flat = [(i, i, 500 + min(i, 15)) for i in range(100)]
    assert soak._memory(leak)["growth"] > 50 and soak._memory(flat)["growth"] == 0


@ros
def test_gaps_in_blocks_are_counted():
    source, blocks = harness.Source(), harness.Blocks()
    chunks = [source.next() for _ in range(6)]
    for chunk in chunks[:3] + chunks[4:]:
        chunk.query_id = "a"
        blocks.add(chunk)
    assert blocks.gaps == 1 and blocks.samples["a"] == 5 * 800
    assert chunks[5].first_sample == 4000 and chunks[1].header.stamp.nanosec == 50_000_000


@ros
def test_a_node_that_ends_is_noticed(tmp_path):
    program = ["-c", "print('no such thing')"]
    with pytest.raises(harness.FieldError, match="no such thing"):
        soak.Soak(0.1, program=program).run(tmp_path / "node.log", progress=False)


# -- fuzz --------------------------------------------------------------------------------------


@ros
def test_a_short_fuzz(checkpoint, tmp_path):
    report = fuzz.run(300, seed=11, log=tmp_path / "node.log", check=150, progress=False,
                      parameters={"model": checkpoint, "device": "cpu"})
    assert report["failed"] == [], (tmp_path / "node.log").read_text()[-5000:]
    assert report["messages"] == 300 and report["checks"] == 3
    assert all(row["sent"] for row in report["classes"].values())
    assert report["classes"]["parameter"]["refused"] > 5 and report["exit_status"] == 0
    assert int(report["node"]["refused messages"]) > 20
    assert "| bytes |" in fuzz.markdown(report)


@ros
def test_the_seed_says_what_is_sent(monkeypatch):
    def sent(seed):
        out = []
        publisher = SimpleNamespace(publish=lambda message: out.append(str(message)))
        node = SimpleNamespace(create_publisher=lambda *_: publisher,
                               create_client=lambda *_: None)
        client = SimpleNamespace(node=node, name="/luseel", audio=publisher, words=publisher)
        trial = fuzz.Fuzz(client, node, seed, [
            "audio", "nearly", "text", "message", "types", "bytes", "rapid"])
        for _ in range(60):
            trial.one()
        return out

    monkeypatch.setattr(fuzz.time, "time", lambda: 1.7e9)
    assert sent(3) == sent(3) != sent(4)


# -- latency -----------------------------------------------------------------------------------


@ros
def test_overhead_is_what_isnt_the_model(checkpoint, tmp_path):
    cost = latency.overhead(tmp_path, 2.0, parameters={
        "model": checkpoint, "hop": 0.2, "device": "cpu"})
    assert cost["runs"] >= 5 and cost["model_cpu"] > 0
    assert cost["streaming_cpu"] > 0 and cost["ros_cpu"] > 0
    assert cost["total"] == pytest.approx(cost["streaming"] + cost["ros"], abs=0.001)


@ros
def test_shares_of_the_cpu_time():
    """Ten seconds, 20 hops of which 15 were computed: 1.5 s in the model, 2 s for all of them."""
    zero = {"model": 1.0, "stream": 1.1, "push": 0.1, "process": 9.0, "time": 100.0,
            "calls": {"model": 7}}
    end = {"model": 2.5, "stream": 2.65, "push": 0.15, "process": 10.8, "time": 110.0,
           "calls": {"model": 22}}
    cost = latency.shares(zero, end, 3, 0.5)
    assert cost["runs"] == 15 and cost["hops_lost"] == 4  # give or take the one at the edge
    assert cost["model_cpu_of_all_hops"] == pytest.approx(2.0)
    assert cost["streaming"] == pytest.approx(0.1 / 2) and cost["ros"] == pytest.approx(0.2 / 2)
    assert cost["total"] == pytest.approx(0.15)
    with pytest.raises(harness.FieldError, match="didn't run"):
        latency.shares(zero, zero, 3, 0.5)


@ros
def test_latency_targets_and_table():
    row = {"profile": "balanced", "queries": 3, "stated": 0.7, "hops_lost": 0,
           "audio_latency": {"p50": 0.5, "p95": 0.8, "p99": 0.9, "max": 1.0},
           "event_latency": {"p50": 0.1, "p95": 0.1, "p99": 0.2, "max": 0.2},
           "computing": {"p50": 0.06, "p95": 0.07, "p99": 0.08, "max": 0.1},
           "real_time_factor_p95": 0.14}
    cost = {"queries": 3, "seconds": 60.0, "runs": 120, "hops_lost": 0, "model_cpu": 10.0,
            "model_cpu_of_all_hops": 10.0, "streaming_cpu": 0.1, "ros_cpu": 0.5,
            "streaming": 0.01, "ros": 0.05, "total": 0.06}
    report = {"machine": harness.machine(), "threads": 2, "seconds": 30.0, "rows": [row],
              "overhead": cost}
    assert latency.misses(report) == []
    slow = {**row, "audio_latency": {**row["audio_latency"], "p99": 1.2}}
    late = {**row, "real_time_factor_p95": 1.1}
    assert "p99" in latency.misses({**report, "rows": [slow]})[0]
    assert "real time" in latency.misses({**report, "rows": [late]})[0]
    assert "overhead" in latency.misses({**report, "overhead": {**cost, "total": 0.11}})[0]
    text = latency.markdown({**report, "failed": []})
    assert "| balanced | 3 | 0.7 | 0.50 / 0.80 / 0.90 | 0.100 / 0.200 | 60 / 70 | 14% | 0 |" in text
    assert "together 6.0%" in text and "All targets met" in text
