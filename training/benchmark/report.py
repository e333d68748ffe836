"""What came out of a run: figures per cell with intervals, tables, pictures."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.benchmark.catalogue import Catalogue, Cell
from training.evaluation import by_kind, by_separation, interval
from training.metrics import bootstrap, bootstrap_auroc, chance_levels
from training.plots import plot_cells, plot_kinds, plot_scatters, plot_separations
from training.report import format_interval, plain, table

#: Columns whose mean over the sounds that are there is reported, with the table's heading.
METRICS = {
    "si_snri": "SI-SNRi [dB]", "sdri": "SDRi [dB]", "within_5": "within 5° [%]",
    "within_10": "within 10° [%]", "doa_error": "MAE [°]", "front_back": "front–back [%]",
    "doa_error_no_confusions": "MAE without [°]", "right_source": "right source [%]",
    "delta_itd_us": "ΔITD [µs]", "delta_ild_db": "ΔILD [dB]", "in_phase": "polarity right [%]",
}
LIVE = {"live_si_snri": "SI-SNRi [dB]", "live_within_5": "within 5° [%]",
        "live_doa_error": "MAE [°]"}
KNOWN = ("irm_si_snri", "ibm_si_snri", "mixture_right_source", "mixture_delta_itd_us",
         "mixture_delta_ild_db", "gcc_within_5", "gcc_error")
SAME = {"within_5_either": "within 5° of either [%]", "within_5_louder": "of the louder [%]",
        "follows_louder": "closer to the louder [%]", "si_snri_louder": "SI-SNRi, louder [dB]",
        "si_snri_quieter": "SI-SNRi, quieter [dB]", "si_snr_sum": "SI-SNR against both [dB]",
        "confidence": "confidence"}
SHARES = {"in_phase", "within_5", "within_10", "front_back", "right_source", "live_within_5",
          "within_5_either", "within_5_louder", "follows_louder", "mixture_right_source",
          "gcc_within_5"}
ROOM_WORDS = {"none": "no room", "room": "room", "noise": "room and noise"}
SURE = ("si_snri", "within_5", "doa_error", "right_source")  # also without doubtful labels
HARDEST = 15  # recordings that the report names


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: 95%, whole recordings are drawn."""

    resamples: int = 1000
    seed: int = 0


def add_derived(rows: Sequence[dict[str, Any]]) -> None:
    """Columns that follow from others: errors without front-back confusions, hits of GCC-PHAT."""
    for row in rows:
        if "front_back" in row:
            row["doa_error_no_confusions"] = math.nan if row["front_back"] == 1.0 \
                else row["doa_error"]
        if "gcc_error" in row:
            row["gcc_within_5"] = float(row["gcc_error"] <= 5.0)


def auroc(rows: Sequence[dict[str, Any]], how: Bootstrap,
          key: str = "confidence") -> dict[str, float]:
    """Area under the ROC curve of presence over queries by label and absent ones."""
    asked = [row for row in rows if row["asked"] in ("label", "absent")]
    return asdict(bootstrap_auroc(
        [row[key] for row in asked], [row["asked"] == "label" for row in asked],
        [row["recording"] for row in asked], how.resamples, seed=how.seed))


def wording(rows: Sequence[dict[str, Any]], how: Bootstrap) -> dict[str, Any]:
    """The same sounds asked for by label and in held-out words, with the paired difference."""
    by_asked = {sort: {(row["mixture"], row["source"]): row for row in rows
                       if row["asked"] == sort} for sort in ("label", "held_out")}
    pairs = [(by_asked["label"][key], row) for key, row in by_asked["held_out"].items()
             if key in by_asked["label"]]
    result = {}
    for key in ("si_snri", "within_5", "doa_error", "right_source", "confidence"):
        difference = bootstrap([b[key] - a[key] for a, b in pairs],
                               [a["recording"] for a, _ in pairs], how.resamples, seed=how.seed)
        result[key] = {"label": interval([a for a, _ in pairs], key, how),
                       "held_out": interval([b for _, b in pairs], key, how),
                       "difference": asdict(difference)}
    return result


