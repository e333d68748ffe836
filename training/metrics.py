"""What is reported: extraction, direction, right source, presence, with confidence intervals.

SI-SNRi and SDRi as in paper 000, section 4: the value of the extraction less the value of the
unprocessed mixture, both against the source as it is at that ear, averaged over the two ears.
Directions: share within 5 (and 10) degrees and mean absolute error on the circle.

Letters: B queries, S sources of a mixture, N samples; signals are (..., 2 ears, N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torchmetrics.functional.audio import (
    scale_invariant_signal_noise_ratio,
    signal_distortion_ratio,
)
from torchmetrics.functional.classification import binary_auroc

from luseel_model.angles import angular_error, mirror_front_back

# Diagonal loading of the SDR's normal equations, relative to the signal's energy: sources that
# were sampled at 8 kHz leave them singular otherwise.
SDR_LOADING = 1e-8
SILENT_DB = -60.0
FRONT_BACK_TOLERANCE = 10.0


def si_snr_per_ear_mean(estimate: Tensor, target: Tensor) -> Tensor:
    """SI-SNR in dB, zero mean, averaged over the ears: (..., 2, N) twice -> (...).

    A silent estimate gets SILENT_DB, not the 0 dB that equal guards against division by zero give.
    """
    # At unit level, those guards don't matter for quiet signals either.
    level = estimate.square().mean(-1, keepdim=True).sqrt()
    reference = target.square().mean(-1, keepdim=True).sqrt()
    value = scale_invariant_signal_noise_ratio(
        estimate / level.clamp_min(1e-12), target / reference.clamp_min(1e-12)
    )
    silent = level[..., 0] <= 1e-12
    return torch.where(silent, torch.full_like(value, SILENT_DB), value).mean(-1)


def sdr_per_ear_mean(estimate: Tensor, target: Tensor) -> Tensor:
    """SDR in dB (BSS Eval with a 512-tap distortion filter), averaged over the ears.

    (..., 2, N) twice -> (...). About 10 ms a pair of ears and second on one core. NaN where an
    ear of the target is silent, SILENT_DB at least.
    """
    target = target.double()
    silent = (target.square().sum(-1) <= 0.0).any(-1)
    # Silent signals make the equations singular: replaced here, marked below.
    dither = torch.zeros_like(target)
    dither[..., 0] = 1e-9
    # float64: in single precision the equations are solved too coarsely above 30 dB.
    # One signal at a time: torch 2.13's batched solve fails on several CPU threads.
    samples = target.shape[-1]
    pairs = zip((estimate.double() + dither).reshape(-1, samples),
                (target + dither * silent[..., None, None]).reshape(-1, samples))
    value = torch.stack([signal_distortion_ratio(a, b, load_diag=SDR_LOADING) for a, b in pairs])
    value = value.view(target.shape[:-1]).clamp_min(SILENT_DB).mean(-1)
    return torch.where(silent, torch.full_like(value, math.nan), value)


def front_back_confusion(
    estimate: Tensor, true: Tensor, tolerance: float = FRONT_BACK_TOLERANCE
) -> Tensor:
    """Whether the estimate is the mirror image of the truth, front for back.

    Args:
        estimate, true: (...) degrees.
        tolerance: degrees; a confusion is further than this from the truth and within it of the
            truth's mirror image (180 - azimuth).

    Returns:
        (...) bool.
    """
    wrong = angular_error(estimate, true) > tolerance
    return wrong & (angular_error(mirror_front_back(estimate), true) <= tolerance)


@torch.no_grad()
def batch_metrics(
    estimate: Tensor,
    target: Tensor,
    mixture: Tensor,
    interferers: Tensor | None = None,
    azimuth_est: Tensor | None = None,
    azimuth_true: Tensor | None = None,
    sdr: bool = False,
) -> dict[str, Tensor]:
    """Metrics of B queries for sounds that are present.

    Args:
        estimate, target, mixture: (B, 2, N); a silent target gives NaN.
        interferers: (B, S - 1, 2, N), the other sources at the ears.
        azimuth_est, azimuth_true: (B,) degrees; without them there are no directions. NaN, from a
            model that doesn't localize, gives NaN.
        sdr: also the SDR, which takes much longer than all else.

    Returns:
        dict of (B,) float tensors:
        si_snr, mixture_si_snr, si_snri in dB (and sdr, mixture_sdr, sdri);
        right_source: 1 where the extraction is closer (in SI-SNR) to the queried source than to
        each interferer;
        doa_error in degrees, within_5, within_10, front_back (0 or 1).
    """
    estimate, target, mixture = estimate.float(), target.float(), mixture.float()
    silent = (target.square().sum(-1) <= 0.0).any(-1)

    def defined(value: Tensor) -> Tensor:
        return torch.where(silent, torch.full_like(value, math.nan), value)

    result = {
        "si_snr": defined(si_snr_per_ear_mean(estimate, target)),
        "mixture_si_snr": defined(si_snr_per_ear_mean(mixture, target)),
    }
    result["si_snri"] = result["si_snr"] - result["mixture_si_snr"]
    if sdr:
        result["sdr"] = sdr_per_ear_mean(estimate, target).float()
        result["mixture_sdr"] = sdr_per_ear_mean(mixture, target).float()
        result["sdri"] = result["sdr"] - result["mixture_sdr"]
    if interferers is not None and interferers.shape[1]:
        others = si_snr_per_ear_mean(
            estimate[:, None].expand_as(interferers), interferers.float()
        ).amax(1)
        result["right_source"] = defined((result["si_snr"] > others).float())
    if azimuth_est is not None and azimuth_true is not None:
        error = angular_error(azimuth_est.float(), azimuth_true.float())
        result["doa_error"] = error
        for key, hit in (
            ("within_5", error <= 5.0),
            ("within_10", error <= 10.0),
            ("front_back", front_back_confusion(azimuth_est, azimuth_true)),
        ):
            result[key] = torch.where(error.isnan(), error, hit.float())
    return result


def others_of(sources: Tensor) -> Tensor:
    """(B, S, ...) → (B, S, S - 1, ...): the other sounds of each sound's mixture."""
    count = sources.shape[1]
    return torch.stack([sources[:, [j for j in range(count) if j != i]] for i in range(count)], 1)


