"""BSS Eval (Vincent et al., 2006) and SI-SDR (Le Roux et al., 2019), by fast-bss-eval."""

from __future__ import annotations

import fast_bss_eval
import torch
from torch import Tensor

#: As training.metrics.SDR_LOADING: recordings of a lower rate leave the equations singular.
LOADING = 1e-8
#: Estimates this far below the mixture or above it count as equal: no metric is infinite.
CLAMP_DB = 60.0
METRICS = ("sdr", "sir", "sar", "si_sdr")


def separation_metrics(estimate: Tensor, sources: Tensor) -> dict[str, Tensor]:
    """How well one of the sources was separated from the others.

    SDR, SIR and SAR allow a distortion filter of 512 taps, as in BSS Eval 3. Each ear is measured
    alone and the mean is given.

    Args:
        estimate: (E, C, N) estimates of source 0, as heard by C ears.
        sources: (S, C, N) all sources of the mixture; none silent.

    Returns:
        (E,) dB for each of METRICS, within ±60.
    """
    estimate, sources = estimate.double(), sources.double()
    values = []
    for ear in range(sources.shape[1]):
        reference = sources[:, ear].expand(len(estimate), -1, -1)
        # as many estimates as references are wanted; only the first is looked at
        both = reference.clone()
        both[:, 0] = _audible(estimate[:, ear])
        options = dict(compute_permutation=False, clamp_db=CLAMP_DB)
        sdr, sir, sar = fast_bss_eval.bss_eval_sources(
            reference, both, filter_length=512, load_diag=LOADING, **options)
        scale_invariant = fast_bss_eval.si_bss_eval_sources(
            reference, both, zero_mean=True, **options)[0]
        values.append(torch.stack([v[:, 0] for v in (sdr, sir, sar, scale_invariant)]))
    return dict(zip(METRICS, torch.stack(values).mean(0).float()))


def _audible(estimate: Tensor) -> Tensor:
    """At unit level, silence as noise far below everything: the metrics are undefined for it."""
    level = estimate.square().mean(-1, keepdim=True).sqrt()
    hiss = torch.randn(estimate.shape, dtype=estimate.dtype,
                       generator=torch.Generator().manual_seed(0)).to(estimate.device)
    return torch.where(level > 1e-9, estimate / level.clamp_min(1e-9), hiss)
