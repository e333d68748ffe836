"""Evaluation end to end with doubles of a model on synthetic recordings and a synthetic head."""

import csv
import json
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from luseel_model.errors import ConfigError
from training import evaluate as command
from training.captions import Captions
from training.evaluation import (
    EvaluationConfig,
    MixtureSet,
    balanced_recordings,
    by_separation,
    evaluate,
    gcc_direction,
    load_evaluation_config,
)
from training.heads import Head, interaural_delay
from training.pool import ClipPool
from training.report import format_interval, markdown, write_report

KINDS = ["dog barking", "rain falling", "bell ringing", "frog croaking", "cat meowing"]
CONFIG = EvaluationConfig(packed="data/toy", mixtures=18, seconds=0.4, sdr=False, resamples=50)


def make_head(name="toy", delay=0.0006):
    """A head of pure delays and level differences: left leads for azimuths of 0 to 180 degrees."""
    azimuth = np.deg2rad(np.arange(360))[:, None, None]
    side = np.array([1.0, -1.0])[None, :, None]
    lag = 40 - side * np.sin(azimuth) * delay * 16000 / 2
    response = np.sinc(np.arange(96)[None, None] - lag) * 10 ** (side * np.sin(azimuth) * 4 / 20)
    return Head(name, torch.tensor(response, dtype=torch.float32))


@pytest.fixture(scope="module")
def pool():
    generator = np.random.default_rng(0)
    clips, labels, names = [], [], []
    for index in range(13):
        label = [*KINDS[:4], "unknown sound"][min(index, 12) % 4 if index < 12 else 4]
        noise = generator.normal(size=9000)
        spectrum = np.fft.rfft(noise)
        band = np.arange(spectrum.size) / spectrum.size * 8
        centre = 0.5 + index * 0.55
        spectrum *= np.exp(-((band - centre) ** 2) / 0.5)
        clip = np.fft.irfft(spectrum)
        clips.append((clip / np.abs(clip).max() * 20000).astype(np.int16))
        labels.append(label)
        names.append(f"recording{index}")
    start = np.cumsum([0, *[clip.size for clip in clips[:-1]]])
    return ClipPool(
        torch.from_numpy(np.concatenate(clips)), start, [c.size for c in clips], labels, KINDS,
        names,
    )


@pytest.fixture(scope="module")
def head():
    return make_head()


class Double:
    """Stands in for a loaded model; knows the mixtures."""

    sample_rate, window = 16000, 2.0

    def __init__(self, name, answer, mixtures, words=lambda kind: kind):
        self.name, self.answer, self.words = name, answer, words
        self.known = {m.audio.numpy().tobytes(): m for m in mixtures}
        self.calls = Counter()

    def answers(self, audio, queries):
        mixture = self.known[audio.numpy().tobytes()]
        return [self.answer(mixture, [self.words(k) for k in mixture.kind], q) for q in queries]

    def infer_window(self, window, queries):
        self.calls["infer_window"] += 1
        audio, azimuth, confidence = zip(*self.answers(window, queries), strict=True)
        return SimpleNamespace(
            audio=torch.stack(audio).numpy(),
            azimuth=np.array(azimuth),
            likelihood=np.zeros((len(queries), 360)),
            confidence=np.array(confidence),
        )

    def extract(self, audio, sample_rate, queries, progress=None):
        self.calls["extract"] += 1
        assert sample_rate == 16000
        return [
            SimpleNamespace(audio=a.numpy(), azimuth=z, confidence=c)
            for a, z, c in self.answers(audio, queries)
        ]


def oracle(mixture, words, query):
    if query not in words:
        return torch.zeros_like(mixture.audio), 0.0, 0.1
    i = words.index(query)
    return mixture.sources[i], float(mixture.azimuth[i]), 0.9


def copier(mixture, words, query):
    """The unprocessed mixture, always from behind, always certain."""
    return mixture.audio, 180.0, 1.0


def swapper(mixture, words, query):
    """Pulls out another sound and its direction."""
    i = (words.index(query) + 1) % len(words) if query in words else 0
    return mixture.sources[i], float(mixture.azimuth[i]), 0.5


# The mixtures


