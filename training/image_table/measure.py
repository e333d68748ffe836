"""Measure a checkpoint on held-out recordings, asked for with held-out pictures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luseel_model.angles import angular_error, estimate_azimuth
from luseel_model.errors import ConfigError
from luseel_model.heads import Head
from luseel_model.id_uss import IDUSS
from luseel_model.interaural_direction import (front_back_doubt, head_cross_spectra,
                                               interaural_likelihood)
from training.benchmark.run import Results
from training.heads import load_head
from training.metrics import batch_metrics, bootstrap
from training.pictures.bank import PictureBank
from training.pool import ClipPool
from training.simulation import BinauralSimulator, Plan, Scene, SimulationConfig
from training.tasks.id_uss import sdr
from training.tasks.lass import mono_head

_SEED = 2002


@dataclass(frozen=True)
class Condition:
    """What the mixtures are like: ``sources`` sounds at ``snr_db`` of the first over each other
    one; ``head``: who hears them, none: mono, as recorded. ``key``: name of the file of rows."""

    name: str
    key: str
    sources: tuple[int, ...] = (2,)
    snr_db: tuple[float, float] = (-5.0, 5.0)
    head: str = ""


CONDITIONS = (
    Condition("2 sounds, -5 to 5 dB", "two"),
    Condition("2 to 4 sounds, -5 to 20 dB", "paper", (2, 3, 4), (-5.0, 20.0)),
    Condition("2 sounds, -5 to 5 dB, MIT KEMAR", "mit_kemar", head="mit_kemar"),
    Condition("2 sounds, -5 to 5 dB, FABIAN, unseen", "fabian", head="fabian"),
)


class Mixtures:
    """Fixed mixtures of test recordings of kinds that have pictures, and test pictures of their
    sounds.

    Args:
        seconds: of each.
        count: of them; the first ones are the same whatever it is.
    """

    def __init__(self, pool: ClipPool, bank: PictureBank, condition: Condition, seconds: float,
                 count: int):
        concept = bank.concept_of
        left_out = tuple(kind for kind, n in zip(pool.kinds, concept.tolist()) if n < 0)
        config = dataclasses.replace(
            SimulationConfig(n_sources=condition.sources, seconds=seconds, snr_db=condition.snr_db,
                             exclude_kinds=left_out, kind_cap=20).plain())
        same = (concept[:, None] == concept) & (concept >= 0)
        head: Head = load_head(condition.head) if condition.head else mono_head()
        self._simulator = BinauralSimulator(pool, head, config, seed=_SEED, confusable=same,
                                            split="test")
        generator = torch.Generator().manual_seed(_SEED)
        self._drawn: list[tuple[Plan, Tensor]] = []
        for number in range(count):
            plan = self._simulator.draw(1, condition.sources[number % len(condition.sources)])
            kinds = pool.kind[plan.recording].cpu()
            self._drawn.append((plan, bank.draw(concept[kinds], generator)))

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, number: int) -> tuple[Scene, Tensor]:
        """A scene, and the embedded pictures (1, S, E) of its sounds."""
        plan, shown = self._drawn[number]
        return self._simulator.render(plan), shown


@torch.no_grad()
def measure(network: IDUSS, packed: str, pictures: str, condition: Condition,
            mixtures: int = 200, results: Results | None = None) -> dict[str, Any]:
    """Figures of one condition, with 95% bootstrap intervals over recordings.

    In mono conditions the sound asked for is the first one of a mixture of several levels, and each
    one in turn where all are alike; in binaural ones each, with its direction.

    Args:
        results: keeps the rows; those that it has aren't made again.
    Returns:
        per metric (mean, low, high), and ``queries``, ``mixtures``, ``concepts``, ``recordings``,
        ``pictures`` (how many there are to choose from), ``split``, ``seed``, ``head``.
    """
    if mixtures < 1:
        raise ConfigError("no mixtures were measured: ask for at least one")
    config = network.config
    pool = ClipPool.load(packed, "test")
    bank = PictureBank.load(pictures, "test", config.image, pool.kinds, plain_only=True)
    scenes = Mixtures(pool, bank, condition, config.window, mixtures)
    ears = 2 if condition.head else 1
    every = len(set(condition.sources)) == 1
    responses = {"": _spectra(network.hrir, config.sample_rate)}
    if condition.head:
        responses["own responses: "] = _spectra(load_head(condition.head).hrir, config.sample_rate)

    def rows_of(number: int) -> list[dict[str, Any]]:
        scene, shown = scenes[number]
        asked = list(range(scene.kind.shape[1])) if every else [0]
        mixture, sources = scene.mixture[:, :ears], scene.sources[:, :, :ears]
        output, rows = network(mixture, shown[:, asked]), []
        for place, sound in enumerate(asked):
            estimate, target = output.audio[:, place], sources[:, sound]
            others = sources[:, [i for i in range(sources.shape[1]) if i != sound]]
            row = batch_metrics(estimate, target, mixture, others)
            row["sdr_before"] = sdr(mixture, target)
            row["sdri"] = sdr(estimate, target) - row["sdr_before"]
            row["sdri of half the mixture"] = sdr(0.5 * mixture, target) - row["sdr_before"]
            if output.presence_logits is not None:
                row["confidence"] = output.presence_logits[:, place].sigmoid()
            if ears == 2:
                for of, audio in (("", estimate), (" of the true sound", target),
                                  (" of the mixture", mixture)):
                    for given, expected in responses.items():
                        found = directions(audio, scene.azimuth[:, sound], expected,
                                           config.sample_rate)
                        row |= {f"{given}{name}{of}": value for name, value in found.items()}
            kind = int(scene.kind[0, sound])
            rows.append({"mixture": number, "kind": pool.kinds[kind],
                         "recording": pool.names[int(scene.recording[0, sound])],
                         "concept": int(bank.concept_of[kind]),
                         **{name: round(float(value[0]), 4) for name, value in row.items()}})
        return rows

    if results is None:
        found = [row for number in range(mixtures) for row in rows_of(number)]
    else:
        results.fill(condition.key, range(mixtures), rows_of)
        found = [row for row in results.rows(condition.key) if row["mixture"] < mixtures]
    recordings = [row["recording"] for row in found]
    result: dict[str, Any] = {
        "split": "test", "seed": _SEED, "head": condition.head, "seconds": config.window,
        "mixtures": mixtures, "queries": len(found), "recordings": len(set(recordings)),
        "concepts": len({row["concept"] for row in found}), "pictures": int(bank.count.sum())}
    for name in found[0]:
        if name not in ("mixture", "kind", "recording", "concept"):
            interval = bootstrap([row[name] for row in found], recordings)
            result[name] = [float(v) for v in (interval.mean, interval.low, interval.high)]
    return result


def _spectra(hrir: Tensor, rate: int) -> Tensor | None:
    return head_cross_spectra(hrir, rate) if hrir.any() else None


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
