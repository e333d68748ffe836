"""The open benchmark: its catalogue, its audio, a run and its report, on generated recordings."""

import csv
import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from model_fixtures import changed, make_network, minilm, write_corpus

from luseel_model.angles import angular_error
from luseel_model.checkpoint import save_checkpoint
from luseel_model.errors import ConfigError
from luseel_model.luseel import LuSeeLExtractor
from training.benchmark import __main__ as command
from training.benchmark.catalogue import (
    BenchmarkRecording,
    draw_rooms,
    find_recordings,
    load_catalogue,
    sample_hash,
    shared_mixtures,
)
from training.benchmark.compare import compare, verdict
from training.benchmark.compare import markdown as comparison_text
from training.benchmark.draw import amend_catalogue, make_catalogue, quotas
from training.benchmark.render import Renderer, coloured_noise, looped
from training.benchmark.report import (
    Bootstrap,
    hardest,
    markdown,
    read_rows,
    summarise,
    write_report,
)
from training.benchmark.run import Results, listen, run_cell
from training.captions import Captions
from training.heads import Head, load_head
from training.metrics import weighted_auroc
from training.pool import ClipPool
from training.rooms import RoomBank

KINDS = ["dog barking", "rain falling", "bell ringing", "frog croaking", "cat meowing",
         "siren", "clock ticking"]
BANK = {"rooms": 3, "positions": 4, "split": "test", "seed": 0, "rt60": [0.2, 0.8]}
SECONDS = 0.5


def clip(index, samples):
    """A noise of its own colour."""
    generator = np.random.default_rng(index)
    spectrum = np.fft.rfft(generator.normal(size=samples))
    place = np.arange(spectrum.size) / spectrum.size * 8
    spectrum *= np.exp(-((place - 0.4 - 0.3 * index) ** 2) / 0.5)
    sound = np.fft.irfft(spectrum, samples)
    return 0.5 * sound / np.abs(sound).max()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Two test recordings a kind, from shorter than the mixtures to longer, and one unknown."""
    clips = [(kind, f"group{i}", clip(i, 3000 + 1500 * i)) for i, kind in enumerate(2 * KINDS[:6])]
    rest = [(kind, kind, clip(0, 4000)) for kind in KINDS]
    return write_corpus(tmp_path_factory.mktemp("packed"), {
        "train": rest, "test": [*clips, ("unheard of", "group", clip(3, 4000))]})


@pytest.fixture(scope="module")
def pool(packed):
    return ClipPool.load(packed, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pool):
    path = tmp_path_factory.mktemp("catalogue") / "toy"
    make_catalogue(path, pool, Captions.load(), BANK, "toy", 1, 12, SECONDS, ("mit_kemar",))
    return path


@pytest.fixture(scope="module")
def catalogue(folder):
    return load_catalogue(folder)


@pytest.fixture(scope="module")
def head():
    return load_head("mit_kemar")


@pytest.fixture(scope="module")
def bank():
    """Decaying noise in the places of the catalogue's rooms."""
    azimuth = np.stack([room.azimuth for room in draw_rooms(BANK)])
    noise = torch.randn(*azimuth.shape, 2, 2400, generator=torch.Generator().manual_seed(0))
    response = noise * 0.3 * torch.exp(-torch.arange(2400) / 400)
    response[..., 2000:] = 0
    response[..., 5] += 1.0
    some = torch.zeros(azimuth.shape)
    return RoomBank("mit_kemar", "test", response.half(), torch.tensor(azimuth).float(), some + 1,
                    some, some[:, 0], some[:, 0], torch.ones(len(azimuth), 3), some[:, 0] + 1)


def ears(gain=(1.0, 1.0)):
    """A head that changes nothing but the level of each ear."""
    response = torch.zeros(360, 2, 64)
    response[:, 0, 20], response[:, 1, 20] = gain
    return Head("mit_kemar", response)


# -- the shipped catalogue


def test_the_shipped_benchmark_is_what_the_issue_asks_for():
    shipped = load_catalogue()
    assert shipped.version == "v2" and shipped.seconds == 10.0
    regular = [cell for cell in shipped.cells.values() if cell.set != "same"]
    conditions = {(cell.head, cell.set, cell.room) for cell in regular}
    assert conditions == {(head, size, room) for head in ("mit_kemar", "fabian")
                          for size in ("two", "three") for room in ("none", "room", "noise")}
    assert all(shipped.size(cell) == 300 for cell in shipped.cells.values())
    assert all("absent" in cell.asked for cell in regular)
    assert any("held_out" in cell.asked for cell in regular)
    captions = Captions.load()
    for name, count in (("two", 2), ("three", 3), ("same", 2)):
        scenes, sets = shipped.scenes[name], shipped.sounds[name]
        assert [scene.mixture for scene in scenes] == list(range(300))
        uses, snr, azimuth = Counter(), [], []
        for scene, sounds in zip(scenes, sets):
            assert [sound.source for sound in sounds] == list(range(count))
            kinds = [shipped.recordings[sound.recording].kind for sound in sounds]
            uses.update(kinds)
            snr += [sound.snr_db for sound in sounds[1:]]
            azimuth += [sound.azimuth for sound in sounds]
            assert sounds[0].snr_db == 0 and scene.absent not in kinds
            assert len({sound.recording for sound in sounds}) == count
            assert len({sound.position for sound in sounds}) == count
            near = set().union(*(captions.confusable(kind) for kind in kinds))
            assert scene.absent not in near
            assert len(set(kinds)) == (1 if name == "same" else count)
            assert name == "same" or not near.intersection(kinds)
            assert 0.2 <= scene.rt60 <= 0.8 and 5 <= scene.noise_db <= 20
        assert -5 <= min(snr) < -4.7 and 4.7 < max(snr) <= 5 and abs(np.mean(snr)) < 0.6
        # uniform over the circle: every sixth of it has a sixth of the sounds, give or take
        share = np.histogram(azimuth, 6, (0, 360))[0] / len(azimuth)
        assert share.min() > 0.11 and share.max() < 0.23
        assert max(uses.values()) <= 3 * 300 * count / len(uses), uses.most_common(3)
    assert len({recording.name for recording in shipped.recordings}) == len(shipped.recordings)


