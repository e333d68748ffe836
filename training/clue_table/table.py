"""Tables 1 and 2 beside the paper's, with 95% intervals over recordings."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.clue_table.measure import SETS
from training.metrics import bootstrap
from training.report import table

#: Table 1 of paper 003, DCCRN-multi-clue: SNRi in dB of the seen and unseen set.
TABLE_1 = {"tag + text + video": (6.9, 6.5), "tag + text": (6.8, 6.4), "text + video": (6.5, 6.4),
           "tag + video": (6.6, 6.4), "tag": (6.4, 6.2), "text": (6.3, 6.0), "video": (5.8, 5.9)}
#: Its single-clue systems, DCCRN-tag-clue and so on.
SINGLE = {"tag": (6.4, 6.0), "text": (6.3, 5.9), "video": (5.9, 5.6)}
#: Table 2, with a star at compromised clues: SNRi in dB.
TABLE_2 = {"text*": 5.8, "text* + video": 5.8, "video*": 5.4, "text + video*": 6.3,
           "text* + video*": 6.0}
#: What the paper argues by: the first is better than the second.
CLAIMS = (("all clues against the tag alone", "tag + text + video", "tag"),
          ("all clues against words alone", "tag + text + video", "text"),
          ("all clues against video alone", "tag + text + video", "video"),
          ("right video helps compromised words", "text* + video", "text*"),
          ("right words help compromised video", "text + video*", "video*"),
          ("two compromised clues against compromised words", "text* + video*", "text*"),
          ("two compromised clues against compromised video", "text* + video*", "video*"))
_SHARES = ("right_source", "within_10", "folded_within_10")
_COLUMNS = ("set", "mixture", "place", "kind", "recording", "condition", "video", "snri", "si_snri",
            *_SHARES)


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows({**row, **{key: round(row[key], 4) for key in ("snri", "si_snri")}}
                         for row in rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        return [{**row, "video": row["video"] == "True", "mixture": int(row["mixture"]),
                 "place": int(row["place"]), "snri": float(row["snri"]),
                 **{key: float(row[key]) for key in ("si_snri", *_SHARES)}}
                for row in csv.DictReader(file)]


def summarise(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """Intervals of every set and condition, over all sounds and over those with video clues, and of
    the paper's comparisons, paired by sound."""
    cells = []
    for which in SETS:
        for has_video in (False, True):
            chosen = [r for r in rows if r["set"] == which and (r["video"] or not has_video)]
            for condition in dict.fromkeys(r["condition"] for r in chosen):
                some = [r for r in chosen if r["condition"] == condition]
                cells.append({
                    "set": which, "condition": condition, "with_video": has_video,
                    **{metric: asdict(bootstrap([r[metric] for r in some],
                                                [r["recording"] for r in some]))
                       for metric in ("snri", "si_snri", *_SHARES)}})
    return {**about, "cells": cells, "claims": differences(rows)}


def differences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """CLAIMS for each set; ``agrees`` is None where 0 is in the interval."""
    found = []
    for which in SETS:
        keyed: dict[str, dict[tuple, dict]] = {}
        for r in rows:
            if r["set"] == which:
                keyed.setdefault(r["condition"], {})[r["mixture"], r["place"]] = r
        for what, first, second in CLAIMS:
            common = [key for key in keyed.get(first, {}) if key in keyed.get(second, {})]
            if not common:
                continue
            ours = bootstrap([keyed[first][k]["snri"] - keyed[second][k]["snri"] for k in common],
                             [keyed[first][k]["recording"] for k in common])
            decided = ours.low > 0 or ours.high < 0
            found.append({"what": what, "set": which, "ours": asdict(ours),
                          "agrees": ours.mean > 0 if decided else None})
    return found


