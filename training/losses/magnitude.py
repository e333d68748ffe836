"""Scale-sensitive distance of compressed magnitude spectrograms.

SI-SNR leaves the gain of the output free; this term pins it, and weighs quiet components up by
the power-law compression usual in speech enhancement.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CompressedMagnitudeLoss(nn.Module):
    """Mean of | |X|^a - |Y|^a | relative to the level of the mixture; lower is better, 0 at best.

    Dividing by the mixture's level makes the loss independent of the recording gain while the
    level of the target *within* the mixture still counts. With a silent target it is an energy
    penalty on the estimate, so it serves absent sounds too.

    Args:
        fft, hop: STFT in samples, Hann window of the FFT's length.
        exponent: a, the power-law compression.
        floor: added to the power of each bin, relative to the mixture's mean power; bounds the
            gradient of the compression at silence.
    """

    def __init__(self, fft: int = 512, hop: int = 256, exponent: float = 0.5, floor: float = 1e-5):
        super().__init__()
        self.fft, self.hop, self.exponent, self.floor = fft, hop, exponent, floor
        self.register_buffer("window", torch.hann_window(fft), persistent=False)

    def _compressed(self, signal: Tensor) -> Tensor:
        spectrum = torch.stft(
            signal.reshape(-1, signal.shape[-1]),
            self.fft,
            self.hop,
            self.fft,
            self.window,
            normalized=True,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square() + self.floor
        power = power.sqrt().sqrt() if self.exponent == 0.5 else power ** (self.exponent / 2)
        return power.reshape(signal.shape[0], -1)

    def forward(self, estimate: Tensor, target: Tensor, mixture: Tensor | None = None) -> Tensor:
        """Distance per item.

        Args:
            estimate, target: (B, ears, samples).
            mixture: (B, ears, samples), whose RMS over ears and samples is the unit; the target
                stands in when it is left out.

        Returns:
            (B,).
        """
        estimate, target = estimate.float(), target.detach().float()
        reference = target if mixture is None else mixture.detach().float()
        level = reference.flatten(1).square().mean(1).sqrt().clamp_min(1e-5)[:, None, None]
        error = self._compressed(estimate / level) - self._compressed(target / level)
        return error.abs().mean(1)
