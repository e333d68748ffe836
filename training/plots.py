"""Figures of an evaluation: the paper's figures 2 to 4, and one bar per kind of sound.

Every figure names its data, head, room, number of mixtures and interval in its title.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#33658a", "#d9722e", "0.6"
_SERIES = ("#33658a", "#5fa777", "#d9722e", "#8a5a9e")
_ROOMS = ("no room", "room", "room and noise")  # the same colour in every figure
SEPARATION_EDGES = (0, 15, 30, 60, 90, 120, 150, 180)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return path


def plot_separation(groups: Sequence[dict], title: str, path: Path) -> Path:
    """SI-SNRi and MAE by the angle to the nearest interferer (paper figures 2 and 3).

    Args:
        groups: of `evaluation.by_separation`: low and high edge in degrees, n, and the intervals
            si_snri and doa_error as dicts of mean, low and high.
        title: what the figure shows.
        path: PNG to write.
    """
    figure = Figure(figsize=(9, 3.6))
    panels = figure.subplots(1, 2)
    labels = [f"{g['from']:g}–{g['to']:g}°\n({g['n']})" for g in groups]
    for axes, key, unit, colour in (
        (panels[0], "si_snri", "SI-SNRi [dB]", _BLUE),
        (panels[1], "doa_error", "mean absolute error [degrees]", _ORANGE),
    ):
        _bars(axes, [g.get(key) for g in groups], colour)
        axes.set_xticks(range(len(groups)), labels, fontsize=7)
        axes.set_xlabel("angle to the nearest interferer (queries)")
        axes.set_ylabel(unit)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    return _save(figure, path)


def _bars(axes, intervals: Sequence[dict | None], colour: str) -> None:
    means = np.array([np.nan if i is None else i["mean"] for i in intervals], dtype=float)
    bounds = [(np.nan, np.nan) if i is None else (i["low"], i["high"]) for i in intervals]
    low, high = np.array(bounds, dtype=float).reshape(-1, 2).T
    reach = np.nan_to_num(np.stack([means - low, high - means])).clip(min=0)
    axes.bar(range(len(means)), means, color=colour, yerr=reach, capsize=2, ecolor="0.3")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.grid(axis="y", alpha=0.3)


def plot_scatter(rows: Sequence[dict], title: str, path: Path) -> Path:
    """Direction error against SI-SNRi, one dot a query (paper figure 4)."""
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    right = np.array([row["right_source"] == 1 for row in rows], dtype=bool)
    gain = np.array([row["si_snri"] for row in rows], dtype=float)
    error = np.array([row["doa_error"] for row in rows], dtype=float)
    for chosen, colour, name in ((right, _BLUE, "right source"), (~right, _ORANGE, "wrong source")):
        axes.scatter(gain[chosen], error[chosen], s=9, alpha=0.55, color=colour, label=name)
    axes.set_xlabel("SI-SNRi [dB]")
    axes.set_ylabel("direction error [degrees]")
    axes.set_ylim(-3, 183)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(title, fontsize=7, wrap=True)
    return _save(figure, path)


def plot_kinds(groups: Sequence[dict], title: str, path: Path) -> Path:
    """SI-SNRi and share within 5 degrees, one bar a kind of sound.

    Args:
        groups: of `evaluation.by_kind`: kind, n, recordings, intervals si_snri and within_5.
        title, path: as in `plot_separation`.
    """
    groups = sorted(groups, key=lambda group: group["si_snri"]["mean"])
    figure = Figure(figsize=(9, max(2.5, 0.16 * len(groups) + 1.2)))
    panels = figure.subplots(1, 2, sharey=True)
    place = range(len(groups))
    for axes, key, unit, colour, scale in (
        (panels[0], "si_snri", "SI-SNRi [dB]", _BLUE, 1),
        (panels[1], "within_5", "directions within 5° [%]", _ORANGE, 100),
    ):
        means, low, high = (
            scale * np.array([g[key][part] if g.get(key) else np.nan for g in groups], dtype=float)
            for part in ("mean", "low", "high")
        )
        reach = np.nan_to_num(np.stack([means - low, high - means])).clip(min=0)
        axes.barh(place, means, color=colour, xerr=reach, ecolor="0.3", capsize=1,
                  error_kw={"linewidth": 0.7})
        axes.axvline(0, color=_GREY, linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(unit)
    names = [f"{g['kind']} ({g['recordings']})" for g in groups]
    panels[0].set_yticks(place, names, fontsize=6)
    panels[0].set_ylim(-0.7, len(groups) - 0.3)
    figure.suptitle(f"{title}\n(recordings in brackets)", fontsize=8)
    figure.tight_layout()
    return _save(figure, path)


def plot_separations(series: Mapping[str, Sequence[dict]], title: str, path: Path) -> Path:
    """SI-SNRi and MAE by the angle to the nearest interferer, one line a condition.

    Args:
        series: condition in words -> groups as for `plot_separation`.
        title, path: as there.
    """
    figure = Figure(figsize=(10, 3.8))
    panels = figure.subplots(1, 2)
    groups = next(iter(series.values()))
    labels = [f"{g['from']:g}–{g['to']:g}°" for g in groups]
    for axes, key, unit in ((panels[0], "si_snri", "SI-SNRi [dB]"),
                            (panels[1], "doa_error", "mean absolute error [degrees]")):
        for i, (name, found) in enumerate(series.items()):
            colour = _SERIES[_ROOMS.index(name) if name in _ROOMS else i % len(_SERIES)]
            means, reach = _means([g.get(key) for g in found])
            place = np.arange(len(found)) + 0.12 * (i - (len(series) - 1) / 2)
            axes.errorbar(place, means, reach, marker="o", markersize=4, capsize=2, linewidth=1.2,
                          elinewidth=0.8, color=colour, label=name)
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.grid(axis="y", alpha=0.3)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_xlabel("angle to the nearest interferer")
        axes.set_ylabel(unit)
    panels[1].legend(fontsize=7)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    return _save(figure, path)


def _means(intervals: Sequence[dict | None], scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Means (n,) and the reach of their intervals down and up (2, n), NaN where there is none."""
    parts = np.array([[np.nan] * 3 if i is None else [i["mean"], i["low"], i["high"]]
                      for i in intervals], dtype=float).reshape(-1, 3).T * scale
    reach = np.nan_to_num(np.stack([parts[0] - parts[1], parts[2] - parts[0]])).clip(min=0)
    return parts[0], reach


