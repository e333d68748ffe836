"""Training losses, one a file.

All take float tensors with the batch first and return one value per item, (B,), to be minimised
(lower is better), so that the trainer can leave items out (an absent sound has no SI-SNR) and log
each term; `.mean()` gives the training objective. They compute in float32 under autocast too and
keep finite gradients on silence.
"""

from training.losses.absent import absent_energy, absent_queries
from training.losses.delta_spectrum import DeltaSpectrumLoss
from training.losses.doa import (
    LABEL_SCALINGS,
    doa_cross_entropy,
    doa_squared_error,
    gaussian_label,
)
from training.losses.emd import circular_emd, printed_emd
from training.losses.hybrid_continuity import HybridContinuityLoss
from training.losses.magnitude import CompressedMagnitudeLoss
from training.losses.presence import balanced_presence, presence_bce
from training.losses.si_snr import inversion, negative_si_snr, si_snr
from training.losses.spectral_mae import spectral_mae
from training.losses.tags import (
    clip_tag_loss,
    dense_tag_loss,
    energy_shares,
    tagged_sound_loss,
    token_energy_shares,
)

__all__ = [
    "LABEL_SCALINGS",
    "CompressedMagnitudeLoss",
    "DeltaSpectrumLoss",
    "HybridContinuityLoss",
    "absent_energy",
    "absent_queries",
    "balanced_presence",
    "circular_emd",
    "clip_tag_loss",
    "dense_tag_loss",
    "doa_cross_entropy",
    "doa_squared_error",
    "energy_shares",
    "gaussian_label",
    "inversion",
    "negative_si_snr",
    "presence_bce",
    "printed_emd",
    "si_snr",
    "spectral_mae",
    "tagged_sound_loss",
    "token_energy_shares",
]
