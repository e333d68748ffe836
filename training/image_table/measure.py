"""Measure a checkpoint on held-out recordings, asked for with held-out pictures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from luseel_model.angles import angular_error, estimate_azimuth
from luseel_model.errors import ConfigError
from luseel_model.heads import Head
from luseel_model.id_uss import IDUSS
from luseel_model.interaural_direction import (front_back_doubt, head_cross_spectra,
                                               interaural_likelihood)
from training.heads import load_head
from training.metrics import batch_metrics, bootstrap
from training.pictures.bank import PictureBank
from training.pool import ClipPool
from training.simulation import BinauralSimulator, Scene, SimulationConfig
from training.tasks.id_uss import sdr
from training.tasks.lass import mono_head

_BATCH = 8
_SEED = 2002


@dataclass(frozen=True)
class Condition:
    """What the mixtures are like: ``sources`` sounds at ``snr_db`` of the first over each other
    one; ``head``: who hears them, none: mono, as recorded."""

    name: str
    sources: tuple[int, ...] = (2,)
    snr_db: tuple[float, float] = (-5.0, 5.0)
    head: str = ""


CONDITIONS = (
    Condition("2 sounds, -5 to 5 dB"),
    Condition("2 to 4 sounds, -5 to 20 dB", (2, 3, 4), (-5.0, 20.0)),
    Condition("2 sounds, -5 to 5 dB, MIT KEMAR", head="mit_kemar"),
    Condition("2 sounds, -5 to 5 dB, FABIAN, unseen", head="fabian"),
)


def scenes(pool: ClipPool, bank: PictureBank, condition: Condition, mixtures: int,
           seconds: float) -> Iterator[tuple[Scene, Tensor]]:
    """Fixed scenes of kinds that have pictures, and the pictures (B, S, E) of their sounds."""
    concept = bank.concept_of
    left_out = tuple(kind for kind, n in zip(pool.kinds, concept.tolist()) if n < 0)
    config = dataclasses.replace(
        SimulationConfig(n_sources=condition.sources, seconds=seconds, snr_db=condition.snr_db,
                         exclude_kinds=left_out, kind_cap=20).plain())
    same = (concept[:, None] == concept) & (concept >= 0)
    head: Head = load_head(condition.head) if condition.head else mono_head()
    simulator = BinauralSimulator(pool, head, config, seed=_SEED, confusable=same, split="test")
    generator = torch.Generator().manual_seed(_SEED)
    for first in range(0, mixtures, _BATCH):
        count = condition.sources[first // _BATCH % len(condition.sources)]
        scene = simulator.sample(min(_BATCH, mixtures - first), count)
        yield scene, bank.draw(concept[scene.kind.cpu()], generator)


@torch.no_grad()
def measure(network: IDUSS, packed: str, pictures: str, condition: Condition,
            mixtures: int = 200) -> dict[str, Any]:
    """Figures of one condition, with 95% bootstrap intervals over recordings.

    In mono conditions the sound asked for is the first one of a mixture of several levels, and each
    one in turn where all are alike; in binaural ones each, with its direction.

    Returns:
        per metric (mean, low, high), and ``queries``, ``mixtures``, ``concepts``.
    """
    config = network.config
    pool = ClipPool.load(packed, "test")
    bank = PictureBank.load(pictures, "test", config.image, pool.kinds, plain_only=True)
    expected = head_cross_spectra(network.hrir, config.sample_rate) if network.hrir.any() else None
    ears = 2 if condition.head else 1
    every = len(set(condition.sources)) == 1
    values: dict[str, list[np.ndarray]] = {}
    recordings, concepts = [], set()
    total = -(-mixtures // _BATCH)
    for scene, shown in tqdm(scenes(pool, bank, condition, mixtures, config.window),
                             total=total, desc=condition.name, unit="batch"):
        asked = list(range(scene.kind.shape[1])) if every else [0]
        mixture, sources = scene.mixture[:, :ears], scene.sources[:, :, :ears]
        output = network(mixture, shown[:, asked])
        for place, number in enumerate(asked):
            estimate, target = output.audio[:, place], sources[:, number]
            others = sources[:, [i for i in range(sources.shape[1]) if i != number]]
            row = batch_metrics(estimate, target, mixture, others)
            row["sdr_before"] = sdr(mixture, target)
            row["sdri"] = sdr(estimate, target) - row["sdr_before"]
            if output.presence_logits is not None:
                row["confidence"] = output.presence_logits[:, place].sigmoid()
            if ears == 2:
                row |= directions(estimate, scene.azimuth[:, number], expected, config.sample_rate)
                true = directions(target, scene.azimuth[:, number], expected, config.sample_rate)
                row |= {f"{name} of the true sound": value for name, value in true.items()}
            for name, value in row.items():
                values.setdefault(name, []).append(np.asarray(value, dtype=np.float64))
            recordings += scene.recording[:, number].tolist()
            concepts |= set(bank.concept_of[scene.kind[:, number].cpu()].tolist())
    if not recordings:
        raise ConfigError("no mixtures were measured: ask for at least one")
    result: dict[str, Any] = {"queries": len(recordings), "mixtures": mixtures,
                              "concepts": len(concepts), "recordings": len(set(recordings))}
    for name, parts in values.items():
        interval = bootstrap(np.concatenate(parts), recordings)
        result[name] = [float(v) for v in (interval.mean, interval.low, interval.high)]
    return result


def directions(audio: Tensor, azimuth: Tensor, expected: Tensor | None, rate: int
               ) -> dict[str, Tensor]:
    """How far off the bearing of extracted ears is; ``folded`` forgives front for back."""
    likelihood = interaural_likelihood(audio, rate, expected)
    found = torch.as_tensor(estimate_azimuth(likelihood.cpu().numpy()))
    azimuth = azimuth.cpu()
    error = angular_error(found, azimuth)
    folded = torch.minimum(error, angular_error(180.0 - found, azimuth))
    return {"doa_error": error, "within_5": (error <= 5).float(),
            "within_10": (error <= 10).float(),
            "folded_error": folded, "folded_within_10": (folded <= 10).float(),
            "doubt": front_back_doubt(likelihood)}