def mixture_metrics(estimate: Tensor, sources: Tensor, mixture: Tensor,
                    azimuth_est: Tensor | None = None, azimuth_true: Tensor | None = None
                    ) -> dict[str, Tensor]:
    """`batch_metrics` of B mixtures each of whose S sounds is asked for.

    Args:
        estimate, sources: (B, S, 2, N).
        mixture: (B, 2, N).
        azimuth_est, azimuth_true: (B, S) degrees.

    Returns:
        dict of (B·S,) float tensors.
    """
    return batch_metrics(
        estimate.flatten(0, 1), sources.flatten(0, 1),
        mixture.repeat_interleave(sources.shape[1], 0), others_of(sources).flatten(0, 1),
        *(None if a is None else a.flatten() for a in (azimuth_est, azimuth_true)))


@torch.no_grad()
def level_below_mixture(estimate: Tensor, mixture: Tensor, ceiling: float = 100.0) -> Tensor:
    """How far the energy of an extraction lies below the mixture's, both ears together.

    (B, 2, N) twice -> (B,) dB, positive when quieter than the mixture, at most `ceiling`.
    """
    energy = estimate.double().square().flatten(1).sum(1)
    reference = mixture.double().square().flatten(1).sum(1)
    ratio = (energy / reference.clamp_min(1e-20)).clamp_min(10.0 ** (-ceiling / 10.0))
    return (-10.0 * torch.log10(ratio)).float()


# -- what two ears hear apart ----------------------------------------------------------------------


def interaural_level_difference(signal: Tensor) -> Tensor:
    """Energy of the left ear over the right one's in dB: (..., 2, N) -> (...).

    Within ±100 dB; NaN where both ears are silent.
    """
    energy = signal.double().square().sum(-1)
    left, right = energy[..., 0], energy[..., 1]
    floor = 1e-10 * torch.maximum(left, right)
    value = 10.0 * torch.log10(torch.maximum(left, floor) / torch.maximum(right, floor))
    return value.float()


