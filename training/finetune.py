"""Fine-tune a trained network on one's own head: ``luseel-finetune my_head.sofa --out runs/mine``.

Scenes are rendered with that head, and with heads of the first training mixed in so that they are
not forgotten; the network is tested before and after on recordings of the test split. The
head is calibrated on the way (training/heads.py), as `luseel calibrate` does with the robot's ears.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from luseel_model import load_model
from luseel_model.checkpoint import find_checkpoint, read_checkpoint, save_checkpoint
from luseel_model.config import to_dict
from luseel_model.errors import ConfigError
from luseel_model.families import family_of
from luseel_model.heads import Head
from luseel_model.luseel import LuSeeLConfig
from training.captions import Captions
from training.corpus import toy
from training.evaluation import EvaluationConfig, evaluate
from training.heads import load_head, make_head, read_sofa, read_ssr_wav
from training.pool import ClipPool
from training.report import format_interval
from training.train import add_run_options, run_command
from training.tasks.luseel import LuSeeLTrainConfig
from training.trainer import Trainer, load_train_config

SPLIT = "test"  # of the recordings to test with: validation chooses the step
OWN_SHARE = 2 / 3  # of the scenes are heard by the own head
_COLUMNS = (("si_snri", "SI-SNRi [dB]", 1.0, 1), ("within_5", "within 5° [%]", 100.0, 0),
            ("doa_error", "MAE [°]", 1.0, 1), ("front_back", "front–back [%]", 100.0, 0),
            ("right_source", "right source [%]", 100.0, 0))


def read_head(path: str | Path, calibrate: bool = True) -> Head:
    """A head from its measured responses.

    Args:
        path: a SOFA file; a WAV file of 720 channels (left and right of 0°, 1°, …, 359°, as the
            SoundScape Renderer has them); an NPZ file with ``azimuth`` (n,) in degrees
            counter-clockwise, ``hrir`` (n, 2, taps) and ``rate`` in Hz; a head made by
            luseel-heads or luseel calibrate, or its name.
        calibrate: turn it to the front and balance its ears by its own delays.
    Raises:
        ConfigError: it can't be read, directions are too sparse, or left and right are swapped.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".sofa", ".wav", ".npz"):
        return load_head(path)
    if not path.is_file():
        raise ConfigError(f"no responses at {path}")
    name = re.sub(r"[^\w-]+", "_", path.stem) or "head"
    if suffix == ".sofa":
        azimuth, hrir, rate, about = read_sofa(path)
    elif suffix == ".wav":
        azimuth, hrir, rate, about = read_ssr_wav(path)
    else:
        azimuth, hrir, rate, about = _read_npz(path)
    return make_head(name, azimuth, hrir, rate, about, calibrate=calibrate)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, float, dict[str, str]]:
    try:
        with np.load(path) as file:
            azimuth, hrir = (np.asarray(file[key], np.float64) for key in ("azimuth", "hrir"))
            rate = float(file["rate"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected the arrays azimuth (n,), hrir (n, 2, taps) and "
                          f"rate: {error}") from None
    if azimuth.ndim != 1 or hrir.ndim != 3 or hrir.shape[:2] != (len(azimuth), 2) or rate <= 0 \
            or not (np.isfinite(azimuth).all() and np.isfinite(hrir).all()):
        raise ConfigError(f"{path}: expected azimuth (n,), hrir (n, 2, taps) of numbers and a rate "
                          f"in Hz, got {azimuth.shape}, {hrir.shape} and {rate:g}")
    return azimuth, hrir, rate, {"source": path.name}


def fitted_config(config: LuSeeLTrainConfig, model: LuSeeLConfig, model_file: Path,
                  heads: Sequence[str]) -> LuSeeLTrainConfig:
    """The run for a network: its model, window and heads, and no loss of what it doesn't have.

    Args:
        config: as read.
        model: of the checkpoint that is fine-tuned.
        model_file: where its configuration is written as YAML.
        heads: files or names, the own one first; the others are mixed in.
    """
    own, others = heads[0], heads[1:]
    repeated = max(1, round(len(others) * OWN_SHARE / (1 - OWN_SHARE)))
    loss = config.loss
    if not model.tagging.width:
        loss = dataclasses.replace(loss, dense_tags=0.0, clip_tags=0.0, presence=0.0)
    if not model.head_search.azimuths:
        loss = dataclasses.replace(loss, candidate_tags=0.0, tagged_candidates=0.0,
                                   selection=0.0, trust=0.0, masked=0.0)
    if model.localization.activation == "sigmoid":
        loss = dataclasses.replace(loss, doa_kind="squared")
    data = dataclasses.replace(
        config.data, heads=(own,) * repeated + tuple(others),
        simulation=dataclasses.replace(config.data.simulation, seconds=model.window))
    model_file.write_text(yaml.safe_dump(to_dict(model), sort_keys=False), encoding="utf-8")
    return dataclasses.replace(config, model=str(model_file), loss=loss, data=data, overrides={},
                               tag_steps=0, candidate_steps=0)


def measure_heads(checkpoint: Path, heads: Sequence[Head], packed: str, mixtures: int,
               device: str | None = None) -> list[dict[str, Any]]:
    """Metrics of a checkpoint with each head on recordings of SPLIT: intervals by name."""
    model = load_model(checkpoint, device)
    pool = ClipPool.load(packed, SPLIT, device or "cpu")
    captions = Captions.load()
    config = EvaluationConfig(packed=packed, split=SPLIT, mixtures=mixtures, sdr=False)
    rows = []
    for head in heads:
        if model.config.head_search.azimuths:
            model.set_head(head)
        summary, _ = evaluate(model, pool, [head], config, captions)
        (condition,) = summary["heads"]
        rows.append({"head": head.name, **condition["metrics"]})
    return rows


def table(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> str:
    """Both tests as a Markdown table."""
    lines = ["| head | | " + " | ".join(title for _, title, _, _ in _COLUMNS) + " |",
             "|" + " --- |" * (len(_COLUMNS) + 2)]
    for old, new in zip(before, after, strict=True):
        for when, row in (("before", old), ("after", new)):
            cells = [format_interval(row.get(key), scale, digits)
                     for key, _, scale, digits in _COLUMNS]
            lines.append(f"| {row['head']} | {when} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finetune(head: Head, out: str | Path, config: LuSeeLTrainConfig, init: str | Path | None = None,
             also: Sequence[str] = ("mit_kemar",), mixtures: int = 100,
             device: str | None = None, minutes: float | None = None) -> Path | None:
    """Fine-tune, test before and after, and write what came out.

    Args:
        head: the own one.
        out: folder of the run; a run in it is resumed.
        config: of the training; see :func:`fitted_config`.
        init: checkpoint to start from; None: the shipped one.
        also: heads that are mixed in and tested as well.
        mixtures: of each test.
        minutes: stop after this time; the same call resumes.
    Returns:
        the checkpoint ``out/<head>.safetensors``, or None where the run isn't finished.
    Raises:
        LuseelError: what was given can't be used.
    """
    out, start = Path(out), find_checkpoint(init)
    model, _, info = read_checkpoint(start)
    if not (isinstance(model, LuSeeLConfig) and isinstance(config, LuSeeLTrainConfig)):
        raise ConfigError(f"{start} is of the family {family_of(model).name}, the training "
                          f"{config.name} of the family {config.family}: only LuSeeL can be "
                          "fine-tuned on a head")
    others = [load_head(name) for name in also]
    if head.name in {other.name for other in others}:
        raise ConfigError(f"{head.name} is the head to fine-tune on: leave it out of those that "
                          "are mixed in (--also)")
    if not (Path(config.data.packed) / "kinds.txt").is_file():
        raise ConfigError(f"no packed recordings at {config.data.packed}: docs/data.md says how to "
                          "get them (luseel-corpus), --packed names their folder")
    out.mkdir(parents=True, exist_ok=True)
    head_file = out / "head.safetensors"
    head.save(head_file)
    config = fitted_config(config, model, out / "model.yaml", [str(head_file), *also])
    trainer = Trainer(config, out, device, start)

    heads = [head, *others]
    before = _before(out / "before.json", start, heads, config.data.packed, mixtures, device)
    print(f"{start.stem}, {trainer.network.parameter_count() / 1e6:.2f} M parameters, on "
          f"{head.name}: from step {trainer.step} to {config.steps} on {trainer.device} -> {out}")
    if trainer.step < config.steps:
        trainer.run(minutes)
    if trainer.step < config.steps and trainer.stale < config.validation.stop_patience:
        print(f"stopped at step {trainer.step} of {config.steps}; the same command resumes")
        return None
    best_model, state, best = read_checkpoint(out / "best.safetensors")
    result = out / f"{head.name}.safetensors"
    about = {**info, **best, "finetuned_from": start.stem, "head": head.name,
             "head_licence": head.metadata.get("licence", "not stated")}
    save_checkpoint(result, state, best_model, about, half=True)
    after = measure_heads(result, heads, config.data.packed, mixtures, device)
    text = "\n".join([
        f"# {head.name}: {start.stem} fine-tuned", "",
        f"{trainer.best_step} steps of {config.batch_size} scenes (the best validation of "
        f"{config.steps}); {mixtures} mixtures of 2 sounds of the {SPLIT} split, "
        f"{model.window:g} s, no room, -5 to 5 dB; 95% bootstrap over recordings in brackets.",
        "", table(before, after), ""])
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return result


def _before(path: Path, start: Path, heads: Sequence[Head], packed: str, mixtures: int,
            device: str | None) -> list[dict[str, Any]]:
    """The test before training; kept, so that a resumed run needn't repeat it."""
    key = {"checkpoint": str(start), "bytes": start.stat().st_size, "packed": packed,
           "split": SPLIT, "heads": [head.name for head in heads], "mixtures": mixtures}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("of") == key:
            return kept["rows"]
    rows = measure_heads(start, heads, packed, mixtures, device)
    path.write_text(json.dumps({"of": key, "rows": rows}, indent=1), encoding="utf-8")
    return rows


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="luseel-finetune",
        description="Fine-tune a trained network on one's own head, and say what it gained.")
    parser.add_argument("head", help="SOFA file; also a 720-channel WAV, an NPZ file with azimuth, "
                        "hrir and rate, or a head of luseel-heads or luseel calibrate")
    parser.add_argument("--out", help="folder of the run (default: runs/HEAD); a run in it is "
                        "resumed")
    parser.add_argument("--init", help="checkpoint to start from (default: the shipped)")
    parser.add_argument("--config", default="finetune", help="name in training/configs or path of "
                        "a YAML file (default: %(default)s)")
    parser.add_argument("--packed", help="folder of packed recordings (default: data/packed)")
    parser.add_argument("--also", nargs="*", default=["mit_kemar"], metavar="HEAD",
                        help="heads to mix in, so that they aren't forgotten (default: mit_kemar; "
                        "nothing: none)")
    parser.add_argument("--steps", type=int, help="training steps (default: 600)")
    parser.add_argument("--mixtures", type=int, default=100,
                        help="mixtures of the test before and after (default: %(default)s)")
    parser.add_argument("--uncalibrated", action="store_true",
                        help="take the responses as measured: the robot's audio then must not be "
                        "calibrated either")
    add_run_options(parser)
    return run_command("luseel-finetune", parser.parse_args(argv), _finetune)


def _finetune(args: argparse.Namespace) -> int:
    changes = list(args.changes)
    if args.packed:
        changes.append(f"data.packed={json.dumps(args.packed)}")
    if args.steps is not None:
        changes += [f"steps={args.steps}", f"optimizer.decay_steps={round(args.steps * 0.75)}"]
    if args.mixtures < 1 or (args.steps is not None and args.steps < 1):
        raise ConfigError("--mixtures and --steps must be 1 or more")
    config = load_train_config(args.config, changes)
    toy.build_if_asked_for(config.packed)
    head = read_head(args.head, not args.uncalibrated)
    if "calibration" in head.metadata:
        print(f"{head.name}: licence {head.metadata.get('licence', 'not stated')}; put right: "
              f"{head.metadata['calibration']}")
    out = Path(args.out or Path("runs") / head.name)
    result = finetune(head, out, config, args.init, args.also, args.mixtures, args.device,
                      args.minutes)
    if result is not None:
        print(f"written: {result}\nuse it:  ros2 run luseel luseel_node --ros-args -p "
              f"model:={result.resolve()} -p calibration:=ears.yaml\n"
              f"         luseel extract IN.wav QUERY --model {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
