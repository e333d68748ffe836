"""What the profiles cost and gain in quality: ``python tools/field/lookahead.py``.

Two questions, asked of the test recordings (docs/data.md) with a checkpoint:

1. How much better does the model extract a stretch of sound when it hears what follows? The same
   half second is taken from windows that end with it, or up to 0.75 s later.
2. What comes out of a stream with each profile?

SI-SNRi is that of training.metrics. Writes docs/reports/lookahead.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from luseel_model import load_model  # noqa: E402
from luseel_model.streaming import PROFILES, ExtractionStream  # noqa: E402
from training.captions import Captions  # noqa: E402
from training.evaluation import EvaluationConfig, MixtureSet  # noqa: E402
from training.heads import load_head  # noqa: E402
from training.metrics import si_snr_per_ear_mean  # noqa: E402
from training.pool import ClipPool  # noqa: E402
from training.report import write_page  # noqa: E402

LOOKAHEADS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75)
PARTS = (0.5, 0.25, 0.1)  # the newest seconds that are compared
SECONDS = 6.0
SAVE_EVERY = 5  # mixtures
ACTIVE = 1e-2  # a stretch counts when its energy is above this share of the sound's mean


def improvement(estimate, target, mixture) -> np.ndarray:
    """SI-SNRi in dB, (Q,), of (Q, 2, n) signals."""
    return (si_snr_per_ear_mean(estimate, target) - si_snr_per_ear_mean(mixture, target)).numpy()


def ends_of_windows(model, mixture, moment: float) -> np.ndarray | None:
    """SI-SNRi of the sound before `moment` [s]: (kinds that sound then, look-aheads, PARTS)."""
    rate = model.sample_rate
    stop, count = round(moment * rate), round(PARTS[0] * rate)
    target = mixture.sources[..., stop - count:stop]
    level = target.square().mean((1, 2)) / mixture.sources.square().mean((1, 2)).clamp_min(1e-12)
    active = (level > ACTIVE).numpy()
    if not active.any():
        return None
    whole = mixture.audio[:, stop - count:stop].expand_as(target)
    ends = [stop + round(look * rate) for look in LOOKAHEADS]
    windows = torch.stack([mixture.audio[:, e - model.window_samples:e] for e in ends])
    values = np.zeros((len(target), len(ends), len(PARTS)))
    for i, (end, out) in enumerate(zip(ends, model.infer_windows(windows, mixture.kind))):
        at = model.window_samples - (end - stop)
        estimate = torch.from_numpy(out.audio[..., at - count:at])
        for j, part in enumerate(PARTS):
            n = round(part * rate)
            values[:, i, j] = improvement(
                estimate[..., -n:], target[..., -n:], whole[..., -n:])
    return values[active]


def streamed(model, mixture, profile: str, precision: str | None = None) -> np.ndarray:
    """SI-SNRi of what a stream gives out after its first window, (kinds,)."""
    stream = ExtractionStream(model, model.sample_rate, profile, precision=precision,
                              buffer_seconds=2 * SECONDS)
    stream.set_queries({str(i): kind for i, kind in enumerate(mixture.kind)})
    stream.push(mixture.audio.numpy())
    blocks: dict[str, list] = {}
    for result in stream.finish():
        for estimate in result.estimates:
            blocks.setdefault(estimate.key, []).append(estimate.audio)
    audio = torch.from_numpy(np.stack([np.concatenate(b, 1) for b in blocks.values()]))
    first = model.window_samples  # from here on the windows are full
    target = mixture.sources[..., first:]
    return improvement(audio[..., first:], target, mixture.audio[:, first:].expand_as(target))


def measure(model, mixtures, progress: bool | None = None, save=None) -> dict:
    """Both tables, ready for JSON; every SAVE_EVERY mixtures those so far go to save(report)."""
    windows, streams = [], []
    kinds = {name: (name, None) for name in PROFILES}
    kinds["balanced, float32"] = ("balanced", "float32")
    kinds["balanced, bfloat16"] = ("balanced", "bfloat16")
    bar = tqdm(mixtures, desc="mixtures", disable=None if progress is None else not progress)
    for mixture in bar:
        for moment in (2.5, 4.0, 5.25):
            values = ends_of_windows(model, mixture, moment)
            if values is not None:
                windows.append(values)
        streams.append([streamed(model, mixture, *kind) for kind in kinds.values()])
        if save and windows and len(streams) % SAVE_EVERY == 0:
            save(summary(model.name, len(streams), np.concatenate(windows), kinds,
                         np.concatenate(streams, axis=1)))
    return summary(model.name, len(streams), np.concatenate(windows), kinds,
                   np.concatenate(streams, axis=1))


def summary(name: str, mixtures: int, windows: np.ndarray, kinds, streams: np.ndarray) -> dict:
    """Means, and paired differences with their standard error."""
    def row(values, base):
        difference = values - base
        error = difference.std() / max(1, len(difference) - 1) ** 0.5
        return {"si_snri_db": round(float(values.mean()), 3),
                "gain_db": round(float(difference.mean()), 3), "error_db": round(float(error), 3)}

    parts = [{"newest_seconds": part, "stretches": len(windows), "rows": [
        {"lookahead": look, **row(windows[:, i, j], windows[:, 0, j])}
        for i, look in enumerate(LOOKAHEADS)]} for j, part in enumerate(PARTS)]
    balanced = list(kinds).index("balanced")
    return {"model": name, "mixtures": mixtures, "lookahead": parts, "profiles": [
        {"profile": kind, **row(values, streams[balanced])}
        for kind, values in zip(kinds, streams)]}


def markdown(report: dict) -> str:
    """The tables, to read."""
    parts = report["lookahead"]
    lines = [
        f"{report['model']}: SI-SNRi [dB] of the newest part of what is given out, against the "
        f"look-ahead; {parts[0]['stretches']} stretches in {report['mixtures']} mixtures. In "
        "brackets: gain over no look-ahead, paired, ± standard error.", "",
        "| look-ahead [s] | " + " | ".join(
            f"newest {p['newest_seconds']:g} s" for p in parts) + " |",
        "|---|" + "---|" * len(parts)]
    for i, look in enumerate(LOOKAHEADS):
        cells = [p["rows"][i] for p in parts]
        lines.append(f"| {look:g} | " + " | ".join(
            f"{c['si_snri_db']:.1f} ({c['gain_db']:+.2f} ± {c['error_db']:.2f})"
            for c in cells) + " |")
    lines += ["", "| streamed with profile | SI-SNRi [dB] | against balanced |", "|---|---|---|"]
    for row in report["profiles"]:
        lines.append(f"| {row['profile']} | {row['si_snri_db']:.2f} | {row['gain_db']:+.2f} ± "
                     f"{row['error_db']:.2f} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="path or name (default: the shipped)")
    parser.add_argument("--mixtures", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--packed", default="data/packed", help="default: %(default)s")
    parser.add_argument("--head", default="mit_kemar", help="default: %(default)s")
    parser.add_argument("--out", default=str(ROOT / "docs/reports"), help="folder")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = EvaluationConfig(packed=args.packed, heads=(args.head,), mixtures=args.mixtures,
                              seconds=SECONDS, seed=7)
    mixtures = MixtureSet(ClipPool.load(config.packed, "test"), load_head(args.head), config,
                          Captions.load())

    def save(report):
        write_page(args.out, "lookahead", report, markdown(report))

    report = measure(load_model(args.checkpoint, "cpu"), mixtures, save=save)
    save(report)
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