def summarise_cell(cell: Cell, rows: Sequence[dict[str, Any]], size: int, how: Bootstrap,
                   doubtful: Collection[str] = ()) -> dict[str, Any]:
    """All figures of one cell.

    Args:
        rows: as `training.benchmark.run.rows_of` makes them, with `add_derived`.
        size: mixtures that the cell has.
        doubtful: recordings whose labels are; figures without queries for them come on top.

    Returns:
        dict of plain values; intervals are dicts of mean, low, high, n, clusters. Shares are in
        [0, 1], levels in dB, angles in degrees, times in µs.
    """
    present = [row for row in rows if row["asked"] == "label"]
    absent = [row for row in rows if row["asked"] == "absent"]
    summary = {
        "cell": cell.name, "head": cell.head, "set": cell.set, "room": cell.room,
        "mixtures": len({row["mixture"] for row in rows}), "of": size,
        "recordings": len({row["recording"] for row in present}),
    }
    if cell.set == "same":
        return summary | {"same_kind": {key: interval(present, key, how) for key in SAME}}
    sources = 1 + max(row["source"] for row in present)
    wrong = [row for row in present if row["right_source"] == 0.0]

    def all_of(keys, rows=present) -> dict[str, Any]:
        found = {key: interval(rows, key, how) for key in keys}
        return {key: value for key, value in found.items() if value}

    summary |= {
        "sources": sources,
        "metrics": all_of(METRICS),
        "si_snri_of_wrong_sources": interval(wrong, "si_snri", how),
        "live": all_of(LIVE),
        "known": {**all_of(KNOWN), "chance": chance_levels(sources)},
        "presence": {
            "auroc": auroc(rows, how),
            "auroc_mean_over_windows": auroc(rows, how, "confidence_mean"),
            "confidence_present": interval(present, "confidence", how),
            "confidence_absent": interval(absent, "confidence", how),
            "below_mixture_present_db": interval(present, "below_mixture_db", how),
            "below_mixture_absent_db": interval(absent, "below_mixture_db", how),
        },
        "by_separation": by_separation(present, how),
    }
    sure = [row for row in present if row["recording"] not in doubtful]
    if 0 < len(sure) < len(present):
        summary["sure_labels"] = {
            "n": len(sure), **all_of(SURE, sure), "auroc": auroc([*sure, *absent], how)}
    if "held_out" in cell.asked:
        summary["wording"] = wording(rows, how)
    return summary


def hardest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Recordings by how often another sound was extracted in their place, the worst first.

    Returns:
        of each recording that it happened to: ``recording``, ``kind``, ``n`` queries, the number
        that went ``wrong``, ``doa_error`` in degrees, and ``share``: of all wrong ones, those of
        this recording and the ones before it.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["recording"], []).append(row)
    found = [{"recording": name, "kind": some[0]["kind"], "n": len(some),
              "wrong": sum(row["right_source"] == 0.0 for row in some),
              "doa_error": math.fsum(row["doa_error"] for row in some) / len(some)}
             for name, some in groups.items()]
    found = sorted((one for one in found if one["wrong"]),
                   key=lambda one: (-one["wrong"], one["n"], one["recording"]))
    everything, sofar = sum(one["wrong"] for one in found), 0
    for one in found:
        sofar += one["wrong"]
        one["share"] = sofar / everything
    return found


def summarise(catalogue: Catalogue, rows: dict[str, list[dict[str, Any]]],
              about: dict[str, Any], how: Bootstrap = Bootstrap()) -> dict[str, Any]:
    """All figures of a run.

    Args:
        rows: of each cell that was evaluated, or of a part of it.
        about: what the run is of (run.json), with ``missing`` and ``altered`` recordings.
    """
    cells, everything = [], []
    for name, found in rows.items():
        if not found:
            continue
        add_derived(found)
        cell = catalogue.cells[name]
        cells.append(summarise_cell(cell, found, catalogue.size(cell), how, catalogue.doubtful))
        if cell.set != "same":
            everything += [row for row in found if row["asked"] == "label"]
    whole = {cell.name for cell in catalogue.cells.values()} == {c["cell"] for c in cells} and all(
        cell["mixtures"] == cell["of"] for cell in cells)
    return {
        "benchmark": catalogue.version, "sha256": catalogue.sha256, "seconds": catalogue.seconds,
        **about, "complete": whole,
        "confidence_interval": f"95%, bootstrap over target recordings, {how.resamples} resamples",
        "cells": cells, "by_kind": by_kind(everything, how), "hardest": hardest(everything),
        "recordings": len({row["recording"] for row in everything}),
        "doubtful_labels": len(catalogue.doubtful),
    }