def interaural_time_difference(
    signal: Tensor, sample_rate: float = 16000.0, cutoff: float = 1500.0, reach: float = 1e-3
) -> Tensor:
    """Lead of the left ear over the right one in µs: (..., 2, N) -> (...).

    Highest peak of the cross-correlation of both ears within ±`reach` seconds, below `cutoff` Hz
    (where delays of a head are unambiguous and ears use them), refined by a parabola. Not whitened,
    so that it is the delay of what is loud.

    NaN where the signal has less than a hundredth of its energy below the cutoff.
    """
    samples = signal.shape[-1]
    lags = math.ceil(reach * sample_rate)
    length = next_fast_len(samples + lags + 1, real=True)
    # At unit level, so that quiet signals keep their precision.
    level = signal.abs().amax((-1, -2), keepdim=True).clamp_min(1e-20)
    spectrum = torch.fft.rfft(signal / level, length)
    frequency = torch.fft.rfftfreq(length, 1.0 / sample_rate, device=signal.device)
    low = torch.where(frequency < cutoff, torch.cos(0.5 * math.pi * frequency / cutoff), 0.0)
    power = spectrum.abs().square().sum(-2)
    share = (power * (frequency < cutoff)).sum(-1) / power.sum(-1).clamp_min(1e-30)
    cross = spectrum[..., 1, :] * spectrum[..., 0, :].conj() * low.square()
    correlation = torch.fft.irfft(cross, length)
    window = torch.cat([correlation[..., -lags - 1:], correlation[..., :lags + 2]], -1)
    peak = window[..., 1:-1].argmax(-1, keepdim=True) + 1
    before, centre, after = (window.gather(-1, peak + i)[..., 0] for i in (-1, 0, 1))
    bend = before - 2.0 * centre + after
    shift = torch.where(bend < 0, 0.5 * (before - after) / bend.clamp_max(-1e-30), 0.0)
    delay = (peak[..., 0] - lags - 1 + shift.clamp(-0.5, 0.5)) * (1e6 / sample_rate)
    return torch.where(share < 0.01, torch.full_like(delay, math.nan), delay)


def interaural_errors(estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
    """How far the ears' differences in an extraction are from the true sound's.

    Args:
        estimate, target: (..., 2, N) at 16 kHz.

    Returns:
        delta_itd_us, delta_ild_db: (...) absolute errors; NaN where one of them has none.
        in_phase: 1 where both ears have the true sound's polarity, else 0; SI-SNR doesn't see it
        when an ear comes out inverted, a listener does. NaN where an ear is silent.
    """
    estimate, target = estimate.float(), target.float()
    product = (estimate * target).sum(-1)
    in_phase = (product > 0).all(-1).float()
    silent = (estimate.square().sum(-1) <= 0).any(-1) | (target.square().sum(-1) <= 0).any(-1)
    return {
        "in_phase": torch.where(silent, torch.full_like(in_phase, math.nan), in_phase),
        "delta_itd_us": (
            interaural_time_difference(estimate) - interaural_time_difference(target)
        ).abs(),
        "delta_ild_db": (
            interaural_level_difference(estimate) - interaural_level_difference(target)
        ).abs(),
    }


def oracle_mask(
    target: Tensor, others: Tensor, binary: bool = False, n_fft: int = 512, hop: int = 128
) -> Tensor:
    """What a mask could extract at best that knows all sources: reference of mask-based systems.

    Applied to the mixture's spectrogram (Hann, 32 ms, hop 8 ms) at each ear, as in Luo and
    Mesgarani, "Conv-TasNet", 2019, section III-D: the ideal ratio mask |S| / sum |S_j|, or the
    ideal binary mask, 1 where the source is louder than each other one.

    Args:
        target: (..., 2, N).
        others: (..., J, 2, N), all else in the mixture, noise too.
        binary: the binary mask.

    Returns:
        (..., 2, N).
    """
    everything = torch.cat([target.unsqueeze(-3), others], -3)
    *lead, count, ears, samples = everything.shape
    window = torch.hann_window(n_fft, device=target.device)
    spectrum = torch.stft(everything.reshape(-1, samples), n_fft, hop, window=window,
                          return_complex=True)
    spectrum = spectrum.reshape(*lead, count, ears, *spectrum.shape[-2:])
    magnitude = spectrum.abs()
    wanted, rest = magnitude[..., 0, :, :, :], magnitude[..., 1:, :, :, :]
    if binary:
        mask = (wanted > rest.amax(-4)).float() if count > 1 else torch.ones_like(wanted)
    else:
        mask = wanted / (wanted + rest.sum(-4)).clamp_min(1e-12)
    masked = spectrum.sum(-4) * mask
    audio = torch.istft(masked.reshape(-1, *masked.shape[-2:]), n_fft, hop, window=window,
                        length=samples)
    return audio.reshape(*lead, ears, samples)


# -- intervals -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap confidence interval.

    `n` values from `clusters` recordings; all NaN when there was no value.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int


def bootstrap(
    values, clusters, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean and percentile interval over resampled recordings.

    Queries of one recording are alike, so that whole recordings are drawn with replacement, not
    mixtures: the interval answers how the figure would move with other recordings. (That the
    interferers repeat too is not modelled.)

    Args:
        values: (n,); NaN is left out.
        clusters: (n,) recording of each value, any hashable or integer.
        resamples: number of bootstrap samples.
        level: coverage of the interval.
        seed: of the resampling.

    Returns:
        Interval; with a single recording there is no interval and low = high = NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    clusters = np.asarray(clusters)
    if values.shape != clusters.shape or values.ndim != 1:
        raise ValueError(f"values {values.shape} and clusters {clusters.shape} must be equal, 1-D")
    kept = ~np.isnan(values)
    values, clusters = values[kept], clusters[kept]
    if not values.size:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    names, index = np.unique(clusters, return_inverse=True)
    count = len(names)
    mean = float(values.mean())
    if count == 1:
        return Interval(mean, math.nan, math.nan, values.size, 1)
    sums = np.bincount(index, values, count)
    sizes = np.bincount(index, minlength=count)
    draws = np.random.default_rng(seed).integers(0, count, (resamples, count))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), values.size, count)


