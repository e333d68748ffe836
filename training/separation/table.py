"""Tables 1 and 2 of paper 004 beside the same measured here, and its box plots (figure 2)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from luseel_model.errors import ConfigError
from training.benchmark.run import Results
from training.metrics import bootstrap
from training.report import format_interval, plain, table
from training.separation.metrics import METRICS
from training.separation.mixtures import MONO, Mixtures

HEADINGS = {"sdr": "SDR", "sir": "SIR", "sar": "SAR", "si_sdr": "SI-SDR"}
#: Means of the paper, dB, in the order of METRICS.
PAPER = {
    "Table 1, LASS-Test": {
        "Unprocessed": (-0.46, 12.17, 0.55, -0.53),
        "UNet-Tag": (5.40, 16.28, 4.75, 4.24),
        "LASS-Net": (5.89, 16.70, 5.18, 4.86)},
    "Table 2, LASS-Sub-Test": {
        "Unprocessed": (0.56, 12.27, 1.68, 0.53),
        "UNet-Tag": (6.18, 16.41, 5.29, 4.90),
        "LASS-Net": (6.58, 17.57, 5.60, 5.55),
        "LASS-Net (human)": (6.13, 17.03, 5.45, 5.04)},
}
REFERENCES = {"unprocessed": "unprocessed mixture", "irm": "ideal ratio mask",
              "ibm": "ideal binary mask"}
ASKED = {"label": "label", "caption": "caption", "held_out": "held-out wordings",
         "nothing": '"a sound"', "other": "the other sound's label"}


@dataclass
class Run:
    """What ``evaluate`` left in a folder: about it, and rows by cell."""

    about: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]]

    @property
    def title(self) -> str:
        """What to call the model."""
        binaural = self.about.get("binaural")
        return self.about["model"] + (f", a mask {'each' if binaural == 'each' else 'for both'}"
                                      if binaural else "")


def read_run(folder: str | Path, mixtures: Mixtures) -> Run:
    """Raises:
        ConfigError: there is no run, or one of another version of the mixtures.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise ConfigError(f"{folder} is no run: make one with `python -m training.separation "
                          "evaluate`")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if about.get("catalogue_sha256") != mixtures.catalogue.sha256:
        raise ConfigError(f"{folder} is a run of other mixtures than {mixtures.catalogue.identity}")
    results = Results(folder, about)
    return Run(about, {cell: rows for cell in mixtures.catalogue.cells
                       if (rows := results.rows(cell))})


def by_mixture(rows: Sequence[dict[str, Any]], sort: str) -> dict[int, dict[str, Any]]:
    """Rows of one sort of query; several wordings of a mixture become their mean, as in the paper.
    """
    groups = defaultdict(list)
    for row in rows:
        if row["asked"] == sort:
            groups[row["mixture"]].append(row)
    return {index: {**group[0], **{key: float(np.mean([row[key] for row in group]))
                                   for key in METRICS}}
            for index, group in groups.items()}


def summarise_cell(reference: Run, runs: Sequence[Run], cell: str, resamples: int = 1000
                   ) -> list[dict[str, Any]]:
    """Rows of the table of one cell: over the mixtures that all of them have, means and
    improvements with 95% intervals over recordings of the target."""
    found = [("", sort, title, by_mixture(reference.rows.get(cell, []), sort))
             for sort, title in REFERENCES.items()]
    for run in runs:
        clue = run.about["clue"]
        for sort, title in ASKED.items():
            rows = by_mixture(run.rows.get(cell, []), sort)
            if rows:
                found.append((run.title, sort, title.replace("label", "tag") if clue == "tag"
                              else title, rows))
    if not found[0][3]:
        return []
    shared = sorted(set.intersection(*(set(rows) for *_, rows in found)))
    unprocessed = found[0][3]
    clusters = [unprocessed[i]["recording"] for i in shared]
    result = []
    for model, sort, title, rows in found:
        row: dict[str, Any] = {"model": model, "asked": sort, "title": title,
                               "mixtures": len(shared)}
        for key in METRICS:
            values = np.array([rows[i][key] for i in shared])
            before = np.array([unprocessed[i][key] for i in shared])
            row[key] = asdict(bootstrap(values, clusters, resamples))
            row[f"{key}_improvement"] = asdict(bootstrap(values - before, clusters, resamples))
        row["values"] = [round(rows[i]["sdr"], 3) for i in shared]
        result.append(row)
    return result


def differences(rows: Sequence[dict[str, Any]], recordings: Sequence[str], resamples: int = 1000
                ) -> list[dict[str, Any]]:
    """Paired SDR differences of each wording of a model from its first one."""
    result, first = [], {}
    for row in rows:
        if not row["model"]:
            continue
        base = first.setdefault(row["model"], row)
        if base is not row:
            difference = np.array(row["values"]) - np.array(base["values"])
            result.append({"model": row["model"], "title": row["title"], "base": base["title"],
                           "sdr": asdict(bootstrap(difference, recordings, resamples))})
    return result


