"""Renders the binaural scene that the demo plays, from recordings that training never saw.

    python -m training.make_demo_scene --data DATA [--spec training/demo_scene.yaml]

DATA is the folder with the recordings: DATA/SET/CLIP, where DATA/SET/catalogue.csv lists each clip
with split, licence, author and source. Only clips of the test split under CC0 or CC-BY are taken.

Each sound of the specification becomes one binaural track: the recording without the silence
around it, repeated for as long as it lasts, brought to its level, at a fixed azimuth. The tracks
are compressed; what the compressed files decode to is the truth, and their sum is the scene, so
that truth and scene agree exactly.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import soundfile
import soxr
import torch
import yaml
from scipy.signal import fftconvolve

from luseel_model.errors import ConfigError

from . import SAMPLE_RATE
from .heads import load_head

HERE = Path(__file__).resolve().parent
SPEC = HERE / "demo_scene.yaml"
OUT = HERE.parent / "luseel_ros" / "demo" / "data"
FADE = 0.02  # [s] at both ends of each repetition and of each track
SILENCE_DB = -45.0  # below the loudest 20 ms: not part of the sound
LICENCES = re.compile(r"CC0(-1\.0)?|CC-BY(-[1-4]\.0)?")


def find_recording(data: Path, clip: str) -> dict[str, str]:
    """The catalogue's row of ``SET/CLIP``, checked.

    Raises:
        ConfigError: not in the catalogue, not of the test split, or under another licence.
    """
    folder, _, name = clip.partition("/")
    with open(data / folder / "catalogue.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["clip"] == name:
                break
        else:
            raise ConfigError(f"{clip}: not in {folder}/catalogue.csv")
    if row["split"] != "test":
        raise ConfigError(f"{clip}: of the {row['split']} split; the demo takes test recordings")
    if not LICENCES.fullmatch(row["licence"]):
        raise ConfigError(f"{clip}: licence {row['licence']}; the demo takes CC0 and CC-BY")
    return row


def read_sound(path: Path, part: Sequence[float] | None = None) -> np.ndarray:
    """A recording as mono float64 (n,) at 16 kHz, without the silence at its ends.

    ``part``: (from, to) in seconds of the file, before the silence is cut.
    """
    audio, rate = soundfile.read(path, always_2d=True)
    audio = soxr.resample(audio.mean(1), rate, SAMPLE_RATE)
    if part:
        audio = audio[round(part[0] * SAMPLE_RATE):round(part[1] * SAMPLE_RATE)]
    frame = SAMPLE_RATE // 50
    count = len(audio) // frame
    level = np.sqrt(np.square(audio[:count * frame].reshape(count, frame)).mean(1))
    loud = np.flatnonzero(level > level.max() * 10 ** (SILENCE_DB / 20))
    return audio[loud[0] * frame:(loud[-1] + 1) * frame]


def repeat(sound: np.ndarray, samples: int, gap: float) -> np.ndarray:
    """The sound again and again, `gap` seconds apart, for `samples` samples; faded at all ends."""
    ramp = np.sin(0.5 * np.pi * np.linspace(0, 1, round(FADE * SAMPLE_RATE))) ** 2

    def faded(audio):
        audio = audio.copy()
        audio[:len(ramp)] *= ramp
        audio[-len(ramp):] *= ramp[::-1]
        return audio

    once = np.concatenate([faded(sound), np.zeros(round(gap * SAMPLE_RATE))])
    return faded(np.tile(once, -(-samples // len(once)))[:samples])


def spatialise(sound: np.ndarray, azimuth: float, head) -> np.ndarray:
    """(n,) at an azimuth in degrees -> (2, n), both ears."""
    response = head.at(torch.tensor(float(azimuth))).numpy().astype(np.float64)
    return np.stack([fftconvolve(sound, ear)[:len(sound)] for ear in response])


def write_track(path: Path, audio: np.ndarray, quality: float) -> np.ndarray:
    """Compress (2, n) into an Ogg Vorbis file; returns what the file decodes to, (2, n)."""
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 2, "VORBIS", format="OGG",
                             compression_level=1.0 - quality) as file:
        for start in range(0, audio.shape[1], SAMPLE_RATE):  # long writes overflow libsndfile
            file.write(audio[:, start:start + SAMPLE_RATE].T)
    decoded, _ = soundfile.read(path, always_2d=True)
    if decoded.shape[0] != audio.shape[1]:
        raise RuntimeError(f"{path}: decodes to {decoded.shape[0]} samples of {audio.shape[1]}")
    return decoded.T


def make_scene(spec: dict[str, Any], data: Path, out: Path, quality: float) -> dict[str, Any]:
    """Render a scene into a folder; returns what is written to its scene.json.

    Args:
        spec: title, head, seconds, level_db (root mean square of a sound of level 0 dB while it
            sounds, both ears together, re full scale), sounds (label, clip, azimuth in degrees,
            start, end, level_db, gap, part) and queries (text, sound, at, until).
        data: folder of the recordings.
        out: folder for tracks, scene.json and ATTRIBUTION.md; an older scene there goes.
        quality: of the compression, 0 to 1.
    """
    head = load_head(spec["head"])
    out.mkdir(parents=True, exist_ok=True)
    if (out / "scene.json").exists():  # its tracks may have other names
        for old in json.loads((out / "scene.json").read_text())["sounds"]:
            (out / old["track"]).unlink(missing_ok=True)
    total = np.zeros((2, round(spec["seconds"] * SAMPLE_RATE)))
    sounds, credits = [], []
    for number, item in enumerate(spec["sounds"]):
        row = find_recording(data, item["clip"])
        if row["label"] != item["label"]:
            raise ConfigError(f"{item['clip']}: labelled {row['label']}, not {item['label']}")
        start, end = (round(item[key] * SAMPLE_RATE) for key in ("start", "end"))
        dry = repeat(read_sound(data / item["clip"], item.get("part")), end - start,
                     item.get("gap", 0.2))
        track = spatialise(dry, item["azimuth"], head)
        active = np.abs(dry) > 0
        level = np.sqrt(np.square(track[:, active]).mean())
        track *= 10 ** ((spec["level_db"] + item.get("level_db", 0.0)) / 20) / level
        name = f"{number + 1}_{item['label'].replace(' ', '_')}.ogg"
        total[:, start:end] += write_track(out / name, track, quality)
        recording = {key: row[key] for key in ("title", "author", "licence", "source")
                     if row.get(key)}
        sounds.append({"label": item["label"], "track": name, "azimuth": float(item["azimuth"]),
                       "start": float(item["start"]), "end": float(item["end"]),
                       "recording": {"clip": item["clip"], **recording}})
        credits.append((name, recording))
    peak = np.abs(total).max()
    if peak >= 1.0:
        raise ConfigError(f"the scene reaches {peak:.2f} of full scale: lower level_db")
    for query in spec["queries"]:
        sound = sounds[query["sound"]]
        if not (sound["start"] <= query["at"] < query["until"] <= sound["end"]):
            raise ConfigError(f"query '{query['text']}': its sound isn't there all the time")
    scene = {"title": spec["title"], "sample_rate": SAMPLE_RATE, "seconds": spec["seconds"],
             "head": spec["head"], "sounds": sounds, "queries": spec["queries"]}
    (out / "scene.json").write_text(json.dumps(scene, indent=2, ensure_ascii=False) + "\n")
    (out / "ATTRIBUTION.md").write_text(attribution(credits, head.metadata))
    return scene


def attribution(credits: Sequence[tuple[str, dict[str, str]]], head: dict[str, str]) -> str:
    """Who made what is in the scene, as Markdown."""
    lines = [
        "# The recordings of this scene", "",
        "Each was cut, repeated, set to a level and a direction and compressed by",
        "`python -m training.make_demo_scene`. The tracks keep the licences of their recordings.",
        "", "| track | recording | author | licence |", "|---|---|---|---|"]
    for name, recording in credits:
        source = recording["source"]
        title = recording.get("title", source)
        link = f"[{title}]({source})" if source.startswith("http") else source
        lines.append(f"| {name} | {link} | {recording['author']} | {recording['licence']} |")
    lines += ["", "Recordings named by a place on freesound.org come from the ESC-10 subset of "
              "ESC-50 (K. J. Piczak,", "ESC: Dataset for Environmental Sound Classification, ACM "
              "Multimedia 2015; CC-BY)."]
    lines += ["", "The head is MIT's KEMAR (Bill Gardner and Keith Martin, HRTF Measurements of a "
              "KEMAR", "Dummy-Head Microphone, MIT Media Lab Perceptual Computing Technical Report "
              "280, 1994;", "Copyright 1994 by the MIT Media Laboratory, free with attribution).",
              ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--spec", type=Path, default=SPEC, help="the scene (YAML)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write")
    parser.add_argument("--quality", type=float, default=0.7,
                        help="of the compression, 0 to 1; below 0.6 Vorbis harms interaural phase")
    options = parser.parse_args(arguments)
    try:
        spec = yaml.safe_load(options.spec.read_text())
        scene = make_scene(spec, options.data, options.out, options.quality)
    except (ConfigError, OSError, KeyError) as error:
        parser.exit(1, f"error: {error}\n")
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {scene['seconds']} s, {len(scene['sounds'])} sounds, "
          f"{len(scene['queries'])} queries, {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