# -- Markdown --------------------------------------------------------------------------------------


def figure(summary: dict[str, Any] | None, key: str) -> str:
    """An interval in the unit of its table."""
    if key in SHARES:
        return format_interval(summary, 100.0, 0)
    digits = {"delta_itd_us": 0, "mixture_delta_itd_us": 0, "confidence": 2}.get(key, 1)
    return format_interval(summary, digits=digits)


def cell_words(cell: dict[str, Any]) -> str:
    """A cell in words: "2 sounds, mit_kemar, room and noise"."""
    sounds = "2 of one kind" if cell["set"] == "same" else f"{cell['sources']} sounds"
    return f"{sounds}, {cell['head']}, {ROOM_WORDS[cell['room']]}"


def conditions(summary: dict[str, Any]) -> str:
    """What a report is of, and whether it can be compared with others."""
    parts = [
        f"Benchmark {summary['benchmark']} (`{summary['sha256'][:12]}`), mixtures of "
        f"{summary['seconds']:g} s; model {summary['model']} (`{summary['model_sha256'][:12]}`), "
        + (f"windows of {summary['window']:g} s" if summary["window"] >= summary["seconds"] else
           f"windows of {summary['window']:g} s, a new one every {summary['hop']:g} s, joined by "
           "cross-fading")
        + (f", sounds extracted from {at_once:g} s at once"
           if (at_once := summary.get("recording_window", 0)) > summary["window"] else "")
        + f". In brackets: {summary['confidence_interval']}."]
    if summary.get("give_head"):
        parts.append("The model was told the responses of each cell's head" + (
            ", as `luseel calibrate --head` finds them from one clap every 30° in a mild room."
            if summary["give_head"] == "claps" else "."))
    short = [cell for cell in summary["cells"] if cell["mixtures"] < cell["of"]]
    if short:
        parts.append("**Part of the benchmark only** (the first mixtures of a cell: "
                     + ", ".join(f"{c['cell']} {c['mixtures']} of {c['of']}" for c in short)
                     + "): not to be compared with whole runs.")
    if summary.get("missing"):
        parts.append(f"**{summary['missing']} recordings are missing here** and their mixtures "
                     "left out: not to be compared with other runs.")
    if summary.get("altered"):
        parts.append(f"{summary['altered']} recordings have other samples "
                     "than the catalogue's (another codec version); figures may differ slightly.")
    if summary.get("used_in_training"):
        parts.append(f"{summary['used_in_training']} of the held-out wordings are among the "
                     "training captions by now: the table of wordings is too good.")
    return "\n\n".join(parts)


