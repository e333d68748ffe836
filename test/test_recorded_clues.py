"""Clues of each recording, from AudioSet's lists to the batches: a caption and a video are given
with the sound of their own recording and no other."""

import csv
import shutil

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image

from luseel_model.config import build_config
from luseel_model.errors import ConfigError, LuseelError, QueryError
from luseel_model.images import ImageConfig, ImageEncoder
from model_fixtures import merged, minilm
from test_multi_clue import TINY
from training.clues import manifests, recorded, videos
from training.clues.videos import event_frames
from training.tasks.multi_clue import MultiClueTask, MultiClueTrainConfig

RATE, FPS, SECONDS, EVENT = 8000, 5, 4, 1.0
IMAGE = {"encoder": "efficientnet-lite0", "weights": "", "embedding": 1280, "size": 32}
MODEL = merged(TINY, {"video": {"frames": 3, "image": IMAGE}})
KINDS = ("Bell", "Dog", "Flute", "Rain")
#: Frequency (Hz) of each recording, by which it is told apart.
TONES = {f"{split}{kind}{i}": 300.0 + 100 * (3 * number + i)
         for number, kind in enumerate(KINDS)
         for split, i in (("train", 0), ("train", 1), ("valid", 2))}
CAPTIONS = {name: f"number {round(tone)} of the {name[5:-1].lower()}s is heard"
            for name, tone in TONES.items()}
#: What some recordings lack.
LACKING = {"captions": ("trainBell1", "trainRain0"), "videos": ("trainDog0", "trainRain0")}


def shown(name, frame):
    """Frame of a recording's video: a pattern of its own in two colours, another one during the
    event, that wanders by a pixel a frame."""
    during = EVENT <= frame / FPS < EVENT + 2
    chance = np.random.default_rng([round(TONES[name]), during])
    colours = chance.integers(0, 256, (2, 3), dtype=np.uint8)
    pattern = np.kron(chance.integers(0, 2, (8, 8)), np.ones((4, 4), int))
    return np.roll(colours[pattern], frame, axis=1)


