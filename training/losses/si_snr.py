"""Scale-invariant signal-to-noise ratio, L_SI-SNR of paper 000, section 2.2.

Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, with the zero mean and the eps of
1e-6 that the hybrid continuity loss (Pan et al., Interspeech 2022) trains with.
"""

import torch
from torch import Tensor


def si_snr(estimate: Tensor, target: Tensor, eps: float = 1e-6, upright: bool = False) -> Tensor:
    """SI-SNR in dB of each signal, higher is better.

    Args:
        estimate: (..., samples).
        target: (..., samples), broadcastable with `estimate`.
        eps: added to energies and to the ratio. It bounds the value from below at -60 dB and
            keeps gradients finite where either signal is silent.
        upright: an inverted estimate counts as one without the target. SI-SNR itself doesn't see
            the sign, and an ear that comes out inverted spoils the interaural phase.

    Returns:
        (...) dB.
    """
    estimate, target = estimate.float(), target.float()
    estimate = estimate - estimate.mean(-1, keepdim=True)
    target = target - target.mean(-1, keepdim=True)
    scale = (estimate * target).sum(-1, keepdim=True) / (
        target.square().sum(-1, keepdim=True) + eps
    )
    if upright:
        scale = scale.clamp_min(0)
    projection = scale * target
    noise = estimate - projection
    ratio = projection.square().sum(-1) / (noise.square().sum(-1) + eps)
    return 10.0 * torch.log10(ratio + eps)


def negative_si_snr(estimate: Tensor, target: Tensor, eps: float = 1e-6, upright: bool = False
                    ) -> Tensor:
    """Negative SI-SNR, averaged over the ears; lower is better.

    Args:
        estimate: (B, ears, samples).
        target: (B, ears, samples). A silent target gives the constant +60 dB with no gradient:
            leave absent sounds out and give them `absent_energy` instead.

    Returns:
        (B,) dB, at most 60.
    """
    return -si_snr(estimate, target, eps, upright).mean(-1)


def inversion(estimate: Tensor, target: Tensor, margin: float = 0.1) -> Tensor:
    """How inverted each ear is: 0 where its correlation with the target is above ``margin``.

    Args:
        estimate, target: (B, ears, samples).

    Returns:
        (B,) in [0, 1 + margin], averaged over the ears.
    """
    correlation = torch.cosine_similarity(estimate.float(), target.float(), dim=-1, eps=1e-6)
    return torch.relu(margin - correlation).mean(-1)
