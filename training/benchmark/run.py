"""Asks a model for every sound of the benchmark and keeps one row per query.

Rows are written as they come, one line of JSON a mixture, so that an interrupted run loses nothing
and the same command goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from luseel_model.angles import angular_error
from luseel_model.calibration import Calibration, measure_head
from luseel_model.errors import ConfigError
from luseel_model.recording import WindowJoiner, cut_windows, hop_samples, window_starts
from training import SAMPLE_RATE
from training.benchmark.catalogue import (VERSIONS, Catalogue, Cell, load_catalogue,
                                          shared_mixtures)
from training.benchmark.render import BenchmarkMixture, Renderer, hash_of
from training.claps import AROUND, heard_claps
from training.evaluation import gcc_direction
from training.heads import Head, interaural_delay
from training.metrics import (
    batch_metrics,
    interaural_errors,
    level_below_mixture,
    oracle_mask,
    si_snr_per_ear_mean,
)

#: How a model can be told of a cell's head.
GIVEN_HEADS = ("measured", "claps")
#: A sound counts as active in a window where its energy is at least this share of its mean.
ACTIVE = 0.01


@dataclass
class Heard:
    """What a model made of a mixture of N samples, W windows of n samples, Q queries.

    Attributes:
        audio: (Q, 2, N) float32, joined by cross-fading from windows as long as asked for.
        azimuth, confidence: (Q,) of the whole, as luseel_model.Extraction has them.
        starts: first sample of each window.
        window_audio: (W, Q, 2, n).
        window_azimuth, window_confidence: (W, Q).
    """

    audio: Tensor
    azimuth: np.ndarray
    confidence: np.ndarray
    starts: list[int]
    window_audio: Tensor
    window_azimuth: np.ndarray
    window_confidence: np.ndarray


def tell_head(model, head: Head, how: bool | str) -> Head:
    """Tell a model the responses of the head it will hear with, and return what it was told.

    Args:
        how: 'measured' or True: all as they were measured. 'claps': what `luseel calibrate --head`
            finds of them from claps in a mild room. The head's ears are put right already, so of what
            the claps say of them only the size of the head is used.
    """
    if how == "claps":
        audio, sounds, found = heard_claps(head, AROUND)
        size = Calibration(head_delay_us=found.calibration.head_delay_us)
        head = measure_head([(audio, SAMPLE_RATE, sounds)], replace(found, calibration=size),
                            head.name)
    model.set_head(head)
    return head


def inputs_of(renderer: Renderer, told: Head | None = None) -> dict[str, str]:
    """What a cell is heard with: hashes of the responses of its head and rooms, and of what the
    model was told of the head, where that is something else."""
    inputs = renderer.inputs()
    if told is not None and told is not renderer.head:
        inputs["told"] = hash_of(told.hrir)
    return inputs


def listen(model, audio: np.ndarray, queries: Sequence[str], hop: float | None = None,
           batch: int = 2, window: float | None = None) -> Heard:
    """Ask a model for Q sounds in a mixture of any length.

    It gives what `Extractor.extract` gives, and the windows besides.

    Args:
        model: a luseel_model Extractor, or anything with its `heard_at_once` and `infer_windows`.
        audio: (2, N) float32 at the model's rate.
        hop: seconds between two windows; None: half a window.
        batch: windows at once; few fit a CPU's cache and so are faster there.
        window: seconds from which a sound is extracted at once; None: what suits the model.
    """
    samples, size = audio.shape[-1], model.window_samples

    def hear(size: int, starts: list[int], batch: int):
        joiner, outputs = WindowJoiner(len(queries), samples, size, SAMPLE_RATE), []
        for windows in cut_windows(audio, starts, size, batch):
            outputs += model.infer_windows(torch.from_numpy(windows), list(queries))
        for start, output in zip(starts, outputs):
            joiner.add(start, output)
        return joiner.finish(), outputs

    starts = window_starts(samples, size, hop_samples(hop, size, SAMPLE_RATE))
    joined, outputs = hear(size, starts, batch)
    longer = model.heard_at_once(samples, window)
    if longer > size:
        joined.audio = joined.audible[:, None, None] * hear(
            longer, window_starts(samples, longer), max(1, batch * size // longer))[0].audio
    if joined.audio is None:
        raise ConfigError(f"the model {model.name} extracts nothing: the benchmark asks for sounds")
    azimuth = np.stack([output.azimuth for output in outputs])
    direction = joined.azimuth
    if np.isnan(azimuth).all():  # a model without localization
        direction = np.full(len(queries), np.nan)
    return Heard(torch.from_numpy(joined.audio), direction, joined.confidence, starts,
                 torch.stack([torch.as_tensor(np.asarray(o.audio)) for o in outputs]), azimuth,
                 np.stack([o.confidence for o in outputs]))


# -- rows ------------------------------------------------------------------------------------------


def _live(heard: Heard, which: Sequence[int], mixture: BenchmarkMixture,
          sources: Tensor, audio: Tensor) -> list[dict[str, float]]:
    """What a robot would see hop by hop: means over the windows where the sound is active.

    Args:
        which: the query that asks for each source.
    """
    size = heard.window_audio.shape[-1]
    pieces = torch.stack([sources[..., s:s + size] for s in heard.starts])        # W S 2 n
    around = torch.stack([audio[..., s:s + size] for s in heard.starts])          # W 2 n
    estimate = heard.window_audio[:, list(which), :, :pieces.shape[-1]].to(pieces)
    energy = pieces.square().mean((-1, -2))
    active = (energy >= ACTIVE * energy.mean(0)) & (pieces.square().sum(-1) > 0).all(-1)
    before = si_snr_per_ear_mean(around[:, None].expand_as(pieces), pieces)
    gain = (si_snr_per_ear_mean(estimate, pieces) - before).cpu().numpy()
    error = angular_error(heard.window_azimuth[:, list(which)], mixture.azimuth[None])
    active = active.cpu().numpy()
    rows = []
    for i in range(len(which)):
        chosen = active[:, i]
        off = error[chosen, i]
        rows.append({
            "live_windows": int(chosen.sum()),
            "live_si_snri": float(gain[chosen, i].mean()) if chosen.any() else math.nan,
            "live_doa_error": float(off.mean()) if chosen.any() else math.nan,
            "live_within_5": math.nan if np.isnan(off).any() or not chosen.any()
            else float((off <= 5).mean()),
        })
    return rows


def _known(mixture: BenchmarkMixture, sources: Tensor, audio: Tensor, others: Tensor,
           values: dict[str, Tensor], delays: np.ndarray) -> list[dict[str, float]]:
    """What needs no model: oracle masks, the unprocessed mixture, the loudest direction."""
    whole = audio.expand_as(sources)
    masks = {name: si_snr_per_ear_mean(oracle_mask(sources, others, binary=name == "ibm"), sources)
             - values["mixture_si_snr"] for name in ("irm", "ibm")}
    # `others` has the noise, if any, as its last: no sound that could have been meant.
    interferers = others[:, :len(sources) - 1]
    raw = batch_metrics(whole, sources, whole, interferers)
    cues = interaural_errors(whole, sources)
    loudest = gcc_direction(audio.cpu(), delays)
    return [{
        "irm_si_snri": float(masks["irm"][i]), "ibm_si_snri": float(masks["ibm"][i]),
        "mixture_right_source": float(raw["right_source"][i]) if "right_source" in raw
        else math.nan,
        "mixture_delta_itd_us": float(cues["delta_itd_us"][i]),
        "mixture_delta_ild_db": float(cues["delta_ild_db"][i]),
        "gcc_error": float(angular_error(loudest, float(mixture.azimuth[i]))),
    } for i in range(len(sources))]


def rows_of(model, mixture: BenchmarkMixture, cell: Cell, delays: np.ndarray,
            hop: float | None = None, sdr: bool = False,
            window: float | None = None) -> list[dict[str, Any]]:
    """Ask for everything that a cell asks in one mixture.

    Args:
        delays: (360,) of the head, for GCC-PHAT (training.heads.interaural_delay).
        hop, window: see :func:`listen`.
        sdr: also the SDR, which takes longer than all else.

    Returns:
        One row per query: cell, mixture, asked ("label", "held_out" or "absent"), source, kind,
        query, recording, confidence, below_mixture_db and, for sounds that are there, truth,
        estimate and metrics (docs/benchmark.md names them).
    """
    device = getattr(model, "device", "cpu")
    audio = torch.from_numpy(mixture.audio).to(device)
    sources = torch.from_numpy(mixture.sources).to(device)
    count = len(sources)
    if cell.set == "same":
        return _same_kind(model, mixture, cell, audio, sources, hop, window)
    asked: list[tuple[str, int, str]] = []
    for sort in cell.asked:
        words = {"label": mixture.kind, "held_out": mixture.held_out,
                 "absent": [mixture.absent]}[sort]
        asked += [(sort, i, word) for i, word in enumerate(words)]
    heard = listen(model, mixture.audio, [word for _, _, word in asked], hop,
                   16 if torch.device(device).type == "cuda" else 2, window)
    extracted = heard.audio.to(device)
    below = level_below_mixture(extracted, audio.expand_as(extracted))
    index = [[j for j in range(count) if j != i] for i in range(count)]
    others = torch.stack([sources[i] for i in index])
    apart = [float(angular_error(mixture.azimuth[i], mixture.azimuth[j]).min())
             if len(i) else math.nan for j, i in enumerate(index)]
    details: dict[str, list[dict[str, float]]] = {"absent": [{}]}
    for sort in cell.asked:
        if sort == "absent":
            continue
        which = [q for q, (what, _, _) in enumerate(asked) if what == sort]
        estimate = extracted[which]
        values = batch_metrics(
            estimate, sources, audio.expand_as(sources), others,
            torch.as_tensor(heard.azimuth[which], dtype=torch.float32),
            torch.as_tensor(mixture.azimuth, dtype=torch.float32), sdr=sdr)
        values |= interaural_errors(estimate, sources)
        details[sort] = [{key: float(value[i]) for key, value in values.items()}
                         for i in range(count)]
        for row, live in zip(details[sort], _live(heard, which, mixture, sources, audio)):
            row.update(live)
        if sort == "label":
            everything = others
            if mixture.noise is not None:
                noise = torch.from_numpy(mixture.noise).to(device)
                everything = torch.cat([others, noise.expand(count, 1, -1, -1)], 1)
            known = _known(mixture, sources, audio, everything, values, delays)
            for row, more in zip(details[sort], known):
                row.update(more)
    rows = []
    for q, (sort, i, word) in enumerate(asked):
        row = {
            "cell": cell.name, "mixture": mixture.index, "asked": sort, "source": i,
            "kind": word if sort == "absent" else mixture.kind[i], "query": word,
            # An absent query belongs to the mixture: its cluster is the first recording.
            "recording": mixture.recording[i],
            "others": "; ".join(kind for j, kind in enumerate(mixture.kind)
                                if j != i or sort == "absent"),
            "rt60": mixture.rt60, "noise_db": mixture.noise_db,
            "confidence": float(heard.confidence[q]),
            "confidence_mean": float(heard.window_confidence[:, q].mean()),
            "below_mixture_db": float(below[q]),
        }
        if sort != "absent":
            row |= {"azimuth": float(mixture.azimuth[i]),
                    "azimuth_est": float(heard.azimuth[q]), "separation": apart[i]}
        rows.append(row | details[sort][i])
    return rows


def _same_kind(model, mixture: BenchmarkMixture, cell: Cell, audio: Tensor, sources: Tensor,
               hop: float | None, window: float | None) -> list[dict[str, Any]]:
    """One query that two sounds answer: which of them does the model follow?"""
    heard = listen(model, mixture.audio, mixture.kind[:1], hop, window=window)
    estimate = heard.audio.to(audio.device)
    level = sources.square().mean((-1, -2))
    loud = int(level.argmax())
    found = si_snr_per_ear_mean(estimate.expand_as(sources), sources)
    mixed = si_snr_per_ear_mean(audio.expand_as(sources), sources)
    error = np.asarray(angular_error(float(heard.azimuth[0]), mixture.azimuth))
    nearest = float(error.min())
    return [{
        "cell": cell.name, "mixture": mixture.index, "asked": "label", "source": loud,
        "kind": mixture.kind[0], "query": mixture.kind[0], "recording": mixture.recording[loud],
        "others": mixture.kind[1 - loud], "confidence": float(heard.confidence[0]),
        "below_mixture_db": float(level_below_mixture(estimate, audio[None])[0]),
        "azimuth": float(mixture.azimuth[loud]), "azimuth_est": float(heard.azimuth[0]),
        "separation": float(angular_error(mixture.azimuth[0], mixture.azimuth[1])),
        "level_difference_db": float(10 * torch.log10(level[loud] / level[1 - loud])),
        "nearest_error": nearest,
        "within_5_either": math.nan if math.isnan(nearest) else float(nearest <= 5),
        "within_5_louder": math.nan if math.isnan(nearest) else float(error[loud] <= 5),
        "si_snri_louder": float(found[loud] - mixed[loud]),
        "si_snri_quieter": float(found[1 - loud] - mixed[1 - loud]),
        "si_snr_sum": float(si_snr_per_ear_mean(estimate, audio[None])[0]),
        "follows_louder": float(found[loud] > found[1 - loud]),
    }]


# -- a run -----------------------------------------------------------------------------------------


def _read_rows(path: Path) -> list[list[dict[str, Any]]]:
    """Finished mixtures of a cell; what an interruption tore off is left out."""
    mixtures = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return mixtures
    for line in lines:
        try:
            mixtures.append(json.loads(line))
        except ValueError:
            break
    return mixtures


class Results:
    """The folder of a run: ``run.json`` says of what, ``cells/<cell>.jsonl`` holds the rows.

    Args:
        folder: new, or of an earlier run of the same thing.
        about: what the run is of; ``mixtures`` may grow from one run to the next.

    Raises:
        ConfigError: the folder holds a run of something else.
    """

    def __init__(self, folder: str | Path, about: dict[str, Any]):
        self.folder = Path(folder)
        path = self.folder / "run.json"
        if path.is_file():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            different = sorted(key for key in {*earlier, *about} if earlier.get(key) !=
                               about.get(key))
            if different:
                raise ConfigError(
                    f"{self.folder} holds a run with another {', '.join(different)} "
                    f"({earlier.get(different[0])!r}, now {about.get(different[0])!r}): "
                    "choose another --out")
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        temporary = path.with_name("run.json.part")
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def _path(self, cell: str) -> Path:
        return self.folder / "cells" / f"{cell}.jsonl"

    def claim(self, cell: str, inputs: dict[str, str]) -> None:
        """Note what a cell is heard with; rows made with other heads or rooms must not mix.

        Raises:
            ConfigError: the cell's earlier rows were.
        """
        path = self.folder / "cells" / f"{cell}.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != inputs:
            raise ConfigError(f"{self.folder} holds rows of {cell} with another head or other test "
                              "rooms (they were rebuilt since): choose another --out")
        path.write_text(json.dumps(inputs) + "\n", encoding="utf-8")

    def inputs(self, cell: str) -> dict[str, str]:
        """What `claim` noted; empty if nothing."""
        path = self.folder / "cells" / f"{cell}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def rows(self, cell: str) -> list[dict[str, Any]]:
        """All rows of a cell so far, by mixture."""
        mixtures = {rows[0]["mixture"]: rows for rows in _read_rows(self._path(cell)) if rows}
        # NaN was written as null.
        return [{key: math.nan if value is None else value for key, value in row.items()}
                for number in sorted(mixtures) for row in mixtures[number]]

    def take_over(self, cell: Cell, catalogue: Catalogue, folder: str | Path,
                  inputs: dict[str, str], mixtures: int | None = None) -> int:
        """Copy the rows of mixtures that a run on another version of the benchmark has heard.

        Args:
            cell: to fill.
            catalogue: of this run.
            folder: of the other run, of the same checkpoint heard in the same way.
            inputs: what the cell is heard with here, see :func:`claim`.
            mixtures: only of the first so many.

        Returns:
            how many mixtures were not here yet.

        Raises:
            ConfigError: the other run is of something else.
        """
        here, there = _about(self.folder), _about(folder)
        versions = {c.sha256: c for c in map(load_catalogue, VERSIONS)}
        source = versions.get(there.get("catalogue_sha256"))
        if source is None:
            raise ConfigError(f"{folder} is of a benchmark that doesn't come with the package")
        # names may differ, and other recordings may be missing
        different = sorted(key for key in {*here, *there} - {
            "catalogue_sha256", "model", "missing"} if here.get(key) != there.get(key))
        if here.get("altered") or there.get("altered"):
            different.append("state of the recordings (some have altered samples)")
        path = Path(folder) / "cells" / f"{cell.name}.jsonl"
        if path.is_file() and _json(path.with_suffix(".json")) != inputs:
            different.append(f"head or rooms in {cell.name}")
        if different:
            raise ConfigError(f"{folder} holds a run with another {', another '.join(different)}: "
                              "its rows don't belong here")
        if cell != source.cells.get(cell.name):
            return 0
        shared = {number for number in shared_mixtures(source, catalogue, cell.set)
                  if mixtures is None or number < mixtures}
        rows = {row[0]["mixture"]: row for row in _read_rows(path) if row}
        before = {row["mixture"] for row in self.rows(cell.name)}
        wanted = sorted(shared & rows.keys())
        self.claim(cell.name, inputs)
        self.fill(cell.name, wanted, rows.__getitem__, progress=False)
        return len(set(wanted) - before)

    def fill(self, cell: str, wanted: Sequence[int],
             make: Callable[[int], list[dict[str, Any]]], progress: bool = True) -> None:
        """Make the rows of those mixtures that aren't there yet."""
        path = self._path(cell)
        finished = _read_rows(path)
        done = {rows[0]["mixture"] for rows in finished if rows}
        left = [number for number in wanted if number not in done]
        # Written anew without a torn last line, before anything is appended.
        text = "".join(json.dumps(rows) + "\n" for rows in finished)
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            temporary = path.with_suffix(".part")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        with open(path, "a", encoding="utf-8") as file, tqdm(
                total=len(wanted), initial=len(wanted) - len(left), desc=cell, unit="mixture",
                disable=not progress) as bar:
            for number in left:
                rows = [{key: None if isinstance(value, float) and not math.isfinite(value)
                         else value for key, value in row.items()} for row in make(number)]
                file.write(json.dumps(rows) + "\n")
                file.flush()
                bar.update()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _about(folder: str | Path) -> dict[str, Any]:
    try:
        return _json(Path(folder) / "run.json")
    except ConfigError as error:
        raise ConfigError(f"{folder} is not the folder of a run: {error}") from None


