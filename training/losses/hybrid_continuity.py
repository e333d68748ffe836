"""Hybrid continuity loss, L_signal of paper 000, equation (1)."""

from torch import Tensor, nn

from training.losses.delta_spectrum import RESOLUTIONS, DeltaSpectrumLoss
from training.losses.si_snr import negative_si_snr


class HybridContinuityLoss(nn.Module):
    """L_signal = L_SI-SNR + L_freq (Pan et al., Interspeech 2022); lower is better.

    Args:
        resolutions, norm: see `DeltaSpectrumLoss`.
    """

    def __init__(self, resolutions=RESOLUTIONS, norm: str = "item"):
        super().__init__()
        self.delta_spectrum = DeltaSpectrumLoss(resolutions, norm)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """(B, ears, samples) twice -> (B,): dB of negative SI-SNR plus the spectral distance."""
        return negative_si_snr(estimate, target) + self.delta_spectrum(estimate, target)
