"""The demo: its scene, its judgement, and the whole of it with the real node."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

pytest.importorskip("rclpy")

from luseel_model.errors import ConfigError  # noqa: E402
from luseel_ros.demo import checks, picture  # noqa: E402
from luseel_ros.demo.checks import Estimate, Heard  # noqa: E402
from luseel_ros.demo.scene import DATA, Query, Scene, Sound, load_scene  # noqa: E402

RATE = 16000
HOP = 0.5


def make_scene(seconds=8.0):
    """Two noises, left and right, and one query for each half."""
    random = np.random.default_rng(0)
    samples = round(seconds * RATE)
    sounds = tuple(
        Sound(label, azimuth, 0.0, seconds,
              (random.normal(0, 0.1, (2, samples)) * [[left], [right]]).astype(np.float32))
        for label, azimuth, left, right in (("a dog", 90.0, 1, 0.3), ("a cat", 300.0, 0.4, 1)))
    half = seconds / 2
    queries = (Query("dog", sounds[0], 0.0, half), Query("cat", sounds[1], half, seconds))
    return Scene("two", RATE, sounds, queries, sounds[0].track + sounds[1].track)


def answer(scene, index, azimuth, audio):
    """What a node would send for a query that says `azimuth` and extracts `audio`."""
    query = scene.queries[index]
    heard = Heard(query)
    likelihood = np.zeros(360, np.float32)
    likelihood[round(azimuth) % 360] = 1
    for time_ in np.arange(query.at + HOP, query.until + 1e-9, HOP):
        heard.estimates.append(Estimate(float(time_), azimuth, 0.9, True, likelihood))
    for start in range(round(query.at * RATE), round(query.until * RATE), 8000):
        heard.blocks.append((start, audio[:, start:start + 8000]))
    return heard


# -- the shipped scene ----------------------------------------------------------------------------


def test_the_shipped_scene():
    scene = load_scene()
    assert 20 <= scene.seconds <= 30 and scene.sample_rate == RATE and len(scene.queries) in (2, 3)
    np.testing.assert_allclose(scene.mixture, sum(s.track for s in scene.sounds), atol=1e-6)
    assert np.abs(scene.mixture).max() < 1
    assert any("?" in query.text for query in scene.queries)  # asked as people ask
    for query in scene.queries:
        assert query.sound in scene.sounds_at(query.at)
        assert len(scene.sounds_at((query.at + query.until) / 2)) >= 2  # something to separate
    assert {s.azimuth < 180 for s in scene.sounds} == {True, False}
    for sound in scene.sounds:  # a sound on the left is louder at the left ear
        left, right = np.square(sound.track).mean(1)
        assert (left > right) == (0 < sound.azimuth < 180)
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 600_000


def test_every_recording_is_credited_and_free():
    about = json.loads((DATA / "scene.json").read_text())
    credits = (DATA / "ATTRIBUTION.md").read_text()
    for sound in about["sounds"]:
        recording = sound["recording"]
        assert recording["licence"].startswith(("CC0", "CC-BY"))
        assert "SA" not in recording["licence"] and "NC" not in recording["licence"]
        assert sound["track"] in credits and recording["author"] in credits


def test_a_broken_scene_is_named(tmp_path):
    with pytest.raises(ValueError, match="scene.json"):
        load_scene(tmp_path)
    (tmp_path / "scene.json").write_text("{}")
    with pytest.raises(ValueError, match="can't be read"):
        load_scene(tmp_path)


# -- judgement ------------------------------------------------------------------------------------


def test_the_truth_is_right_and_each_fault_is_found():
    scene = make_scene()
    truth = scene.sounds[0].track
    good = checks.judge(answer(scene, 0, 93.0, truth + 0.05 * scene.sounds[1].track), scene, HOP)
    assert good.right and good.error == pytest.approx(3.0) and good.within_10 == 1.0
    assert good.judged == 5  # hops that end at 2, 2.5, ... 4 s
    assert good.si_snri == pytest.approx(26.0, abs=0.5)  # the other sound is 1/20 of before
    wrong_way = checks.judge(answer(scene, 0, 270.0, truth), scene, HOP)
    assert not wrong_way.direction_right and wrong_way.extraction_right and not wrong_way.right
    unchanged = checks.judge(answer(scene, 0, 90.0, scene.mixture), scene, HOP)
    assert unchanged.direction_right and not unchanged.extraction_right
    assert unchanged.si_snri == pytest.approx(0, abs=1e-6)
    other = checks.judge(answer(scene, 0, 90.0, scene.sounds[1].track), scene, HOP)
    assert other.si_snri < 0 and not other.right
    silent = checks.judge(Heard(scene.queries[0]), scene, HOP)
    assert not silent.right and np.isnan(silent.error) and np.isnan(silent.si_snri)


def test_errors_wrap_around_the_circle():
    scene = make_scene()
    heard = answer(scene, 1, 301.0, scene.sounds[1].track)
    assert checks.judge(heard, scene, HOP).error == pytest.approx(1.0)
    assert checks.circular_median([359.0, 1.0, 2.0, 180.0]) in (359.0, 1.0, 2.0)


def test_silent_stretches_of_the_sound_are_not_judged():
    scene = make_scene()
    scene.sounds[0].track[:, 3 * RATE:] = 0
    verdict = checks.judge(answer(scene, 0, 90.0, scene.sounds[0].track), scene, HOP)
    assert verdict.judged == 3


def test_lost_blocks_count_as_silence():
    scene = make_scene()
    heard = answer(scene, 0, 90.0, scene.sounds[0].track)
    del heard.blocks[3]
    first, audio = checks.assemble(heard, scene)
    assert first == 0 and audio.shape == (2, 4 * RATE) and not audio[:, 24000:32000].any()
    assert checks.judge(heard, scene, HOP).si_snr < 15


def test_si_snr_agrees_with_a_library():
    torchmetrics = pytest.importorskip("torchmetrics")
    import torch
    scene = make_scene(2.0)
    estimate, target = scene.mixture + 0.3, scene.sounds[0].track
    library = torchmetrics.functional.audio.scale_invariant_signal_noise_ratio(
        torch.tensor(estimate).double(), torch.tensor(target).double()).mean()
    assert checks.si_snr(estimate, target) == pytest.approx(float(library), abs=1e-3)
    assert checks.si_snr(3 * estimate, target) == pytest.approx(float(library), abs=1e-3)


def test_the_picture_is_drawn(tmp_path):
    scene = make_scene(4.0)
    heard = [answer(scene, 0, 90.0, scene.mixture), Heard(scene.queries[1])]
    picture.draw(tmp_path / "x.png", scene, heard, [checks.judge(h, scene, HOP) for h in heard])
    assert (tmp_path / "x.png").stat().st_size > 20_000


# -- the builder ----------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path):
    """A catalogue of three recordings: free and unseen, seen in training, not free."""
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = ["clip,label,split,licence,author,title,source"]
    for name, split, licence in (("a.wav", "test", "CC0"), ("b.wav", "train", "CC0"),
                                 ("c.wav", "test", "CC-BY-SA-3.0"), ("d.wav", "test", "CC-BY-4.0")):
        rows.append(f"{name},noise,{split},{licence},Somebody,A noise,http://x.org/{name}")
        soundfile.write(folder / name, random.normal(0, 0.1, 44100), 44100)
    (folder / "catalogue.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "data"


def spec(clip="set/a.wav", **changes):
    sounds = [dict(label="noise", clip="set/d.wav", azimuth=90, start=0, end=3),
              dict(label="noise", clip=clip, azimuth=270, start=1, end=4)]
    return dict(title="t", head="mit_kemar", seconds=4, level_db=-26, sounds=sounds,
                queries=[dict(text="x", sound=0, at=0, until=3)], **changes)


def test_the_builder_renders_what_it_says(recordings, tmp_path):
    from training.make_demo_scene import make_scene as build
    build(spec(), recordings, tmp_path / "scene", 0.7)
    scene = load_scene(tmp_path / "scene")
    left, right = (np.square(s.track).mean(1) for s in scene.sounds)
    assert left[0] > 2 * left[1] and right[1] > 2 * right[0]
    assert not scene.sounds[1].track[:, :RATE].any()
    level = 10 * np.log10(np.square(scene.sounds[0].track[:, :3 * RATE]).mean())
    assert level == pytest.approx(-26, abs=1.0)
    assert "Somebody" in (tmp_path / "scene" / "ATTRIBUTION.md").read_text()


@pytest.mark.parametrize("clip, words", [
    ("set/b.wav", "train split"), ("set/c.wav", "licence"), ("set/z.wav", "not in")])
def test_the_builder_takes_only_free_unseen_recordings(recordings, tmp_path, clip, words):
    from training.make_demo_scene import make_scene as build
    with pytest.raises(ConfigError, match=words):
        build(spec(clip), recordings, tmp_path / "scene", 0.7)


# -- the whole ------------------------------------------------------------------------------------


def command(out, *arguments):
    return [sys.executable, "-m", "luseel_ros.demo", "--out", str(out), *map(str, arguments)]


def children(pid):
    """Living processes started by this one."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += map(int, file.read().split())
    return found


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A real network, tiny and untrained, and a short scene for it."""
    from model_fixtures import changed, make_network

    from luseel_model.checkpoint import save_checkpoint
    folder = tmp_path_factory.mktemp("untrained")
    config = changed("tiny")
    save_checkpoint(folder / "tiny.safetensors", make_network(config).state_dict(), config)
    scene = make_scene(6.0)
    about = {"title": scene.title, "sample_rate": RATE, "seconds": scene.seconds, "sounds": [],
             "queries": [dict(text=q.text, sound=i, at=q.at, until=q.until)
                         for i, q in enumerate(scene.queries)]}
    for i, sound in enumerate(scene.sounds):
        soundfile.write(folder / f"{i}.wav", sound.track.T, RATE)
        about["sounds"].append(dict(label=sound.label, track=f"{i}.wav", azimuth=sound.azimuth,
                                    start=0, end=scene.seconds))
    (folder / "scene.json").write_text(json.dumps(about))
    return folder


def test_an_untrained_network_is_found_wrong(untrained, tmp_path):
    """The demo runs from end to end, writes all it promises, and says that this is no good."""
    model = tmp_path / 'it\'s "a" model: $(ä) #1 := \\n.safetensors'  # any name will do
    model.symlink_to(untrained / "tiny.safetensors")
    done = subprocess.run(
        command(tmp_path / "out", "--scene", untrained, "--hop", "0.2",
                "--model", model),
        capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wrong" in done.stdout and "demo.png" in done.stdout
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["right"] and [q["query"] for q in summary["queries"]] == ["dog", "cat"]
    for query in summary["queries"]:
        assert query["azimuth"] is not None and query["compared_s"] > 1.5
    for name in ("mixture.wav", "1_dog_mixture.wav", "1_dog_extracted.wav", "2_cat_truth.wav"):
        audio, rate = soundfile.read(out / name)
        assert rate == RATE and audio.shape[1] == 2 and audio.any()
    assert (out / "demo.png").exists()
    assert "Traceback" not in (out / "node.log").read_text()


def test_a_missing_checkpoint_is_said(tmp_path):
    done = subprocess.run(command(tmp_path, "--model", tmp_path / "none.safetensors"),
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no checkpoint at" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_nothing_behind(untrained, tmp_path, number):
    demo = subprocess.Popen(
        command(tmp_path, "--scene", untrained, "--hop", "0.2",
                "--model", untrained / "tiny.safetensors"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in demo.stdout:
            if "active" in line:
                break
        time.sleep(1.0)
        nodes = children(demo.pid)
        assert nodes
        demo.send_signal(number)
        text = demo.communicate(timeout=15)[0]
        assert demo.returncode == 130 and "Traceback" not in text
        assert not any(os.path.exists(f"/proc/{pid}") for pid in nodes)
    finally:
        demo.kill()


def test_the_shipped_model_finds_and_extracts_every_sound(tmp_path):
    """What `make demo` promises."""
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["right"]