def ahead(renderer: Renderer, wanted: Sequence[int]) -> Iterator[BenchmarkMixture]:
    """Mixtures in order, the next one being made while one is used."""
    with ThreadPoolExecutor(1) as worker:
        pending = deque()
        for number in wanted:
            pending.append(worker.submit(renderer.__getitem__, number))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def run_cell(model, catalogue: Catalogue, renderer: Renderer, results: Results,
             mixtures: int | None = None, hop: float | None = None, sdr: bool = False,
             progress: bool = True, told: Head | None = None,
             window: float | None = None) -> None:
    """Evaluate one cell, as far as it isn't yet.

    Args:
        mixtures: the first so many; None: all.
        hop, window: see :func:`rows_of`.
        told: what the model was told of the head, see :func:`tell_head`.
    """
    cell = renderer.cell
    count = catalogue.size(cell) if mixtures is None else min(mixtures, catalogue.size(cell))
    wanted = [number for number in range(count) if number not in renderer.missing]
    done = {row["mixture"] for row in results.rows(cell.name)}
    coming = ahead(renderer, [number for number in wanted if number not in done])
    delays = head_delays(renderer.head)
    results.claim(cell.name, inputs_of(renderer, told))

    def make(number: int) -> list[dict[str, Any]]:
        mixture = next(coming)
        assert mixture.index == number
        return rows_of(model, mixture, cell, delays, hop, sdr, window)

    results.fill(cell.name, wanted, make, progress)


def head_delays(head: Head) -> np.ndarray:
    """(360,) seconds by which the left ear leads."""
    return interaural_delay(head.hrir.cpu().numpy(), SAMPLE_RATE)
