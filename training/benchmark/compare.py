"""Before and after: two runs side by side, query by query.

Both models were asked the same, so that the difference is taken within each query and whole
recordings are drawn for its interval: this is far narrower than the two intervals apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luseel_model.errors import ConfigError
from training.benchmark.report import Bootstrap, add_derived, figure, read_rows
from training.evaluation import interval
from training.metrics import bootstrap, bootstrap_auroc_difference
from training.report import format_interval, table

#: Column, heading, and whether more is better.
COMPARED = (
    ("si_snri", "SI-SNRi [dB]", True), ("within_5", "within 5° [%]", True),
    ("doa_error", "MAE [°]", False), ("front_back", "front–back [%]", False),
    ("right_source", "right source [%]", True), ("delta_itd_us", "ΔITD [µs]", False),
    ("delta_ild_db", "ΔILD [dB]", False), ("in_phase", "polarity right [%]", True),
    ("live_si_snri", "live SI-SNRi [dB]", True),
    ("live_within_5", "live within 5° [%]", True),
    ("within_5_either", "within 5° of either [%]", True),
)


def load_run(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """summary.json (or its folder) and the rows beside it.

    Raises:
        ConfigError: one of them is missing.
    """
    path = Path(path)
    path = path / "summary.json" if path.is_dir() else path
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        rows = read_rows(path.with_name("rows.csv.gz"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not the summary of a benchmark run with its rows.csv.gz "
                          f"beside it: {error}") from None
    add_derived(rows)
    return summary, rows


def compare(before: str | Path, after: str | Path,
            how: Bootstrap = Bootstrap()) -> dict[str, Any]:
    """Paired differences of two runs, by cell and over all cells.

    Args:
        before, after: folders or summary.json of two runs on the same catalogue.

    Returns:
        dict with the two models, the queries that both have, and `cells`: per cell and metric the
        intervals before, after and of the difference.

    Raises:
        ConfigError: different catalogues, or nothing in common.
    """
    (first, old), (second, new) = load_run(before), load_run(after)
    if first["sha256"] != second["sha256"]:
        raise ConfigError(
            f"the runs are of different benchmarks: {first['benchmark']} "
            f"({first['sha256'][:12]}) and {second['benchmark']} ({second['sha256'][:12]})")

    def keyed(rows: Sequence[dict]) -> dict[tuple, dict]:
        return {(r["cell"], r["mixture"], r["asked"], r["source"]): r for r in rows}

    old, new = keyed(old), keyed(new)
    common = [key for key in old if key in new]
    if not common:
        raise ConfigError("the two runs have no query in common")
    cells = {}
    names = list(dict.fromkeys(key[0] for key in common))
    for name in [*names, None]:
        keys = [key for key in common if name in (None, key[0])]
        chosen = [(old[key], new[key]) for key in keys if key[2] == "label"]
        result = {}
        for key, _, _ in COMPARED:
            pairs = [(a, b) for a, b in chosen if key in a and key in b]
            if not pairs:
                continue
            difference = bootstrap([b[key] - a[key] for a, b in pairs],
                                   [a["recording"] for a, _ in pairs], how.resamples, seed=how.seed)
            result[key] = {"before": interval([a for a, _ in pairs], key, how),
                           "after": interval([b for _, b in pairs], key, how),
                           "difference": asdict(difference)}
        asked = [(old[key], new[key]) for key in keys if key[2] in ("label", "absent")]
        presence = bootstrap_auroc_difference(
            [a["confidence"] for a, _ in asked], [b["confidence"] for _, b in asked],
            [a["asked"] == "label" for a, _ in asked], [a["recording"] for a, _ in asked],
            how.resamples, seed=how.seed)
        cells[name or "all"] = {"queries": len(chosen), "metrics": result,
                                "auroc_difference": asdict(presence)}
    if len(names) == 1:
        del cells["all"]
    return {"benchmark": first["benchmark"], "sha256": first["sha256"],
            "before": first["model"], "after": second["model"],
            "hop": [first["hop"], second["hop"]],
            "recording_window": [some.get("recording_window", some["window"])
                                 for some in (first, second)],
            "other_inputs": [cell for cell in names if first.get("inputs", {}).get(cell) !=
                             second.get("inputs", {}).get(cell)],
            "queries_of_one_run_only": len(old) + len(new) - 2 * len(common), "cells": cells}


def verdict(difference: dict[str, float], more_is_better: bool) -> str:
    """"better" or "worse" where the interval of the difference leaves 0 out, else nothing."""
    if difference["low"] > 0:
        return "better" if more_is_better else "worse"
    if difference["high"] < 0:
        return "worse" if more_is_better else "better"
    return ""


def markdown(result: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [f"# {result['before']} → {result['after']}", "",
             f"Benchmark {result['benchmark']} (`{result['sha256'][:12]}`). Difference: after less "
             "before, paired by query; in brackets 95%, bootstrap over target recordings. A "
             "verdict stands where that interval leaves 0 out; of twenty such without any true "
             "difference, one does so by chance."]
    if result["queries_of_one_run_only"]:
        lines += ["", f"{result['queries_of_one_run_only']} queries are in one run only and left "
                      "out."]
    if result["other_inputs"]:
        lines += ["", "**Not the same audio**: other responses of heads or rooms in "
                      f"{', '.join(result['other_inputs'])}."]
    if result["hop"][0] != result["hop"][1]:
        lines += ["", f"The hops differ: {result['hop'][0]} s and {result['hop'][1]} s."]
    first, second = result["recording_window"]
    if first != second:
        lines += ["", f"Sounds are extracted from {first:g} s at once before, {second:g} s after."]
    for name, cell in result["cells"].items():
        rows = [[words, figure(cell["metrics"][key]["before"], key),
                 figure(cell["metrics"][key]["after"], key),
                 figure(cell["metrics"][key]["difference"], key),
                 verdict(cell["metrics"][key]["difference"], better)]
                for key, words, better in COMPARED if key in cell["metrics"]]
        area = cell["auroc_difference"]
        if area["mean"] == area["mean"] and area["n"]:
            rows.append(["presence, AUROC", "", "", format_interval(area, digits=3),
                         verdict(area, True)])
        lines += ["", f"## {'All cells' if name == 'all' else name} ({cell['queries']} queries)",
                  "", table(["", "before", "after", "difference", ""], rows)]
    return "\n".join(lines) + "\n"
