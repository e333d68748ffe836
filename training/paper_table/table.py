"""The ten rows beside the paper's, the differences that the paper argues by, and the figures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from luseel_model.errors import ConfigError
from training.benchmark.compare import load_run
from training.benchmark.report import Bootstrap, figure
from training.metrics import bootstrap
from training.paper_table.systems import BY_KEY, PAPER, SYSTEMS
from training.plots import plot_scatters
from training.report import plain, table

METRICS = {"si_snri": "SI-SNRi [dB]", "sdri": "SDRi [dB]", "within_5": "within 5° [%]",
           "doa_error": "MAE [°]"}
#: Which of two systems the paper finds better, in which respect.
CLAIMS = (
    ("two ears against one", "luseel-no-localization", "t-htdemucs", ("si_snri",)),
    ("localization helps extraction", "luseel", "luseel-no-localization", ("si_snri",)),
    ("the same without GCC-PHAT", "luseel-no-gcc", "luseel-no-localization", ("si_snri",)),
    ("extraction helps localization", "luseel", "mlp-gcc", ("within_5", "doa_error")),
    ("the same without GCC-PHAT", "luseel-no-gcc", "mlp-gcc", ("within_5", "doa_error")),
    ("GCC-PHAT", "luseel", "luseel-no-gcc", ("si_snri", "within_5", "doa_error")),
)
#: What is kept of each system beside the table.
KEPT = ("summary.json", "rows.csv.gz", "validation.csv", "config.json")
_COLOURS = ("#d9722e", "#33658a", "#5fa777", "#8a5a9e", "0.1")


def read_results(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What ``evaluate`` left in a folder: per system its summary, its rows of sounds asked for by
    label, and its validations during training.

    Raises:
        ConfigError: there is nothing, or the systems heard different mixtures.
    """
    found = {}
    for system in SYSTEMS:
        part = Path(folder) / system.key
        if not (part / "summary.json").is_file():
            continue
        summary, rows = load_run(part)
        trend: list[dict[str, float]] = []
        if (part / "validation.csv").is_file():
            with open(part / "validation.csv", newline="", encoding="utf-8") as file:
                trend = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        found[system.key] = {"summary": summary, "trend": trend,
                             "rows": [row for row in rows if row["asked"] == "label"]}
    if not found:
        raise ConfigError(f"no results in {folder}: run `python -m training.paper_table evaluate` "
                          "first")
    heard = {key: (value["summary"]["sha256"], str(value["summary"].get("inputs")),
                   [(c["cell"], c["mixtures"]) for c in value["summary"]["cells"]])
             for key, value in found.items()}
    if len(set(map(str, heard.values()))) > 1:
        raise ConfigError(f"the systems in {folder} heard different mixtures or heads: evaluate "
                          "all of them with the same options")
    return found


