"""Packing of catalogues, and the pool that reads the packed folder."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch

from luseel_model.errors import ConfigError
from training.corpus import pack as packing
from training.pool import BLOCK, ClipPool

RATE = 16000


def tone(seconds, frequency=440.0, rate=RATE, level=0.5):
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def clip(pool, index):
    begin = int(pool.start[index])
    return pool.samples[begin:begin + int(pool.length[index])].float() / 32768


def write_catalogue(folder, rows, clips="."):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "catalogue.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["clip", "label", "group", "licence", "split", "category"])
        writer.writeheader()
        for clip, label, group, split, audio, rate in rows:
            if audio is not None:
                path = folder / clips / clip
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, audio, rate)
            writer.writerow({"clip": clip, "label": label, "group": group, "licence": "CC0",
                             "split": split, "category": "animal"})


@pytest.fixture
def catalogue(tmp_path):
    folder = tmp_path / "set"
    padded = np.concatenate([np.zeros(8000), tone(0.5), np.zeros(4000)])
    write_catalogue(folder, [
        ("a/one.wav", "dog barking", "g1", "train", tone(1.0), RATE),
        ("a/two.flac", "dog barking", "g1", "train", padded, RATE),
        ("a/low.wav", "cat meowing", "g2", "train", tone(1.0, rate=8000), 8000),
        ("a/silent.wav", "cat meowing", "g2", "train", np.zeros(RATE), RATE),
        ("a/click.wav", "cat meowing", "g2", "train", tone(0.02), RATE),
        ("a/gone.wav", "cat meowing", "g2", "train", None, RATE),
        ("b/held.wav", "dog barking", "g3", "valid", tone(0.3), RATE),
        ("b/odd.wav", "goose honking", "g4", "test", np.stack([tone(0.3)] * 2, 1), RATE),
        ("", "not built", "g5", "test", None, RATE),
    ], clips="clips16k")
    return folder


def test_round_trip(catalogue, tmp_path):
    out = tmp_path / "packed"
    manifest = packing.pack(packing.read_catalogue(catalogue, "set"), out, progress=False)
    assert (out / "kinds.txt").read_text().split("\n")[:2] == ["cat meowing", "dog barking"]
    reasons = {s["name"]: s["reason"] for s in manifest["splits"]["train"]["skipped"]}
    assert set(reasons) == {"set/a/silent.wav", "set/a/click.wav", "set/a/gone.wav"}
    assert not list(out.glob("*.part"))

    pool = ClipPool.load(out, "train")
    assert pool.names == ["set/a/low.wav", "set/a/one.wav", "set/a/two.flac"]
    assert [pool.kinds[k] for k in pool.kind] == ["cat meowing", "dog barking", "dog barking"]
    assert pool.groups == ["set/g2", "set/g1", "set/g1"]
    assert pool.group.tolist() == [0, 1, 1]
    # Peak kept, away from the faded ends; the lowrate recording lasts as long as before.
    whole = clip(pool, 1)
    np.testing.assert_allclose(whole[200:-200], tone(1.0)[200:-200], atol=1e-4)
    assert abs(len(clip(pool, 0)) - RATE) < 50
    assert clip(pool, 0)[1000:].abs().max() == pytest.approx(0.5, abs=0.01)
    # Silence around the third one is gone, but for 5 ms.
    assert abs(len(clip(pool, 2)) - 8000) <= 2 * RATE // 200 + 2
    assert (np.load(out / "train.npy", mmap_mode="r").dtype == np.int16)


def test_kinds_of_training_number_all_splits(catalogue, tmp_path):
    out = tmp_path / "packed"
    packing.pack(packing.read_catalogue(catalogue, "set"), out, progress=False)
    valid, test = ClipPool.load(out, "valid"), ClipPool.load(out, "test")
    assert valid.kinds == test.kinds == ["cat meowing", "dog barking"]
    assert valid.kind.tolist() == [1]
    assert test.labels == ["goose honking"] and test.kind.tolist() == [-1]


def test_joined_pools_keep_every_recording(catalogue, tmp_path):
    out = tmp_path / "packed"
    packing.pack(packing.read_catalogue(catalogue, "set"), out, progress=False)
    train, test = ClipPool.load(out, "train"), ClipPool.load(out, "test")
    both = train.joined(test)
    assert both.names == train.names + test.names and both.kinds == train.kinds
    assert both.kind.tolist() == train.kind.tolist() + [-1]
    for i in range(len(train)):
        assert torch.equal(clip(both, i), clip(train, i))
    assert torch.equal(clip(both, len(train)), clip(test, 0))
    assert len(set(both.group.tolist())) == len(set(train.groups + test.groups))
    last = both.activity[both.block_start[-1]] - both.activity[both.block_start[len(train)]]
    assert last == pytest.approx(float(test.activity[-1] - test.activity[0]))


def test_packing_goes_on_after_an_interruption(catalogue, tmp_path, monkeypatch):
    out = tmp_path / "packed"
    items = packing.read_catalogue(catalogue, "set")
    load = packing.load_clip

    def interrupted(path, *arguments):
        if path.name == "held.wav":
            raise KeyboardInterrupt
        return load(path, *arguments)

    monkeypatch.setattr(packing, "load_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packing.pack(items, out, progress=False)
    assert (out / "train.npy").is_file() and not (out / "valid.npy").exists()

    read = []
    monkeypatch.setattr(packing, "load_clip", lambda p, *a: read.append(p.name) or load(p, *a))
    packing.pack(items, out, progress=False)
    assert sorted(read) == ["held.wav", "odd.wav"]  # the training split was kept

    read.clear()
    (out / "test.npy").write_bytes((out / "test.npy").read_bytes()[:-2])
    manifest = packing.pack(items, out, progress=False)
    assert read == ["odd.wav"]  # only what no longer matches its checksum
    assert json.loads((out / "manifest.json").read_text()) == manifest


def test_cap_takes_turns_between_groups(tmp_path):
    items = [packing.Item(tmp_path, f"s/{g}{i}", "person speaking", "", f"s/{g}", "s", "CC0", "",
                          "train") for g, n in (("a", 50), ("b", 3), ("c", 1)) for i in range(n)]
    kept = packing.cap_kinds(items, 8)
    count = {g: sum(i.group == f"s/{g}" for i in kept) for g in "abc"}
    assert count == {"a": 4, "b": 3, "c": 1}
    assert packing.cap_kinds(items[::-1], 8)[::-1] == kept
    assert len(packing.cap_kinds(items, 0)) == len(items)


def test_esc_folders(tmp_path):
    fifty = tmp_path / "ESC-50"
    (fifty / "meta").mkdir(parents=True)
    (fifty / "audio").mkdir()
    (fifty / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "3-200-B-1.wav,3,1,door_wood_knock,False,200,B\n"
        "5-9-A-2.wav,5,2,hand_saw,False,9,A\n")
    items = packing.read_esc(fifty)
    assert [(i.label, i.split, i.group) for i in items] == [
        ("dog barking", "train", "esc/100032"), ("knocking on wood", "test", "esc/200"),
        ("hand saw", "train", "esc/9")]
    assert [i.licence for i in items] == ["CC-BY", "CC-BY-NC-3.0", "CC-BY-NC-3.0"]

    ten = tmp_path / "ESC-10"
    (ten / "001 - Dog bark").mkdir(parents=True)
    (ten / "001 - Dog bark" / "2-7-A.ogg").touch()
    (item,) = packing.read_esc(ten)
    assert (item.label, item.split) == ("dog barking", "valid")

    write_catalogue(tmp_path / "esc10", [
        ("dog_bark/1-100032-A.ogg", "dog barking", "", "train", None, RATE)])
    both = packing.read_catalogue(tmp_path / "esc10", "esc10") + packing.read_esc(fifty)
    assert [i.name for i in packing.drop_repeated(both)] == [
        "esc10/dog_bark/1-100032-A.ogg", "esc/3-200-B-1.wav", "esc/5-9-A-2.wav"]
    with pytest.raises(ConfigError, match="neither ESC-50"):
        packing.read_esc(tmp_path / "esc10")


def test_bad_catalogues(tmp_path):
    with pytest.raises(ConfigError, match="no catalogue.csv"):
        packing.read_catalogue(tmp_path, "x")
    with pytest.raises(ConfigError, match="no catalogue.csv in or below"):
        packing.find_catalogues(tmp_path)
    (tmp_path / "catalogue.csv").write_text("clip,label\na.wav,dog\n")
    with pytest.raises(ConfigError, match="split"):
        packing.read_catalogue(tmp_path, "x")
    with pytest.raises(ConfigError, match="no recordings"):
        packing.pack([], tmp_path / "out")


def test_folder_takes_all_catalogues_below(catalogue, tmp_path, capsys):
    """Clips beside a catalogue or in its clips16k/; a set is named by its folder."""
    deep = tmp_path / "deep" / "er" / "other"
    write_catalogue(deep, [("one.wav", "rain falling", "", "train", tone(0.4), RATE)])
    catalogue.rename(tmp_path / "deep" / "set")
    out = tmp_path / "packed"
    packing.main(["--folder", str(tmp_path / "deep"), "--out", str(out)])
    assert "train: 4 recordings, 3 kinds" in capsys.readouterr().out
    pool = ClipPool.load(out, "train")
    assert pool.names[0] == "other/one.wav" and set(pool.sources) == {"other", "set"}
    # named twice is read once; two folders of one name would be mixed up
    packing.main(["--folder", str(tmp_path / "deep"), "--catalogue", str(deep), "--out", str(out)])
    assert "train: 4 recordings" in capsys.readouterr().out
    twin = tmp_path / "deep" / "other"
    write_catalogue(twin, [("one.wav", "bell ringing", "", "train", tone(0.4), RATE)])
    with pytest.raises(SystemExit):
        packing.main(["--folder", str(tmp_path / "deep"), "--out", str(out)])
    assert "same name" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, said", [
    ([], "name a source"), (["--catalogue", "gone"], "no catalogue.csv in"),
    (["--folder", "gone"], "no catalogue.csv in or below"), (["--esc", "gone"], "neither ESC-50"),
    (["--catalogue", "SET", "--min-per-kind", "9"], "no label has 9 training recordings"),
])
def test_command_shows_mistakes(catalogue, tmp_path, capsys, arguments, said):
    arguments = [str(catalogue) if argument == "SET" else argument for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        packing.main([*arguments, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_missing_pool_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="luseel-corpus pack .*luseel-corpus toy"):
        ClipPool.load(tmp_path, "train")


def test_activity_leaves_out_silence():
    clip = np.zeros(10 * BLOCK, np.int16)
    clip[3 * BLOCK:4 * BLOCK] = 1000
    clip[5 * BLOCK:6 * BLOCK] = 500
    clip[7 * BLOCK:8 * BLOCK] = 10  # 40 dB down
    clip[-50:] = 0
    pool = ClipPool(torch.from_numpy(clip), [0], [clip.size - 30], ["a"], ["a"])
    assert pool.block_start.tolist() == [0, 10]
    np.testing.assert_allclose(pool.activity.diff(), [0, 0, 0, 1, 0, 0.5, 0, 0, 0, 0])
    with pytest.raises(ConfigError, match="silent"):
        ClipPool(torch.zeros(100, dtype=torch.int16), [0], [100], ["a"], ["a"])
    with pytest.raises(ConfigError, match="fit"):
        ClipPool(torch.ones(100, dtype=torch.int16), [50], [60], ["a"], ["a"])
