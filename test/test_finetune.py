"""Fine-tuning on one's own head: responses in, a checkpoint that hears with it and its test out."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from model_fixtures import changed, make_network, minilm

from luseel_model import load_model
from luseel_model.checkpoint import read_checkpoint, save_checkpoint
from luseel_model.config import build_config
from luseel_model.families import load_config
from luseel_model.errors import ConfigError
from luseel_model.heads import Head
from training import finetune as tuning
from training.corpus import toy
from training.heads import interaural_delay, load_head
from training.trainer import load_train_config

TINY = ["batch_size=2", "data.queries=0", "validation.mixtures=2", "validation.batch_size=2",
        "validation.every=2", "save_every=1", "precision=float32"]


@pytest.fixture(scope="module")
def kemar():
    return load_head("mit_kemar").hrir.numpy().astype(np.float64)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "packed"
    toy.build(folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, kemar):
    """A folder with responses of a head of one's own and a trained network, the current one."""
    monkeypatch.chdir(tmp_path)
    for module in ("training.tasks.luseel", "luseel_model.luseel.extractor"):
        monkeypatch.setattr(f"{module}.TextEncoder", lambda config, device: minilm())
    # the left ear 2 dB louder, every 10 degrees
    np.savez("my head.npz", azimuth=np.arange(0, 360, 10), rate=16000,
             hrir=kemar[::10] * 10 ** (np.array([1, -1]) / 20)[:, None])
    network = make_network(changed("tiny"))
    save_checkpoint("net.safetensors", network.state_dict(), network.config,
                    {"step": 12, "kinds": ["rain"]})
    return tmp_path


def run(corpus, *arguments, steps=3, tiny=TINY):
    return tuning.main(["my head.npz", "--init", "net.safetensors", "--packed", str(corpus),
                        "--out", "run", "--steps", str(steps), "--mixtures", "3", "--device",
                        "cpu", *(part for change in tiny for part in ("--set", change)),
                        *arguments])


def test_one_command(place, corpus, capsys):
    assert run(corpus) == 0
    printed = capsys.readouterr().out
    assert "from step 0 to 3" in printed and "model:=" in printed
    result = place / "run" / "my_head.safetensors"
    config, state, info = read_checkpoint(result)
    first, started, _ = read_checkpoint("net.safetensors")
    assert config == first and set(state) == set(started)
    assert any(not torch.allclose(state[k], started[k], atol=1e-3) for k in state)
    assert info["finetuned_from"] == "net" and info["head"] == "my_head"
    assert info["kinds"] == sorted(toy.KINDS)
    # trained with the own head, calibrated; two thirds of the scenes are its
    plan = json.loads((place / "run" / "config.json").read_text())
    assert plan["data"]["heads"] == ["run/head.safetensors"] * 2 + ["mit_kemar"]
    assert plan["data"]["simulation"]["seconds"] == 0.5 and plan["tag_steps"] == 0
    head = Head.open("run/head.safetensors")
    energy = head.hrir.square().sum(-1).mean(0)
    assert energy[0] == pytest.approx(float(energy[1]), rel=0.05)
    assert json.loads(head.metadata["calibration"])["level_bias_db"] == pytest.approx(2, abs=0.1)
    # the table: both heads, before and after, as the evaluation says
    lines = [line for line in (place / "run/report.md").read_text().splitlines() if "|" in line]
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" my_head ", " before "], [" my_head ", " after "],
        [" mit_kemar ", " before "], [" mit_kemar ", " after "]]
    rows = json.loads((place / "run/before.json").read_text())["rows"]
    again = tuning.measure_heads(place / "net.safetensors", [head], str(corpus), 3, "cpu")
    assert rows[0] == json.loads(json.dumps(again[0]))
    assert f"{rows[0]['si_snri']['mean']:.1f} (" in lines[2]
    assert lines[2] != lines[3]
    assert load_model(result, "cpu").info["head_licence"] == "not stated"


