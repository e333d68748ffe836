"""Tables I and II beside the paper's, with intervals over the recordings."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from luseel_model.errors import ConfigError
from training.localization_table.evaluate import CELLS, is_present
from training.localization_table.systems import (LEFT_OUT, PAPER_ONE, PAPER_TWO, SYSTEMS,
                                                 system_name)
from training.metrics import Interval, bootstrap, bootstrap_auroc
from training.report import table

TARGETS = {"additive": 3.0, "two": 32.0}


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """Columns of rows of :func:`~training.localization_table.evaluate.run_cell`: ``error``,
    ``right`` and ``recording`` of the sounds that are there; ``present``, ``confidence`` and
    ``asked`` (a recording of the scene) of those whose confidence is known."""
    there = [row for row in rows if is_present(row)]
    told = [row for row in rows if row.get("confidence") not in (None, "")]
    return {"error": np.array([float(row["error"]) for row in there]),
            "right": np.array([float(row["right"]) for row in there]),
            "recording": np.array([row["recording"] for row in there]),
            "present": np.array([is_present(row) for row in told], bool),
            "confidence": np.array([float(row["confidence"]) for row in told]),
            "asked": np.array([row["recording"] for row in told])}


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """:func:`columns` of a file."""
    with open(path, newline="", encoding="utf-8") as file:
        return columns(list(csv.DictReader(file)))


def _presence(rows: dict[str, np.ndarray]) -> tuple[str, str]:
    """How well the confidence tells present sounds from absent ones (AUROC), and the share of
    absent ones above 0.5 in percent; empty where there are none, or where the network can't
    say."""
    absent = ~rows["present"]
    if not absent.any() or np.ptp(rows["confidence"]) == 0:
        return "", ""
    area = bootstrap_auroc(rows["confidence"], rows["present"], rows["asked"])
    return (_text(area, digits=2),
            f"{100 * float((rows['confidence'][absent] > 0.5).mean()):.0f}")


def summary(rows: list[dict]) -> str:
    """One line about the rows of a cell."""
    found = columns(rows)
    text = (f"MAE {found['error'].mean():.2f}°, median {np.median(found['error']):.2f}°, "
            f"{len(found['error'])} queries")
    area, above = _presence(found)
    return text + (f"; presence AUROC {area}, absent above 0.5: {above}%" if area else "")


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
                "" if cell.additive else _text(right, 100, 0), str(error.n), *_presence(rows)])
    if not any(parts.values()):
        raise ConfigError(f"no results in {results}: run `python -m training.localization_table "
                          "evaluate` first")
    head = ["system", "text", "audio", "fusion", "scenes", "MAE [°] (95% interval)",
            "median [°]", "right sound [%]", "queries", "presence AUROC", "absent above 0.5 [%]"]
    titles = {cell.key: cell.title for cell in CELLS}
    one = [["paper 001", text, audio, fusion, titles[cell], f"{mae}", *[""] * 5]
           for text, audio, fusion, cell, mae in PAPER_ONE]
    two = [["paper 001", text, audio, fusion, "measured rooms", f"{mae}", *[""] * 5]
           for text, audio, fusion, mae in PAPER_TWO]
    lines = ["# Directions of described sounds", "",
             "Unseen recordings in unseen simulated rooms (RT60 0.5 to 1 s, a square of four "
             "microphones), two sounds at 0 dB, asked for by their labels; intervals over the "
             "recordings. In each scene a sound that isn't there is asked for, too. The paper's figures are of AudioCaps recordings, and so of other sounds "
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
