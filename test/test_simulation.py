"""Binaural scenes: levels, directions, chance and resumption."""

import dataclasses

import numpy as np
import pytest
import torch

from luseel_model.errors import ConfigError
from training.heads import Head, interaural_delay, load_head
from training.pool import ClipPool
from training.simulation import BinauralSimulator, Plan, SimulationConfig, _fast_length

RATE = 16000
PLAIN = dict(rate=None, equaliser_db=0.0, swap_ears=0.0, head_size=None)


def make_pool(clips, labels=None, groups=None, flags=None, device="cpu"):
    clips = [np.asarray(clip, np.int16) for clip in clips]
    labels = labels or [f"kind {i}" for i in range(len(clips))]
    length = [clip.size for clip in clips]
    start = np.cumsum([0] + length[:-1])
    return ClipPool(torch.from_numpy(np.concatenate(clips)), start, length, labels,
                    sorted(set(labels)), groups=groups, flags=flags, device=device)


def noise(seconds, level=3000, seed=0):
    random = np.random.default_rng(seed)
    return np.clip(random.normal(0, level, round(seconds * RATE)), -32768, 32767).astype(np.int16)


@pytest.fixture(scope="module")
def pool():
    """Six kinds: long, short, loud, quiet, and one with a single click in ten seconds."""
    click = np.zeros(10 * RATE, np.int16)
    click[70000:70400] = 20000
    return make_pool([noise(6, seed=1), noise(0.3, seed=2), noise(3, 30, 3), noise(0.06, 9000, 4),
                      click, noise(1.9, seed=5), noise(4, seed=6)],
                     labels=["a", "b", "c", "d", "e", "f", "a"])


@pytest.fixture(scope="module")
def unit():
    """A head that changes nothing: one sample at each ear, from everywhere."""
    hrir = torch.zeros(360, 2, 8)
    hrir[..., 0] = 1.0
    return Head("unit", hrir)


@pytest.fixture(scope="module")
def kemar():
    return load_head("mit_kemar")


def level_db(audio):
    return 10 * torch.log10(audio.double().square().mean(-1))


def test_shapes_and_sum(pool, kemar):
    simulator = BinauralSimulator(pool, kemar, {"n_sources": [3], "seconds": 0.5}, seed=1)
    scene = simulator.sample(20)
    assert scene.mixture.shape == (20, 2, 8000) and scene.mixture.dtype == torch.float32
    assert scene.sources.shape == (20, 3, 2, 8000)
    assert scene.azimuth.shape == scene.kind.shape == scene.recording.shape == (20, 3)
    torch.testing.assert_close(scene.mixture, scene.sources.sum(1), atol=1e-5, rtol=1e-4)
    assert ((scene.azimuth >= 0) & (scene.azimuth < 360)).all()
    assert torch.equal(scene.kind, pool.kind[scene.recording])
    assert scene.mixture.abs().max() <= 1.0 + 1e-5


def test_ratio_is_set_before_the_head(pool, unit):
    simulator = BinauralSimulator(pool, unit, {"n_sources": [3], "seconds": 1.0, **PLAIN}, seed=2)
    scene = simulator.sample(40)
    level = level_db(scene.sources[:, :, 0])
    torch.testing.assert_close(level[:, :1] - level, scene.snr_db.double(), atol=0.01, rtol=0)
    assert (scene.snr_db[:, 0] == 0).all()
    others = scene.snr_db[:, 1:]
    assert others.min() < -4 and others.max() > 4 and (others.abs() <= 5).all()


def test_ratio_with_equaliser(unit):
    long = make_pool([noise(5, seed=i) for i in range(4)])
    simulator = BinauralSimulator(long, unit, {**PLAIN, "equaliser_db": 6.0}, seed=3)
    scene = simulator.sample(20)
    level = level_db(scene.sources[:, :, 0])
    torch.testing.assert_close(level[:, :1] - level, scene.snr_db.double(), atol=0.2, rtol=0)


