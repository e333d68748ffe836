"""The paper's own data, ID-USS, from COCO, FSD50K and AudioSet's ontology (paper 002, section 3).

For those who have the three: pictures are crops of one thing above 10,000 pixels, recordings those
with a single label once the ontology's parents of each label are left out; 20 things have both, all
other recordings disturb. The paper names the 20 (table 1), but not which of COCO's categories and
of the ontology's classes make up each: :data:`THINGS` is our reading. Written are manifests, not
copies:

- ``pictures/pictures.csv``: file, crop, concept, split; ``pictures/concepts.csv``. What
  ``python -m training.pictures embed --pictures …`` and the training read.
- ``recordings/catalogue.csv``: for ``luseel-corpus pack``.
- ``counts.csv``: pictures and seconds of each thing, beside the paper's table 1.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from training.corpus.debian import CorpusError

#: Thing → (COCO's categories, names of ontology classes with all below them).
THINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "person": (("person",), ("Human voice",)),
    "bottle": (("bottle",), ("Glass",)),
    "dishes": (("bowl", "cup"), ("Dishes, pots, and pans",)),
    "car": (("car",), ("Car",)),
    "cat": (("cat",), ("Cat",)),
    "train": (("train",), ("Rail transport",)),
    "bus": (("bus",), ("Bus",)),
    "motorcycle": (("motorcycle",), ("Motorcycle",)),
    "dog": (("dog",), ("Dog",)),
    "toilet": (("toilet",), ("Toilet flush",)),
    "microwave": (("microwave",), ("Microwave oven",)),
    "airplane": (("airplane",), ("Fixed-wing aircraft, airplane",)),
    "sink": (("sink",), ("Sink (filling or washing)", "Water tap, faucet")),
    "bird": (("bird",), ("Bird",)),
    "keyboard": (("keyboard",), ("Computer keyboard",)),
    "clock": (("clock",), ("Clock",)),
    "cutlery": (("fork", "knife", "spoon"), ("Cutlery, silverware",)),
    "cellphone": (("cell phone",), ("Telephone",)),
    "skateboard": (("skateboard",), ("Skateboard",)),
    "scissors": (("scissors",), ("Scissors",)),
}
#: Table 1: pictures, seconds.
TABLE_1 = {
    "person": (68036, 5187), "bottle": (4970, 1617), "dishes": (3928, 704), "car": (3834, 1430),
    "cat": (3813, 2566), "train": (3704, 3423), "bus": (3622, 2134), "motorcycle": (3169, 1505),
    "dog": (3133, 2405), "toilet": (2672, 2654), "microwave": (2653, 1519),
    "airplane": (2403, 1341), "sink": (1535, 2267), "bird": (1392, 820), "keyboard": (1046, 2507),
    "clock": (980, 2329), "cutlery": (811, 847), "cellphone": (718, 768),
    "skateboard": (438, 900), "scissors": (335, 1161),
}
#: Pixels that a crop must have more than.
LEAST_AREA = 10_000
#: Share of COCO's training pictures for validation (the paper: 4,000 of 113,192); its own
#: validation pictures are the test split.
VALID_SHARE = 0.037


class Ontology:
    """AudioSet's classes: a graph, as a class may have several parents.

    Args:
        classes: the content of ``ontology.json``.
    """

    def __init__(self, classes: Iterable[dict[str, Any]]):
        classes = list(classes)
        self.name = {row["id"]: row["name"] for row in classes}
        self.number = {name: number for number, name in self.name.items()}
        self.children = {row["id"]: tuple(row.get("child_ids", ())) for row in classes}

    def below(self, number: str) -> set[str]:
        """All classes below a class, without itself."""
        found: set[str] = set()
        waiting = list(self.children.get(number, ()))
        while waiting:
            child = waiting.pop()
            if child not in found:
                found.add(child)
                waiting += self.children.get(child, ())
        return found

    def single_label(self, numbers: Iterable[str]) -> str | None:
        """The one label of a recording that carries these, its parents left out; None where two
        or more are left: then it is not known what a picture would have to show."""
        numbers = set(numbers)
        specific = [n for n in numbers if not (self.below(n) & numbers)]
        return specific[0] if len(specific) == 1 else None

    def thing(self, number: str) -> str | None:
        """Which of the 20 things makes this sound, or None: a sound that only disturbs."""
        for thing, (_, names) in THINGS.items():
            for name in names:
                top = self.number.get(name)
                if top is not None and (number == top or number in self.below(top)):
                    return thing
        return None


def coco_pictures(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of crops of COCO 2017: file, left, top, right, bottom, concept, split.

    Raises:
        CorpusError: the folder isn't COCO's.
    """
    owner = {category: thing for thing, (categories, _) in THINGS.items()
             for category in categories}
    for part in ("train2017", "val2017"):
        content = _json(folder / "annotations" / f"instances_{part}.json")
        thing = {row["id"]: owner.get(row["name"]) for row in content["categories"]}
        images = {row["id"]: row for row in content["images"]}
        for row in content["annotations"]:
            concept = thing.get(row["category_id"])
            x, y, width, height = row["bbox"]
            if concept is None or row.get("iscrowd") or width * height <= LEAST_AREA:
                continue
            image = images[row["image_id"]]
            # the box in whole pixels of the picture
            left, top = max(0, round(x)), max(0, round(y))
            right = min(image["width"], round(x + width))
            bottom = min(image["height"], round(y + height))
            file = f"{part}/{image['file_name']}"
            split = "test" if part == "val2017" else \
                "valid" if _share(image["file_name"]) < VALID_SHARE else "train"
            yield {"package": "coco", "path": f"{file}#{row['id']}", "concept": concept,
                   "split": split, "licence": str(image.get("license", "")),
                   "file": str((folder / file).resolve()), "left": left, "top": top,
                   "right": right, "bottom": bottom}