def test_an_interrupted_run_goes_on(place, corpus, capsys):
    assert run(corpus, "--minutes", "1e-9") == 0  # too short for a step
    assert "stopped at step 0 of 3" in capsys.readouterr().out
    assert not (place / "run/my_head.safetensors").exists()
    kept = place / "run/before.json"
    marked = json.loads(kept.read_text())
    marked["rows"][0]["si_snri"]["mean"] = 77.7
    kept.write_text(json.dumps(marked))
    assert run(corpus) == 0
    assert "77.7" in (place / "run/report.md").read_text()  # not measured again
    with open(place / "run/validation.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "3"]
    assert run(corpus) == 0  # finished: only tested again
    assert "from step 3 to 3" in capsys.readouterr().out


def test_without_other_heads_and_uncalibrated(place, corpus):
    assert run(corpus, "--also", "--uncalibrated", steps=1) == 0
    plan = json.loads((place / "run" / "config.json").read_text())
    assert plan["data"]["heads"] == ["run/head.safetensors"]
    energy = Head.open("run/head.safetensors").hrir.square().sum(-1).mean(0)
    assert 10 * torch.log10(energy[0] / energy[1]) == pytest.approx(2, abs=0.3)


def test_the_run_fits_the_network(place):
    shipped = load_train_config("finetune")
    small = load_config("luseel-small")
    shipped.check(small) if small.head_search.azimuths else None
    plain = changed("tiny", tagging={"width": 0}, localization={"activation": "sigmoid"})
    config = tuning.fitted_config(shipped, plain, place / "model.yaml", ["a", "b", "c"])
    assert config.model_config() == plain
    config.check(plain)  # no term that this network can't serve
    assert config.loss.presence == config.loss.selection == 0 and config.loss.doa_kind == "squared"
    assert config.data.heads == ("a", "a", "a", "a", "b", "c")
    assert config.data.simulation.seconds == plain.window
    tagging = tuning.fitted_config(shipped, changed("tiny"), place / "model.yaml", ["a"])
    assert tagging.loss.presence == shipped.loss.presence > 0
    assert tagging.data.heads == ("a",)


def test_responses_of_all_kinds(place, kemar):
    sofar = pytest.importorskip("sofar")
    rows = np.arange(0, 360, 10)
    sofa = sofar.Sofa("SimpleFreeFieldHRIR")
    sofa.Data_IR, sofa.Data_SamplingRate = kemar[::10], 16000
    sofa.SourcePosition = np.stack([rows, 0 * rows, 0 * rows + 1.5], 1)
    sofa.ReceiverPosition = np.array([[0, 0.09, 0], [0, -0.09, 0]])
    sofar.write_sofa("robot.sofa", sofa)
    soundfile.write("grid.wav", kemar.reshape(720, -1).T, 16000, subtype="FLOAT")
    np.savez("grid.npz", azimuth=rows, hrir=kemar[::10], rate=16000)
    for name in ("robot.sofa", "grid.wav", "grid.npz"):
        head = tuning.read_head(name)
        assert head.name == name.split(".")[0]
        delay = interaural_delay(head.hrir.numpy().astype(float), 16000)
        assert delay[90] == pytest.approx(708e-6, abs=15e-6)  # KEMAR's own
        assert delay[270] == pytest.approx(-708e-6, abs=15e-6)
    assert tuning.read_head("mit_kemar").name == "mit_kemar"


@pytest.mark.parametrize("arrays, said", [
    ({"azimuth": np.arange(36)}, "expected the arrays"),
    ({"azimuth": np.arange(36), "hrir": np.zeros((35, 2, 9)), "rate": 16000}, r"got \(36,\)"),
    ({"azimuth": np.arange(36), "hrir": np.full((36, 2, 9), np.nan), "rate": 16000}, "of numbers"),
    ({"azimuth": np.arange(36) * 1.0, "hrir": np.ones((36, 2, 9)), "rate": 16000}, "gap of"),
])
def test_wrong_responses(place, arrays, said):
    np.savez("wrong.npz", **arrays)
    with pytest.raises(ConfigError, match=said):
        tuning.read_head("wrong.npz")


def test_swapped_responses_are_refused(place, kemar):
    np.savez("wrong.npz", azimuth=np.arange(0, 360, 10), hrir=kemar[::10, ::-1], rate=16000)
    with pytest.raises(ConfigError, match="reaches the right ear first"):
        tuning.read_head("wrong.npz")


@pytest.mark.parametrize("arguments, said", [
    (["gone.sofa"], "no responses at gone.sofa"), (["gone"], "no head 'gone'"),
    (["my head.npz", "--init", "gone.safetensors"], "no checkpoint at gone.safetensors"),
    (["my head.npz", "--init", "net.safetensors", "--packed", "gone"], "no packed recordings at"),
    (["mit_kemar", "--init", "net.safetensors"], "leave it out"),
    (["my head.npz", "--steps", "0"], "must be 1 or more"),
    (["my head.npz", "--config", "gone"], "no training configuration called"),
    (["my head.npz", "--set", "stepps=3"], "unknown key stepps"),
])
def test_mistakes(place, capsys, arguments, said):
    assert tuning.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("luseel-finetune: ") and said in printed
    assert not list(place.glob("run*/*.safetensors"))


def test_the_shipped_configuration_is_complete():
    config = load_train_config("finetune")
    assert config.steps == 600 and config.optimizer.decay_steps == 450
    assert build_config(type(config), json.loads(json.dumps(
        tuning.to_dict(config)))) == config