def test_the_newest_version_is_the_first_without_its_doubtful_labels():
    first, second = load_catalogue("v1"), load_catalogue("v2")
    assert first.sha256.startswith("17255a3b74e5"), "v1 never changes"
    assert {r.name for r in first.recordings} - {r.name for r in second.recordings} == set(
        first.doubtful)
    assert len(first.doubtful) == 14 and not second.doubtful
    for name, sets in first.sounds.items():
        right = [number for number, sounds in enumerate(sets) if not any(
            first.recordings[sound.recording].name in first.doubtful for sound in sounds)]
        assert shared_mixtures(first, second, name) == right
        assert len(right) > 0.75 * len(sets)


def test_the_shipped_rooms_are_those_of_the_seed():
    shipped = load_catalogue()
    rooms = draw_rooms(shipped.rooms)
    for name, sets in shipped.sounds.items():
        for scene, sounds in zip(shipped.scenes[name], sets):
            assert rooms[scene.room].rt60 == pytest.approx(scene.rt60, abs=1e-3)
            for sound in sounds:
                drawn = rooms[scene.room].azimuth[sound.position]
                assert angular_error(drawn, sound.room_azimuth) < 0.01


def test_shipped_paraphrases_are_held_out():
    captions, shipped = Captions.load(), load_catalogue()
    for sounds in shipped.sounds["two"]:
        for sound in sounds:
            kind = shipped.recordings[sound.recording].kind
            assert sound.held_out == kind or sound.held_out not in captions.variants(kind)
    others = sum(sound.held_out != shipped.recordings[sound.recording].kind
                 for sounds in shipped.sounds["two"] for sound in sounds)
    assert others > 0.95 * 600


# -- the catalogue


def test_a_seed_gives_one_catalogue(pool, catalogue, tmp_path):
    def make(name, seed):
        return make_catalogue(tmp_path / name, pool, Captions.load(), BANK, "toy", seed, 12,
                              SECONDS, ("mit_kemar",))

    again = make("again", 1)
    assert again.sha256 == catalogue.sha256 and again.sounds == catalogue.sounds
    assert make("again", 1).sha256 == catalogue.sha256  # the same content may be written twice
    with pytest.raises(ConfigError, match="never changes"):
        make("again", 2)
    assert [cell.name for cell in again.choose(["*-room", "*-same-*"])] == [
        "mit_kemar-2-room", "mit_kemar-3-room", "mit_kemar-same-none"]
    with pytest.raises(ConfigError, match="no cell 'fabian"):
        again.choose(["fabian-2-none"])


def test_a_changed_catalogue_is_refused(folder, tmp_path):
    for name in ("catalogue.json", "sounds.csv"):
        copy = tmp_path / name.replace(".", "")
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace("-2-none", "-9-none") if "json" in name else
                                 text.replace(",0.0,", ",1.0,", 1))
        with pytest.raises(ConfigError, match="changed after it was written"):
            load_catalogue(copy)
    with pytest.raises(ConfigError, match="not a benchmark catalogue"):
        load_catalogue(tmp_path)


def test_kinds_are_heard_equally_often_within_reason():
    # 60 sounds, 15 recordings: 4 uses a recording on average, 8 at most
    uses = quotas({"a": 11, "b": 3, "c": 1}, 60)
    assert uses == {"a": 28, "b": 24, "c": 8}
    assert quotas({"a": 5, "b": 5}, 11) in ({"a": 6, "b": 5}, {"a": 5, "b": 6})


def test_a_version_without_some_recordings(pool, catalogue, tmp_path):
    captions = Captions.load()

    def amend(folder, gone, source=catalogue, version="right"):
        return amend_catalogue(tmp_path / folder, source, pool, captions, gone, version)

    gone = {catalogue.recordings[0].name, catalogue.recordings[1].name}
    new = amend("new", gone)
    assert amend("again", gone).sha256 == new.sha256 != catalogue.sha256
    assert new.version == "right" and new.cells == catalogue.cells and new.rooms == catalogue.rooms
    names = {recording.name for recording in catalogue.recordings}
    assert {recording.name for recording in new.recordings} == names - gone
    replaced = 0
    for name, sets in catalogue.sounds.items():
        shared = shared_mixtures(catalogue, new, name)
        for number, (before, after) in enumerate(zip(sets, new.sounds[name])):
            scene, kinds = new.scenes[name][number], []
            for old, sound in zip(before, after, strict=True):
                kinds.append(new.recordings[sound.recording].kind)
                was = catalogue.recordings[old.recording]
                if was.name not in gone and name != "same":
                    assert new.recordings[sound.recording] == was
                    assert replace(sound, recording=old.recording) == old
                assert (sound.azimuth, sound.room_azimuth, sound.position, sound.snr_db) == (
                    old.azimuth, old.room_azimuth, old.position, old.snr_db)
            untouched = gone.isdisjoint(catalogue.recordings[s.recording].name for s in before)
            assert (number in shared) == untouched
            replaced += not untouched
            assert len({sound.recording for sound in after}) == len(after)
            assert len(set(kinds)) == (1 if name == "same" else len(kinds))
            near = set().union(*(captions.confusable(kind) for kind in kinds))
            assert scene.absent not in near.union(kinds)
            assert name == "same" or not near.intersection(kinds)
            assert scene == replace(catalogue.scenes[name][number], absent=scene.absent)
    assert replaced > 3
    with pytest.raises(ConfigError, match="not recordings of toy"):
        amend("other", {"nobody"})
    with pytest.raises(ConfigError, match="name the new one"):
        amend("other", gone, version="toy")
    lost = replace(catalogue, recordings=(
        replace(catalogue.recordings[0], name="lost", sha256="0"), *catalogue.recordings[1:]))
    with pytest.raises(ConfigError, match="not in the pool"):
        amend("other", {"lost"}, lost)
    with pytest.raises(ConfigError, match="too few recordings"):
        amend("other", names)


