"""AudioSet and AudioCaps in their own layouts, packed as the paper's 2 s around each event.

    python -m training.clues.manifests --segments train=balanced_train_segments.csv \\
        valid=eval_segments.csv --labels class_labels_indices.csv --media CLIPS \\
        --out data/audioset [--captions AUDIOCAPS] [--checkpoint TAGGER]

``CLIPS`` holds the 10 s clips, which everybody has to fetch on their own, named by their YouTube
id, at any depth: sound files, and the videos beside them, if there are any. The paper looks for the
event with a tagger (section 4.1); ``--checkpoint`` is a multi-clue checkpoint whose tagger does the
same, without one the loudest 2 s count. Only clips with one label are taken: the paper's way to
clips of a single source. ``clues.csv`` beside the packed recordings says for each the tag, the
caption, the video and where in it the event lies: training.clues.recorded reads it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from tqdm import tqdm

from luseel_model.errors import ConfigError, LuseelError
from luseel_model.families import family_of
from luseel_model.inference import load_model
from luseel_model.multi_clue import MultiClue
from training import SAMPLE_RATE
from training.corpus.audiocaps import FILES, caption_label
from training.corpus.pack import Item, pack, write_atomically

SOURCE = "audioset"
SOUND = (".wav", ".flac", ".ogg", ".mp3")
VIDEO = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif")
EVENT_SECONDS = 2.0
_STEP = 0.25  # s, between the places where an event is looked for

#: (samples,) at SAMPLE_RATE and a label to the start of the event in samples.
Locate = Callable[[np.ndarray, str], int]


@dataclass(frozen=True)
class Segment:
    """A clip of AudioSet: ``youtube`` id, its ``start`` in s, ``labels`` in words, ``caption`` of
    AudioCaps ('' without one), its ``sound`` and ``video`` files (None where there is none)."""

    youtube: str
    start: float
    labels: tuple[str, ...]
    caption: str
    sound: Path | None
    video: Path | None


def read_labels(path: str | Path) -> dict[str, str]:
    """Words of each label from ``class_labels_indices.csv`` (columns index, mid, display_name)."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if lacking := {"mid", "display_name"} - set(reader.fieldnames or ()):
            raise ConfigError(f"{path} lacks the column(s) {', '.join(sorted(lacking))}")
        return {row["mid"]: row["display_name"] for row in reader}


def read_captions(folder: str | Path) -> dict[str, str]:
    """The first caption of each YouTube id in AudioCaps' CSV files."""
    found: dict[str, str] = {}
    for name in FILES:
        path = Path(folder) / name
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    found.setdefault(row["youtube_id"], caption_label(row["caption"]))
    if not found:
        raise ConfigError(f"no captions in {folder}: {', '.join(FILES)} of "
                          "github.com/cdjkim/audiocaps are looked for")
    return found