def _cells(result: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {cell["sources"]: cell for cell in result["summary"]["cells"]}


def measured(key: str, cell: dict[str, Any]) -> dict[str, Any]:
    """The intervals of what a system is for: no extraction by MLP-GCC, no direction by others."""
    system = BY_KEY[key]
    wanted = [*(("si_snri", "sdri") if system.extracts else ()),
              *(("within_5", "doa_error") if system.locates else ())]
    return {name: cell["metrics"][name] for name in wanted if name in cell["metrics"]}


def differences(results: dict[str, dict[str, Any]], how: Bootstrap = Bootstrap()
                ) -> list[dict[str, Any]]:
    """The paper's comparisons: its difference and ours, paired by query, with 95% intervals over
    recordings; ``agrees`` is None where ours has 0 in its interval."""
    found = []
    for what, first, second, metrics in CLAIMS:
        if first not in results or second not in results:
            continue
        for sources in (2, 3):
            keyed = [{(r["mixture"], r["source"]): r for r in results[key]["rows"]
                      if r["cell"] == _cells(results[key])[sources]["cell"]}
                     if sources in _cells(results[key]) else {} for key in (first, second)]
            common = [key for key in keyed[0] if key in keyed[1]]
            if not common:
                continue
            for metric in metrics:
                ours = asdict(bootstrap(
                    [keyed[0][key][metric] - keyed[1][key][metric] for key in common],
                    [keyed[0][key]["recording"] for key in common], how.resamples, seed=how.seed))
                paper = PAPER[sources, first][metric] - PAPER[sources, second][metric]
                decided = ours["low"] > 0 or ours["high"] < 0
                found.append({
                    "what": what, "first": first, "second": second, "sources": sources,
                    "metric": metric, "paper": round(paper, 4), "ours": ours,
                    "agrees": (ours["mean"] > 0) == (paper > 0) if decided else None})
    return found


def _paper_words(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if metric == "within_5" else f"{value:.1f}"


def _minutes(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.1f}"


def markdown(results: dict[str, dict[str, Any]], compared: Sequence[dict[str, Any]]) -> str:
    """Table, differences and conditions as Markdown."""
    columns = [m for m in METRICS if any(
        m in measured(key, cell) for key, result in results.items()
        for cell in _cells(result).values())]
    rows, number = [], 0
    for sources in (2, 3):
        for system in SYSTEMS:
            number += 1
            paper = PAPER[sources, system.key]
            result = results.get(system.key)
            cell = _cells(result).get(sources) if result else None
            ours = measured(system.key, cell) if cell else {}
            about = result["summary"] if result else {}
            values = [text for m in columns
                      for text in (figure(ours.get(m), m), _paper_words(m, paper.get(m)))]
            rows.append([
                str(number), str(sources), system.name, system.tasks,
                "yes" if system.gcc_phat else "no", str(system.channels),
                f"{about['parameters'] / 1e6:.2f}" if about.get("parameters") else "–",
                _minutes(about.get("training_seconds")), *values])
    head = ["#", "sounds", "system", "tasks", "GCC-PHAT", "channels", "parameters [M]",
            "training [min]", *(text for m in columns for text in (METRICS[m], "paper"))]
    some = next(iter(results.values()))["summary"]
    cells = some["cells"]
    lines = [
        "# The paper's Table 1 on the open benchmark", "",
        f"Benchmark {some['benchmark']} (`{some['sha256'][:12]}`), "
        + ", ".join(f"{c['cell']} {c['mixtures']} of {c['of']} mixtures" for c in cells)
        + f" of {some['seconds']:g} s, all sounds asked for by label; windows of "
        f"{some['window']:g} s every {some['hop']:g} s. In brackets: "
        f"{some['confidence_interval']}. T-HTDemucs: of the left ear; the others: mean of both.",
        "", table(head, rows), ""]
    shared = {r["summary"].get("tags_seconds") for r in results.values()} - {None}
    if shared:
        lines += ["The systems with an audio encoder start from the same tagger of sounds, trained "
                  f"for {_minutes(max(shared))} min, which isn't in the times.", ""]
    unfinished = [f"{BY_KEY[key].name} {r['summary']['steps']} of {r['summary']['of_steps']}"
                  for key, r in results.items()
                  if r["summary"].get("steps", 0) < r["summary"].get("of_steps", 0)]
    if unfinished:
        lines += [f"The best validation came before the last step: {', '.join(unfinished)}.", ""]
    if compared:
        words = {True: "as in the paper", False: "**other than in the paper**", None: "undecided"}
        lines += ["## What the paper argues by", "", table(
            ["what", "difference", "sounds", "measure", "paper", "here", ""],
            [[d["what"], f"{BY_KEY[d['first']].name} less {BY_KEY[d['second']].name}",
              str(d["sources"]), METRICS[d["metric"]],
              f"{d['paper'] * (100 if d['metric'] == 'within_5' else 1):+.1f}",
              figure(d["ours"], d["metric"]), words[d["agrees"]]] for d in compared]), "",
            "Paired by query. Undecided: the interval has 0 in it. T-HTDemucs is measured at the "
            "left ear, what it is compared with at both.", ""]
    return "\n".join(lines)


# -- figures


def _grouped_bars(series: dict[str, Sequence[dict]], metric: str, unit: str, title: str,
                  path: Path) -> Path:
    """One group of bars a range of angles, one colour a system."""
    drawing = Figure(figsize=(7, 3.6))
    axes = drawing.subplots()
    for i, (name, groups) in enumerate(series.items()):
        values = np.array([[g[metric][part] if g.get(metric) else np.nan
                            for part in ("mean", "low", "high")] for g in groups], dtype=float).T
        reach = np.nan_to_num(np.stack([values[0] - values[1], values[2] - values[0]])).clip(min=0)
        place = np.arange(len(groups)) + 0.4 * (i - (len(series) - 1) / 2)
        axes.bar(place, values[0], 0.38, color=_COLOURS[i], label=name, yerr=reach, capsize=2,
                 ecolor="0.3")
    groups = next(iter(series.values()))
    axes.set_xticks(range(len(groups)),
                    [f"{g['from']:g}–{g['to']:g}°\n({g['n']})" for g in groups], fontsize=7)
    axes.set_xlabel("angle to the other sound (queries)")
    axes.set_ylabel(unit)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7)
    axes.set_title(title, fontsize=8)
    drawing.savefig(path, dpi=130, bbox_inches="tight")
    return path


def _trend(results: dict[str, dict[str, Any]], path: Path) -> Path | None:
    """Validation during training: is an ordering settled, or a matter of the budget?"""
    if not any(result["trend"] for result in results.values()):
        return None
    drawing = Figure(figsize=(10, 3.6))
    panels = drawing.subplots(1, 2)
    for i, (key, result) in enumerate(results.items()):
        for axes, metric, has in ((panels[0], "si_snri", BY_KEY[key].extracts),
                                  (panels[1], "doa_error", BY_KEY[key].locates)):
            if has and result["trend"]:
                axes.plot([row["step"] for row in result["trend"]],
                          [row[metric] for row in result["trend"]], marker="o", markersize=3,
                          color=_COLOURS[i], label=BY_KEY[key].name)
    for axes, unit in zip(panels, ("SI-SNRi [dB]", "mean absolute error [degrees]")):
        axes.set_xlabel("training step")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    drawing.suptitle("validation: single windows, queries by label", fontsize=8)
    drawing.savefig(path, dpi=130, bbox_inches="tight")
    return path


def draw(results: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """The paper's Figures 2 to 4 of the same systems, as far as there are results; the trend."""
    files: list[Path] = []
    two = {key: _cells(result)[2] for key, result in results.items() if 2 in _cells(result)}
    for number, metric, unit, keys in (
            (2, "si_snri", "SI-SNRi [dB]", ("luseel-no-localization", "luseel")),
            (3, "doa_error", "mean absolute error [degrees]", ("mlp-gcc", "luseel"))):
        if all(key in two for key in keys):
            files.append(_grouped_bars(
                {BY_KEY[key].name: two[key]["by_separation"] for key in keys}, metric, unit,
                f"Figure {number} of the paper: 2 sounds, {two[keys[0]]['mixtures']} mixtures; "
                "95% over recordings", folder / f"figure{number}.png"))
    if "luseel-no-gcc" in two and "luseel" in two:
        files.append(plot_scatters(
            {BY_KEY[key].name: [row for row in results[key]["rows"]
                                if row["cell"] == two[key]["cell"]]
             for key in ("luseel-no-gcc", "luseel")},
            f"Figure 4 of the paper: 2 sounds, {two['luseel']['mixtures']} mixtures",
            folder / "figure4.png"))
    return files + [path for path in [_trend(results, folder / "trend.png")] if path]


def write_table(results_folder: str | Path, out: str | Path) -> list[Path]:
    """Write table.md, table.json and the figures, and keep what they come from beside them, so that
    the same can be made again from there.

    Returns:
        the written files.
    """
    results, out = read_results(results_folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    compared = differences(results)
    files = [out / "table.md", out / "table.json"]
    files[0].write_text(markdown(results, compared), encoding="utf-8")
    rows = [{"sounds": sources, "system": key, "ours": measured(key, _cells(result)[sources]),
             "paper": PAPER[sources, key],
             **{name: result["summary"].get(name) for name in (
                 "parameters", "training_seconds", "tags_seconds", "steps", "of_steps")}}
            for sources in (2, 3) for key, result in results.items() if sources in _cells(result)]
    files[1].write_text(json.dumps(plain({"rows": rows, "differences": compared}), indent=1,
                                   ensure_ascii=False) + "\n", encoding="utf-8")
    files += draw(results, out)
    if out.resolve() != Path(results_folder).resolve():
        for key in results:
            (out / key).mkdir(exist_ok=True)
            for name in KEPT:
                source = Path(results_folder) / key / name
                if source.is_file():
                    files.append(Path(shutil.copyfile(source, out / key / name)))
    return files
