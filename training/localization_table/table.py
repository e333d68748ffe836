"""Tables I and II beside the paper's, with intervals over the recordings."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from luseel_model.errors import ConfigError
from training.localization_table.evaluate import CELLS
from training.localization_table.systems import (LEFT_OUT, PAPER_ONE, PAPER_TWO, SYSTEMS,
                                                 system_name)
from training.metrics import Interval, bootstrap
from training.report import table

TARGETS = {"additive": 3.0, "two": 32.0}


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Columns of a file of :func:`~training.localization_table.evaluate.run_cell`."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {"error": np.array([float(row["error"]) for row in rows]),
            "right": np.array([float(row["right"]) for row in rows]),
            "recording": np.array([row["recording"] for row in rows])}


def _text(interval: Interval, scale: float = 1.0, digits: int = 1) -> str:
    low, high = interval.low * scale, interval.high * scale
    return f"{interval.mean * scale:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def make_table(results: str | Path) -> str:
    """The report, Markdown.

    Raises:
        ConfigError: there are no results.
    """
    results = Path(results)
    parts = {True: [], False: []}
    for system in SYSTEMS:
        for cell in CELLS:
            path = results / system_name(system.key) / f"{cell.key}.csv"
            if not path.is_file():
                continue
            rows = read_rows(path)
            error = bootstrap(rows["error"], rows["recording"])
            right = bootstrap(rows["right"], rows["recording"])
            parts[cell.moving].append([
                system.name, system.text, system.audio, system.fusion, cell.title, _text(error),
                f"{np.median(rows['error']):.1f}",
                "" if cell.additive else _text(right, 100, 0), str(error.n)])
    if not any(parts.values()):
        raise ConfigError(f"no results in {results}: run `python -m training.localization_table "
                          "evaluate` first")
    head = ["system", "text", "audio", "fusion", "scenes", "MAE [°] (95% interval)",
            "median [°]", "right sound [%]", "queries"]
    titles = {cell.key: cell.title for cell in CELLS}
    one = [["paper 001", text, audio, fusion, titles[cell], f"{mae}", "", "", ""]
           for text, audio, fusion, cell, mae in PAPER_ONE]
    two = [["paper 001", text, audio, fusion, "measured rooms", f"{mae}", "", "", ""]
           for text, audio, fusion, mae in PAPER_TWO]
    lines = ["# Directions of described sounds", "",
             "Unseen recordings in unseen simulated rooms (RT60 0.5 to 1 s, a square of four "
             "microphones), two sounds at 0 dB, asked for by their labels; intervals over the "
             "recordings. The paper's figures are of AudioCaps recordings, and so of other sounds "
             "and captions.", "",
             "## Table I: still sounds", "", table(head, parts[False] + one), "",
             "## Table II: moving sounds", "",
             "Ours are simulated, the paper's measured: the figures stand beside each other, and "
             "are no comparison.", "", table(head, parts[True] + two), "",
             "## Left out", "", *[f"- {reason}" for reason in LEFT_OUT], ""]
    return "\n".join(lines)


def write_table(results: str | Path, out: str | Path) -> Path:
    """Write ``table.md`` and copy the rows it is made from."""
    out = Path(out)
    text = make_table(results)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "table.md"
    path.write_text(text, encoding="utf-8")
    for system in SYSTEMS:
        for cell in CELLS:
            source = Path(results) / system_name(system.key) / f"{cell.key}.csv"
            target = out / system_name(system.key) / source.name
            if source.is_file() and source.resolve() != target.resolve():
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(source.read_bytes())
    return path
