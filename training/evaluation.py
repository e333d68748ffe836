"""Evaluation on a fixed set of binaural mixtures of recordings that training never saw.

Paper 000, section 4, figures 2 to 4, and what a user asks besides: does the query pull out the
right source, and what happens when the sound isn't there. The mixtures follow from the packed
recordings, the configuration and its seed alone; every head gets the same recordings, directions
and levels. Each recording is a target equally often (give or take one), each mixture is queried
for every source in it and once for a kind that is not in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor
from tqdm import tqdm

from luseel_model.angles import angular_error
from luseel_model.config import build_config, find_config, read_yaml
from luseel_model.errors import ConfigError
from luseel_model.features import gcc_phat
from training import SAMPLE_RATE
from training.captions import Captions
from training.heads import Head, interaural_delay
from training.metrics import (
    Interval,
    batch_metrics,
    bootstrap,
    bootstrap_auroc,
    chance_levels,
    level_below_mixture,
)
from training.plots import SEPARATION_EDGES
from training.pool import ClipPool
from training.simulation import BinauralSimulator, SimulationConfig

CONFIG_FOLDER = Path(__file__).parent / "configs"
ROOM = "none"  # scenes are anechoic: the simulation convolves with head responses only


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated.

    Attributes:
        packed: folder written by training.corpus.pack.
        split: "test" for reports, "valid" for choices.
        heads: names or files of heads; each is evaluated on the same plan.
        sources: number of sounds S in a mixture, of different kinds that don't sound alike.
        mixtures: number of mixtures per head.
        seconds: length of a mixture; null is the model's window.
        snr_db: level of the first sound over each other one, before the head.
        wording: queries are the "label" of a kind or its "held_out" paraphrase.
        sdr: also compute SDR (most of the time of a small model's evaluation).
        seed: of the mixtures and of the bootstrap.
        resamples: bootstrap samples of the confidence intervals.
    """

    packed: str = "data/packed"
    split: str = "test"
    heads: tuple[str, ...] = ("mit_kemar",)
    sources: int = 2
    mixtures: int = 500
    seconds: float | None = None
    snr_db: tuple[float, float] = (-5.0, 5.0)
    wording: Literal["label", "held_out"] = "label"
    sdr: bool = True
    seed: int = 2024
    resamples: int = 1000

    def __post_init__(self) -> None:
        if not self.heads:
            raise ConfigError("heads: name at least one head")
        for name, least in (("sources", 1), ("mixtures", 1), ("resamples", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)} must be {least} or more")
        if self.seconds is not None and not self.seconds >= 0.1:
            raise ConfigError(f"seconds: {self.seconds} must be 0.1 or more")


def load_evaluation_config(
    name_or_path: str | Path = "evaluation", changes: Mapping[str, Any] | None = None
) -> EvaluationConfig:
    """A configuration by name (of training/configs) or path, with some keys replaced.

    Raises:
        ConfigError: no such file, or an unknown or wrong key, named.
    """
    data = read_yaml(find_config(name_or_path, CONFIG_FOLDER, "evaluation"))
    return build_config(EvaluationConfig, {**data, **(changes or {})})


# -- the mixtures ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Mixture:
    """One mixture of S sounds, N samples at 16 kHz.

    Attributes:
        index: its number, the same for all heads.
        audio: (2, N) float32, the sum of `sources`.
        sources: (S, 2, N) the sounds at the ears.
        azimuth: (S,) degrees in [0, 360).
        recording: (S,) int64, indices into the pool.
        kind: S label words.
        absent_kind: a label that is not in the mixture and sounds like none in it, or None.
    """

    index: int
    audio: Tensor
    sources: Tensor
    azimuth: Tensor
    recording: Tensor
    kind: list[str]
    absent_kind: str | None