def test_every_recording_is_used_equally_often():
    kinds = [k for k, n in (("a", 7), ("b", 5), ("c", 3), ("d", 2)) for _ in range(n)]
    slots = balanced_recordings(kinds, 100, 2, {"c": {"d"}, "d": {"c"}}, np.random.default_rng(0))
    uses = np.bincount(slots.ravel(), minlength=17)
    assert slots.shape == (100, 2) and uses.min() >= 11 and uses.max() <= 12
    pairs = {frozenset((kinds[a], kinds[b])) for a, b in slots}
    assert all(len(pair) == 2 for pair in pairs) and frozenset("cd") not in pairs


def test_three_sources_and_impossible_mixtures():
    kinds = list("aabbccddee")
    slots = balanced_recordings(kinds, 40, 3, {}, np.random.default_rng(0))
    assert all(len({kinds[i] for i in row}) == 3 for row in slots)
    with pytest.raises(ConfigError, match="different kinds"):
        balanced_recordings(list("aaaaab"), 30, 2, {}, np.random.default_rng(0))


def test_mixtures_are_fixed_and_equal_for_all_heads(pool, head):
    first = list(MixtureSet(pool, head, CONFIG))
    again = list(MixtureSet(pool, head, CONFIG))
    other = list(MixtureSet(pool, make_head("other", 0.0008), CONFIG))
    moved = list(MixtureSet(pool, head, replace(CONFIG, seed=1)))
    assert [m.index for m in first] == list(range(18))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.audio, b.audio) and a.absent_kind == b.absent_kind
        assert torch.equal(a.recording, c.recording) and torch.equal(a.azimuth, c.azimuth)
        assert not torch.equal(a.audio, c.audio)
    assert any(not torch.equal(a.recording, d.recording) for a, d in zip(first, moved, strict=True))


def test_what_is_in_a_mixture(pool, head):
    mixtures = MixtureSet(pool, head, CONFIG)
    assert (mixtures.recordings, mixtures.left_out) == (12, {"unknown sound": 1})
    uses = Counter()
    for mixture in mixtures:
        uses.update(mixture.recording.tolist())
        assert mixture.audio.shape == (2, 6400) and mixture.sources.shape == (2, 2, 6400)
        assert torch.allclose(mixture.sources.sum(0), mixture.audio, atol=1e-6)
        assert len(set(mixture.kind)) == 2 and "unknown sound" not in mixture.kind
        assert mixture.absent_kind in KINDS and mixture.absent_kind not in mixture.kind
        assert (mixture.sources.square().sum(-1) > 0).all()
    assert set(uses.values()) == {3}


def test_sounds_that_are_alike_stay_apart(pool, head):
    captions = Captions.parse(
        {
            "labels": {kind: {"noun": kind.split()[0]} for kind in KINDS},
            "confusable": [["dog barking", "cat meowing"], ["rain falling", "bell ringing"]],
        }
    )
    for mixture in MixtureSet(pool, head, CONFIG, captions):
        assert set(mixture.kind) != {"rain falling", "bell ringing"}
        near = set.union(*(captions.confusable(kind) for kind in mixture.kind))
        assert mixture.absent_kind not in near


# Models


def test_oracle_is_perfect(pool, head):
    model = Double("oracle", oracle, MixtureSet(pool, head, CONFIG))
    summary, rows = evaluate(model, pool, [head], CONFIG, progress=False)
    (condition,) = summary["heads"]
    metrics = condition["metrics"]
    for key in ("right_source", "within_5", "within_10"):
        assert metrics[key]["mean"] == metrics[key]["low"] == 1.0
    assert metrics["doa_error"]["mean"] == pytest.approx(0.0, abs=1e-3)
    assert metrics["front_back"]["mean"] == 0.0
    assert metrics["si_snri"]["mean"] > 50
    assert metrics["si_snri"]["n"] == 36 and metrics["si_snri"]["clusters"] == 12
    presence = condition["presence"]
    assert presence["auroc"]["mean"] == 1.0
    assert presence["confidence_present"]["mean"] == pytest.approx(0.9)
    assert presence["confidence_absent"]["mean"] == pytest.approx(0.1)
    assert presence["below_mixture_absent_db"]["mean"] == 100.0
    assert summary["left_out"] == {"recordings": 1, "kinds": {"unknown sound": 1}}
    assert (summary["recordings"], summary["kinds"], summary["room"]) == (12, 4, "none")
    assert len(rows) == 54 and sum(not row["present"] for row in rows) == 18