def test_equaliser_has_the_drawn_shape(unit):
    flat = make_pool([noise(5, seed=i) for i in range(2)])
    simulator = BinauralSimulator(flat, unit, {**PLAIN, "equaliser_db": 6.0, "level_db": None})
    plan = simulator.draw(1)
    flat_plan = dataclasses.replace(plan, equaliser_db=torch.zeros_like(plan.equaliser_db))
    with_it, without = simulator.render(plan), simulator.render(flat_plan)
    gain = (torch.fft.rfft(with_it.sources[0, 0, 0]).abs()
            / torch.fft.rfft(without.sources[0, 0, 0]).abs())
    frequency = torch.fft.rfftfreq(simulator.window, 1 / RATE)
    centres = 60 * (8000 / 60) ** (torch.arange(6) / 5)
    for band, centre in enumerate(centres[2:5], 2):
        near = (frequency - centre).abs() < 0.02 * centre
        found = 20 * torch.log10(gain[near].median())
        assert found == pytest.approx(float(plan.equaliser_db[0, 0, band]), abs=0.5)


def test_left_is_left(kemar):
    pool = make_pool([noise(5, seed=1), noise(5, seed=2)])
    simulator = BinauralSimulator(pool, kemar, PLAIN, seed=4)
    plan = simulator.draw(2)
    plan.azimuth[:] = torch.tensor([[90.0, 270.0], [30.0, 330.0]])
    scene = simulator.render(plan)
    delay = interaural_delay(scene.sources.flatten(0, 1).numpy(), RATE)
    assert 0.6e-3 < delay[0] < 0.9e-3 and -0.9e-3 < delay[1] < -0.6e-3
    assert 0.2e-3 < delay[2] < 0.4e-3 and delay[3] == pytest.approx(-delay[2], abs=20e-6)
    level = level_db(scene.sources).flatten(0, 1)
    assert level[0, 0] > level[0, 1] + 5 and level[1, 1] > level[1, 0] + 5


def test_convolution_against_direct_one(kemar):
    """A whole scene by np.convolve: crop, gain, off-grid response, tail from before the window."""
    pool = make_pool([noise(8, seed=7), noise(8, seed=8)])
    simulator = BinauralSimulator(pool, kemar, {**PLAIN, "level_db": None, "seconds": 0.25}, seed=5)
    plan = simulator.draw(1)
    scene = simulator.render(plan)
    dry = simulator._gather(plan)[0].double().numpy()
    before, window = simulator._before, simulator.window
    for s in (0, 1):
        clip = noise(8, seed=7 + int(plan.recording[0, s]))
        place = np.flatnonzero(clip[:-1] == round(dry[s, 0] * 32768))
        assert any(np.array_equal(clip[p:p + dry.shape[1]], np.rint(dry[s] * 32768)) for p in place)
        energy = [np.square(dry[i, before:before + window]).mean() for i in (0, s)]
        gain = np.sqrt(energy[0] / energy[1]) * 10 ** (-float(plan.snr_db[0, s]) / 20)
        for ear in (0, 1):
            hrir = kemar.at(plan.azimuth[0, s])[ear].double().numpy()
            full = np.convolve(gain * dry[s], hrir)[before:before + window]
            np.testing.assert_allclose(scene.sources[0, s, ear], full, atol=2e-6)


def test_swapped_ears_mirror_the_scene(kemar):
    pool = make_pool([noise(5, seed=1), noise(5, seed=2)])
    crooked = kemar.hrir.clone()
    crooked[:, 0] *= 2.0  # a head that is not symmetrical
    simulator = BinauralSimulator(pool, Head("crooked", crooked), {**PLAIN, "level_db": None})
    plan = simulator.draw(1)
    plan.azimuth[:] = torch.tensor([[70.0, 200.0]])
    straight = simulator.render(plan)
    mirrored = dataclasses.replace(plan, swap=torch.tensor([True]), azimuth=360.0 - plan.azimuth)
    other = simulator.render(mirrored)
    torch.testing.assert_close(other.sources, straight.sources.flip(2))
    assert other.azimuth.tolist() == [[290.0, 160.0]]