def read_segments(segments: str | Path, labels: str | Path, media: str | Path,
                  captions: str | Path | None = None) -> list[Segment]:
    """Clips of an AudioSet list (``# YTID, start_seconds, end_seconds, positive_labels``).

    Raises:
        ConfigError: a file is missing or in another layout.
    """
    for path in (segments, labels):
        if not Path(path).is_file():
            raise ConfigError(f"no list at {path}: it is among AudioSet's files")
    if not Path(media).is_dir():
        raise ConfigError(f"no folder of clips at {media}")
    words = read_labels(labels)
    told = read_captions(captions) if captions else {}
    files: dict[tuple[str, bool], Path] = {}
    for path in sorted(Path(media).rglob("*")):
        suffix = path.suffix.lower()
        if suffix in SOUND + VIDEO:
            files.setdefault((path.stem, suffix in VIDEO), path)
    found = []
    with open(segments, newline="", encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        for row in csv.reader(lines, skipinitialspace=True):
            if len(row) != 4:
                raise ConfigError(f"{segments}: {row!r} is not an id, two times and labels")
            youtube, start = row[0], float(row[1])
            unknown = [mid for mid in row[3].split(",") if mid not in words]
            if unknown:
                raise ConfigError(f"{segments}: {labels} doesn't know {', '.join(unknown)}")
            names = [youtube, f"Y{youtube}", f"{youtube}_{start:g}", f"{youtube}_{start:.3f}"]
            sound, video = (next((files[name, moving] for name in names if (name, moving) in files),
                                 None) for moving in (False, True))
            found.append(Segment(youtube, start, tuple(words[m] for m in row[3].split(",")),
                                 told.get(youtube, ""), sound, video))
    return found


def loudest(samples: np.ndarray, label: str) -> int:
    """Start of the 2 s with the most energy."""
    size = min(len(samples), round(EVENT_SECONDS * SAMPLE_RATE))
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    starts = np.arange(0, len(samples) - size + 1, round(_STEP * SAMPLE_RATE))
    return int(starts[np.argmax(energy[starts + size] - energy[starts])])


def by_tagger(network: MultiClue, tags: Sequence[str]) -> Locate:
    """Start of the 2 s that a network's tagger finds most likely to hold the label; the loudest
    ones for a label that isn't among its ``tags``."""
    place = {tag.lower(): i for i, tag in enumerate(tags)}

    @torch.inference_mode()
    def locate(samples: np.ndarray, label: str) -> int:
        size = network.config.window_samples
        if label.lower() not in place or len(samples) <= size:
            return loudest(samples, label)
        starts = np.arange(0, len(samples) - size + 1, round(_STEP * SAMPLE_RATE))
        windows = torch.from_numpy(np.stack([samples[s: s + size] for s in starts])).float()
        level = windows.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        logits = network.clues.tag_logits(network.clues.sound(windows / level))
        return int(starts[int(logits.softmax(-1)[:, place[label.lower()]].argmax())])
    return locate


def cut_events(segments: Sequence[Segment], out: str | Path, locate: Locate = loudest
               ) -> list[dict[str, str]]:
    """Write the 2 s around the event of each clip with one label and a sound file as FLAC.

    Returns:
        for each the columns of ``clues.csv``: name, file, tag, caption, video, start (s in the
        clip). A clip that can't be read is left out, with a line that says so.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for segment in tqdm(segments, desc="events", unit="clip"):
        if segment.sound is None or len(segment.labels) != 1:
            continue
        try:
            samples, rate = soundfile.read(segment.sound, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            tqdm.write(f"left out: {segment.sound}: {error}")
            continue
        samples = soxr.resample(samples.mean(1), rate, SAMPLE_RATE)
        if not len(samples) or not np.abs(samples).max():
            tqdm.write(f"left out: {segment.sound}: silent")
            continue
        start = locate(samples, segment.labels[0])
        file = out / f"{segment.youtube}_{segment.start:g}.flac"
        soundfile.write(file, samples[start: start + round(EVENT_SECONDS * SAMPLE_RATE)],
                        SAMPLE_RATE)
        rows.append({"name": f"{SOURCE}/{segment.youtube}", "file": str(file),
                     "tag": segment.labels[0], "caption": segment.caption,
                     "video": str(segment.video or ""), "start": f"{start / SAMPLE_RATE:.3f}"})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.clues.manifests",
                                     description="Pack AudioSet for training with clues.")
    parser.add_argument("--segments", required=True, nargs="+", metavar="SPLIT=CSV",
                        help="lists of AudioSet for train, valid and test")
    parser.add_argument("--labels", required=True, help="class_labels_indices.csv")
    parser.add_argument("--media", required=True, help="folder of the clips")
    parser.add_argument("--captions", help="folder of AudioCaps' CSV files")
    parser.add_argument("--checkpoint", help="multi-clue checkpoint that looks for the events")
    parser.add_argument("--out", default="data/audioset", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        locate: Locate = loudest
        if options.checkpoint:
            model = load_model(options.checkpoint, "cpu")
            if family_of(model.config).name != "multi-clue":
                raise ConfigError(f"{options.checkpoint} is of another family than multi-clue")
            locate = by_tagger(model.network, model.info.get("kinds", ()))
        rows, items = [], []
        for choice in options.segments:
            split, separator, path = choice.partition("=")
            if not separator or split not in ("train", "valid", "test"):
                raise ConfigError(f"{choice!r}: expected train=, valid= or test= and a file")
            events = cut_events(read_segments(path, options.labels, options.media,
                                              options.captions),
                                Path(options.out) / "events" / split, locate)
            rows += [{**event, "split": split} for event in events]
            items += [Item(path=Path(event["file"]), name=event["name"], label=event["tag"],
                           category="", group=event["name"], source=SOURCE, licence="unknown",
                           flags="", split=split) for event in events]
        if not items:
            raise ConfigError(f"none of the clips that the lists name is in {options.media}: files "
                              "are looked for by their YouTube id")
        pack(items, Path(options.out), max_per_kind=None, progress=True, exclusions=None)
        columns = ["name", "split", "tag", "caption", "video", "start", "file"]
        lines = [",".join(columns)] + [
            ",".join('"' + row[column].replace('"', '""') + '"' for column in columns)
            for row in rows]
        write_atomically(Path(options.out) / "clues.csv", "\n".join(lines) + "\n")
    except LuseelError as error:
        print(f"manifests: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command starts over", file=sys.stderr)
        return 130
    print(f"{len(items)} events, {sum(bool(row['video']) for row in rows)} with a video")
    return 0


if __name__ == "__main__":
    sys.exit(main())