def test_mixture_gains_nothing(pool, head):
    model = Double("copy", copier, MixtureSet(pool, head, CONFIG))
    summary, rows = evaluate(model, pool, [head], replace(CONFIG, sdr=True), progress=False)
    (condition,) = summary["heads"]
    metrics, presence = condition["metrics"], condition["presence"]
    assert metrics["si_snri"]["mean"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["sdri"]["mean"] == pytest.approx(0.0, abs=1e-4)
    # The louder of two sounds is the nearer one: half of the queries, as for the baseline.
    assert metrics["right_source"] == condition["baselines"]["mixture"]["right_source"]
    assert 0.4 <= metrics["right_source"]["mean"] <= 0.6
    assert presence["auroc"]["mean"] == 0.5
    assert presence["below_mixture_present_db"]["mean"] == pytest.approx(0.0, abs=1e-4)
    errors = [row["doa_error"] for row in rows if row["present"]]
    truth = [row["azimuth"] for row in rows if row["present"]]
    assert errors == pytest.approx([abs(azimuth - 180) for azimuth in truth], abs=1e-3)


def test_wrong_source_is_told(pool, head):
    model = Double("swap", swapper, MixtureSet(pool, head, CONFIG))
    summary, rows = evaluate(model, pool, [head], CONFIG, progress=False)
    (condition,) = summary["heads"]
    assert condition["metrics"]["right_source"]["mean"] == 0.0
    for row in rows:
        if row["present"]:
            assert row["doa_error"] == pytest.approx(row["separation"], abs=1e-3)
    assert condition["si_snri_of_wrong_sources"]["n"] == 36


def test_long_mixtures_use_extract(pool, head):
    config = replace(CONFIG, mixtures=6, sources=3)
    model = Double("oracle", oracle, MixtureSet(pool, head, config))
    model.window = 0.25
    summary, _ = evaluate(model, pool, [head], config, progress=False)
    assert model.calls == {"extract": 6}
    assert summary["heads"][0]["metrics"]["within_5"]["mean"] == 1.0
    assert summary["chance"]["right_source"] == pytest.approx(1 / 3)


def test_single_source_and_the_models_window(pool, head):
    config = replace(CONFIG, mixtures=12, sources=1, seconds=None)
    model = Double("oracle", oracle, MixtureSet(pool, head, replace(config, seconds=0.3)))
    model.window = 0.3
    summary, rows = evaluate(model, pool, [head], config, progress=False)
    assert summary["seconds"] == 0.3
    assert "right_source" not in summary["heads"][0]["metrics"]
    assert "By angle" not in markdown(summary) and len(rows) == 24


def test_held_out_wording(pool, head):
    captions = Captions.parse(
        {"labels": {kind: {"held_out": f"some {kind}"} for kind in KINDS}}
    )
    config = replace(CONFIG, mixtures=6, wording="held_out")
    model = Double("oracle", oracle, MixtureSet(pool, head, config, captions), captions.held_out)
    summary, rows = evaluate(model, pool, [head], config, captions, progress=False)
    assert all(row["query"] == f"some {row['kind']}" for row in rows)
    assert summary["heads"][0]["metrics"]["right_source"]["mean"] == 1.0


def test_model_without_directions(pool, head):
    config = replace(CONFIG, mixtures=6)

    def deaf(mixture, words, query):
        return *oracle(mixture, words, query)[:1], math.nan, 0.5

    model = Double("deaf", deaf, MixtureSet(pool, head, config))
    summary, rows = evaluate(model, pool, [head], config, progress=False)
    assert math.isnan(summary["heads"][0]["metrics"]["within_5"]["mean"])
    assert "| – | – | – | – |" in markdown(summary)


def test_gcc_direction(head):
    """A single noise, side by side: the delay gives the direction or its mirror image."""
    delays = interaural_delay(head.hrir.numpy(), 16000)
    assert delays[90] > 0.0005 and delays[270] < -0.0005
    noise = torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(0))
    for azimuth in (0, 30, 60, 120, 200, 300):
        kernel = head.hrir[azimuth].flip(-1)[:, None]
        audio = torch.nn.functional.conv1d(noise, kernel)[0]
        found = gcc_direction(audio, delays)
        mirrored = (180 - found) % 360
        error = min(abs((x - azimuth + 180) % 360 - 180) for x in (found, mirrored))
        assert error <= 4, (azimuth, found)