def words(interval: dict[str, float] | None, scale: float = 1.0, digits: int = 2) -> str:
    """'4.21 (3.90 to 4.55)'"""
    if not interval or not interval["n"]:
        return "–"
    mean, low, high = (f"{scale * interval[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})" if interval["clusters"] > 1 else mean


def markdown(summary: dict[str, Any]) -> str:
    """Both tables, the comparisons and the conditions as Markdown."""
    cells = {(c["set"], c["condition"], c["with_video"]): c for c in summary["cells"]}

    def value(which: str, condition: str, has_video: bool, metric: str = "snri") -> str:
        cell = cells.get((which, condition, has_video))
        return words(cell and cell[metric])

    def lines(paper: dict[str, Any]) -> list[list[str]]:
        found = []
        for condition, figures in paper.items():
            seen, unseen = figures if isinstance(figures, tuple) else (figures, None)
            found.append([
                condition, f"{seen:.1f}", value("seen", condition, True),
                value("seen", condition, False) if "video" not in condition else "–",
                f"{unseen:.1f}" if unseen is not None else "–", value("unseen", condition, True),
                value("unseen", condition, False) if "video" not in condition else "–",
                value("seen", condition, True, "si_snri")])
        return found

    head = ["clues", "paper, seen", "seen", "seen, all sounds", "paper, unseen", "unseen",
            "unseen, all sounds", "SI-SNRi, seen"]
    half = ["half the mixture", "–", value("seen", "half", True), value("seen", "half", False),
            "–", value("unseen", "half", True), value("unseen", "half", False),
            value("seen", "half", True, "si_snri")]
    claims = [[c["what"], c["set"], words(c["ours"]),
               {True: "as in the paper", False: "the other way round", None: "open"}[c["agrees"]]]
              for c in summary["claims"]]
    def size(which: str) -> str:
        count = summary["mixtures"][which]
        half = cells.get((which, "half", False))
        return f"{count} mixtures {which}" + (
            f" ({half['snri']['n']} sounds of {half['snri']['clusters']} recordings)" if half else
            "")

    single = [[f"a system of its own for {name}", f"{seen:.1f}", "–", "–", f"{unseen:.1f}", "–",
               "–", "–"] for name, (seen, unseen) in SINGLE.items()]
    heard = [[condition, *(words(cells[which, condition, True][metric], 100, 0)
                           if (which, condition, True) in cells else "–"
                           for which in SETS for metric in _SHARES)]
             for condition in TABLE_1]
    return "\n".join([
        "# Paper 003 on the open corpus", "",
        f"Model {summary['model']}, {summary['parameters'] / 1e6:.2f} M parameters; "
        f"{', '.join(map(size, SETS))}, two sounds at -2 to 2 dB, 2 s, both ears "
        f"({summary.get('head', 'mit_kemar')}). Recordings and pictures of the test split; of unseen "
        "kinds those of all splits, as none was trained on. SNR improvement in dB, mean and 95% "
        "interval over recordings. Columns are over the sounds whose kind has pictures, the same "
        "in every row, unless they say \"all sounds\".", "",
        "SNR counts the gain: half the mixture improves it without knowing anything. SI-SNRi "
        "doesn't reward that.", "",
        "## Table 1: which clues are given", "",
        table(head, [*lines(TABLE_1), *single, half]), "",
        "## Table 2: compromised clues (*)", "", table(head, lines(TABLE_2)), "",
        "## What the paper argues by", "",
        table(["comparison", "set", "difference [dB]", "finding"], claims), "",
        "## Right sound and bearing", "",
        "In % of the sounds whose kind has pictures. The bearing is read from the extracted ears as "
        "of a sphere, to which front and back are alike; forgiven: the nearer of the direction and "
        "its mirror image counts.", "",
        table(["clues", *(f"{what}, {which}" for which in SETS for what in
                          ("right sound", "within 10°", "within 10°, forgiven"))], heard), "",
        "Unseen kinds: " + ", ".join(summary["unseen"]) + ". Their tag is that of the seen kind "
        "with the nearest name: "
        + ", ".join(f"{kind}: {tag}" for kind, tag in summary["nearest"].items()) + ".", ""])


def write_table(summary: dict[str, Any], out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    path = out / "table.md"
    path.write_text(markdown(summary), encoding="utf-8")
    return path