def test_recordings_are_told_by_name_length_and_samples(pool, catalogue):
    assert find_recordings(catalogue, pool).missing == ()
    first = catalogue.recordings[0]
    start = int(pool.start[0])
    assert first.sha256 == sample_hash(pool.samples[start:start + first.samples].numpy())
    wrong = replace(catalogue, recordings=(
        replace(first, sha256="0"), replace(catalogue.recordings[1], sha256="0", samples=7),
        BenchmarkRecording("nobody", "siren", "", 5, ""),
        replace(catalogue.recordings[3], name="set/under another name"),
        *catalogue.recordings[4:]))
    found = find_recordings(wrong, pool)
    assert found.altered == (first.name,)
    assert found.missing == (catalogue.recordings[1].name, "nobody")
    renderer = Renderer(wrong, wrong.cells["mit_kemar-2-none"], pool, ears())
    affected = {scene.mixture for scene, sounds in zip(wrong.scenes["two"], wrong.sounds["two"])
                if {1, 2}.intersection(sound.recording for sound in sounds)}
    assert renderer.missing == affected and affected
    with pytest.raises(ConfigError, match="missing here"):
        renderer[min(affected)]


# -- audio


def test_looping():
    samples = np.array([1000, 2000, 3000], dtype=np.int16)
    audio = looped(samples, 1, 2, 7, before=2)
    #          pause, first sample; then from sample 1 on: 2 3 - - 1 2 3
    assert audio * 32768 == pytest.approx([0, 1000, 2000, 3000, 0, 0, 1000, 2000, 3000])


def test_a_mixture_is_the_convolution_of_its_recordings(pool, catalogue, head):
    renderer = Renderer(catalogue, catalogue.cells["mit_kemar-3-none"], pool, head)
    mixture = renderer[4]
    images = []
    for sound in catalogue.sounds["three"][4]:
        start, length = int(pool.start[sound.recording]), int(pool.length[sound.recording])
        period = np.concatenate([pool.samples[start:start + length].numpy() / 32768,
                                 np.zeros(sound.gap)])
        # whole repetitions before and after, cut where the mixture lies
        dry = np.tile(period, 40)
        begin = 3 * period.size + sound.offset
        response = head.at(torch.tensor(sound.azimuth)).numpy()
        wet = np.stack([scipy.signal.lfilter(ear, 1.0, dry)[begin:begin + 8000]
                        for ear in response])
        images.append(wet / dry[begin:begin + 8000].std() * 10 ** (-sound.snr_db / 20))
    expected = np.stack(images)
    found = mixture.sources
    # the mean of dry sounds is near 0, so that their deviation is their level
    scale = (found * expected).sum() / (expected ** 2).sum()
    assert np.abs(found - scale * expected).max() < 0.01 * np.abs(found).max()
    np.testing.assert_allclose(mixture.audio, found.sum(0), atol=1e-6)
    level = 10 * np.log10(np.square(mixture.audio).mean())
    assert level == pytest.approx(catalogue.scenes["three"][4].level_db, abs=0.01)
    assert mixture.kind == [pool.labels[s.recording] for s in catalogue.sounds["three"][4]]
    assert mixture.noise is None and mixture.rt60 == 0 and math.isnan(mixture.noise_db)


def test_levels_are_those_of_the_catalogue(pool, catalogue, bank):
    for room, rooms in (("none", None), ("noise", bank)):
        renderer = Renderer(catalogue, catalogue.cells[f"mit_kemar-2-{room}"], pool,
                            ears(), rooms)
        for number in (0, 5):
            scene, sounds = catalogue.scenes["two"][number], catalogue.sounds["two"][number]
            mixture = renderer[number]
            power = np.square(mixture.sources.astype(float)).mean((-1, -2))
            # a room response is as loud as none; how it colours a sound moves its level a bit
            tolerance = 0.05 if room == "none" else 3.0
            ratio = 10 * np.log10(power[0] / power[1])
            assert ratio == pytest.approx(sounds[1].snr_db, abs=tolerance)
            if room == "noise":
                both = mixture.sources.sum(0)
                found = 10 * np.log10(np.square(both).mean() / np.square(mixture.noise).mean())
                assert found == pytest.approx(scene.noise_db, abs=0.01)
                np.testing.assert_allclose(mixture.audio, both + mixture.noise, atol=1e-6)
                assert mixture.rt60 == scene.rt60 and mixture.noise_db == scene.noise_db


