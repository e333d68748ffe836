"""MLP-GCC, the localization baseline of paper 000 (section 3.2): text and GCC-PHAT alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luseel_model.config import AZIMUTH_BINS
from luseel_model.errors import ConfigError
from luseel_model.features import gcc_phat
from luseel_model.luseel import LuSeeL, LuSeeLConfig
from luseel_model.luseel.network import LuSeeLOutput
from luseel_model.luseel.transformer import TextAdapter
from luseel_model.network import Network


class MLPGCC(Network):
    """The text embedding and the flattened GCC-PHAT go straight into LuSeeL's DoA decoder.

    It takes what :class:`~luseel_model.luseel.LuSeeL` takes and gives the same output, so that
    training and evaluation are the same; it extracts nothing: its ``audio`` is the mixture.

    Args:
        config: text, GCC-PHAT and DoA decoder are read from it, the rest isn't used.
    """

    likelihood = LuSeeL.likelihood

    def __init__(self, config: LuSeeLConfig):
        super().__init__()
        if config.audio_channels != 2 or not (config.use_localization and config.use_gcc_phat):
            raise ConfigError("MLP-GCC needs two audio_channels, use_localization and "
                              "use_gcc_phat")
        self.config, loc = config, config.localization
        self.text_adapter = TextAdapter(config.text)
        sizes = (config.text.width + config.gcc_features, *[loc.hidden] * loc.hidden_layers)
        decoder: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:]):
            decoder += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(loc.dropout)]
        self.decoder = nn.Sequential(*decoder, nn.Linear(loc.hidden, AZIMUTH_BINS))

    def forward(self, mixture: Tensor, tokens: Tensor, mask: Tensor, heads=None, head_index=None
                ) -> LuSeeLOutput:
        """
        Args:
            mixture: (B, 2, N), N = ``config.window_samples``.
            tokens: (B, Q, L, E) frozen token embeddings of Q queries per mixture.
            mask: (B, Q, L) bool, True at real tokens.
            heads, head_index: not used.
        """
        batch, queries = tokens.shape[:2]
        text = self.text_adapter(tokens.flatten(0, 1), mask.flatten(0, 1))
        gcc = gcc_phat(mixture.float(), self.config.gcc_hop_samples,
                       self.config.localization.gcc_lags).flatten(1)
        logits = self.decoder(torch.cat([text, gcc.repeat_interleave(queries, dim=0)], dim=1))
        logits = logits.unflatten(0, (batch, queries))
        return LuSeeLOutput(audio=mixture[:, None].expand(-1, queries, -1, -1),
                            doa_logits=logits, token_doa_logits=logits)
