"""The five systems of paper 000, what the paper's Table 1 says of them, and how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from luseel_model.checkpoint import read_checkpoint
from luseel_model.errors import CheckpointError
from luseel_model.inference import Extractor, pick_device
from luseel_model.luseel import LuSeeLExtractor
from training.benchmark.render import BenchmarkMixture, Renderer
from training.tasks.luseel import NETWORKS


@dataclass(frozen=True)
class System:
    """A system of the table; ``key`` is its configuration in training/configs/ablation and paper.

    ``tagged``: it has an audio encoder, and so starts from ablation/tags.
    """

    key: str
    name: str
    extracts: bool
    locates: bool
    gcc_phat: bool
    channels: int

    @property
    def tagged(self) -> bool:
        return self.extracts

    @property
    def tasks(self) -> str:
        return {(True, True): "both", (True, False): "extraction"}.get(
            (self.extracts, self.locates), "localization")


#: In the order of the paper's Table 1.
SYSTEMS = (
    System("t-htdemucs", "T-HTDemucs", True, False, False, 1),
    System("mlp-gcc", "MLP-GCC", False, True, True, 2),
    System("luseel-no-localization", "LuSeeL†", True, False, False, 2),
    System("luseel-no-gcc", "LuSeeL°", True, True, False, 2),
    System("luseel", "LuSeeL", True, True, True, 2),
)
BY_KEY = {system.key: system for system in SYSTEMS}

#: Table 1 of the paper by number of sounds and system: SI-SNRi and SDRi in dB, share within 5°,
#: mean absolute error in degrees.
PAPER: dict[tuple[int, str], dict[str, float]] = {
    (2, "t-htdemucs"): {"si_snri": 7.7, "sdri": 8.7},
    (2, "mlp-gcc"): {"within_5": 0.411, "doa_error": 51.6},
    (2, "luseel-no-localization"): {"si_snri": 17.6, "sdri": 18.8},
    (2, "luseel-no-gcc"): {"si_snri": 20.1, "sdri": 21.4, "within_5": 0.880, "doa_error": 7.2},
    (2, "luseel"): {"si_snri": 20.3, "sdri": 21.6, "within_5": 0.899, "doa_error": 7.0},
    (3, "t-htdemucs"): {"si_snri": 6.8, "sdri": 7.7},
    (3, "mlp-gcc"): {"within_5": 0.265, "doa_error": 65.7},
    (3, "luseel-no-localization"): {"si_snri": 10.5, "sdri": 11.3},
    (3, "luseel-no-gcc"): {"si_snri": 13.3, "sdri": 14.2, "within_5": 0.751, "doa_error": 17.2},
    (3, "luseel"): {"si_snri": 12.9, "sdri": 13.7, "within_5": 0.778, "doa_error": 15.5},
}


def load_system(path: str | Path, device: str | torch.device | None = None) -> Extractor:
    """A trained system, ready to be asked; MLP-GCC gives the mixture back as its extraction.

    Raises:
        CheckpointError: missing or damaged, or of another version.
    """
    config, state, info = read_checkpoint(path)
    kind = info.get("network", "luseel")
    if kind not in NETWORKS:
        raise CheckpointError(f"{path} is of an unknown network {kind!r}: update this package")
    network = NETWORKS[kind](config)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights don't fit the configuration in it: {error}"
                              ) from None
    return LuSeeLExtractor(network.to(pick_device(device)), Path(path).parent.name, info)


def hears_one_ear(model: Extractor) -> bool:
    """Whether the system was trained on the left ear alone."""
    return model.config.audio_channels == 1 or model.info.get("ears") == "left"


class LeftEar(Renderer):
    """The mixtures as the left ear hears them, in both channels: for systems that hear one."""

    def __getitem__(self, index: int) -> BenchmarkMixture:
        mixture = super().__getitem__(index)
        noise = None if mixture.noise is None else mixture.noise[[0, 0]]
        return replace(mixture, audio=mixture.audio[[0, 0]], sources=mixture.sources[:, [0, 0]],
                       noise=noise)
