"""Exclusions, repeats, measurements and the report on wrong labels."""

import csv

import numpy as np
import pytest
import torch
from model_fixtures import changed, make_network

from luseel_model.errors import ConfigError
from training.captions import Captions
from training.corpus import clean, pack, toy
from training.corpus.exclusions import COLUMNS, DEFAULT_PATH, Exclusion, Exclusions
from training.corpus.repeats import Repeat, coherence, find_repeats
from training.heads import Head
from training.pool import ClipPool

RATE = 16000


def write_exclusions(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dict(zip(COLUMNS, row)) for row in rows)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy.build(folder)
    return folder


def rows_of(folder, split):
    with open(folder / f"{split}.csv", newline="") as file:
        return list(csv.DictReader(file))


def burst(seed, seconds=0.6, level=8000):
    noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    decay = np.exp(-np.arange(noise.size) / 3000)
    return np.clip(noise * decay * level, -32768, 32767).astype(np.int16)


# -- exclusions


def test_pool_leaves_out_and_relabels(packed, tmp_path, capsys):
    first, second, third = rows_of(packed, "train")[:3]
    other = next(row["label"] for row in rows_of(packed, "train")
                 if row["label"] != second["label"])
    clip = [row["name"].split("/", 1)[1] for row in (first, second, third)]
    path = write_exclusions(tmp_path / "out.csv", [
        ("train", clip[0], first["label"], first["seconds"], "", "file name", ""),
        ("train", clip[1], second["label"], second["seconds"], other, "file name", ""),
        # the same name, but another recording: label or duration differ
        ("train", clip[2], "goose honking", third["seconds"], "", "file name", ""),
        ("train", clip[2], third["label"], float(third["seconds"]) + 1, "", "file name", "")])
    whole = ClipPool.load(packed, "train", exclusions=None)
    assert capsys.readouterr().out == ""
    pool = ClipPool.load(packed, "train", exclusions=path)
    assert capsys.readouterr().out == (
        "train: 1 recordings left out (1 file name), 1 relabelled\n")
    assert pool.names == whole.names[1:] and pool.kinds == whole.kinds
    assert pool.labels[0] == other and pool.kinds[pool.kind[0]] == other
    assert pool.labels[1:] == whole.labels[2:]
    # samples still are where they were
    assert pool.start.tolist() == whole.start[1:].tolist()
    # rows about train don't touch the others
    for split in ("valid", "test"):
        assert ClipPool.load(packed, split, exclusions=path).names \
            == ClipPool.load(packed, split, exclusions=None).names
    everything = write_exclusions(tmp_path / "all.csv", [
        ("valid", row["name"].split("/", 1)[1], row["label"], row["seconds"], "", "file name", "")
        for row in rows_of(packed, "valid")])
    with pytest.raises(ConfigError, match="leaves out all"):
        ClipPool.load(packed, "valid", exclusions=everything)


def test_bad_exclusions(tmp_path):
    with pytest.raises(ConfigError, match="can't read"):
        Exclusions.load(tmp_path / "gone.csv")
    (tmp_path / "short.csv").write_text("split,clip\n")
    with pytest.raises(ConfigError, match="lacks the column"):
        Exclusions.load(tmp_path / "short.csv")
    row = ["test", "a.ogg", "dog barking", "1.0", "", "file name", ""]
    with pytest.raises(ConfigError, match="test stays"):
        Exclusions.load(write_exclusions(tmp_path / "test.csv", [row]))
    row[0], row[3] = "train", "long"
    with pytest.raises(ConfigError, match="line 2.*no number"):
        Exclusions.load(write_exclusions(tmp_path / "long.csv", [row]))


