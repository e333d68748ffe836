"""Bearings from two ears: a sphere's delays, a head's responses, silence, noise, doubt."""

import math

import numpy as np
import pytest
import torch

from luseel_model.angles import angular_error, estimate_azimuth, mirror_front_back
from luseel_model.errors import ConfigError
from luseel_model.heads import MIT_KEMAR, Head
from luseel_model.interaural_direction import (front_back_doubt, head_cross_spectra,
                                               interaural_likelihood, sphere_delay)

torch.set_num_threads(1)


def noise(seconds=0.5, seed=0):
    return torch.randn(round(16000 * seconds), generator=torch.Generator().manual_seed(seed))


def from_sphere(azimuth, source):
    """Both ears of a far sound, delayed in the frequency domain."""
    frequency = torch.fft.rfftfreq(len(source), 1 / 16000)
    delay = float(sphere_delay(torch.tensor(float(azimuth))))
    spectrum = torch.fft.rfft(source)
    turn = torch.exp(-2j * math.pi * frequency * delay)
    return torch.stack([source, torch.fft.irfft(spectrum * turn, len(source))])


def from_head(head, azimuth, source):
    n = len(source) + head.taps - 1
    spectrum = torch.fft.rfft(source, n) * torch.fft.rfft(head.at(azimuth), n)
    return torch.fft.irfft(spectrum, n)[..., :len(source)]


def peak(likelihood):
    return float(estimate_azimuth(likelihood.numpy()))


def test_delay_of_a_sphere():
    """Woodworth's formula: 656 µs beside the ear for a radius of 8.75 cm; left is positive."""
    delay = sphere_delay(torch.tensor([0.0, 90.0, 180.0, 270.0, 30.0, 150.0])) * 1e6
    expected = 0.0875 / 343 * 1e6 * np.array([0, math.pi / 2 + 1, 0, -math.pi / 2 - 1,
                                              math.pi / 6 + 0.5, math.pi / 6 + 0.5])
    assert delay.numpy() == pytest.approx(expected, abs=0.01)
    assert delay[1] == pytest.approx(656, abs=1)


@pytest.mark.parametrize("azimuth", [0, 20, 45, 70, 90, 290, 315, 340])
def test_bearing_in_front(azimuth):
    likelihood = interaural_likelihood(from_sphere(azimuth, noise()), 16000)
    assert likelihood.shape == (360,) and 0 <= likelihood.min() and likelihood.max() <= 1
    assert likelihood.max() > 0.9
    assert angular_error(peak(likelihood), azimuth) < 2.5


def test_left_is_90_degrees():
    """A sound that reaches the left ear first is on the left, whatever our own formulas say."""
    source = noise()
    ears = torch.stack([source, torch.roll(source, 6)])
    assert 30 < peak(interaural_likelihood(ears, 16000)) < 90
    assert 270 < peak(interaural_likelihood(ears.flip(0), 16000)) < 330


@pytest.mark.parametrize("azimuth", [120, 200, 250])
def test_a_sphere_hears_what_is_behind_in_front(azimuth):
    likelihood = interaural_likelihood(from_sphere(azimuth, noise()), 16000)
    assert angular_error(peak(likelihood), mirror_front_back(azimuth)) < 2.5
    assert front_back_doubt(likelihood) > 0.9  # and says so


def test_no_doubt_beside_an_ear():
    assert front_back_doubt(interaural_likelihood(from_sphere(90, noise()), 16000)) == 0


def test_a_measured_head_tells_front_from_back():
    """MIT KEMAR's own responses: exact, front and back apart; a sphere's delays are some degrees
    off."""
    head = Head.open(MIT_KEMAR)
    expected = head_cross_spectra(head.hrir, 16000)
    doubts = []
    for azimuth in (10, 60, 135, 170, 225, 300):
        ears = from_head(head, azimuth, noise())
        likelihood = interaural_likelihood(ears, 16000, expected)
        assert angular_error(peak(likelihood), azimuth) < 2
        doubts.append(float(front_back_doubt(likelihood)))
        folded = peak(interaural_likelihood(ears, 16000))
        front = azimuth if azimuth < 90 or azimuth > 270 else mirror_front_back(azimuth)
        assert angular_error(folded, front) < 12
    assert max(doubts[1:3] + doubts[4:]) < 0.2 < max(doubts) < 0.9  # ahead it is hard to tell


def test_two_sounds_at_once_give_the_stronger():
    ears = from_sphere(40, noise(seed=1)) + 0.3 * from_sphere(300, noise(seed=2))
    likelihood = interaural_likelihood(ears, 16000)
    alone = interaural_likelihood(from_sphere(40, noise(seed=1)), 16000)
    assert angular_error(peak(likelihood), 40) < 3
    assert likelihood.max() < alone.max() - 0.03  # and less coherent ears


def test_bins_without_sound_do_not_count():
    """After a mask most bins hold next to nothing, but with the phase of the other sound."""
    wanted, other = from_sphere(40, noise(seed=1)), from_sphere(300, noise(seed=2))
    low = torch.fft.rfftfreq(wanted.shape[-1], 1 / 16000) < 1500
    masked = torch.fft.irfft(torch.fft.rfft(wanted) * low
                             + 1e-3 * torch.fft.rfft(other) * ~low, wanted.shape[-1])
    assert angular_error(peak(interaural_likelihood(masked, 16000)), 40) < 3


def test_silence_and_noise_from_everywhere():
    assert interaural_likelihood(torch.zeros(2, 8000), 16000).abs().max() == 0
    independent = torch.stack([noise(2.0, 1), noise(2.0, 2)])
    assert interaural_likelihood(independent, 16000).max() < 0.2


def test_the_level_does_not_count_and_batches_are_as_one_by_one():
    ears = torch.stack([from_sphere(a, noise(seed=a)) for a in (30, 330)])
    both = interaural_likelihood(ears[None], 16000)
    assert both.shape == (1, 2, 360)
    for i in range(2):
        alone = interaural_likelihood(ears[i], 16000)
        torch.testing.assert_close(both[0, i], alone, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(interaural_likelihood(ears[i] * 1e-6, 16000), alone,
                                   atol=1e-4, rtol=1e-3)
    mixed = torch.stack([ears[0], ears[1] * 1e-12])  # a quiet one beside a loud one
    torch.testing.assert_close(interaural_likelihood(mixed, 16000)[1], both[0, 1], atol=1e-4,
                               rtol=1e-3)


def test_what_cannot_be_used():
    with pytest.raises(ValueError, match="two ears"):
        interaural_likelihood(torch.zeros(1, 8000), 16000)
    with pytest.raises(ConfigError, match="16000 Hz"):
        head_cross_spectra(torch.zeros(360, 2, 64), 32000)


def test_doubt_of_known_likelihoods():
    likelihood = torch.zeros(3, 360)
    likelihood[0, 30] = likelihood[1, 30] = 1.0
    likelihood[0, 150] = 0.25
    likelihood[2, 200], likelihood[2, 340] = 0.5, 0.4  # 200 behind, its image is 340
    assert front_back_doubt(likelihood).tolist() == pytest.approx([0.25, 0.0, 0.8])
