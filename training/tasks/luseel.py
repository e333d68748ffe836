"""Training of LuSeeL (paper 000) and of its baseline MLP-GCC.

A step's order: simulate scenes, draw wordings, forward, objective. Two first stages may go before,
that train what names sounds alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from luseel_model.errors import ConfigError
from luseel_model.features import stft
from luseel_model.luseel import LuSeeL, LuSeeLConfig
from luseel_model.luseel.head_search import PreparedHead
from luseel_model.luseel.network import LuSeeLOutput, spectrum_level
from luseel_model.text import TextEncoder
from training.captions import Captions
from training.heads import load_head
from training.metrics import mixture_metrics
from training.mlp_gcc import MLPGCC
from training.objective import LossConfig, Objective
from training.pool import ClipPool
from training.queries import QueryBank, ask_for_absent
from training.simulation import BinauralSimulator, Scene, SimulationConfig
from training.tasks.base import Task
from training.train_config import TaggedTrainConfig

NETWORKS = {"luseel": LuSeeL, "mlp-gcc": MLPGCC}
_VALIDATION_SEED = 1234
_TOKENS = 16  # of a query of noise: about a caption's length


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """``packed``: folder of training.corpus.pack (``luseel-train`` makes the generated toy corpus
    in ``data/toy`` by itself); ``heads``: names or SOFA files.

    ``queries`` of a mixture's sources are asked for in a step (0: all of them); in
    ``absent_share`` of the mixtures the last of them asks for a sound that isn't there.
    ``other_head``: share of batches whose search (luseel_model/luseel/head_search.py) is given the
    responses of another head than the one that heard them. ``anchor_only`` asks for the sound that
    the others' levels were set against (paper, section 3.1). ``ears``: 'left' lets both inputs hear
    the left ear. ``validation_too``: the validation recordings are trained on as well, for a last
    run whose recipe is settled; its validation figures then say nothing.
    """

    packed: str = "data/packed"
    validation_too: bool = False
    heads: tuple[str, ...] = ("mit_kemar",)
    captions: bool = True
    label_share: float = 0.3
    queries: int = 0
    absent_share: float = 0.0
    other_head: float = 0.0
    anchor_only: bool = False
    ears: Literal["both", "left"] = "both"
    simulation: SimulationConfig = dataclasses.field(default_factory=SimulationConfig)


@dataclasses.dataclass(frozen=True)
class LuSeeLTrainConfig(TaggedTrainConfig):
    """The first ``tag_steps`` train encoder and tagger; ``candidate_steps``: first steps that train
    the tagger of the search's candidates alone, with the same size of batches. ``network``:
    'mlp-gcc' is the paper's baseline (mlp_gcc.py)."""

    network: Literal["luseel", "mlp-gcc"] = "luseel"
    candidate_steps: int = 0
    tag_batch_size: int = 24
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        for name in ("absent_share", "other_head"):
            if not 0 <= getattr(self.data, name) <= 1:
                raise ConfigError(f"data.{name} must be within 0 and 1, got "
                                  f"{getattr(self.data, name)}")

    @property
    def first_steps(self) -> int:
        """Steps before anything is extracted."""
        return max(self.tag_steps, self.candidate_steps)

    def check(self, model: LuSeeLConfig) -> None:
        """A :class:`ConfigError` where the run and its model contradict each other."""
        super().check(model)
        loss = self.loss
        loss.check_tags(self.tag_steps, model.tagging.width, "tagging.width")
        if (self.candidate_steps or loss.candidate_tags or loss.tagged_candidates or loss.selection
                or loss.trust or loss.masked) and not model.head_search.azimuths:
            raise ConfigError("candidate_steps and loss.candidate_tags, tagged_candidates, "
                              "selection, trust and masked need a model with head_search.azimuths")
        if self.candidate_steps and not (loss.candidate_tags or loss.tagged_candidates):
            raise ConfigError("candidate_steps need a weight in loss.candidate_tags or "
                              "tagged_candidates")
        if self.data.ears == "left" and model.use_localization:
            raise ConfigError("data.ears 'left' leaves no direction to learn: switch "
                              "use_localization off")
        if self.network == "mlp-gcc":
            if self.tag_steps or loss.tagging or model.head_search.azimuths or not loss.doa:
                raise ConfigError("the network mlp-gcc has no audio encoder: it needs a weight in "
                                  "loss.doa, and none in loss.dense_tags, clip_tags and presence, "
                                  "no tag_steps and no head_search")
            if loss.si_snr or loss.spectrum or loss.magnitude or loss.polarity or loss.absent:
                raise ConfigError("the network mlp-gcc extracts nothing: leave loss.si_snr, "
                                  "spectrum, magnitude, polarity and absent out")
        if not (loss.si_snr or loss.spectrum or loss.magnitude or
                (model.use_localization and (loss.doa or loss.doa_tokens))):
            raise ConfigError("loss has no weight above 0 for the extraction or its direction")


