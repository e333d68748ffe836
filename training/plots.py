"""Figures of an evaluation: the paper's figures 2 to 4, and one bar per kind of sound.

Every figure names its data, head, room, number of mixtures and interval in its title.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#33658a", "#d9722e", "0.6"
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
