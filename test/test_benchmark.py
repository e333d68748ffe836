"""The benchmark: what is timed, in which order, what is reported, with which mistakes."""

import json

import numpy as np
import pytest
import torch
from model_fixtures import TINY, changed, make_network, minilm
from yaml import safe_dump

from luseel_model import benchmark as module
from luseel_model import cli
from luseel_model.benchmark import (
    QUERIES, Benchmark, ProfileTiming, QueryTiming, RandomText, benchmark, untrained)
from luseel_model.checkpoint import save_checkpoint
from luseel_model.errors import LuseelError
from luseel_model.luseel import LuSeeLExtractor
from luseel_model.streaming import Profile


@pytest.fixture
def model():
    return LuSeeLExtractor(make_network(changed("tiny")), text=minilm())


@pytest.fixture
def no_bfloat16(monkeypatch):
    monkeypatch.setattr("luseel_model.streaming.fast_precision", lambda device: "float32")


def fake_clock(model, monkeypatch, seconds):
    """A clock that only infer_window moves, by seconds(queries); the calls -> list."""
    clock, calls = [0.0], []

    def infer_window(window, queries):
        assert window.shape == (2, model.window_samples) and window.std() > 0.01
        fast = torch.is_autocast_enabled("cpu")
        calls.append((fast, list(queries)))
        clock[0] += seconds(queries, fast)

    monkeypatch.setattr(model, "infer_window", infer_window)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    return calls


def test_times_are_of_the_calls(model, monkeypatch, no_bfloat16):
    """10 ms a call and 5 ms a query."""
    calls = fake_clock(model, monkeypatch, lambda queries, fast: 0.01 + 0.005 * len(queries))
    result = benchmark(model, rounds=4, progress=False)
    assert [t.queries for t in result.timings] == [1, 3, 8]
    np.testing.assert_allclose([t.p50 for t in result.timings], [0.015, 0.025, 0.05])
    np.testing.assert_allclose([t.p95 for t in result.timings], [0.015, 0.025, 0.05])
    assert result.separate_p50 == pytest.approx(0.12)
    assert result.sharing_gain == pytest.approx(2.4)
    one = [(False, list(QUERIES[:n])) for n in (1, 3, 8)]
    alone = [(False, [query]) for query in QUERIES]
    assert calls == one + 4 * (one + alone)  # side by side


def test_profiles_are_timed_in_their_precision(model, monkeypatch):
    monkeypatch.setattr("luseel_model.streaming.fast_precision", lambda device: "bfloat16")
    monkeypatch.setattr(module, "PROFILES", {
        "fast": Profile(0.2, 0.05, 0.05), "exact": Profile(0.3, 0.1, 0.1, "float32"),
        "long": Profile(0.4, 0.1, 0.1)})  # longer than the window of 0.5 s
    fake_clock(model, monkeypatch, lambda queries, fast: len(queries) * (0.01 if fast else 0.03))
    result = benchmark(model, rounds=2, counts=(1, 2, 99), progress=False)
    assert [t.p50 for t in result.timings] == pytest.approx([0.03, 0.06])  # float32
    assert [p.profile for p in result.profiles] == ["fast", "exact"]
    for profile, precision, times in zip(result.profiles, ("bfloat16", "float32"),
                                         ([0.01, 0.02], [0.03, 0.06])):
        assert profile.precision == precision
        assert [t.p95 for t in profile.timings] == pytest.approx(times)
    assert (result.profiles[0].latency, result.profiles[1].latency) == (0.3, 0.5)


def test_percentiles(model, monkeypatch, no_bfloat16):
    """Warm-up, then 20 rounds of a call and the same alone: 19 of 0.1 s and one of 1 s."""
    seconds = iter([5.0] + [0.1, 0.1] * 19 + [1.0, 1.0])
    fake_clock(model, monkeypatch, lambda queries, fast: next(seconds))
    (timing,) = benchmark(model, rounds=20, queries=QUERIES[:1], progress=False).timings
    assert timing.p50 == pytest.approx(0.1) and timing.p95 == pytest.approx(0.145)


