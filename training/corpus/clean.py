"""Find wrong labels, unusable recordings and repeats among packed recordings.

    python -m training.corpus.clean --packed data/packed --out report

Four witnesses are heard. *File names*: labels were made of them by rules, and some words have two
meanings (``shotgun_fire``); ``name_rules.csv`` says which. *Repeats*: the waveform of one recording
found again in another, which is a leak where one of them is in the test. *Measurement*: level,
range, clipping, bandwidth. *The network*, with ``--checkpoint``: its tagger hears the recording
alone, from the front, and ranks all kinds. It was trained on these recordings: one that it still
doesn't take for what its label says, nor for anything similar, most likely isn't.

``recordings.csv`` and ``repeats.csv`` in the output folder have the figures, ``candidates.csv`` the
recordings that should go, in the format of ``training/corpus/exclusions.csv``: look at them, then
put them there. Of the test, findings are printed, and nothing is left out. Run the same command
again after an interruption: recordings that were heard aren't heard again.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import scipy.signal
import torch
from tqdm import tqdm

from luseel_model.checkpoint import load_network
from luseel_model.errors import ConfigError, LuseelError
from luseel_model.layers import Tagger
from luseel_model.luseel import LuSeeL
from luseel_model.text import TextEncoder
from training import SAMPLE_RATE
from training.captions import Captions
from training.corpus.exclusions import COLUMNS, Exclusion, clip_of
from training.corpus.repeats import Repeat, find_repeats
from training.heads import Head, load_head
from training.queries import QueryBank

SPLITS = ("train", "valid", "test")
NAME_RULES = Path(__file__).with_name("name_rules.csv")
BLOCK = 320  # samples, 20 ms
#: The network's doubts: so many kinds before the recording's own ...
RANK = 10
#: ... and its log-probability so far below the median of its kind.
MARGIN = 2.0


# -- measurement


@dataclass(frozen=True)
class Measures:
    """What is measured on the samples alone.

    Attributes:
        peak_db, rms_db: dB relative to full scale.
        active: share of 20 ms blocks within 30 dB of the loudest, 0 … 1.
        flat: share of samples in runs of three or more within 0.1% of the recording's peak:
            flat tops of clipping, if there are many.
        crest_db: peak over RMS, dB.
        range_db: 95th over 10th percentile of the block levels, dB; low for steady sounds and for
            noisy recordings.
        offset: mean over RMS, −1 … 1.
        edge_hz: frequency below which the spectrum is within 60 dB of its maximum; about 4000
            for material that was once sampled at 8 kHz.
    """

    peak_db: float
    rms_db: float
    active: float
    flat: float
    crest_db: float
    range_db: float
    offset: float
    edge_hz: float


def _db(power: np.ndarray | float) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 1e-12))


def measure(clip: np.ndarray) -> Measures:
    """Measure one recording: (samples,) int16 at 16 kHz."""
    audio = clip.astype(np.float64) / 32768
    peak, power = np.abs(audio).max(), np.mean(audio ** 2)
    level = _db(np.add.reduceat(audio ** 2, np.arange(0, audio.size, BLOCK))
                / np.diff(np.append(np.arange(0, audio.size, BLOCK), audio.size)))
    top = np.abs(audio) >= 0.999 * peak
    edges = np.flatnonzero(np.diff(np.concatenate([[0], top.astype(np.int8), [0]])))
    runs = edges[1::2] - edges[::2]
    size = min(512, audio.size)
    frequency, spectrum = scipy.signal.welch(audio, SAMPLE_RATE, nperseg=size)
    heard = np.flatnonzero(_db(spectrum) >= _db(spectrum.max()) - 60)
    return Measures(
        peak_db=2 * float(_db(peak)), rms_db=float(_db(power)),
        active=float(np.mean(level >= level.max() - 30)),
        flat=float(runs[runs >= 3].sum() / audio.size),
        crest_db=float(2 * _db(peak) - _db(power)),
        range_db=float(np.percentile(level, 95) - np.percentile(level, 10)),
        offset=float(audio.mean() / max(np.sqrt(power), 1e-9)),
        edge_hz=float(frequency[heard[-1]]))


def unusable(measures: Measures, seconds: float) -> str:
    """Why nobody could use the recording, or an empty string. The limits are far out on purpose."""
    if measures.rms_db < -70:
        return "silent"
    if measures.flat > 0.3:
        return "clipped"
    if abs(measures.offset) > 0.7:
        return "constant offset"
    if measures.active * seconds < 0.03:
        return "a click"
    return ""


# -- what the network hears


def windows_of(clip: np.ndarray, size: int, most: int = 3) -> np.ndarray:
    """The windows with most energy, (1 … most, size) float32; a short recording is repeated."""
    audio = clip.astype(np.float32) / 32768
    if audio.size <= size:
        # as the training simulation fills its window: with half a second in between
        gap = np.zeros(SAMPLE_RATE // 2, np.float32)
        return np.resize(np.concatenate([audio, gap]), size)[None]
    running = np.concatenate([[0], np.cumsum(audio.astype(np.float64) ** 2)])
    starts = np.arange(0, audio.size - size + 1, size // 8)
    energy = running[starts + size] - running[starts]
    found = []
    for start in starts[np.argsort(-energy)]:
        if all(abs(start - other) >= size // 2 for other in found):
            found.append(int(start))
        if len(found) == most:
            break
    return np.stack([audio[start:start + size] for start in found])


class Listener:
    """The tagger of a trained network, asked what kind a single recording is.

    Args:
        network: with a tagger.
        sentences: (W, E) sentence embeddings, several wordings of each kind.
        wording_kind: (W,) the kind of each wording, 0 … K − 1.
        head: the recording is heard through it.
        azimuth: degrees; where the recording is played from.
    """

    def __init__(self, network: LuSeeL, sentences: torch.Tensor, wording_kind: torch.Tensor,
                 head: Head, azimuth: float = 0.0) -> None:
        if not network.config.tagging.width:
            raise ConfigError("this checkpoint has no tagger: name one that was trained with "
                              "tagging.width > 0, such as luseel-small")
        self.network, self.window = network, network.config.window_samples
        self.sentences, self.wording_kind = sentences, wording_kind
        self.kinds = int(wording_kind.max()) + 1
        self.response = head.at(azimuth).double().numpy()  # (2, taps)

    @torch.no_grad()
    def hear(self, clip: np.ndarray) -> np.ndarray:
        """(samples,) int16 → (K,) log-probabilities of the kinds.

        A kind is as likely as the mean of its wordings in the windows where it is likeliest.
        """
        dry = windows_of(clip, self.window)
        ears = scipy.signal.fftconvolve(dry[:, None], self.response[None], axes=-1)
        ears = torch.from_numpy(ears[..., :self.window].astype(np.float32))
        tokens = self.network.encode(ears).tag_tokens
        logits = Tagger.pool(self.network.tagger.similarity(tokens, self.sentences))  # (B, W)
        mean = torch.zeros(len(logits), self.kinds).index_add(1, self.wording_kind, logits)
        mean = mean / torch.bincount(self.wording_kind, minlength=self.kinds)
        return mean.log_softmax(-1).amax(0).numpy()


def make_listener(checkpoint: str | Path, kinds: Sequence[str], head: str = "mit_kemar",
                  wordings: int = 4) -> tuple[Listener, np.ndarray]:
    """A listener for these kinds, and which of them sound alike, (K, K) bool."""
    network, _ = load_network(checkpoint)
    bank = QueryBank(kinds, TextEncoder(network.config.text), Captions.load())
    which = [(int(first) + i, kind) for kind, (first, count) in enumerate(zip(
        bank.first, bank.count)) for i in range(min(int(count), wordings))]
    index, kind = (torch.tensor(column) for column in zip(*which))
    return (Listener(network, bank.sentences[index], kind, load_head(head)),
            bank.confusable.numpy())


# -- the report


def name_rules(path: str | Path = NAME_RULES) -> list[dict[str, str]]:
    """Rows with label, pattern (of the clip, with * and ?), relabel (may be empty) and why."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_split(folder: Path, split: str) -> tuple[list[dict[str, str]], list[np.ndarray]]:
    """Rows and recordings of a packed split; samples stay on disk until they are used."""
    for path in (folder / f"{split}.csv", folder / f"{split}.npy"):
        if not path.is_file():
            raise ConfigError(f"{path} is missing: run `luseel-corpus pack` first (docs/data.md)")
    with open(folder / f"{split}.csv", newline="", encoding="utf-8") as file:
        rows = [{**row, "split": split} for row in csv.DictReader(file)]
    samples = np.load(folder / f"{split}.npy", mmap_mode="r")
    return rows, [samples[int(r["start"]):int(r["start"]) + int(r["length"])] for r in rows]