def markdown(summary: dict[str, Any]) -> str:
    """The report as Markdown."""
    cells = [cell for cell in summary["cells"] if cell["set"] != "same"]
    columns = [key for key in METRICS if any(key in cell["metrics"] for cell in cells)]
    lines = [f"# {summary['model']} on the LuSeeL benchmark", "", conditions(summary)]
    if cells:
        lines += ["", "## Extraction and direction", "", table(
            ["cell", "mixtures", *(METRICS[key] for key in columns)],
            [[cell_words(cell), str(cell["mixtures"]),
              *(figure(cell["metrics"].get(key), key) for key in columns)] for cell in cells]),
            "", "SI-SNRi per ear, averaged; against the sound at the ears, with its room. MAE: "
            "mean absolute error. Front–back: further than 10° off, but within 10° of the mirrored "
            "direction; \"MAE without\" leaves these out. Right source: the extraction is closer "
            "(SI-SNR) to the asked sound than to any other. ΔITD, ΔILD: error of the ears' time "
            "and level difference in the extraction (cross-correlation below 1.5 kHz, energies). "
            "Polarity right: neither ear comes out inverted.",
            "", "## Known values", "", table(
                ["cell", "ideal ratio mask, SI-SNRi [dB]", "ideal binary mask, SI-SNRi [dB]",
                 "GCC-PHAT, within 5° [%]", "GCC-PHAT, MAE [°]", "mixture: right source [%]",
                 "mixture: ΔITD [µs]", "mixture: ΔILD [dB]", "chance: right source [%]"],
                [[cell_words(cell),
                  *(figure(cell["known"].get(key), key) for key in (
                      "irm_si_snri", "ibm_si_snri", "gcc_within_5", "gcc_error",
                      "mixture_right_source", "mixture_delta_itd_us", "mixture_delta_ild_db")),
                  f"{100 * cell['known']['chance']['right_source']:.0f}"] for cell in cells]
                + [["the sound itself", "∞", "∞", "100", "0", "100", "0", "0", "–"]]),
            "", "The unprocessed mixture has SI-SNRi 0 dB; a direction by chance is within 5° "
            "in 2.8% and 90° off on average. The ideal masks know the sources (Hann, 32 ms). GCC-PHAT "
            "is the loudest direction of the mixture, whatever was asked; it knows the head.",
            "", "## Presence", "", table(
                ["cell", "AUROC", "AUROC, mean of windows", "confidence, present", "absent",
                 "below the mixture, present [dB]", "absent [dB]"],
                [[cell_words(cell), *(
                    format_interval(cell["presence"][key], digits=digits) for key, digits in (
                        ("auroc", 2), ("auroc_mean_over_windows", 2), ("confidence_present", 2),
                        ("confidence_absent", 2), ("below_mixture_present_db", 1),
                        ("below_mixture_absent_db", 1)))] for cell in cells]),
            "", "Each mixture is asked for one kind that is not in it. AUROC: how often a sound "
            "that is there has the higher confidence (0.5 is guessing).",
            "", "## Live", "", table(
                ["cell", *LIVE.values()],
                [[cell_words(cell), *(figure(cell["live"].get(key), key) for key in LIVE)]
                 for cell in cells]),
            "", "The same window by window, as a robot sees it, where the asked sound is active "
            "(at most 20 dB below its mean level)."]
    sure = [cell for cell in cells if "sure_labels" in cell]
    if sure:
        lines += ["", "## Without doubtful labels", "", table(
            ["cell", "queries", *(METRICS[key] for key in SURE), "AUROC"],
            [[cell_words(cell), str(cell["sure_labels"]["n"]),
              *(figure(cell["sure_labels"].get(key), key) for key in SURE),
              format_interval(cell["sure_labels"]["auroc"], digits=2)] for cell in sure]),
            "", f"The same rows without queries for the {summary['doubtful_labels']} recordings whose "
            "label their name doesn't bear out (doubtful_labels.csv in the catalogue's folder)."]
    for cell in cells:
        if "wording" in cell:
            lines += ["", f"## Other words: {cell_words(cell)}", "", table(
                ["", "by label", "held-out words", "difference"],
                [[name, *(figure(cell["wording"][key][part], key)
                          for part in ("label", "held_out", "difference"))]
                 for key, name in (("si_snri", "SI-SNRi [dB]"), ("within_5", "within 5° [%]"),
                                   ("doa_error", "MAE [°]"),
                                   ("right_source", "right source [%]"),
                                   ("confidence", "confidence"))])]
    for cell in summary["cells"]:
        if cell["set"] == "same":
            lines += ["", "## Two sounds of the asked kind", "", table(
                ["cell", "mixtures", *SAME.values()],
                [[cell_words(cell), str(cell["mixtures"]),
                  *(figure(cell["same_kind"][key], key) for key in SAME)]]),
                "", "Two recordings of one kind in different places; both answer the query."]
    for cell in cells:
        if cell["sources"] == 2:
            lines += ["", f"## By angle to the other sound: {cell_words(cell)}", "", table(
                ["angle", "queries", "SI-SNRi [dB]", "within 5° [%]", "MAE [°]"],
                [[f"{g['from']:g}–{g['to']:g}°", str(g["n"]),
                  *(figure(g[key], key) for key in ("si_snri", "within_5", "doa_error"))]
                 for g in cell["by_separation"]])]
    if summary["by_kind"]:
        lines += ["", "## By kind, all cells together", "", table(
            ["kind", "recordings", "queries", "SI-SNRi [dB]", "within 5° [%]", "right source [%]"],
            [[g["kind"], str(g["recordings"]), str(g["n"]),
              *(figure(g[key], key) for key in ("si_snri", "within_5", "right_source"))]
             for g in summary["by_kind"]])]
    if summary["hardest"]:
        half = next(i for i, one in enumerate(summary["hardest"], 1) if one["share"] >= 0.5)
        lines += ["", "## Recordings taken for another sound most often, all cells together", "",
                  f"Half of all wrong sources are {half} of the {summary['recordings']} "
                  f"recordings; {len(summary['hardest'])} went wrong at least once.", "", table(
                      ["recording", "asked for as", "queries", "wrong source [%]", "MAE [°]",
                       "of all wrong ones, with those above [%]"],
                      [[one["recording"], one["kind"], str(one["n"]),
                        f"{100 * one['wrong'] / one['n']:.0f}",
                        "–" if math.isnan(one["doa_error"]) else f"{one['doa_error']:.0f}",
                        f"{100 * one['share']:.0f}"] for one in summary["hardest"][:HARDEST]])]
    return "\n".join(lines) + "\n"


