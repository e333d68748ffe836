"""Error of a trained checkpoint on the DCASE recordings that were kept for tests (paper 001, Table
II and equation 9):

    python -m training.arrays.dcase_evaluate runs/tsel-dcase/best.safetensors FOLDER
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from tqdm import tqdm

from luseel_model.angles import angular_error
from luseel_model.errors import ConfigError
from luseel_model.inference import Extractor, load_model
from luseel_model.tsel.config import TselConfig
from training.arrays.dcase import Recording, read_folder
from training.arrays.dcase_scenes import DcaseScenes
from training.metrics import bootstrap
from training.train import run_command

FIELDS = ("recording", "label", "error", "right")


def recordings_of(model: Extractor, folder: str | Path, folds: Sequence[int] | None
                  ) -> list[Recording]:
    """The recordings of ``folds``, or of those that the model's training left alone.

    Raises:
        ConfigError: there are none, or the model wasn't trained on such recordings.
    """
    if not isinstance(model.config, TselConfig) or "audio_format" not in model.info:
        raise ConfigError(f"{model.name} was not trained on DCASE recordings (docs/tsel.md)")
    wanted = folds or model.info["test_folds"]
    if not wanted:
        raise ConfigError("the training kept no folds for tests: name some with --folds")
    found = read_folder(folder, model.info["audio_format"], tuple(model.info["kinds"]))
    if not any(recording.fold in wanted for recording in found):
        raise ConfigError(f"{folder} has no recordings of the folds {list(wanted)}: it has those "
                          f"of {sorted({recording.fold for recording in found})}")
    return [recording for recording in found if recording.fold in wanted]


def evaluate(model: Extractor, recordings: Sequence[Recording]) -> list[dict]:
    """Rows of each sound that can be asked for in windows one after the other: its mean absolute
    error over time in degrees, and in what share of the time the answer is nearer to it than to
    another sound. A network for clips stands by one direction for all of a window."""
    over_time = dataclasses.replace(model.config, output="frames")
    scenes = DcaseScenes(recordings, model.info["kinds"], over_time, split="test")
    rows = []
    for scene, asked, names in tqdm(scenes.fixed(None, 1), unit="query", desc="test"):
        sound = int(asked[0, 0])
        label = scenes.kinds[int(scene.kind[0, sound])]
        if model.config.output == "frames":
            answer = model.follow(scene.audio[0], [label])[0].argmax(-1).cpu().float()
        else:
            found, = model.extract(scene.audio[0].numpy(), model.sample_rate, [label],
                                   progress=False)
            answer = torch.tensor(float(found.likelihood.argmax()))
        error = angular_error(answer, scene.azimuth[0])  # (S, T)
        others = error.clone()
        others[sound] = torch.nan
        active = ~scene.azimuth[0, sound].isnan()
        own, nearest = error[sound], others.nan_to_num(1e9).amin(0)
        rows.append({"recording": names[0], "label": label,
                     "error": round(float(own[active].mean()), 3),
                     "right": round(float((own < nearest)[active].float().mean()), 3)})
    return rows


def summary(rows: list[dict]) -> str:
    """A line for all, and one for each class; intervals over the recordings."""
    lines = []
    for label in ("", *sorted({row["label"] for row in rows})):
        some = [row for row in rows if label in ("", row["label"])]
        error = np.array([row["error"] for row in some])
        mean = bootstrap(error, [row["recording"] for row in some])
        right = 100 * np.mean([row["right"] for row in some])
        lines.append(f"{label or 'all'}: MAE {mean.mean:.2f}° ({mean.low:.2f} to {mean.high:.2f}), "
                     f"median {np.median(error):.2f}°, nearest the right sound {right:.0f}%, "
                     f"{len(some)} queries")
    return "\n".join(lines)


def _evaluate(args: argparse.Namespace) -> int:
    model = load_model(args.checkpoint, args.device)
    rows = evaluate(model, recordings_of(model, args.folder, args.folds))
    if args.out:
        with open(args.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    print(summary(rows))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.arrays.dcase_evaluate",
                                     description="Error of a checkpoint on DCASE recordings.")
    parser.add_argument("checkpoint", help="of a training with data.dcase")
    parser.add_argument("folder", help="of the recordings")
    parser.add_argument("--folds", nargs="+", type=int,
                        help="default: those that the training kept for tests")
    parser.add_argument("--out", help="CSV file for the errors of all queries")
    parser.add_argument("--device", help="cpu, cuda, ... (default: CUDA where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return run_command("dcase_evaluate", parser.parse_args(argv), _evaluate)


if __name__ == "__main__":
    sys.exit(main())