def test_rooms_are_heard_and_checked(pool, catalogue, head, bank):
    cell = catalogue.cells["mit_kemar-2-room"]
    dry = Renderer(catalogue, catalogue.cells["mit_kemar-2-none"], pool, head)[3]
    wet = Renderer(catalogue, cell, pool, head, bank)[3]
    assert wet.recording == dry.recording and wet.sources.shape == dry.sources.shape
    assert not np.allclose(wet.audio, dry.audio)
    sounds = catalogue.sounds["two"][3]
    assert wet.azimuth == pytest.approx([sound.room_azimuth for sound in sounds])
    with pytest.raises(ConfigError, match="luseel-benchmark-set build"):
        Renderer(catalogue, cell, pool, head)
    turned = replace(bank, azimuth=(bank.azimuth + 3) % 360)
    with pytest.raises(ConfigError, match="build it again"):
        Renderer(catalogue, cell, pool, head, turned)
    with pytest.raises(ConfigError, match="3 positions"):
        Renderer(catalogue, cell, pool, head, replace(bank, azimuth=bank.azimuth[:, :3]))


def test_noise_is_diffuse():
    """Two free microphones in a field even over the sphere cohere as sin(x) / x (Cook, 1955)."""
    delay, rate = 0.0006, 16000
    azimuth = np.deg2rad(np.arange(360))[:, None, None]
    lag = 60 - np.array([1, -1])[:, None] * np.sin(azimuth) * delay * rate / 2
    response = np.sinc(np.arange(128) - lag) * np.hanning(128)
    head = Head("free", torch.tensor(response, dtype=torch.float32))
    noise = coloured_noise(head, 32 * rate, -3.0, 7)
    assert np.array_equal(noise, coloured_noise(head, 32 * rate, -3.0, 7))
    assert np.square(noise).mean() == pytest.approx(1.0)
    frequency, cross = scipy.signal.csd(*noise, rate, nperseg=1024)
    power = np.sqrt(scipy.signal.welch(noise[0], rate, nperseg=1024)[1]
                    * scipy.signal.welch(noise[1], rate, nperseg=1024)[1])
    for hertz in (250, 500, 1000, 1500, 2500):
        i = int(np.argmin(np.abs(frequency - hertz)))
        expected = np.sinc(2 * frequency[i] * delay)
        assert (cross[i].real / power[i]) == pytest.approx(expected, abs=0.08), hertz
    slope = 10 * np.log10(power[frequency == 4000] / power[frequency == 1000])[0]
    assert slope == pytest.approx(-6.0, abs=1.0)  # two octaves at -3 dB


# -- models


class Double:
    """Stands in for a model that knows the mixtures: windows of half their length."""

    window_samples, window, device, name = 4000, 0.25, "cpu", "double"

    def __init__(self, answer):
        self.answer, self.mixture, self.windows = answer, None, 0

    def heard_at_once(self, samples, window=None):
        return round(window * 16000) if window else self.window_samples

    def infer_windows(self, windows, queries):
        outputs = []
        for window in windows:
            sounds = []
            for query in queries:
                audio, azimuth, confidence = self.answer(self.mixture, query)
                likelihood = np.zeros(360)
                likelihood[round(azimuth) % 360] = 1.0
                sounds.append((self.cut(audio, window), azimuth, likelihood, confidence))
            audio, azimuth, likelihood, confidence = zip(*sounds)
            outputs.append(SimpleNamespace(
                audio=np.stack(audio), azimuth=np.array(azimuth), likelihood=np.stack(likelihood),
                confidence=np.array(confidence), gate=None))
        self.windows += len(windows)
        return outputs

    def cut(self, audio, window):
        """The part of `audio` that lies where the window lies in the mixture."""
        size = window.shape[-1]
        whole = np.lib.stride_tricks.sliding_window_view(self.mixture.audio[0], size)
        start = int(np.abs(whole[:, :50] - window[0, :50].numpy()).sum(1).argmin())
        return audio[:, start:start + size]


def oracle(mixture, query):
    for words in (mixture.kind, mixture.held_out):
        if query in words:
            i = words.index(query)
            return mixture.sources[i], mixture.azimuth[i], 0.9
    return np.zeros_like(mixture.audio), 0.0, 0.1


def copier(mixture, query):
    """The unprocessed mixture, always from behind, always certain."""
    return mixture.audio, 180.0, 1.0


def run(answer, catalogue, pool, head, bank, folder, cells=None, mixtures=4, **options):
    """Rows of a double's run, by cell."""
    model = Double(answer)
    results = Results(folder, {"model": "double", "hop": 0.125})
    for cell in catalogue.choose(cells):
        renderer = Renderer(catalogue, cell, pool, head, bank)

        class Watched(Renderer):
            """Tells the double which mixture it hears."""

            def __init__(self):
                self.__dict__.update(renderer.__dict__)

        watched = Watched()
        run_watched(model, catalogue, watched, results, mixtures, **options)
    return {cell: results.rows(cell) for cell in catalogue.cells if results.rows(cell)}


def run_watched(model, catalogue, renderer, results, mixtures, **options):
    from training.benchmark import run as module

    original = module.rows_of

    def rows_of(double, mixture, *args):
        double.mixture = mixture
        return original(double, mixture, *args)

    module.rows_of = rows_of
    try:
        run_cell(model, catalogue, renderer, results, mixtures, progress=False, **options)
    finally:
        module.rows_of = original


ABOUT = {"model": "double", "model_sha256": "0" * 64, "window": 0.25, "hop": 0.125, "sdr": False,
         "missing": 0, "altered": 0}
QUICK = Bootstrap(50)