class LuSeeLTask(Task):
    """See :class:`training.tasks.base.Task`."""

    config_class = LuSeeLTrainConfig
    score = "loss"

    def __init__(self, config: LuSeeLTrainConfig, device: torch.device, seed: int):
        super().__init__(config, device, seed)
        data = config.data
        self.hrirs = [load_head(name) for name in data.heads]
        self.heads: list[PreparedHead] | None = None
        self.objective = Objective(config.loss, self.network).to(device)
        self.train_pool = ClipPool.load(data.packed, "train", device)
        valid_pool = ClipPool.load(data.packed, "valid", device)
        if data.validation_too:
            self.train_pool = self.train_pool.joined(valid_pool)
        encoder = TextEncoder(self.network.config.text, device)
        captions = Captions.load() if data.captions else None
        self.bank = QueryBank(self.train_pool.kinds, encoder, captions, data.label_share, device)
        self.simulator = BinauralSimulator(
            self.train_pool, self.hrirs, data.simulation, device, seed, self.bank.confusable)
        self.validation_simulator = BinauralSimulator(
            valid_pool, self.hrirs[:1], data.simulation.plain(), device, _VALIDATION_SEED,
            self.bank.confusable, split="valid")
        self.generator = torch.Generator().manual_seed(seed + 1)  # wordings, query choice
        self._scenes: list[Scene] | None = None

    # -- before a run

    @classmethod
    def build_network(cls, config: LuSeeLTrainConfig) -> nn.Module:
        return NETWORKS[config.network](config.model_config())

    @classmethod
    def noise_losses(cls, config: LuSeeLTrainConfig, network: nn.Module, scenes: int
                     ) -> dict[str, Tensor]:
        model = network.config
        objective = Objective(config.loss, network)
        sources = max(config.data.simulation.n_sources)
        queries = 1 if config.data.anchor_only else min(config.data.queries or sources, sources)
        mixture = torch.randn(scenes, model.audio_channels, model.window_samples) * 0.1
        target = torch.randn(scenes, queries, *mixture.shape[1:]) * 0.1
        tokens = torch.randn(scenes, queries, _TOKENS, model.text.embedding)
        mask = torch.ones(scenes, queries, _TOKENS, dtype=torch.bool)
        heads = index = None
        if model.head_search.azimuths:
            search, head = network.head_search, load_head("mit_kemar")  # all are of a size
            search.set_head(head.hrir)
            heads = [search.prepare(search.spectra(head.hrir))]
            index = torch.zeros(scenes, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            output = network(mixture, tokens, mask, heads, index)
        return objective.extraction(
            network, output, mixture, target, torch.rand(scenes, queries) * 360)

    def ready(self) -> None:
        if self.network.config.head_search.azimuths:
            search = self.network.head_search
            search.set_head(self.hrirs[0].hrir)
            both = [hrir for head in self.hrirs for hrir in (head.hrir, mirrored(head.hrir))]
            self.heads = [search.prepare(search.spectra(hrir)).to(self.device) for hrir in both]

    def describe(self) -> str:
        return f"{len(self.train_pool)} recordings of {len(self.train_pool.kinds)} kinds"

    # -- one step

    def batch(self, step: int, size: int) -> Scene:
        return self._heard(self.simulator.sample(size))

    def losses(self, batch: Scene, step: int) -> dict[str, Tensor]:
        scene, generator, data = batch, self.generator, self.config.data
        tagging = bool(self.network.config.tagging.width)
        sentences = self.bank.all_sentences(generator) if tagging else None
        heads, index = self.heads, None
        if heads is not None:
            index = 2 * scene.head.cpu() + scene.swap.cpu()
            if torch.rand((), generator=generator) < data.other_head:
                index = (index + 2) % len(heads)
        if step < self.config.candidate_steps:
            output = self._candidates(scene, heads, index, generator)
            return self.objective.candidates(
                self.network, output, sentences, scene.sources, scene.kind, self.bank.confusable)
        if step < self.config.tag_steps:
            with self.autocast():
                encoded = self.network.encode(scene.mixture, heads, index)
            return self.objective.tags(
                self.network, encoded.tag_tokens, sentences, scene.sources, scene.kind,
                self.bank.confusable, encoded.candidate_tags) | self.objective.candidates(
                self.network, encoded, sentences, scene.sources, scene.kind, self.bank.confusable)
        sources, azimuth, kind = scene.sources, scene.azimuth, scene.kind
        size, count = kind.shape
        wanted = min(data.queries or count, count)
        asked = torch.rand(kind.shape, generator=generator).argsort(1)[:, :wanted]
        asked = (torch.zeros_like(asked[:, :1]) if data.anchor_only else asked).to(
            kind.device)
        rows = torch.arange(size, device=kind.device)[:, None]
        sources, azimuth, kind = (x[rows, asked] for x in (sources, azimuth, kind))
        present = None
        if data.absent_share:
            asked, kind = ask_for_absent(
                asked, kind, self.bank.missing(scene.kind), data.absent_share, generator)
            present = asked >= 0
        tokens, mask = self.bank.batch(self.bank.draw(kind, generator))
        with self.autocast():
            output = self.network(scene.mixture, tokens, mask, heads, index)
        terms = self.objective.extraction(
            self.network, output, scene.mixture, sources, azimuth, present)
        if tagging:
            terms |= self.objective.tags(
                self.network, output.tag_tokens, sentences, scene.sources, scene.kind,
                self.bank.confusable, output.candidate_tags)
            terms |= self.objective.candidates(
                self.network, output, sentences, scene.sources, scene.kind, self.bank.confusable,
                asked)
        return terms

    def _candidates(self, scene: Scene, heads, index, generator: torch.Generator) -> LuSeeLOutput:
        """The candidates and their tags alone; half of the batches see the true sounds instead,
        as a perfect search would give them."""
        size = self.network.config.stft
        spectrum = stft(scene.mixture, size.n_fft, size.hop)
        _, level = spectrum_level(spectrum)
        images = None
        if torch.rand((), generator=generator) < 0.5 and scene.sources.shape[1] >= 2:
            images = stft(scene.sources[:, :2], size.n_fft, size.hop) / level[..., None]
        with self.autocast():
            found, tags, _ = self.network.search(spectrum / level, heads, index, images)
        return LuSeeLOutput(audio=scene.mixture, candidates=found, candidate_tags=tags)

    def _heard(self, scene: Scene) -> Scene:
        """What the network hears of a scene: both ears, or the left one, or that one twice."""
        ears = list(range(self.network.config.audio_channels))
        if self.config.data.ears == "left":
            ears = [0] * len(ears)
        return dataclasses.replace(
            scene, mixture=scene.mixture[:, ears], sources=scene.sources[:, :, ears])

    # -- validation

    def validate(self) -> dict[str, float]:
        """Means over the fixed validation scenes, queries by the bare labels."""
        config = self.config.validation
        if self._scenes is None:
            batches = max(1, config.mixtures // config.batch_size)
            self._scenes = [
                self._heard(self.validation_simulator.sample(config.batch_size, config.sources))
                for _ in range(batches)]
        rows: list[dict[str, Tensor]] = []
        losses = []
        for scene in tqdm(self._scenes, desc="validation", leave=False):
            tokens, mask = self.bank.batch(self.bank.first[scene.kind])
            with self.autocast():
                output = self.network(scene.mixture, tokens, mask)
            terms = self.objective.extraction(
                self.network, output, scene.mixture, scene.sources, scene.azimuth)
            losses.append(torch.stack(list(terms.values())).sum())
            azimuth = None
            if output.doa_logits is not None:
                azimuth = output.doa_logits.argmax(-1).float()
            rows.append(mixture_metrics(
                output.audio, scene.sources, scene.mixture, azimuth, scene.azimuth))
        result = {key: float(torch.cat([row[key] for row in rows]).float().mean())
                  for key in rows[0]}
        return {"loss": float(torch.stack(losses).mean()), **result}

    # -- its checkpoint

    def info(self) -> dict[str, Any]:
        return {"kinds": self.train_pool.kinds, "network": self.config.network,
                "ears": self.config.data.ears}


def mirrored(hrir: Tensor) -> Tensor:
    """(360, 2, taps) → the same head with its ears swapped, left for right."""
    return hrir.flip(0).roll(1, 0).flip(1)


TASK = LuSeeLTask
