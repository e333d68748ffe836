"""Room responses: against pyroomacoustics, the head itself and the physics of diffuse fields."""

import dataclasses

import numpy as np
import pytest
import scipy.signal
import torch
from safetensors.torch import save_file

from luseel_model.errors import ConfigError
from training.heads import Head, interaural_delay, load_head
from training.noise import diffuse_filter, diffuse_noise
from training.rooms import (BANDS, Room, RoomBank, _absorption, _to_azimuth, draw_room, main,
                            measured_rt60, render_room)

pra = pytest.importorskip("pyroomacoustics")
RATE = 16000


@pytest.fixture(scope="module")
def kemar():
    return load_head("mit_kemar")


def room(rt60=0.4, azimuth=(0.0, 60.0, 200.0, 290.0), distance=(1.0,), **changes):
    azimuth = np.array(azimuth, float)
    values = dict(size=np.array([6.0, 5.0, 3.0]), rt60=rt60, band_rt60=np.full(7, rt60),
                  head=np.array([2.8, 2.4, 1.5]), look=35.0, azimuth=azimuth,
                  distance=np.broadcast_to(np.array(distance, float), azimuth.shape),
                  rise=0.25 * np.cos(2.0 + np.arange(azimuth.size)), head_size=1.0, seed=1)
    return Room(**{**values, **changes})


def test_drawn_rooms():
    rooms = [draw_room(8, "train", 0, i) for i in range(60)]
    size = np.stack([r.size for r in rooms])
    assert (size >= [3, 3, 2.4]).all() and (size <= [8, 8, 3.5]).all()
    rt60 = np.array([r.rt60 for r in rooms])
    assert 0.2 <= rt60.min() < 0.3 and 0.7 < rt60.max() <= 0.8
    for r in rooms:
        assert (r.distance >= 0.8 - 1e-9).all() and (r.distance <= 4.0).all()
        assert (r.sources >= 0.2 - 1e-9).all() and (r.sources <= r.size).all()
        gaps = np.diff(np.sort(r.azimuth), append=r.azimuth.min() + 360)
        assert gaps.max() <= 90.0 + 1e-9  # one in each eighth of the circle
        assert (np.diff(r.band_rt60[3:]) < 0).all() and r.band_rt60[3] == r.rt60
    again, other = draw_room(8, "train", 0, 3), draw_room(8, "test", 0, 3)
    np.testing.assert_array_equal(again.sources, rooms[3].sources)
    np.testing.assert_allclose(np.linalg.norm(again.sources - again.head, axis=1), again.distance)
    assert not np.isclose(other.size, rooms[3].size).any()
    assert not np.isclose(draw_room(8, "train", 1, 3).size, rooms[3].size).any()
    sizes = [draw_room(2, "train", 0, i, head_size=(0.9, 1.1)).head_size for i in range(30)]
    assert 0.9 <= min(sizes) < 0.95 and 1.05 < max(sizes) <= 1.1


def test_elevated_directions_keep_the_lateral_angle_and_side():
    vectors = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0.1, 0, 1],
                        [-0.1, 0, -1], [1, 1, 1], [-2, -1, 2]], float)
    azimuth = _to_azimuth(vectors / np.linalg.norm(vectors, axis=1)[:, None])
    lateral = np.rad2deg(np.arcsin([1 / np.sqrt(3), 1 / 3]))
    np.testing.assert_allclose(azimuth, [0, 90, 180, 270, 0, 180, lateral[0], 180 + lateral[1]],
                               atol=1e-6)


def test_direct_sound_is_the_head_at_that_distance(kemar):
    """Nothing else arrives within 90 samples: the nearest wall is the floor."""
    near = room(distance=(1.0, 0.8, 1.25, 0.9))
    response = render_room(near, kemar)[..., :90]
    alone = kemar.at(torch.from_numpy(near.azimuth)).numpy()[..., :90]
    np.testing.assert_allclose(response, alone / near.distance[:, None, None], atol=2e-3)
    np.testing.assert_allclose(interaural_delay(response, RATE), interaural_delay(alone, RATE),
                               atol=2e-6)
    larger = render_room(dataclasses.replace(near, head_size=1.08), kemar)[1:2, :, :90]
    assert interaural_delay(larger, RATE)[0] == pytest.approx(
        1.08 * interaural_delay(alone[1:2], RATE)[0], abs=10e-6)


