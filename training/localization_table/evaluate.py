"""Fixed scenes of unseen recordings in unseen rooms, and what a system answers about them."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
from tqdm import tqdm

from luseel_model.angles import angular_error
from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.arrays.simulation import ArraySceneConfig, ArraySimulator
from training.captions import Captions
from training.pool import ClipPool
from training.simulation import SimulationConfig

#: Azimuths of moving sounds are kept this often (samples).
TRACK_HOP = 160
#: Of a sound that isn't in the scene: ``present`` 0, the scene's first recording, no direction.
FIELDS = ("scene", "label", "recording", "azimuth", "error", "right", "present", "confidence")
_ABSENT_SEED = 770_000


@dataclass(frozen=True)
class Cell:
    """Scenes of one sort: ``seconds`` long, two recordings each at 0 dB.

    Attributes:
        additive: the second reaches all microphones alike, and isn't asked for.
        moving: both move, or stay.
    """

    key: str
    title: str
    seconds: float
    additive: bool = False
    moving: bool = False


CELLS = (
    Cell("additive", "one dir., one add.", 10.0, additive=True),
    Cell("two", "two dir.", 10.0),
    Cell("two-2s", "two dir., 2 s", 2.0),
    Cell("moving", "two moving or still, 2 s", 2.0, moving=True),
)


@dataclass
class HeldOutScene:
    """A scene: ``audio`` (M, N), and of each sound that is asked for its label, its recording and
    its direction, (Q,), or (Q, T) every :data:`TRACK_HOP` samples; ``absent``: the label of a sound
    that isn't there."""

    audio: np.ndarray
    labels: list[str]
    recordings: list[str]
    azimuth: np.ndarray
    absent: str


class HeldOutScenes:
    """The scenes of a cell; the same for every system.

    Args:
        packed: folder of the packed recordings, whose test split is heard.
        rooms: folder of the banks; their test split is heard.
    """

    def __init__(self, cell: Cell, packed: str | Path, rooms: str | Path, bank: str = "square",
                 path_bank: str = "square-path"):
        self.cell = cell
        self.pool = ClipPool.load(packed, "test")
        sounds = SimulationConfig(
            n_sources=(2,), seconds=cell.seconds, snr_db=(0.0, 0.0), rate=None, equaliser_db=0.0,
            level_db=(-25.0, -25.0), sensor_db=(50.0, 50.0), swap_ears=0.0, head_size=None)
        scenes = ArraySceneConfig(rooms=str(rooms), bank=path_bank if cell.moving else bank,
                                  additive_share=float(cell.additive))
        self._confusable = _confusable(self.pool.kinds)
        self._simulator = ArraySimulator(self.pool, sounds, scenes, seed=77, split="test",
                                         confusable=self._confusable)

    def __call__(self, count: int) -> Iterator[HeldOutScene]:
        """The first ``count`` scenes."""
        make = self._simulator
        make.generator.manual_seed(77)
        for index in range(count):
            plan = make.draw(1, 2)
            if self.cell.moving:
                low, high = make.scenes.speed
                draw = torch.rand(3, 1, 2, generator=make.generator)
                speed = (low + (high - low) * draw[0]) * (1 - 2 * (draw[1] < 0.5).float())
                speed = speed.masked_fill(draw[2] < make.scenes.still_share, 0.0)
                scene = make.render_moving(plan, speed, TRACK_HOP)
            else:
                scene = make.render(plan)
            asked = 1 if self.cell.additive else 2
            rows = plan.recording[0, :asked].tolist()
            yield HeldOutScene(scene.mixture[0].numpy(), [self.pool.labels[i] for i in rows],
                            [self.pool.names[i] for i in rows],
                            scene.azimuth[0, :asked].numpy().astype(np.float64),
                            self._absent(plan.recording[0], index))

    def _absent(self, recordings: torch.Tensor, index: int) -> str:
        """A label that nothing in scene ``index`` could be called by."""
        kinds = self.pool.kind
        near = self._confusable[kinds[recordings]].any(0)
        free = ((kinds >= 0) & ~near[kinds]).nonzero()[:, 0]
        if not len(free):
            raise ConfigError("the test recordings are of too few sorts to ask for a sound that "
                              "isn't there: pack more of them")
        chance = torch.Generator().manual_seed(_ABSENT_SEED + index)
        return self.pool.labels[free[torch.randint(len(free), (), generator=chance)]]


