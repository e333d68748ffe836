"""Heads: sides, interpolation and calibration, against synthetic heads with known answers."""

import json

import numpy as np
import pytest
import torch

from luseel_model.errors import ConfigError
from training import heads
from training.heads import interaural_delay, interpolate, load_head, make_head

RADIUS, SOUND = 0.0875, 343.0


def woodworth(azimuth):
    """Lead of the left ear in seconds, r/c (θ + sin θ), mirrored behind."""
    lateral = np.arcsin(np.sin(np.deg2rad(azimuth)))
    return RADIUS / SOUND * (lateral + np.sin(lateral))


def delays_only(azimuth, rate=44100, length=256, turn=0.0, level_db=0.0, delay_us=0.0):
    """Ears that only delay: a head turned left by ``turn``, its left ear louder and sooner."""
    lead = woodworth(np.asarray(azimuth, float) - turn) + delay_us * 1e-6
    onset = 60 + np.stack([-lead / 2, lead / 2], axis=1) * rate
    frequency = np.fft.rfftfreq(length)
    band = 0.5 + 0.5 * np.cos(np.pi * np.clip(frequency / 0.45, 0, 1))
    hrir = np.fft.irfft(band * np.exp(-2j * np.pi * frequency * onset[..., None]), length)
    return hrir * 10 ** (np.array([0.5, -0.5]) * level_db / 20)[:, None]


@pytest.fixture(scope="module")
def kemar():
    return load_head("mit_kemar")


def test_shipped_head(kemar):
    assert kemar.hrir.shape == (360, 2, heads.TAPS) and kemar.hrir.dtype == torch.float32
    assert kemar.hrir.square().sum(-1).mean() == pytest.approx(1.0, abs=1e-4)
    assert "MIT Media Laboratory" in kemar.metadata["attribution"]
    assert kemar.metadata["licence"] == "free with attribution"
    assert set(json.loads(kemar.metadata["calibration"])) >= {"azimuth_offset", "level_bias_db"}


def test_left_is_left(kemar):
    delay = interaural_delay(kemar.hrir.numpy(), 16000)
    energy = kemar.hrir.square().sum(-1)
    assert 0.6e-3 < delay[90] < 0.9e-3 and -0.9e-3 < delay[270] < -0.6e-3
    assert abs(delay[0]) < 3e-6 and abs(delay[180]) < 3e-6
    assert energy[90, 0] > 4 * energy[90, 1] and energy[270, 1] > 4 * energy[270, 0]
    assert (delay[20:160] > 0).all() and (delay[200:340] < 0).all()
    np.testing.assert_allclose(delay, -delay[(-np.arange(360)) % 360], atol=5e-6)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_delays_of_a_known_head(rate):
    azimuth = np.arange(0, 360, 5)
    head = make_head("round", azimuth, delays_only(azimuth, rate), rate)
    np.testing.assert_allclose(interaural_delay(head.hrir.numpy(), 16000),
                               woodworth(np.arange(360)), atol=4e-6)


def test_calibration_recovers_a_known_head():
    azimuth = np.arange(360)
    crooked = delays_only(azimuth, turn=4.0, level_db=1.7, delay_us=12.0)
    head = make_head("crooked", azimuth, crooked, 44100)
    found = json.loads(head.metadata["calibration"])
    assert found["azimuth_offset"] == pytest.approx(4.0, abs=0.1)
    assert found["level_bias_db"] == pytest.approx(1.7, abs=0.02)
    assert found["delay_bias_us"] == pytest.approx(12.0, abs=0.5)
    np.testing.assert_allclose(interaural_delay(head.hrir.numpy(), 16000), woodworth(azimuth),
                               atol=4e-6)
    energy = head.hrir.square().sum(-1)
    np.testing.assert_allclose(energy[:, 0], energy[:, 1], rtol=0.02)
    raw = make_head("raw", azimuth, crooked, 44100, calibrate=False)
    assert interaural_delay(raw.hrir.numpy(), 16000)[0] < -20e-6
    assert "calibration" not in raw.metadata


def test_calibration_of_a_turned_kemar(kemar):
    turned = kemar.at(torch.arange(360) - 6.5).numpy()
    found = heads.estimate_calibration(np.arange(360.0), turned, 16000)
    assert found.azimuth_offset == pytest.approx(6.5, abs=0.2)


def test_interpolation_is_aligned(kemar):
    """Every second measured direction, predicted from its neighbours 5° away."""
    measured = kemar.hrir.numpy()[::5]
    coarse = np.arange(0, 360, 10.0)
    predicted = interpolate(coarse, measured[::2], 16000, coarse + 5)
    plain = 0.5 * (measured[::2] + np.roll(measured[::2], -1, axis=0))

    def error_db(guess):
        return 10 * np.log10(np.square(guess - measured[1::2]).sum()
                             / np.square(measured[1::2]).sum())

    assert error_db(predicted) < -14
    assert error_db(predicted) < error_db(plain) - 5
    np.testing.assert_allclose(interpolate(coarse, measured[::2], 16000, coarse), measured[::2],
                               atol=1e-6)