def test_reflections_against_pyroomacoustics():
    """With an ear that hears all directions alike, the first 40 ms are pra's own response."""
    hrir = torch.zeros(360, 2, 192)
    hrir[..., 16] = 1.0
    there = room(0.5)
    response = render_room(there, Head("unit", hrir))
    walls = pra.Material(energy_absorption={
        "description": "", "coeffs": _absorption(there.size, there.band_rt60).tolist(),
        "center_freqs": BANDS.tolist()})
    box = pra.ShoeBox(there.size, fs=RATE, materials=walls, max_order=17)
    for source in there.sources:
        box.add_source(source)
    box.add_microphone(there.head)
    box.compute_rir()
    # pra puts half of its fractional delay filter first and does not cut the flight time of 1 m. It
    # takes out the lowest frequencies, which add up in ears that hear them (real ones don't).
    begin = round(pra.constants.get("frac_delay_length") // 2 + RATE / 343) - 16
    band = scipy.signal.butter(2, [300, 4000], "bandpass", fs=RATE, output="sos")
    for p in range(4):
        pair = [box.rir[0][p][begin:begin + 590], response[p, 0, :590]]
        pair = [scipy.signal.sosfiltfilt(band, sound) for sound in pair]
        theirs, ours = (np.add.reduceat(np.square(x[:570]), np.arange(0, 570, 95)) for x in pair)
        np.testing.assert_allclose(10 * np.log10(ours / theirs), 0, atol=0.7)
        assert np.corrcoef(pair[0][:570], pair[1][:570])[0, 1] > 0.9


@pytest.mark.parametrize("rt60", [0.25, 0.5, 0.8])
def test_reverberation_time(kemar, rt60):
    response = render_room(room(rt60, azimuth=np.arange(0, 360, 30.0)), kemar)
    # Independent of our band filter: broad band, as all bands decay alike here.
    theirs = [pra.experimental.measure_rt60(r, RATE, decay_db=40) for r in response[:3, 0]]
    assert np.mean(theirs) == pytest.approx(rt60, rel=0.1)
    assert measured_rt60(response[:2]) == pytest.approx(rt60, rel=0.15)
    # No step where the noise takes over: with the decay taken off, the level stays.
    energy = np.square(response).mean((0, 1))[:1600].reshape(-1, 160).sum(1)
    flat = 10 * np.log10(energy) + 60 * np.arange(10) * 0.01 / rt60
    assert np.ptp(flat[2:]) < 2.0 and np.abs(np.diff(flat[2:])).max() < 1.4


def test_high_frequencies_die_away_sooner(kemar):
    bands = np.array([0.5, 0.5, 0.5, 0.5, 0.45, 0.35, 0.25])
    response = render_room(room(0.5, band_rt60=bands), kemar)
    for low, high, expected in [(300, 1200, 0.5), (6000, 7900, 0.27)]:
        sections = scipy.signal.butter(4, [low, high], "bandpass", fs=RATE, output="sos")
        found = [pra.experimental.measure_rt60(scipy.signal.sosfilt(sections, r), RATE, 30)
                 for r in response[:, 1]]
        assert np.mean(found) == pytest.approx(expected, rel=0.15)


def test_direct_to_reverberant_ratio_falls_with_distance(kemar):
    far = room(0.6, azimuth=[20.0] * 3, distance=[0.8, 1.2, 2.4], look=5.0)
    response = render_room(far, kemar)
    direct = kemar.at(torch.tensor(20.0)).numpy() / far.distance[:, None, None]
    rest = response.copy()
    rest[..., :192] -= direct
    ratio = 10 * np.log10(np.square(direct).sum((1, 2)) / np.square(rest).sum((1, 2)))
    assert (np.diff(ratio) < -2).all()
    # Critical distance of a diffuse field: 0.057 sqrt(V / T).
    expected = 20 * np.log10(0.057 * np.sqrt(90 / 0.6) / far.distance)
    np.testing.assert_allclose(ratio, expected, atol=2.5)


def test_tail_is_diffuse(kemar):
    response = render_room(room(0.8, azimuth=np.arange(0, 360, 30.0)), kemar)
    tail = response[..., 1280:8000] / 10 ** (-3 * np.arange(6720) / RATE / 0.8)
    level = 10 * np.log10(np.square(tail).mean((0, 2)))
    assert abs(level[0] - level[1]) < 0.5
    frequency, coherence = scipy.signal.coherence(tail[:, 0].ravel(), tail[:, 1].ravel(), RATE,
                                                  nperseg=512)
    assert coherence[(frequency > 90) & (frequency < 150)].min() > 0.75
    assert coherence[frequency > 2000].mean() < 0.05
    # Of different sources, and of other rooms, the noise is another one.
    assert abs(np.corrcoef(tail[0, 0], tail[1, 0])[0, 1]) < 0.05


def test_diffuse_field_against_many_plane_waves(kemar):
    """Powers and coherence of directions drawn evenly over the sphere."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(20000, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    count = np.bincount(np.round(_to_azimuth(directions)).astype(int) % 360, minlength=360)
    spectrum = np.fft.rfft(kemar.hrir.numpy().astype(float), 512)
    share = count[:, None] / count.sum()
    power = (share[..., None] * np.abs(spectrum.transpose(0, 2, 1)) ** 2).sum(0).mean(1)
    cross = (share * spectrum[:, 0].conj() * spectrum[:, 1]).sum(0)
    root = diffuse_filter(kemar, 512).numpy()
    found = np.einsum("ijf,kjf->ikf", root, root.conj())
    np.testing.assert_allclose(found[0, 0].real[2:], power[2:], rtol=0.05)
    np.testing.assert_allclose(found[1, 1].real[2:], power[2:], rtol=0.05)
    np.testing.assert_allclose(np.abs(found[1, 0] / power)[2:], np.abs(cross / power)[2:],
                               atol=0.05)


def test_diffuse_noise(kemar):
    noise = diffuse_noise(kemar, 1 << 17, torch.Generator().manual_seed(1)).numpy()
    assert np.square(noise).mean() == pytest.approx(1.0, rel=1e-4)
    frequency, coherence = scipy.signal.coherence(*noise, RATE, nperseg=512)
    assert coherence[2] > 0.8 and coherence[frequency > 2000].mean() < 0.05
    frequency, power = scipy.signal.welch(noise, RATE, nperseg=256)
    spectrum = np.abs(np.fft.rfft(kemar.hrir.numpy(), 256)) ** 2
    weight = np.abs(np.cos(np.deg2rad(np.arange(360))))
    expected = np.average(spectrum.mean(1), axis=0, weights=weight)
    ratio = 10 * np.log10(power.mean(0) / expected)
    assert np.std(ratio[4:-4]) < 0.5


@pytest.fixture(scope="module")
def bank(kemar):
    return RoomBank.build(kemar, 2, 4, "valid", seed=5)


def test_bank(bank, kemar, tmp_path):
    assert len(bank) == 2 and bank.response.shape[:3] == (2, 4, 2)
    assert bank.response.dtype == torch.float16
    assert bank.azimuth.shape == bank.distance.shape == bank.drr_db.shape == (2, 4)
    assert (bank.rt60 / bank.rt60_asked - 1).abs().max() < 0.25
    for index in range(2):
        drawn = draw_room(4, "valid", 5, index)
        np.testing.assert_allclose(bank.azimuth[index], drawn.azimuth, rtol=1e-6)
        np.testing.assert_allclose(bank.size[index], drawn.size, rtol=1e-6)
        full = torch.from_numpy(render_room(drawn, kemar))
        left = full - torch.nn.functional.pad(
            bank.response[index].float(), (0, full.shape[-1]))[..., :full.shape[-1]]
        assert left.square().sum() < 1e-5 * full.square().sum()  # cut at -60 dB, 16 bits
    path = bank.save(tmp_path)
    assert path == RoomBank.path(tmp_path, "mit_kemar", "valid") and path.is_file()
    again = RoomBank.load(path)
    assert (again.head, again.split) == ("mit_kemar", "valid") and again.metadata == bank.metadata
    for name in RoomBank._TENSORS:
        assert torch.equal(getattr(again, name), getattr(bank, name)), name
    assert "2 rooms, 4 positions" in bank.summary()


def test_command_makes_the_same_bank_in_several_processes(bank, tmp_path, capsys):
    main(["--heads", "mit_kemar", "--rooms", "2", "--positions", "4", "--split", "valid", "--seed",
          "5", "--jobs", "2", "--out", str(tmp_path)])
    again = RoomBank.load(tmp_path / "mit_kemar_valid.safetensors")
    assert torch.equal(again.response, bank.response)
    assert "2 rooms, 4 positions" in capsys.readouterr().out


def test_mistakes_are_named(kemar, tmp_path):
    with pytest.raises(ConfigError, match="--heads tu_kemar --split test"):
        RoomBank.load(tmp_path / "tu_kemar_test.safetensors")
    (tmp_path / "a_test.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="not a bank"):
        RoomBank.load(tmp_path / "a_test.safetensors")
    save_file({name: torch.zeros(1) for name in RoomBank._TENSORS},
              str(tmp_path / "b_test.safetensors"))
    with pytest.raises(ConfigError, match="not a bank"):
        RoomBank.load(tmp_path / "b_test.safetensors")
    for wrong, words in [(dict(rooms=0, positions=1), "1 or more"),
                         (dict(rooms=1, positions=1, split="all"), "split"),
                         (dict(rooms=1, positions=1, rt60=(0.5, 0.2)), "rt60")]:
        with pytest.raises(ConfigError, match=words):
            RoomBank.build(kemar, **wrong)