def embedded_video(name, encoder):
    """Of the three parts of the event, the frame in the middle of each."""
    times = EVENT + (np.arange(3) + 0.5) * 2 / 3
    return encoder.embed([shown(name, int(time * FPS)) for time in times])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The lists, sounds and videos of a miniature AudioSet, packed by the command."""
    root = tmp_path_factory.mktemp("audioset")
    (root / "media").mkdir()
    (root / "labels.csv").write_text("index,mid,display_name\n" + "".join(
        f'{i},/m/{i},"{kind}"\n' for i, kind in enumerate(KINDS)))
    time = np.arange(RATE * SECONDS) / RATE
    for name, tone in TONES.items():
        sound = 0.3 * np.sin(2 * np.pi * tone * time) * ((time >= EVENT) & (time < EVENT + 2))
        soundfile.write(root / "media" / f"{name}.wav", sound, RATE)
        if name not in LACKING["videos"]:
            frames = [Image.fromarray(shown(name, i)) for i in range(FPS * SECONDS)]
            frames[0].save(root / "media" / f"{name}.gif", save_all=True,
                           append_images=frames[1:], duration=1000 // FPS, loop=0)
    for split in ("train", "valid"):
        (root / f"{split}.csv").write_text("# YTID, start_seconds, end_seconds, labels\n" + "".join(
            f'{name}, 0.000, 4.000, "/m/{KINDS.index(name[5:-1])}"\n'
            for name in TONES if name.startswith(split)))
    (root / "captions").mkdir()
    (root / "captions" / "train.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n" + "".join(
            f"{i},{name},0,{caption}.\n" for i, (name, caption) in enumerate(CAPTIONS.items())
            if name not in LACKING["captions"]))
    assert manifests.main([
        "--segments", f"train={root / 'train.csv'}", f"valid={root / 'valid.csv'}",
        "--labels", str(root / "labels.csv"), "--media", str(root / "media"),
        "--captions", str(root / "captions"), "--out", str(root / "packed")]) == 0
    return root / "packed"


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def make(packed, tmp_path, **data):
    model = tmp_path / "model.yaml"
    model.write_text(yaml.safe_dump({"family": "multi-clue", **MODEL}))
    plain = {"seconds": 0.5, "snr_db": [-2.0, 2.0], "rate": None, "equaliser_db": 0.0}
    torch.manual_seed(0)
    return MultiClueTask(build_config(MultiClueTrainConfig, {
        "name": "tiny", "family": "multi-clue", "model": str(model), "steps": 8,
        "data": {"packed": str(packed), "queries": 2, "simulation": plain, **data},
        "loss": {"clip_tags": 1.0, "dense_tags": 1.0, "absent": 0.1, "presence": 1.0},
        "validation": {"mixtures": 4, "batch_size": 4}}), torch.device("cpu"), 1)


@pytest.fixture(scope="module")
def task(packed, tmp_path_factory):
    return make(packed, tmp_path_factory.mktemp("task"), absent_share=0.3)


@pytest.fixture(scope="module")
def encoder():
    return ImageEncoder(ImageConfig(**IMAGE))


def heard(sound):
    """The recording whose tone a sound is."""
    peak = torch.fft.rfft(sound * torch.hann_window(len(sound))).abs().argmax()
    frequency = float(peak) * 16000 / len(sound)
    name = min(TONES, key=lambda name: abs(TONES[name] - frequency))
    assert abs(TONES[name] - frequency) < 10
    return name


def queries(batch):
    """Name of what is asked for (None where it isn't there), and its clues that are given."""
    for row, column in np.ndindex(*batch.asked.shape):
        place, clues = int(batch.asked[row, column]), batch.clues
        name = heard(batch.sources[row, place]) if place >= 0 else None
        tag, text, video = (clues.tag[row, column], clues.text[row, column],
                            clues.video[row, column])
        yield name, (KINDS[int(tag.argmax())] if tag.any() else "",
                     text[clues.text_mask[row, column]], video[clues.video_mask[row, column]])


def same(found, expected):
    return found.shape == expected.shape and torch.allclose(found, expected, atol=5e-3)


def check(name, clues, encoder, count):
    tag, text, video = clues
    if tag:
        assert tag == name[5:-1]
    if len(text):
        assert name not in LACKING["captions"]
        assert same(text, minilm().embed([CAPTIONS[name]])[0])
    if len(video):
        assert name not in LACKING["videos"]
        assert same(video, embedded_video(name, encoder))
    for what, given in zip(("tag", "text", "video"), (tag, len(text), len(video))):
        count[what, name] = count.get((what, name), 0) + bool(given)


def test_sounds_are_asked_for_by_the_clues_of_their_own_recording(task, encoder):
    count, absent = {}, []
    for step in range(4):
        for name, clues in queries(task.batch(step, 16)):
            if name is None:
                absent.append(clues)
                continue
            check(name, clues, encoder, count)
    for name in TONES:
        if name.startswith("train"):
            assert count["tag", name] > 0
            assert bool(count["text", name]) == (name not in LACKING["captions"])
            assert bool(count["video", name]) == (name not in LACKING["videos"])
    # what isn't there is asked for by the caption of some recording of that kind
    told = {name: minilm().embed([caption])[0] for name, caption in CAPTIONS.items()}
    names = [name for tag, text, _ in absent if tag and len(text)
             for name, words in told.items() if same(text, words) and name[5:-1] == tag]
    assert len(names) == sum(bool(tag) and len(text) > 0 for tag, text, _ in absent) > 3
    assert all(name.startswith("train") for name in names)


def test_validation_gives_all_clues_of_its_own_recordings(task, encoder):
    batch, count = task._validation_batch(8), {}
    for name, clues in queries(batch):
        assert name.startswith("valid")
        check(name, clues, encoder, count)
    assert all(count[what, name] for what, name in count)
    task.network.eval()
    assert set(task.validate()) >= {"score", "snri_tag", "snri_text", "snri_video"}


def test_all_parts_train_on_them(task):
    terms = task.losses(task.batch(0, 8), 0)
    assert set(terms) == {"snr", "l1", "absent", "presence", "clip_tags", "dense_tags"}
    assert all(value.isfinite() for value in terms.values())
    assert "of 8 recordings 6 have a caption, 6 a video" in task.describe()


def test_what_stands_for_a_kind_in_the_taggers_is_of_that_kind(task, encoder):
    seen = set()
    for _ in range(6):
        wording, clip = task._keys()
        for kind, (one, other) in enumerate(zip(wording.tolist(), clip.tolist())):
            names = [task.train_pool.names[i].split("/")[1] for i in (one, other) if i >= 0]
            assert len(names) < 2 and all(name[5:-1] == KINDS[kind] for name in names)
            assert one < 0 or names[0] not in LACKING["captions"]
            assert other < 0 or names[0] not in LACKING["videos"]
            seen.add((one >= 0, other >= 0))
    assert seen == {(True, False), (False, True), (False, False)}


def test_recordings_without_any_of_the_given_clues_are_not_heard(packed, tmp_path, encoder):
    task = make(packed, tmp_path, given=["video"], absent_share=0.5)
    for step in range(3):
        for name, (tag, text, video) in queries(task.batch(step, 8)):
            assert not tag and not len(text) and len(video) == 3
            assert name is None or same(video, embedded_video(name, encoder))


def test_embeddings_are_kept_and_an_interrupted_run_goes_on(copy, tmp_path, monkeypatch):
    def stop(count):
        """Embeds ``count`` videos, then Ctrl-C."""
        original, left = recorded.event_frames, [count]

        def limited(*args):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return original(*args)
        return left, limited
    monkeypatch.setattr(recorded, "BLOCK", 2)
    shutil.rmtree(copy / recorded.EMBEDDINGS, ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "event_frames", stop(5)[1])
        with pytest.raises(KeyboardInterrupt):
            make(copy, tmp_path)
    left, limited = stop(100)
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "event_frames", limited)
        first = make(copy, tmp_path)
    assert left[0] == 100 - (10 - 4)  # two blocks of two were kept
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "ImageEncoder", None)  # neither is needed any more
        patch.setattr(recorded, "TextEncoder", None)
        second = make(copy, tmp_path)
    assert torch.equal(first.clips.embeddings, second.clips.embeddings)
    assert torch.equal(first.texts.embeddings, second.texts.embeddings)
    # another caption: its block is made again
    table = copy / recorded.TABLE
    table.write_text(table.read_text().replace(CAPTIONS["trainDog0"], "a wolf far away"))
    third = make(copy, tmp_path)
    place = third.train_pool.names.index("audioset/trainDog0")
    text, mask = third.texts.batch(torch.tensor([place]))
    assert same(text[0][mask[0]], minilm().embed(["a wolf far away"])[0])
    assert torch.equal(third.clips.embeddings, first.clips.embeddings)