def test_interpolation_needs_no_order_and_wraps():
    azimuth = np.arange(0, 360, 5)
    shuffled = np.random.default_rng(0).permutation(72)
    hrir = delays_only(azimuth, turn=-3.0)
    one = make_head("a", azimuth, hrir, 44100)
    two = make_head("b", azimuth[shuffled] - 360, hrir[shuffled], 44100)
    np.testing.assert_allclose(one.hrir, two.hrir, atol=1e-6)


def test_off_grid(kemar):
    azimuth = torch.tensor([[10.25, 359.5], [-0.5, 370.25]])
    hrir = kemar.at(azimuth)
    assert hrir.shape == (2, 2, 2, kemar.taps)
    torch.testing.assert_close(hrir[0, 0], 0.75 * kemar.hrir[10] + 0.25 * kemar.hrir[11])
    torch.testing.assert_close(hrir[0, 1], 0.5 * (kemar.hrir[359] + kemar.hrir[0]))
    torch.testing.assert_close(hrir[1, 0], hrir[0, 1])
    torch.testing.assert_close(hrir[1, 1], hrir[0, 0])
    delay = interaural_delay(kemar.at(torch.arange(0, 60, 0.25)).numpy(), 16000)
    assert (np.diff(delay) > 0).all()  # it rises from front to side, and never steps back


def test_warped_head_scales_its_delays():
    azimuth = np.arange(360)
    head = make_head("round", azimuth, delays_only(azimuth), 44100)
    for scale in (0.93, 1.08):
        warped = head.warped(scale)
        np.testing.assert_allclose(interaural_delay(warped.hrir.numpy(), 16000),
                                   scale * woodworth(azimuth), atol=5e-6)
        assert warped.hrir.square().sum(-1).mean() == pytest.approx(1.0, abs=1e-4)
    assert head.warped(1.0) is head


def test_mirrored_head_is_refused():
    azimuth = np.arange(0, 360, 5)
    with pytest.raises(ConfigError, match="counter-clockwise"):
        make_head("mirrored", azimuth, delays_only(azimuth)[:, ::-1], 44100)
    with pytest.raises(ConfigError, match="gap"):
        make_head("sparse", np.arange(0, 360, 30), delays_only(np.arange(0, 360, 30)), 44100)


def test_files(tmp_path, kemar):
    kemar.save(tmp_path / "mine.safetensors")
    again = load_head(tmp_path / "mine.safetensors")
    assert torch.equal(again.hrir, kemar.hrir) and again.metadata == kemar.metadata
    with pytest.raises(ConfigError, match="python -m training.heads"):
        load_head("nobody")
    (tmp_path / "broken.safetensors").write_bytes(b"not a head")
    with pytest.raises(ConfigError, match="not a head"):
        load_head(tmp_path / "broken.safetensors")
    with pytest.raises(ConfigError, match="unknown head"):
        heads.prepare_heads(tmp_path, ["nobody"])
    with pytest.raises(ConfigError, match="not below"):
        heads.prepare_heads(tmp_path, ["fabian"], root=tmp_path)


def test_sofa_file(tmp_path):
    sofar = pytest.importorskip("sofar")
    azimuth = np.repeat(np.arange(0, 360, 10.0), 2)
    elevation = np.tile([0.0, 30.0], 36)
    hrir = delays_only(azimuth)
    hrir[1::2] = hrir[1::2, ::-1]  # what is not horizontal must not be looked at
    sofa = sofar.Sofa("SimpleFreeFieldHRIR")
    sofa.Data_IR, sofa.Data_SamplingRate = hrir[:, ::-1], 44100  # the right ear first, below
    sofa.Data_Delay = np.zeros((1, 2))
    sofa.SourcePosition = np.stack([azimuth, elevation, np.full(72, 1.5)], axis=1)
    sofa.ReceiverPosition = np.array([[0, -0.09, 0], [0, 0.09, 0]])
    sofa.GLOBAL_License = "CC0"
    sofar.write_sofa(str(tmp_path / "own.sofa"), sofa)
    head = load_head(tmp_path / "own.sofa")
    assert head.name == "own" and head.metadata["licence"] == "CC0"
    np.testing.assert_allclose(interaural_delay(head.hrir.numpy(), 16000),
                               woodworth(np.arange(360)), atol=12e-6)
    (tmp_path / "bad.sofa").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="SOFA"):
        load_head(tmp_path / "bad.sofa")
