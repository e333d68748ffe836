"""Does the robot find the crying baby? Random homes, three navigators, a table.

    python tools/robot/trial.py                         50 homes  (``make robot-trial``)
    python tools/robot/trial.py --homes 4 --navigators luseel --out runs/robot

"luseel" follows the node, "loudest" the loudest direction (GCC-PHAT), "true" the true direction:
same tracker, same behaviour, same homes. Each run is a line of runs.jsonl as soon as it has ended;
the same command goes on with what is missing, with other settings or another checkpoint it starts
anew. Writes summary.json and report.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from home import draw_home
from loop import NAVIGATORS, ROOT, THRESHOLD, Loop, harness
from tqdm import tqdm
from world import ARRIVAL

from luseel_model.checkpoint import find_checkpoint
from luseel_model.errors import LuseelError
from training.corpus.pack import file_sha256
from training.heads import load_head
from training.pool import ClipPool

OUT = ROOT / "docs/reports/robot"
TARGET_SHARE, TARGET_LEAD = 0.8, 0.25  # of the homes solved, and above "loudest"
MOMENTS = (60, 90, 120, 180)  # [s], by which the report counts the solved homes


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(
        share * (1 - share) / count + z * z / (4 * count * count))
    # Rounding must not put the share itself outside.
    return min(max(0.0, middle - half), share), max(min(1.0, middle + half), share)


def keys_of(settings: dict, navigators) -> dict[str, dict]:
    """What the runs of each navigator depend on: only one of them on the model."""
    common = {name: settings[name] for name in ("seconds", "head")}
    keys = dict.fromkeys(navigators, common)
    if "luseel" in keys:
        keys["luseel"] = {**common, "threshold": settings["threshold"], "checkpoint": file_sha256(
            find_checkpoint(settings["model"]))[:12]}
    return keys


def read_rows(path: Path, keys: dict[str, dict]) -> list[dict]:
    """The runs of these settings, by navigator, in a file; a last line that was cut off is left
    out."""
    rows = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            key = keys.get(row.get("navigator"))
            if key is not None and row.get("settings") == key:
                rows.append(row)
    return rows


def summarize(rows: list[dict], navigator: str) -> dict:
    """What one navigator achieved, over the runs of ``rows`` that are its own."""
    own = [row for row in rows if row["navigator"] == navigator]
    solved = [row for row in own if row["success"]]
    low, high = wilson(len(solved), len(own))
    return {
        "navigator": navigator, "homes": len(own), "solved": len(solved),
        "share": len(solved) / len(own) if own else None, "low": low, "high": high,
        "by": {moment: sum(row["seconds"] <= moment for row in solved) for moment in MOMENTS},
        "wrong_place": sum(row["declared"] and not row["success"] for row in own),
        "out_of_time": sum(not row["declared"] for row in own),
        "seconds": _median(solved, "seconds"), "path_ratio": _median(solved, "path_ratio"),
        "bearing_error": _median(own, "bearing_error"), "raw_error": _median(own, "raw_error"),
        "confused": _mean(own, "confused"), "position_error": _median(own, "position_error"),
        "bumps": sum(row["bumps"] for row in own),
    }


def _values(rows: list[dict], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _median(rows: list[dict], name: str) -> float | None:
    values = _values(rows, name)
    return round(float(np.median(values)), 2) if values else None


def _mean(rows: list[dict], name: str) -> float | None:
    values = _values(rows, name)
    return round(float(np.mean(values)), 3) if values else None


def misses(summary: dict) -> list[str]:
    """Which targets were missed."""
    by_name = {row["navigator"]: row for row in summary["rows"]}
    failed = []
    own, other = by_name.get("luseel"), by_name.get("loudest")
    if own and own["homes"] and own["share"] < TARGET_SHARE:
        failed.append(f"luseel solved {own['share']:.0%} of the homes; target {TARGET_SHARE:.0%}")
    if own and other and own["homes"] and other["homes"] and (
            own["share"] - other["share"] < TARGET_LEAD):
        failed.append(f"luseel is {100 * (own['share'] - other['share']):.0f} points above "
                      f"loudest; target {100 * TARGET_LEAD:.0f}")
    return failed


def markdown(summary: dict) -> str:
    """The report."""
    def cell(value, form: str) -> str:
        return "–" if value is None else format(value, form)

    settings = summary["settings"]
    lines = [
        "# Robot in the loop", "",
        f"{settings['homes']} random homes, RT60 0.2–0.6 s, one or two competing sounds, "
        f"{settings['seconds']:g} s at most; head {settings['head']}, checkpoint "
        f"{settings['model'] or 'as shipped'}. Solved: declared arrival within {ARRIVAL:g} m of "
        "the crying baby. Medians; time and path of the solved runs.", "",
        "| navigator | homes | solved [%] (95%) | wrong place | out of time | time [s] | path / "
        "shortest | tracked direction off by [°] | single hops off by [°] | tracked off by > 45° "
        "[%] | place off by [m] |",
        "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in summary["rows"]:
        share = cell(None if row["share"] is None else 100 * row["share"], ".0f")
        confused = cell(None if row["confused"] is None else 100 * row["confused"], ".0f")
        lines.append(
            f"| {row['navigator']} | {row['homes']} | {share} ({100 * row['low']:.0f} to "
            f"{100 * row['high']:.0f}) | {row['wrong_place']} | {row['out_of_time']} | "
            f"{cell(row['seconds'], '.0f')} | {cell(row['path_ratio'], '.2f')} | "
            f"{cell(row['bearing_error'], '.1f')} | {cell(row['raw_error'], '.1f')} | {confused} | "
            f"{cell(row['position_error'], '.2f')} |")
    moments = [moment for moment in MOMENTS if moment <= settings["seconds"]]
    lines += ["", "| solved within | " + " | ".join(f"{moment} s" for moment in moments) + " |",
              "|---" * (1 + len(moments)) + "|"]
    for row in summary["rows"]:
        lines.append(f"| {row['navigator']} | " + " | ".join(
            f"{100 * row['by'][moment] / max(row['homes'], 1):.0f}%" for moment in moments) + " |")
    lines += ["", "| solved with | " + " | ".join(r["navigator"] for r in summary["rows"]) + " |",
              "|---" * (1 + len(summary["rows"])) + "|"]
    for count, shares in summary["by_competing"].items():
        lines.append(f"| {count} competing | " + " | ".join(
            f"{s[0]} of {s[1]}" for s in shares) + " |")
    lines += ["", "All targets met." if not summary["failed"] else
              "MISSED: " + "; ".join(summary["failed"]) + "."]
    return "\n".join(lines) + "\n"


def make_summary(rows: list[dict], settings: dict, navigators) -> dict:
    """All that the report says."""
    summary = {"settings": settings, "rows": [summarize(rows, name) for name in navigators]}
    summary["by_competing"] = {
        count: [(sum(r["success"] for r in rows
                     if r["navigator"] == name and r["competing"] == count),
                 sum(r["navigator"] == name and r["competing"] == count for r in rows))
                for name in navigators]
        for count in sorted({r["competing"] for r in rows})}
    summary["failed"] = misses(summary)
    return summary


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--homes", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed of the first home")
    parser.add_argument("--navigators", nargs="+", default=list(NAVIGATORS), choices=NAVIGATORS)
    parser.add_argument("--seconds", type=float, default=180.0, help="simulated, for each run")
    parser.add_argument("--head", default="mit_kemar", help="of the robot")
    parser.add_argument("--model", default="", help="checkpoint (default: the shipped)")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="of the query")
    parser.add_argument("--packed", type=Path, default=ROOT / "data/packed")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the report")
    args = parser.parse_args(argv)
    settings = {"homes": args.homes, "first": args.first, "seconds": args.seconds,
                "head": args.head, "model": args.model, "threshold": args.threshold}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "runs.jsonl"
    try:
        rows = run(args, settings, path)
    except (LuseelError, harness.FieldError) as error:
        print(f"trial: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"trial: interrupted; {path} has the runs so far, and the same command goes on",
              file=sys.stderr)
        return 130
    summary = make_summary(rows, settings, args.navigators)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = markdown(summary)
    (args.out / "report.md").write_text(text)
    print(text)
    return 1 if summary["failed"] else 0


def run(args, settings: dict, path: Path) -> list[dict]:
    """All runs that are missing; returns all."""
    keys = keys_of(settings, args.navigators)  # more homes go on
    rows = read_rows(path, keys)
    seeds = range(args.first, args.first + args.homes)
    done = {(row["seed"], row["navigator"]) for row in rows}
    missing = [(seed, name) for seed in seeds for name in args.navigators
               if (seed, name) not in done]
    if missing:
        pool, head = ClipPool.load(args.packed, "test"), load_head(args.head)
        listening = any(name == "luseel" for _, name in missing)
        with Loop(head, listening, args.model, args.threshold) as loop, open(path, "a") as file, \
                tqdm(total=len(missing), unit="run") as bar:
            for seed, name in missing:
                bar.set_description(f"home {seed}, {name}")
                home = draw_home(seed, pool, seconds=args.seconds)
                score, _ = loop.run(home, name, args.seconds)
                row = {"seed": seed, "navigator": name, "settings": keys[name], **score,
                       "competing": len(home.sources) - 1, "rt60": round(home.rt60, 2),
                       "sounds": [source.name for source in home.sources],
                       "labels": [source.label for source in home.sources]}
                file.write(json.dumps(row) + "\n")
                file.flush()
                rows.append(row)
                bar.update()
    return [row for row in rows if row["seed"] in seeds and row["navigator"] in args.navigators]


if __name__ == "__main__":
    sys.exit(main())