def test_report():
    result = Benchmark("net", 5_800_000, 2.0, "Some CPU", 2, 0.5, 30,
                       [QueryTiming(1, 0.1, 0.12), QueryTiming(2, 0.2, 0.6)], 0.3, "A note.",
                       [ProfileTiming("quick", "bfloat16", 0.25, 0.05, 0.35,
                                      [QueryTiming(1, 0.05, 0.1)])])
    text = result.markdown()
    assert "net, 5.8 M parameters, windows of 2 s, on Some CPU, 2 threads; 30 rounds" in text
    assert "| 1 | 100.0 ms | 120.0 ms | 20.0% | 24.0% |" in text
    assert "2 queries in one call: 200.0 ms; in 2 calls: 300.0 ms, 1.50 times as long" in text
    assert "| quick | 0.25 s | 0.05 s | 0.35 s | bfloat16 | 50 / 100 ms, 40% |" in text
    assert "Slower than real time with 2 queries" in text and text.endswith("\n\nA note.")
    report = result.to_dict()
    assert report["timings"][1]["real_time_factor_p95"] == pytest.approx(1.2)
    assert report["profiles"][0]["timings"][0]["real_time_factor_p95"] == pytest.approx(0.4)
    assert report["sharing_gain"] == pytest.approx(1.5)
    assert json.loads(json.dumps(report)) == report


def test_random_text_stands_in_for_a_hub():
    config = changed("tiny", text={"encoder": "t5", "weights": "t5-nowhere", "embedding": 24})
    model, note = untrained(config, "cpu")
    assert isinstance(model._text, RandomText) and "in place of the text encoder t5-nowhere" in note
    first, second = model._text.embed(["rain", "bell"])
    assert first.shape == (6, 24) and not torch.equal(first, second)
    assert torch.equal(model._text.embed(["bell"])[0], second)
    assert np.isfinite(model.infer_window(np.zeros((2, 8000), np.float32), ["a", "b"]).audio).all()


def test_minilm_is_used_as_configured(monkeypatch):
    monkeypatch.setattr("luseel_model.luseel.extractor.TextEncoder", lambda config, device: minilm())
    model, note = untrained(changed("tiny"), "cpu")
    assert model._text is minilm() and "andom" not in note


@pytest.mark.parametrize("changes, said", [
    ({"rounds": 0}, "rounds must be 1 or more"), ({"hop": 0}, "hop must be above 0"),
    ({"hop": float("nan")}, "hop must be above 0"), ({"queries": ()}, "no number of queries")])
def test_mistakes(model, changes, said):
    with pytest.raises(LuseelError, match=said):
        benchmark(model, **changes)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("luseel_model.luseel.extractor.TextEncoder", lambda config, device: minilm())
    network = make_network(changed("tiny"))
    save_checkpoint("net.safetensors", network.state_dict(), network.config)
    arguments = ["benchmark", "--rounds", "2", "--device", "cpu"]
    assert cli.main([*arguments, "--model", "net.safetensors", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "net" and report["note"] == ""
    assert report["parameters"] == network.parameter_count()
    assert [t["queries"] for t in report["timings"]] == [1, 3, 8]
    assert all(0 < t["p50"] <= t["p95"] for t in report["timings"])
    (tmp_path / "small.yaml").write_text(safe_dump(TINY))
    assert cli.main([*arguments, "--untrained", "--config", "small.yaml", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "tiny (untrained)" in printed and ", 1 thread;" in printed
    assert printed.endswith("Untrained network: only its speed means anything.\n")
    for wrong, said in ((["--config", "luseel"], "needs --untrained"),
                        (["--untrained", "--model", "net.safetensors"], "leave out it or"),
                        (["--untrained", "--config", "huge"], "no model configuration"),
                        (["--untrained", "--threads", "0"], "--threads must be"),
                        (["--model", "gone.safetensors"], "no checkpoint at")):
        assert cli.main([*arguments, *wrong]) == 2
        assert said in capsys.readouterr().err
