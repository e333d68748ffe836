"""Tables I and II on the open corpus (training/localization_table)."""

import csv

import numpy as np
import pytest
import torch

from luseel_model.angles import angular_error
from luseel_model.errors import ConfigError
from model_fixtures import write_corpus
from training.arrays.rooms import make_bank
from training.localization_table.__main__ import _start, main
from training.localization_table.evaluate import (CELLS, TRACK_HOP, Cell, HeldOutScenes, answer,
                                                  find_cells, is_present, run_cell)
from training.localization_table.systems import PAPER_ONE, PAPER_TWO, SYSTEMS, Loudest
from training.localization_table.table import make_table, summary, write_table

RATE = 16000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    random = np.random.default_rng(0)
    clips = [(label, f"{label}{i}", 0.1 * random.standard_normal(RATE))
             for label in ("rain", "wind", "engine") for i in range(2)]
    write_corpus(folder / "packed", {"train": clips, "test": clips})
    make_bank(folder / "arrays", "square", "test", rooms=2, positions=4)
    make_bank(folder / "arrays", "square-path", "test", rooms=1, positions=24, path=True)
    return folder


def scenes(data, key):
    (cell,) = [cell for cell in CELLS if cell.key == key]
    cell = Cell(cell.key, cell.title, 1.0, cell.additive, cell.moving)
    return cell, HeldOutScenes(cell, data / "packed", data / "arrays")


class Knowing:
    """Answers what the scene says, ``off`` degrees wrong, and is ``absent`` sure of what isn't
    there."""

    name, moving = "knowing", False

    def __init__(self, made, off=0.0, absent=0.2):
        self.off, self.left, self.absent = off, list(made), absent

    def locate(self, audio, queries):
        scene = self.left.pop(0)
        assert queries == [*scene.labels, scene.absent]
        there = [query in scene.labels for query in queries]
        return (np.append(scene.azimuth, 0.0) + self.off) % 360, np.where(there, 0.9, self.absent)


def test_scenes_are_the_same_every_time(data):
    _, made = scenes(data, "two")
    first, second = list(made(3)), list(made(2))
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(first, second))
    assert first[0].audio.shape == (4, RATE) and len(first[0].labels) == 2
    assert [a.absent for a in first[:2]] == [b.absent for b in second]
    assert all(scene.absent not in scene.labels for scene in first)
    assert len(set(first[0].labels)) == 2
    _, additive = scenes(data, "additive")
    assert all(len(scene.labels) == 1 and np.isfinite(scene.azimuth).all()
               for scene in additive(2))


def test_rows_and_resumption(data, tmp_path):
    cell, made = scenes(data, "two")
    path = tmp_path / "knowing" / "two.csv"
    rows = run_cell(Knowing(made(2), 4.0), cell, made, 2, path)
    assert [is_present(row) for row in rows] == [True, True, False] * 2
    there = [row for row in rows if is_present(row)]
    assert [float(row["error"]) for row in there] == pytest.approx([4.0] * 4, abs=1e-3)
    assert all(float(row["right"]) == 1.0 for row in there)
    more = Knowing(list(made(3))[2:], 9.0, absent=0.95)  # asked for the third scene alone
    rows = run_cell(more, cell, made, 3, path)
    assert [round(float(row["error"])) for row in rows if is_present(row)] == [4] * 4 + [9] * 2
    assert not more.left and len(run_cell(None, cell, made, 2, path)) == 6
    with open(path, newline="") as file:
        assert len(list(csv.DictReader(file))) == 9
    # one of three absent ones is surer than all present ones, the others less: two pairs of three
    assert "AUROC 0.67" in summary(rows) and "absent above 0.5: 33%" in summary(rows)
    assert "MAE 5.67°" in summary(rows)
    mute = [{**row, "confidence": 1.0} for row in rows]  # a network without presence
    assert "MAE 5.67°" in summary(mute) and "AUROC" not in summary(mute)


