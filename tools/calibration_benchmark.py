"""What a calibration finds, and what it gains: ``python tools/calibration_benchmark.py``.

Two tables. The first compares what `luseel calibrate` finds with the faults that simulated
recordings of claps were given. The second hears mixtures of the benchmark with a head that training
never heard, with faults, as they are and put right by what claps in a mild room told. It needs what
the benchmark needs (docs/benchmark.md). Writes docs/reports/calibration.md and .json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from luseel_model import Extractor, load_model  # noqa: E402
from luseel_model.calibration import Calibration, measure_head  # noqa: E402
from luseel_model.errors import LuseelError  # noqa: E402
from training import SAMPLE_RATE  # noqa: E402
from training.benchmark.catalogue import Catalogue, load_catalogue  # noqa: E402
from training.benchmark.render import Renderer  # noqa: E402
from training.benchmark.report import METRICS, Bootstrap, figure  # noqa: E402
from training.benchmark.run import listen  # noqa: E402
from training.claps import AROUND, NOISE_DB, ROOM, Faults, heard_claps  # noqa: E402
from training.evaluation import interval  # noqa: E402
from training.heads import Head, fetch_head, load_head  # noqa: E402
from training.metrics import mixture_metrics  # noqa: E402
from training.pool import ClipPool  # noqa: E402
from training.report import table, write_page  # noqa: E402

CROSS, EIGHT = (0, 90, 180, 270), tuple(range(0, 360, 45))
EXACT = Faults(swap=True, delay_us=50.0, gain_db=2.0)
EXACT_TURN = 4.0
RECORDINGS = 4
DIRECTIONS = {"0 90 180 270": CROSS, "eight, every 45°": EIGHT,
              "0 90 270": (0, 90, 270), "90 270": (90, 270)}
FAULTS = {"as packaged": Faults(),
          "as packaged, right channel 60 µs late, 3 dB louder": Faults(delay_us=60.0, gain_db=3.0),
          "as packaged, ears swapped": Faults(swap=True)}
ALL_AROUND = {"8 claps": EIGHT, "12 claps": AROUND,
              "36 claps": tuple(np.repeat(AROUND, 3).tolist())}
BROUGHT = "the checkpoint's"
COLUMNS = ("within_5", "doa_error", "front_back", "si_snri", "right_source")


def calibrated(head: Head, directions, faults: Faults, responses: bool = False
               ) -> tuple[Calibration, Head | None]:
    """The calibration that one simulated recording of claps gives, and the responses, if wanted."""
    audio, sounds, found = heard_claps(head, directions, faults)
    return found.calibration, measure_head([(audio, SAMPLE_RATE, sounds)],
                                           found) if responses else None


def exactness(heads: Sequence[Head]) -> list[dict]:
    """Largest errors of delay (µs), level (dB) and turn (degrees) by head and directions."""
    rows = []
    for words, directions in DIRECTIONS.items():
        turn = EXACT_TURN if 0 in directions else 0.0  # without a front none can be told
        for head in heads:
            found = [heard_claps(head, directions, EXACT, turn=turn, room=room, seed=seed)[2]
                     .calibration for room in (0.0, ROOM) for seed in range(RECORDINGS)]
            if not all(ears.swap for ears in found):
                raise SystemExit(f"{head.name}, {words}: swapped ears were not noticed")
            rows.append({
                "directions": words, "head": head.name,
                "delay_us": max(abs(ears.delay_us - EXACT.delay_us) for ears in found),
                "level_db": max(abs(ears.gain_db - EXACT.gain_db) for ears in found),
                "turn_degrees": max(abs(ears.turn_degrees - turn) for ears in found)
                if 0 in directions else None})
    return rows


def hear(model, renderer: Renderer, mixtures: int, faults: Faults, calibration: Calibration,
         title: str) -> list[dict]:
    """One row of metrics a query, of the first mixtures, each asked for all its sounds.

    The model hears the faulty channels and puts them right itself. What it extracts so is compared
    with the true sounds put right alike.
    """
    model.calibration = calibration
    rows = []
    for number in tqdm(range(mixtures), desc=title, unit="mixture"):
        mixture = renderer[number]
        audio = faults.apply(mixture.audio, SAMPLE_RATE).astype(np.float32)
        heard = listen(model, audio, mixture.kind)
        sources = calibration.apply(torch.from_numpy(
            faults.apply(mixture.sources, SAMPLE_RATE)).float(), SAMPLE_RATE)
        values = mixture_metrics(heard.audio[None], sources[None], sources.sum(0)[None],
                                 torch.as_tensor(heard.azimuth)[None],
                                 torch.as_tensor(mixture.azimuth)[None])
        rows += [{"recording": mixture.recording[i],
                  **{key: float(value[i]) for key, value in values.items()}}
                 for i in range(len(sources))]
    return rows


def gains(load: Callable[[], Extractor], catalogue: Catalogue, put_right: Head, packed: str,
          mixtures: int) -> list[dict]:
    """Figures of each condition.

    Args:
        load: gives the model with the responses it brings.
        put_right: the head, calibrated by its full responses.
    """
    cell = replace(catalogue.cells["fabian-2-none"], head=put_right.name)
    pool = ClipPool.load(packed, "test")
    packaged, whole = (Renderer(catalogue, cell, pool, head) for head in (
        fetch_head(put_right.name, calibrate=False), put_right))
    results = []

    def add(ears: str, calibration: str, responses: str, renderer: Renderer, faults: Faults,
            found: Calibration, head: Head | None) -> None:
        model = load()
        if head:
            model.set_head(head)
        rows = hear(model, renderer, mixtures, faults, found, f"{ears}; {calibration}; {responses}")
        results.append({"ears": ears, "calibration": calibration, "responses": responses,
                        "found": {key: getattr(found, key) for key in (
                            "swap", "polarity", "delay_us", "gain_db", "turn_degrees")},
                        **{key: interval(rows, key, Bootstrap()) for key in COLUMNS}})

    for ears, faults in FAULTS.items():
        add(ears, "none", BROUGHT, packaged, faults, Calibration(), None)
        add(ears, "4 claps", BROUGHT, packaged, faults,
            calibrated(packaged.head, CROSS, faults)[0], None)
    for words, directions in ALL_AROUND.items():
        for ears, faults in FAULTS.items():
            if faults == Faults() or directions == AROUND:
                add(ears, words, "by these claps", packaged, faults,
                    *calibrated(packaged.head, directions, faults, responses=True))
    add("as packaged", "4 claps", "all measured", packaged, Faults(),
        calibrated(packaged.head, CROSS, Faults())[0], put_right)
    right = "put right by its full responses"
    add(right, "none needed", BROUGHT, whole, Faults(), Calibration(), None)
    add(right, "none needed", "all measured", whole, Faults(), Calibration(), put_right)
    return results


def markdown(report: dict) -> str:
    """The report as a page."""
    about = report["about"]
    heads = list(dict.fromkeys(row["head"] for row in report["exactness"]))

    def errors(words: str, key: str, digits: int) -> str:
        values = [row[key] for row in report["exactness"] if row["directions"] == words]
        return " / ".join("–" if value is None else f"{value:.{digits}f}" for value in values)

    lines = [
        "# What a calibration finds, and what it gains", "",
        f"`python tools/calibration_benchmark.py --mixtures {about['mixtures']} --catalogue "
        f"{about['benchmark']}`; model "
        f"`{about['model']}`.", "",
        "## How exact it is", "",
        f"Largest errors over {RECORDINGS} simulated recordings without a room and {RECORDINGS} in "
        "a mild one (floor, six walls, tail of 0.4 s), ears swapped, right one "
        f"{EXACT.delay_us:g} µs late and {EXACT.gain_db:g} dB louder, the head turned by "
        f"{EXACT_TURN:g}°, on top of heads put right by their full responses; one clap at each "
        f"direction, noise {-NOISE_DB:g} dB below the loudest peak; {' / '.join(heads)}. "
        "Swapped ears were noticed in all.", "",
        table(["directions", "delay [µs]", "level [dB]", "turn [°]"],
              [[words, errors(words, "delay_us", 1), errors(words, "level_db", 1),
                errors(words, "turn_degrees", 1)] for words in DIRECTIONS]), "",
        "Without a direction in front or behind a turn can't be told; the head was not turned then.",
        "", "## What it gains", "",
        f"Head {about['head']}, never heard in training, as its makers packaged it (by its full "
        f"responses turned {report['packaged']['azimuth_offset']:.1f}° to the left, left ear "
        f"{report['packaged']['delay_bias_us']:.0f} µs early and "
        f"{report['packaged']['level_bias_db']:.1f} dB louder), with faults on top, and after a "
        "calibration by claps in the mild room: one in front, left, behind and right; one every 45° "
        "or 30°, which tell the responses as well; three every 30°. The first "
        f"{about['mixtures']} mixtures of "
        f"{about['cell']} of benchmark {about['benchmark']} (two test recordings, 10 s, no room, "
        "−5 to 5 dB), each asked for both sounds by label; 95% bootstrap over recordings in "
        "brackets.", "",
        table(["ears", "calibration", "responses given", *(METRICS[key] for key in COLUMNS)],
              [[row["ears"], row["calibration"], row["responses"],
                *(figure(row[key], key) for key in COLUMNS)] for row in report["gains"]])]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixtures", type=int, default=60, help="of each condition")
    parser.add_argument("--checkpoint", help="path or name (default: the shipped)")
    parser.add_argument("--head", default="fabian")
    parser.add_argument("--packed", default="data/packed")
    parser.add_argument("--catalogue", help="v1, v2, or the folder of a benchmark's catalogue "
                        "(default: the newest)")
    parser.add_argument("--out", default=str(ROOT / "docs" / "reports"))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    catalogue = load_catalogue(options.catalogue)
    if not 1 <= options.mixtures <= len(catalogue.scenes["two"]):
        parser.error(f"--mixtures must be 1 to {len(catalogue.scenes['two'])}")
    try:
        head = load_head(options.head)
        name = load_model(options.checkpoint).name
        found = exactness([head, load_head("mit_kemar")])
        results = gains(partial(load_model, options.checkpoint), catalogue, head, options.packed,
                        options.mixtures)
    except LuseelError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    report = {"about": {"mixtures": options.mixtures, "head": options.head, "model": name,
                        "cell": f"{options.head}-2-none", "benchmark": catalogue.version},
              "exactness": found, "packaged": json.loads(head.metadata["calibration"]),
              "gains": results}
    text = markdown(report)
    write_page(options.out, "calibration", report, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
