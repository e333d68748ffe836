"""Results as Markdown, beside the paper's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from luseel_model.errors import ConfigError
from luseel_model.families import find_family, load_config
from training.image_table.measure import CONDITIONS
from training.image_table.rows import PAPER_INPUT_SDR, ROWS, Row

#: Frozen image encoders, millions of parameters without their classifiers.
ENCODERS = {"id-uss": 10.70, "id-uss-resnet50": 23.51, "id-uss-vit": 85.80, "id-uss-swin": 86.74,
            "id-uss-clip": 87.46, "id-uss-resunet": 10.70, "id-uss-conv-tasnet": 10.70}

LITE0 = 3.37  # EfficientNet-lite0's


def our_parameters(model: str) -> float:
    """Millions, with the image encoder as the paper counts."""
    with torch.device("meta"):
        network = find_family("id-uss").network_class(load_config(model))
    return network.parameter_count() / 1e6 + ENCODERS[model]


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → what ``measure`` left in ``folder/<name>.json``.

    Raises:
        ConfigError: there is nothing.
    """
    found = {path.stem: json.loads(path.read_text(encoding="utf-8"))
             for path in sorted(folder.glob("*.json"))}
    if not found:
        raise ConfigError(f"no results in {folder}: run `python -m training.image_table measure` "
                          "first")
    return found


def figure(value: list[float] | None, percent: bool = False) -> str:
    """'4.1 (3.5 to 4.7)', or a dash."""
    if value is None:
        return "–"
    scale, digits = (100, 0) if percent else (1, 1)
    mean, low, high = (f"{scale * v:.{digits}f}" for v in value)
    return f"{mean} ({low} to {high})"


def report(results: dict[str, dict[str, Any]]) -> str:
    """The whole report."""
    lines = ["# A picture asks: tables 2 and 3 of paper 002", ""]
    lines += ["Measured: recordings and pictures of the test split, none of them seen in training; "
              "in brackets 95% bootstrap over recordings. Input SDR of the paper's test set: "
              f"{PAPER_INPUT_SDR} dB.", ""]
    for number in (2, 3):
        lines += [f"## Table {number}", "",
                  "| image | separator | paper: parameters [M] | paper: SDRi [dB] | ours: "
                  "parameters [M] | small network: SDRi [dB] | |",
                  "|---|---|---|---|---|---|---|"]
        lines += [_row(row, results) for row in ROWS if row.table == number]
        smalls = {row.small.rpartition("/")[2] for row in ROWS}
        lines += [_own_row(name, results[name]) for name in results if name not in smalls] + [""]
    for name, result in results.items():
        lines += [f"## {name}", ""]
        if result.get("parameters"):
            lines += [f"{result['parameters'] / 1e6:.2f} million parameters beside the image "
                      "encoder.", ""]
        lines += _figures(result) + [""]
    return "\n".join(lines)


def _row(row: Row, results: dict[str, dict[str, Any]]) -> str:
    ours = f"{our_parameters(row.model):.2f}" if row.model else "–"
    found = results.get(row.small.rpartition("/")[2]) if row.small else None
    small = figure(found["conditions"][CONDITIONS[1].name]["sdri"]) if found else "–"
    return (f"| {row.visual} | {row.audio} | {row.parameters:.2f} | {row.sdri:.3f} | {ours} | "
            f"{small} | {row.why} |")


def _own_row(name: str, result: dict[str, Any]) -> str:
    """A network that is no row of the paper's."""
    row = result["conditions"].get(CONDITIONS[1].name, {})
    return (f"| EfficientNet-lite0 | {name} | – | – | {result['parameters'] / 1e6 + LITE0:.2f} | "
            f"{figure(row.get('sdri'))} | ours |")


def _figures(result: dict[str, Any]) -> list[str]:
    found = [(c, result["conditions"][c.name]) for c in CONDITIONS if c.name in result["conditions"]]
    if not found:
        return []
    one = found[0][1]
    lines = [f"{one['pictures']} pictures of the test split ask for {one['concepts']} things; seed "
             f"{one['seed']}, {one['seconds']:g} s.", "",
             "SDR counts the gain: half the mixture improves it without knowing anything. SI-SNRi "
             "doesn't reward that.", "",
             "| mixtures | queries | recordings | SDR before [dB] | SDRi [dB] | SDRi of half the "
             "mixture [dB] | SI-SNRi [dB] | right source [%] |", "|---|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join([
        f"{row['mixtures']}: {c.name}", str(row["queries"]), str(row["recordings"]),
        figure(row["sdr_before"]), figure(row["sdri"]), figure(row["sdri of half the mixture"]),
        figure(row["si_snri"]), figure(row.get("right_source"), True)]) + " |" for c, row in found]
    heard = [(c, row) for c, row in found if c.head]
    if not heard:
        return lines
    lines += ["", "Bearings, read from the ears (GCC-PHAT) with the responses in the checkpoint, or "
              "with those of the head that hears. Front for back forgiven: the nearer of the "
              "direction and its mirror image counts.", "",
              "| mixtures | of | responses | within 5° [%] | within 10° [%] | MAE [°] | front for "
              "back forgiven: within 10° [%] | MAE [°] |", "|---|---|---|---|---|---|---|---|"]
    for c, row in heard:
        for of, end in (("the extraction", ""), ("the mixture", " of the mixture"),
                        ("the true sound", " of the true sound")):
            for responses, given in (("the checkpoint's", ""), ("its own", "own responses: ")):
                if given and row[f"{given}doa_error{end}"] == row[f"doa_error{end}"]:
                    continue  # the checkpoint's are its own
                lines.append("| " + " | ".join([
                    c.name, of, responses, figure(row[f"{given}within_5{end}"], True),
                    figure(row[f"{given}within_10{end}"], True),
                    figure(row[f"{given}doa_error{end}"]),
                    figure(row[f"{given}folded_within_10{end}"], True),
                    figure(row[f"{given}folded_error{end}"])]) + " |")
    return lines