# -- files -----------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as gzipped CSV, the same bytes for the same rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value
                         for key, value in row.items()})
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(text.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what `write_rows` wrote; numbers are floats again, empty fields are left out."""
    words = {"cell", "asked", "kind", "query", "recording", "others"}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return [{key: value if key in words else
                 int(value) if key in ("mixture", "source") else float(value)
                 for key, value in row.items() if value != ""} for row in csv.DictReader(file)]


def write_report(summary: dict[str, Any], rows: dict[str, list[dict[str, Any]]],
                 folder: str | Path, figures: bool = True) -> list[Path]:
    """Write summary.json, rows.csv.gz, report.md and, unless told otherwise, the figures.

    Returns:
        the written files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "summary.json", folder / "rows.csv.gz", folder / "report.md"]
    files[0].write_text(json.dumps(plain(summary), indent=1, ensure_ascii=False) + "\n",
                        encoding="utf-8")
    write_rows(files[1], [row for found in rows.values() for row in found])
    files[2].write_text(markdown(summary), encoding="utf-8")
    cells = [cell for cell in summary["cells"] if cell["set"] != "same"]
    if not cells or not figures:
        return files
    counts = sorted({cell["mixtures"] for cell in cells})
    title = (f"{summary['model']}, benchmark {summary['benchmark']}, {counts[0]}"
             + (f" to {counts[-1]}" if len(counts) > 1 else "")
             + " mixtures a cell; bars: 95% over recordings")
    files.append(plot_cells(cells, cell_words, title, folder / "cells.png"))
    for head in dict.fromkeys(cell["head"] for cell in cells):
        for sources in sorted({cell["sources"] for cell in cells}):
            chosen = [c for c in cells if (c["head"], c["sources"]) == (head, sources)]
            if not chosen:
                continue
            name = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{head}-{sources}")
            about = f"{title}\n{sources} sounds, head {head}"
            files.append(plot_separations(
                {ROOM_WORDS[c["room"]]: c["by_separation"] for c in chosen}, about,
                folder / f"separation_{name}.png"))
            files.append(plot_scatters(
                {ROOM_WORDS[c["room"]]: [row for row in rows[c["cell"]]
                                         if row["asked"] == "label"] for c in chosen}, about,
                folder / f"scatter_{name}.png"))
    files.append(plot_kinds(summary["by_kind"], f"{title}\nall cells together",
                            folder / "kinds.png"))
    return files
