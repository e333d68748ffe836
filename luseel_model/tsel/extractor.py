"""TSEL in use: windows of an array's audio and words in, directions out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Sequence

import torch
from torch import Tensor

from ..arrays import MicrophoneArray
from ..calibration import Calibration
from ..inference import Extractor, WindowTensors
from ..query import Capabilities, Query
from ..text import pad_embeddings
from .config import TselConfig
from .network import Tsel, TselOutput
from .text import ClapAudio, text_encoder


class TselExtractor(Extractor):
    """See :class:`~luseel_model.inference.Extractor`. It locates, and extracts nothing.

    Args:
        text: encoder of the queries, with ``embed``; default: the one that the network's
            configuration names.
    """

    def __init__(self, network: Tsel, name: str = "", info: dict | None = None,
                 calibration: Calibration | None = None, text: Any | None = None):
        super().__init__(network, name, info, calibration)
        self._text = text or text_encoder(self.config.text, self.device)
        self._clap = ClapAudio(self.config.text, self.device) if self.config.clap_audio else None

    @staticmethod
    def capabilities_of(config: TselConfig) -> Capabilities:
        return Capabilities(frozenset({"text"}), sound=False, microphones=config.array.microphones)

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.capabilities_of(self.config), microphones=self.array.microphones)

    @property
    def array(self) -> MicrophoneArray:
        """The microphones it listens with."""
        return self.network.array

    def set_array(self, array: MicrophoneArray) -> None:
        """Listen with another array.

        Raises:
            ConfigError: the network has learnt its own.
        """
        self.network.set_array(array)

    def _run(self, mixture: Tensor, queries: Sequence[Query]) -> TselOutput:
        tokens, mask = pad_embeddings(self._text.embed([query.text for query in queries]))
        batch = mixture.shape[0]
        semantic = self._clap.embed(mixture, self.sample_rate) if self._clap else None
        return self.network(mixture, tokens.expand(batch, -1, -1, -1).to(self.device),
                            mask.expand(batch, -1, -1).to(self.device), semantic)

    def _infer(self, mixture: Tensor, queries: Sequence[Query]) -> WindowTensors:
        output = self._run(mixture, queries)
        likelihood = self.network.likelihood(output.logits)
        if self.config.output == "frames":
            # frames that are surer of a direction say more about the window's
            weight = likelihood.amax(-1, keepdim=True)
            likelihood = (likelihood * weight).sum(2) / weight.sum(2).clamp(min=1e-6)
        confidence = likelihood.amax(-1) if output.presence is None else output.presence.sigmoid()
        return WindowTensors(None, confidence, likelihood)

    @torch.inference_mode()
    def follow(self, window: Tensor, queries: Sequence[str | Query]) -> Tensor:
        """Directions over time, from a network for moving sounds.

        Args:
            window: (M, n) at the model's rate, n up to ``window_samples``.
        Returns:
            (Q, T, 360) likelihood in [0, 1] at ``config.frame_times``.
        Raises:
            ValueError: the network gives one direction a clip.
            QueryError: a query can't be used.
        """
        if self.config.output != "frames":
            raise ValueError(f"the model {self.name} gives one direction a window: use one whose "
                             "output is 'frames'")
        checked = [self.check_query(query) for query in queries]
        window = window.detach().to(self.device, torch.float32)
        window = torch.nn.functional.pad(window, (0, self.window_samples - window.shape[-1]))
        return self.network.likelihood(self._run(window[None], checked).logits)[0]