def test_moving_scenes_are_judged_over_time(data):
    cell, made = scenes(data, "moving")
    (scene,) = made(1)
    assert scene.azimuth.shape == (2, RATE // TRACK_HOP + 1)

    class Follower:
        moving = True

        class model:
            class config:
                frame_times = [0.0, 0.25, 0.5, 0.75, 1.0]

        def follow(self, audio, queries):
            near = [round(t * RATE / TRACK_HOP) for t in self.model.config.frame_times]
            return torch.from_numpy(scene.azimuth[:, near]).float()

    found, confidence = answer(Follower(), scene, cell)
    error = angular_error(found, scene.azimuth)
    assert np.isnan(confidence).all()
    assert error.max() <= 60 * 0.125 + 0.1
    class Still:
        moving = False

        def locate(self, audio, queries):
            return np.append(scene.azimuth[:, 50], 0.0), np.array([0.7, 0.6, 0.1])

    found, confidence = answer(Still(), scene, cell)
    assert confidence.tolist() == [0.7, 0.6, 0.1]
    still = angular_error(found, scene.azimuth)
    assert still.shape == scene.azimuth.shape and still.mean() >= error.mean()


def test_loudest_needs_no_words(data):
    _, made = scenes(data, "additive")
    errors = []
    for scene in made(6):
        found, sure = Loudest().locate(scene.audio, ["anything"] * 2)
        assert found.shape == (2,) and found[0] == found[1] and np.isnan(sure).all()
        errors.append(float(angular_error(found[0], scene.azimuth[0])))
    assert np.median(errors) < 6


def test_table(data, tmp_path):
    with pytest.raises(ConfigError, match="evaluate"):
        make_table(tmp_path)
    for key in ("two", "moving"):
        cell, made = scenes(data, key)
        run_cell(Loudest(), cell, made, 3, tmp_path / "loudest" / f"{key}.csv")
    path = write_table(tmp_path, tmp_path / "out")
    text = path.read_text()
    assert "Table I" in text and "Table II" in text and "CLAP" in text.split("## Left out")[1]
    line = next(line for line in text.splitlines() if line.startswith("| the loudest"))
    with open(tmp_path / "loudest" / "two.csv", newline="") as file:
        mean = np.mean([float(row["error"]) for row in csv.DictReader(file)])
    assert f"| {mean:.1f} (" in line
    for *_, mae in PAPER_ONE + PAPER_TWO:
        assert f"| {mae} |" in text
    assert make_table(tmp_path / "out") == text, "what is kept makes the same table"


def test_the_papers_figures():
    """Tables I and II of the paper."""
    assert [row[-1] for row in PAPER_ONE] == [1.34, 32.15, 43.3, 37.18, 33.61]
    assert [row[-1] for row in PAPER_TWO] == [45.58, 47.92, 48.71, 49.18]


def test_what_a_training_starts_from(tmp_path):
    (frames,) = [system for system in SYSTEMS if system.key == "tsel-frames-small"]
    assert _start(frames, tmp_path) == "tsel-small", "what is shipped"
    own = tmp_path / "tsel-small" / "best.safetensors"
    own.parent.mkdir()
    own.touch()
    assert _start(frames, tmp_path) == own and _start(SYSTEMS[0], tmp_path) is None


def test_a_checkpoint_is_of_one_system(capsys):
    assert main(["evaluate", "--checkpoint", "tsel-small"]) == 2
    assert "--systems" in capsys.readouterr().err


def test_names():
    assert [cell.key for cell in find_cells(["moving"])] == ["moving"]
    with pytest.raises(ConfigError, match="there are: additive"):
        find_cells(["three"])
    from training.trainer import load_train_config
    for system in SYSTEMS:
        if system.key:
            config = load_train_config(system.key)
            assert config.family == "tsel"
            assert (config.model_config().output == "frames") == system.moving