def test_head_size_and_choice_of_heads(kemar, unit):
    pool = make_pool([noise(5, seed=1), noise(5, seed=2)])
    simulator = BinauralSimulator(pool, [kemar, unit], {**PLAIN, "head_size": [0.93, 1.08]})
    plan = simulator.draw(3)
    plan.azimuth[:] = 90.0
    plan.head[:] = torch.tensor([0, 0, 1])
    plan.size[:] = torch.tensor([0, 6, 3])
    delay = interaural_delay(simulator.render(plan).sources[:, 0].numpy(), RATE)
    true = float(interaural_delay(kemar.hrir[90:91].numpy(), RATE)[0])
    np.testing.assert_allclose(delay[:2], [0.93 * true, 1.08 * true], atol=15e-6)
    assert abs(delay[2]) < 2e-6
    assert set(simulator.draw(200).head.tolist()) == {0, 1}


def test_no_sound_is_silent(pool, unit):
    simulator = BinauralSimulator(pool, unit, {"n_sources": [2, 3], "seconds": 0.4}, seed=6)
    seen = set()
    for _ in range(15):
        scene = simulator.sample(40)
        seen |= set(scene.recording.flatten().tolist())
        level = level_db(scene.sources[:, :, 0])
        # Ratios of 10 dB at most between two sounds, and a little for the equaliser's edges.
        assert (level.amax(1) - level.amin(1)).max() < 10.5
        assert torch.isfinite(scene.mixture).all()
    assert seen == set(range(len(pool)))


def test_short_recordings_repeat_after_the_gap(unit):
    short = np.arange(1, 2001, dtype=np.int16)
    pool = make_pool([short, noise(1)])
    simulator = BinauralSimulator(pool, unit, {**PLAIN, "gap": [0.1, 0.1]}, seed=7)
    plan = simulator.draw(8)
    plan.recording[:] = torch.tensor([0, 1])
    dry = (simulator._gather(plan)[:, 0] * 32768).round().long()
    period = 2000 + 1600 + 1
    for row in dry:
        first = int((row == 1).nonzero()[0])
        assert torch.equal(row[first:first + 2000], torch.arange(1, 2001))
        assert (row[first + 2000:first + period] == 0).all()
        assert torch.equal(row[first + period:first + period + 2000], torch.arange(1, 2001))
    assert len({int((row == 1).nonzero()[0]) for row in dry}) > 4  # phases differ


def test_playback_rate(unit):
    tone = 8000 * np.sin(2 * np.pi * 500 * np.arange(6 * RATE) / RATE)
    pool = make_pool([tone, noise(5)])
    simulator = BinauralSimulator(pool, unit, {**PLAIN, "rate": [0.8, 1.25]}, seed=8)
    plan = simulator.draw(2)
    assert ((plan.rate >= 0.8) & (plan.rate <= 1.25)).all()
    plan.recording[:] = torch.tensor([0, 1])
    plan.rate[:, 0] = torch.tensor([0.8, 1.25])
    spectrum = torch.fft.rfft(simulator.render(plan).sources[:, 0, 0]).abs()
    assert (spectrum.argmax(-1) / 2.0).tolist() == [400.0, 625.0]  # 0.5 Hz bins


def test_level_of_the_mixture(pool, kemar):
    config = {"level_db": [-30, -30], "seconds": 0.5}
    scene = BinauralSimulator(pool, kemar, config, seed=9).sample(30)
    level = level_db(scene.mixture.flatten(1))
    peaked = scene.mixture.abs().amax((1, 2)) > 0.999
    assert torch.allclose(level[~peaked], torch.tensor(-30.0, dtype=torch.float64), atol=0.01)
    assert (level[peaked] < -29.9).all()
    kept = BinauralSimulator(make_pool([noise(3, seed=1), noise(3, seed=2)]), Head(
        "unit", torch.nn.functional.pad(torch.ones(360, 2, 1), (0, 7))),
        {**PLAIN, "level_db": None}).sample(4)
    torch.testing.assert_close(level_db(kept.sources[:, 0, 0]), torch.full(
        (4,), 20 * np.log10(3000 / 32768), dtype=torch.float64), atol=0.1, rtol=0)


