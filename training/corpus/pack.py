"""Pack catalogued recordings into one folder that a training run reads in a second.

    luseel-corpus pack --catalogue data/debian --out data/packed

Per split (train, valid, test) the folder holds ``<split>.npy``, all recordings one after the other
(int16, 16 kHz, mono; memory-mappable), and ``<split>.csv``, one :class:`Recording` a row.
``kinds.txt`` lists the labels of the training split, ``manifest.json`` the checksums, settings and
skipped files, ``LICENCES.md`` what may be done with the recordings. A split is written under a
temporary name and renamed when it is whole; a split that is there already, unchanged, is kept.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.corpus.exclusions import DEFAULT_PATH, Exclusions

SPLITS = ("train", "valid", "test")
FORMAT = 1

#: Folds of ESC-10 and ESC-50: no recording is in two of them. Fold 3 is the test everywhere here.
ESC_FOLDS = {1: "train", 2: "valid", 3: "test", 4: "train", 5: "train"}

#: ESC categories under the labels of the other catalogues; all others keep their own words.
ESC_LABELS = {
    "airplane": "airplane engine", "baby cry": "baby crying", "breathing": "person breathing",
    "car horn": "car horn honking", "cat": "cat meowing", "chirping birds": "birds chirping",
    "church bells": "bell ringing", "clapping": "audience applause",
    "clock alarm": "alarm clock ringing", "clock tick": "clock ticking",
    "coughing": "person coughing", "cow": "cow mooing", "crackling fire": "fire crackling",
    "crickets": "crickets chirping", "crow": "crow cawing", "crying baby": "baby crying",
    "dog": "dog barking", "dog bark": "dog barking", "door wood creaks": "door creaking",
    "door wood knock": "knocking on wood", "drinking sipping": "eating or drinking",
    "engine": "car engine", "fire crackling": "fire crackling", "frog": "frog croaking",
    "glass breaking": "glass breaking or clinking", "helicopter": "helicopter flying",
    "hen": "chicken clucking", "insects": "insect buzzing", "laughing": "person laughing",
    "mouse click": "mouse clicking", "person sneeze": "person sneezing", "pig": "pig grunting",
    "pouring water": "water pouring", "rain": "rain falling", "rooster": "rooster crowing",
    "sea waves": "ocean waves", "sheep": "sheep bleating", "sneezing": "person sneezing",
    "snoring": "person snoring", "thunderstorm": "thunder", "toilet flush": "toilet flushing",
    "train": "train passing", "water drops": "water dripping", "wind": "wind blowing",
}
_ESC_CLIP = re.compile(r"(?P<clip>(?P<fold>[1-5])-(?P<group>\d+)-[A-Z])(-\d+)?\.(wav|ogg|flac)$")


@dataclass
class Recording:
    """One row of ``<split>.csv``.

    Attributes:
        name: source set and clip, unique.
        label: what it is, in words ("dog barking").
        category: coarse family ("animal"), empty where the catalogue has none.
        group: recordings of one series share it; prefixed by the source set.
        source: name of the source set.
        licence: licence as catalogued.
        seconds: duration as packed (after trimming).
        flags: semicolon-separated remarks of the catalogue ("dull", "clipped", ...).
        start, length: place in ``<split>.npy``, in samples.
    """

    name: str
    label: str
    category: str
    group: str
    source: str
    licence: str
    seconds: float
    flags: str
    start: int
    length: int


@dataclass(frozen=True)
class Item:
    """A recording before it is packed: the columns of its catalogue and its file."""

    path: Path
    name: str
    label: str
    category: str
    group: str
    source: str
    licence: str
    flags: str
    split: str


def read_catalogue(folder: str | Path, source: str, clips: str | Path | None = None) -> list[Item]:
    """Read ``catalogue.csv``: columns clip, label, split, any of category, group, licence, flags.

    Args:
        folder: holds ``catalogue.csv``.
        source: name of the source set.
        clips: folder of the clips; default: ``folder/clips16k`` if there is one, else ``folder``.

    Raises:
        ConfigError: no catalogue there, a column is missing, or a split is unknown.
    """
    folder = Path(folder)
    catalogue = folder / "catalogue.csv"
    if not catalogue.is_file():
        raise ConfigError(f"no catalogue.csv in {folder}")
    if clips is None:
        clips = folder / "clips16k" if (folder / "clips16k").is_dir() else folder
    items = []
    with open(catalogue, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"clip", "label", "split"} - set(reader.fieldnames or ())
        if missing:
            raise ConfigError(f"{catalogue} lacks the column(s) {', '.join(sorted(missing))}")
        for row in reader:
            if not row["clip"]:
                continue  # catalogued, but not among the built clips
            if row["split"] not in SPLITS:
                raise ConfigError(f"{catalogue}: unknown split {row['split']!r} of {row['clip']}")
            esc = _ESC_CLIP.search(row["clip"])
            group = row.get("group") or (esc["group"] if esc else Path(row["clip"]).stem)
            items.append(Item(
                path=Path(clips) / row["clip"], name=f"{source}/{row['clip']}",
                label=row["label"], category=row.get("category") or "", group=f"{source}/{group}",
                source=source, licence=row.get("licence") or "unknown",
                flags=row.get("flags") or "", split=row["split"]))
    return items


def read_catalogues(folders: Iterable[str | Path]) -> list[Item]:
    """:func:`read_catalogue` of several folders; a folder's name is that of its source set.

    Raises:
        ConfigError: two folders have the same name, or one can't be read.
    """
    sets: dict[str, Path] = {}
    items = []
    for folder in (Path(folder).resolve() for folder in folders):
        known = sets.setdefault(folder.name, folder)
        if known != folder:
            raise ConfigError(f"{known} and {folder} have the same name, by which their recordings "
                              "are told apart: rename one")
    for name, folder in sets.items():
        items += read_catalogue(folder, name)
    return items


def find_catalogues(folder: str | Path) -> list[Path]:
    """All folders with a ``catalogue.csv`` in or below ``folder``.

    Raises:
        ConfigError: there are none.
    """
    found = sorted(path.parent for path in Path(folder).rglob("catalogue.csv"))
    if not found:
        raise ConfigError(f"no catalogue.csv in or below {folder}")
    return found


def read_esc(folder: str | Path, folds: dict[int, str] | None = None) -> list[Item]:
    """Read a plain ESC folder: ESC-50's ``meta/*.csv`` with ``audio/``, or ESC-10's class folders.

    Fold 3 is for testing and fold 2 for validation (:data:`ESC_FOLDS`), as in the catalogues.

    Raises:
        ConfigError: the folder is neither.
    """
    folder = Path(folder)
    folds = ESC_FOLDS if folds is None else folds
    found: list[tuple[Path, str, int, str]] = []
    for table in sorted(folder.glob("meta/*.csv")):
        with open(table, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"filename", "fold", "category"} <= set(reader.fieldnames or ()):
                continue
            for row in reader:
                licence = "CC-BY" if row.get("esc10") == "True" else "CC-BY-NC-3.0"
                found.append((folder / "audio" / row["filename"], row["category"],
                              int(row["fold"]), licence))
    if not found:
        for audio in sorted(p for p in folder.glob("*/*") if _ESC_CLIP.search(p.name)):
            category = re.sub(r"^\d+\s*-\s*", "", audio.parent.name)
            found.append((audio, category, int(_ESC_CLIP.search(audio.name)["fold"]), "CC-BY"))
    if not found:
        raise ConfigError(f"{folder} is neither ESC-50 (meta/*.csv, audio/) nor ESC-10 "
                          "(one folder a class)")
    items = []
    for audio, category, fold, licence in found:
        words = category.replace("_", " ").lower()
        match = _ESC_CLIP.search(audio.name)
        items.append(Item(
            path=audio, name=f"esc/{audio.name}", label=ESC_LABELS.get(words, words), category="",
            group=f"esc/{match['group'] if match else audio.stem}", source="esc", licence=licence,
            flags="", split=folds.get(fold, "train")))
    return items


def load_clip(path: str | Path, trim_db: float = -50.0,
              shortest: float = 0.05) -> np.ndarray | None:
    """Read a recording as int16 mono at 16 kHz, trimmed, its peak kept.

    Leading and trailing samples below ``trim_db`` of the peak go (5 ms stay, faded, so that a loop
    does not click). Returns None for what is silent or shorter than ``shortest`` seconds.
    """
    audio, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    audio = audio.mean(axis=1)
    if rate != SAMPLE_RATE and audio.size:
        audio = soxr.resample(audio, rate, SAMPLE_RATE)
    peak = float(np.abs(audio).max(initial=0.0))
    if not np.isfinite(peak) or peak < 1.0 / 32768:
        return None
    loud = np.flatnonzero(np.abs(audio) >= peak * 10 ** (trim_db / 20))
    if loud[-1] + 1 - loud[0] < shortest * SAMPLE_RATE:
        return None
    margin = SAMPLE_RATE // 200
    begin, end = max(int(loud[0]) - margin, 0), min(int(loud[-1]) + 1 + margin, audio.size)
    audio = audio[begin:end].copy()
    fade = np.sin(np.linspace(0, np.pi / 2, SAMPLE_RATE // 500, dtype=np.float32)) ** 2
    audio[:fade.size] *= fade
    audio[-fade.size:] *= fade[::-1]
    return np.clip(np.rint(audio * 32767), -32768, 32767).astype(np.int16)


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def cap_kinds(items: Sequence[Item], max_per_kind: int | None) -> list[Item]:
    """Keep at most ``max_per_kind`` recordings of a kind in a split, spread over its groups.

    Groups take turns, in an order that depends on names alone: the same choice everywhere.
    """
    if not max_per_kind:
        return list(items)
    kinds: dict[tuple[str, str], dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        kinds[item.split, item.label][item.group].append(item)
    kept: set[str] = set()
    for groups in kinds.values():
        turns = []
        for group, members in groups.items():
            members.sort(key=lambda item: _order(item.name))
            turns += [(turn, _order(group), item.name) for turn, item in enumerate(members)]
        kept.update(name for _, _, name in sorted(turns)[:max_per_kind])
    return [item for item in items if item.name in kept]


def drop_repeated(items: Iterable[Item]) -> list[Item]:
    """Drop ESC clips given twice (a catalogue of ESC-10 and an ESC-50 folder); the first stays."""
    seen: set[str] = set()
    kept = []
    for item in items:
        match = _ESC_CLIP.search(item.name) if item.source.startswith("esc") else None
        key = match["clip"] if match else item.name
        if key not in seen:
            seen.add(key)
            kept.append(item)
    return kept


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read piece by piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _fingerprint(items: Sequence[Item], settings: dict) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for item in items:
        size = item.path.stat().st_size if item.path.is_file() else -1
        digest.update("\t".join([
            item.name, item.label, item.category, item.group, item.licence, item.flags, str(size),
        ]).encode())
    return digest.hexdigest()


def _is_whole(out: Path, split: str, entry: dict | None, fingerprint: str) -> bool:
    if not entry or entry.get("fingerprint") != fingerprint:
        return False
    return all((out / name).is_file() and file_sha256(out / name) == entry["sha256"][name]
               for name in (f"{split}.npy", f"{split}.csv"))


def _pack_split(items: Sequence[Item], split: str, out: Path, settings: dict,
                progress: bool, exclusions: Exclusions) -> dict:
    pieces: list[np.ndarray] = []
    rows: list[Recording] = []
    skipped: list[dict[str, str]] = []
    start = 0
    for item in tqdm(items, desc=f"packing {split}", unit="clip", disable=not progress):
        try:
            clip = load_clip(item.path, settings["trim_db"], settings["shortest"])
        except (soundfile.SoundFileError, OSError) as error:
            skipped.append({"name": item.name, "reason": f"unreadable: {error}"})
            continue
        if clip is None:
            skipped.append({"name": item.name, "reason": "silent or too short"})
            continue
        found = exclusions.find(split, item.name, item.label, clip.size / SAMPLE_RATE)
        if found and not found.relabel:
            skipped.append({"name": item.name, "reason": f"left out: {found.reason}"})
            continue
        rows.append(Recording(
            item.name, found.relabel if found else item.label, item.category, item.group,
            item.source, item.licence, round(clip.size / SAMPLE_RATE, 3), item.flags, start,
            clip.size))
        pieces.append(clip)
        start += clip.size
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
    with open(out / f"{split}.npy.part", "wb") as file:
        np.save(file, samples)
    with open(out / f"{split}.csv.part", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Recording)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    sums = {}
    for name in (f"{split}.npy", f"{split}.csv"):
        os.replace(out / f"{name}.part", out / name)
        sums[name] = file_sha256(out / name)
    return {"recordings": len(rows), "kinds": len({row.label for row in rows}),
            "hours": round(start / SAMPLE_RATE / 3600, 3), "sha256": sums, "skipped": skipped,
            "licences": dict(Counter(f"{row.source}\t{row.licence}" for row in rows))}


def _licence_report(splits: dict[str, dict]) -> str:
    total: Counter[str] = Counter()
    for entry in splits.values():
        total.update(entry["licences"])
    lines = ["# Licences of the packed recordings", "",
             "Author and origin of each recording: the catalogue of its source set.", "",
             "| source set | licence | recordings |", "|---|---|---|"]
    for key, count in sorted(total.items()):
        source, licence = key.split("\t")
        lines.append(f"| {source} | {licence} | {count} |")
    return "\n".join(lines) + "\n"


def pack(items: Sequence[Item], out: str | Path, max_per_kind: int | None = 400,
         trim_db: float = -50.0, shortest: float = 0.05, progress: bool = True,
         min_per_kind: int = 1, exclusions: str | Path | None = DEFAULT_PATH) -> dict:
    """Pack recordings into the folder ``out``.

    Args:
        items: from :func:`read_catalogue` and :func:`read_esc`.
        out: folder, made where it is missing.
        max_per_kind: recordings of a kind that a split keeps; None or 0: all.
        trim_db: what counts as silence at both ends, dB below the peak of the recording.
        shortest: seconds below which a recording is skipped.
        min_per_kind: training recordings that a label needs to become a kind; recordings of rarer
            ones are packed, but neither trained on nor tested with.
        exclusions: file of training and validation recordings to leave out or relabel
            (:mod:`training.corpus.exclusions`); None packs all.

    Returns:
        the manifest as written to ``manifest.json``.

    Raises:
        ConfigError: there is nothing to pack or, with ``min_per_kind``, to train on.
    """
    if not items:
        raise ConfigError("no recordings to pack: name at least one source folder")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"format": FORMAT, "sample_rate": SAMPLE_RATE, "max_per_kind": max_per_kind,
                "trim_db": trim_db, "shortest": shortest}
    items = cap_kinds(drop_repeated(items), max_per_kind)
    known = Exclusions() if exclusions is None else Exclusions.load(exclusions)
    manifest_path = out / "manifest.json"
    try:
        previous = json.loads(manifest_path.read_text(encoding="utf-8")).get("splits", {})
    except (OSError, ValueError):
        previous = {}
    splits: dict[str, dict] = {}
    manifest = {"settings": settings, "splits": splits}
    for split in SPLITS:
        chosen = sorted((item for item in items if item.split == split), key=lambda i: i.name)
        # the test doesn't depend on the exclusions, nor does what was packed without any
        wanted = known if any(key[0] == split for key in known.rows) else Exclusions()
        fingerprint = _fingerprint(
            chosen, {**settings, "exclusions": wanted.digest} if wanted.rows else settings)
        if _is_whole(out, split, previous.get(split), fingerprint):
            splits[split] = previous[split]
        else:
            splits[split] = _pack_split(chosen, split, out, settings, progress, wanted)
            splits[split]["fingerprint"] = fingerprint
        # Written after each split: an interrupted run goes on with the next one.
        write_atomically(manifest_path, json.dumps({**manifest, "splits": {**previous, **splits}},
                                                    indent=1))
    with open(out / "train.csv", newline="", encoding="utf-8") as file:
        count = Counter(row["label"] for row in csv.DictReader(file))
    kinds = sorted(label for label, number in count.items() if number >= min_per_kind)
    if not kinds:
        raise ConfigError(f"no label has {min_per_kind} training recordings")
    write_atomically(out / "kinds.txt", "".join(f"{kind}\n" for kind in kinds))
    write_atomically(out / "LICENCES.md", _licence_report(splits))
    manifest["kinds"], manifest["min_per_kind"] = len(kinds), min_per_kind
    manifest["sha256"] = {name: file_sha256(out / name) for name in ("kinds.txt", "LICENCES.md")}
    write_atomically(manifest_path, json.dumps(manifest, indent=1))
    return manifest


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see ``python -m training.corpus.pack --help``."""
    parser = argparse.ArgumentParser(
        prog="luseel-corpus pack", description="Pack recordings for training.")
    parser.add_argument("--catalogue", type=Path, action="append", default=[], metavar="FOLDER",
                        help="folder with a catalogue.csv (may be given again)")
    parser.add_argument("--folder", type=Path, action="append", default=[], metavar="DIR",
                        help="take every catalogue.csv in or below this folder (may be given again)"
                        )
    parser.add_argument("--esc", type=Path, action="append", default=[], metavar="FOLDER",
                        help="a plain ESC-10 or ESC-50 folder (may be given again)")
    parser.add_argument("--out", type=Path, default=Path("data/packed"))
    parser.add_argument("--max-per-kind", type=int, default=400, help="0: no limit")
    parser.add_argument("--min-per-kind", type=int, default=1,
                        help="training recordings that a label needs to become a kind")
    parser.add_argument("--trim-db", type=float, default=-50.0)
    parser.add_argument("--keep-all", action="store_true", help="also what is known to be wrongly "
                        "labelled or repeated (docs/data.md, \"Recordings left out\")")
    options = parser.parse_args(arguments)
    if not (options.catalogue or options.folder or options.esc):
        parser.error("name a source: --catalogue, --folder or --esc")
    try:
        items = read_catalogues([*options.catalogue, *(
            found for folder in options.folder for found in find_catalogues(folder))])
        for folder in options.esc:
            items += read_esc(folder)
        manifest = pack(items, options.out, options.max_per_kind, options.trim_db,
                        min_per_kind=options.min_per_kind,
                        exclusions=None if options.keep_all else DEFAULT_PATH)
    except ConfigError as error:
        parser.error(str(error))
    for split, entry in manifest["splits"].items():
        print(f"{split}: {entry['recordings']} recordings, {entry['kinds']} kinds, "
              f"{entry['hours']:.2f} h, {len(entry['skipped'])} skipped")
        for skipped in entry["skipped"]:
            print(f"  skipped {skipped['name']}: {skipped['reason']}")


if __name__ == "__main__":
    main()
