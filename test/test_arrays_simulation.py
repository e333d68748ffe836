"""Rooms and scenes for microphone arrays (training/arrays)."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from luseel_model.angles import angular_error
from luseel_model.arrays import SOUND_SPEED, SQUARE, MicrophoneArray
from luseel_model.errors import ConfigError
from luseel_model.tsel.features import pair_phases, spectra, steered_response, steering
from training.arrays.rooms import (ONSET, ArrayBank, deposit, diffuse_noise, draw_room, make_bank,
                                   render_room)
from training.arrays.simulation import ArraySceneConfig, ArraySimulator
from training.pool import ClipPool
from training.simulation import SimulationConfig

RATE = 16000
PLAIN = SimulationConfig(n_sources=(2,), seconds=1.0, snr_db=(0.0, 0.0), gap=(0.0, 0.0), rate=None,
                         equaliser_db=0.0, level_db=None, swap_ears=0.0, head_size=None)


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    make_bank(folder, "square", "train", rooms=3, positions=4)
    make_bank(folder, "square-path", "train", rooms=1, positions=24, path=True, array=SQUARE)
    return folder


@pytest.fixture(scope="module")
def pool():
    random = np.random.default_rng(0)
    clips = [(0.3 * random.standard_normal(3 * RATE)).clip(-1, 1) for _ in range(4)]
    samples = torch.from_numpy(np.concatenate(clips) * 32767).to(torch.int16)
    length = [len(clip) for clip in clips]
    start = np.concatenate([[0], np.cumsum(length)[:-1]])
    labels = ["a", "b", "c", "d"]
    return ClipPool(samples, start, length, labels, labels)


def simulator(pool, banks, config=PLAIN, seed=0, **scenes):
    return ArraySimulator(pool, config, ArraySceneConfig(rooms=str(banks), **scenes), seed=seed)


# -- rooms


def test_deposit_delays_by_parts_of_a_sample():
    response = deposit(np.array([50.3]), np.array([0.7]), 200)
    spectrum = np.fft.rfft(response)
    frequency = np.arange(len(spectrum)) / 200
    below = frequency < 0.4  # 6.4 kHz of 8
    wanted = 0.7 * np.exp(-2j * np.pi * frequency * 50.3)
    assert np.abs(spectrum - wanted)[below].max() < 0.01


def test_direct_sound_arrives_as_geometry_says():
    room = draw_room(3, index=1)
    response = render_room(room)
    for p, source in enumerate(room.sources):
        middle = np.linalg.norm(source - room.middle)
        for m, microphone in enumerate(room.microphones):
            distance = np.linalg.norm(source - microphone)
            delay = ONSET + (distance - middle) / SOUND_SPEED * RATE
            wanted = deposit(np.array([delay]), np.array([1 / distance]), 80)
            found = response[p, m, :int(delay) + 3]
            assert np.allclose(found, wanted[:len(found)], atol=0.03 / distance)


def test_azimuth_is_seen_from_the_front_of_the_array():
    room = draw_room(6, index=2)
    for source, azimuth in zip(room.sources, room.azimuth):
        arrivals = np.linalg.norm(source - room.microphones, axis=1)
        ways = SOUND_SPEED * room.array.delays(torch.tensor(azimuth)).numpy()
        # a source 1 m away is no plane wave: some millimetres
        assert np.abs((arrivals - arrivals.mean()) - ways).max() < 0.02


def test_reverberation_time_and_room_are_the_papers():
    for index in range(3):
        room = draw_room(2, index=index)
        assert (5 <= room.size).all() and (room.size <= 15).all()
        assert 0.5 <= room.rt60 <= 1.0 and 1.0 <= room.middle[2] <= 1.2
        side = math.dist(room.array.positions[0], room.array.positions[1])
        assert 0.10 <= side <= 0.13
        assert ((room.sources > 0) & (room.sources < room.size)).all()
        from pyroomacoustics.experimental import measure_rt60
        found = measure_rt60(render_room(room)[0, 0].astype(np.float64), RATE, decay_db=30)
        assert found == pytest.approx(room.rt60, rel=0.2)


def test_diffuse_noise_has_the_coherence_of_a_diffuse_field():
    noise = diffuse_noise(SQUARE, 1 << 17, 1, np.random.default_rng(0))[0]
    blocks = np.fft.rfft(noise.reshape(4, -1, 1024) * np.hanning(1024))
    power = (np.abs(blocks) ** 2).mean(1)
    for i, j in SQUARE.pairs:
        cross = (blocks[i] * blocks[j].conj()).mean(0).real / np.sqrt(power[i] * power[j])
        frequency = np.arange(513) * RATE / 1024
        apart = math.dist(SQUARE.positions[i], SQUARE.positions[j])
        wanted = np.sinc(2 * frequency * apart / SOUND_SPEED)
        assert np.abs(cross - wanted)[5:].mean() < 0.1


def test_bank_is_made_once_and_the_same_again(banks, tmp_path):
    path = banks / "square" / "train" / "0001.safetensors"
    before = (path.stat().st_mtime_ns, path.read_bytes())
    path.with_name("0002.safetensors").unlink()  # an interrupted run
    bank = make_bank(banks, "square", "train", rooms=3, positions=4)
    assert path.stat().st_mtime_ns == before[0]
    assert len(bank) == 3 and bank.response.shape[1:3] == (4, 4)
    again = make_bank(tmp_path, "square", "train", rooms=3, positions=4)
    assert torch.equal(bank.response, again.response)
    assert not torch.equal(
        make_bank(tmp_path, "square", "valid", rooms=1, positions=4).azimuth[0], bank.azimuth[0])


def test_bank_errors(banks, tmp_path):
    with pytest.raises(ConfigError, match="training.arrays.rooms --name ring --split test"):
        ArrayBank.load(tmp_path, "ring", "test")
    with pytest.raises(ConfigError, match="1 or more"):
        make_bank(tmp_path, "square", "train", 0, 4)
    make_bank(tmp_path, "mixed", "train", rooms=1, positions=2)
    target = tmp_path / "mixed" / "train" / "0001.safetensors"
    target.write_bytes((banks / "square" / "train" / "0001.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="different banks"):
        ArrayBank.load(tmp_path, "mixed", "train")
    target.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="delete it"):
        ArrayBank.load(tmp_path, "mixed", "train")


# -- scenes


def direction(audio, array):
    """SRP-PHAT of (M, N)."""
    phases = pair_phases(spectra(audio[None], 1024, 640), array.pairs)[0].mean(-1)
    return float(steered_response(phases, steering(array, 1024, RATE)).argmax())


def test_scene_says_where_its_sounds_are(pool, banks):
    make = simulator(pool, banks)
    scene = make.sample(4)
    assert scene.mixture.shape == (4, 4, RATE) and scene.sources.shape == (4, 2, 4, RATE)
    assert torch.allclose(scene.mixture, scene.sources.sum(1), atol=1e-5)
    # white noise in a room: most of it is reverberation, but the direct sound shows
    errors = [float(angular_error(direction(image, SQUARE), float(azimuth)))
              for images, azimuths in zip(scene.sources, scene.azimuth)
              for image, azimuth in zip(images, azimuths)]
    assert np.median(errors) < 5


def test_sounds_are_as_loud_as_asked(pool, banks):
    scene = simulator(pool, banks).sample(3)
    level = 10 * scene.sources.square().mean((-1, -2)).log10()
    assert float((level[:, 0] - level[:, 1]).abs().max()) < 2.5


def test_additive_sound_reaches_all_microphones_alike(pool, banks):
    scene = simulator(pool, banks, additive_share=1.0).sample(3)
    assert bool(scene.azimuth[:, 1].isnan().all()) and not bool(scene.azimuth[:, 0].isnan().any())
    added = scene.sources[:, 1]
    assert torch.allclose(added, added[:, :1].expand_as(added), atol=1e-6)
    assert float(added.square().mean()) > 1e-4


def test_noise_of_the_array(pool, banks):
    config = dataclasses.replace(PLAIN, noise_share=1.0, noise_db=(0.0, 0.0), sensor_db=(20, 20))
    scene = simulator(pool, banks, config).sample(3)
    assert scene.noise.shape == scene.mixture.shape
    sounds = scene.sources.sum(1).square().mean((-1, -2))
    ratio = 10 * (sounds / scene.noise.square().mean((-1, -2))).log10()
    assert float(ratio.abs().max()) < 0.5


def test_same_seed_same_scenes(pool, banks):
    first, second = simulator(pool, banks, seed=3), simulator(pool, banks, seed=3)
    first.sample(2)
    state = first.state_dict()
    wanted = first.sample(2).mixture
    second.load_state_dict(state)
    assert torch.equal(second.sample(2).mixture, wanted)


def test_a_still_sound_sounds_alike_in_both_ways_of_making_it(pool, banks):
    make = simulator(pool, banks, bank="square-path")
    plan = make.draw(1, 1)
    still = make.render(plan)
    moving = make.render_moving(plan, torch.zeros(1, 1), 640)
    assert torch.allclose(moving.azimuth, still.azimuth[..., None].expand(-1, -1, 26), atol=1e-3)
    error = (moving.mixture - still.mixture).square().mean() / still.mixture.square().mean()
    assert float(error) < 1e-4


def test_a_moving_sound_goes_where_it_says(pool, banks):
    make = simulator(pool, banks, dataclasses.replace(PLAIN, seconds=2.0), bank="square-path")
    plan = make.draw(1, 1)
    scene = make.render_moving(plan, torch.full((1, 1), 60.0), 640)
    track = scene.azimuth[0, 0]
    assert float(torch.remainder(track[-1] - track[0], 360.0)) == pytest.approx(120.0, abs=2.5)
    for middle in (0.4, 1.0, 1.6):
        part = scene.mixture[0, :, round((middle - 0.2) * RATE):round((middle + 0.2) * RATE)]
        wanted = float(track[round(middle * RATE / 640)])
        assert float(angular_error(direction(part, SQUARE), wanted)) < 12


def test_moving_sounds_need_rooms_for_them(pool, banks):
    with pytest.raises(ConfigError, match="--path"):
        simulator(pool, banks).sample_moving(1, 1, 640)


def test_too_few_positions(pool, banks):
    config = dataclasses.replace(PLAIN, n_sources=(5,))
    with pytest.raises(ConfigError, match="usable kinds|too few"):
        simulator(pool, banks, config)
    with pytest.raises(ConfigError, match="speed"):
        ArraySceneConfig(speed=(10.0, 5.0))


def test_a_described_array(tmp_path, pool):
    line = MicrophoneArray("line", ((0.0, 0.1, 0.0), (0.0, -0.1, 0.0), (0.05, 0.0, 0.0)))
    bank = make_bank(tmp_path, "line", "train", rooms=1, positions=2, array=line)
    assert bank.response.shape[2] == 3
    assert torch.allclose(bank.microphones[0], torch.tensor(line.positions), atol=1e-6)
    scene = simulator(pool, tmp_path, bank="line").sample(1)
    assert scene.mixture.shape == (1, 3, RATE)
