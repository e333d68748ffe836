"""Separation tables: metrics against other libraries, mixtures, a run, the tables."""

import csv
import json

import numpy as np
import pytest
import torch
from torchmetrics.functional.audio import (scale_invariant_signal_distortion_ratio,
                                           signal_distortion_ratio)

from luseel_model.errors import ConfigError
from luseel_model.lass import LASSExtractor
from luseel_model.query import Query
from model_fixtures import minilm, noise, write_corpus
from test_lass import make, tiny
from training.benchmark.render import Renderer
from training.captions import Captions
from training.pool import ClipPool
from training.separation.__main__ import main
from training.separation.metrics import separation_metrics
from training.separation.mixtures import DEFAULT, head_of, load_mixtures, make_mixtures
from training.separation.run import asked_of, rows_of, rows_of_references, with_binaural
from training.separation.table import PAPER, by_mixture

KINDS = ("dog barking", "rain", "trumpet", "cat meowing", "church bell")


def tone(index, seconds=1.5, rate=16000):
    """A sound of its own for each kind: decaying tones and some noise."""
    t = np.arange(int(seconds * rate)) / rate
    generator = np.random.default_rng(index)
    return (0.2 * np.sin(2 * np.pi * 150 * (index + 1) * t) * np.exp(-t)
            + 0.05 * generator.standard_normal(t.size))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    clips = {split: [(kind, f"{split}{i}{j}", tone(i + 10 * j)) for i, kind in enumerate(KINDS)
                     for j in range(2)] for split in ("train", "valid", "test")}
    return write_corpus(tmp_path_factory.mktemp("separation") / "packed", clips)


@pytest.fixture(scope="module")
def version(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("version") / "v0"
    pool = ClipPool.load(packed, "test")
    return folder, make_mixtures(folder, pool, Captions.load(), mixtures=4, seconds=1.0)


# -- metrics

def test_metrics_against_torchmetrics():
    """SDR and SI-SDR as torchmetrics has them, which follows other code."""
    sources = noise(2, 1, 8000)
    estimate = torch.stack([sources[0] + 0.3 * sources[1], sources[0] * 3 + 0.1 * noise(
        1, 8000, seed=7)])
    found = separation_metrics(estimate, sources)
    target = sources[:1, 0].expand(2, -1).double()
    torch.testing.assert_close(
        found["sdr"], signal_distortion_ratio(estimate[:, 0].double(), target,
                                              load_diag=1e-8).float(), atol=0.02, rtol=0)
    torch.testing.assert_close(
        found["si_sdr"], scale_invariant_signal_distortion_ratio(
            estimate[:, 0].double(), target, zero_mean=True).float(), atol=1e-3, rtol=0)


def test_what_bss_eval_tells_apart():
    """Interference lowers the SIR alone, artifacts the SAR alone; levels by construction."""
    sources, other = noise(2, 1, 16000), noise(1, 16000, seed=9)
    values = separation_metrics(torch.stack([
        sources[0] + 0.1 * sources[1], sources[0] + 0.1 * other, sources.sum(0),
        0 * sources[0]]), sources)
    assert values["sir"][0] == pytest.approx(20, abs=0.7) and values["sar"][0] > 40
    assert values["sar"][1] == pytest.approx(20, abs=0.7) and values["sir"][1] > 30
    assert values["sdr"][:2].tolist() == pytest.approx([20, 20], abs=0.7)
    # the unprocessed mixture: as much of either sound, no artifacts
    assert values["sdr"][2] == pytest.approx(0, abs=0.7) == values["si_sdr"][2].round()
    assert values["sir"][2] == pytest.approx(0, abs=0.7) and values["sar"][2] > 40
    assert values["sdr"][3] < -10  # silence is no separation


def test_metrics_take_the_mean_of_both_ears():
    sources = noise(2, 2, 8000)
    estimate = sources[:1] + 0.3 * sources[1:]
    both = separation_metrics(estimate, sources)
    ears = [separation_metrics(estimate[:, [e]], sources[:, [e]]) for e in range(2)]
    for key, value in both.items():
        assert value.item() == pytest.approx((ears[0][key] + ears[1][key]).item() / 2, abs=1e-4)


# -- mixtures

def test_published_version():
    """Never changes: 320 mixtures of two kinds that differ, words that training doesn't use."""
    mixtures = load_mixtures()
    assert mixtures.catalogue.sha256.startswith("a96b7c09f55a")
    assert len(mixtures.queries) == 320
    captions = Captions.load()
    for queries, sounds in zip(mixtures.queries, mixtures.catalogue.sounds["two"]):
        kinds = [mixtures.catalogue.recordings[sound.recording].kind for sound in sounds]
        assert kinds == [queries.label, queries.other] and kinds[0] != kinds[1]
        assert kinds[1] not in captions.confusable(kinds[0])
        assert [sound.snr_db for sound in sounds] == [0.0, 0.0]
        assert not set(queries.held_out) & set(captions.variants(queries.label)) - {queries.label}
        assert queries.caption in captions.variants(queries.label)


def test_mixtures_are_at_0_db(packed, version):
    folder, mixtures = version
    pool = ClipPool.load(packed, "test")
    mono = Renderer(mixtures.catalogue, mixtures.catalogue.cells["mono"], pool, head_of("mono"))
    for i in range(len(mono)):
        mixture = mono[i]
        level = np.square(mixture.sources[:, 0]).mean(-1)
        assert 10 * np.log10(level[0] / level[1]) == pytest.approx(0, abs=1e-3)
        assert np.array_equal(mixture.audio[0], mixture.audio[1])
        np.testing.assert_allclose(mixture.sources.sum(0), mixture.audio, atol=1e-6)
        assert mixture.kind == [mixtures.queries[i].label, mixtures.queries[i].other]


def test_a_changed_version_is_refused(version, tmp_path):
    folder, _ = version
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / "queries.csv").read_text()
    (tmp_path / "queries.csv").write_text(text.replace("dog", "wolf").replace("trumpet", "horn"))
    with pytest.raises(ConfigError, match="queries.csv was changed"):
        load_mixtures(tmp_path)