def bootstrap_auroc(
    confidence, present, clusters, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Area under the ROC curve of presence, with the interval of `bootstrap`.

    The area is the chance that a present query gets a higher confidence than an absent one; ties
    count half, 0.5 is guessing.

    Args:
        confidence: (n,).
        present: (n,) bool.
        clusters: (n,) recording of each query.

    Returns:
        Interval; all NaN unless there are both present and absent queries.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    present, clusters = np.asarray(present, dtype=bool), np.asarray(clusters)
    names, index = np.unique(clusters, return_inverse=True)
    if not present.any() or present.all():
        return Interval(math.nan, math.nan, math.nan, present.size, len(names))
    area = float(binary_auroc(torch.as_tensor(confidence), torch.as_tensor(present).long()))
    areas = [
        weighted_auroc(confidence, present, weight)
        for weight in _weights(index, len(names), resamples, seed)
    ]
    low, high = np.nanquantile(areas, [(1 - level) / 2, (1 + level) / 2])
    return Interval(area, float(low), float(high), present.size, len(names))


def bootstrap_auroc_difference(
    before, after, present, clusters, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """By how much the area under the ROC curve differs between two models, same queries.

    Args:
        before, after: (n,) confidences of the two models.
        present, clusters: as in `bootstrap_auroc`.

    Returns:
        Interval of after less before.
    """
    before, after = (np.asarray(value, dtype=np.float64) for value in (before, after))
    present, clusters = np.asarray(present, dtype=bool), np.asarray(clusters)
    names, index = np.unique(clusters, return_inverse=True)
    if not present.any() or present.all():
        return Interval(math.nan, math.nan, math.nan, present.size, len(names))

    def difference(weight: np.ndarray) -> float:
        return weighted_auroc(after, present, weight) - weighted_auroc(before, present, weight)

    found = [difference(weight) for weight in _weights(index, len(names), resamples, seed)]
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(difference(np.ones(present.size)), float(low), float(high), present.size,
                    len(names))


def _weights(index: np.ndarray, count: int, resamples: int, seed: int):
    """How often each value is drawn when whole recordings are, (n,) per resample."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        weight = np.bincount(generator.integers(0, count, count), minlength=count)
        yield weight[index].astype(np.float64)


def weighted_auroc(confidence: np.ndarray, present: np.ndarray, weight: np.ndarray) -> float:
    """Area under the ROC curve of weighted values (n,), ties count half; NaN without both sorts."""
    levels, rank = np.unique(confidence, return_inverse=True)
    positive = np.bincount(rank, weight * present, len(levels))
    negative = np.bincount(rank, weight * ~present, len(levels))
    pairs = positive.sum() * negative.sum()
    if not pairs:
        return math.nan
    below = np.cumsum(negative) - 0.5 * negative
    return float((positive * below).sum() / pairs)


def chance_levels(sources: int) -> dict[str, float]:
    """What guessing gives, to read the figures against.

    A direction drawn uniformly, an extraction that is any of the `sources` sounds, a confidence
    without information, and the mixture as the extraction.
    """
    return {
        "si_snri": 0.0,
        "sdri": 0.0,
        "right_source": 1.0 / sources,
        "within_5": 10.0 / 360.0,
        "within_10": 20.0 / 360.0,
        "doa_error": 90.0,
        "auroc": 0.5,
    }