def plot_scatters(series: Mapping[str, Sequence[dict]], title: str, path: Path) -> Path:
    """Direction error against SI-SNRi, one panel a condition (paper figure 4).

    Args:
        series: condition in words -> rows with si_snri, doa_error and right_source.
    """
    figure = Figure(figsize=(3.4 * len(series) + 0.6, 3.6))
    panels = figure.subplots(1, len(series), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, series.items()):
        right = np.array([row.get("right_source") == 1 for row in rows], dtype=bool)
        gain = np.array([row["si_snri"] for row in rows], dtype=float)
        error = np.array([row["doa_error"] for row in rows], dtype=float)
        for chosen, colour, label in ((right, _BLUE, "right source"),
                                      (~right, _ORANGE, "wrong source")):
            axes.scatter(gain[chosen], error[chosen], s=7, alpha=0.5, color=colour, label=label)
        axes.set_xlabel("SI-SNRi [dB]")
        axes.set_ylim(-3, 183)
        axes.grid(alpha=0.3)
        axes.set_title(f"{name} ({len(rows)} queries)", fontsize=8)
    panels[0].set_ylabel("direction error [degrees]")
    panels[-1].legend(fontsize=7)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    return _save(figure, path)


def plot_cells(cells: Sequence[dict], name: Callable[[dict], str], title: str,
               path: Path) -> Path:
    """SI-SNRi, share within 5 degrees and MAE of each cell, with the known values beside them.

    Args:
        cells: of `training.benchmark.report.summarise_cell`.
        name: words for a cell.
    """
    figure = Figure(figsize=(11, 0.34 * len(cells) + 1.6))
    panels = figure.subplots(1, 3, sharey=True)
    place = np.arange(len(cells))
    for axes, key, known, unit, words, scale in (
        (panels[0], "si_snri", "irm_si_snri", "SI-SNRi [dB]", "ideal ratio mask", 1.0),
        (panels[1], "within_5", "gcc_within_5", "directions within 5° [%]",
         "GCC-PHAT of the mixture", 100.0),
        (panels[2], "doa_error", "gcc_error", "mean absolute error [degrees]",
         "GCC-PHAT of the mixture", 1.0),
    ):
        means, reach = _means([cell["metrics"].get(key) for cell in cells], scale)
        axes.barh(place, means, height=0.7, color=[_SERIES[("none", "room", "noise").index(
            cell["room"])] for cell in cells], xerr=reach, ecolor="0.2", capsize=2)
        axes.scatter(_means([cell["known"].get(known) for cell in cells], scale)[0], place,
                     marker="|", s=130, color="0.2")
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(f"{unit}\n(mark: {words})")
    panels[0].set_yticks(place, [name(cell) for cell in cells], fontsize=7)
    panels[0].invert_yaxis()
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    return _save(figure, path)