def balanced_recordings(
    kinds: Sequence[str],
    mixtures: int,
    sources: int,
    confusable: Mapping[str, set[str]],
    generator: np.random.Generator,
) -> np.ndarray:
    """Which recordings meet in which mixture, each used equally often (give or take one).

    Args:
        kinds: label of each of n recordings.
        mixtures, sources: M mixtures of S recordings of different kinds.
        confusable: for a label those that must not share a mixture with it.
        generator: of the order.

    Returns:
        (M, S) indices in [0, n).

    Raises:
        ConfigError: there are too few kinds, or one has so many recordings that no partners are
            left for it.
    """

    count = len(kinds)
    needed = mixtures * sources
    order = np.concatenate(
        [generator.permutation(count) for _ in range(-(-needed // max(count, 1)))] or [[]]
    )[:needed]
    return without_clashes(
        order.astype(np.int64).reshape(mixtures, sources), kinds, confusable, generator
    )


def without_clashes(
    slots: np.ndarray,
    kinds: Sequence[str],
    confusable: Mapping[str, set[str]],
    generator: np.random.Generator,
) -> np.ndarray:
    """The same recordings, exchanged between mixtures until no mixture has two that sound alike.

    Args:
        slots: (M, S) indices of recordings; changed in place.
        kinds: label of each recording.
        confusable: for a label those that must not share a mixture with it.
        generator: of the choices.

    Returns:
        slots.

    Raises:
        ConfigError: no way was found.
    """

    def clash(a: int, others: Sequence[int]) -> bool:
        mine = kinds[a]
        return any(kinds[o] == mine or kinds[o] in confusable.get(mine, ()) for o in others)

    mixtures, sources = slots.shape
    # Repair clashes by swapping with random other places where neither side clashes afterwards.
    for attempt in range(50):
        bad = [
            (m, s)
            for m in range(mixtures)
            for s in range(sources)
            if clash(slots[m, s], slots[m, :s])
        ]
        if not bad:
            return slots
        for m, s in bad:
            for other in generator.permutation(mixtures):
                if other == m:
                    continue
                t = generator.integers(sources)
                mine, theirs = np.delete(slots[m], s), np.delete(slots[other], t)
                if not clash(slots[other, t], mine) and not clash(slots[m, s], theirs):
                    slots[m, s], slots[other, t] = slots[other, t], slots[m, s]
                    break
    raise ConfigError(
        f"can't make {mixtures} mixtures of {sources} different kinds from {len(kinds)} "
        f"recordings of {len(set(kinds))} kinds that are each used equally often: take fewer "
        "sources or another split"
    )


class MixtureSet:
    """The fixed mixtures of one head; iterating makes them, the same each time.

    Args:
        pool: recordings of the split.
        head: the head that hears them.
        config: see EvaluationConfig; `seconds` must be set.
        captions: for kinds that sound alike; None treats all labels as distinct.

    Attributes:
        left_out: Counter of the kinds whose recordings are left out because training has none.
        recordings: number of recordings in use.
        kinds: label words of the recordings in use.
    """

    def __init__(
        self,
        pool: ClipPool,
        head: Head,
        config: EvaluationConfig,
        captions: Captions | None = None,
    ):
        if config.seconds is None:
            raise ConfigError("seconds: the length of the mixtures is not set")
        self.pool, self.config = pool, config
        known = pool.kind.cpu().numpy() >= 0
        self.left_out = Counter(l for l, k in zip(pool.labels, known, strict=True) if not k)
        usable = np.flatnonzero(known)
        labels = [pool.labels[i] for i in usable]
        self.recordings, self.kinds = len(usable), sorted(set(labels))
        if len(self.kinds) < config.sources:
            raise ConfigError(
                f"{config.split} has {len(self.kinds)} kinds that training knows; mixtures of "
                f"{config.sources} need as many at least"
            )
        confusable = {
            kind: captions.confusable(kind) if captions else set() for kind in pool.kinds
        }
        generator = np.random.default_rng(config.seed)
        slots = balanced_recordings(
            labels, config.mixtures, config.sources, confusable, generator
        )
        self._absent = []
        for row in slots:
            present = {labels[i] for i in row}
            near = present.union(*(confusable.get(kind, set()) for kind in present))
            far = [kind for kind in pool.kinds if kind not in near]
            self._absent.append(far[generator.integers(len(far))] if far else None)

        self._simulator = BinauralSimulator(
            pool,
            [head],
            SimulationConfig(
                n_sources=(config.sources,),
                seconds=config.seconds,
                snr_db=config.snr_db,
                rate=None,
                equaliser_db=0.0,
                swap_ears=0.0,
                head_size=None,
            ),
            seed=config.seed,
        )
        self._plan = self._simulator.draw(config.mixtures, config.sources)
        self._plan.recording = torch.as_tensor(usable[slots])

    def __len__(self) -> int:
        return self.config.mixtures

    def __iter__(self) -> Iterator[Mixture]:
        for begin in range(0, len(self), 16):
            scene = self._simulator.render(self._plan[begin : begin + 16])
            for i in range(len(scene.mixture)):
                recording = scene.recording[i].cpu()
                yield Mixture(
                    index=begin + i,
                    audio=scene.mixture[i].cpu(),
                    sources=scene.sources[i].cpu(),
                    azimuth=scene.azimuth[i].cpu(),
                    recording=recording,
                    kind=[self.pool.labels[r] for r in recording.tolist()],
                    absent_kind=self._absent[begin + i],
                )


# -- baseline --------------------------------------------------------------------------------------


def gcc_direction(audio: Tensor, delays: np.ndarray) -> float:
    """Loudest direction by GCC-PHAT, without any query: the baseline without a model.

    Args:
        audio: (2, N) at 16 kHz.
        delays: (360,) seconds by which the left ear leads, for each degree; the baseline knows
            the head. Front and back share their delays, so that it is often mirrored.

    Returns:
        degrees in [0, 360).
    """
    lags = 32
    correlation = gcc_phat(audio[None], hop=SAMPLE_RATE // 4, lags=lags)[0].mean(0).numpy()
    spline = CubicSpline(np.arange(-lags // 2, lags // 2), correlation)
    reach = lags // 2 - 1
    return float(spline(np.clip(delays * SAMPLE_RATE, -reach, reach)).argmax())


# -- running a model -------------------------------------------------------------------------------


def run_model(model, audio: Tensor, queries: Sequence[str]):
    """Ask a model for Q queries about one mixture (2, N) at 16 kHz.

    Args:
        model: a luseel_model Extractor, or anything with its `sample_rate`, `window`,
            `infer_window` and `extract`.

    Returns:
        audio (Q, 2, N), azimuth (Q,) degrees, confidence (Q,), all float32 tensors.
    """
    samples = audio.shape[-1]
    if samples <= round(model.window * model.sample_rate):
        out = model.infer_window(audio, list(queries))
        parts = (out.audio, out.azimuth, out.confidence)
    else:
        found = model.extract(audio, SAMPLE_RATE, list(queries))
        parts = (
            np.stack([np.asarray(f.audio) for f in found]),
            [f.azimuth for f in found],
            [f.confidence for f in found],
        )
    extracted, azimuth, confidence = (
        torch.as_tensor(np.asarray(part), dtype=torch.float32) for part in parts
    )
    return extracted[..., :samples], azimuth, confidence


def evaluate_head(
    model,
    mixtures: MixtureSet,
    head: Head,
    captions: Captions | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Query every mixture for each of its sources and for one absent sound.

    Args:
        model: see `run_model`.
        mixtures: what is asked.
        head: the head the mixtures were made with, for the GCC-PHAT baseline.
        captions: for the wording of the queries.

    Returns:
        One row per query: head, mixture, present, kind, query, recording (name), interferers,
        confidence, below_mixture_db; for present ones azimuth, azimuth_est, separation (degrees
        to the nearest interferer), the metrics of `batch_metrics`, gcc_azimuth and gcc_error,
        mixture_right_source.
    """
    config, pool = mixtures.config, mixtures.pool
    delays = interaural_delay(head.hrir.cpu().numpy(), SAMPLE_RATE)

    def words(kind: str) -> str:
        return captions.held_out(kind) if captions and config.wording == "held_out" else kind

    rows = []
    for mixture in tqdm(mixtures, desc=f"{head.name}", unit="mixture", disable=not progress):
        count = len(mixture.kind)
        asked = [*mixture.kind, *([mixture.absent_kind] if mixture.absent_kind else [])]
        queries = [words(kind) for kind in asked]
        audio, azimuth, confidence = run_model(model, mixture.audio, queries)
        whole = mixture.audio.expand(len(asked), -1, -1)
        below = level_below_mixture(audio, whole)
        others = [[j for j in range(count) if j != i] for i in range(count)]
        interferers = mixture.sources[torch.tensor(others, dtype=torch.long).reshape(count, -1)]
        values = batch_metrics(
            audio[:count], mixture.sources, whole[:count], interferers,
            azimuth[:count], mixture.azimuth, sdr=config.sdr,
        )
        unprocessed = batch_metrics(
            whole[:count], mixture.sources, whole[:count], interferers
        )
        gcc = gcc_direction(mixture.audio, delays)
        names = [pool.names[r] for r in mixture.recording.tolist()]
        for i, kind in enumerate(asked):
            present = i < count
            row = {
                "head": head.name,
                "mixture": mixture.index,
                "present": present,
                "kind": kind,
                "query": queries[i],
                # An absent query belongs to the mixture: its cluster is the first recording.
                "recording": names[i] if present else names[0],
                "others": "; ".join(k for j, k in enumerate(mixture.kind) if j != i),
                "confidence": float(confidence[i]),
                "below_mixture_db": float(below[i]),
            }
            if present:
                row["azimuth"] = float(mixture.azimuth[i])
                row["azimuth_est"] = float(azimuth[i])
                row["separation"] = math.nan
                if others[i]:
                    row["separation"] = float(
                        angular_error(mixture.azimuth[others[i]], mixture.azimuth[i]).min()
                    )
                row |= {key: float(value[i]) for key, value in values.items()}
                if "right_source" in unprocessed:
                    row["mixture_right_source"] = float(unprocessed["right_source"][i])
                row["gcc_azimuth"] = gcc
                row["gcc_error"] = float(angular_error(gcc, float(mixture.azimuth[i])))
            rows.append(row)
    return rows


# -- summaries -------------------------------------------------------------------------------------

METRICS = (
    "si_snri", "sdri", "si_snr", "sdr", "right_source", "within_5", "within_10", "doa_error",
    "front_back",
)


def interval(rows: Sequence[dict], key: str, config: EvaluationConfig) -> dict[str, float] | None:
    """Mean and interval over recordings of one column, as a dict; None without the column."""
    rows = [row for row in rows if key in row]
    if not rows:
        return None
    return dataclasses.asdict(
        bootstrap(
            [row[key] for row in rows],
            [row["recording"] for row in rows],
            config.resamples,
            seed=config.seed,
        )
    )


def by_separation(
    rows: Sequence[dict], config: EvaluationConfig, edges: Sequence[float] = SEPARATION_EDGES
) -> list[dict[str, Any]]:
    """Intervals of SI-SNRi and direction error by the angle to the nearest interferer."""
    groups = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        last = high == edges[-1]
        chosen = [
            row
            for row in rows
            if low <= row["separation"] < high or (last and row["separation"] == high)
        ]
        groups.append(
            {
                "from": low,
                "to": high,
                "n": len(chosen),
                **{key: interval(chosen, key, config) for key in ("si_snri", "doa_error",
                                                                  "within_5")},
            }
        )
    return groups


def by_kind(rows: Sequence[dict], config: EvaluationConfig) -> list[dict[str, Any]]:
    """Intervals by the kind of the queried sound, most recordings first."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["kind"]].append(row)
    result = [
        {
            "kind": kind,
            "n": len(chosen),
            "recordings": len({row["recording"] for row in chosen}),
            **{key: interval(chosen, key, config) for key in ("si_snri", "within_5",
                                                              "right_source")},
        }
        for kind, chosen in groups.items()
    ]
    return sorted(result, key=lambda group: (-group["recordings"], group["kind"]))


def summarise(rows: Sequence[dict], config: EvaluationConfig) -> dict[str, Any]:
    """All figures of one head.

    Returns:
        dict of plain values: `metrics` (each an interval: mean, low, high, n, clusters),
        `presence`, `baselines` (unprocessed mixture, GCC-PHAT), `by_separation`, `by_kind`.
        Shares are in [0, 1], levels in dB, angles in degrees.
    """
    present = [row for row in rows if row["present"]]
    absent = [row for row in rows if not row["present"]]
    wrong = [r for r in present if r.get("right_source") == 0.0]
    gcc = [
        {
            "recording": row["recording"],
            "doa_error": row["gcc_error"],
            "within_5": float(row["gcc_error"] <= 5),
            "within_10": float(row["gcc_error"] <= 10),
        }
        for row in present
    ]
    metrics = {key: interval(present, key, config) for key in METRICS}
    area: Interval = bootstrap_auroc(
        [row["confidence"] for row in rows],
        [row["present"] for row in rows],
        [row["recording"] for row in rows],
        config.resamples,
        seed=config.seed,
    )
    return {
        "metrics": {key: value for key, value in metrics.items() if value},
        "si_snri_of_wrong_sources": interval(wrong, "si_snri", config),
        "undefined": sum(math.isnan(row["si_snri"]) for row in present),
        "presence": {
            "auroc": dataclasses.asdict(area),
            "confidence_present": interval(present, "confidence", config),
            "confidence_absent": interval(absent, "confidence", config),
            "below_mixture_present_db": interval(present, "below_mixture_db", config),
            "below_mixture_absent_db": interval(absent, "below_mixture_db", config),
        },
        "baselines": {
            "mixture": {
                "si_snr": interval(present, "mixture_si_snr", config),
                "sdr": interval(present, "mixture_sdr", config),
                "right_source": interval(present, "mixture_right_source", config),
            },
            "gcc_phat": {
                key: interval(gcc, key, config)
                for key in ("within_5", "within_10", "doa_error")
            },
        },
        "by_separation": by_separation(present, config) if config.sources > 1 else [],
        "by_kind": by_kind(present, config),
    }


def evaluate(
    model,
    pool: ClipPool,
    heads: Sequence[Head],
    config: EvaluationConfig,
    captions: Captions | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluate a model under every head.

    Args:
        model: a luseel_model Extractor (see `run_model`).
        pool: recordings of `config.split`.
        heads: loaded heads.
        config: see EvaluationConfig; without `seconds` the model's window is used.
        captions: wordings and kinds that sound alike.
        progress: whether to show progress bars.

    Returns:
        summary: dict of plain values: what was evaluated, and `heads`, one `summarise` each.
        rows: one dict per query (see `evaluate_head`).
    """
    if config.seconds is None:
        config = dataclasses.replace(config, seconds=float(model.window))
    rows, conditions = [], []
    for head in heads:
        mixtures = MixtureSet(pool, head, config, captions)
        chosen = evaluate_head(model, mixtures, head, captions, progress)
        rows += chosen
        conditions.append({"head": head.name, "room": ROOM, **summarise(chosen, config)})
    summary = {
        "model": model.name,
        "config": dataclasses.asdict(config),
        "data": Path(config.packed).name,
        "split": config.split,
        "room": ROOM,
        "mixtures": config.mixtures,
        "sources": config.sources,
        "seconds": config.seconds,
        "recordings": mixtures.recordings,
        "kinds": len(mixtures.kinds),
        "left_out": {
            "recordings": sum(mixtures.left_out.values()),
            "kinds": dict(sorted(mixtures.left_out.items())),
        },
        "confidence_interval": "95%, bootstrap over target recordings, "
        f"{config.resamples} resamples",
        "chance": chance_levels(config.sources),
        "heads": conditions,
    }
    return summary, rows
