"""Which kinds of sound lie in which token: dense and clip-level tag losses.

Before any extraction is learnt, the encoder is trained as a dense tagger: each token of the
spectral grid is classified over the kinds of sounds (by its product with their text embeddings),
with the energy shares of the sources as soft labels.

Letters: B batch, S sources, E ears, N samples, F frequency tokens, T time tokens, K kinds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def token_energy_shares(
    sources: Tensor,
    freq_tokens: int,
    time_tokens: int,
    token_samples: int | None = None,
    fft: int = 1024,
    exponent: float = 0.3,
    frequency_fastest: bool = True,
) -> tuple[Tensor, Tensor]:
    """Share of each source in the energy of every token of the spectral grid, and its weight.

    The grid cuts the signal into `time_tokens` stretches from its start and 0 to Nyquist into
    `freq_tokens` equal bands, as the spectral encoder's strides do.

    Args:
        sources: (B, S, E, N) images of the sources as they are in the mixture.
        freq_tokens, time_tokens: F and T; F must divide fft / 2.
        token_samples: samples per time token, the network's hop times its strides in time; the
            last token may reach beyond the end. N / T when left out.
        fft: FFT size of the analysis in samples.
        exponent: power-law compression of the energy to a weight, so that quiet tokens count
            less than loud ones but not in proportion.
        frequency_fastest: token index t * F + f (the order of HTDemucs's transformer), otherwise
            f * T + t.

    Returns:
        shares: (B, T * F, S), summing to 1 over the sources (to 0 where all are silent).
        weight: (B, T * F), mean 1 over the tokens of an item (0 for a silent item).
    """
    batch, count, ears, samples = sources.shape
    if (fft // 2) % freq_tokens:
        raise ValueError(f"{freq_tokens} frequency tokens don't divide the {fft // 2} bins")
    stretch = token_samples or -(-samples // time_tokens)
    # A whole number of hops per token, each about half an FFT, with its frames centred in it.
    per_token = max(1, round(stretch / (fft / 2)))
    hop = -(-stretch // per_token)
    size = (time_tokens * per_token - 1) * hop + fft
    left = max(0, (fft - hop) // 2)
    window = torch.hann_window(fft, device=sources.device)
    signal = functional.pad(
        sources.float().reshape(-1, samples), (left, max(0, size - samples - left))
    )
    spectrum = torch.stft(
        signal[:, :size], fft, hop, fft, window, center=False, return_complex=True
    )
    power = spectrum[:, : fft // 2].abs().square()
    power = power.reshape(
        batch, count, ears, freq_tokens, fft // 2 // freq_tokens, time_tokens, per_token
    ).sum((2, 4, 6))
    order = (0, 3, 2, 1) if frequency_fastest else (0, 2, 3, 1)
    return energy_shares(
        power.permute(*order).reshape(batch, time_tokens * freq_tokens, count), exponent)


def energy_shares(power: Tensor, exponent: float = 0.3) -> tuple[Tensor, Tensor]:
    """Energies of S sources in L tokens, (B, L, S) → their shares (B, L, S) and the tokens' weights
    (B, L), see `token_energy_shares`."""
    total = power.sum(-1)
    shares = power / total.clamp_min(1e-12)[..., None]
    weight = total**exponent
    return shares, weight / weight.mean(-1, keepdim=True).clamp_min(1e-12)


def dense_tag_loss(
    logits: Tensor, kind: Tensor, shares: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each token's kind against the energy shares; lower is better.

    Args:
        logits: (B, tokens, K).
        kind: (B, S) indices into the K kinds, int64.
        shares: (B, tokens, S), see `token_energy_shares`; two sources of one kind add up.
        weight: (B, tokens) weights of the tokens, e.g. their compressed energy; equal without.

    Returns:
        (B,) nats, averaged over the tokens by weight; ln K for uniform logits.
    """
    log_probability = functional.log_softmax(logits.float(), -1)
    index = kind[:, None, :].expand(-1, logits.shape[1], -1)
    cross_entropy = -(shares * log_probability.gather(-1, index)).sum(-1)
    if weight is None:
        return cross_entropy.mean(-1)
    return (weight * cross_entropy).sum(-1) / weight.sum(-1).clamp_min(1e-12)


def clip_tag_loss(logits: Tensor, kind: Tensor, shares: Tensor | None = None) -> Tensor:
    """Cross-entropy of the kinds present in the whole mixture; lower is better.

    Args:
        logits: (B, K).
        kind: (B, S) indices into the K kinds, int64.
        shares: (B, S) soft labels summing to 1 over the sources; equal without.

    Returns:
        (B,) nats: ln K for uniform logits, ln S at best with S equal shares.
    """
    log_probability = functional.log_softmax(logits.float(), -1).gather(-1, kind)
    if shares is None:
        return -log_probability.mean(-1)
    return -(shares * log_probability).sum(-1)


def tagged_sound_loss(logits: Tensor, share: Tensor, alike: Tensor) -> Tensor:
    """Which sound of a batch does a phrase mean? :func:`clip_tag_loss` asks which phrase a sound is.

    The other half of a symmetric contrastive loss (InfoNCE, as in CLAP, Elizalde et al., 2023), with
    what sounds alike left out of the negatives.

    What is asked of a tagger is to find the one of several sounds that a phrase describes, so a
    phrase's match must be comparable from sound to sound, not only a sound's from phrase to phrase.

    Args:
        logits: (N, K) match of N sounds with K kinds.
        share: (N, K) how far each sound is of each kind, 0 to 1.
        alike: (K, K) bool, kinds that sound alike, and each with itself: a sound is no negative of
            a kind as far as it is of one alike.

    Returns:
        (N,) nats, the sum over a sound's kinds by their shares; ln N for uniform logits and a sound
        that nothing is like.
    """
    logits = logits.float()
    negative = (1 - share @ alike.to(share)).clamp(0, 1)                     # N K
    others = torch.logsumexp(logits + torch.log(negative + 1e-6), 0)         # K
    return (share * functional.softplus(others - logits)).sum(-1)