def test_oracle_is_perfect(pool, catalogue, head, bank, tmp_path):
    rows = run(oracle, catalogue, pool, head, bank, tmp_path)
    summary = summarise(catalogue, rows, ABOUT, QUICK)
    assert len(summary["cells"]) == 7 and not summary["complete"]
    for cell in summary["cells"]:
        assert (cell["mixtures"], cell["of"]) == (4, 12)
        if cell["set"] == "same":
            continue
        metrics, count = cell["metrics"], cell["sources"]
        assert metrics["si_snri"]["mean"] > 40 and metrics["si_snri"]["n"] == 4 * count
        assert metrics["right_source"]["mean"] == 1.0 and metrics["within_5"]["mean"] == 1.0
        assert metrics["doa_error"]["mean"] <= 0.5 and metrics["front_back"]["mean"] == 0.0
        assert metrics["delta_itd_us"]["mean"] < 0.5 and metrics["delta_ild_db"]["mean"] < 0.01
        assert metrics["in_phase"]["mean"] == 1.0
        assert cell["live"]["live_within_5"]["mean"] == 1.0
        assert cell["live"]["live_si_snri"]["mean"] > 40
        known = cell["known"]
        # An oracle mask does better than nothing and worse than the sound itself.
        assert 3 < known["irm_si_snri"]["mean"] < 40 and 3 < known["ibm_si_snri"]["mean"] < 40
        assert known["mixture_right_source"]["mean"] <= 0.75
        presence = cell["presence"]
        assert presence["auroc"]["mean"] == presence["auroc_mean_over_windows"]["mean"] == 1.0
        assert presence["below_mixture_absent_db"]["mean"] == 100.0
    first = summary["cells"][0]
    assert first["wording"]["si_snri"]["difference"]["mean"] == pytest.approx(0.0, abs=1e-6)
    same = summary["cells"][-1]["same_kind"]
    assert same["within_5_either"]["mean"] == 1.0


def test_mixture_gains_nothing(pool, catalogue, head, bank, tmp_path):
    rows = run(copier, catalogue, pool, head, bank, tmp_path, ["*-2-noise", "*-same-*"], sdr=True)
    first, same = summarise(catalogue, rows, ABOUT, QUICK)["cells"]
    for key in ("si_snri", "sdri"):
        assert first["metrics"][key]["mean"] == pytest.approx(0.0, abs=0.01)
    assert first["live"]["live_si_snri"]["mean"] == pytest.approx(0.0, abs=0.01)
    for key in ("delta_itd_us", "delta_ild_db"):
        assert first["metrics"][key]["mean"] == pytest.approx(
            first["known"][f"mixture_{key}"]["mean"], abs=0.01)
    assert first["metrics"]["right_source"] == first["known"]["mixture_right_source"]
    assert first["presence"]["auroc"]["mean"] == 0.5
    assert first["presence"]["below_mixture_absent_db"]["mean"] == pytest.approx(0.0, abs=1e-3)
    for row in rows["mit_kemar-2-noise"]:
        if row["asked"] == "label":
            assert row["doa_error"] == pytest.approx(abs(row["azimuth"] - 180), abs=1e-3)
            mirrored = row["front_back"] == 1.0
            assert math.isnan(row["doa_error_no_confusions"]) == mirrored
    assert same["same_kind"]["si_snri_louder"]["mean"] == pytest.approx(0.0, abs=0.01)
    assert same["same_kind"]["si_snr_sum"]["mean"] > 40


def test_sounds_are_extracted_from_more_at_once(pool, catalogue, head, bank, tmp_path):
    """And all else is of the windows of a stream."""
    def doubtful(mixture, query):
        """Hears better, and is surer of a wrong direction, with more in its ears."""
        audio, azimuth, confidence = oracle(mixture, query)
        if at_once["samples"] == mixture.audio.shape[-1]:
            return audio, azimuth + 90, 0.9
        return audio + 0.1 * mixture.audio, azimuth, confidence / 2

    at_once, infer = {}, Double.infer_windows

    def watched(self, windows, queries):
        at_once["samples"] = windows.shape[-1]
        return infer(self, windows, queries)

    cell = "mit_kemar-2-none"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Double, "infer_windows", watched)
        short = run(doubtful, catalogue, pool, head, bank, tmp_path / "short", [cell])[cell]
        whole = run(doubtful, catalogue, pool, head, bank, tmp_path / "whole", [cell],
                    window=catalogue.seconds)[cell]
    for a, b in zip(short, whole):
        of_sound = {"below_mixture_db", "si_snri", "si_snr", "snri", "in_phase", "right_source",
                    "delta_itd_us", "delta_ild_db"}
        same = a.keys() - of_sound
        assert {key: a[key] for key in same} == {key: b[key] for key in same}
        if a["asked"] == "label":
            assert b["si_snri"] > a["si_snri"] + 10 and a["doa_error"] < 5


