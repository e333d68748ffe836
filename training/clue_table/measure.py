"""Ask a model for every sound of the test mixtures with every combination of clues."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from luseel_model.angles import angular_error
from luseel_model.inference import Extractor
from training.benchmark.run import Results
from training.clue_table.scenes import CONDITIONS, TestScenes, half_the_mixture
from training.losses.snr import snr_improvement
from training.metrics import batch_metrics

SETS = ("seen", "unseen")


def condition_name(condition: tuple[str, ...]) -> str:
    return " + ".join(condition)


def measure(model: Extractor, scenes: TestScenes, mixtures: dict[str, int],
            conditions: tuple[tuple[str, ...], ...] = CONDITIONS,
            results: Results | None = None) -> list[dict[str, Any]]:
    """One row a sound and condition.

    Args:
        mixtures: of each set.
        results: keeps the rows as they come; those that it has aren't made again.
    Returns:
        rows: set, mixture, place, kind, recording, condition, video (whether the sound has video
        clues at all), snri, si_snri in dB, right_source, within_10 (degrees) and folded_within_10,
        which forgives front for back; the condition 'half' is half the mixture, without direction.
    """
    rows: list[dict[str, Any]] = []
    for which in SETS:
        count = mixtures.get(which, 0)
        plans = scenes.drawn(which, count)

        def rows_of(number: int) -> list[dict[str, Any]]:
            scene, sounds = scenes.make(which, number, plans[number])
            return _of_scene(model, which, number, scene, sounds, conditions)

        if results is None:
            rows += [row for number in range(count) for row in rows_of(number)]
        else:
            results.fill(which, range(count), rows_of)
            rows += [row for row in results.rows(which) if row["mixture"] < count]
    return rows


def _of_scene(model, which, number, scene, sounds, conditions) -> list[dict[str, Any]]:
    asked, queries = [], []
    for sound in sounds:
        for condition in conditions:
            query = sound.query(condition)
            if query is not None and query.clues <= model.capabilities.clues:
                asked.append((sound, condition_name(condition)))
                queries.append(query)
    if not queries:
        return []
    found = model.infer_windows(scene.mixture, queries)[0]
    audio = [*torch.from_numpy(found.audio), *(half_the_mixture(scene.mixture[0]) for _ in sounds)]
    azimuth = [*found.azimuth, *(math.nan for _ in sounds)]
    asked += [(sound, "half") for sound in sounds]
    rows = []
    for (sound, condition), estimate, direction in zip(asked, audio, azimuth):
        target = scene.sources[:, sound.place]
        others = scene.sources[:, [i for i in range(scene.kind.shape[1]) if i != sound.place]]
        values = batch_metrics(estimate[None], target, scene.mixture, others)
        true = float(scene.azimuth[0, sound.place])
        error = float(angular_error(direction, true))
        folded = min(error, float(angular_error(180.0 - direction, true)))
        rows.append({
            "set": which, "mixture": number, "place": sound.place, "kind": sound.kind,
            "recording": sound.recording, "condition": condition, "video": "video" in sound.clues,
            "snri": float(snr_improvement(estimate[None], target, scene.mixture)),
            "si_snri": float(values["si_snri"]), "right_source": float(values["right_source"]),
            "within_10": math.nan if math.isnan(error) else float(error <= 10),
            "folded_within_10": math.nan if math.isnan(error) else float(folded <= 10)})
    return [row for row in rows if np.isfinite(row["snri"])]
