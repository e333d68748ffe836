"""LuSeeL in use: windows of binaural audio and words in, sounds and directions out."""

from __future__ import annotations

from typing import Sequence

from torch import Tensor

from ..calibration import Calibration
from ..errors import ConfigError
from ..heads import Head
from ..inference import Extractor, WindowTensors, energy_share
from ..query import Capabilities, Query
from ..text import TextEncoder, pad_embeddings
from .config import LuSeeLConfig
from .network import LuSeeL


class LuSeeLExtractor(Extractor):
    """See :class:`~luseel_model.inference.Extractor`.

    Args:
        text: encoder of the queries; default: the one that the network's configuration names.
    """

    def __init__(self, network: LuSeeL, name: str = "", info: dict | None = None,
                 calibration: Calibration | None = None, text: TextEncoder | None = None):
        super().__init__(network, name, info, calibration)
        self._text = text or TextEncoder(self.config.text, self.device)

    @staticmethod
    def capabilities_of(config: LuSeeLConfig) -> Capabilities:
        return Capabilities(frozenset({"text"}), direction=config.use_localization)

    longer_windows = True

    @property
    def recording_window(self) -> float:
        return self.config.recording_window or self.config.window

    def set_head(self, head: Head) -> None:
        if not self.config.head_search.azimuths:
            raise ConfigError(f"the model {self.name} makes no use of a head's responses: leave "
                              "the head out, or fine-tune the model on it (docs/calibration.md)")
        self.network.head_search.set_head(head.hrir.to(self.device))

    def _infer(self, mixture: Tensor, queries: Sequence[Query]) -> WindowTensors:
        mono = self.config.audio_channels == 1
        inputs = mixture.reshape(-1, 1, mixture.shape[-1]) if mono else mixture
        tokens, mask = pad_embeddings(self._text.embed([query.text for query in queries]))
        batch = inputs.shape[0]
        output = self.network(inputs, tokens.expand(batch, -1, -1, -1), mask.expand(batch, -1, -1))
        audio, likelihood = output.audio, None
        if mono:  # each ear on its own, with the same query
            audio = audio[:, :, 0].unflatten(0, (-1, 2)).transpose(1, 2)
        if output.doa_logits is not None:
            likelihood = self.network.likelihood(output.doa_logits)
        if output.presence_logits is not None:
            confidence = output.presence_logits.sigmoid()
            if mono:
                confidence = confidence.unflatten(0, (-1, 2)).amax(1)
        elif likelihood is not None:
            confidence = likelihood.amax(-1)
        else:
            confidence = energy_share(audio, mixture)
        return WindowTensors(audio, confidence, likelihood, output.gate_logits)
