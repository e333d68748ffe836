"""Ask a model for every sound of the test mixtures with every combination of clues."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from luseel_model.inference import Extractor
from training.clue_table.scenes import CONDITIONS, TestScenes, half_the_mixture
from training.losses.snr import snr_improvement
from training.metrics import batch_metrics

SETS = ("seen", "unseen")


def condition_name(condition: tuple[str, ...]) -> str:
    return " + ".join(condition)


def measure(model: Extractor, scenes: TestScenes, mixtures: dict[str, int],
            conditions: tuple[tuple[str, ...], ...] = CONDITIONS) -> list[dict[str, Any]]:
    """One row a sound and condition; Ctrl-C gives those that are done.

    Args:
        mixtures: of each set.
    Returns:
        rows: set, mixture, place, kind, recording, condition, video (whether the sound has video
        clues at all), snri, si_snri in dB, right_source; the condition 'half' is half the mixture.
    """
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=sum(mixtures.values()), desc="test mixtures", unit="mixture")
    try:
        with bar:
            for which in SETS:
                for number, scene, sounds in scenes(which, mixtures.get(which, 0)):
                    rows += _of_scene(model, which, number, scene, sounds, conditions)
                    bar.update()
    except KeyboardInterrupt:
        print(f"\nstopped after {len(rows)} values")
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
    found = torch.from_numpy(model.infer_windows(scene.mixture, queries)[0].audio)
    audio = [*found, *(half_the_mixture(scene.mixture[0]) for _ in sounds)]
    asked += [(sound, "half") for sound in sounds]
    rows = []
    for (sound, condition), estimate in zip(asked, audio):
        target = scene.sources[:, sound.place]
        others = scene.sources[:, [i for i in range(scene.kind.shape[1]) if i != sound.place]]
        values = batch_metrics(estimate[None], target, scene.mixture, others)
        rows.append({
            "set": which, "mixture": number, "place": sound.place, "kind": sound.kind,
            "recording": sound.recording, "condition": condition, "video": "video" in sound.clues,
            "snri": float(snr_improvement(estimate[None], target, scene.mixture)),
            "si_snri": float(values["si_snri"]), "right_source": float(values["right_source"])})
    return [row for row in rows if np.isfinite(row["snri"])]
