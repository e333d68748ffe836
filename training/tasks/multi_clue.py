"""Training of multi-clue extraction (paper 003): 2 s around the event, two sounds, a random subset
of the clues that there are of one of them.

Stages: the tagger alone (in the paper: PANNs, trained by others); the tag as the only clue, as the
paper's first stage; then all clues.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from luseel_model.config import require, require_at_least, require_share
from luseel_model.errors import ConfigError
from luseel_model.images import ImageEncoder
from luseel_model.multi_clue import MultiClueConfig
from luseel_model.multi_clue.attention import Clues
from luseel_model.multi_clue.network import Encoded, MultiClueOutput, stft
from luseel_model.text import TextEncoder
from training.captions import Captions
from training.clues.bank import ClipBank
from training.clues.pictures import read_pictures
from training.clues.recorded import RecordingBank, load_recorded
from training.heads import load_head
from training.losses import (absent_queries, balanced_presence, clip_tag_loss, dense_tag_loss,
                             token_energy_shares)
from training.losses.snr import negative_snr, snr_improvement
from training.losses.spectrum_l1 import complex_l1
from training.metrics import mixture_metrics
from training.pool import ClipPool
from training.queries import QueryBank, ask_for_absent
from training.simulation import BinauralSimulator, Scene, SimulationConfig
from training.tasks.base import Task
from training.train_config import TaggedTrainConfig

CLUES = ("tag", "text", "video")
_VALIDATION_SEED = 1234


@dataclass(frozen=True)
class MultiClueDataConfig:
    """What is trained on.

    Attributes:
        packed: folder of training.corpus.pack. Where it has the ``clues.csv`` of
            training.clues.manifests, each recording has its own caption and video as clues instead
            of wordings and clips of its kind; those without lack that clue.
        heads: names or SOFA files; each mixture is that of one ear.
        pictures: folder of training.pictures that clips are made of (training/clues); empty: no
            video clues.
        clips, most_pictures: clips of each picture, pictures of each thing.
        captions, label_share: wordings of the text clue, see QueryBank.
        unseen: kinds that are held out entirely, for the unseen set.
        given: the clues that are ever given; one alone makes the paper's single-clue systems.
        clue_share: chance of each of them that there is to be given; one is given at least.
        queries: sounds of a mixture that are asked for in a step; in ``absent_share`` of the
            mixtures the last of them asks for a sound that isn't there.
        simulation: the scenes.
    """

    packed: str = "data/packed"
    heads: tuple[str, ...] = ("mit_kemar",)
    pictures: str = ""
    clips: int = 4
    most_pictures: int = 8
    captions: bool = True
    label_share: float = 0.3
    unseen: tuple[str, ...] = ()
    given: tuple[Literal["tag", "text", "video"], ...] = CLUES
    clue_share: float = 0.5
    queries: int = 1
    absent_share: float = 0.0
    simulation: SimulationConfig = SimulationConfig(seconds=2.0, snr_db=(-2.0, 2.0))

    def __post_init__(self) -> None:
        require_at_least(self, 1, "queries", "clips", "most_pictures")
        require(len(self.given) > 0, "given needs a clue at least")
        require_share(self, "absent_share")
        require(0 < self.clue_share <= 1, "clue_share must be above 0 and at most 1")


@dataclass(frozen=True)
class MultiClueLossConfig:
    """Weights of the terms, 0 leaves one out. ``snr`` and ``l1`` are the paper's equation (5);
    ``clip_tags`` trains the sound encoder as a tagger, which in the paper others did; ours are
    ``dense_tags`` (what is heard where, by the comparison with the clues), ``absent`` (level of
    the extraction of a sound that isn't there) and ``presence``."""

    snr: float = 1.0
    l1: float = 5.0
    clip_tags: float = 0.0
    dense_tags: float = 0.0
    absent: float = 0.0
    presence: float = 0.0


@dataclass(frozen=True)
class MultiClueTrainConfig(TaggedTrainConfig):
    """The first ``tag_steps`` train the taggers. ``tag_clue_steps``: steps after these with the tag
    as the only clue (the paper's first stage)."""

    tag_batch_size: int = 24
    tag_clue_steps: int = 0
    data: MultiClueDataConfig = field(default_factory=MultiClueDataConfig)
    loss: MultiClueLossConfig = field(default_factory=MultiClueLossConfig)

    def check(self, model: MultiClueConfig) -> None:
        super().check(model)
        loss, data = self.loss, self.data
        require(loss.snr > 0 or loss.l1 > 0, "loss has no weight above 0 for the extraction")
        require(not loss.dense_tags or model.backbone.matching > 0,
                "loss.dense_tags needs a model with backbone.matching")
        require(not self.tag_steps or loss.dense_tags > 0 or loss.clip_tags > 0,
                "tag_steps need a weight in loss.dense_tags or clip_tags")
        require(not loss.presence or model.presence, "loss.presence needs a model with presence")
        require(not data.absent_share or loss.absent > 0 or loss.presence > 0,
                "data.absent_share needs a weight in loss.absent or presence")
        require(all(count > 1 for count in data.simulation.n_sources),
                "data.simulation.n_sources: extraction needs two sounds or more")


@dataclass
class Batch:
    """B mixtures of one ear, S sounds, Q queries.

    Attributes:
        mixture: (B, N); sources: (B, S, N); kind: (B, S).
        asked: (B, Q) which sound each query asks for, -1 for one that isn't there.
        clues: what is given of it.
        recording: (B, S) index into the pool.
        wording, clip: (K,) what stands for each kind in the taggers, -1 in both where its tag does:
            indices into the task's ``texts`` and ``clips``.
    """

    mixture: Tensor
    sources: Tensor
    kind: Tensor
    asked: Tensor
    clues: Clues
    recording: Tensor
    wording: Tensor
    clip: Tensor


class MultiClueTask(Task):
    """See :class:`training.tasks.base.Task`."""

    config_class = MultiClueTrainConfig

    def __init__(self, config: MultiClueTrainConfig, device: torch.device, seed: int):
        super().__init__(config, device, seed)
        data, model = config.data, self.network.config
        self.train_pool = ClipPool.load(data.packed, "train", device)
        valid_pool = ClipPool.load(data.packed, "valid", device)
        kinds = self.train_pool.kinds
        if len(kinds) != model.tags:
            raise ConfigError(f"the model has {model.tags} tags, but {data.packed} has "
                              f"{len(kinds)} kinds: set overrides: {{tags: {len(kinds)}}}")
        self.bank = QueryBank(kinds, TextEncoder(model.text, device),
                              Captions.load() if data.captions else None, data.label_share, device)
        self.recorded, self.valid_recorded = (
            load_recorded(data.packed, split, pool, model, data.given)
            for split, pool in (("train", self.train_pool), ("valid", valid_pool)))
        self.texts: QueryBank | RecordingBank = self.bank
        self.clips: ClipBank | RecordingBank
        self.valid_texts: QueryBank | RecordingBank = self.bank
        self.valid_clips: ClipBank | RecordingBank
        if self.recorded is None:
            self.clips, self.valid_clips = (load_clips(config, model, kinds, split, device)
                                            for split in ("train", "valid"))
        else:
            self.texts, self.clips = self.recorded.texts, self.recorded.videos
            self.valid_texts = self.valid_recorded.texts
            self.valid_clips = self.valid_recorded.videos
        excluded = {*data.simulation.exclude_kinds, *data.unseen}
        if data.given == ("video",):  # other kinds can't be asked for
            if not self.clips.count.any():
                raise ConfigError("video alone needs pictures, or a clues.csv with videos in "
                                  f"{data.packed} (docs/multi_clue.md)")
            excluded |= {k for k, count in zip(kinds, self.clips.count.tolist()) if not count}
        simulation = dataclasses.replace(data.simulation, exclude_kinds=tuple(sorted(excluded)))
        heads = [load_head(name) for name in data.heads]
        self.simulator = BinauralSimulator(
            self.train_pool, heads, simulation, device, seed, self.bank.confusable)
        self.validation_simulator = BinauralSimulator(
            valid_pool, heads[:1], simulation.plain(), device, _VALIDATION_SEED,
            self.bank.confusable, split="valid")
        self.seen = torch.tensor([kind not in data.unseen for kind in kinds], device=device)
        self.generator = torch.Generator().manual_seed(seed + 1)  # ears, queries, clues
        self._fixed: list[Batch] | None = None

    @classmethod
    def noise_losses(cls, config: MultiClueTrainConfig, network, scenes: int) -> dict[str, Tensor]:
        model, count = network.config, config.data.queries
        mixture = torch.randn(scenes, model.window_samples)
        clues = Clues(torch.eye(model.tags)[torch.zeros(scenes, count, dtype=torch.long)],
                      torch.randn(scenes, count, 12, model.text.embedding),
                      torch.ones(scenes, count, 12, dtype=torch.bool),
                      torch.randn(scenes, count, model.video.frames, model.video.image.embedding),
                      torch.ones(scenes, count, model.video.frames, dtype=torch.bool))
        output = network(mixture, clues)
        return extraction_terms(output, mixture, mixture[:, None] * 0.5,
                                torch.zeros(scenes, count, dtype=torch.long), network, config.loss)

    # -- batches

    def batch(self, step: int, size: int) -> Batch:
        data, chance = self.config.data, self.generator
        scene = self.simulator.sample(size)
        ear = torch.randint(2, (size,), generator=chance).to(self.device)
        kind = scene.kind
        count = min(data.queries, kind.shape[1])
        asked = torch.rand(kind.shape, generator=chance).argsort(1)[:, :count].to(self.device)
        wanted = kind.gather(1, asked)
        if data.absent_share:
            free = self.bank.missing(kind) & self.seen
            if self.recorded is not None:
                free = free & (self.recorded.recordings.count > 0)
            asked, wanted = ask_for_absent(asked, wanted, free, data.absent_share, chance)
        if self.recorded is None:
            text, clip = self.bank.draw(wanted, chance), self.clips.draw(wanted, chance)
        else:
            recording = self.recorded.asked(scene.recording, asked, wanted, chance)
            text, clip = self.texts.of(recording), self.clips.of(recording)
        use = torch.rand(3, *wanted.shape, generator=chance).to(self.device)
        wording, clips = self._keys()
        if step < self.config.tag_steps + self.config.tag_clue_steps:
            use = torch.tensor([0.0, 1.0, 1.0], device=self.device)[:, None, None].expand_as(use)
        clues = self.clues(wanted, text, clip, self.choose(use, text >= 0, clip >= 0), self.texts,
                           self.clips)
        rows = torch.arange(size, device=self.device)
        return Batch(scene.mixture[rows, ear], scene.sources[rows, :, ear], kind, asked, clues,
                     scene.recording, wording, clips)

    def choose(self, chance: Tensor, has_text: Tensor, has_video: Tensor) -> Tensor:
        """Which clues are given, (3, ...) bool in the order of CLUES: of those that there are the
        ones whose ``chance`` (3, ...) is below ``data.clue_share``, and if none is, the one with
        the lowest."""
        there = torch.stack([torch.full_like(has_video, name in self.config.data.given)
                             for name in CLUES])
        there[1] &= has_text
        there[2] &= has_video
        chance = chance.masked_fill(~there, 2.0)
        return ((chance < self.config.data.clue_share) | (chance == chance.amin(0))) & there

    def clues(self, kind: Tensor, wording: Tensor, clip: Tensor, use: Tensor,
              texts: QueryBank | RecordingBank, bank: ClipBank | RecordingBank) -> Clues:
        """Clues of kinds (B, Q) by the chosen wordings and clips of ``texts`` and ``bank``, those
        of ``use`` (3, B, Q)."""
        tag = F.one_hot(kind, len(self.bank.kinds)).float() * use[0, ..., None]
        text, text_mask = texts.batch(wording)
        clues = Clues(tag, text, text_mask & use[1, ..., None])
        if len(bank.embeddings):
            clues.video, clues.video_mask = bank.batch(torch.where(use[2], clip, -1))
        return clues

    def _keys(self) -> tuple[Tensor, Tensor]:
        """For each kind the clue that stands for it in the taggers: a clip, a wording or its tag.
        """
        every = torch.arange(len(self.bank.kinds), device=self.device)
        wording, clip = (bank.draw(every, self.generator) for bank in (self.texts, self.clips))
        chance = torch.rand(3, len(every), generator=self.generator).to(self.device)
        chance[1] = chance[1].masked_fill(wording < 0, -1.0)
        chance[2] = chance[2].masked_fill(clip < 0, -1.0)
        best = chance.argmax(0)
        return wording.masked_fill(best != 1, -1), clip.masked_fill(best != 2, -1)

    # -- losses

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self.autocast():
            encoded = self.network.encode(batch.mixture)
            if step < self.config.tag_steps:
                return self.tag_terms(encoded, batch)
            output = self.network.extract(encoded, batch.clues, batch.mixture.shape[-1])
        terms = extraction_terms(output, batch.mixture, batch.sources, batch.asked, self.network,
                                 self.config.loss)
        with self.autocast():
            return terms | self.tag_terms(encoded, batch)

    def tag_terms(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of what is heard, and where."""
        loss, model, terms = self.config.loss, self.network.config, {}
        if loss.clip_tags:
            logits = self.network.clues.tag_logits(encoded.frames)
            terms["clip_tags"] = loss.clip_tags * clip_tag_loss(
                self._seen_only(logits), batch.kind).mean()
        if loss.dense_tags:
            logits = self.network.kind_matches(encoded, self.kind_keys(batch))
            frames = encoded.spectrum.shape[-1]
            hop = model.backbone.hop
            # frame k is centred on k · hop: half a hop earlier, it covers its stretch
            sources = F.pad(batch.sources[:, :, None], (hop // 2, 0))
            shares, weight = token_energy_shares(
                sources, model.backbone.bands, frames, hop, model.backbone.n_fft)
            terms["dense_tags"] = loss.dense_tags * dense_tag_loss(
                self._seen_only(logits), batch.kind, shares, weight).mean()
        return terms

    def _seen_only(self, logits: Tensor) -> Tensor:
        return logits.float().masked_fill(~self.seen, -1e4)

    def kind_keys(self, batch: Batch) -> Tensor:
        """(K, D) one clue a kind in the unified space, the mean of its places."""
        network = self.network.clues
        keys = network.tag(torch.eye(len(self.bank.kinds), device=self.device))
        for index, bank, project in ((batch.wording, self.texts, network.project_text),
                                     (batch.clip, self.clips, network.project_video)):
            rows = (index >= 0).nonzero()[:, 0]
            if len(rows):
                values, mask = bank.batch(index[rows])
                values = project(values) * mask[..., None]
                keys = keys.index_copy(
                    0, rows, (values.sum(1) / mask.sum(1)[:, None]).to(keys.dtype))
        return keys

    # -- validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """SNR improvement over fixed mixtures of seen kinds, each sound asked for by all its clues
        and by each one alone; ``score`` is the negative one with all clues."""
        if self._fixed is None:
            config = self.config.validation
            self._fixed = [self._validation_batch(config.batch_size)
                           for _ in range(max(1, config.mixtures // config.batch_size))]
        rows: dict[str, list[Tensor]] = {}
        for batch in tqdm(self._fixed, desc="validation", leave=False):
            with self.autocast():
                encoded = self.network.encode(batch.mixture)
            count = batch.kind.shape[1]
            mixture = batch.mixture.repeat_interleave(count, 0)[:, None]
            target = batch.sources.flatten(0, 1)[:, None]
            given = self.config.data.given
            for name in ("all", *(given if len(given) > 1 else ())):
                clues = batch.clues if name == "all" else batch.clues.only(name)
                if all(value is None for value in vars(clues).values()):
                    continue
                with self.autocast():
                    output = self.network.extract(encoded, clues, batch.mixture.shape[-1])
                audio = output.audio.flatten(0, 1)[:, None].float()
                value = snr_improvement(audio, target, mixture)
                if name in ("text", "video"):
                    mask = batch.clues.text_mask if name == "text" else batch.clues.video_mask
                    value = value[mask.any(-1).flatten()]
                rows.setdefault(f"snri_{name}", []).append(value)
                if name == "all":
                    found = mixture_metrics(output.audio[:, :, None], batch.sources[:, :, None],
                                            batch.mixture[:, None])
                    rows.setdefault("right_source", []).append(found["right_source"])
        result = {name: float(torch.cat(values).nanmean()) for name, values in rows.items()
                  if torch.cat(values).numel()}
        return {"score": -result["snri_all"], **result}

    def _validation_batch(self, size: int) -> Batch:
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        scene: Scene = self.validation_simulator.sample(size, self.config.validation.sources)
        kind = scene.kind
        if self.valid_recorded is None:
            text, clip = self.bank.first[kind], self.valid_clips.draw(kind, generator)
        else:
            text, clip = self.valid_texts.of(scene.recording), self.valid_clips.of(scene.recording)
        everything = self.choose(torch.zeros(3, *kind.shape, device=self.device), text >= 0,
                                 clip >= 0)
        clues = self.clues(kind, text, clip, everything, self.valid_texts, self.valid_clips)
        asked = torch.arange(kind.shape[1], device=self.device).expand(size, -1)
        none = torch.full((len(self.bank.kinds),), -1, device=self.device)
        return Batch(scene.mixture[:, 0], scene.sources[:, :, 0], kind, asked, clues,
                     scene.recording, none, none)

    def describe(self) -> str:
        return "" if self.recorded is None else self.recorded.describe()

    # -- its checkpoint

    def info(self) -> dict[str, Any]:
        """``video``: kinds with video clues in training."""
        return {"kinds": self.train_pool.kinds, "unseen": list(self.config.data.unseen),
                "video": [kind for kind, count in zip(self.bank.kinds, self.clips.count.tolist())
                          if count and kind not in self.config.data.unseen]}


def extraction_terms(output: MultiClueOutput, mixture: Tensor, sources: Tensor, asked: Tensor,
                     network, loss: MultiClueLossConfig) -> dict[str, Tensor]:
    """Weighted terms of the queried sounds: see :class:`Batch` for the shapes."""
    terms: dict[str, Tensor] = {}
    present = asked >= 0
    rows, _ = present.nonzero(as_tuple=True)
    target = sources[rows, asked[present]]
    if len(target):
        heard = mixture[rows]
        if loss.snr:
            terms["snr"] = loss.snr * negative_snr(
                output.audio[present][:, None], target[:, None], heard[:, None]).mean()
        if loss.l1:
            config = network.config.backbone
            terms["l1"] = loss.l1 * complex_l1(
                output.spectrum[present], stft(target, config), stft(heard, config)).mean()
    if loss.absent and not present.all():
        terms["absent"] = loss.absent * absent_queries(
            output.audio, mixture, present).sum() / present.numel()
    if loss.presence:
        terms["presence"] = loss.presence * balanced_presence(output.presence_logits, present)
    return terms


def load_clips(config: MultiClueTrainConfig, model: MultiClueConfig, kinds: list[str], split: str,
               device: torch.device) -> ClipBank:
    """Embedded clips of the pictures of a split, made at the first run and kept beside them."""
    data = config.data
    empty = ClipBank(torch.zeros(0, model.video.frames, model.video.image.embedding),
                     torch.zeros(0, dtype=torch.long), len(kinds), device)
    if not data.pictures:
        return empty
    image = model.video.image
    weights, clips = Path(image.weights).name or image.encoder, data.clips
    if split != "train":
        clips = 1
    path = Path(data.pictures) / f"clips_{split}_{weights}_{clips}x{model.video.frames}.safetensors"
    pictures = read_pictures(data.pictures, split, data.most_pictures)
    count = torch.tensor([len(pictures.get(kind, ())) * clips for kind in kinds])
    kind = torch.arange(len(kinds)).repeat_interleave(count)
    if path.is_file():
        try:
            kept = load_file(path)
        except (SafetensorError, OSError):
            kept = {}
        if torch.equal(kept.get("kind", torch.zeros(0)), kind):
            return ClipBank(kept["embeddings"], kind, len(kinds), device)
    if not len(kind):
        return empty
    encoder = ImageEncoder(image, device)
    bank = ClipBank.build(pictures, kinds, encoder.embed_frames, model.video.frames, clips,
                          image.size, _VALIDATION_SEED)
    embeddings = bank.embeddings.half()  # the same numbers in later runs
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    save_file({"embeddings": embeddings, "kind": kind}, temporary)
    os.replace(temporary, path)
    return ClipBank(embeddings, kind, len(kinds), device)


TASK = MultiClueTask
