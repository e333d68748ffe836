"""Complex-valued layers of DCCRN (Hu et al., Interspeech 2020; paper 003, equations 2 to 4).

A complex tensor is a real one whose first half of the channels is the real part and whose second
half is the imaginary part. Letters: B batch, C channels (both halves), F frequencies, T frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def complex_cat(parts: list[Tensor]) -> Tensor:
    """Concatenate complex tensors (B, C_i, F, T) along their channels."""
    halves = [part.chunk(2, dim=1) for part in parts]
    return torch.cat([half[0] for half in halves] + [half[1] for half in halves], dim=1)


class _ComplexWeights(nn.Module):
    """Real and imaginary kernels, and the one real kernel that multiplies by both at once."""

    def __init__(self, first: int, second: int, kernel: tuple[int, int], outputs: int):
        super().__init__()
        self.real = nn.Parameter(torch.empty(first, second, *kernel))
        self.imaginary = nn.Parameter(torch.empty(first, second, *kernel))
        self.bias = nn.Parameter(torch.zeros(2 * outputs))
        nn.init.normal_(self.real, std=0.05)
        nn.init.normal_(self.imaginary, std=0.05)

    def _kernel(self, transposed: bool) -> Tensor:
        # (a + bi)(x + yi): rows are the outputs, a transposed convolution has them second
        sign = -1 if transposed else 1
        top = torch.cat([self.real, -sign * self.imaginary], dim=1)
        bottom = torch.cat([sign * self.imaginary, self.real], dim=1)
        return torch.cat([top, bottom], dim=0)


class ComplexConv2d(_ComplexWeights):
    """Complex convolution, strided along frequency, causal along time.

    Args:
        inputs, outputs: channels, both halves together, even.
        kernel: along frequency (odd) and time.
        stride: along frequency.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int):
        super().__init__(outputs // 2, inputs // 2, kernel, outputs // 2)
        self.stride, self.padding, self.past = stride, kernel[0] // 2, kernel[1] - 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, F, T) to (B, outputs, ceil(F / stride), T)."""
        x = F.pad(x, (self.past, 0))
        return F.conv2d(x, self._kernel(False), self.bias, (self.stride, 1), (self.padding, 0))


class ComplexConvTranspose2d(_ComplexWeights):
    """Complex transposed convolution, the mirror of :class:`ComplexConv2d`; a frame sees the
    ``kernel[1] - 1`` frames after it."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int):
        super().__init__(inputs // 2, outputs // 2, kernel, outputs // 2)
        self.stride, self.padding, self.ahead = stride, kernel[0] // 2, kernel[1] - 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, F, T) to (B, outputs, F · stride, T)."""
        y = F.conv_transpose2d(x, self._kernel(True), self.bias, (self.stride, 1),
                               (self.padding, 0), (self.stride - 1, 0))
        return y[..., self.ahead:]


class ComplexLSTM(nn.Module):
    """Two bidirectional LSTMs, multiplied like complex numbers (equations 2 to 4), and a projection
    of each part back to the width of the input.

    Args:
        width: of the real and of the imaginary input.
        hidden: units of each LSTM in each direction.
        layers: of each LSTM.
    """

    def __init__(self, width: int, hidden: int, layers: int):
        super().__init__()
        self.real = nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=True)
        self.imaginary = nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=True)
        self.project_real = nn.Linear(2 * hidden, width)
        self.project_imaginary = nn.Linear(2 * hidden, width)

    def combine(self, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """F_out of equation 4, (B, T, 2 hidden) each, of inputs (B, T, width)."""
        both = torch.cat([real, imaginary])  # each LSTM sees both parts: one pass does
        rr, ir = self.real(both)[0].chunk(2)
        ri, ii = self.imaginary(both)[0].chunk(2)
        return rr - ii, ri + ir

    def forward(self, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, width) twice; the same out."""
        real, imaginary = self.combine(real, imaginary)
        return self.project_real(real), self.project_imaginary(imaginary)
