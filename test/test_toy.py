"""The toy corpus: the same each time, known to the captions, its kinds told apart; and what uses
it: training's debug configuration on a fresh checkout, and the evaluation after it."""

import numpy as np
import pytest
from model_fixtures import minilm

from luseel_model.errors import ConfigError
from training import SAMPLE_RATE, train
from training.captions import Captions
from training.corpus import toy
from training.corpus.__main__ import main
from training.pool import ClipPool
from training.trainer import load_train_config


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "packed"
    toy.build(folder)
    return folder


def test_packed_like_any_corpus(built):
    pools = {split: ClipPool.load(built, split) for split in toy.RECORDINGS}
    for split, count in toy.RECORDINGS.items():
        pool = pools[split]
        assert pool.kinds == sorted(toy.KINDS) and set(pool.sources) == {"toy"}
        assert np.bincount(pool.kind).tolist() == [count] * len(toy.KINDS)
        assert len(set(pool.groups)) == len(pool)
        assert 0.3 * SAMPLE_RATE < pool.length.min() and pool.length.max() <= 2 * SAMPLE_RATE
    assert "generated" in (built / "LICENCES.md").read_text()


def test_the_captions_know_all_kinds_and_none_are_confusable():
    captions = Captions.load()
    for label in toy.KINDS:
        assert len(captions.variants(label)) > 1
        assert not captions.confusable(label) & set(toy.KINDS)


def test_the_same_each_time_and_no_two_alike(built, tmp_path):
    again = tmp_path / "again"
    assert main(["toy", "--out", str(again)]) == 0
    for path in built.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    clips = [toy.recording(label, split, i).tobytes() for label in toy.KINDS
             for split, count in toy.RECORDINGS.items() for i in range(count)]
    assert len(set(clips)) == len(clips)


def test_kinds_are_told_apart():
    """Nearest neighbour on the long-term spectrum and envelope spectrum, from train to test."""
    def features(audio):
        power = np.abs(np.fft.rfft(audio, 2 * SAMPLE_RATE)) ** 2
        bands = np.add.reduceat(power, np.geomspace(40, 14000, 25).astype(int))
        envelope = np.abs(audio[:audio.size // 160 * 160]).reshape(-1, 160).mean(1)
        beats = np.abs(np.fft.rfft(envelope / envelope.mean(), 200))[:40]
        return np.concatenate([np.log10(bands / bands.sum() + 1e-4), beats / 20])

    known = [(label, features(toy.recording(label, "train", i)))
             for label in toy.KINDS for i in range(toy.RECORDINGS["train"])]
    tests = [(label, features(toy.recording(label, "test", i)))
             for label in toy.KINDS for i in range(toy.RECORDINGS["test"])]
    right = sum(min(known, key=lambda k: np.linalg.norm(k[1] - feature))[0] == label
                for label, feature in tests)
    assert right >= 0.9 * len(tests)


def test_other_recordings_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("name,label,source\na,dog,corpus\n")
    with pytest.raises(ConfigError, match=r"other recordings \(corpus\)"):
        toy.build(tmp_path)
    assert main(["toy", "--out", str(tmp_path)]) == 2
    assert "luseel-corpus: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


def test_debug_on_a_fresh_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.tasks.luseel.TextEncoder", lambda config, device: minilm())
    assert load_train_config("debug").data.packed == str(toy.FOLDER)
    tiny = ["steps=3", "candidate_steps=1", "tag_steps=2", "batch_size=2", "tag_batch_size=2", "validation.mixtures=2",
            "validation.batch_size=2"]
    changes = [part for change in tiny for part in ("--set", change)]
    assert train.main(["--config", "debug", "--device", "cpu", *changes]) == 0
    assert "making the toy corpus" in capsys.readouterr().out
    assert (tmp_path / "runs/debug/best.safetensors").is_file()
    # only there: a folder that was named by hand is never filled with generated sounds
    assert train.main(["--config", "debug", "--set", "data.packed=data/mine"]) == 2
    assert "luseel-corpus toy" in capsys.readouterr().err and not (tmp_path / "data/mine").exists()
