"""What does each candidate sound like? YAMNet, which has learnt it from AudioSet.

A MobileNet over log mel spectrograms, as far as its last blocks, for the search's candidates
(head_search.py). Batch normalisation is folded into the convolutions: with few sounds a batch its
statistics would be poor. Where the weights come from: training/pretrained_tagger.py.

Plakal and Ellis, *YAMNet* (TensorFlow models, research/audioset/yamnet), 2019; Howard et al.,
*MobileNets: efficient convolutional neural networks for mobile vision applications*, 2017.

Axis letters: N sounds, T frames of 10 ms, M mel bands, W tagging width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from ..layers import SameConv2d

SAMPLE_RATE = 16000
FRAME, HOP, N_FFT = 400, 160, 512  # samples: 25 ms every 10 ms
MEL_BANDS, MEL_LOW, MEL_HIGH, LOG_OFFSET = 64, 125.0, 7500.0, 1e-3
STEM = 32
#: Stride and channels of the blocks.
BLOCKS = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), (1, 512), (1, 512), (1, 512),
          (1, 512), (1, 512), (2, 1024), (1, 1024))


class YAMNet(nn.Module):
    """(N, T, M) log mel spectrograms → (N, C, T/32, M/32) features (with all blocks).

    Args:
        blocks: how many of the 13.
    """

    def __init__(self, blocks: int = len(BLOCKS)):
        super().__init__()
        layers: list[nn.Module] = [SameConv2d(1, STEM, 3, 2), nn.ReLU()]
        width = STEM
        for stride, channels in BLOCKS[:blocks]:
            layers += [SameConv2d(width, width, 3, stride, width), nn.ReLU(),
                       SameConv2d(width, channels, 1), nn.ReLU()]
            width = channels
        self.layers = nn.Sequential(*layers)
        self.width = width
        bank = mel_filter_bank(N_FFT // 2 + 1, MEL_BANDS, MEL_LOW, MEL_HIGH, SAMPLE_RATE,
                               mel_scale="htk", triangularize_in_mel_space=True)
        self.register_buffer("mel", torch.as_tensor(bank, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(FRAME), persistent=False)

    def log_mel(self, sound: Tensor) -> Tensor:
        """(N, ears, samples) at 16 kHz → (N, T, M), of the ears' energies together."""
        spectrum = torch.stft(sound.flatten(0, 1), N_FFT, HOP, FRAME, self.window, center=False,
                              return_complex=True)
        power = spectrum.abs().square().unflatten(0, sound.shape[:2]).mean(1)   # N F T
        return torch.log((power + 1e-12).sqrt().transpose(1, 2) @ self.mel + LOG_OFFSET)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = log_mel[:, None].contiguous(memory_format=torch.channels_last)  # faster on CPUs
        return self.layers(x)