def test_packing_honours_exclusions(tmp_path, monkeypatch):
    """The test split and its fingerprint are the same with and without exclusions."""
    import soundfile
    items = []
    for split in pack.SPLITS:
        for number in range(2):
            path = tmp_path / f"{split}{number}.wav"
            soundfile.write(path, burst(number), RATE, subtype="PCM_16")
            items.append(pack.Item(path, f"mine/{path.name}", "dog barking", "", path.stem, "mine",
                                   "CC0", "", split))
    kept = pack.pack(items, tmp_path / "all", exclusions=None, progress=False)
    seconds = rows_of(tmp_path / "all", "train")[0]["seconds"]
    path = write_exclusions(tmp_path / "out.csv", [
        ("train", "train0.wav", "dog barking", seconds, "", "file name", ""),
        ("valid", "valid1.wav", "dog barking", seconds, "dog growling", "file name", ""),
        ("train", "test0.wav", "dog barking", seconds, "", "file name", "")])
    less = pack.pack(items, tmp_path / "less", exclusions=path, progress=False)
    assert less["splits"]["train"]["skipped"] == [
        {"name": "mine/train0.wav", "reason": "left out: file name"}]
    assert [row["label"] for row in rows_of(tmp_path / "less", "valid")] == [
        "dog barking", "dog growling"]
    assert less["splits"]["test"] == kept["splits"]["test"]
    assert less["splits"]["train"]["fingerprint"] != kept["splits"]["train"]["fingerprint"]
    # an exclusion added later makes only its split be packed again
    loaded = []
    load = pack.load_clip
    monkeypatch.setattr(pack, "load_clip", lambda p, *a: loaded.append(p.name) or load(p, *a))
    pack.pack(items, tmp_path / "all", exclusions=path, progress=False)
    assert loaded == ["train0.wav", "train1.wav", "valid0.wav", "valid1.wav"]


def test_shipped_exclusions():
    shipped = Exclusions.load()
    rows = [row for group in shipped.rows.values() for row in group]
    assert {row.split for row in rows} <= {"train", "valid"}
    assert len({(row.split, row.clip, row.label) for row in rows}) == len(rows)
    assert all(row.reason and row.figures and row.relabel != row.label for row in rows)
    with open(DEFAULT_PATH.with_name("debian_catalogue.csv"), newline="") as file:
        catalogue = {row["clip"]: row for row in csv.DictReader(file) if row["clip"]}
    known = Captions.load().labels
    for row in rows:
        assert row.relabel in ("", *known), row
        if row.clip in catalogue:
            assert (catalogue[row.clip]["label"], catalogue[row.clip]["split"]) == (
                row.label, row.split), row


# -- repeats


def test_repeats_survive_cutting_scaling_and_turning():
    sound, other = burst(1), burst(2)
    longer = np.concatenate([np.zeros(777, np.int16), -(sound * 0.3).astype(np.int16),
                             np.zeros(9000, np.int16)])
    coarse = (sound.astype(np.float64) + 60 * np.random.default_rng(3).standard_normal(sound.size))
    found = find_repeats([sound, other, longer, coarse.astype(np.int16)])
    assert {(r.first, r.second) for r in found} == {(0, 2), (0, 3), (2, 3)}
    assert all(r.coherence > 0.98 and r.seconds > 0.2 for r in found)
    assert find_repeats([sound, other, longer], of=[1]) == []
    assert [(r.first, r.second) for r in find_repeats([sound, other, longer], of=[2])] == [(0, 2)]


def test_alike_in_the_bass_alone_is_no_repeat():
    """Coherence 0.97, as of two thumps of one drum, but another treble."""
    fade = np.exp(-np.arange(9600) / 3000)
    thump = 20000 * np.sin(2 * np.pi * 60 * np.arange(9600) / RATE) * fade
    rattle = [2000 * np.random.default_rng(seed).standard_normal(9600) * fade for seed in (1, 2)]
    first, second = ((thump + noise).astype(np.int16) for noise in rattle)
    assert coherence(first, second, 0, 0)[0] > 0.95
    assert find_repeats([first, second], similar=-1) == []
    assert len(find_repeats([first, first.copy()], similar=-1)) == 1