# Report


def test_separation_groups():
    rows = [
        {"separation": angle, "si_snri": angle, "doa_error": 1.0, "within_5": 1.0, "recording": i}
        for i, angle in enumerate((0.0, 14.0, 15.0, 100.0, 180.0))
    ]
    groups = by_separation(rows, CONFIG)
    assert [g["n"] for g in groups] == [2, 1, 0, 0, 1, 0, 1]
    assert groups[0]["si_snri"]["mean"] == 7.0 and groups[2]["si_snri"] is None


def test_report_files(pool, head, tmp_path):
    other = make_head("other/head", 0.0008)
    known = [m for h in (head, other) for m in MixtureSet(pool, h, CONFIG)]
    summary, rows = evaluate(
        Double("oracle", oracle, known), pool, [head, other], CONFIG, progress=False
    )
    files = write_report(summary, rows, tmp_path / "report")
    assert {f.name for f in files} == {
        "summary.json", "rows.csv", "report.md",
        "separation_toy.png", "scatter_toy.png", "kinds_toy.png",
        "separation_other_head.png", "scatter_other_head.png", "kinds_other_head.png",
    }
    assert all(f.stat().st_size > 500 for f in files)
    read = json.loads(files[0].read_text(encoding="utf-8"))
    assert read["heads"][0]["metrics"]["right_source"]["mean"] == 1.0
    assert read["config"]["seed"] == CONFIG.seed
    with open(files[1], newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 108
    assert table[0]["head"] == "toy" and float(table[0]["within_5"]) == 1.0
    text = files[2].read_text(encoding="utf-8")
    for words in ("data toy, split test: 12 recordings of 4 kinds", "18 mixtures of 2 sounds",
                  "room none", "95%, bootstrap over target recordings", "GCC-PHAT", "chance",
                  "unprocessed mixture", "Left out: 1 recordings of 1 kinds", "other/head"):
        assert words in text, words


def test_numbers_as_text():
    value = {"mean": 0.5, "low": 0.25, "high": 0.75}
    assert format_interval(value, 100, 0) == "50 (25 to 75)"
    assert format_interval({**value, "low": math.nan}) == "0.5"
    assert format_interval(None) == format_interval({**value, "mean": math.nan}) == "–"


def test_configuration_is_checked(tmp_path):
    config = load_evaluation_config()
    assert (config.split, config.mixtures, config.heads) == ("test", 500, ("mit_kemar", "fabian"))
    assert load_evaluation_config("evaluation", {"mixtures": 3}).mixtures == 3
    path = tmp_path / "mine.yaml"
    for content, message in (
        ({"mixture": 3}, "mixture"),
        ({"mixtures": 0}, "mixtures: 0"),
        ({"heads": []}, "heads"),
        ({"wording": "rude"}, "wording"),
        ({"seconds": 0.0}, "seconds"),
    ):
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_evaluation_config(path)


def test_too_few_kinds(pool, head):
    with pytest.raises(ConfigError, match="4 kinds"):
        MixtureSet(pool, head, replace(CONFIG, sources=5))


def test_command(pool, head, tmp_path, monkeypatch, capsys):
    model = Double("oracle", oracle, MixtureSet(pool, head, replace(CONFIG, mixtures=4)))
    model.window = 0.4
    monkeypatch.setattr(command, "load_model", lambda path, device: model)
    monkeypatch.setattr(command, "load_head", lambda name: head)
    monkeypatch.setattr(command.ClipPool, "load", lambda folder, split: pool)
    out = tmp_path / "out"
    status = command.main(["--mixtures", "4", "--heads", "toy", "--no-sdr", "--out", str(out)])
    assert status == 0 and (out / "summary.json").exists()
    assert "# Evaluation of oracle" in capsys.readouterr().out
    assert command.main(["--mixtures", "0"]) == 2
    assert "mixtures" in capsys.readouterr().err