def test_windows_are_joined_as_extract_does(monkeypatch):
    monkeypatch.setattr("luseel_model.luseel.extractor.TextEncoder", lambda config, device: minilm())
    model = LuSeeLExtractor(make_network(changed("tiny")), "net")
    audio = clip(1, 2 * 20800).reshape(2, -1).astype(np.float32)
    queries = ["dog barking", "siren"]
    expected = model.extract(audio, 16000, queries, progress=False)
    heard = listen(model, audio, queries)
    assert heard.audio.shape == (2, 2, 20800)
    for i, result in enumerate(expected):
        level = np.abs(result.audio).max()
        np.testing.assert_allclose(heard.audio[i].numpy(), result.audio, atol=1e-4 * level)
        assert heard.azimuth[i] == pytest.approx(result.azimuth, abs=0.05)
        assert heard.confidence[i] == pytest.approx(result.confidence, abs=1e-4)
        assert heard.window_azimuth[:, i] == pytest.approx(
            [window.azimuth for window in result.windows], abs=0.05)
    often = listen(model, audio, queries, 0.1)
    assert len(often.starts) == 9
    expected = model.extract(audio, 16000, "siren", progress=False, hop=0.1)
    assert [window.start for window in expected.windows] == [n / 16000 for n in often.starts]
    np.testing.assert_allclose(often.audio[1].numpy(), expected.audio,
                               atol=1e-4 * np.abs(expected.audio).max())
    assert listen(model, audio[:, :4000], queries).audio.shape == (2, 2, 4000)
    whole, expected = (hear(window=1.0) for hear in (
        partial(listen, model, audio, queries), partial(model.extract, audio, 16000, queries)))
    assert (whole.audio - heard.audio).abs().max() > 1e-3 * heard.audio.abs().max()
    np.testing.assert_allclose(whole.audio[1].numpy(), expected[1].audio,
                               atol=1e-4 * np.abs(expected[1].audio).max())
    assert whole.starts == heard.starts
    assert whole.azimuth[1] == pytest.approx(expected[1].azimuth, abs=0.05)
    for hop in (0.6, 0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="hop"):
            listen(model, audio, queries, hop)


# -- runs


def test_an_interrupted_run_goes_on(pool, catalogue, head, bank, tmp_path):
    whole = run(oracle, catalogue, pool, head, bank, tmp_path / "whole", ["*-2-none"])
    calls = 0

    def stopped(mixture, query):
        nonlocal calls
        calls += 1
        if mixture.index == 2:
            raise KeyboardInterrupt
        return oracle(mixture, query)

    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        run(stopped, catalogue, pool, head, bank, part, ["*-2-none"])
    path = part / "cells" / "mit_kemar-2-none.jsonl"
    assert len(path.read_text().splitlines()) == 2
    with open(path, "a") as file:
        file.write('[{"cell": "mit_k')  # the machine went down in the middle of a line
    resumed = run(oracle, catalogue, pool, head, bank, part, ["*-2-none"])
    assert json.dumps(resumed) == json.dumps(whole)
    longer = run(oracle, catalogue, pool, head, bank, part, ["*-2-none"], mixtures=6)
    assert [r["mixture"] for r in longer["mit_kemar-2-none"]] == [m for m in range(6)
                                                                  for _ in range(5)]
    turned = Head("mit_kemar", head.hrir.roll(1, 0))
    with pytest.raises(ConfigError, match="another head or other test rooms"):
        run(oracle, catalogue, pool, turned, bank, part, ["*-2-none"])
    with pytest.raises(ConfigError, match="another hop"):
        Results(part, {"model": "double", "hop": 0.2})


def test_what_two_versions_share_is_heard_once(pool, catalogue, folder, head, bank, tmp_path,
                                               monkeypatch):
    gone = {catalogue.recordings[0].name}
    new = amend_catalogue(tmp_path / "new", catalogue, pool, Captions.load(), gone, "right")
    monkeypatch.setattr("training.benchmark.run.VERSIONS", (folder, tmp_path / "new"))
    cell = new.cells["mit_kemar-2-none"]
    about = {"model": "double", "hop": 0.125}
    run(oracle, catalogue, pool, head, bank, tmp_path / "old", [cell.name], mixtures=None)
    path = tmp_path / "old" / "run.json"
    path.write_text(json.dumps({**about, "catalogue_sha256": catalogue.sha256}))
    whole = run(oracle, new, pool, head, bank, tmp_path / "whole", [cell.name], mixtures=None)

    results = Results(tmp_path / "rest", {**about, "catalogue_sha256": new.sha256})
    shared = shared_mixtures(catalogue, new, "two")
    inputs = Renderer(new, cell, pool, head, bank).inputs()

    def take_over(taker, inputs=inputs, folder=tmp_path / "old", **options):
        return taker.take_over(cell, new, folder, inputs, **options)

    assert take_over(results, mixtures=5) == len([n for n in shared if n < 5]) < 5
    assert {row["mixture"] for row in results.rows(cell.name)} == {n for n in shared if n < 5}
    assert 0 < take_over(results) < len(shared) < 12
    assert take_over(results) == 0  # once is enough
    assert {row["mixture"] for row in results.rows(cell.name)} == set(shared)
    heard = []

    def listening(mixture, query):
        heard.append(mixture.index)
        return oracle(mixture, query)

    (tmp_path / "rest" / "run.json").write_text(json.dumps(about))
    rows = run(listening, new, pool, head, bank, tmp_path / "rest", [cell.name], mixtures=None)
    assert set(heard) == set(range(12)) - set(shared)
    assert json.dumps(rows) == json.dumps(whole)

    other = Results(tmp_path / "other", {**about, "hop": 0.2, "catalogue_sha256": new.sha256})
    with pytest.raises(ConfigError, match="another hop"):
        take_over(other)
    with pytest.raises(ConfigError, match="another head or rooms in mit_kemar-2-none"):
        take_over(results, {**inputs, "told": "something"})
    with pytest.raises(ConfigError, match="not the folder of a run"):
        take_over(results, folder=tmp_path / "nowhere")
    path.write_text(json.dumps({**about, "catalogue_sha256": catalogue.sha256, "altered": 1}))
    with pytest.raises(ConfigError, match="altered samples"):
        take_over(results)