def box_plots(cells: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """Box plots of the SDR, one panel a cell; the median in red, as in the paper's figure 2."""
    figure = Figure(figsize=(4.2 * len(cells) + 3.2, 4.6), layout="constrained")
    axes = figure.subplots(1, len(cells), squeeze=False)[0]
    for axis, (cell, rows) in zip(axes, cells.items()):
        rows = [row for row in rows if row["asked"] != "ibm"]
        labels = [row["title"] if not row["model"] else f"{row['model']}\n{row['title']}"
                  for row in rows]
        axis.boxplot([row["values"] for row in rows], orientation="horizontal",
                     medianprops={"color": "red"}, flierprops={"markersize": 2})
        axis.set_yticks(range(1, len(rows) + 1), labels, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(-15, 30)
        axis.axvline(0, color="0.8", zorder=0)
        axis.set(title=f"{_cell_words(cell)}, {rows[0]['mixtures']} mixtures", xlabel="SDR in dB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _cell_words(cell: str) -> str:
    return "mono" if cell == MONO else f"two ears ({cell})"


def markdown(summary: dict[str, Any]) -> str:
    """The tables as Markdown."""
    parts = ["# Separation at 0 dB", "",
             f"Mixtures {summary['catalogue']}: two recordings of the test split at equal energy, "
             f"{summary['seconds']:g} s at 16 kHz. dB, means with 95% intervals over the target's "
             "recordings; SDRi is the SDR less that of the unprocessed mixture.", ""]
    for cell, rows in summary["cells"].items():
        parts += [f"## {_cell_words(cell).capitalize()}", "",
                  f"{rows[0]['mixtures']} mixtures.", ""]
        lines = []
        for row in rows:
            name = row["title"] if not row["model"] else f"{row['model']}: {row['title']}"
            lines.append([name, *(format_interval(row[key], digits=2) for key in METRICS),
                          format_interval(row["sdr_improvement"], digits=2)])
        parts += [table(["", *HEADINGS.values(), "SDRi"], lines), ""]
        if summary["differences"].get(cell):
            parts += [table(["SDR against the first wording", "dB"], [
                [f"{d['model']}: {d['title']} less {d['base']}",
                 format_interval(d["sdr"], digits=2)] for d in summary["differences"][cell]]), ""]
    parts += ["## The paper's", "",
              "AudioCaps recordings, 32 kHz, networks of 50 million parameters and 200,000 steps; "
              "other mixtures and other networks than above. Its SIR and SAR of the unprocessed "
              "mixture (12.17 and 0.55 dB) can't come from BSS Eval with both sounds as "
              "references, where that mixture has an SIR near its SDR and a very high SAR: these "
              "two columns don't compare.", ""]
    for name, rows in PAPER.items():
        parts += [f"### {name}", "", table(
            ["", *HEADINGS.values(), "SDRi"],
            [[system, *(f"{v:.2f}" for v in values),
              f"{values[0] - rows['Unprocessed'][0]:.2f}"] for system, values in rows.items()]), ""]
    parts += ["![box plots of the SDR](separation.png)", ""]
    return "\n".join(parts)


def write_tables(reference: Run, runs: Sequence[Run], mixtures: Mixtures, out: str | Path,
                 resamples: int = 1000) -> Path:
    """Write ``separation.json``, ``separation.md`` and ``separation.png``; returns the folder."""
    out = Path(out)
    cells, apart = {}, {}
    for cell in mixtures.catalogue.cells:
        having = [run for run in runs if run.rows.get(cell)]
        rows = summarise_cell(reference, having, cell, resamples)
        if rows:
            cells[cell] = rows
            recordings = [row["recording"] for row in _shared(reference, having, cell)]
            apart[cell] = differences(rows, recordings, resamples)
    if not cells:
        raise ConfigError("the runs have no mixtures in common")
    summary = {"catalogue": mixtures.catalogue.identity, "seconds": mixtures.catalogue.seconds,
               "runs": [run.about for run in runs], "cells": cells, "differences": apart,
               "paper": PAPER}
    out.mkdir(parents=True, exist_ok=True)
    (out / "separation.json").write_text(
        json.dumps(plain(summary), indent=1) + "\n", encoding="utf-8")
    (out / "separation.md").write_text(markdown(summary), encoding="utf-8")
    box_plots(cells, out / "separation.png")
    return out


def _shared(reference: Run, runs: Sequence[Run], cell: str) -> list[dict[str, Any]]:
    """Rows of the unprocessed mixture where all runs have the mixture, in order."""
    rows = by_mixture(reference.rows[cell], "unprocessed")
    shared = set(rows)
    for run in runs:
        shared &= {row["mixture"] for row in run.rows[cell]}
    return [rows[i] for i in sorted(shared)]
