"""Tables 2 and 3 of paper 002: the paper's figures, our sizes, measuring and the report."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from test_id_uss_task import (CONCEPTS, IMAGE, config_of, data,  # noqa: F401 (fixtures)
                              settings, vector)

from luseel_model.checkpoint import save_checkpoint
from luseel_model.errors import ConfigError
from luseel_model.families import load_config
from training.image_table.__main__ import main
from training.image_table.figure import extraction_figure
from training.image_table.measure import CONDITIONS, Condition, measure
from training.image_table.rows import ROWS
from training.image_table.table import figure, our_parameters, report
from training.pictures.bank import encoder_name, write_embeddings
from training.tasks.id_uss import IDUSSTask
from training.train_config import load_train_config


def test_the_papers_rows():
    assert sorted(row.sdri for row in ROWS if row.table == 2)[-1] == 10.233
    assert [len([row for row in ROWS if row.table == n]) for n in (2, 3)] == [6, 6]
    assert all(row.model or row.why for row in ROWS)
    for name in {row.small for row in ROWS if row.small}:
        config = load_train_config(name)
        config.check(config.model_config())
        with torch.device("meta"):
            network = IDUSSTask.build_network(config)
        assert 0.5e6 < network.parameter_count() < 2.6e6, name


def test_our_sizes_beside_the_papers():
    """The Conformer rows of table 2 differ by the image encoder alone: ours by the library's
    encoders, the paper's by its own counts."""
    rows = {row.visual: row for row in ROWS if row.table == 2 and row.model}
    for name, row in rows.items():
        load_config(row.model)
        if name != "CLIP-ResNet-50":
            assert our_parameters(row.model) == pytest.approx(row.parameters, rel=0.03), name


def test_figures():
    assert figure([4.123, 3.5, 4.71]) == "4.1 (3.5 to 4.7)"
    assert figure([0.5, 0.25, 0.75], percent=True) == "50 (25 to 75)" and figure(None) == "–"


@pytest.fixture
def tested(data, settings):  # noqa: F811
    """The training recordings and pictures as the test split."""
    packed, pictures = data / "packed", data / "pictures"
    for suffix in ("csv", "npy"):
        (packed / f"test.{suffix}").write_bytes((packed / f"valid.{suffix}").read_bytes())
    rows = [{"concept": c, "split": s, "versions": 1} for s in ("train", "valid", "test")
            for c in CONCEPTS]
    write_embeddings(pictures / "embeddings" / f"{encoder_name(IMAGE)}.safetensors",
                     [np.stack([vector(row["concept"], i)]) for i, row in enumerate(rows)], rows,
                     IMAGE)
    torch.manual_seed(0)
    return IDUSSTask.build_network(config_of(settings)).eval(), packed, pictures


def test_what_is_measured(tested):
    network, packed, pictures = tested
    result = measure(network, str(packed), str(pictures), Condition("two", "two"), 6)
    assert result["queries"] == 12 and result["concepts"] == 2  # both sounds of each
    assert result["sdr_before"][0] == pytest.approx(0, abs=2)   # -5 to 5 dB, both asked for
    assert -30 < result["sdri"][0] < 10 and "within_10" not in result
    # plain SDR rewards half the mixture: 3 dB for two sounds of one level, less apart from that
    assert 1 < result["sdri of half the mixture"][0] < 3.5
    again = measure(network, str(packed), str(pictures), Condition("two", "two"), 6)
    assert again == result
    heard = measure(network, str(packed), str(pictures), Condition("ears", "ears", head="mit_kemar"), 4)
    for of in ("", " of the true sound", " of the mixture"):
        assert 180 >= heard["doa_error" + of][0] >= heard["folded_error" + of][0] >= 0
    # the tones of the recordings give no direction, but whose responses are taken must count
    assert heard["own responses: doa_error"] != heard["doa_error"]


def test_command_line(tested, tmp_path, capsys, monkeypatch):
    network, packed, pictures = tested
    few = (CONDITIONS[0], dataclasses.replace(CONDITIONS[1], sources=(1, 2)), CONDITIONS[2])
    for module in ("__main__", "table"):  # FABIAN's responses aren't in the repository
        monkeypatch.setattr(f"training.image_table.{module}.CONDITIONS", few)
    save_checkpoint(tmp_path / "x.safetensors", network.state_dict(), network.config, {"step": 7})
    command = ["measure", str(tmp_path / "x.safetensors"), "--name", "conformer", "--mixtures", "3",
               "--packed", str(packed), "--pictures", str(pictures), "--out", str(tmp_path / "out"),
               "--results", str(tmp_path / "rows")]
    assert main(command) == 0
    stored = json.loads((tmp_path / "out" / "conformer.json").read_text())
    assert stored["step"] == 7 and len(stored["conditions"]) == 3
    row = stored["conditions"][few[1].name]
    assert (row["split"], row["mixtures"], row["queries"], row["head"]) == ("test", 3, 3, "")
    # stopped in the middle of a row: the same command makes what is missing, and only that
    kept = tmp_path / "rows" / "conformer" / "cells" / "two.jsonl"
    whole = kept.read_text()
    first = whole.splitlines()[0].replace('"sdri": ', '"sdri": 1')
    kept.write_text(first + "\n" + whole.splitlines()[1][:50])
    assert main(command) == 0
    assert kept.read_text().splitlines() == [first, *whole.splitlines()[1:]]
    assert main(["report", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| Efficient-b3 | Conformer | 43.57 | 10.139 | 44.39 |" in text
    assert "AudioCLIP-ResNet-50" in text and "## conformer" in text
    with pytest.raises(SystemExit):
        main(["report", "--out", str(tmp_path / "none")])
    assert "no results in" in capsys.readouterr().err
    save_checkpoint(tmp_path / "x.safetensors", network.state_dict(), network.config, {"step": 8})
    with pytest.raises(SystemExit):
        main(command)
    assert "another model_sha256" in capsys.readouterr().err


def test_a_figure_of_two_sounds(tmp_path):
    class Half:
        def extract(self, audio, rate, queries, progress):
            assert [query.image.shape for query in queries] == [(9, 12, 3)] * 2
            return [SimpleNamespace(audio=0.5 * audio) for _ in queries]

    random = np.random.default_rng(0)
    sounds, pictures = [tmp_path / "a.wav", tmp_path / "b.wav"], [tmp_path / "a.png"] * 2
    for path in sounds:
        soundfile.write(path, 0.1 * random.standard_normal((8000, 2)), 16000)
    PIL.Image.fromarray(random.integers(0, 255, (9, 12, 3), np.uint8)).save(pictures[0])
    extraction_figure(Half(), sounds, pictures, tmp_path / "out.png", seconds=0.5)
    assert np.asarray(PIL.Image.open(tmp_path / "out.png").convert("L")).std() > 30
    with pytest.raises(ConfigError, match="two ears and 4 s"):
        extraction_figure(Half(), sounds, pictures, tmp_path / "out.png")
    with pytest.raises(ConfigError, match="a picture for each"):
        extraction_figure(Half(), sounds, pictures[:1], tmp_path / "out.png", seconds=0.5)


def test_report_without_a_row(tested):
    text = report({"id-uss-small": {"parameters": 1_750_000, "conditions": {}}})
    assert "1.75 million" in text and "| – |" in text
    assert text.count("| EfficientNet-lite0 | id-uss-small | – | – | 5.12 | – | ours |") == 2
