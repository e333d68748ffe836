"""The paper's networks: GCC-PHAT maps and text, fused by concatenation or cross-attention.

Axis letters: B batch, M microphones, N samples, P pairs, T frames, Q queries, L text tokens, E text
width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ResNetConfig as TransformersResNetConfig
from transformers import ResNetModel

from ..config import AZIMUTH_BINS
from ..layers import position_embedding_1d
from ..text import sentence_embedding
from .config import TselConfig
from .features import gcc_maps


class GccConcat(nn.Module):
    """Maps through ResNet-18 beside the text, one fully connected layer (equations 2 and 5)."""

    def __init__(self, config: TselConfig):
        super().__init__()
        size, text = config.resnet, config.text.embedding
        self.resnet = ResNetModel(TransformersResNetConfig(
            num_channels=len(config.array.pairs), embedding_size=size.embedding,
            hidden_sizes=list(size.widths), depths=list(size.depths), layer_type="basic"))
        width = size.widths[-1] + text * (2 if config.clap_audio else 1)
        # one linear layer adds what it makes of the sound and of the text, and so can't choose one
        # of two sounds by the text: a hidden layer can
        self.hidden = nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU()) \
            if config.hidden else nn.Identity()
        self.classifier = nn.Linear(config.hidden or width, AZIMUTH_BINS)

    def forward(self, maps: Tensor, tokens: Tensor, mask: Tensor, semantic: Tensor | None
                ) -> Tensor:
        """(B, P, T, lags) and text of Q queries → (B, Q, 360)."""
        audio = self.resnet(maps).pooler_output.flatten(1)
        if semantic is not None:
            audio = torch.cat([audio, semantic.to(audio)], dim=-1)
        text = sentence_embedding(tokens, mask)
        both = [audio[:, None].expand(-1, text.shape[1], -1), text.to(audio)]
        return self.classifier(self.hidden(torch.cat(both, dim=-1)))


class GccRecurrent(nn.Module):
    """Each frame's maps beside the text through an LSTM (section VI.C, moving sounds)."""

    def __init__(self, config: TselConfig):
        super().__init__()
        size = config.sequence
        inputs = len(config.array.pairs) * config.gcc.lags + config.text.embedding
        self.lstm = nn.LSTM(inputs, size.lstm_width, size.lstm_layers, batch_first=True)
        self.classifier = nn.Linear(size.lstm_width, AZIMUTH_BINS)

    def forward(self, maps: Tensor, tokens: Tensor, mask: Tensor, semantic: Tensor | None
                ) -> Tensor:
        """(B, P, T, lags) and text of Q queries → (B, Q, T, 360)."""
        frames = maps.transpose(1, 2).flatten(2)  # B T P·lags
        text = sentence_embedding(tokens, mask).to(frames)
        batch, queries = text.shape[:2]
        both = torch.cat([frames[:, None].expand(-1, queries, -1, -1),
                          text[:, :, None].expand(-1, -1, frames.shape[1], -1)], dim=-1)
        states, _ = self.lstm(both.flatten(0, 1))
        return self.classifier(states).unflatten(0, (batch, queries))


class GccAttention(nn.Module):
    """Transformer whose decoder asks the encoded text about each frame (equation 6).

    A [CLS] token goes before the frames; its output gives the direction of a clip.
    """

    def __init__(self, config: TselConfig):
        super().__init__()
        size = config.sequence
        self.per_frame = config.output == "frames"
        self.frames = nn.Linear(len(config.array.pairs) * config.gcc.lags, size.width)
        self.text = nn.Linear(config.text.embedding, size.width)
        self.cls = nn.Parameter(torch.randn(1, 1, size.width) * 0.02)
        self.transformer = nn.Transformer(
            size.width, size.heads, size.layers, size.layers, size.feed_forward, size.dropout,
            batch_first=True)
        self.classifier = nn.Linear(size.width, AZIMUTH_BINS)

    def forward(self, maps: Tensor, tokens: Tensor, mask: Tensor, semantic: Tensor | None
                ) -> Tensor:
        """(B, P, T, lags) and text of Q queries → (B, Q, 360), or (B, Q, T, 360) of frames."""
        batch, queries = mask.shape[:2]
        frames = self.frames(maps.transpose(1, 2).flatten(2))
        frames = frames + position_embedding_1d(frames.shape[1], frames.shape[2], frames.device)
        frames = torch.cat([self.cls.expand(batch, -1, -1), frames], dim=1)
        frames = frames.repeat_interleave(queries, 0)
        text, hidden = self.text(tokens).flatten(0, 1), ~mask.flatten(0, 1)
        output = self.transformer(text, frames, src_key_padding_mask=hidden,
                                  memory_key_padding_mask=hidden)
        output = output[:, 1:] if self.per_frame else output[:, 0]
        return self.classifier(output).unflatten(0, (batch, queries))


def gcc_head(config: TselConfig) -> nn.Module:
    """What turns maps and text into directions."""
    if config.fusion == "attention":
        return GccAttention(config)
    return GccRecurrent(config) if config.output == "frames" else GccConcat(config)


def maps_of(audio: Tensor, config: TselConfig) -> Tensor:
    """(B, M, N) → (B, P, T, lags)."""
    size = config.gcc
    return gcc_maps(audio, config.array.pairs, size.hop, size.lags, size.n_fft)