HEARD = ("split", "name", "label", "seconds", "flags", *Measures.__dataclass_fields__, "unusable",
         "rank", "log_prob", "best", "alike", "heard")


def hear_all(rows: Sequence[dict[str, str]], clips: Sequence[np.ndarray], path: Path,
             listener: Listener | None, kinds: Sequence[str], alike: np.ndarray | None,
             progress: bool = True) -> list[dict[str, str]]:
    """Measure and, with a listener, hear recordings; rows of ``path`` from before are kept.

    Returns:
        the rows of ``path``: :data:`HEARD` as text; the network's are empty for what is none of
        the kinds, or without a listener.
    """
    done: dict[tuple[str, str], dict[str, str]] = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            # the last row may be cut short by an interruption; None fills what it lacks
            done = {(row["split"], row["name"]): row for row in csv.DictReader(file)
                    if None not in row.values() and (row["heard"] or listener is None)}
    place = {kind: i for i, kind in enumerate(kinds)}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEARD)
        writer.writeheader()
        writer.writerows(done.values())
        for row, clip in zip(tqdm(rows, "hearing", disable=not progress), clips):
            if (row["split"], row["name"]) in done:
                continue
            clip = np.asarray(clip)
            measures = measure(clip)
            entry = {key: row[key] for key in ("split", "name", "label", "seconds", "flags")}
            entry |= {key: f"{value:.4g}" for key, value in vars(measures).items()}
            entry |= dict.fromkeys(("rank", "log_prob", "best", "alike", "heard"), "")
            entry["unusable"] = unusable(measures, float(row["seconds"]))
            if listener is not None:
                heard = listener.hear(clip)
                order = np.argsort(-heard)
                entry["best"] = kinds[order[0]]
                entry["heard"] = "; ".join(f"{kinds[k]} {np.exp(heard[k]):.2f}" for k in order[:3])
                own = place.get(row["label"])
                if own is not None:
                    entry["rank"] = str(int(np.flatnonzero(order == own)[0]) + 1)
                    entry["log_prob"] = f"{heard[own]:.3f}"
                    entry["alike"] = "yes" if alike[own, order[0]] else "no"
            writer.writerow(entry)
            file.flush()
            done[row["split"], row["name"]] = entry
    return list(done.values())


