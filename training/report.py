"""Writes an evaluation down: JSON, CSV, Markdown, figures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.plots import plot_kinds, plot_scatter, plot_separation


def format_interval(value: dict | None, scale: float = 1.0, digits: int = 1) -> str:
    """An interval as "6.1 (5.2 to 6.9)"; a dash where there is none."""
    if not value or math.isnan(value["mean"]):
        return "–"
    text = f"{scale * value['mean']:.{digits}f}"
    if math.isnan(value["low"]):
        return text
    return f"{text} ({scale * value['low']:.{digits}f} to {scale * value['high']:.{digits}f})"


def conditions_text(summary: dict[str, Any], head: str | None = None) -> str:
    """What the figures are of, in one line."""
    config = summary["config"]
    low, high = config["snr_db"]
    parts = [
        f"data {summary['data']}, split {summary['split']}: {summary['recordings']} recordings of "
        f"{summary['kinds']} kinds",
        f"{summary['mixtures']} mixtures of {summary['sources']} sounds, {summary['seconds']:g} s, "
        f"{low:g} to {high:g} dB",
        *([f"head {head}"] if head else []),
        f"room {summary['room']}",
        f"intervals {summary['confidence_interval']}",
    ]
    return "; ".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(summary: dict[str, Any]) -> str:
    """The report as Markdown, every figure with its interval."""
    chance = summary["chance"]
    percent = {"scale": 100.0, "digits": 0}
    rows = []
    for condition in summary["heads"]:
        metrics, base = condition["metrics"], condition["baselines"]
        head = condition["head"]
        rows.append([
            f"**{summary['model']}**", head,
            format_interval(metrics.get("si_snri")), format_interval(metrics.get("sdri")),
            format_interval(metrics.get("within_5"), **percent),
            format_interval(metrics.get("within_10"), **percent),
            format_interval(metrics.get("doa_error")),
            format_interval(metrics.get("front_back"), **percent),
            format_interval(metrics.get("right_source"), **percent),
        ])
        rows.append([
            "unprocessed mixture", head, "0", "0", "–", "–", "–", "–",
            format_interval(base["mixture"]["right_source"], **percent),
        ])
        gcc = base["gcc_phat"]
        rows.append([
            "GCC-PHAT, loudest direction", head, "–", "–",
            format_interval(gcc["within_5"], **percent),
            format_interval(gcc["within_10"], **percent),
            format_interval(gcc["doa_error"]), "–", "–",
        ])
    rows.append([
        "chance", "any", "0", "0", f"{100 * chance['within_5']:.1f}",
        f"{100 * chance['within_10']:.1f}", f"{chance['doa_error']:.0f}", "–",
        f"{100 * chance['right_source']:.0f}",
    ])
    left = summary["left_out"]
    lines = [
        f"# Evaluation of {summary['model']}",
        "",
        f"{conditions_text(summary)}. Every mixture is queried for each of its sounds "
        f"(by {summary['config']['wording'].replace('_', '-')} words) and for one kind that isn't "
        "in it.",
        "",
        f"Left out: {left['recordings']} recordings of {len(left['kinds'])} kinds that training "
        "doesn't have.",
        "",
        "## Extraction and direction",
        "",
        table(
            ["system", "head", "SI-SNRi [dB]", "SDRi [dB]", "within 5° [%]", "within 10° [%]",
             "MAE [°]", "front–back [%]", "right source [%]"],
            rows,
        ),
        "",
        "SI-SNRi and SDRi per ear, averaged. Front–back: further than 10° off, but within 10° of "
        "the mirrored direction. Right source: the extraction is closer (SI-SNR) to the queried "
        "sound than to any other. GCC-PHAT ignores the query and knows the head's delays.",
        "",
        "## Presence",
        "",
        table(
            ["head", "AUROC (chance 0.5)", "confidence, present", "confidence, absent",
             "extraction below mixture, present [dB]", "absent [dB]"],
            [
                [
                    condition["head"],
                    format_interval(condition["presence"]["auroc"], digits=2),
                    format_interval(condition["presence"]["confidence_present"], digits=2),
                    format_interval(condition["presence"]["confidence_absent"], digits=2),
                    format_interval(condition["presence"]["below_mixture_present_db"]),
                    format_interval(condition["presence"]["below_mixture_absent_db"]),
                ]
                for condition in summary["heads"]
            ],
        ),
    ]
    for condition in summary["heads"]:
        if condition["by_separation"]:
            lines += [
                "",
                f"## By angle to the nearest other sound, head {condition['head']}",
                "",
                table(
                    ["angle", "queries", "SI-SNRi [dB]", "within 5° [%]", "MAE [°]"],
                    [
                        [
                            f"{g['from']:g}–{g['to']:g}°", str(g["n"]),
                            format_interval(g["si_snri"]),
                            format_interval(g["within_5"], **percent),
                            format_interval(g["doa_error"]),
                        ]
                        for g in condition["by_separation"]
                    ],
                ),
            ]
        lines += [
            "",
            f"## By kind, head {condition['head']}",
            "",
            table(
                ["kind", "recordings", "queries", "SI-SNRi [dB]", "within 5° [%]",
                 "right source [%]"],
                [
                    [
                        g["kind"], str(g["recordings"]), str(g["n"]),
                        format_interval(g["si_snri"]),
                        format_interval(g["within_5"], **percent),
                        format_interval(g["right_source"], **percent),
                    ]
                    for g in condition["by_kind"]
                ],
            ),
        ]
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_page(folder: str | Path, name: str, report: Any, text: str) -> None:
    """Write NAME.json and NAME.md into a folder, which is made."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps(plain(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def write_report(
    summary: dict[str, Any], rows: Sequence[dict[str, Any]], folder: str | Path
) -> list[Path]:
    """Write summary.json, rows.csv, report.md and the figures of every head.

    Returns:
        The written files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "summary.json", folder / "rows.csv", folder / "report.md"]
    text = json.dumps(plain(summary), indent=1, ensure_ascii=False)
    files[0].write_text(text + "\n", encoding="utf-8")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(files[1], "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    files[2].write_text(markdown(summary), encoding="utf-8")
    for condition in summary["heads"]:
        head = condition["head"]
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in head)
        title = f"{summary['model']}; " + conditions_text(summary, head)
        for start in (f"; {summary['mixtures']} mixtures", "; head"):
            title = title.replace(start, ";\n" + start[2:], 1)
        present = [row for row in rows if row["head"] == head and row["present"]]
        if condition["by_separation"]:
            files.append(plot_separation(condition["by_separation"], title,
                                         folder / f"separation_{name}.png"))
            files.append(plot_scatter(present, title, folder / f"scatter_{name}.png"))
        files.append(plot_kinds(condition["by_kind"], title, folder / f"kinds_{name}.png"))
    return files
