"""What tracking makes of the model's single hops: ``python tools/tracking_benchmark.py``.

Streams of two test recordings (docs/data.md) around a measured head, without a room and in one, the
head standing still or turning by 90 degrees after some seconds. The model hears them as the node
lets it hear, hop by hop; its raw directions are compared with those of a tracker that gets the same
likelihoods and confidences, and the head's yaw. All of it runs without ROS.

What the model said is kept in ``--cache``: another run tracks it again without the model.
Writes docs/reports/tracking.json and .md.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.signal
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from luseel_model import load_model  # noqa: E402
from luseel_model.angles import angular_error, mirror_front_back  # noqa: E402
from luseel_model.streaming import ExtractionStream  # noqa: E402
from luseel_model.tracking import Odometry, Pose, Tracker, TrackingConfig  # noqa: E402
from training import SAMPLE_RATE  # noqa: E402
from training.benchmark.render import looped  # noqa: E402
from training.heads import load_head  # noqa: E402
from training.pool import ClipPool  # noqa: E402
from training.report import write_page  # noqa: E402
from training.rooms import draw_room, render_room  # noqa: E402

SECONDS = 16.0
TURN_BEGIN, TURN_SECONDS, TURN = 6.0, 3.0, 90.0
STEP = {"none": 5.0, "room": 15.0}  # degrees between the responses that a turn fades through
CONDITIONS = [(room, turn) for room in ("none", "room") for turn in (False, True)]
ACTIVE_DB = -25.0  # a window holds the sound from this level on, re its mean
LEAST_SEPARATION = 20.0
RIGHT = 20.0  # degrees, of a hop that points to the sound
KEPT = ("likelihood", "azimuth", "confidence", "truth", "turn", "present", "end", "query", "stream")


def yaw_at(moment, turn: float):
    """Where the head looks, degrees, at times in seconds."""
    return turn * np.clip((np.asarray(moment) - TURN_BEGIN) / TURN_SECONDS, 0, 1)


def heard(dry: np.ndarray, responses: np.ndarray, yaws: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """(2, n): a sound (n,) through a head that turns by `yaw` (n,), fading through its responses
    (K, 2, taps) at `yaws` (K,)."""
    out = np.zeros((2, len(dry) + responses.shape[-1] - 1))
    for k, response in enumerate(responses):
        weight = np.ones_like(dry) if len(yaws) == 1 else np.clip(
            1 - np.abs(yaw - yaws[k]) / abs(yaws[1] - yaws[0]), 0, 1)
        if weight.any():
            out += scipy.signal.fftconvolve((dry * weight)[None], response, axes=-1)
    return out[:, :len(dry)]


def make_stream(number: int, room: str, turning: bool, pool: ClipPool, head) -> dict:
    """Stream `number`: the same sounds and places in all conditions of a room.

    Returns:
        audio (2, n), sources (2, 2, n), azimuth (2,) at yaw 0, turn (degrees), kinds, absent.
    """
    random = np.random.default_rng([20261121, number])
    kinds = sorted(set(pool.labels))
    chosen = random.choice(kinds, 3, replace=False).tolist()
    count, turn = round(SECONDS * SAMPLE_RATE), float(random.choice([-TURN, TURN]))
    azimuth = random.uniform(0, 360, 2)
    while angular_error(*azimuth) < LEAST_SEPARATION:
        azimuth[1] = random.uniform(0, 360)
    snr, places = random.uniform(-5, 5), random.integers(1 << 30)
    samples, dry = pool.samples.numpy(), []
    for kind in chosen[:2]:
        place = random.choice(np.flatnonzero(np.array(pool.labels) == kind))
        start, length = int(pool.start[place]), int(pool.length[place])
        sound = looped(samples[start:start + length], int(random.integers(length)),
                       round(random.uniform(0, 1) * SAMPLE_RATE), count)
        dry.append(sound / np.sqrt(np.square(sound).mean() + 1e-12))
    dry[1] = dry[1] * 10 ** (-snr / 20)
    turn = turn if turning else 0.0
    yaws = np.arange(0, abs(turn) + 1e-6, STEP[room]) * np.sign(turn) if turn else np.zeros(1)
    if room == "none":
        responses = np.stack([head.at(torch.as_tensor(azimuth - y)).numpy() for y in yaws])
    else:
        # two of the room's sources, at least LEAST_SEPARATION apart
        plan = draw_room(6, "test", 77, number)
        first = int(places % 6)
        second = (first + 2 + int(places // 6 % 3)) % 6
        keep = [first, second]
        plan = replace(plan, azimuth=plan.azimuth[keep], distance=plan.distance[keep],
                       rise=plan.rise[keep])
        azimuth = plan.azimuth
        turned = [render_room(replace(plan, look=plan.look + y,
                                      azimuth=(azimuth - y) % 360), head) for y in yaws]
        responses = np.stack(turned).astype(np.float64)
        level = np.sqrt(np.square(responses).sum((0, 2, 3)) / len(yaws))
        responses = responses / level[:, None, None]  # as loud, however far
    yaw = yaw_at(np.arange(count) / SAMPLE_RATE, turn)
    sources = np.stack([heard(sound, responses[:, i], yaws, yaw) for i, sound in enumerate(dry)])
    audio = sources.sum(0)
    scale = min(10 ** (-25 / 20) / np.sqrt(np.square(audio).mean()), 1 / np.abs(audio).max())
    return {"audio": (scale * audio).astype(np.float32), "sources": scale * sources,
            "azimuth": azimuth, "turn": turn, "kinds": chosen[:2], "absent": chosen[2]}


def listen(model, stream: dict, number: int) -> dict[str, np.ndarray]:
    """What the model says of each hop and query (the third is not there), and the truth."""
    rows: dict[str, list] = {name: [] for name in KEPT}
    extraction = ExtractionStream(model, SAMPLE_RATE, "balanced", buffer_seconds=4 * SECONDS)
    extraction.set_queries({str(i): q for i, q in enumerate([*stream["kinds"], stream["absent"]])})
    extraction.push(stream["audio"])
    window = round(model.window * SAMPLE_RATE)
    mean = np.square(stream["sources"]).mean((1, 2))
    while (result := extraction.process()) is not None:
        end, hop = result.hop_end, result.hop_end - result.hop_start
        yaw = float(yaw_at((end - hop) / SAMPLE_RATE, stream["turn"]))
        for estimate in result.estimates:
            i = int(estimate.key)
            part = stream["sources"][min(i, 1), :, max(0, end - window):end]
            level = 10 * math.log10(np.square(part).sum() / (2 * window) / mean[min(i, 1)] + 1e-9)
            rows["likelihood"].append(estimate.likelihood.astype(np.float16))
            rows["azimuth"].append(estimate.azimuth)
            rows["confidence"].append(estimate.confidence)
            rows["truth"].append((stream["azimuth"][i] - yaw) % 360 if i < 2 else np.nan)
            rows["turn"].append(stream["turn"])
            rows["present"].append(i < 2 and level > ACTIVE_DB)
            rows["end"].append(end / SAMPLE_RATE)
            rows["query"].append(i)
            rows["stream"].append(number)
    return {name: np.array(values) for name, values in rows.items()}


def sounds_of(rows: dict[str, np.ndarray], where=slice(None)) -> list[tuple[int, int]]:
    """The (stream, query) that the rows `where` are of."""
    return sorted({*zip(rows["stream"][where], rows["query"][where])})


def track(rows: dict[str, np.ndarray], config: TrackingConfig, odometry: bool) -> dict:
    """Tracked azimuth (NaN: no track), its deviation and the weight of the best hypothesis for
    each row."""
    out = {name: np.full(len(rows["end"]), np.nan) for name in ("azimuth", "std", "weight")}
    for stream, query in sounds_of(rows):
        mine = np.flatnonzero((rows["stream"] == stream) & (rows["query"] == query))
        tracker, poses = Tracker(config), Odometry(100.0)
        for moment in np.arange(-4, SECONDS + 1, 0.05):
            poses.add(moment, Pose(0, 0, float(yaw_at(moment, rows["turn"][mine[0]]))))
        for row in mine:
            end = rows["end"][row]
            motion = poses.over(end - config.window, end, end - 0.5) if odometry else None
            state = tracker.update(end - 0.5, rows["likelihood"][row].astype(np.float64),
                                   float(rows["confidence"][row]), motion)
            if state.id is not None:
                out["azimuth"][row], out["std"][row] = state.azimuth, state.azimuth_std
                out["weight"][row] = state.hypotheses[0].weight
    return out


def summary(azimuth: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """MAE and median in degrees, shares within 5 and 10 degrees and mirrored front to back, in
    percent."""
    error = angular_error(azimuth, truth)
    # as in training.metrics: nearer to the mirrored direction, where the two differ
    mirrored = angular_error(azimuth, mirror_front_back(truth))
    confused = (mirrored < error) & (angular_error(truth, mirror_front_back(truth)) > 30) \
        & (mirrored < 30)
    return {"n": len(error), "mae": float(error.mean()), "median": float(np.median(error)),
            "within_5": 100 * float((error <= 5).mean()),
            "within_10": 100 * float((error <= 10).mean()),
            "front_back": 100 * float(confused.mean())}


def mostly_right(rows: dict[str, np.ndarray], where: np.ndarray) -> np.ndarray:
    """Those of the rows `where` that are of sounds with most single hops within RIGHT degrees: a
    tracker makes the majority's opinion steady, be it right or wrong."""
    right = angular_error(rows["azimuth"], np.nan_to_num(rows["truth"])) <= RIGHT
    out = np.zeros_like(where)
    for stream, query in sounds_of(rows, where):
        mine = where & (rows["stream"] == stream) & (rows["query"] == query)
        if right[mine].mean() > 0.5:
            out |= mine
    return out


