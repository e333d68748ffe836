"""Metrics of known signals and directions, and the bootstrap."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio
from torchmetrics.functional.classification import binary_auroc

from training.losses import si_snr
from training.metrics import (
    batch_metrics,
    bootstrap,
    bootstrap_auroc,
    bootstrap_auroc_difference,
    chance_levels,
    front_back_confusion,
    interaural_errors,
    interaural_level_difference,
    interaural_time_difference,
    level_below_mixture,
    oracle_mask,
    sdr_per_ear_mean,
)

N = 4000
TIME = torch.arange(N) * (2 * math.pi / N)


def tone(cycles, gain=1.0):
    """Orthogonal signals: whole cycles of different frequencies at both ears."""
    return gain * torch.stack([torch.sin(cycles * TIME), torch.cos(cycles * TIME)])


def test_si_snri_of_known_noise():
    # Mixture at 0 dB; the extraction leaves a tenth of the interferer's amplitude: 20 dB better.
    target, other = tone(50)[None], tone(73)[None]
    result = batch_metrics(target + 0.1 * other, target, target + other, other[:, None])
    assert result["mixture_si_snr"].item() == pytest.approx(0.0, abs=1e-3)
    assert result["si_snr"].item() == pytest.approx(20.0, abs=1e-2)
    assert result["si_snri"].item() == pytest.approx(20.0, abs=1e-2)
    assert result["right_source"].item() == 1.0


def test_ears_are_averaged():
    target, other = tone(50), tone(73)
    estimate = torch.stack([target[0] + 0.1 * other[0], target[1] + 0.01 * other[1]])
    result = batch_metrics(estimate[None], target[None], (target + other)[None])
    assert result["si_snri"].item() == pytest.approx(30.0, abs=0.05)
    assert "right_source" not in result and "doa_error" not in result


def test_loss_and_metric_agree():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 2, N, generator=generator)
    estimate = target + torch.randn(2, 2, N, generator=generator)
    expected = scale_invariant_signal_noise_ratio(estimate, target)
    assert torch.allclose(si_snr(estimate, target), expected, atol=1e-3)
    result = batch_metrics(estimate, target, estimate)
    assert torch.allclose(result["si_snr"], expected.mean(-1), atol=1e-5)
    assert torch.allclose(result["si_snri"], torch.zeros(2))


def test_wrong_source():
    a, b, c = tone(50), tone(73, 0.5), tone(90)
    estimate = torch.stack([a + 0.1 * b, b, 0.2 * a + b, c])
    target = torch.stack([a, a, a, a])
    others = torch.stack([b, c]).expand(4, 2, 2, N)
    result = batch_metrics(estimate, target, (a + b + c).expand(4, -1, -1), others)
    assert result["right_source"].tolist() == [1, 0, 0, 0]


def test_directions():
    estimate = torch.tensor([2.0, 358.0, 150.0, 95.0, 180.0])
    true = torch.tensor([357.0, 8.0, 30.0, 85.0, 0.0])
    signal = tone(50).expand(5, -1, -1)
    result = batch_metrics(signal, signal, signal, None, estimate, true)
    assert result["doa_error"].tolist() == pytest.approx([5, 10, 120, 10, 180])
    assert result["within_5"].tolist() == [1, 0, 0, 0, 0]
    assert result["within_10"].tolist() == [1, 1, 0, 1, 0]
    assert result["front_back"].tolist() == [0, 0, 1, 0, 1]


def test_quiet_signals_count_like_loud_ones():
    target, other = 1e-6 * tone(50)[None], 1e-6 * tone(73)[None]
    result = batch_metrics(1e-4 * (target + 0.1 * other), target, target + other)
    assert result["si_snr"].item() == pytest.approx(20.0, abs=1e-2)


def test_no_direction_is_nan_not_wrong():
    signal, nothing = tone(50)[None], torch.tensor([math.nan])
    result = batch_metrics(signal, signal, signal, None, nothing, torch.tensor([3.0]))
    for key in ("doa_error", "within_5", "within_10", "front_back"):
        assert math.isnan(result[key].item()), key


def test_front_back():
    true = torch.tensor([30.0, 30.0, 30.0, 300.0, 90.0])
    estimate = torch.tensor([150.0, 139.0, 330.0, 245.0, 101.0])
    assert front_back_confusion(estimate, true).tolist() == [True, False, False, True, False]


def test_sdr_allows_a_filter_that_si_snr_does_not():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 2, N, generator=generator)
    delayed = torch.nn.functional.pad(target, (3, 0))[..., :N]
    assert sdr_per_ear_mean(delayed, target).item() > 25
    assert batch_metrics(delayed, target, target)["si_snr"].item() < 0
    noise = torch.randn(1, 2, N, generator=generator)
    result = batch_metrics(target + 0.1 * noise, target, target + noise, sdr=True)
    # The 512-tap filter fits a part 512 / 4000 of the noise, that is 0.6 dB and some.
    assert result["sdr"].item() == pytest.approx(20.0, abs=1.0)
    assert result["sdri"].item() == pytest.approx(20.0, abs=1.5)


def test_silence():
    silent, target = torch.zeros(1, 2, N), tone(50)[None]
    undefined = batch_metrics(target, silent, target, target[:, None], sdr=True)
    for key in ("si_snr", "si_snri", "sdr", "sdri", "right_source"):
        assert math.isnan(undefined[key].item()), key
    lost = batch_metrics(silent, target, target + tone(73), tone(73)[None, None], sdr=True)
    assert lost["si_snri"].item() == pytest.approx(-60.0, abs=1e-3)
    assert lost["sdri"].item() < -50
    assert lost["right_source"].item() == 0.0


def test_level_below_mixture():
    mixture = tone(50)[None]
    levels = level_below_mixture(torch.cat([mixture, 0.1 * mixture, 0 * mixture]),
                                 mixture.expand(3, -1, -1))
    assert levels.tolist() == pytest.approx([0, 20, 100], abs=1e-4)


# Bootstrap


def test_interval_covers_the_truth():
    """Of 100 experiments with correlated values, about 95 intervals hold the true mean."""
    generator = np.random.default_rng(0)
    covered = clustered_width = plain_width = 0.0
    for seed in range(100):
        recordings = np.repeat(np.arange(40), 10)
        values = 3.0 + generator.normal(size=40)[recordings] + 0.1 * generator.normal(size=400)
        clustered = bootstrap(values, recordings, 300, seed=seed)
        plain = bootstrap(values, np.arange(400), 300, seed=seed)
        covered += clustered.low <= 3.0 <= clustered.high
        clustered_width += clustered.high - clustered.low
        plain_width += plain.high - plain.low
        assert clustered.low < clustered.mean < clustered.high
    assert 88 <= covered <= 99
    # Ten queries of a recording are hardly more than one: sqrt(10) wider than without clusters.
    assert clustered_width / plain_width == pytest.approx(math.sqrt(10), rel=0.15)


def test_interval_is_reproducible_and_leaves_nan_out():
    values = np.array([1.0, 2.0, math.nan, 4.0, 5.0])
    names = ["a", "b", "b", "c", "c"]
    first, second = bootstrap(values, names, seed=5), bootstrap(values, names, seed=5)
    assert first == second
    assert (first.mean, first.n, first.clusters) == (3.0, 4, 3)


def test_interval_of_little():
    alone = bootstrap([2.0, 4.0], ["a", "a"])
    assert alone.mean == 3.0 and math.isnan(alone.low)
    assert math.isnan(bootstrap([], []).mean) and bootstrap([], []).n == 0
    same = bootstrap([2.0, 2.0], ["a", "b"])
    assert (same.low, same.high) == (2.0, 2.0)


def test_auroc():
    generator = np.random.default_rng(1)
    present = np.arange(300) % 3 > 0
    confidence = np.round(np.clip(0.2 * present + generator.uniform(0, 0.8, 300), 0, 1), 2)
    value = bootstrap_auroc(confidence, present, np.arange(300) // 3)
    expected = binary_auroc(torch.tensor(confidence), torch.tensor(present).long()).item()
    assert value.mean == pytest.approx(expected)
    assert value.low < expected < value.high and value.high - value.low < 0.2
    perfect = bootstrap_auroc([0.9, 0.8, 0.1, 0.2], [True, True, False, False], [0, 1, 0, 1])
    assert (perfect.mean, perfect.low, perfect.high) == (1, 1, 1)
    assert math.isnan(bootstrap_auroc([0.5], [True], [0]).mean)


def test_auroc_counts_ties_half():
    value = bootstrap_auroc([0.5] * 20, np.arange(20) % 2 == 0, np.arange(20) // 2)
    assert (value.mean, value.low, value.high) == (0.5, 0.5, 0.5)


def test_chance_levels_by_simulation():
    generator = np.random.default_rng(0)
    error = np.abs((generator.uniform(0, 360, 200000) - 77 + 180) % 360 - 180)
    chance = chance_levels(3)
    assert (error <= 5).mean() == pytest.approx(chance["within_5"], rel=0.05)
    assert (error <= 10).mean() == pytest.approx(chance["within_10"], rel=0.05)
    assert error.mean() == pytest.approx(chance["doa_error"], rel=0.01)
    assert chance["right_source"] == pytest.approx(1 / 3)


def test_sdr_on_several_threads():
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 2, 4000, generator=generator)
    noise = torch.randn(3, 2, 4000, generator=generator)
    try:
        torch.set_num_threads(2)
        value = sdr_per_ear_mean(target + noise, target)
    finally:
        torch.set_num_threads(threads)
    # the 512-tap filter explains a part of the noise: 0 dB for the plain signal-to-noise ratio
    assert value.shape == (3,) and ((value > 0) & (value < 3)).all()


# What two ears hear apart


def delayed(samples, rate=16000, seed=0, high=6000.0):
    """White noise up to `high` Hz, and the same later by a fraction of a sample."""
    noise = np.random.default_rng(seed).normal(size=32000)
    spectrum = np.fft.rfft(noise)
    frequency = np.fft.rfftfreq(32000, 1 / rate)
    spectrum[frequency > high] = 0
    later = np.fft.irfft(spectrum * np.exp(-2j * np.pi * frequency * samples / rate))
    return torch.tensor(np.stack([np.fft.irfft(spectrum), later]), dtype=torch.float32)


@pytest.mark.parametrize("samples", [0.0, 3.0, -7.4, 10.25])
def test_time_difference_of_a_known_delay(samples):
    found = interaural_time_difference(delayed(samples))
    assert found.item() == pytest.approx(samples / 16000 * 1e6, abs=2.0)  # right ear later: left
    quiet = interaural_time_difference(1e-6 * delayed(samples))
    assert quiet.item() == pytest.approx(found.item(), abs=0.1)


def test_time_difference_of_a_measured_head():
    """3 a / c sin(azimuth), the delay around a rigid sphere at low frequencies (Kuhn, 1977)."""
    from scipy.signal import fftconvolve

    from training.heads import load_head

    head = load_head("mit_kemar")
    noise = np.random.default_rng(0).normal(size=16000)
    azimuth = np.array([0, 45, 90, 135, 200, 300])
    heard = torch.tensor(np.stack([fftconvolve(noise[None], head.hrir[a].numpy(), axes=-1)
                                   for a in azimuth]), dtype=torch.float32)
    sphere = 1e6 * 3 * 0.0875 / 343 * np.sin(np.deg2rad(azimuth))
    assert interaural_time_difference(heard).numpy() == pytest.approx(sphere, abs=90)


def test_sounds_without_low_frequencies_have_no_time_difference():
    high = torch.stack([torch.sin(3000 * TIME.repeat(4)), torch.cos(3000 * TIME.repeat(4))])
    assert torch.isnan(interaural_time_difference(high, sample_rate=16000))  # 12 kHz: none below
    assert torch.isnan(interaural_time_difference(torch.zeros(2, 4000)))


def test_level_difference():
    signal = tone(50)
    ratio = torch.stack([2 * signal[0], 0.2 * signal[1]])
    assert interaural_level_difference(ratio).item() == pytest.approx(20.0, abs=1e-3)
    one_ear = torch.stack([signal[0], 0 * signal[1]])
    assert interaural_level_difference(one_ear).item() == pytest.approx(100.0, abs=1e-3)
    assert torch.isnan(interaural_level_difference(0 * signal))


def test_interaural_errors():
    target = delayed(4.0)
    estimate = torch.stack([0.5 * target[0], delayed(6.0)[1]])
    found = interaural_errors(estimate, target)
    assert found["delta_itd_us"].item() == pytest.approx(125.0, abs=2.0)
    assert found["delta_ild_db"].item() == pytest.approx(6.02, abs=0.01)
    perfect = interaural_errors(target, target)
    assert perfect["delta_itd_us"].item() == perfect["delta_ild_db"].item() == 0.0
    inverted = target * torch.tensor([[-1.0], [1.0]])
    result = interaural_errors(torch.stack([target, inverted, -target, 0 * target]),
                               target.expand(4, -1, -1))
    assert result["in_phase"][:3].tolist() == [1, 0, 0] and torch.isnan(result["in_phase"][3])
    assert result["delta_itd_us"][1].item() > 200 and result["delta_ild_db"][1].item() == 0.0
    # SI-SNR, and so the extraction's main figure, is blind to it
    assert batch_metrics(inverted[None], target[None], target[None])["si_snr"].item() > 50


# Oracle masks


def test_oracle_masks_of_known_mixtures():
    # Sounds in different halves of the spectrum: a mask that knows them loses nothing.
    low = delayed(0.0, high=2500.0)
    high = delayed(0.0, seed=1) - delayed(0.0, seed=1, high=3500.0)
    for binary in (False, True):
        apart = batch_metrics(oracle_mask(low[None], high[None, None], binary), low[None],
                              (low + high)[None])
        assert apart["si_snr"].item() > 25
    # Sounds with equal magnitudes everywhere: the ratio mask is 1/2 of their sum.
    one = delayed(0.0)
    half = oracle_mask(one[None], one[None, None])
    assert half[0].numpy() == pytest.approx(one.numpy(), abs=1e-4 * one.abs().max().item())
    # For independent noises of one level: the ratio mask helps by some dB, not by 20.
    other = delayed(0.0, seed=2)
    found = batch_metrics(oracle_mask(one[None], other[None, None]), one[None],
                          (one + other)[None])
    assert 3 < found["si_snri"].item() < 12


# Differences


def test_auroc_difference():
    present = np.arange(60) % 3 > 0
    clusters = np.arange(60) // 3
    perfect = np.where(present, 0.9, 0.1)
    value = bootstrap_auroc_difference(np.full(60, 0.5), perfect, present, clusters, 100)
    assert (value.mean, value.low, value.high, value.clusters) == (0.5, 0.5, 0.5, 20)
    same = bootstrap_auroc_difference(perfect, perfect, present, clusters, 100)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert math.isnan(bootstrap_auroc_difference([0.5], [0.5], [True], [0]).mean)
