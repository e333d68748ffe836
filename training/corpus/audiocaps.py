"""AudioCaps in its own layout, packed for training on the captions.

    python -m training.corpus.audiocaps --captions AUDIOCAPS --audio WAVES --out data/audiocaps

``AUDIOCAPS`` holds ``train.csv``, ``val.csv`` and ``test.csv`` (columns audiocap_id, youtube_id,
start_time, caption) of github.com/cdjkim/audiocaps. ``WAVES`` holds the clips, which everybody has
to fetch on their own, named by their YouTube id, at any depth.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from luseel_model.errors import ConfigError, LuseelError
from luseel_model.query import MAX_QUERY_CHARACTERS
from training.corpus.pack import Item, file_sha256, pack, write_atomically

SOURCE = "audiocaps"
#: Files of the splits, and what the splits are called here.
FILES = {"train.csv": "train", "val.csv": "valid", "test.csv": "test"}
AUDIO = (".wav", ".flac", ".ogg", ".mp3")


def caption_label(caption: str) -> str:
    """A caption as a label: one line, without a full stop, cut between words where it is longer
    than a query may be."""
    words = " ".join(caption.split()).rstrip(". ")
    if len(words) > MAX_QUERY_CHARACTERS:
        words = words[:MAX_QUERY_CHARACTERS + 1].rsplit(" ", 1)[0]
    return words


def _clips(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in AUDIO}


def _find(clips: dict[str, Path], row: dict[str, str]) -> Path | None:
    """The clip of a row, by the names that the usual ways of fetching give."""
    youtube, start = row["youtube_id"], row["start_time"]
    for stem in (youtube, f"Y{youtube}", f"{youtube}_{start}", f"{youtube}_{start}000",
                 f"Y{youtube}_{start}", row.get("audiocap_id") or ""):
        if stem in clips:
            return clips[stem]
    return None


def read_audiocaps(captions: str | Path, audio: str | Path) -> tuple[list[Item], list[str]]:
    """Clips with their captions as labels.

    Validation and test clips have five captions each: the first one counts. A clip that lies in two
    splits stays in the later one of train, valid, test.

    Args:
        captions: folder of the CSV files; those that are missing are left out, train and val are
            needed.
        audio: folder of the clips.
    Returns:
        the items, and the YouTube ids that have no clip.
    Raises:
        ConfigError: a file or column is missing, or no clip is there at all.
    """
    captions, audio = Path(captions), Path(audio)
    if not audio.is_dir():
        raise ConfigError(f"no folder of clips at {audio}")
    clips = _clips(audio)
    found: dict[str, Item] = {}
    missing: set[str] = set()
    for name, split in FILES.items():
        path = captions / name
        if not path.is_file():
            if split == "test":
                continue
            raise ConfigError(f"no {name} in {captions}: it is among the dataset's files at "
                              "github.com/cdjkim/audiocaps")
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lacking = {"youtube_id", "start_time", "caption"} - set(reader.fieldnames or ())
            if lacking:
                raise ConfigError(f"{path} lacks the column(s) {', '.join(sorted(lacking))}")
            for row in reader:
                youtube, label = row["youtube_id"], caption_label(row["caption"])
                clip = _find(clips, row)
                if clip is None:
                    missing.add(youtube)
                elif label and (youtube not in found or found[youtube].split != split):
                    found[youtube] = Item(
                        path=clip, name=f"{SOURCE}/{youtube}", label=label, category="",
                        group=f"{SOURCE}/{youtube}", source=SOURCE, licence="unknown", flags="",
                        split=split)
    if not found:
        raise ConfigError(f"none of the clips that {captions} names is in {audio}: files are "
                          "looked for by their YouTube id, such as Y4KObP7cREWw.wav")
    return list(found.values()), sorted(missing)


def pack_audiocaps(items: Sequence[Item], out: str | Path, progress: bool = True) -> dict:
    """Pack the clips; the captions of all splits are kinds, since validation and test are asked for
    in words that training has not heard. Returns the manifest."""
    out = Path(out)
    manifest = pack(items, out, max_per_kind=None, progress=progress, exclusions=None)
    kinds = sorted({item.label for item in items})
    write_atomically(out / "kinds.txt", "".join(f"{kind}\n" for kind in kinds))
    manifest["kinds"] = len(kinds)
    manifest["sha256"]["kinds.txt"] = file_sha256(out / "kinds.txt")
    write_atomically(out / "manifest.json", json.dumps(manifest, indent=1))
    return manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.corpus.audiocaps",
                                     description="Pack AudioCaps for training.")
    parser.add_argument("--captions", required=True, help="folder of train.csv, val.csv, test.csv")
    parser.add_argument("--audio", required=True, help="folder of the clips")
    parser.add_argument("--out", default="data/audiocaps", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        items, missing = read_audiocaps(options.captions, options.audio)
        print(f"{len(items)} clips, {len(missing)} of the list aren't there")
        manifest = pack_audiocaps(items, options.out)
    except LuseelError as error:
        print(f"audiocaps: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    for split, entry in manifest["splits"].items():
        print(f"{split}: {entry['recordings']} clips, {entry['hours']:.2f} h, "
              f"{len(entry['skipped'])} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
