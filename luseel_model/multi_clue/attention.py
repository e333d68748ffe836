"""Encoders of the clues and of the mixture, and the attention that joins them (paper 003, section
3).

Letters: B mixtures, Q queries, T_a frames of the sound encoder, L places of the clues, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MultiClueConfig, SoundConfig


@dataclass
class Clues:
    """What is given of Q queries for each of B mixtures; a clue that is None is given to nobody.

    Attributes:
        tag: (B, Q, tags) one-hot (several ones are allowed); all zeros where there is no tag.
        text: (B, Q, L_t, E_t) token embeddings, and their (B, Q, L_t) bool mask.
        video: (B, Q, L_v, E_v) embeddings of frames, and their (B, Q, L_v) bool mask.
    """

    tag: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    video: Tensor | None = None
    video_mask: Tensor | None = None

    def only(self, *names: str) -> Clues:
        """With the clues of these names alone ('tag', 'text', 'video')."""
        return replace(self, **{field: None for field in vars(self)
                                if field.split("_")[0] not in names})

    def to(self, device: torch.device | str) -> Clues:
        return Clues(*(v if v is None else v.to(device) for v in vars(self).values()))


def mel_filters(config: SoundConfig, sample_rate: int) -> Tensor:
    """Triangular filters of unit peak, evenly spaced on the mel scale: (bins, mel_bands)."""
    def mel(frequency: float) -> float:
        return 2595.0 * np.log10(1.0 + frequency / 700.0)
    points = np.linspace(mel(config.lowest), mel(config.highest), config.mel_bands + 2)
    edges = 700.0 * (10.0 ** (points / 2595.0) - 1.0)
    frequency = np.linspace(0, sample_rate / 2, config.n_fft // 2 + 1)[:, None]
    rise = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    filters = np.minimum(rise, fall).clip(min=0)
    # low bands may lie between two bins: they take the nearest
    empty = np.flatnonzero(filters.sum(0) == 0)
    filters[np.abs(frequency - edges[1:-1]).argmin(0)[empty], empty] = 1.0
    return torch.from_numpy(filters.astype(np.float32))


class SoundEncoder(nn.Module):
    """Frame-wise embeddings of a mixture, before the pooling over time of a tagger.

    The paper takes PANNs; here the tagger is trained on the corpus in the first stage.
    """

    def __init__(self, config: SoundConfig, sample_rate: int):
        super().__init__()
        self.config = config
        self.register_buffer("filters", mel_filters(config, sample_rate), persistent=False)
        self.norm = nn.BatchNorm1d(config.mel_bands)
        blocks, inputs = [], 1
        for outputs in config.channels:
            layers: list[nn.Module] = []
            for _ in range(config.convolutions):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                           nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, N) audio of unit RMS to (B, T_a, channels[-1])."""
        config = self.config
        window = torch.hann_window(config.n_fft, device=audio.device)
        power = torch.stft(audio.float(), config.n_fft, config.hop, window=window,
                           return_complex=True).abs().square()
        mel = torch.log(power.transpose(1, 2) @ self.filters + 1e-3)  # B T bands
        x = self.norm(mel.transpose(1, 2)).transpose(1, 2)[:, None]
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number < config.halvings:
                x = F.avg_pool2d(x, 2)
            x = F.dropout(x, config.dropout, self.training)
        return x.mean(3).transpose(1, 2)


class Projection(nn.Sequential):
    """Modality projection net: LayerNorm, fully connected layer, ReLU."""

    def __init__(self, inputs: int, width: int):
        super().__init__(nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.ReLU())


