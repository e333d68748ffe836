"""Training of TSEL (paper 001): scenes of a microphone array, one of whose sounds is asked for.

The paper trains with the direction alone. The steered network starts from a separator's weights and
is told more: the described sound's share in the energy over time and frequency, and sounds that
aren't there.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from luseel_model.angles import angular_error
from luseel_model.errors import ConfigError
from luseel_model.tsel.config import TselConfig
from luseel_model.tsel.features import spectra
from luseel_model.tsel.network import TselOutput
from luseel_model.tsel.text import text_encoder
from training.arrays.dcase import CHANNELS
from training.arrays.dcase_scenes import DcaseConfig, DcaseScenes, read_splits
from training.arrays.scenes import Scenes
from training.arrays.simulation import ArraySceneConfig, ArraySimulator
from training.captions import Captions
from training.losses import balanced_presence, doa_cross_entropy
from training.losses.emd import circular_emd, printed_emd
from training.pool import ClipPool
from training.queries import QueryBank, ask_for_absent
from training.simulation import SimulationConfig
from training.tasks.base import Task, TrainConfig
from training.tasks.lass import load_separator

_VALIDATION_SEED = 1234
#: Frames of a moving sound this far below its loudest one (dB) have no direction to be found.
_QUIET_DB = -30.0


@dataclass(frozen=True)
class TselDataConfig:
    """``packed``: folder of training.corpus.pack. ``queries`` of a scene's sounds are asked for in
    a step; in ``absent_share`` of the scenes the last of them asks for a sound that isn't there.
    ``moving_share`` of the batches of a network for moving sounds are of sounds that move, in rooms
    of ``path_bank``. ``turn``: scenes are turned and mirrored in all ways that only reorder the
    array's microphones. ``dcase``: recordings in the DCASE generator's layout instead of all that
    is simulated; of the others, ``captions``, ``label_share`` and ``queries`` count then."""

    packed: str = "data/packed"
    captions: bool = True
    label_share: float = 0.3
    queries: int = 1
    absent_share: float = 0.0
    moving_share: float = 0.0
    path_bank: str = "square-path"
    turn: bool = False
    scenes: ArraySceneConfig = ArraySceneConfig()
    simulation: SimulationConfig = SimulationConfig(
        seconds=10.0, snr_db=(0.0, 0.0), rate=None, equaliser_db=0.0, level_db=None,
        swap_ears=0.0, head_size=None)
    dcase: DcaseConfig | None = None

    def __post_init__(self) -> None:
        for name in ("absent_share", "moving_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be within 0 and 1, got {getattr(self, name)}")
        if self.queries < 1:
            raise ConfigError(f"queries must be at least 1, got {self.queries}")


@dataclass(frozen=True)
class TselLossConfig:
    """Weights of the terms; 0 leaves a term out.

    ``kind`` of the ``direction`` loss: 'printed' is equation (8) as the paper prints it (0 to 2),
    'circular' the earth mover's distance on the circle that its text speaks of (in units of 90°, so
    0 to 2 as well), 'cross_entropy' that of :mod:`training.losses.doa`. The others are ours: the
    ``share`` of the sound in the energy, and ``presence``.
    """

    kind: Literal["printed", "circular", "cross_entropy"] = "printed"
    direction: float = 1.0
    variance: float = 5.0
    share: float = 0.0
    presence: float = 0.0


@dataclass(frozen=True)
class TselTrainConfig(TrainConfig):
    """``separator``: checkpoint of the family LASS that the steered network's masks start from, a
    path or a shipped one's name; empty: from nothing.
    """

    separator: str = ""
    data: TselDataConfig = TselDataConfig()
    loss: TselLossConfig = TselLossConfig()

    def check(self, model: TselConfig) -> None:
        super().check(model)
        if model.clap_audio:
            raise ConfigError("clap_audio can't be trained here: its encoder takes seconds a clip; "
                              "switch it off in overrides")
        if model.features != "steered" and (self.separator or self.loss.share
                                            or self.loss.presence):
            raise ConfigError("separator, loss.share and loss.presence need a model with steered "
                              "features")
        if self.data.moving_share and model.output != "frames":
            raise ConfigError("data.moving_share needs a model whose output is 'frames'")
        if self.data.dcase:
            if model.features != "gcc" or model.array.microphones != CHANNELS:
                raise ConfigError(f"data.dcase needs a model with features 'gcc' and {CHANNELS} "
                                  "microphones")
            if self.data.turn or self.data.absent_share:
                raise ConfigError("data.turn and data.absent_share are for simulated scenes: with "
                                  "data.dcase set data.turn=false and data.absent_share=0")
        if not self.loss.direction:
            raise ConfigError("loss.direction must be above 0: there is nothing else to give")

    @property
    def packed(self) -> str:
        return "" if self.data.dcase else self.data.packed


@dataclass
class Batch:
    """B scenes of S sounds with Q queries.

    Attributes:
        audio: (B, M, N).
        azimuth: (B, Q) degrees, or (B, Q, T) of a network for moving sounds; NaN for a sound that
            has no direction or isn't there.
        other: (B, Q), or (B, Q, T): direction of the nearest other sound, NaN for none.
        weight: like ``azimuth``: how much a direction counts.
        kind: (B, S) of the sounds.
        sources: (B, S, N) as the first microphone hears them; None of recordings.
        asked: (B, Q) which sound each query asks for, -1 for one that isn't there.
        wording: (B, Q) index into the wordings of the queries.
    """

    audio: Tensor
    azimuth: Tensor
    other: Tensor
    weight: Tensor
    kind: Tensor
    sources: Tensor | None
    asked: Tensor
    wording: Tensor


class TselTask(Task):
    """See :class:`training.tasks.base.Task`."""

    config_class = TselTrainConfig

    def __init__(self, config: TselTrainConfig, device: torch.device, seed: int):
        super().__init__(config, device, seed)
        data, self.model = config.data, self.network.config
        self.generator = torch.Generator().manual_seed(seed + 1)  # wordings, choice of queries
        self.turns = self.model.array.symmetries() if data.turn else []
        self._fixed: dict[str, list[Batch]] = {}
        self.still = self.moving = self.recorded = None
        if data.dcase:  # another source of scenes, with chance from this generator alone
            splits = read_splits(data.dcase)
            self.recorded, valid = (
                DcaseScenes(splits[split], data.dcase.classes, self.model, device, split)
                for split in ("train", "valid"))
            self._valid: dict[str, ArraySimulator | DcaseScenes] = {"dcase": valid}
            self.kinds = self.recorded.kinds
            self.test_folds = sorted({recording.fold for recording in splits["test"]})
        else:
            self.train_pool = ClipPool.load(data.packed, "train", device)
            self.kinds = self.train_pool.kinds
        captions = Captions.load() if data.captions else None
        encoder = text_encoder(self.model.text, device)
        self.bank = QueryBank(self.kinds, encoder, captions, data.label_share, device)
        del encoder
        if not data.dcase:
            self._make_simulators()

    def _make_simulators(self) -> None:
        data, seed, device = self.config.data, self.seed, self.device

        def simulator(pool: ClipPool, split: str, seed: int, moving: bool,
                      **changes: Any) -> ArraySimulator:
            sounds = data.simulation if split == "train" else data.simulation.plain()
            scenes = dataclasses.replace(data.scenes, **changes)
            if moving:
                scenes = dataclasses.replace(scenes, bank=data.path_bank, additive_share=0.0)
            made = ArraySimulator(pool, sounds, scenes, device, seed, self.bank.confusable, split)
            if made.microphones != self.model.array.microphones:
                raise ConfigError(
                    f"the rooms {scenes.bank} have {made.microphones} microphones, the model's "
                    f"array {self.model.array.name} {self.model.array.microphones}")
            return made

        frames, moving = self.model.output == "frames", data.moving_share
        self.still = simulator(self.train_pool, "train", seed, False) if moving < 1 else None
        self.moving = simulator(self.train_pool, "train", seed + 7, True) if moving else None
        valid = ClipPool.load(data.packed, "valid", device)
        self._valid = {"moving": simulator(valid, "valid", _VALIDATION_SEED, True)} \
            if frames and moving else {
                "two": simulator(valid, "valid", _VALIDATION_SEED, False, additive_share=0.0),
                "additive": simulator(valid, "valid", _VALIDATION_SEED + 1, False,
                                      additive_share=1.0)}

    def start(self) -> None:
        """The separator's weights.

        Raises:
            CheckpointError: there is no such checkpoint.
            ConfigError: it is of another family or size.
        """
        if self.config.separator:
            load_separator(self.network.body.separator, self.config.separator)

    def describe(self) -> str:
        if self.recorded:
            valid = self._valid["dcase"]
            return (f"{len(self.recorded.recordings)} recordings of "
                    f"{self.recorded.seconds / 3600:.2f} h, {len(valid.recordings)} of "
                    f"{valid.seconds / 3600:.2f} h for validation")
        rooms = " and ".join(s.bank.summary() for s in (self.still, self.moving) if s)
        return f"{len(self.train_pool)} recordings; {rooms}"

    # -- batches

    def _scenes(self, simulator: ArraySimulator, size: int, count: int | None) -> Scenes:
        """Simulated scenes of ``count`` sounds, or of any number."""
        frames = self.model.output == "frames"
        if frames and simulator.bank.is_path:
            sounds = simulator.config.n_sources
            if count is None:
                count = sounds[int(torch.randint(len(sounds), (), generator=self.generator))]
            scene = simulator.sample_moving(size, count, self.model.frame_hop)
            azimuth = scene.azimuth
        else:
            scene = simulator.sample(size, count)
            azimuth = scene.azimuth
            if frames:
                steps = len(self.model.frame_times)
                azimuth = azimuth[..., None].expand(-1, -1, steps).clone()
        sources, known = scene.sources[:, :, 0], ~azimuth.isnan()
        weight = known.float()
        if frames:
            weight = weight * self._loudness(sources, azimuth.shape[-1])
        return Scenes(scene.mixture, azimuth, weight, scene.kind,
                      known.all(-1) if frames else known, sources)

    def batch(self, step: int, size: int) -> Batch:
        data = self.config.data
        if self.recorded:
            scenes = self.recorded.draw(size, self.generator)
        else:
            simulator = self.still or self.moving
            if self.still and self.moving and \
                    torch.rand((), generator=self.generator) < data.moving_share:
                simulator = self.moving
            scenes = self._scenes(simulator, size, None)
        kind = scenes.kind
        if self.turns:
            pick = int(torch.randint(len(self.turns), (), generator=self.generator))
            turn, mirrored, order = self.turns[pick]
            scenes.audio = scenes.audio[:, list(order)]
            azimuth = -scenes.azimuth if mirrored else scenes.azimuth
            scenes.azimuth = torch.remainder(turn + azimuth, 360.0)
        # sounds that can't be asked for, or have no direction, come last
        rank = torch.rand(kind.shape, generator=self.generator).to(kind.device)
        asked = (rank + ~scenes.askable).argsort(1)[:, :min(data.queries, kind.shape[1])]
        wanted = kind.gather(1, asked)
        if data.absent_share:
            asked, wanted = ask_for_absent(
                asked, wanted, self.bank.missing(kind), data.absent_share, self.generator)
        return self._batch(scenes, asked, self.bank.draw(wanted, self.generator))

    def _batch(self, scenes: Scenes, asked: Tensor, wording: Tensor) -> Batch:
        azimuth, kind = scenes.azimuth, scenes.kind
        rows = torch.arange(len(kind), device=kind.device)[:, None]
        target = azimuth[rows, asked.clamp(min=0)]
        gone = asked < 0
        target[gone] = torch.nan
        # of the other sounds, the one nearest to the one asked for
        count = kind.shape[1]
        others = azimuth[:, None].expand(-1, asked.shape[1], *azimuth.shape[1:]).clone()
        others[asked[..., None] == torch.arange(count, device=kind.device)] = torch.nan
        apart = angular_error(others, target[:, :, None]).nan_to_num(1e9)
        other = others.gather(2, apart.argmin(2, keepdim=True))[:, :, 0]
        weight = scenes.weight[rows, asked.clamp(min=0)] * ~target.isnan()
        return Batch(scenes.audio, target, other, weight, kind, scenes.sources, asked, wording)

    def _loudness(self, sources: Tensor, frames: int) -> Tensor:
        """(B, S, N) → (B, S, T) bool as float: is the sound there around this frame?"""
        hop = self.model.frame_hop
        square = F.pad(sources.square(), (hop, hop * 2))
        energy = F.avg_pool1d(square, 2 * hop, hop)[..., :frames]
        loud = energy.amax(-1, keepdim=True) * 10 ** (_QUIET_DB / 10)
        return (energy > loud).float()

    # -- losses

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        tokens, mask = self.bank.batch(batch.wording)
        with self.autocast():
            output = self.network(batch.audio, tokens, mask)
        terms = {"direction": self.config.loss.direction * self.direction(output.logits, batch)}
        return terms | self.told(output, batch)

    def direction(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of the directions, weighted."""
        config = self.config.loss
        azimuth = batch.azimuth.nan_to_num(0.0)
        if config.kind == "printed":
            loss = printed_emd(logits, azimuth, config.variance)
        elif config.kind == "circular":
            loss = circular_emd(logits, azimuth, config.variance) / 90.0
        else:
            loss = doa_cross_entropy(logits, azimuth, config.variance)
        return (loss * batch.weight).sum() / batch.weight.sum().clamp(min=1.0)

    def _power(self, signals: Tensor) -> Tensor:
        """(B, S, N) → (B, S, R, T) in the separator's bands."""
        network = self.network.body.separator
        stft = network.config.stft
        power = spectra(signals, stft.n_fft, stft.hop).abs().square()[:, :, :stft.bins]
        return network.band_up.t() @ power if network.config.separator.bands else power

    def told(self, output: TselOutput, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms that say what the sound asked for is."""
        config, terms = self.config.loss, {}
        if config.share:
            with torch.no_grad():
                parts, whole = self._power(batch.sources), self._power(batch.audio[:, :1])
                # noise is what the sounds leave over; the first microphone may have been reordered
                total = torch.maximum(parts.sum(1, keepdim=True), whole)
                rows = torch.arange(len(parts), device=parts.device)[:, None]
                share = parts[rows, batch.asked.clamp(min=0)] / (total + 1e-12)
                share = share * (batch.asked >= 0)[..., None, None]
                weight = total ** 0.3
                weight = weight / weight.mean((-2, -1), keepdim=True).clamp(min=1e-12)
            loss = F.binary_cross_entropy_with_logits(
                output.share.float(), share.clamp(0, 1), reduction="none")
            terms["share"] = config.share * (loss * weight).mean()
        if config.presence:
            terms["presence"] = config.presence * balanced_presence(
                output.presence.flatten(), (batch.asked >= 0).flatten())
        return terms

    # -- validation

    def fixed_batch(self, simulator: ArraySimulator, size: int, sources: int) -> Batch:
        """Scenes whose sounds that have a direction are asked for by their labels."""
        scenes = self._scenes(simulator, size, sources)
        queries = 1 if bool(scenes.azimuth.isnan().any()) else sources
        asked = torch.arange(queries, device=scenes.kind.device).expand(size, -1)
        return self._batch(scenes, asked, self.bank.first[scenes.kind[:, :queries]])

    def _fixed_batches(self, source: ArraySimulator | DcaseScenes) -> list[Batch]:
        config = self.config.validation
        if isinstance(source, DcaseScenes):
            return [self._batch(scenes, asked, self.bank.first[scenes.kind.gather(1, asked)])
                    for scenes, asked, _ in source.fixed(config.mixtures, config.batch_size)]
        return [self.fixed_batch(source, config.batch_size, config.sources)
                for _ in range(max(1, config.mixtures // config.batch_size))]

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Of each query, (B·Q,): the mean absolute error in degrees (equation 9), and whether the
        answer is nearer to the sound asked for than to another one."""
        tokens, mask = self.bank.batch(batch.wording)
        with self.autocast():
            logits = self.network(batch.audio, tokens, mask).logits
        answer = logits.float().argmax(-1).float()
        error = angular_error(answer, batch.azimuth.nan_to_num(0.0))
        missed = angular_error(answer, batch.other.nan_to_num(0.0)).masked_fill(
            batch.other.isnan(), 1e9)
        right = (error < missed).float()
        if error.dim() == 3:
            mass = batch.weight.sum(-1).clamp(min=1e-9)
            error, right = ((v * batch.weight).sum(-1) / mass for v in (error, right))
        return {"mae": error.flatten(), "right": right.flatten()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Over fixed scenes of the valid split, by labels. ``score`` is the mean absolute error of
        recordings or of moving sounds where the network is trained on these; else the geometric
        mean of those of two directional sounds and of one with an additive sound, which differ by
        much."""
        result: dict[str, float] = {}
        for name, source in self._valid.items():
            if name not in self._fixed:
                self._fixed[name] = self._fixed_batches(source)
            rows = [self.measure(batch)
                    for batch in tqdm(self._fixed[name], desc=name, leave=False)]
            for key in ("mae", "right"):
                result[f"{name}_{key}"] = float(torch.cat([row[key] for row in rows]).mean())
        maes = [value for key, value in result.items() if key.endswith("_mae")]
        return {"score": math.prod(maes) ** (1 / len(maes)), **result}

    # -- state

    def state_dict(self) -> dict[str, Any]:
        simulators = {name: s.state_dict() for name, s in
                      (("still", self.still), ("moving", self.moving)) if s}
        return {"generator": self.generator.get_state(), **simulators}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
        for name, simulator in (("still", self.still), ("moving", self.moving)):
            if simulator:
                simulator.load_state_dict(state[name])

    def info(self) -> dict[str, Any]:
        data = self.config.data
        if data.dcase:
            return {"kinds": self.kinds, "audio_format": data.dcase.audio_format,
                    "test_folds": self.test_folds}
        return {"kinds": self.kinds, "rooms": data.scenes.bank}


TASK = TselTask