def evaluate(cells: dict[str, dict[str, np.ndarray]], config: TrackingConfig) -> dict:
    """Raw against tracked, by condition and part of the streams."""
    report = {}
    for name, rows in cells.items():
        turning = name.endswith("turning")
        tracked = track(rows, config, odometry=turning)
        full = rows["end"] >= 2.0
        parts = {"": full & (rows["end"] >= 4.0)}
        if turning:
            begin, end = TURN_BEGIN, TURN_BEGIN + TURN_SECONDS
            parts = {"before": full & (rows["end"] <= begin),
                     "during": full & (rows["end"] > begin) & (rows["end"] <= end + 0.5),
                     "after": rows["end"] >= end + 2.0}
        for part, where in parts.items():
            here = where & (rows["present"] > 0)
            both = here & np.isfinite(tracked["azimuth"])
            if not both.any():
                continue
            truth = rows["truth"]
            absent = where & (rows["query"] == 2)
            heard = mostly_right(rows, both)
            report[f"{name} {part}".strip()] = {
                "sounds": len(sounds_of(rows, both)), "sounds_right": len(sounds_of(rows, heard)),
                "raw_right": summary(rows["azimuth"][heard], truth[heard]) if heard.any() else None,
                "tracked_right": summary(tracked["azimuth"][heard], truth[heard])
                if heard.any() else None,
                "raw_all": summary(rows["azimuth"][here], truth[here]),
                "raw": summary(rows["azimuth"][both], truth[both]),
                "tracked": summary(tracked["azimuth"][both], truth[both]),
                "reported": 100 * float(both.sum() / here.sum()),
                "reported_absent": 100 * float(np.isfinite(tracked["azimuth"][absent]).mean()),
                "active_absent": 100 * float((rows["confidence"][absent] >= 0.5).mean()),
                "std": float(np.sqrt(np.mean(tracked["std"][both] ** 2)))}
    return report


