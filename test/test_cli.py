"""The command `luseel`: files in, files, table, JSON and picture out, one line for each mistake."""

import json

import numpy as np
import pytest
import soundfile
from model_fixtures import changed, make_network, minilm, noise

from luseel_model import cli
from luseel_model.checkpoint import save_checkpoint
from luseel_model.luseel import LuSeeLExtractor

RATE = 22050


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a recording and a checkpoint, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("luseel_model.luseel.extractor.TextEncoder", lambda config, device: minilm())
    network = make_network(changed("tiny"))
    save_checkpoint("net.safetensors", network.state_dict(), network.config,
                    {"step": 12, "kinds": ["rain", "bell", "horn"], "unseen": ["horn"]})
    soundfile.write("in.wav", noise(20001, 2, level=0.05).numpy(), RATE, subtype="FLOAT")
    return tmp_path


def run(*arguments):
    return cli.main([*map(str, arguments), "--model", "net.safetensors", "--device", "cpu"])


def test_one_query(folder, capsys):
    assert run("extract", "in.wav", "dog barking", "-o", "out.wav") == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.out.startswith("dog barking: ") and "-> out.wav" in printed.out
    audio, rate = soundfile.read("out.wav", dtype="float32")
    assert audio.shape == (20001, 2) and rate == RATE
    assert soundfile.info("out.wav").subtype == "FLOAT"
    # what the library gives
    source, _ = soundfile.read("in.wav", dtype="float32")
    network = make_network(changed("tiny"))
    expected = LuSeeLExtractor(network).extract(source.T, RATE, "dog barking")
    np.testing.assert_allclose(audio.T, expected.audio, atol=1e-6)
    assert f"{expected.azimuth:5.1f}°" in printed.out
    assert f"confidence {expected.confidence:.2f}" in printed.out


def test_several_queries_and_json(folder, capsys):
    assert run("extract", "in.wav", "Dog barking!", "rain", "--json", "-q") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == ""
    assert [r["query"] for r in report] == ["Dog barking!", "rain"]
    assert [r["file"] for r in report] == ["in_dog-barking.wav", "in_rain.wav"]
    for result in report:
        assert soundfile.info(result["file"]).frames == 20001
        assert 0 <= result["azimuth_degrees"] < 360 and 0 <= result["confidence"] <= 1
        assert len(result["likelihood"]) == 360
        starts = [window["start"] for window in result["windows"]]
        assert starts[:2] == [0.0, 0.25] and len(starts) == 3  # 0.907 s in windows of 0.5 s


def test_hop(folder, capsys):
    assert run("extract", "in.wav", "rain", "--json", "-q", "--hop", "0.1") == 0
    starts = [window["start"] for window in json.loads(capsys.readouterr().out)["windows"]]
    assert starts[:3] == [0.0, 0.1, 0.2] and len(starts) == 6
    assert run("extract", "in.wav", "rain", "--hop", "0.7") == 2
    assert "hop 0.7 s must be above 0 and at most the model's window" in capsys.readouterr().err


