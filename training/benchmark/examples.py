"""Examples to hear and to see: of each cell the mixture at the median by SI-SNRi.

So nothing is chosen by ear.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any, Iterable, Sequence

import soundfile
from tqdm import tqdm

from luseel_model.errors import ConfigError
from luseel_model.plotting import plot_extractions
from training import SAMPLE_RATE
from training.benchmark.render import BenchmarkMixture, Renderer
from training.benchmark.run import tell_head

FULL_SCALE = 0.7  # of the mixture's peak in the files


def median_mixture(rows: Sequence[dict[str, Any]]) -> int:
    """Number of the mixture at the (lower) median by SI-SNRi.

    Args:
        rows: of one cell, as :class:`~training.benchmark.run.Results` has them.

    Raises:
        ConfigError: no sound was asked for by its label.
    """
    gains: dict[int, list[float]] = {}
    for row in rows:
        if row["asked"] == "label" and row.get("si_snri") is not None:
            gains.setdefault(row["mixture"], []).append(row["si_snri"])
    if not gains:
        raise ConfigError("the run has no rows of this cell: evaluate it first")
    mean = {number: statistics.fmean(values) for number, values in gains.items()}
    middle = statistics.median_low(mean.values())
    return next(number for number, value in sorted(mean.items()) if value == middle)


def read_licences(packed: str | Path) -> dict[str, tuple[str, str]]:
    """Source and licence of each packed test recording, by name."""
    with open(Path(packed) / "test.csv", newline="", encoding="utf-8") as file:
        return {row["name"]: (row["source"], row["licence"]) for row in csv.DictReader(file)}


def _describe(mixture: BenchmarkMixture) -> str:
    where = "no room" if not mixture.rt60 else f"a room with RT60 {mixture.rt60:.2f} s"
    if mixture.noise is not None:
        where += f", diffuse noise {mixture.noise_db:.0f} dB below the sounds"
    return f"{len(mixture.kind)} sounds, {where}"


def write_examples(model, renderers: Iterable[Renderer], rows: dict[str, list[dict[str, Any]]],
                   licences: dict[str, tuple[str, str]], out: str | Path,
                   give_head: bool | str = False, window: float | None = None) -> list[Path]:
    """Write each cell's example: Ogg Vorbis files, a picture, and ``README.md`` about all.

    Args:
        model: a luseel_model Extractor.
        rows: of a run of this model, by cell.
        licences: see :func:`read_licences`.
        give_head, window: how the model is told the responses of each cell's head, and from how
            many seconds it extracts at once: as in the run.

    Returns:
        the files.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files, text = [], []
    for renderer in tqdm(list(renderers), desc="examples", unit="cell"):
        if give_head:
            tell_head(model, renderer.head, give_head)
        cell = renderer.cell.name
        mixture = renderer[median_mixture(rows[cell])]
        found = model.extract(mixture.audio, SAMPLE_RATE, mixture.kind, progress=False,
                              window=window)
        scale = FULL_SCALE / max(abs(mixture.audio).max(), 1e-9)
        sounds = [("mixture", mixture.audio)]
        for i, (extraction, truth) in enumerate(zip(found, mixture.sources), start=1):
            sounds += [(f"{i}_extracted", extraction.audio), (f"{i}_true", truth)]
        for name, audio in sounds:
            files.append(out / f"{cell}_{name}.ogg")
            soundfile.write(files[-1], (audio * scale).clip(-1, 1).T, SAMPLE_RATE,
                            format="OGG", subtype="VORBIS")
        files.append(out / f"{cell}.jpg")
        plot_extractions(mixture.audio, found, files[-1], [float(a) for a in mixture.azimuth])
        text += _section(cell, mixture, found, rows[cell], licences)
    files.append(out / "README.md")
    files[-1].write_text("\n".join([*_HEAD, *text]) + "\n", encoding="utf-8")
    return files


_HEAD = [
    "# What it sounds like", "",
    "The middle of the pack: of each cell of the benchmark ([../benchmark.md](../benchmark.md)) the "
    "mixture at the median", "by SI-SNRi. Wear headphones: left and right are the ears. Written by "
    "`luseel-benchmark-set examples`.", ""]


def _section(cell: str, mixture: BenchmarkMixture, found, rows, licences) -> list[str]:
    lines = [f"## {cell}, mixture {mixture.index}", "",
             f"{_describe(mixture)}. [The mixture]({cell}_mixture.ogg)", "",
             "| asked for | extracted | at the ears alone | SI-SNRi [dB] | azimuth, true [°] | "
             "estimate [°] | recording | licence |", "|---|---|---|---|---|---|---|---|"]
    gains = {row["source"]: row["si_snri"] for row in rows
             if row["mixture"] == mixture.index and row["asked"] == "label"}
    for i, (kind, extraction) in enumerate(zip(mixture.kind, found)):
        source, licence = licences.get(mixture.recording[i], ("", "?"))
        lines.append(
            f"| {kind} | [hear]({cell}_{i + 1}_extracted.ogg) | [hear]({cell}_{i + 1}_true.ogg) | "
            f"{gains[i]:.1f} | {mixture.azimuth[i]:.0f} | {extraction.azimuth:.0f} | "
            f"{Path(mixture.recording[i]).name} of {source} | {licence} |")
    return [*lines, "", f"![Spectrograms and directions]({cell}.jpg)", ""]