def markdown(report: dict, about: dict) -> str:
    """The report as a page."""
    lines = [
        "# What tracking makes of single hops", "",
        f"`python tools/tracking_benchmark.py --streams {about['streams']}`; model "
        f"`{about['model']}`, head {about['head']}, {about['streams']} streams of {SECONDS:g} s a "
        f"condition, two test recordings each, both asked for; hop {about['hop']:g} s. A turn is "
        f"{TURN:g}° in {TURN_SECONDS:g} s, with odometry. Compared on the hops with a track; hops "
        "overlap, so they are not independent. \"Mostly right\": the sounds for which more than half "
        f"of these hops alone are within {RIGHT:g}°, and their errors.", "",
        "| streams | hops | MAE raw → tracked [°] | sounds mostly right | their MAE [°] | median [°] "
        "| within 5° [%] | within 10° [%] | front–back [%] | with a track: there / not there [%] |",
        "|---" * 10 + "|"]
    for name, cell in report.items():
        raw, tracked = cell["raw"], cell["tracked"]

        def pair(key, digits=0):
            return f"{raw[key]:.{digits}f} → {tracked[key]:.{digits}f}"

        right = "–"
        if cell["raw_right"] is not None:
            right = f"{cell['raw_right']['mae']:.1f} → {cell['tracked_right']['mae']:.1f}"
        lines.append(
            f"| {name} | {raw['n']} | {pair('mae', 1)} | {cell['sounds_right']} of "
            f"{cell['sounds']} | {right} | {pair('median', 1)} | {pair('within_5')} "
            f"| {pair('within_10')} | {pair('front_back')} | {cell['reported']:.0f} / "
            f"{cell['reported_absent']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=20, help="of each condition")
    parser.add_argument("--checkpoint", help="path or name (default: the shipped)")
    parser.add_argument("--head", default="mit_kemar")
    parser.add_argument("--packed", default="data/packed")
    parser.add_argument("--cache", help="folder for what the model said")
    parser.add_argument("--out", default=str(ROOT / "docs" / "reports"))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    cache = Path(options.cache) if options.cache else None
    model, pool, head = None, None, load_head(options.head)
    cells = {}
    for room, turning in CONDITIONS:
        name = ("in a room" if room == "room" else "no room") + \
            (", head turning" if turning else ", head still")
        made = []
        for number in tqdm(range(options.streams), desc=name, unit="stream"):
            file = cache and cache / f"{options.head}_{room}_{'turn' if turning else 'still'}" \
                                     f"_{number}.npz"
            if file and file.is_file():
                made.append(dict(np.load(file)))
                continue
            if model is None:
                model = load_model(options.checkpoint)
                pool = ClipPool.load(options.packed, "test")
            rows = listen(model, make_stream(number, room, turning, pool, head), number)
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(file.with_suffix(".part.npz"), **rows)
                file.with_suffix(".part.npz").replace(file)
            made.append(rows)
        cells[name] = {key: np.concatenate([rows[key] for rows in made]) for key in KEPT}
    report = evaluate(cells, TrackingConfig())
    about = {"streams": options.streams, "head": options.head, "hop": 0.5,
             "model": options.checkpoint or "luseel-small", "seconds": SECONDS}
    text = markdown(report, about)
    write_page(options.out, "tracking", {"about": about, "results": report}, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