# -- rows

def test_rows_of_a_model(packed, version):
    _, mixtures = version
    pool = ClipPool.load(packed, "test")
    cell = mixtures.catalogue.cells["mono"]
    mixture = Renderer(mixtures.catalogue, cell, pool, head_of("mono"))[0]
    model = LASSExtractor(make(tiny()), text=minilm())
    with torch.no_grad():  # a mask of ones: the model returns the mixture
        model.network.separator.last.weight.zero_()
        model.network.separator.last.bias.fill_(100.0)
    queries = mixtures.queries[0]
    rows = rows_of(model, mixture, queries)
    assert [row["asked"] for row in rows] == ["label", "caption", *["held_out"] * len(
        queries.held_out), "nothing", "other"]
    assert rows[0]["query"] == queries.label and rows[-1]["query"] == queries.other
    unprocessed = rows_of_references(mixture)[0]
    for row in rows:
        assert row["sdr"] == pytest.approx(unprocessed["sdr"], abs=0.05)
        assert row["si_sdr"] == pytest.approx(unprocessed["si_sdr"], abs=0.05)
    known = {row["asked"]: row["sdr"] for row in rows_of_references(mixture)}
    assert known["irm"] > known["unprocessed"] + 3 and abs(known["unprocessed"]) < 2


def test_tags_are_asked_by_tag(version):
    _, mixtures = version
    model = LASSExtractor(make(tiny(query={"encoder": "tags", "tags": list(KINDS)})))
    sorts, words, asked = asked_of(model, mixtures.queries[0])
    assert sorts == ["label", "other"]
    assert [q.tag for q in asked] == words and all(isinstance(q, Query) for q in asked)


def test_binaural_is_a_choice():
    model = with_binaural(LASSExtractor(make(tiny()), text=minilm()), "each")
    assert model.network.config.binaural == "each"
    with torch.no_grad():
        mask = model.network(noise(1, 2, 8000), torch.ones(1, 1, 384)).mask
    assert mask.shape[2] == 2


def test_several_wordings_become_their_mean():
    rows = [{"mixture": 0, "asked": "held_out", "sdr": v, "sir": 1.0, "sar": 2.0, "si_sdr": 0.0}
            for v in (1.0, 3.0)]
    assert by_mixture(rows, "held_out")[0]["sdr"] == 2.0


# -- all of it

def test_command_line(packed, version, tmp_path, capsys):
    from luseel_model.checkpoint import save_checkpoint

    folder, _ = version
    checkpoint = tmp_path / "tiny.safetensors"
    save_checkpoint(checkpoint, make(tiny()).state_dict(), tiny())
    common = ["--packed", str(packed), "--mixtures", str(folder)]
    reference, run = tmp_path / "reference", tmp_path / "run"
    assert main(["evaluate", *common, "--out", str(reference)]) == 0
    arguments = ["evaluate", *common, "--checkpoint", str(checkpoint), "--out", str(run)]
    assert main([*arguments, "--count", "2"]) == 0
    path = run / "cells" / "mono.jsonl"
    first = path.read_text()
    path.write_text(first[:-20])  # an interruption tore the last line off
    assert main(arguments) == 0
    assert path.read_text().startswith(first) and len(path.read_text().splitlines()) == 4
    out = tmp_path / "tables"
    assert main(["table", str(run), "--reference", str(reference), "--out", str(out),
                 "--mixtures", str(folder)]) == 0
    summary = json.loads((out / "separation.json").read_text())
    rows = summary["cells"]["mono"]
    assert [row["title"] for row in rows] == [
        "unprocessed mixture", "ideal ratio mask", "ideal binary mask", "label", "caption",
        "held-out wordings", '"a sound"', "the other sound's label"]
    assert all(row["mixtures"] == 4 for row in rows)
    measured = [json.loads(line) for line in path.read_text().splitlines()]
    label = np.mean([row["sdr"] for mixture in measured for row in mixture
                     if row["asked"] == "label"])
    assert rows[3]["sdr"]["mean"] == pytest.approx(label)
    assert rows[0]["sdr_improvement"]["mean"] == 0
    text = (out / "separation.md").read_text()
    assert "| LASS-Net (human) | 6.13 | 17.03 | 5.45 | 5.04 | 5.57 |" in text
    assert (out / "separation.png").stat().st_size > 10_000
    assert main(["evaluate", *common, "--checkpoint", str(checkpoint), "--out", str(run),
                 "--binaural", "each"]) == 1
    assert "another binaural" in capsys.readouterr().err


def test_the_papers_improvements():
    """Section 5.5.1 names them: 6.35, 4.53, 4.63 and 5.39 dB."""
    rows = PAPER["Table 1, LASS-Test"]
    gain = np.subtract(rows["LASS-Net"], rows["Unprocessed"])
    assert gain.tolist() == pytest.approx([6.35, 4.53, 4.63, 5.39])
    rows = PAPER["Table 2, LASS-Sub-Test"]
    gain = np.subtract(rows["LASS-Net (human)"], rows["Unprocessed"])
    assert gain.tolist() == pytest.approx([5.57, 4.76, 3.77, 4.51])


def test_queries_file_is_plain():
    with open(DEFAULT / "queries.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["mixture"]) for row in rows] == list(range(320))