def fsd50k_recordings(folder: Path, ontology: Ontology) -> Iterator[dict[str, Any]]:
    """Rows of FSD50K's recordings with a single label; ``label`` is the thing, or for a sound that
    only disturbs, the ontology's name. The split is FSD50K's own.

    Raises:
        CorpusError: the folder isn't FSD50K's.
    """
    for part, place in (("dev", "FSD50K.dev_audio"), ("eval", "FSD50K.eval_audio")):
        path = folder / "FSD50K.ground_truth" / f"{part}.csv"
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:
            raise CorpusError(f"cannot read {path}: {error}; give the folder that FSD50K was "
                              "unpacked to") from None
        for row in rows:
            number = ontology.single_label(row["mids"].split(","))
            if number is None:
                continue
            thing = ontology.thing(number)
            split = "test" if part == "eval" else {"val": "valid"}.get(row["split"], row["split"])
            yield {"clip": f"{place}/{row['fname']}.wav", "thing": thing or "",
                   "label": thing or ontology.name.get(number, number).lower(), "category": "",
                   "group": row["fname"], "licence": "FSD50K: dev/eval_clips_info", "flags": "",
                   "split": split}


def write_manifests(coco: Path, fsd50k: Path, ontology: Path, out: Path) -> list[str]:
    """Write all manifests below ``out``.

    Returns:
        lines that say how many pictures and recordings there are, beside the paper's.
    """
    tree = Ontology(_json(ontology))
    pictures = list(coco_pictures(coco))
    recordings = list(fsd50k_recordings(fsd50k, tree))
    seconds: Counter[str] = Counter()
    for row in tqdm(recordings, desc="lengths", unit="recording"):
        path = fsd50k / row["clip"]
        if path.is_file():
            info = soundfile.info(path)
            seconds[row["thing"]] += info.frames / info.samplerate
    shown = Counter(row["concept"] for row in pictures)
    things = [thing for thing in THINGS if shown[thing]]
    _write(out / "pictures" / "pictures.csv", pictures,
           ("file", "package", "path", "concept", "split", "licence", "left", "top", "right",
            "bottom"))
    _write(out / "pictures" / "concepts.csv",
           [{"concept": thing, "kinds": thing} for thing in things], ("concept", "kinds"))
    _write(out / "recordings" / "catalogue.csv",
           [{**row, "clip": str((fsd50k / row["clip"]).resolve())} for row in recordings],
           ("clip", "label", "category", "group", "licence", "flags", "split"))
    counts = [{"thing": thing, "pictures": shown[thing], "paper_pictures": TABLE_1[thing][0],
               "seconds": round(seconds[thing]), "paper_seconds": TABLE_1[thing][1]}
              for thing in THINGS]
    _write(out / "counts.csv", counts, tuple(counts[0]))
    disturbing = len({row["label"] for row in recordings if not row["thing"]})
    return [f"{len(pictures)} pictures of {len(things)} things (paper: 113192 of 20)",
            f"{len(recordings)} recordings with one label (paper: 26525), {disturbing} labels that "
            "only disturb (paper: 82)"]


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone: all crops of a picture share a split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2 ** 32


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from None


def _write(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