def test_one_query_gives_one_json_object(folder, capsys):
    assert run("extract", "in.wav", "rain", "-o", "a.flac", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["file"] == "a.flac"
    assert soundfile.info("a.flac").format == "FLAC"


def test_progress_goes_to_the_error_stream(folder, capsys):
    soundfile.write("in.wav", noise(30000, 2, level=0.05).numpy(), RATE)
    assert run("extract", "in.wav", "rain", "--json") == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert "extracting" in printed.err


def test_plot(folder, capsys):
    from matplotlib import image

    for queries in (["rain"], ["rain", "a bell"]):
        path = folder / f"{len(queries)}.png"
        assert run("extract", "in.wav", *queries, "--plot", path) == 0
        assert f"picture -> {path}" in capsys.readouterr().out
        picture = image.imread(path)
        assert picture.shape[0] > 400 and picture.std() > 0.05


def test_model_without_localization(folder, capsys):
    network = make_network(changed("tiny", use_localization=False))
    save_checkpoint("net.safetensors", network.state_dict(), network.config)
    assert run("extract", "in.wav", "rain", "-o", "o.wav", "--plot", "o.png") == 0
    assert "rain: no direction" in capsys.readouterr().out
    assert run("extract", "in.wav", "rain", "-o", "o.wav", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["azimuth_degrees"] is None


@pytest.mark.parametrize("arguments, said", [
    (["gone.wav", "rain"], "can't read gone.wav"),
    (["net.safetensors", "rain"], "can't read net.safetensors"),
    (["mono.wav", "rain"], "mono"),
    (["nan.wav", "rain"], "NaN"),
    (["short.wav", "rain"], "too short"),
    (["empty.wav", "rain"], "empty"),
    (["in.wav", ""], "query is empty"),
    (["in.wav", "x" * 300], "300 characters"),
    (["in.wav", "rain", "bell", "-o", "a.wav"], "2 queries need 2 -o files, got 1"),
    (["in.wav", "rain", "Rain!"], "one file"),
    (["in.wav", "rain", "-o", "gone/a.wav"], "folder of gone/a.wav doesn't exist"),
    (["in.wav", "rain", "-o", "a.doc"], "a.doc: unknown kind of file; use one of"),
    (["in.wav", "rain", "--plot", "a.doc"], "a.doc: unknown kind of file; use one of .png"),
    (["in.wav", "rain", "--attention", "a.doc"], "a.doc: unknown kind of file; use one of .png"),
    (["in.wav", "rain", "--attention", "a.png"], "attends to no clues: leave --attention out"),
    (["in.wav", "rain", "-o", "taken.wav"], "can't write taken.wav"),
])
def test_mistakes(folder, capsys, arguments, said):
    good, _ = soundfile.read("in.wav")
    broken = good.copy()
    broken[100] = np.nan
    for name, audio in (("mono", good[:, 0]), ("nan", broken), ("short", good[:500]),
                        ("empty", good[:0])):
        soundfile.write(f"{name}.wav", audio, RATE, subtype="FLOAT")
    (folder / "taken.wav").mkdir()
    assert run("extract", *arguments, "-q") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("luseel: ") and said in printed.err
    assert printed.err.count("\n") == 1
    assert not (folder / "a.wav").exists()


def test_missing_model(folder, capsys):
    assert cli.main(["extract", "in.wav", "rain", "--model", "gone.safetensors"]) == 2
    assert "luseel: no checkpoint at gone.safetensors" in capsys.readouterr().err
    assert cli.main(["extract", "in.wav", "rain", "--model", "luseel-huge"]) == 2
    assert "shipped are" in capsys.readouterr().err


def test_models(folder, capsys, monkeypatch):
    monkeypatch.setattr("luseel_model.checkpoint.CHECKPOINT_FOLDER", folder)
    assert cli.main(["models"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("net: ") and "window 0.5 s" in line and "trained on 2 kinds" in line
    (folder / "net.safetensors").unlink()
    assert cli.main(["models"]) == 2
    assert "no checkpoints in" in capsys.readouterr().err


def test_models_show_figures_and_licence_of_the_card(folder, capsys, monkeypatch):
    monkeypatch.setattr("luseel_model.checkpoint.CHECKPOINT_FOLDER", folder)
    (folder / "net.md").write_text("---\nlicense: CC0-1.0\nfigures: 1.5 dB\n---\n# net\n")
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "    2 microphones + words -> sound and direction\n" in printed
    assert "    figures: 1.5 dB\n    licence: CC0-1.0\n" in printed
    assert cli.main(["models", "--json"]) == 0
    (about,) = json.loads(capsys.readouterr().out)
    assert (about["name"], about["license"], about["steps"]) == ("net", "CC0-1.0", 12)


def test_clues_that_the_model_cannot_use(folder, capsys):
    from PIL import Image

    Image.effect_noise((32, 32), 50).save("thing.png")
    for arguments, said in (
            (["--tag", "rain"], "can't use a tag as a query: give it words"),
            (["--image", "thing.png"], "can't use a picture as a query: give it words"),
            (["rain", "--image", "thing.png", "--together"], "can't use a picture"),
            (["rain", "wind", "--together"], "--together: words can be given once"),
            (["--image", "in.wav"], "can't be read as a picture"),
            (["rain", "--array", "square.yaml"], "leave --array out"),
            ([], "nothing to listen for")):
        assert run("extract", "in.wav", *arguments) == 2
        assert said in capsys.readouterr().err
    assert sorted(p.name for p in folder.glob("*.wav")) == ["in.wav"]


def test_help(capsys):
    for arguments in (["--help"], ["extract", "--help"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
    assert "dog barking" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
