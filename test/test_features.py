"""STFT, interaural inputs and GCC-PHAT."""

import math

import numpy as np
import pytest
import torch
from model_fixtures import noise

from luseel_model.features import gcc_phat, interaural_inputs, istft, stft
from luseel_model.luseel.localization import ExtractedLocalizer
from training.heads import load_head


@pytest.mark.parametrize("n_fft, hop, samples", [
    (4096, 1024, 16000), (4096, 1024, 20801), (1024, 512, 32000), (1024, 512, 32001),
    (512, 128, 5000)])
def test_inverse_is_exact(n_fft, hop, samples):
    # without its Nyquist bin a signal is a little less than itself: give it none
    audio = noise(2, 3, samples)
    spectrum = torch.fft.rfft(audio)
    spectrum[..., int(spectrum.shape[-1] * 0.95):] = 0
    audio = torch.fft.irfft(spectrum, samples)
    transformed = stft(audio, n_fft, hop)
    frames = math.ceil(samples / hop)
    assert transformed.shape == (2, 3, n_fft // 2, frames)
    back = istft(transformed, n_fft, hop, samples)
    assert back.shape == audio.shape
    inside = slice(n_fft, -n_fft)
    torch.testing.assert_close(back[..., inside], audio[..., inside], atol=1e-5, rtol=0)
    # As in HTDemucs, frames centred outside the signal are left out, so that it fades at its ends
    edge = (n_fft - hop) // 2
    inside = slice(edge, frames * hop - edge)  # the reflections have a little power at Nyquist
    torch.testing.assert_close(back[..., inside], audio[..., inside], atol=2e-3, rtol=0)
    assert back[..., :edge].std() > 0.5 * audio.std()


@pytest.mark.parametrize("n_fft, hop", [(4096, 1024), (1024, 512), (1024, 256)])
def test_frames_are_centred_where_they_say(n_fft, hop):
    """Frame k is centred on (k + 1/2) hop: a click there is strongest in frame k."""
    audio = torch.zeros(1, 20 * hop)
    audio[0, 7 * hop + hop // 2] = 1.0
    energy = stft(audio, n_fft, hop).abs().square().sum(1)[0]
    assert energy.argmax() == 7
    torch.testing.assert_close(energy[6], energy[8], rtol=0.02, atol=0)


def test_stft_is_unitary():
    """White noise keeps its power per bin, up to the window's (3/8)."""
    audio = noise(1, 160000, level=1.0)
    assert stft(audio, 1024, 512).abs().square().mean().item() == pytest.approx(3 / 8, rel=0.02)


def test_interaural_inputs_by_hand():
    left, right = 2.0 * np.exp(0.4j), 0.5 * np.exp(1.3j)
    spectrum = torch.tensor([left, right], dtype=torch.complex64).view(1, 2, 1, 1)
    got = interaural_inputs(spectrum).flatten().numpy()
    expected = [2**0.3 * np.cos(0.4), 0.5**0.3 * np.cos(1.3),
                2**0.3 * np.sin(0.4), 0.5**0.3 * np.sin(1.3),
                np.log(2) / 4, np.log(0.5) / 4, np.log(4) / 2,
                np.cos(0.4 - 1.3), np.sin(0.4 - 1.3)]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_interaural_inputs_of_silence_are_finite():
    got = interaural_inputs(torch.zeros(1, 2, 4, 3, dtype=torch.complex64))
    assert got.isfinite().all() and got[:, 6:].abs().max() == 0


# -- GCC-PHAT

def delayed(delay, samples=16000, seed=0):
    """Both ears hear white noise, the right one ``delay`` samples later."""
    source = noise(samples + 100, seed=seed)
    return torch.stack([source[50:50 + samples], source[50 - delay:50 - delay + samples]])[None]


@pytest.mark.parametrize("delay", [-12, -7, -1, 0, 1, 5, 11])
def test_known_delays(delay):
    gcc = gcc_phat(delayed(delay), hop=4000, lags=24)
    assert gcc.shape == (1, 5, 24)
    assert (gcc[0].argmax(-1) - 12 == delay).all()
    # white noise has one delay: nearly all of the correlation is in one bin
    inner = gcc[0, 1:-1]
    assert (inner.amax(-1) > 0.9).all()
    assert gcc.abs().max() <= 1 + 1e-5


def test_against_a_direct_computation():
    """One frame, in NumPy's double precision, from the definition."""
    audio = noise(1, 2, 8000, seed=5)
    audio[:, 1, 3:] += audio[:, 0, :-3]
    hop, centre = 1000, 4000
    frame = audio[0, :, centre - hop: centre + hop].double().numpy()
    frame = frame * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2 * hop) / (2 * hop)))
    left, right = np.fft.fft(frame)
    cross = right * left.conj()
    correlation = np.fft.ifft(cross / np.abs(cross)).real
    expected = [correlation[lag % (2 * hop)] for lag in range(-12, 12)]
    np.testing.assert_allclose(gcc_phat(audio, hop)[0, centre // hop].numpy(), expected, atol=1e-4)


def test_against_pyroomacoustics():
    tdoa = pytest.importorskip(
        "pyroomacoustics", reason="needs pyroomacoustics, an independent GCC-PHAT"
    ).experimental.localization.tdoa
    for delay in (-9, 2, 8):
        audio = delayed(delay, samples=8000, seed=delay + 20)
        theirs = tdoa(audio[0, 1].numpy(), audio[0, 0].numpy(), interp=1, fs=1, phat=True)
        ours = gcc_phat(audio, hop=4000)[0, 1].argmax().item() - 12
        assert ours == round(theirs) == delay


def test_a_source_on_the_left_has_positive_lags():
    head = load_head("mit_kemar")
    source = noise(1, 1, 16000)
    for azimuth, sign in ((90, 1), (45, 1), (270, -1), (300, -1)):
        ears = torch.nn.functional.conv1d(source, head.hrir[azimuth].flip(-1)[:, None])
        lag = gcc_phat(ears, hop=8000)[0, 1].argmax().item() - 12
        assert lag * sign > 4, (azimuth, lag)


def test_silence_stays_at_zero():
    audio = delayed(4)
    audio[..., 8000:] = 0
    gcc = gcc_phat(audio, hop=1000)
    assert gcc[0, :7].amax(-1).min() > 0.5
    assert gcc[0, 10:].abs().max() == 0
    assert gcc_phat(torch.zeros(1, 2, 4000), hop=1000).abs().max() == 0
    # nor is the rounding noise of a recording blown up, though a quiet passage is heard
    for level, low, high in ((1e-6, 0.0, 0.05), (1e-3, 0.9, 1.0)):
        audio = delayed(4)
        audio[..., 8000:] *= level
        assert low <= gcc_phat(audio, hop=1000)[0, 10:15].amax(-1).min() <= high
    # and a quiet recording isn't silence
    torch.testing.assert_close(gcc_phat(delayed(4) * 1e-4, 1000), gcc_phat(delayed(4), 1000),
                               atol=1e-3, rtol=0)


def test_one_channel_is_refused():
    with pytest.raises(ValueError, match="two channels"):
        gcc_phat(torch.zeros(1, 1, 4000), 1000)


# -- the features of the head on the extracted ears

def test_features_of_the_extracted_ears():
    spectrum = torch.view_as_complex(noise(1, 1, 6, 50, 2, level=1.0))
    turned = torch.exp(1j * torch.linspace(0.2, 1.2, 6))[:, None]
    ears = torch.cat([spectrum * 2 * turned, spectrum], dim=1)  # left 6 dB louder, phase ahead
    real, imaginary, ild, level = ExtractedLocalizer.features(ears)[0].view(4, 6)
    torch.testing.assert_close(real, turned[:, 0].real, atol=1e-4, rtol=0)
    torch.testing.assert_close(imaginary, turned[:, 0].imag, atol=1e-4, rtol=0)
    torch.testing.assert_close(ild, torch.full((6,), math.log(4) / 4), atol=1e-4, rtol=0)
    assert level.abs().max() < 0.2
    # the level of the recording doesn't matter, and silence is finite
    torch.testing.assert_close(ExtractedLocalizer.features(ears * 1e-2),
                               ExtractedLocalizer.features(ears), atol=1e-3, rtol=0)
    assert ExtractedLocalizer.features(ears * 0).isfinite().all()