def rewrite(table, change):
    with open(table, newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, [key for key in rows[0]])
        writer.writeheader()
        writer.writerows(row for row in rows)


@pytest.mark.parametrize("change, message", [
    (lambda row: {**row, "video": row["video"] and "elsewhere.mp4"}, "none of the 6 videos"),
    (lambda row: {**row, "start": "early"}, "'early' is not a number"),
    (lambda row: {**row, "name": row["name"] + "?"}, "says nothing of 8 recordings"),
    (lambda row: {k: v for k, v in row.items() if k != "caption"}, "lacks the column.* caption")])
def test_a_table_that_does_not_fit_is_named(copy, tmp_path, change, message):
    rewrite(copy / recorded.TABLE, change)
    with pytest.raises(ConfigError, match=message):
        make(copy, tmp_path)


def test_a_video_that_cannot_be_read_is_a_missing_clue(copy, tmp_path, capsys):
    (copy / "broken.gif").write_bytes(b"GIF89a")
    rewrite(copy / recorded.TABLE,
            lambda row: {**row, "video": "broken.gif" if "trainBell0" in row["name"]
                         else row["video"]})
    task = make(copy, tmp_path)
    place = task.train_pool.names.index("audioset/trainBell0")
    assert int(task.clips.of(torch.tensor(place))) == -1
    assert int(task.texts.of(torch.tensor(place))) == place
    assert "broken.gif" in capsys.readouterr().out


def test_without_the_table_kinds_have_the_clues(copy, tmp_path):
    (copy / recorded.TABLE).unlink()
    task = make(copy, tmp_path)
    assert task.recorded is None and task.texts is task.bank
    with pytest.raises(ConfigError, match="video alone needs pictures"):
        make(copy, tmp_path, given=["video"])


# -- frames of videos


def write_video(path, seconds=6, rate=10, **options):
    """Half of each frame is as bright as its number: 4 a frame."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate)
        stream.width = stream.height = 64
        stream.bit_rate = 2_000_000
        stream.codec_context.gop_size = 12
        for number in range(seconds * rate):
            picture = np.zeros((64, 64, 3), np.uint8)
            picture[:32] = 4 * number
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("start, expected", [(0.0, [2, 7, 12, 17]), (3.0, [32, 37, 42, 47])])
def test_frames_of_videos_are_those_of_the_event(tmp_path, suffix, start, expected):
    write_video(tmp_path / f"video{suffix}")
    found = event_frames(tmp_path / f"video{suffix}", start, 2.0, 4)
    numbers = [frame[4:28].mean() / 4 for frame in found]
    assert np.allclose(numbers, expected, atol=1.2)


def test_videos_that_are_short_still_or_broken(tmp_path):
    path = tmp_path / "video.mp4"
    write_video(path, seconds=2)
    assert len(event_frames(path, 1.0, 2.0, 4)) == 3  # its last frame stands for what is missing
    with pytest.raises(QueryError, match="shows nothing from 5 s"):
        event_frames(path, 5.0, 2.0, 4)
    frames = event_frames(path, 0.0, 0.25, 30)
    assert len(frames) == 2  # each once, and the black one left out
    path.write_bytes(b"")
    with pytest.raises(QueryError, match="can't be read as a video"):
        event_frames(path, 0.0, 2.0, 4)


def test_without_pyav_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(LuseelError, match="pip install av"):
        event_frames(tmp_path / "video.mp4", 0.0, 2.0, 4)


def test_the_frame_on_show_counts():
    frames = list(zip((0.0, 0.9, 1.2, 1.9, 5.0), "abcde"))
    assert videos._on_show(iter(frames), 1.0, 1.0, 4) == ["b", "c"]
    assert videos._on_show(iter(frames), 2.0, 2.0, 4) == ["d"]  # a slow slide show
    assert videos._on_show(iter(frames), 5.0, 2.0, 4) == ["e"]
    assert videos._on_show(iter(frames), 6.0, 2.0, 4) == []