def test_same_seed_same_scene(pool, kemar):
    config = {"n_sources": [2, 3], "seconds": 0.3}
    one, two, other = (BinauralSimulator(pool, kemar, config, seed=s) for s in (3, 3, 4))
    for _ in range(4):
        a, b, c = one.sample(11), two.sample(11), other.sample(11)
        assert torch.equal(a.mixture, b.mixture) and torch.equal(a.azimuth, b.azimuth)
        assert a.sources.shape != c.sources.shape or not torch.equal(a.sources, c.sources)


def test_resumed_equals_uninterrupted(pool, kemar, tmp_path):
    config = {"n_sources": [2, 3], "seconds": 0.3}
    first = BinauralSimulator(pool, kemar, config, seed=5)
    for _ in range(3):
        first.sample(4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    expected = [first.sample(4) for _ in range(3)]
    second = BinauralSimulator(pool, kemar, config, seed=99)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for scene in expected:
        again = second.sample(4)
        for field in dataclasses.fields(scene):
            assert torch.equal(getattr(scene, field.name), getattr(again, field.name)), field.name


def test_scenes_do_not_depend_on_their_batch(pool, kemar):
    simulator = BinauralSimulator(pool, kemar, {"seconds": 0.3}, seed=6)
    plan = simulator.draw(19)
    assert len(plan) == 19 and isinstance(plan[3:5], Plan) and len(plan[3:5]) == 2
    whole, part = simulator.render(plan), simulator.render(plan[9:13])
    torch.testing.assert_close(whole.sources[9:13], part.sources, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_scenes_on_a_gpu(kemar):
    clips = [noise(3, seed=i) for i in range(5)]
    cpu = BinauralSimulator(make_pool(clips), kemar, seed=7).sample(20)
    gpu = BinauralSimulator(make_pool(clips, device="cuda"), kemar, seed=7).sample(20)
    assert gpu.mixture.is_cuda
    torch.testing.assert_close(gpu.mixture.cpu(), cpu.mixture, atol=1e-5, rtol=1e-4)


def test_kinds_differ_within_a_scene(pool, unit):
    plan = BinauralSimulator(pool, unit, {"n_sources": [6], "seconds": 0.1}, seed=1).draw(100)
    kinds = pool.kind[plan.recording].sort(dim=1).values
    assert torch.equal(kinds, torch.arange(6).expand(100, 6))


def test_confusable_kinds_stay_apart(pool, unit):
    confusable = torch.zeros(6, 6, dtype=torch.bool)
    confusable[0, 1] = confusable[1, 0] = True
    config = {"n_sources": [3], "seconds": 0.1}
    simulator = BinauralSimulator(pool, unit, config, confusable=confusable)
    kinds = pool.kind[simulator.draw(300).recording]
    assert not ((kinds == 0).any(1) & (kinds == 1).any(1)).any()
    assert (kinds == 0).any() and (kinds == 1).any()


def test_how_often_kinds_and_groups_are_drawn(unit):
    labels = ["common"] * 101 + ["rare"] * 4
    groups = ["series"] * 100 + ["alone"] + [f"r{i}" for i in range(4)]
    pool = make_pool([noise(0.05, seed=i) for i in range(105)], labels, groups)
    config = {"n_sources": [1], "seconds": 0.05, "kind_cap": 64}
    plan = BinauralSimulator(pool, unit, config, seed=2).draw(20000)
    recording = plan.recording[:, 0]
    rare = (recording > 100).float().mean()
    assert rare == pytest.approx(2 / (2 + 8), abs=0.01)  # roots of 4 and of the cap 64
    common = recording[recording <= 100]
    assert (common == 100).float().mean() == pytest.approx(1 / 11, abs=0.01)  # 100 share 10
    assert torch.bincount(common, minlength=101).min() > 50


def test_exclusions(unit):
    pool = make_pool([noise(0.1, seed=i) for i in range(5)], list("abcde"),
                     flags=["", "dull;clipped", "", "dull", ""])
    config = {"exclude_kinds": ["a"], "exclude_flags": ["clipped"], "seconds": 0.1}
    plan = BinauralSimulator(pool, unit, config).draw(200)
    assert set(plan.recording.flatten().tolist()) == {2, 3, 4}
    with pytest.raises(ConfigError, match="no such kind"):
        BinauralSimulator(pool, unit, {"exclude_kinds": ["z"]})
    with pytest.raises(ConfigError, match="usable kinds"):
        BinauralSimulator(pool, unit, {"n_sources": [5], "exclude_flags": ["dull"]})


def test_kinds_outside_training_are_not_drawn(unit):
    pool = ClipPool(torch.ones(300, dtype=torch.int16), [0, 100, 200], [100] * 3,
                    ["a", "b", "unheard"], ["a", "b"])
    plan = BinauralSimulator(pool, unit, {"seconds": 0.05}).draw(100)
    assert set(plan.recording.flatten().tolist()) == {0, 1}


@pytest.mark.parametrize("count, least", [(2, 0.0), (2, 30.0), (3, 60.0), (3, 120.0)])
def test_azimuths(pool, unit, count, least):
    config = {"n_sources": [count], "min_separation": least, "seconds": 0.05}
    azimuth = BinauralSimulator(pool, unit, config, seed=3).draw(8000).azimuth
    assert ((azimuth >= 0) & (azimuth < 360)).all()
    for s in range(count):
        share = torch.histc(azimuth[:, s], 12, 0, 360) / 8000
        assert (share - 1 / 12).abs().max() < 0.015
    assert (azimuth - azimuth.round()).abs().mean() == pytest.approx(0.25, abs=0.01)  # off the grid
    for a in range(count):
        for b in range(a):
            apart = 180 - ((azimuth[:, a] - azimuth[:, b]).abs() - 180).abs()
            assert apart.min() >= least - 1e-3
            if least == 0:
                assert apart.mean() == pytest.approx(90, abs=2)


def test_configuration():
    config = SimulationConfig.from_dict({"n_sources": [2, 3], "rate": None, "snr_db": [-3, 3]})
    assert config.n_sources == (2, 3) and config.rate is None and config.snr_db == (-3.0, 3.0)
    plain = SimulationConfig(n_sources=(3,)).plain()
    assert plain.n_sources == (3,) and plain.rate is None and plain.equaliser_db == 0
    for wrong, words in [({"reverb": 1}, "reverb"), ({"seconds": "long"}, "seconds"),
                         ({"seconds": -1.0}, "seconds"), ({"snr_db": [5, -5]}, "snr_db"),
                         ({"n_sources": []}, "n_sources"), ({"rate": [0.1, 1]}, "rate"),
                         ({"swap_ears": 2.0}, "swap_ears"), ({"gap": [-1, 0]}, "gap"),
                         ({"min_separation": 200.0}, "min_separation"), ({"kind_cap": 0}, "cap")]:
        with pytest.raises(ConfigError, match=words):
            SimulationConfig.from_dict(wrong)


def test_too_few_kinds_or_heads(unit):
    pool = make_pool([noise(0.1)], ["a"])
    with pytest.raises(ConfigError, match="usable kinds"):
        BinauralSimulator(pool, unit)
    with pytest.raises(ConfigError, match="head"):
        BinauralSimulator(pool, [])
    with pytest.raises(ConfigError, match="no head"):
        BinauralSimulator(pool, "nobody", {"n_sources": [1]})
    with pytest.raises(ConfigError, match="kinds that differ"):
        BinauralSimulator(pool, unit, {"n_sources": [1]}).draw(2, n_sources=2)


def test_fast_length():
    def smooth(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    for least in (2, 7, 16, 8191, 32191, 32769):
        assert _fast_length(least) == next(n for n in range(least + least % 2, 2 * least + 2, 2)
                                           if smooth(n))