def _confusable(kinds: list[str]) -> torch.Tensor:
    """(K, K) bool: kinds that sound alike, and so never share a scene."""
    captions, place = Captions.load(), {kind: i for i, kind in enumerate(kinds)}
    alike = torch.eye(len(kinds), dtype=torch.bool)
    for kind in kinds:
        for other in captions.confusable(kind):
            if other in place:
                alike[place[kind], place[other]] = True
    return alike | alike.T


def answer(system: Any, scene: HeldOutScene, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Of the sounds in the scene, (Q,) degrees, or (Q, T) every :data:`TRACK_HOP` samples where the
    cell's sounds move; and how sure it is that each is there, and last the absent one, (Q + 1,),
    NaN where it doesn't say."""
    queries = [*scene.labels, scene.absent]
    if cell.moving and system.moving:
        steps = scene.azimuth.shape[1]
        track = system.follow(torch.from_numpy(scene.audio), scene.labels).numpy()
        times = np.array(system.model.config.frame_times[:track.shape[1]])
        near = np.abs(np.arange(steps)[:, None] * TRACK_HOP / SAMPLE_RATE - times).argmin(1)
        return track[:, near], np.full(len(queries), np.nan)
    found, confidence = system.locate(scene.audio, queries)
    found = found[:-1]
    if cell.moving:  # one direction a window stands for all of it
        found = np.repeat(found[:, None], scene.azimuth.shape[1], 1)
    return found, confidence


def _rows(index: int, scene: HeldOutScene, found: np.ndarray, confidence: np.ndarray
          ) -> list[dict]:
    error = angular_error(found, scene.azimuth)
    other = angular_error(found, scene.azimuth[::-1]) if len(found) == 2 else error + 1
    sure = ["" if np.isnan(value) else round(float(value), 4) for value in confidence]
    rows = [{"scene": index, "label": label, "recording": scene.recordings[q],
             "azimuth": round(float(np.atleast_1d(scene.azimuth[q])[0]), 2),
             "error": round(float(error[q].mean()), 3),
             "right": round(float((error[q] < other[q]).mean()), 3),
             "present": 1, "confidence": sure[q]} for q, label in enumerate(scene.labels)]
    if sure[-1] != "":
        rows.append({"scene": index, "label": scene.absent, "recording": scene.recordings[0],
                     "present": 0, "confidence": sure[-1]})
    return rows


def is_present(row: dict) -> bool:
    """Is the sound that was asked for in the scene?"""
    return str(row.get("present")) != "0"


def run_cell(system: Any, cell: Cell, scenes: HeldOutScenes, count: int, path: Path) -> list[dict]:
    """Rows of a cell, one for each sound asked for; what ``path`` has already is kept."""
    done: list[dict] = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            done = list(csv.DictReader(file))
    known = {int(row["scene"]) for row in done}
    if known >= set(range(count)):
        return [row for row in done if int(row["scene"]) < count]
    rows = []
    for index, scene in enumerate(tqdm(scenes(count), total=count,
                                       desc=f"{system.name} {cell.key}", unit="scene")):
        if index not in known:
            rows += _rows(index, scene, *answer(system, scene, cell))
    everything = sorted(done + rows, key=lambda row: int(row["scene"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(everything)
    os.replace(temporary, path)
    return [row for row in everything if int(row["scene"]) < count]


def find_cells(keys: list[str] | None) -> list[Cell]:
    known = {cell.key: cell for cell in CELLS}
    for key in keys or []:
        if key not in known:
            raise ConfigError(f"no scenes {key!r}; there are: {', '.join(known)}")
    return [cell for cell in CELLS if keys is None or cell.key in keys]
