"""ID-USS in use: windows of binaural audio and pictures in, sounds and directions out."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..calibration import Calibration
from ..heads import Head
from ..images import ImageEncoder
from ..inference import Extractor, WindowTensors, energy_share
from ..interaural_direction import head_cross_spectra, interaural_likelihood
from ..query import Capabilities, Query
from .config import IDUSSConfig
from .network import IDUSS


class IDUSSExtractor(Extractor):
    """See :class:`~luseel_model.inference.Extractor`.

    The direction is that of the extracted ears, from the responses of the head in the checkpoint
    or the one given to :meth:`set_head`; without any, those of a sphere.

    Args:
        images: encoder of the pictures; default: the one that the network's configuration names.
    """

    def __init__(self, network: IDUSS, name: str = "", info: dict | None = None,
                 calibration: Calibration | None = None, images: ImageEncoder | None = None):
        super().__init__(network, name, info, calibration)
        self._images = images or ImageEncoder(self.config.image, self.device)
        self._expected: Tensor | None = None
        if network.hrir.any():
            self._set_responses(network.hrir)

    @staticmethod
    def capabilities_of(config: IDUSSConfig) -> Capabilities:
        return Capabilities(frozenset({"image"}))

    def set_head(self, head: Head) -> None:
        self._set_responses(head.hrir)

    def _set_responses(self, hrir: Tensor) -> None:
        self._expected = head_cross_spectra(hrir, self.sample_rate).to(self.device)

    def _infer(self, mixture: Tensor, queries: Sequence[Query]) -> WindowTensors:
        pictures = self._images.embed([query.image for query in queries])
        output = self.network(mixture, pictures.expand(len(mixture), -1, -1))
        confidence = energy_share(output.audio, mixture) if output.presence_logits is None else \
            torch.sigmoid(output.presence_logits.float())
        likelihood = interaural_likelihood(output.audio, self.sample_rate, self._expected)
        return WindowTensors(output.audio, confidence, likelihood)
