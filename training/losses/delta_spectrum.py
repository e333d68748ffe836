"""Multi-resolution delta spectrum loss, L_freq of paper 000, equation (1).

Pan, Ge and Li, "A hybrid continuity loss to reduce over-suppression for time-domain target
speaker extraction", Interspeech 2022: spectral convergence and log magnitude distance of the
spectrogram X, its change in time dX and the change of that, ddX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# FFT size, hop and window length in samples at 16 kHz.
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
POWER_FLOOR = 1e-7


def delta(spectrogram: Tensor) -> Tensor:
    """Delta coefficients along the last axis, window 5, ends replicated.

    d_t = sum over n = 1, 2 of n (c_{t+n} - c_{t-n}) / 10. Shape (..., frames), kept.
    """
    shape = spectrogram.shape
    padded = functional.pad(spectrogram.reshape(1, -1, shape[-1]), (2, 2), mode="replicate")
    padded = padded.reshape(*shape[:-1], shape[-1] + 4)
    near = padded[..., 3:-1] - padded[..., 1:-3]
    far = padded[..., 4:] - padded[..., :-4]
    return torch.add(near, far, alpha=2.0).mul_(0.1)


def magnitude(signal: Tensor, fft: int, hop: int, window: Tensor) -> Tensor:
    """Magnitude spectrogram (..., fft // 2 + 1, frames) of (..., samples), at least 3.2e-4."""
    spectrum = torch.stft(
        signal.reshape(-1, signal.shape[-1]),
        fft,
        hop,
        window.numel(),
        window,
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    result = power.clamp_min(POWER_FLOOR).sqrt()
    return result.reshape(*signal.shape[:-1], *result.shape[-2:])


class DeltaSpectrumLoss(nn.Module):
    """L_sc + L_mag, averaged over the resolutions; scale-sensitive, lower is better, 0 at best.

    L_sc = sum over Z in {X, dX, ddX} of ||Z_target - Z_estimate||_F / ||Z_target||_F,
    L_mag = the same sum of the mean absolute difference, with X the natural log magnitude.

    Args:
        resolutions: (FFT size, hop, window length) triples in samples; Hann windows.
        norm: "item" takes each Frobenius norm over one item (its ears, bins and frames), so that
            items weigh the same whatever their level; "batch" takes it over the whole batch, as
            the cited authors' code does (its value is the mean over the items then).
    """

    def __init__(
        self,
        resolutions: tuple[tuple[int, int, int], ...] = RESOLUTIONS,
        norm: str = "item",
    ):
        super().__init__()
        if norm not in ("item", "batch"):
            raise ValueError(f"norm is {norm!r}; use 'item' or 'batch'")
        self.resolutions = tuple(tuple(r) for r in resolutions)
        self.norm = norm
        for index, (_, _, length) in enumerate(self.resolutions):
            self.register_buffer(f"window{index}", torch.hann_window(length), persistent=False)

    def _convergence(self, difference: Tensor, reference: Tensor) -> Tensor:
        if self.norm == "batch":
            difference, reference = difference[None], reference[None]
        # The floor is the norm of a spectrogram that lies at POWER_FLOOR throughout. X never
        # falls below it; dX and ddX do for a silent target, which would divide by zero.
        floor = (reference[0].numel() * POWER_FLOOR) ** 0.5
        # A norm has no gradient at zero: clamp the energy, not the norm.
        numerator = difference.square().flatten(1).sum(1).clamp_min(1e-20).sqrt()
        denominator = reference.square().flatten(1).sum(1).sqrt().clamp_min(floor)
        return numerator / denominator

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """(B, ..., samples) twice -> (B,). The signals must be longer than half the largest FFT."""
        estimate, target = estimate.float(), target.detach().float()
        longest = max(fft for fft, _, _ in self.resolutions)
        if estimate.shape[-1] <= longest // 2:
            raise ValueError(
                f"the delta spectrum loss needs more than {longest // 2} samples, "
                f"got {estimate.shape[-1]}"
            )
        total = estimate.new_zeros(estimate.shape[0])
        for index, (fft, hop, _) in enumerate(self.resolutions):
            window = getattr(self, f"window{index}")
            reference = magnitude(target, fft, hop, window)
            guess = magnitude(estimate, fft, hop, window)
            # The delta is linear: the difference of deltas is the delta of the difference.
            error, log_error = guess - reference, guess.log() - reference.log()
            for order in range(3):
                if order:
                    reference, error, log_error = delta(reference), delta(error), delta(log_error)
                total = total + self._convergence(error, reference)
                total = total + log_error.abs().flatten(1).mean(1)
        return total / len(self.resolutions)