class ClueProcessing(nn.Module):
    """Multi-clue processing net: the mixture asks, whatever clues there are answer.

    The sequence that is attended to always has the same places (text, video, tag); those without a
    clue are zeros with no weight. So a missing clue gives the same numbers, bit for bit, as one
    that was never there.
    """

    def __init__(self, config: MultiClueConfig):
        super().__init__()
        width = config.backbone.width
        self.slots = config.clue_slots
        self.sound = SoundEncoder(config.sound, config.sample_rate)
        self.project_sound = Projection(config.sound.channels[-1], width)
        self.project_text = Projection(config.text.embedding, width)
        self.project_video = Projection(config.video.image.embedding, width)
        self.tag = nn.Linear(config.tags, width)
        nn.init.normal_(self.tag.weight, std=0.5)  # one-hot: as large as projected words
        self.attention = nn.MultiheadAttention(
            width, config.attention.heads, config.attention.dropout, batch_first=True)
        self.tagger = nn.Linear(2 * config.sound.channels[-1], config.tags)

    def tag_logits(self, frames: Tensor) -> Tensor:
        """What the sound encoder's frames (B, T_a, C) say of the whole mixture: (B, tags)."""
        return self.tagger(torch.cat([frames.mean(1), frames.amax(1)], dim=-1))

    def places(self, clues: Clues) -> tuple[Tensor, Tensor]:
        """U of equation 8 in fixed places: (B, Q, L, D), and which of them are taken (B, Q, L).

        Raises:
            ValueError: no clue at all, or a clue longer than its places.
        """
        given = {"text": (clues.text, clues.text_mask, self.project_text),
                 "video": (clues.video, clues.video_mask, self.project_video)}
        parts: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (values, mask, project) in given.items():
            if values is None:
                continue
            if values.shape[2] > self.slots[name]:
                raise ValueError(f"{name} has {values.shape[2]} places, at most "
                                 f"{self.slots[name]} are read")
            spare = self.slots[name] - values.shape[2]
            # whatever lies behind the mask, even NaN, must not be felt
            values = values.masked_fill(~mask[..., None], 0.0)
            parts[name] = project(F.pad(values, (0, 0, 0, spare))), F.pad(mask, (0, spare))
        if clues.tag is not None:
            parts["tag"] = (self.tag(clues.tag.float())[:, :, None],
                            (clues.tag != 0).any(-1)[..., None])
        if not parts:
            raise ValueError("no clue is given")
        some = next(iter(parts.values()))[0]
        for name, count in self.slots.items():
            if name not in parts:
                shape = (*some.shape[:2], count)
                parts[name] = some.new_zeros(*shape, some.shape[-1]), \
                    torch.zeros(shape, dtype=torch.bool, device=some.device)
        keys = torch.cat([parts[name][0] for name in self.slots], dim=2)
        mask = torch.cat([parts[name][1] for name in self.slots], dim=2)
        return keys.masked_fill(~mask[..., None], 0.0), mask

    def forward(self, frames: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        """Fused clues and the weights that made them.

        Args:
            frames: (B, T_a, C) of the sound encoder.
            clues: of Q queries each.
        Returns:
            (B, Q, T_a, D), zero for a query without any clue, and (B, Q, heads, T_a, L): each row
            sums to 1 over the places that are taken.
        """
        keys, mask = self.places(clues)
        batch, count = mask.shape[:2]
        empty = ~mask.any(-1)
        # without any clue, attention over nothing is undefined: let it look at zeros, and drop it
        closed = ~(mask | empty[..., None])
        query = self.project_sound(frames)
        query = query[:, None].expand(-1, count, -1, -1).flatten(0, 1)
        keys = keys.flatten(0, 1)
        fused, weights = self.attention(query, keys, keys, key_padding_mask=closed.flatten(0, 1),
                                        average_attn_weights=False)
        fused = fused.masked_fill(empty.flatten()[:, None, None], 0.0)
        return fused.unflatten(0, (batch, count)), weights.unflatten(0, (batch, count))

    def single(self, keys: Tensor) -> Tensor:
        """What the attention gives where ``keys`` (..., D) is the only clue: (..., D)."""
        weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        width = weight.shape[1]
        values = F.linear(keys, weight[2 * width:], bias[2 * width:])
        return self.attention.out_proj(values)