def test_coherence_has_known_values():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(RATE) * 3000 for _ in range(2))
    mixed = (a + b).astype(np.int16)   # equal power: the correlation is 1/sqrt(2)
    value, seconds = coherence(a.astype(np.int16), mixed, 1600, 1600 + 200)
    assert value == pytest.approx(np.sqrt(0.5), abs=0.02) and seconds == 0.5
    assert coherence(a.astype(np.int16), a.astype(np.int16), 0, 100)[0] > 0.999
    assert coherence(a.astype(np.int16), b.astype(np.int16), 0, 0)[0] < 0.1
    # too little left to say anything
    assert coherence(a.astype(np.int16), a.astype(np.int16), RATE - 100, 0)[0] == 0


# -- measurement


def test_measures_have_known_values():
    t = np.arange(RATE) / RATE
    sine = clean.measure(np.round(16384 * np.sin(2 * np.pi * 1000 * t)).astype(np.int16))
    assert sine.peak_db == pytest.approx(-6.02, abs=0.05)
    assert sine.crest_db == pytest.approx(3.01, abs=0.05)
    assert sine.active == 1 and abs(sine.offset) < 1e-3 and sine.range_db < 0.1
    assert 1000 <= sine.edge_hz < 1300
    gated = np.concatenate([16384 * np.sin(2 * np.pi * 1000 * t), np.zeros(3 * RATE)])
    assert clean.measure(gated.astype(np.int16)).active == pytest.approx(0.25, abs=0.01)
    square = np.sign(np.sin(2 * np.pi * 100 * t + 0.1)) * 20000
    noise = np.random.default_rng(0).standard_normal(RATE)
    say = {name: clean.unusable(clean.measure(audio.astype(np.int16)), audio.size / RATE)
           for name, audio in (("square", square), ("noise", 3000 * noise),
                               ("faint", 2 * noise), ("offset", 9000 + 100 * noise),
                               ("click", np.r_[np.zeros(8000), 9000, np.zeros(8000)]))}
    assert say == {"square": "clipped", "noise": "", "faint": "silent",
                   "offset": "constant offset", "click": "a click"}


# -- the network


def test_windows():
    clip = np.zeros(5 * RATE, np.int16)
    clip[4 * RATE:] = 8000
    found = clean.windows_of(clip, 2 * RATE, most=2)
    assert found.shape == (2, 2 * RATE) and (found[0] != 0).sum() == RATE
    short = clean.windows_of(burst(0, 0.5), 2 * RATE)   # once a second
    assert short.shape == (1, 2 * RATE)
    np.testing.assert_array_equal(short[0, :RATE], short[0, RATE:])


def test_listener_pools_wordings_and_windows():
    network = make_network(changed("tiny"))
    response = torch.zeros(360, 2, 4)
    response[:, :, 0] = 1
    sentences = torch.nn.functional.normalize(
        torch.randn(4, network.config.text.embedding), dim=-1)
    listener = clean.Listener(network, sentences, torch.tensor([0, 1, 1, 2]), Head("x", response))
    size = network.config.window_samples
    clip = burst(0, seconds=2.5 * size / RATE)
    heard = listener.hear(clip)
    assert heard.shape == (3,) and np.all(heard < 0)
    # written out for each window
    expected = []
    with torch.no_grad():
        for window in clean.windows_of(clip, size):
            ears = torch.from_numpy(np.stack([window, window]))[None]
            tokens = network.encode(ears).tag_tokens
            match = network.tagger.similarity(tokens, sentences).logsumexp(1)[0]
            kinds = torch.stack([match[0], match[1:3].mean(), match[3]])
            expected.append((kinds - kinds.logsumexp(0)).numpy())
    np.testing.assert_allclose(heard, np.max(expected, axis=0), atol=1e-4)
    silent = make_network(changed("tiny", tagging={"width": 0}))
    with pytest.raises(ConfigError, match="no tagger"):
        clean.Listener(silent, sentences, torch.tensor([0]), Head("x", response))


# -- the report


def row(split, name, label):
    return {"split": split, "name": f"set/{name}", "label": label, "seconds": "1.0"}


