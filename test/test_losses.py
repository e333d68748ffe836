"""Losses against values computed by hand in NumPy or by a library."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio

from training import losses
from training.losses.delta_spectrum import RESOLUTIONS, delta

torch.manual_seed(0)
SILENCE = torch.zeros(2, 2, 4000)


@pytest.fixture
def signals():
    generator = torch.Generator().manual_seed(3)
    target = 0.1 * torch.randn(3, 2, 4000, generator=generator)
    estimate = 0.7 * target + 0.03 * torch.randn(3, 2, 4000, generator=generator) + 0.01
    return estimate, target


def finite_gradient(loss, *shape, start=0.0):
    """Backpropagate through loss(estimate) from a constant estimate; all must be finite."""
    estimate = torch.full(shape, start, requires_grad=True)
    value = loss(estimate)
    value.sum().backward()
    return bool(torch.isfinite(value).all() and torch.isfinite(estimate.grad).all())


# SI-SNR


def test_si_snr_by_hand(signals):
    estimate, target = (s.double().numpy() for s in signals)
    expected = []
    for est, ref in zip(estimate, target, strict=True):
        ears = []
        for e, r in zip(est, ref, strict=True):
            e, r = e - e.mean(), r - r.mean()
            projection = (e @ r) / (r @ r + 1e-6) * r
            noise = e - projection
            ears.append(10 * np.log10(projection @ projection / (noise @ noise + 1e-6) + 1e-6))
        expected.append(-np.mean(ears))
    assert np.allclose(losses.negative_si_snr(*signals).numpy(), expected, atol=1e-3)


def test_si_snr_as_torchmetrics(signals):
    expected = scale_invariant_signal_noise_ratio(*signals)
    assert torch.allclose(losses.si_snr(*signals), expected, atol=1e-3)


def test_si_snr_ignores_gain_and_offset(signals):
    estimate, target = signals
    assert torch.allclose(
        losses.si_snr(3.0 * estimate + 0.2, target), losses.si_snr(estimate, target), atol=1e-2
    )


def test_si_snr_of_known_noise():
    # Noise orthogonal to the target with a tenth of its energy: 10 dB.
    time = torch.arange(1600) * (2 * math.pi / 1600)
    target, noise = torch.sin(10 * time), math.sqrt(0.1) * torch.sin(33 * time)
    assert losses.si_snr(target + noise, target).item() == pytest.approx(10.0, abs=1e-3)


# Delta spectrum


def delta_by_hand(x):
    frames = x.shape[-1]
    out = np.zeros_like(x)
    for t in range(frames):
        for n in (1, 2):
            after, before = min(t + n, frames - 1), max(t - n, 0)
            out[..., t] += n * (x[..., after] - x[..., before])
    return out / 10


def magnitude_by_hand(x, fft, hop, length):
    """Centred Hann STFT with reflected ends, one frame at a time."""
    window = np.zeros(fft)
    left = (fft - length) // 2
    window[left : left + length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    padded = np.pad(x, fft // 2, mode="reflect")
    frames = [
        np.fft.rfft(window * padded[start : start + fft])
        for start in range(0, len(padded) - fft + 1, hop)
    ]
    power = np.abs(np.array(frames).T) ** 2
    return np.sqrt(np.maximum(power, 1e-7))


def delta_spectrum_by_hand(estimate, target):
    """(ears, samples) twice -> value of one item."""
    total = 0.0
    for fft, hop, length in RESOLUTIONS:
        x = np.stack([magnitude_by_hand(ear, fft, hop, length) for ear in estimate])
        y = np.stack([magnitude_by_hand(ear, fft, hop, length) for ear in target])
        log_x, log_y = np.log(x), np.log(y)
        for _ in range(3):
            total += np.sqrt(((y - x) ** 2).sum()) / np.sqrt((y**2).sum())
            total += np.abs(log_y - log_x).mean()
            x, y = delta_by_hand(x), delta_by_hand(y)
            log_x, log_y = delta_by_hand(log_x), delta_by_hand(log_y)
    return total / len(RESOLUTIONS)


def test_delta_by_hand():
    ramp = torch.arange(8.0)
    # A slope of 1 per frame inside; (1 + 2 * 2) / 10 at the replicated ends.
    assert delta(ramp).tolist() == pytest.approx([0.5, 0.8, 1, 1, 1, 1, 0.8, 0.5])
    x = np.random.default_rng(0).normal(size=(2, 5, 11))
    assert np.allclose(delta(torch.tensor(x)).numpy(), delta_by_hand(x))


def test_delta_spectrum_by_hand(signals):
    estimate, target = (s.double().numpy() for s in signals)
    expected = [delta_spectrum_by_hand(e, t) for e, t in zip(estimate, target, strict=True)]
    value = losses.DeltaSpectrumLoss()(*signals)
    assert value.shape == (3,)
    assert np.allclose(value.numpy(), expected, rtol=1e-4)


def test_delta_spectrum_over_the_batch(signals):
    # As in the cited code: one norm over all signals, here all ears as ears of one item.
    estimate, target = (s.double().numpy().reshape(6, -1) for s in signals)
    value = losses.DeltaSpectrumLoss(norm="batch")(*signals)
    expected = delta_spectrum_by_hand(estimate, target)
    assert value.mean().item() == pytest.approx(expected, rel=1e-4)


def test_delta_spectrum_properties(signals):
    estimate, target = signals
    loss = losses.DeltaSpectrumLoss()
    assert torch.allclose(loss(target, target), torch.zeros(3), atol=1e-6)
    assert (loss(0.5 * target, target) > loss(0.9 * target, target)).all()  # scale counts
    with pytest.raises(ValueError, match="1024 samples"):
        loss(target[..., :1000], target[..., :1000])


def test_hybrid_continuity_is_the_sum(signals):
    value = losses.HybridContinuityLoss()(*signals)
    expected = losses.negative_si_snr(*signals) + losses.DeltaSpectrumLoss()(*signals)
    assert torch.allclose(value, expected)


# Direction of arrival


@pytest.mark.parametrize(
    "scaling, expected", [("peak", 3.963), ("density", 0.1262), ("mean", 0.01101)]
)
def test_label_energy(scaling, expected):
    value = losses.doa_squared_error(torch.zeros(1, 360), torch.tensor([77.0]), scaling)
    assert value.item() == pytest.approx(expected, rel=2e-3)


def test_label_by_hand():
    label = losses.gaussian_label(torch.tensor([100.0, 0.0, 359.5]))
    assert label.shape == (3, 360)
    for offset in range(-8, 9):
        assert label[0, 100 + offset].item() == pytest.approx(math.exp(-(offset**2) / 10))
    # Round the seam: equal on both sides of 0, and of 359.5.
    assert label[1, 0].item() == 1.0
    assert torch.allclose(label[1, 1:10], label[1, -9:].flip(0))
    assert label[2, 0].item() == pytest.approx(label[2, 359].item(), abs=1e-6)
    density = losses.gaussian_label(torch.tensor(12.3), "density")
    assert density.sum().item() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="peak, density, mean"):
        losses.gaussian_label(torch.tensor(0.0), "sum")


def test_squared_error_by_hand():
    likelihood = np.random.default_rng(1).uniform(size=(2, 360))
    expected = []
    for row, azimuth in zip(likelihood, (3.0, 250.25), strict=True):
        total = 0.0
        for i in range(360):
            distance = min((i - azimuth) % 360, (azimuth - i) % 360)
            total += (row[i] - math.exp(-(distance**2) / 10)) ** 2
        expected.append(total)
    azimuth = torch.tensor([3.0, 250.25])
    value = losses.doa_squared_error(torch.tensor(likelihood), azimuth)
    assert np.allclose(value.numpy(), expected, rtol=1e-5)
    mean = losses.doa_squared_error(torch.tensor(likelihood), azimuth, "mean")
    assert np.allclose(mean.numpy(), np.array(expected) / 360, rtol=1e-5)


def test_cross_entropy_ends():
    azimuth = torch.tensor([10.0, 359.9])
    uniform = losses.doa_cross_entropy(torch.zeros(2, 360), azimuth)
    assert torch.allclose(uniform, torch.full((2,), math.log(360)), atol=1e-4)
    label = losses.gaussian_label(azimuth)
    best = losses.doa_cross_entropy(torch.log(label + 1e-30), azimuth)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 5)
    assert torch.allclose(best, torch.full((2,), entropy), atol=1e-3)


# Magnitude, presence, absence


def test_magnitude_by_hand(signals):
    estimate, target = (s.double().numpy() for s in signals)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)

    def compressed(x, level):
        padded = np.pad(x / level, 256, mode="reflect")
        frames = [
            np.fft.rfft(window * padded[s : s + 512]) / math.sqrt(512)
            for s in range(0, len(padded) - 511, 256)
        ]
        return (np.abs(np.array(frames)) ** 2 + 1e-5) ** 0.25

    mixture = 2.0 * target
    expected = [
        np.mean(
            [
                np.abs(compressed(a, rms) - compressed(b, rms)).mean()
                for a, b in zip(e, t, strict=True)
            ]
        )
        for e, t, rms in zip(
            estimate, target, np.sqrt((mixture**2).mean((1, 2))), strict=True
        )
    ]
    value = losses.CompressedMagnitudeLoss()(*signals, 2.0 * signals[1])
    assert np.allclose(value.numpy(), expected, rtol=1e-4)


def test_magnitude_is_relative_to_the_mixture(signals):
    estimate, target = signals
    loss = losses.CompressedMagnitudeLoss()
    mixture = estimate + target
    assert torch.allclose(
        loss(estimate, target, mixture), loss(9 * estimate, 9 * target, 9 * mixture), rtol=1e-4
    )
    assert (loss(0.5 * target, target) > loss(0.8 * target, target)).all()
    assert torch.allclose(loss(target, target, mixture), torch.zeros(3), atol=1e-7)


def test_presence_by_hand():
    logits, present = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([True, True, False])
    expected = [math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))]
    assert losses.presence_bce(logits, present).tolist() == pytest.approx(expected)
    weighted = losses.presence_bce(logits, present, 3.0).tolist()
    assert weighted == pytest.approx([3 * expected[0], 3 * expected[1], expected[2]])


def test_absent_energy_by_hand(signals):
    mixture = signals[1]
    value = losses.absent_energy(0.1 * mixture, mixture)
    assert torch.allclose(value, torch.full((3,), 10 * math.log10(0.01 + 0.001)), atol=1e-4)
    silent = losses.absent_energy(0 * mixture, mixture)
    assert torch.allclose(silent, torch.full((3,), -30.0), atol=1e-4)


# Tags


def test_absent_queries_by_hand(signals):
    mixture, _ = signals
    audio = torch.stack([mixture, 0.1 * mixture], 1)
    present = torch.zeros(len(mixture), 2, dtype=torch.bool)
    present[0] = torch.tensor([True, False])
    # 0 dB and -20 dB, both above the threshold of -30 dB
    loud, soft = (10 * math.log10(level + 1e-3) for level in (1.0, 0.01))
    expected = [soft, *[loud, soft] * (len(mixture) - 1)]
    assert losses.absent_queries(audio, mixture, present).tolist() == pytest.approx(
        expected, abs=1e-4)


def test_balanced_presence_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.0], [0.5, 3.0, -2.0]])
    present = torch.tensor([[True, False, False], [False, False, False]])
    there = math.log(1 + math.exp(-2.0))
    gone = [math.log(1 + math.exp(value)) for value in (-1.0, 0.0, 0.5, 3.0, -2.0)]
    assert float(losses.balanced_presence(logits, present)) == pytest.approx(
        (there + sum(gone) / 5) / 2)
    alike = torch.tensor([[True, True, False], [False, False, False]])  # the present one counts
    assert float(losses.balanced_presence(logits, present, alike)) == pytest.approx(
        (there + sum(gone[1:]) / 4) / 2)
    assert float(losses.balanced_presence(logits[:1, 0], present[:1, 0])) == pytest.approx(
        there / 2)


def test_dense_tags_by_hand():
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(2, 4, 5))
    kind = np.array([[0, 3], [2, 2]])
    share = generator.uniform(size=(2, 4, 1))
    shares = np.concatenate([share, 1 - share], -1)
    weight = generator.uniform(size=(2, 4))
    expected = []
    for b in range(2):
        total = 0.0
        for t in range(4):
            log_probability = logits[b, t] - np.log(np.exp(logits[b, t]).sum())
            for s in range(2):
                total -= weight[b, t] * shares[b, t, s] * log_probability[kind[b, s]]
        expected.append(total / weight[b].sum())
    arguments = (torch.tensor(logits), torch.tensor(kind), torch.tensor(shares).float())
    value = losses.dense_tag_loss(*arguments, torch.tensor(weight).float())
    assert np.allclose(value.numpy(), expected, rtol=1e-5)
    uniform = losses.dense_tag_loss(torch.zeros(2, 4, 5), *arguments[1:])
    assert torch.allclose(uniform, torch.full((2,), math.log(5)))


def test_clip_tags_by_hand():
    logits = torch.tensor([[1.0, 0.0, 2.0]])
    log_probability = torch.log_softmax(logits, -1)[0]
    value = losses.clip_tag_loss(logits, torch.tensor([[2, 0]]))
    assert value.item() == pytest.approx(-(log_probability[2] + log_probability[0]).item() / 2)
    value = losses.clip_tag_loss(logits, torch.tensor([[2, 0]]), torch.tensor([[0.75, 0.25]]))
    expected = -(0.75 * log_probability[2] + 0.25 * log_probability[0]).item()
    assert value.item() == pytest.approx(expected)


def test_which_sound_a_phrase_means_is_cross_entropy_over_the_sounds():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    nothing_alike = torch.eye(4, dtype=torch.bool)
    value = losses.tagged_sound_loss(logits, torch.eye(4), nothing_alike)
    expected = torch.nn.functional.cross_entropy(logits.T, torch.arange(4), reduction="none")
    assert torch.allclose(value, expected, atol=1e-4)
    half = losses.tagged_sound_loss(logits, torch.eye(4) * torch.tensor([[1.0], [1], [1], [0]]),
                                    nothing_alike)
    assert half[3] == 0 and torch.allclose(half[:3], expected[:3], atol=1e-4)  # still a negative
    alike = nothing_alike.clone()
    alike[0, 1] = alike[1, 0] = True
    without = torch.nn.functional.cross_entropy(logits[[0, 2, 3], 0][None], torch.tensor([0]))
    value = losses.tagged_sound_loss(logits, torch.eye(4), alike)[0]
    assert value.item() == pytest.approx(without.item(), abs=1e-4)


@pytest.mark.parametrize("frequency_fastest", [True, False])
def test_energy_shares_land_in_their_tokens(frequency_fastest):
    # A low tone in the first half, a high tone in the second: 4 bands of 2 kHz, 8 stretches.
    time = torch.arange(32000) / 16000
    low = torch.sin(2 * math.pi * 1000 * time) * (time < 1)
    high = torch.sin(2 * math.pi * 7000 * time) * (time >= 1)
    sources = torch.stack([low, high])[None, :, None].expand(1, 2, 2, 32000)
    shares, weight = losses.token_energy_shares(
        sources, 4, 8, frequency_fastest=frequency_fastest
    )
    assert shares.shape == (1, 32, 2) and weight.shape == (1, 32)
    assert torch.allclose(shares.sum(-1), torch.ones(1, 32), atol=1e-5)
    assert weight.mean().item() == pytest.approx(1.0, abs=1e-5)
    shape = (8, 4) if frequency_fastest else (4, 8)
    grid, loud = shares[0].reshape(*shape, 2), weight[0].reshape(shape)
    if not frequency_fastest:
        grid, loud = grid.transpose(0, 1), loud.T
    assert (grid[:3, 0, 0] > 0.99).all() and (grid[5:, 3, 1] > 0.99).all()
    assert set(loud.flatten().topk(8).indices.tolist()) == {0, 4, 8, 12, 19, 23, 27, 31}


def test_energy_shares_of_uneven_grids_and_silence():
    sources = torch.zeros(1, 3, 2, 32000)
    shares, weight = losses.token_energy_shares(sources, 8, 63, token_samples=512)
    assert shares.shape == (1, 504, 3) and weight.shape == (1, 504)
    assert torch.isfinite(shares).all() and torch.isfinite(weight).all()
    for samples, tokens, stretch in ((32000, 63, 512), (32000, 16, 2048), (160000, 157, 1024)):
        click = torch.zeros(1, 1, 1, samples)
        click[..., samples - 700] = 1.0
        _, weight = losses.token_energy_shares(click, 1, tokens, stretch)
        assert weight.argmax().item() == (samples - 700) // stretch
    with pytest.raises(ValueError, match="7 frequency tokens"):
        losses.token_energy_shares(sources, 7, 10)


# Gradients


@pytest.mark.parametrize("start", [0.0, 0.1])
@pytest.mark.parametrize(
    "loss",
    [
        lambda e: losses.negative_si_snr(e, SILENCE),
        lambda e: losses.negative_si_snr(e, SILENCE + torch.randn(4000)),
        lambda e: losses.DeltaSpectrumLoss()(e, SILENCE),
        lambda e: losses.HybridContinuityLoss()(e, SILENCE + torch.randn(4000)),
        lambda e: losses.CompressedMagnitudeLoss()(e, SILENCE, SILENCE),
        lambda e: losses.CompressedMagnitudeLoss()(e, SILENCE, SILENCE + 1.0),
        lambda e: losses.absent_energy(e, SILENCE),
    ],
)
def test_gradients_are_finite_on_silence(loss, start):
    assert finite_gradient(loss, 2, 2, 4000, start=start)


def test_gradients_of_directions_are_finite():
    azimuth = torch.tensor([0.0, 359.0])
    assert finite_gradient(lambda e: losses.doa_squared_error(e, azimuth), 2, 360)
    assert finite_gradient(lambda e: losses.doa_cross_entropy(e, azimuth), 2, 360, start=50.0)


def test_descent_recovers_the_target(signals):
    # Each signal loss, followed downhill, brings a noisy estimate closer to the target.
    _, target = signals
    for loss in (losses.HybridContinuityLoss(), losses.CompressedMagnitudeLoss()):
        noise = 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
        estimate = (target + noise).requires_grad_()
        before = loss(estimate, target).mean()
        optimiser = torch.optim.Adam([estimate], lr=0.003)
        for _ in range(10):
            optimiser.zero_grad()
            value = loss(estimate, target).mean()
            value.backward()
            optimiser.step()
        assert loss(estimate, target).mean() < 0.9 * before


def test_losses_under_autocast(signals):
    for loss in (losses.HybridContinuityLoss(), losses.CompressedMagnitudeLoss()):
        full = loss(*signals)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(loss(*signals), full, rtol=1e-4)
            assert loss(signals[0].bfloat16(), signals[1]).dtype == torch.float32
