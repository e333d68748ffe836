"""Fixed test mixtures of seen and of unseen kinds, with all clues of their sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from luseel_model.errors import ConfigError
from luseel_model.query import Query
from luseel_model.text import TextEncoder, pad_embeddings, sentence_embedding
from training.captions import Captions
from training.clues.clips import moving_clip
from training.clues.compromise import noisy_frames, replace_words
from training.heads import load_head
from training.pool import ClipPool
from training.simulation import BinauralSimulator, Plan, Scene, SimulationConfig

#: Rows of Tables 1 and 2: which clues are given, those with a star compromised.
CONDITIONS: tuple[tuple[str, ...], ...] = (
    ("tag", "text", "video"), ("tag", "text"), ("text", "video"), ("tag", "video"),
    ("tag",), ("text",), ("video",),
    ("text*",), ("text*", "video"), ("video*",), ("text", "video*"), ("text*", "video*"))
_FRAME_SIZE = 224


@dataclass
class Sound:
    """A sound that is asked for: its place in the scene, its kind, its recording's name and the
    value of each clue ('tag', 'text', 'text*', 'video', 'video*')."""

    place: int
    kind: str
    recording: str
    clues: dict[str, object]

    def query(self, condition: Sequence[str]) -> Query | None:
        """The query of a condition, None where a clue is missing."""
        if any(name not in self.clues for name in condition):
            return None
        given = {name.rstrip("*"): self.clues[name] for name in condition}
        return Query(text=given.get("text", ""), tag=given.get("tag", ""),
                     frames=given.get("video"))


def joined_pool(folder: str, unseen: Sequence[str]) -> ClipPool:
    """The test split, and of the unseen kinds the recordings of all splits: none was trained on."""
    pools = [ClipPool.load(folder, split) for split in ("test", "train", "valid")]
    samples, parts, begin = [], [], 0
    for number, pool in enumerate(pools):
        for i, label in enumerate(pool.labels):
            if number and label not in unseen:
                continue
            start, length = int(pool.start[i]), int(pool.length[i])
            samples.append(pool.samples[start: start + length])
            parts.append((begin, length, label, pool.names[i], pool.groups[i]))
            begin += length
    starts, lengths, labels, names, groups = zip(*parts)
    return ClipPool(torch.cat(samples), starts, lengths, labels, pools[0].kinds, names, groups)


def nearest_tags(kinds: Sequence[str], unseen: Sequence[str], encoder: TextEncoder
                 ) -> dict[str, str]:
    """A tag that the model knows for every kind: its own, or of an unseen kind that of the seen
    kind whose name is nearest in the text encoder's space."""
    seen = [kind for kind in kinds if kind not in unseen]
    vectors = sentence_embedding(*pad_embeddings(encoder.embed(list(kinds))))
    place = {kind: i for i, kind in enumerate(kinds)}
    likeness = vectors @ vectors[[place[kind] for kind in seen]].T
    return {kind: seen[int(likeness[place[kind]].argmax())] if kind in unseen else kind
            for kind in kinds}


class TestScenes:
    """Mixtures of two sounds at -2 to 2 dB, the same for every model.

    Args:
        packed: folder of packed recordings.
        unseen: kinds that training held out.
        pictures: of each kind for the seen set (the test split) and of unseen kinds.
        tags: of :func:`nearest_tags`.
        seed: of all that is random.
    """

    __test__ = False  # no test, whatever pytest thinks

    def __init__(self, packed: str, head: str, unseen: Sequence[str],
                 pictures: Mapping[str, Sequence[np.ndarray]], tags: Mapping[str, str],
                 frames: int, seed: int = 5):
        self.pool = joined_pool(packed, unseen)
        self.unseen, self.pictures, self.tags = set(unseen), pictures, tags
        self.frames, self.seed = frames, seed
        self.captions = Captions.load()
        kinds = self.pool.kinds
        if missing := sorted(self.unseen - set(kinds)):
            raise ConfigError(f"{packed} has no {', '.join(missing)}, which training held out")
        self.words = sorted({word for kind in kinds for phrase in self.captions.phrases(kind)
                             for word in phrase.split()})
        config = SimulationConfig(seconds=2.0, snr_db=(-2.0, 2.0)).plain()
        self.config = replace(config, gap=(0.0, 0.0))
        confusable = torch.eye(len(kinds), dtype=torch.bool)
        for i, kind in enumerate(kinds):
            for other in self.captions.confusable(kind):
                if other in kinds:
                    confusable[i, kinds.index(other)] = confusable[kinds.index(other), i] = True
        self.confusable, self.head = confusable, load_head(head)
        self._renderers: dict[str, BinauralSimulator] = {}

    def drawn(self, which: str, mixtures: int) -> list[Plan]:
        """Plans of the first so many mixtures, each of one scene, of the 'seen' set (both sounds of
        seen kinds, test recordings) or of the 'unseen' one (a sound asked for is of an unseen kind,
        at least)."""
        simulator = self._simulator(which)
        held_out = torch.tensor([kind in self.unseen for kind in self.pool.kinds])
        found: list[Plan] = []
        while len(found) < mixtures:
            plan = simulator.draw(8)
            if which != "seen":
                plan = plan[held_out[self.pool.kind[plan.recording]].any(1)]
            found += [plan[row: row + 1] for row in range(len(plan))]
        return found[:mixtures]

    def make(self, which: str, number: int, plan: Plan) -> tuple[Scene, list[Sound]]:
        """The scene of a plan and the sounds asked for; in the 'unseen' set those of unseen kinds.
        """
        if which not in self._renderers:
            self._renderers[which] = self._simulator(which)
        scene = self._renderers[which].render(plan)
        is_seen = which == "seen"
        # each mixture has chances of its own, so that any may be made without the others
        generator = torch.Generator().manual_seed(1000 * self.seed + 2 * number + is_seen)
        chance = np.random.default_rng((self.seed, number, is_seen))
        sounds = [self._sound(scene, place, generator, chance)
                  for place in range(scene.kind.shape[1])]
        return scene, [s for s in sounds if is_seen or s.kind in self.unseen]

    def __call__(self, which: str, mixtures: int) -> Iterator[tuple[int, Scene, list[Sound]]]:
        """Number, scene and sounds asked for of a set's first so many mixtures."""
        for number, plan in enumerate(self.drawn(which, mixtures)):
            yield number, *self.make(which, number, plan)

    def _simulator(self, which: str) -> BinauralSimulator:
        config = self.config
        if which == "seen":
            config = replace(config, exclude_kinds=tuple(sorted(self.unseen)))
        return BinauralSimulator(self.pool, self.head, config, seed=self.seed,
                                 confusable=self.confusable, split="test")

    def _sound(self, scene: Scene, place: int, generator: torch.Generator,
               chance: np.random.Generator) -> Sound:
        kind = self.pool.kinds[int(scene.kind[0, place])]
        words = self.captions.held_out(kind)
        clues: dict[str, object] = {"tag": self.tags[kind], "text": words,
                                    "text*": replace_words(words, self.words, chance)}
        choice = self.pictures.get(kind, ())
        if len(choice):
            clip = moving_clip(choice[int(chance.integers(len(choice)))], self.frames, _FRAME_SIZE,
                               generator)
            clues |= {"video": clip, "video*": noisy_frames(clip, chance)}
        return Sound(place, kind, self.pool.names[int(scene.recording[0, place])], clues)


def half_the_mixture(mixture: Tensor) -> Tensor:
    """What an extractor gives that knows nothing: SNRi, unlike SI-SNRi, rewards it."""
    return 0.5 * mixture
