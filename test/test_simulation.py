"""Binaural scenes: levels, directions, chance and resumption."""

import dataclasses

import numpy as np
import pytest
import torch

from luseel_model.errors import ConfigError
from training.heads import Head, interaural_delay, load_head
from training.pool import ClipPool
from training.rooms import RoomBank
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


@pytest.fixture(autouse=True)
def short_noise(monkeypatch):
    """8 s of noise to take from are made sooner than a minute of it."""
    monkeypatch.setattr("training.simulation._NOISE_LENGTH", 1 << 17)


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


def assert_same(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (a is None and b is None) or torch.equal(a, b), field.name


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
    dry = simulator._gather(plan, simulator._anechoic)[0].double().numpy()
    before, window = simulator._anechoic.before, simulator.window
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
    dry = (simulator._gather(plan, simulator._anechoic)[:, 0] * 32768).round().long()
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
        assert_same(second.sample(4), scene)


def test_scenes_do_not_depend_on_their_batch(pool, kemar):
    simulator = BinauralSimulator(pool, kemar, {"seconds": 0.3}, seed=6)
    plan = simulator.draw(19)
    assert len(plan) == 19 and isinstance(plan[3:5], Plan) and len(plan[3:5]) == 2
    whole, part = simulator.render(plan), simulator.render(plan[9:13])
    torch.testing.assert_close(whole.sources[9:13], part.sources, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_scenes_on_a_gpu(kemar, rooms):
    clips = [noise(3, seed=i) for i in range(5)]
    for config in ({}, {"rooms": rooms, "room_share": 0.5, **NOISY}):
        cpu = BinauralSimulator(make_pool(clips), kemar, config, seed=7).sample(20)
        gpu = BinauralSimulator(make_pool(clips, device="cuda"), kemar, config, seed=7).sample(20)
        assert gpu.mixture.is_cuda
        torch.testing.assert_close(gpu.mixture.cpu(), cpu.mixture, atol=1e-5, rtol=1e-4)


# -- rooms and noise ------------------------------------------------------------------------------


def make_bank(head, rooms=3, positions=6, taps=2000, seed=0):
    """Made up: the head's response, then decaying noise, another one for each place."""
    random = torch.Generator().manual_seed(seed)
    azimuth = (torch.rand(rooms, positions, generator=random) * 30
               + 360 / positions * torch.arange(positions)) % 360
    distance = 1 + 3 * torch.rand(rooms, positions, generator=random)
    response = 0.1 * torch.randn(rooms, positions, 2, taps, generator=random)
    response *= 10 ** (-3 * torch.arange(taps) / taps)
    response[..., :head.taps] += head.at(azimuth) / distance[..., None, None]
    rt60 = 0.1 + 0.1 * torch.arange(rooms)
    return RoomBank(head.name, "train", response.half(), azimuth, distance, torch.zeros_like(
        distance), rt60, rt60.clone(), torch.ones(rooms, 3), torch.ones(rooms))


@pytest.fixture(scope="module")
def rooms(kemar, unit, tmp_path_factory):
    """A folder of banks that differ in rooms, places and taps."""
    folder = tmp_path_factory.mktemp("rooms")
    make_bank(kemar).save(folder)
    make_bank(unit, rooms=5, positions=4, taps=1500, seed=1).save(folder)
    return str(folder)


#: Configuration, sum of the mixtures' magnitudes, first recordings and azimuths.
OLD_SCENES = [
    ({"n_sources": [2, 3], "seconds": 0.4}, 3710.2522, [3, 2, 2, 4, 4, 5],
     [49.7856, 127.4973, 155.056]),
    ({"n_sources": [2], "seconds": 2.0, "min_separation": 20.0}, 18535.541, [3, 2, 2, 4, 4, 5],
     [38.4202, 127.4973, 155.056])]
NOISY = {"noise_share": 0.5, "noise_db": [5, 30], "sensor_db": [30, 60]}


def test_scenes_without_the_new_options_are_as_they_were(kemar):
    """Numbers noted before rooms and noise were added."""
    pool = make_pool([noise(6, seed=1), noise(0.3, seed=2), noise(3, 30, 3), noise(0.06, 9000, 4),
                      noise(1.9, seed=5), noise(4, seed=6)], labels=list("abcdea"))
    for config, total, recording, azimuth in OLD_SCENES:
        simulator = BinauralSimulator(pool, ["mit_kemar"], config, seed=11)
        plan = simulator.draw(5)
        assert plan.recording.flatten().tolist()[:6] == recording
        torch.testing.assert_close(plan.azimuth.flatten()[:3], torch.tensor(azimuth))
        scene = simulator.render(plan)
        assert float(scene.mixture.abs().sum()) == pytest.approx(total, rel=1e-4)
        assert scene.noise is None and not scene.rt60.any()


def test_the_rest_of_a_plan_does_not_depend_on_rooms_and_noise(pool, kemar, rooms):
    old = BinauralSimulator(pool, kemar, seed=4).draw(12)
    new = BinauralSimulator(pool, kemar, {"rooms": rooms, "room_share": 0.5, **NOISY},
                            seed=4).draw(12)
    for name in ("recording", "snr_db", "moment", "place", "gap", "rate", "equaliser_db", "swap"):
        assert torch.equal(getattr(old, name), getattr(new, name)), name
    assert torch.equal(old.azimuth[new.room < 0], new.azimuth[new.room < 0])


def test_convolution_in_a_room_against_direct_one(kemar, rooms):
    """By np.convolve: the room's tail from before the window, level, azimuth, the next scene."""
    pool = make_pool([noise(8, seed=7), noise(8, seed=8)])
    config = {**PLAIN, "level_db": None, "seconds": 0.25, "rooms": rooms, "room_share": 1.0}
    simulator = BinauralSimulator(pool, kemar, config, seed=5)
    plan = simulator.draw(3)
    scene = simulator.render(plan)
    bank = RoomBank.load(RoomBank.path(rooms, "mit_kemar", "train"))
    layout, window = simulator._reverberant, simulator.window
    dry = simulator._gather(plan, layout).double().numpy()
    for b in range(3):
        energy = np.square(dry[b, :, layout.before:layout.before + window]).mean(-1)
        for s in (0, 1):
            room, place = int(plan.room[b]), int(plan.position[b, s])
            response = bank.response[room, place].double().numpy()
            azimuth = bank.azimuth[room, place]
            assert scene.azimuth[b, s] == azimuth == plan.azimuth[b, s]
            # As loud as without a room.
            response *= np.sqrt(float(kemar.at(azimuth).square().sum()) / np.square(response).sum())
            gain = np.sqrt(energy[0] / energy[s]) * 10 ** (-float(plan.snr_db[b, s]) / 20)
            for ear in (0, 1):
                full = np.convolve(gain * dry[b, s], response[ear])
                np.testing.assert_allclose(
                    scene.sources[b, s, ear], full[layout.before:layout.before + window], atol=5e-6)
        assert scene.rt60[b] == bank.rt60[room]


def test_heads_have_rooms_of_their_own(pool, kemar, unit, rooms):
    """Where banks differ in size, each head's responses are found in its own."""
    config = {**PLAIN, "seconds": 0.1, "rooms": rooms, "room_share": 1.0}
    simulator = BinauralSimulator(pool, [kemar, unit], config, seed=3)
    plan = simulator.draw(300)
    row = simulator._room_row(plan)
    for index, head in enumerate((kemar, unit)):
        bank = RoomBank.load(RoomBank.path(rooms, head.name, "train"))
        mine = plan.head == index
        assert set(plan.room[mine].tolist()) == set(range(len(bank)))
        assert set(plan.position[mine].flatten().tolist()) == set(range(bank.azimuth.shape[1]))
        found = simulator._room_response[row[mine]][..., :bank.taps]
        expected = bank.response[plan.room[mine][:, None], plan.position[mine]]
        assert torch.equal(found, expected)
        assert torch.equal(bank.azimuth[plan.room[mine][:, None], plan.position[mine]],
                           plan.azimuth[mine])


def test_places_in_a_room(pool, kemar, rooms):
    config = {"n_sources": [3], "seconds": 0.1, "rooms": rooms, "room_share": 0.5,
              "min_separation": 60.0, "swap_ears": 0.5}
    plan = BinauralSimulator(pool, kemar, config, seed=3).draw(2000)
    inside = plan.room >= 0
    assert float(inside.float().mean()) == pytest.approx(0.5, abs=0.04)
    places = plan.position[inside].sort(dim=1).values
    assert (places.diff(dim=1) > 0).all()  # no two sounds at one place
    apart = (plan.azimuth[:, :, None] - plan.azimuth[:, None]).abs()
    apart = (180 - (apart - 180).abs() + 360 * torch.eye(3)).amin((1, 2))
    assert float((apart[inside] < 60).float().mean()) < 0.02  # where the drawn places allow it
    assert float(apart[~inside].min()) >= 59.9
    loose = BinauralSimulator(pool, kemar, {**config, "min_separation": 0.0}, seed=3).draw(500)
    near = (loose.azimuth[:, 0] - loose.azimuth[:, 1]).abs()[loose.room >= 0]
    assert (near < 50).any()


def test_mirrored_room(pool, kemar, rooms):
    config = {**PLAIN, "level_db": None, "seconds": 0.3, "rooms": rooms, "room_share": 1.0,
              **NOISY, "noise_share": 1.0}
    simulator = BinauralSimulator(pool, kemar, config, seed=2)
    plan = simulator.draw(4)
    straight = simulator.render(plan)
    mirrored = simulator.render(dataclasses.replace(plan, swap=torch.ones(4, dtype=torch.bool)))
    for name in ("mixture", "sources", "noise"):
        there, here = getattr(straight, name), getattr(mirrored, name)
        torch.testing.assert_close(here, there.flip(-2)), name
    torch.testing.assert_close(mirrored.azimuth, torch.remainder(-straight.azimuth, 360.0))
    # A drawn plan tells the azimuth as it is heard.
    drawn = BinauralSimulator(pool, kemar, {**config, "swap_ears": 1.0}, seed=2)
    plan = drawn.draw(4)
    assert plan.swap.all() and torch.equal(plan.azimuth, drawn.render(plan).azimuth)


def test_sounds_and_noise_sum_to_the_mixture(pool, kemar, rooms):
    config = {"n_sources": [3], "seconds": 0.5, "rooms": rooms, "room_share": 0.5, **NOISY}
    scene = BinauralSimulator(pool, kemar, config, seed=1).sample(20)
    torch.testing.assert_close(scene.mixture, scene.sources.sum(1) + scene.noise, atol=1e-6, rtol=0)
    assert scene.noise.shape == (20, 2, 8000) and scene.rt60.shape == (20,)
    assert scene.mixture.abs().max() <= 1.0 + 1e-5


def test_levels_of_the_noise(pool, kemar):
    config = {**PLAIN, "seconds": 0.5, "noise_share": 0.5, "noise_db": [5, 30]}
    simulator = BinauralSimulator(pool, kemar, config, seed=1)
    plan = simulator.draw(40)
    scene = simulator.render(plan)
    noisy = plan.noise_db.isfinite()
    assert 10 < int(noisy.sum()) < 30 and not scene.noise[~noisy].any()
    assert plan.noise_db[noisy].min() < 9 and plan.noise_db[noisy].max() > 26
    found = level_db(scene.sources.sum(1).flatten(1)) - level_db(scene.noise.flatten(1))
    torch.testing.assert_close(found[noisy], plan.noise_db[noisy].double(), atol=0.01, rtol=0)
    hiss = {**PLAIN, "seconds": 0.5, "sensor_db": [30, 60]}
    simulator = BinauralSimulator(pool, kemar, hiss, seed=1)
    plan = simulator.draw(20)
    scene = simulator.render(plan)
    level = level_db(scene.noise)
    torch.testing.assert_close(level[:, 0], level[:, 1], atol=0.01, rtol=0)
    found = level_db(scene.sources.sum(1).flatten(1)) - level[:, 0]
    torch.testing.assert_close(found, plan.sensor_db.double(), atol=0.01, rtol=0)
    left, right = scene.noise.unbind(1)
    alike = (left * right).sum(1) / (left.norm(dim=1) * right.norm(dim=1))
    assert alike.abs().max() < 0.05  # each microphone has its own


def test_colour_and_coherence_of_the_noise(pool, unit, kemar):
    config = {**PLAIN, "seconds": 1.0, "noise_share": 1.0}
    simulator = BinauralSimulator(pool, unit, config, seed=1)
    plan = simulator.draw(60)
    assert plan.noise_slope.min() < 0.2 and plan.noise_slope.max() > 1.8
    plan.noise_slope[:2] = torch.tensor([0.0, 2.0])
    power = torch.fft.rfft(simulator.render(plan[:2]).noise[:, 0]).abs().square()  # 1 Hz bins
    low, high, rumble = (10 * torch.log10(power[:, a:b].mean(1)) for a, b in
                         [(100, 200), (3200, 6400), (1, 25)])
    assert float((low - high)[0]) == pytest.approx(0.0, abs=1.5)
    assert float((low - high)[1]) == pytest.approx(30.1, abs=2.0)  # five octaves of 6 dB
    assert (rumble < low).all()
    simulator = BinauralSimulator(pool, kemar, config, seed=1)
    plan = simulator.draw(40)
    plan.noise_slope[:] = 1.0
    spectrum = torch.fft.rfft(simulator.render(plan).noise)
    left, right = spectrum.unbind(1)
    for (a, b), least, most in [((60, 130), 0.8, 1.0), ((3000, 7000), 0.0, 0.1)]:
        cross = (left * right.conj())[:, a:b].mean().abs()
        level = (left.abs().square()[:, a:b].mean() * right.abs().square()[:, a:b].mean()).sqrt()
        assert least <= float(cross / level) <= most


def test_mixed_batches(pool, kemar, rooms):
    """Scenes in and out of rooms come back in their order, the same in any company."""
    config = {"seconds": 0.3, "rooms": rooms, "room_share": 0.5, **NOISY}
    simulator = BinauralSimulator(pool, kemar, config, seed=6)
    plan = simulator.draw(19)
    whole = simulator.render(plan)
    assert torch.equal(whole.rt60 > 0, plan.room >= 0)
    assert torch.equal(whole.recording, plan.recording) and torch.equal(whole.snr_db, plan.snr_db)
    torch.testing.assert_close(whole.azimuth, plan.azimuth)
    for b in (0, 7, 18):
        alone = simulator.render(plan[b:b + 1])
        torch.testing.assert_close(whole.sources[b:b + 1], alone.sources, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(whole.noise[b:b + 1], alone.noise, atol=1e-6, rtol=1e-5)
    assert_same(BinauralSimulator(pool, kemar, config, seed=6).sample(19), whole)


def test_splits_differ_in_noise_and_name_missing_rooms(pool, kemar, rooms):
    config = {"seconds": 0.2, "noise_share": 1.0, **PLAIN}
    train, test = (BinauralSimulator(pool, kemar, config, split=s) for s in ("train", "test"))
    plan = train.draw(2)
    one, other = train.render(plan).noise, test.render(plan).noise
    assert one.shape == other.shape and not torch.allclose(one, other)
    with pytest.raises(ConfigError, match="--heads mit_kemar --split valid"):
        BinauralSimulator(pool, kemar, {"rooms": rooms, "room_share": 0.5}, split="valid")
    with pytest.raises(ConfigError, match="split"):
        BinauralSimulator(pool, kemar, split="all")
    with pytest.raises(ConfigError, match="positions"):
        BinauralSimulator(make_pool([noise(0.1)] * 7), kemar,
                          {"n_sources": [7], "rooms": rooms, "room_share": 1.0})


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
    noisy = SimulationConfig(rooms="there", room_share=0.5, noise_share=0.5, sensor_db=(30.0, 60.0))
    plain = noisy.plain()
    assert (plain.rooms, plain.room_share, plain.noise_share) == ("there", 0.5, 0.5)
    assert plain.sensor_db == (30.0, 60.0) and plain.swap_ears == 0
    for wrong, words in [({"reverb": 1}, "reverb"), ({"seconds": "long"}, "seconds"),
                         ({"seconds": -1.0}, "seconds"), ({"snr_db": [5, -5]}, "snr_db"),
                         ({"n_sources": []}, "n_sources"), ({"rate": [0.1, 1]}, "rate"),
                         ({"room_share": 0.5}, "rooms"), ({"noise_db": [9, 1]}, "noise_db"),
                         ({"noise_share": -0.1}, "noise_share"),
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