def test_report_and_comparison(pool, catalogue, head, bank, tmp_path):
    for name, answer in (("old", copier), ("new", oracle)):
        rows = run(answer, catalogue, pool, head, bank, tmp_path / name,
                   ["*-2-*", "*-3-none", "*-same-*"])
        summary = summarise(catalogue, rows, {**ABOUT, "model": name}, QUICK)
        files = write_report(summary, rows, tmp_path / name)
    assert {file.name for file in files} == {
        "summary.json", "rows.csv.gz", "report.md", "cells.png", "kinds.png",
        "separation_mit_kemar-2.png", "separation_mit_kemar-3.png",
        "scatter_mit_kemar-2.png", "scatter_mit_kemar-3.png"}
    assert all(file.stat().st_size > 500 for file in files)
    text = files[2].read_text(encoding="utf-8")
    for words in (f"Benchmark toy (`{catalogue.sha256[:12]}`)", "Part of the benchmark only",
                  "4 of 12", "ideal ratio mask", "the sound itself", "GCC-PHAT", "front–back",
                  "Two sounds of the asked kind", "held-out words", "room and noise",
                  "95%, bootstrap over target recordings", "By kind"):
        assert words in text, words
    read = read_rows(files[1])
    assert len(read) == sum(len(found) for found in rows.values())
    assert read[0]["si_snri"] == pytest.approx(rows["mit_kemar-2-none"][0]["si_snri"], rel=1e-4)

    result = compare(tmp_path / "old", tmp_path / "new" / "summary.json", QUICK)
    gain = result["cells"]["mit_kemar-2-none"]["metrics"]["si_snri"]
    assert gain["difference"]["mean"] == pytest.approx(
        gain["after"]["mean"] - gain["before"]["mean"], abs=1e-6)
    assert gain["difference"]["low"] > 30 and verdict(gain["difference"], True) == "better"
    assert result["cells"]["all"]["auroc_difference"]["mean"] == pytest.approx(0.5)
    text = comparison_text(result)
    assert "old → new" in text and "| MAE [°] |" in text and "better" in text
    nothing = compare(tmp_path / "new", tmp_path / "new", QUICK)["cells"]["all"]["metrics"]
    assert nothing["si_snri"]["difference"]["high"] == 0.0
    assert verdict(nothing["si_snri"]["difference"], True) == ""

    other = json.loads((tmp_path / "old" / "summary.json").read_text())
    (tmp_path / "old" / "summary.json").write_text(json.dumps({**other, "sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="different benchmarks"):
        compare(tmp_path / "old", tmp_path / "new")
    with pytest.raises(ConfigError, match="not the summary"):
        compare(tmp_path, tmp_path / "new")


def test_comparison_pairs_queries(tmp_path):
    """The same gain everywhere is certain, however much the queries differ."""
    generator = np.random.default_rng(0)
    values = generator.normal(0, 10, 40)
    assert np.ptp(values) > 20
    rows = [{"cell": "c", "mixture": i, "asked": "label", "source": 0, "kind": "k", "query": "k",
             "recording": f"r{i % 9}", "others": "", "confidence": 0.5, "si_snri": float(value)}
            for i, value in enumerate(values)]
    from training.benchmark.report import write_rows

    for name, gain in (("a", 0.0), ("b", 0.5)):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "rows.csv.gz",
                   [{**row, "si_snri": row["si_snri"] + gain} for row in rows])
        (tmp_path / name / "summary.json").write_text(json.dumps(
            {"sha256": "1", "benchmark": "x", "model": name, "hop": 1.0,
             "window": 1.0, **({} if name == "a" else {"recording_window": 10.0}),
             "inputs": {"c": {"head": name}}}))
    result = compare(tmp_path / "a", tmp_path / "b", QUICK)
    found = result["cells"]["c"]["metrics"]["si_snri"]
    assert "Not the same audio" in comparison_text(result)
    assert "extracted from 1 s at once before, 10 s after." in comparison_text(result)
    assert found["difference"]["low"] == pytest.approx(0.5, abs=1e-3)
    assert found["difference"]["high"] == pytest.approx(0.5, abs=1e-3)
    assert found["after"]["high"] - found["after"]["low"] > 2


# -- commands


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("luseel_model.luseel.extractor.TextEncoder", lambda config, device: minilm())
    config = changed("tiny", window=0.25, stft={"n_fft": 256, "hop": 128})
    network = make_network(config)
    path = tmp_path / "model" / "tiny.safetensors"
    path.parent.mkdir()
    save_checkpoint(path, network.state_dict(), config, {})
    return path


def test_commands(checkpoint, packed, folder, bank, tmp_path, capsys):
    common = ["--packed", str(packed), "--catalogue", str(folder), "--rooms", str(tmp_path)]
    assert command.main(["check", *common]) == 2
    assert "luseel-benchmark-set build" in capsys.readouterr().err
    bank.save(tmp_path)
    assert command.main(["build", *common]) == 0
    assert "12 of 12" in capsys.readouterr().out
    assert command.main(["check", *common]) == 0
    out = tmp_path / "run"
    arguments = ["evaluate", *common, "--checkpoint", str(checkpoint), "--out", str(out),
                 "--mixtures", "2", "--device", "cpu"]
    assert command.main([*arguments, "--cells", "*-2-room"]) == 0
    assert command.main([*arguments, "--cells", "*-same-none"]) == 0
    text = capsys.readouterr().out
    assert "# model/tiny on the LuSeeL benchmark" in text and "Part of the benchmark" in text
    summary = json.loads((out / "summary.json").read_text())
    assert [cell["cell"] for cell in summary["cells"]] == ["mit_kemar-2-room",
                                                           "mit_kemar-same-none"]
    assert summary["hop"] == 0.125 and summary["catalogue_sha256"] == summary["sha256"]
    assert command.main([*arguments, "--hop", "0.1"]) == 2
    assert "another hop" in capsys.readouterr().err
    assert command.main(["compare", str(out), str(out), "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "comparison.md").read_text() in capsys.readouterr().out


def test_doubtful_labels_are_put_right_by_a_command(packed, pool, folder, catalogue, tmp_path,
                                                    capsys):
    copy, out = tmp_path / "copy", tmp_path / "right"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    arguments = ["write", "--packed", str(packed), "--amend", str(copy), "--version", "right",
                 "--out", str(out)]
    assert command.main(arguments) == 2
    assert "no doubtful labels" in capsys.readouterr().err
    name = catalogue.recordings[0].name
    (copy / "doubtful_labels.csv").write_text(f"recording,kind,name,why\n{name},a,b,c\n")
    assert command.main(arguments) == 0
    by_hand = amend_catalogue(tmp_path / "hand", catalogue, pool, Captions.load(), {name}, "right")
    assert load_catalogue(out).sha256 == by_hand.sha256


def test_audio_files(packed, folder, tmp_path, catalogue, pool, head):
    assert command.main(["audio", "--packed", str(packed), "--catalogue", str(folder), "--out",
                         str(tmp_path), "--cells", "*-2-none", "--mixtures", "2"]) == 0
    place = tmp_path / "mit_kemar-2-none"
    mixture = Renderer(catalogue, catalogue.cells["mit_kemar-2-none"], pool, head)[1]
    audio, rate = soundfile.read(place / "001_mixture.flac")
    assert rate == 16000
    np.testing.assert_allclose(audio.T, mixture.audio, atol=1e-4)
    with open(place / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows[2:]] == mixture.kind
    assert float(rows[2]["azimuth"]) == pytest.approx(mixture.azimuth[0], abs=0.01)
    sound, _ = soundfile.read(place / rows[2]["audio"])
    np.testing.assert_allclose(sound.T, mixture.sources[0], atol=1e-4)


def test_missing_recordings(checkpoint, folder, tmp_path, capsys):
    clips = [(kind, f"group{i}", clip(i, 3000 + 1500 * i)) for i, kind in enumerate(KINDS[:6])]
    packed = write_corpus(tmp_path / "few", {
        "train": [(kind, kind, clip(0, 4000)) for kind in KINDS], "test": clips})
    arguments = ["evaluate", "--packed", str(packed), "--catalogue", str(folder), "--checkpoint",
                 str(checkpoint), "--out", str(tmp_path / "run"), "--cells", "*-2-none"]
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert "6 of the 12 recordings" in error and "--allow-missing" in error
    assert command.main([*arguments, "--allow-missing"]) == 0
    assert "6 recordings are missing here" in capsys.readouterr().out


def test_areas_by_hand():
    # present 0.9 and 0.4, absent 0.5: one of two pairs is right
    confidence, present = np.array([0.9, 0.4, 0.5]), np.array([True, True, False])
    assert weighted_auroc(confidence, present, np.ones(3)) == 0.5
    assert weighted_auroc(confidence, present, np.array([3.0, 1.0, 1.0])) == 0.75
    assert math.isnan(weighted_auroc(confidence, present, np.array([1.0, 1.0, 0.0])))


def test_recordings_that_go_wrong_most():
    right = {"a": [0.0, 0.0, 1.0], "b": [1.0, 1.0], "c": [0.0], "d": [0.0, 1.0]}
    rows = [{"recording": name, "kind": name.upper(), "right_source": value, "doa_error": 30.0 * i}
            for name, values in right.items() for i, value in enumerate(values)]
    found = hardest(rows)
    assert [(one["recording"], one["kind"], one["n"], one["wrong"]) for one in found] == [
        ("a", "A", 3, 2), ("c", "C", 1, 1), ("d", "D", 2, 1)]
    assert [one["share"] for one in found] == [0.5, 0.75, 1.0]
    assert found[0]["doa_error"] == 30.0


def test_doubtful_labels_count_apart(catalogue, pool, head, bank, tmp_path):
    shipped = load_catalogue("v1")
    kinds = {recording.name: recording.kind for recording in shipped.recordings}
    assert 0 < len(shipped.doubtful) < 0.1 * len(kinds) and set(shipped.doubtful) <= set(kinds)

    rows = run(copier, catalogue, pool, head, bank, tmp_path)
    present = [row for row in rows["mit_kemar-2-none"] if row["asked"] == "label"]
    name = present[0]["recording"]
    sure = [row["si_snri"] for row in present if row["recording"] != name]
    summary = summarise(replace(catalogue, doubtful={name: "says another"}), rows, ABOUT, QUICK)
    cell = summary["cells"][0]
    assert cell["sure_labels"]["n"] == len(sure) < len(present) == cell["metrics"]["si_snri"]["n"]
    assert cell["sure_labels"]["si_snri"]["mean"] == pytest.approx(np.mean(sure))
    assert "## Without doubtful labels" in markdown(summary)
    assert "sure_labels" not in summarise(catalogue, rows, ABOUT, QUICK)["cells"][0]


def test_markdown_of_a_whole_run(catalogue, pool, head, bank, tmp_path):
    rows = run(copier, catalogue, pool, head, bank, tmp_path, mixtures=None)
    summary = summarise(catalogue, rows, ABOUT, QUICK)
    text = markdown(summary)
    assert summary["complete"] and "Part of the benchmark" not in text
    assert "Half of all wrong sources are" in text