def heard_as(entry, rank="1", log_prob="-0.1", alike="yes", unusable=""):
    return {**entry, "rank": rank, "log_prob": log_prob, "alike": alike, "unusable": unusable,
            "heard": "cow mooing 0.99", "rms_db": "-20", "flat": "0", "offset": "0"}


def test_candidates_and_their_reasons():
    rows = [
        row("train", "leak.ogg", "dog barking"), row("test", "same.ogg", "dog barking"),
        row("train", "shotgun_fire.ogg", "fire crackling"),
        row("train", "a.ogg", "dog barking"), row("train", "b.ogg", "rain falling"),
        row("train", "c.ogg", "dog barking"), row("train", "d.ogg", "dog growling"),
        row("train", "quiet.ogg", "dog barking"), row("test", "quiet2.ogg", "dog barking"),
        row("train", "wrong.ogg", "dog barking"), row("valid", "hard.ogg", "dog barking"),
        row("train", "similar.ogg", "dog barking"), row("train", "both.ogg", "rain falling"),
        row("valid", "both2.ogg", "rain falling"), row("train", "hard kind.ogg", "cow mooing"),
    ]
    repeats = [Repeat(0, 1, 0.99, 0.5), Repeat(3, 4, 0.95, 0.5), Repeat(5, 6, 0.95, 0.5),
               Repeat(12, 13, 0.95, 0.5)]
    heard = [heard_as(entry) for entry in rows]
    heard[7]["unusable"] = heard[8]["unusable"] = "silent"
    for number, alike in ((9, "no"), (10, "no"), (11, "yes"), (14, "no")):
        heard[number] |= {"rank": "40", "log_prob": "-9", "alike": alike}
    rules = [{"label": "fire crackling", "pattern": "shotgun*", "relabel": "gunshot",
              "why": "a shotgun is fired"}]
    found = {r.clip: r for r in clean.candidates(rows, heard, repeats, Captions.load(), rules)}
    assert {clip: r.reason for clip, r in found.items()} == {
        "leak.ogg": "repeat of a test recording", "shotgun_fire.ogg": "file name",
        "a.ogg": "two labels", "b.ogg": "two labels", "quiet.ogg": "silent",
        "wrong.ogg": "the network's doubts", "both.ogg": "repeat of a validation recording"}
    assert found["shotgun_fire.ogg"].relabel == "gunshot"
    assert "set/same.ogg" in found["leak.ogg"].figures
    assert "rank 40" in found["wrong.ogg"].figures


def test_command_without_a_network_and_again(packed, tmp_path, capsys):
    arguments = ["--packed", str(packed), "--out", str(tmp_path / "report")]
    clean.main(arguments)
    assert f"written to {tmp_path / 'report'}" in capsys.readouterr().out
    table = tmp_path / "report" / "recordings.csv"
    whole = table.read_text()
    total = sum(len(rows_of(packed, split)) for split in clean.SPLITS)
    assert len(whole.splitlines()) == total + 1
    # cut in the middle of a row: that row and the rest are done again, the same
    table.write_text(whole[:len(whole) // 2])
    clean.main(arguments)
    assert sorted(table.read_text().splitlines()) == sorted(whole.splitlines())
    Exclusions.load(tmp_path / "report" / "candidates.csv")
    with pytest.raises(SystemExit):
        clean.main(["--packed", str(tmp_path), "--out", str(tmp_path / "report")])
    assert "luseel-corpus pack" in capsys.readouterr().err


def test_exclusions_find_the_recording_meant():
    rows = [Exclusion("train", "a/b.ogg", "dog barking", 1.0, "", "file name", "")]
    known = Exclusions.of(rows)
    assert known.find("train", "debian/a/b.ogg", "dog barking", 1.03) is rows[0]
    assert known.find("valid", "debian/a/b.ogg", "dog barking", 1.0) is None
    assert known.find("train", "debian/a/b.ogg", "dog barking", 1.2) is None
    assert known.find("train", "debian/b.ogg", "dog barking", 1.0) is None