def candidates(rows: Sequence[dict[str, str]], heard: Sequence[dict[str, str]],
               repeats: Sequence[Repeat], captions: Captions,
               rules: Sequence[dict[str, str]]) -> list[Exclusion]:
    """Which training and validation recordings should go, or be called otherwise, and why.

    The first reason found counts, in this order: a repeat of a test recording; what the file name
    says; a repeat across train and validation (the training loses it); unusable by measurement;
    one waveform under two labels that don't sound alike (both go); and for training recordings,
    the network's doubts (:data:`RANK`, :data:`MARGIN`).

    Args:
        rows: of all splits, with ``split``; the numbers in ``repeats`` count them.
        heard: from :func:`hear_all`.
    """
    found: dict[int, tuple[str, str, str]] = {}

    def settle(number: int, relabel: str, reason: str, figures: str) -> None:
        if rows[number]["split"] != "test":
            found.setdefault(number, (relabel, reason, figures))

    def across(one: str, other: str, reason: str) -> None:
        for repeat in repeats:
            for a, b in ((repeat.first, repeat.second), (repeat.second, repeat.first)):
                if rows[a]["split"] == one and rows[b]["split"] == other:
                    settle(a, "", reason, f"{rows[b]['name']}, coherence {repeat.coherence:.3f} "
                                          f"over {repeat.seconds:.2f} s")

    across("train", "test", "repeat of a test recording")
    across("valid", "test", "repeat of a test recording")
    for number, row in enumerate(rows):
        for rule in rules:
            if rule["label"] == row["label"] and fnmatch.fnmatchcase(
                    clip_of(row["name"]), rule["pattern"]):
                settle(number, rule["relabel"], "file name", rule["why"])
    across("train", "valid", "repeat of a validation recording")
    place = {(row["split"], row["name"]): number for number, row in enumerate(rows)}
    by_kind = defaultdict(list)
    for entry in heard:
        if entry["unusable"]:
            settle(place[entry["split"], entry["name"]], "", entry["unusable"],
                   f"rms {entry['rms_db']} dB, flat {entry['flat']}, offset {entry['offset']}")
        if entry["log_prob"] and entry["split"] == "train":
            by_kind[entry["label"]].append(float(entry["log_prob"]))
    for repeat in repeats:
        a, b = repeat.first, repeat.second
        labels = [found[n][0] if n in found else rows[n]["label"] for n in (a, b)]
        if "" in labels or labels[0] == labels[1] or labels[1] in captions.confusable(labels[0]):
            continue
        for one, other in ((a, b), (b, a)):
            if one not in found and rows[one]["split"] == rows[other]["split"]:
                settle(one, "", "two labels", f"{rows[other]['name']} ({rows[other]['label']}), "
                                              f"coherence {repeat.coherence:.3f}")
    for entry in heard:
        if entry["split"] == "train" and entry["rank"] and int(entry["rank"]) > RANK:
            median = statistics.median(by_kind[entry["label"]])
            if entry["alike"] == "no" and float(entry["log_prob"]) < median - MARGIN:
                settle(place["train", entry["name"]], "", "the network's doubts",
                       f"rank {entry['rank']}, log-probability {entry['log_prob']}, median of the "
                       f"kind {median:.2f}, heard {entry['heard']}")
    return [Exclusion(rows[n]["split"], clip_of(rows[n]["name"]), rows[n]["label"],
                      float(rows[n]["seconds"]), *found[n]) for n in sorted(found)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see ``python -m training.corpus.clean --help``."""
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus.clean",
        description="Find wrong labels, unusable recordings and repeats among packed recordings.")
    parser.add_argument("--packed", type=Path, default=Path("data/packed"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--checkpoint", help="name or path; without it no network is asked")
    parser.add_argument("--head", default="mit_kemar", help="default: %(default)s")
    parser.add_argument("--kinds", nargs="+", metavar="LABEL",
                        help="measure and hear only recordings with these labels")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        rows, clips = [], []
        for split in SPLITS:
            more = read_split(options.packed, split)
            rows += more[0]
            clips += more[1]
        repeats = find_repeats(clips, progress=True)
        with open(options.out / "repeats.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["split", "name", "label", "other_split", "other_name", "other_label",
                             "coherence", "seconds"])
            writer.writerows([*(rows[n][key] for n in (r.first, r.second)
                                for key in ("split", "name", "label")),
                              f"{r.coherence:.4f}", f"{r.seconds:.3f}"] for r in repeats)
        kinds = (options.packed / "kinds.txt").read_text(encoding="utf-8").splitlines()
        listener, alike = make_listener(options.checkpoint, kinds, options.head) \
            if options.checkpoint else (None, None)
        chosen = [n for n, row in enumerate(rows)
                  if not options.kinds or row["label"] in options.kinds]
        heard = hear_all([rows[n] for n in chosen], [clips[n] for n in chosen],
                         options.out / "recordings.csv", listener, kinds, alike)
        found = candidates(rows, heard, repeats, Captions.load(), name_rules())
        with open(options.out / "candidates.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(vars(row) for row in found)
    except (LuseelError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted; run the same command again to go on\n")
    for (reason, relabelled), count in Counter(
            (row.reason, bool(row.relabel)) for row in found).most_common():
        print(f"{count:5} {reason}{' (relabelled)' if relabelled else ''}")
    for entry in heard:
        if entry["split"] == "test" and entry["unusable"]:
            print(f"test, stays: {entry['name']} ({entry['label']}): {entry['unusable']}")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
