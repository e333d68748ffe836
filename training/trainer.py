"""The trainer: one YAML in, checkpoints, CSV and TensorBoard logs out; resumes exactly.

The order of a step: simulate scenes, draw wordings, forward, objective, update, average weights.
All random numbers come from generators whose state is saved, so that a run that was interrupted
and resumed equals an uninterrupted one. Several processes may share a run (distributed.py).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal, Sequence

import torch
import yaml
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from luseel_model.checkpoint import read_checkpoint, save_checkpoint
from luseel_model.config import build_config, find_config, read_yaml, to_dict
from luseel_model.errors import CheckpointError, ConfigError
from luseel_model.families import load_config
from luseel_model.features import stft
from luseel_model.luseel.head_search import PreparedHead
from luseel_model.luseel import LuSeeL, LuSeeLConfig
from luseel_model.luseel.network import LuSeeLOutput, spectrum_level
from luseel_model.text import TextEncoder
from training import SAMPLE_RATE
from training.captions import Captions
from training.distributed import Processes
from training.heads import load_head
from training.metrics import batch_metrics
from training.mlp_gcc import MLPGCC
from training.objective import LossConfig, Objective
from training.pool import ClipPool
from training.queries import QueryBank
from training.simulation import BinauralSimulator, Scene, SimulationConfig

CONFIG_FOLDER = Path(__file__).parent / "configs"
NETWORKS = {"luseel": LuSeeL, "mlp-gcc": MLPGCC}
_SEED_STRIDE = 1_000_003  # between the seeds of processes that share a run


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """``packed``: folder of training.corpus.pack (``luseel-train`` makes the generated toy corpus
    in ``data/toy`` by itself); ``heads``: names or SOFA files.

    ``queries`` of a mixture's sources are asked for in a step (0: all of them); in
    ``absent_share`` of the mixtures the last of them asks for a sound that isn't there.
    ``other_head``: share of batches whose search (luseel_model/head_search.py) is given the
    responses of another head than the one that heard them. ``anchor_only`` asks for the sound that
    the others' levels were set against (paper, section 3.1). ``ears``: 'left' lets both inputs hear
    the left ear.
    """

    packed: str = "data/packed"
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
class OptimizerConfig:
    """AdamW. ``schedule``: 'plateau' halves the rate after ``patience`` validations without
    improvement (paper); 'decay' holds it and falls linearly to 2% over the last ``decay_steps``.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 5000
    schedule: Literal["plateau", "decay"] = "plateau"
    patience: int = 6
    decay_steps: int = 0
    clip_norm: float = 5.0
    average: float = 0.0  # decay of the moving average of weights that is validated and saved


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """``every`` steps (the paper's epoch), ``mixtures`` fixed scenes of the valid split."""

    every: int = 500
    mixtures: int = 128
    sources: int = 2
    stop_patience: int = 10
    batch_size: int = 8


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. ``tag_steps``: first steps that train encoder and tagger alone, with
    batches of ``tag_batch_size`` scenes of ``tag_sources`` sounds; ``candidate_steps``: first steps
    that train the tagger of the search's candidates alone, with batches of that size. Batches are
    those of all processes together. ``train_only``: parts of the network (its attributes) to train,
    the others stay as they are (none: all are trained). ``network``: 'mlp-gcc' is the paper's
    baseline (mlp_gcc.py)."""

    name: str
    model: str
    steps: int
    network: Literal["luseel", "mlp-gcc"] = "luseel"
    batch_size: int = 8
    tag_steps: int = 0
    candidate_steps: int = 0
    tag_batch_size: int = 24
    tag_sources: tuple[int, ...] = (1, 2)
    train_only: tuple[str, ...] = ()
    seed: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 20
    save_every: int = 200
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, model: LuSeeLConfig) -> None:
        """A :class:`ConfigError` where the run and its model contradict each other."""
        loss = self.loss
        if model.sample_rate != SAMPLE_RATE:
            raise ConfigError(f"the model's sample_rate is {model.sample_rate}, but recordings and "
                              f"heads are packed at {SAMPLE_RATE} Hz: make it {SAMPLE_RATE}")
        tagging = loss.dense_tags or loss.clip_tags or loss.presence
        if (tagging or self.tag_steps) and not model.tagging.width:
            raise ConfigError("loss.dense_tags, clip_tags and presence and tag_steps need a model "
                              "with tagging.width")
        if (self.candidate_steps or loss.candidate_tags or loss.selection or loss.trust
                or loss.masked) and not model.head_search.azimuths:
            raise ConfigError("candidate_steps and loss.candidate_tags, selection, trust and "
                              "masked need a model with head_search.azimuths")
        if self.candidate_steps and not loss.candidate_tags:
            raise ConfigError("candidate_steps need a weight in loss.candidate_tags")
        if self.tag_steps and not tagging:
            raise ConfigError("tag_steps need a weight in loss.dense_tags, clip_tags or presence")
        if self.data.ears == "left" and model.use_localization:
            raise ConfigError("data.ears 'left' leaves no direction to learn: switch "
                              "use_localization off")
        if self.network == "mlp-gcc":
            if self.tag_steps or tagging or model.head_search.azimuths or not loss.doa:
                raise ConfigError("the network mlp-gcc has no audio encoder: it needs a weight in "
                                  "loss.doa, and none in loss.dense_tags, clip_tags and presence, "
                                  "no tag_steps and no head_search")
            if loss.si_snr or loss.spectrum or loss.magnitude or loss.polarity or loss.absent:
                raise ConfigError("the network mlp-gcc extracts nothing: leave loss.si_snr, "
                                  "spectrum, magnitude, polarity and absent out")
        if not (loss.si_snr or loss.spectrum or loss.magnitude or
                (model.use_localization and (loss.doa or loss.doa_tokens))):
            raise ConfigError("loss has no weight above 0 for the extraction or its direction")

    def __post_init__(self) -> None:
        for name in ("absent_share", "other_head"):
            if not 0 <= getattr(self.data, name) <= 1:
                raise ConfigError(f"data.{name} must be within 0 and 1, got "
                                  f"{getattr(self.data, name)}")

    @property
    def first_steps(self) -> int:
        """Steps before anything is extracted."""
        return max(self.tag_steps, self.candidate_steps)

    def model_config(self) -> LuSeeLConfig:
        """The model's configuration with ``overrides`` (nested mapping) applied."""
        return build_config(LuSeeLConfig, _merged(to_dict(load_config(self.model)), self.overrides))


def _merged(base: dict, change: dict) -> dict:
    """Nested mappings, ``change`` on top."""
    return {**base, **{key: _merged(base[key], value) if isinstance(value, dict)
                       and isinstance(base.get(key), dict) else value
                       for key, value in change.items()}}


def _read_with_base(name_or_path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration on top of the one that its ``base`` names: a name in training/configs, or a
    YAML file, from the folder of the file that names it."""
    path = find_config(name_or_path, CONFIG_FOLDER, "training")
    if path in above:
        raise ConfigError(f"{path}: base leads back to the same file")
    data = read_yaml(path)
    base = data.pop("base", None)
    if base is None:
        return data
    if Path(str(base)).suffix:
        base = path.parent / str(base)
    return _merged(_read_with_base(str(base), (*above, path)), data)


def load_train_config(name_or_path: str | Path, changes: list[str] | None = None) -> TrainConfig:
    """A training configuration by name or path; ``changes`` like ``optimizer.patience=3``."""
    data = _read_with_base(name_or_path)
    for change in changes or []:
        key, separator, value = change.partition("=")
        if not separator:
            raise ConfigError(f"{change!r}: expected key=value")
        *parents, last = key.strip().split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{change!r}: {parent} has no keys")
        place[last] = yaml.safe_load(value)
    return build_config(TrainConfig, data)


class Trainer:
    """Trains one network.

    Args:
        config: the run.
        out: folder for ``best.safetensors``, ``last.safetensors``, ``resume.pt``, ``log.csv``,
            ``validation.csv`` and TensorBoard files. A ``resume.pt`` in it is resumed.
        device: 'cpu', 'cuda', ...; default: CUDA where there is one.
        init: checkpoint whose weights start the run (fine-tuning).
        processes: those that share the run; the first one logs, validates and saves.
    """

    def __init__(self, config: TrainConfig, out: str | Path, device: str | None = None,
                 init: str | Path | None = None, processes: Processes = Processes()):
        self.config, self.out, self.processes = config, Path(out), processes
        self.device = processes.device(device)
        self.batch_size = processes.share(config.batch_size, "batch_size")
        self.first_batch_size = processes.share(config.tag_batch_size, "tag_batch_size") \
            if config.first_steps else 0
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.network = NETWORKS[config.network](config.model_config())
        if init is not None:
            try:
                self.network.load_state_dict(
                    grown_state(self.network.state_dict(), read_checkpoint(init)[1]))
            except (RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"the weights of {init} don't fit the model {config.model}: {error}") from None
        config.check(self.network.config)
        heads = [load_head(name) for name in config.data.heads]
        self.heads: list[PreparedHead] | None = None
        if self.network.config.head_search.azimuths:
            search = self.network.head_search
            search.set_head(heads[0].hrir)
            both = [hrir for head in heads for hrir in (head.hrir, mirrored(head.hrir))]
            self.heads = [search.prepare(search.spectra(hrir)).to(self.device) for hrir in both]
        self.network.to(self.device)
        self._freeze(config.train_only)
        self.objective = Objective(config.loss, self.network).to(self.device)
        self._step_losses = processes.wrap(_Losses(self))
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        decay, plain = [], []
        for parameter in filter(lambda p: p.requires_grad, self.network.parameters()):
            (decay if parameter.dim() > 1 else plain).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": config.optimizer.weight_decay},
             {"params": plain, "weight_decay": 0.0}],
            lr=config.optimizer.learning_rate, betas=(0.9, 0.98))

        data = config.data
        self.train_pool = ClipPool.load(data.packed, "train", self.device)
        valid_pool = ClipPool.load(data.packed, "valid", self.device)
        encoder = TextEncoder(self.network.config.text, self.device)
        self.captions = Captions.load() if data.captions else None
        self.bank = QueryBank(self.train_pool.kinds, encoder, self.captions, data.label_share,
                              self.device)
        del encoder
        if data.simulation.seconds != self.network.config.window:
            raise ConfigError(
                f"data.simulation.seconds is {data.simulation.seconds}, but the model's window is "
                f"{self.network.config.window}: make them equal")
        # every process makes scenes of its own
        seed = config.seed + _SEED_STRIDE * processes.rank
        if processes.rank:
            torch.manual_seed(seed)
        self.simulator = BinauralSimulator(
            self.train_pool, heads, data.simulation, self.device, seed, self.bank.confusable)
        plain_simulation = data.simulation.plain()
        self.validation_simulator = BinauralSimulator(
            valid_pool, heads[:1], plain_simulation, self.device, 1234, self.bank.confusable,
            split="valid")
        self.generator = torch.Generator().manual_seed(seed + 1)  # wordings, query choice

        self.step, self.best, self.best_step, self.stale, self.rate_factor = 0, math.inf, 0, 0, 1.0
        self.elapsed = 0.0  # seconds of training and validation, of all runs into this folder
        self._scenes: list[Scene] | None = None
        self._seconds, self._scenes_done = {"simulation": 0.0, "network": 0.0}, 0
        if (self.out / "resume.pt").exists():
            self._resume()
        if processes.is_first:
            (self.out / "config.json").write_text(json.dumps(to_dict(config), indent=1))

    def _freeze(self, kept: Sequence[str]) -> None:
        parts = dict(self.network.named_children()) | dict(self.network.named_parameters())
        if unknown := sorted(set(kept) - set(parts)):
            raise ConfigError(f"train_only: the network has no {', '.join(unknown)}")
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not kept or name in kept or name.split(".")[0] in kept)

    def _train_mode(self) -> None:
        """Training mode; what is frozen behaves as in use: no dropout, no new statistics."""
        self.network.train()
        if kept := self.config.train_only:
            for name, part in self.network.named_children():
                part.train(name in kept)

    # -- state

    def _resume(self) -> None:
        path = self.out / "resume.pt"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.average = state["average"]
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} doesn't fit this run ({error}): train into another folder, or delete it "
                "to start over") from error
        for name in ("step", "best", "best_step", "stale", "rate_factor"):
            setattr(self, name, state[name])
        self.elapsed = state.get("elapsed", 0.0)
        others = state.get("others", [])
        if len(others) + 1 != self.processes.size:
            raise CheckpointError(
                f"{path} was saved by {len(others) + 1} processes: go on with as many, or start "
                f"another run from its weights with --init {self.out / 'last.safetensors'}")
        self._set_chance(others[self.processes.rank - 1] if self.processes.rank else state)
        if self.processes.is_first:  # what was logged after the save happens again
            for name in ("log.csv", "validation.csv"):
                _truncate_csv(self.out / name, self.step)

    def _chance(self) -> dict[str, Any]:
        """State of all that is random in this process."""
        state = {"simulator": self.simulator.state_dict(), "generator": self.generator.get_state(),
                 "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def _set_chance(self, state: dict[str, Any]) -> None:
        self.simulator.load_state_dict(state["simulator"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu())

    def save_resume(self) -> None:
        """Write everything that an exact resumption needs, atomically."""
        chance, *others = self.processes.gather(self._chance())
        if not self.processes.is_first:
            return
        state = {
            "network": self.network.state_dict(), "average": self.average,
            "optimizer": self.optimizer.state_dict(), **chance, "others": others,
            **{n: getattr(self, n) for n in ("step", "best", "best_step", "stale", "rate_factor",
                                             "elapsed")},
        }
        temporary = self.out / "resume.pt.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / "resume.pt")

    def save_network(self, name: str, **info: Any) -> None:
        if not self.processes.is_first:
            return
        info = {"training": self.config.name, "step": self.step, "kinds": self.train_pool.kinds,
                "network": self.config.network, "ears": self.config.data.ears,
                "training_seconds": round(self.elapsed, 3), **info}
        save_checkpoint(self.out / name, self._evaluated_state(), self.network.config, info)

    def _evaluated_state(self) -> dict[str, Tensor]:
        return self.average if self.config.optimizer.average else self.network.state_dict()

    # -- one step

    def learning_rate(self, step: int) -> float:
        """Rate of step ``step`` (from 0)."""
        config = self.config.optimizer
        rate = config.learning_rate * self.rate_factor
        rate *= min(1.0, (step + 1) / max(1, config.warmup_steps))
        if config.schedule == "decay" and config.decay_steps:
            left = self.config.steps - step
            rate *= max(0.02, min(1.0, left / config.decay_steps))
        return rate

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16,
                              enabled=self.config.precision == "bfloat16")

    def losses(self, scene: Scene, bank_generator: torch.Generator) -> dict[str, Tensor]:
        """Terms of the objective for one batch."""
        tagging = bool(self.network.config.tagging.width)
        sentences = self.bank.all_sentences(bank_generator) if tagging else None
        heads, index = self.heads, None
        if heads is not None:
            index = 2 * scene.head.cpu() + scene.swap.cpu()
            if torch.rand((), generator=bank_generator) < self.config.data.other_head:
                index = (index + 2) % len(heads)
        if self.step < self.config.candidate_steps:
            output = self._candidates(scene, heads, index, bank_generator)
            return self.objective.candidates(
                self.network, output, sentences, scene.sources, scene.kind)
        if self.step < self.config.tag_steps:
            with self._autocast():
                encoded = self.network.encode(scene.mixture, heads, index)
            return self.objective.tags(
                self.network, encoded.tag_tokens, sentences, scene.sources, scene.kind,
                self.bank.confusable, encoded.candidate_tags) | self.objective.candidates(
                self.network, encoded, sentences, scene.sources, scene.kind)
        sources, azimuth, kind = scene.sources, scene.azimuth, scene.kind
        batch, count = kind.shape
        wanted = min(self.config.data.queries or count, count)
        asked = torch.rand(kind.shape, generator=bank_generator).argsort(1)[:, :wanted]
        asked = (torch.zeros_like(asked[:, :1]) if self.config.data.anchor_only else asked).to(
            kind.device)
        rows = torch.arange(batch, device=kind.device)[:, None]
        sources, azimuth, kind = (x[rows, asked] for x in (sources, azimuth, kind))
        present = None
        if self.config.data.absent_share:
            absent = torch.rand(batch, generator=bank_generator) < self.config.data.absent_share
            absent = absent.to(kind.device)
            free = (~self.bank.confusable[scene.kind].any(1)).float().cpu()  # B K
            absent &= (free.sum(1) > 0).to(absent.device)  # a small corpus may have nothing else
            other = torch.multinomial(free + 1e-9, 1, generator=bank_generator)[:, 0]
            kind = torch.cat([kind[:, :-1], torch.where(
                absent, other.to(kind.device), kind[:, -1])[:, None]], 1)
            asked = torch.cat([asked[:, :-1], asked[:, -1:].masked_fill(absent[:, None], -1)], 1)
            present = asked >= 0
        tokens, mask = self.bank.batch(self.bank.draw(kind, bank_generator))
        with self._autocast():
            output = self.network(scene.mixture, tokens, mask, heads, index)
        terms = self.objective.extraction(
            self.network, output, scene.mixture, sources, azimuth, present)
        if tagging:
            terms |= self.objective.tags(
                self.network, output.tag_tokens, sentences, scene.sources, scene.kind,
                self.bank.confusable, output.candidate_tags)
            terms |= self.objective.candidates(
                self.network, output, sentences, scene.sources, scene.kind, asked)
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
        with self._autocast():
            found, tags, _ = self.network.search(spectrum / level, heads, index, images)
        return LuSeeLOutput(audio=scene.mixture, candidates=found, candidate_tags=tags)

    def _heard(self, scene: Scene) -> Scene:
        """What the network hears of a scene: both ears, or the left one, or that one twice."""
        ears = list(range(self.network.config.audio_channels))
        if self.config.data.ears == "left":
            ears = [0] * len(ears)
        return dataclasses.replace(
            scene, mixture=scene.mixture[:, ears], sources=scene.sources[:, :, ears])

    def train_step(self) -> dict[str, Tensor]:
        """Loss, gradient norm and weighted terms of one step."""
        config = self.config
        started = time.perf_counter()
        size = self.first_batch_size if self.step < config.first_steps else self.batch_size
        scene = self._heard(self.simulator.sample(size))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the scenes are made now, not only asked for
        simulated = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self._train_mode()
        terms = self._step_losses(scene, self.generator)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.optimizer.clip_norm)
        if torch.isfinite(norm):  # one broken batch must not spoil the run
            self.optimizer.step()
        self.step += 1
        self._update_average()
        self._scenes_done += len(scene.mixture)
        self._seconds["simulation"] += simulated - started
        self._seconds["network"] += time.perf_counter() - simulated
        return {"loss": loss, "grad_norm": norm, **terms}

    def _update_average(self) -> None:
        decay = self.config.optimizer.average
        if not decay:
            return
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for key, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    # -- validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the fixed validation scenes, queries by the bare labels."""
        config = self.config.validation
        if self._scenes is None:
            batches = max(1, config.mixtures // config.batch_size)
            self._scenes = [
                self._heard(self.validation_simulator.sample(config.batch_size, config.sources))
                for _ in range(batches)]
        trained = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self._evaluated_state())
        self.network.eval()
        rows: list[dict[str, Tensor]] = []
        losses = []
        try:
            for scene in tqdm(self._scenes, desc="validation", leave=False):
                tokens, mask = self.bank.batch(self.bank.first[scene.kind])
                with self._autocast():
                    output = self.network(scene.mixture, tokens, mask)
                terms = self.objective.extraction(
                    self.network, output, scene.mixture, scene.sources, scene.azimuth)
                losses.append(torch.stack(list(terms.values())).sum())
                rows.append(self._metrics(scene, output))
        finally:
            self.network.load_state_dict(trained)
        result = {key: float(torch.cat([row[key] for row in rows]).float().mean())
                  for key in rows[0]}
        return {"loss": float(torch.stack(losses).mean()), **result}

    def _metrics(self, scene: Scene, output) -> dict[str, Tensor]:
        batch, sources = scene.kind.shape
        target = scene.sources.flatten(0, 1)
        others = torch.stack([
            scene.sources[:, [j for j in range(sources) if j != i]] for i in range(sources)], dim=1)
        azimuth = None
        if output.doa_logits is not None:
            azimuth = output.doa_logits.argmax(-1).flatten().float()
        return batch_metrics(
            output.audio.flatten(0, 1), target, scene.mixture.repeat_interleave(sources, 0),
            others.flatten(0, 1), azimuth, scene.azimuth.flatten())

    # -- the run

    def run(self, max_minutes: float | None = None) -> dict[str, float]:
        """Train to the end (or for ``max_minutes``), resuming where the folder left off.

        Ctrl-C (or SIGTERM) finishes the step and saves before it stops; a second one stops at
        once, and leaves what was last saved. Returns the last validation (nothing in processes
        other than the first). A signal or the time limit of one process stops all after the same
        step.
        """
        config, first = self.config, self.processes.is_first
        writer = SummaryWriter(self.out / "tensorboard", purge_step=self.step + 1) if first \
            else None
        deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
        result: dict[str, float] = {}
        bar = tqdm(total=config.steps, initial=self.step, desc=config.name, unit="step",
                   dynamic_ncols=True, disable=not first)
        clock = time.monotonic()
        sums: dict[str, list[Tensor]] = {}
        try:
            with _interrupts_after_step() as interrupted:
                while (self.step < config.steps
                       and self.stale < config.validation.stop_patience
                       and not self.processes.any(bool(interrupted)
                                                  or time.monotonic() >= deadline)):
                    for key, value in self.train_step().items():
                        sums.setdefault(key, []).append(value.detach())
                    bar.update()
                    clock, before = time.monotonic(), clock
                    self.elapsed += clock - before
                    if self.step % config.log_every == 0:
                        if first:
                            self._log(sums, writer, bar)
                        sums = {}
                    if self.step % config.validation.every == 0 or self.step == config.steps:
                        if self.step > config.first_steps:
                            result = self._validation_round(writer)
                    if self.step % config.save_every == 0:
                        self.save_resume()
                self.save_resume()
                self.save_network("last.safetensors")
                if not first:
                    pass
                elif interrupted:
                    tqdm.write("interrupted and saved; the same command resumes")
                elif self.stale >= config.validation.stop_patience:
                    tqdm.write(f"no improvement in {self.stale} validations: stopped")
        finally:
            bar.close()
            if writer is not None:
                writer.close()
        return result

    def _validation_round(self, writer: SummaryWriter | None) -> dict[str, float]:
        """The first process validates, all learn what it means for the schedule."""
        result = self._validated(writer) if writer is not None else {}
        self.best, best_step, stale, self.rate_factor = self.processes.from_first(
            [self.best, self.best_step, self.stale, self.rate_factor])
        self.best_step, self.stale = int(best_step), int(stale)
        return result

    def _validated(self, writer: SummaryWriter) -> dict[str, float]:
        result = self.validate()
        if result["loss"] < self.best:
            self.best, self.best_step, self.stale = result["loss"], self.step, 0
            self.save_network("best.safetensors", validation=result)
        else:
            self.stale += 1
            if self.config.optimizer.schedule == "plateau" and \
                    self.stale % self.config.optimizer.patience == 0:
                self.rate_factor /= 2
        for key, value in result.items():
            writer.add_scalar(f"validation/{key}", value, self.step)
        _append_csv(self.out / "validation.csv", {"step": self.step, **result})
        tqdm.write(f"step {self.step}: " + "  ".join(f"{k} {v:.3g}" for k, v in result.items()))
        return result

    def _log(self, sums: dict[str, list[Tensor]], writer: SummaryWriter, bar: tqdm) -> None:
        count = len(sums["loss"])  # fewer than log_every after a resumption
        row = {key: float(torch.stack(values).mean()) for key, values in sums.items()}
        row["learning_rate"] = self.learning_rate(self.step - 1)
        total = sum(self._seconds.values())
        row["steps_per_s"] = count / total
        for part, seconds in self._seconds.items():
            row[f"{part}_scenes_per_s"] = self._scenes_done / seconds
        self._scenes_done = 0
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        for key, value in row.items():
            writer.add_scalar(f"train/{key}", value, self.step)
        _append_csv(self.out / "log.csv", {"step": self.step, **row})
        bar.set_postfix_str(f"loss {row['loss']:.2f}, "
                            f"scenes/s: {row['simulation_scenes_per_s']:.0f} simulated, "
                            f"{row['network_scenes_per_s']:.0f} trained")


class _Losses(nn.Module):
    """:meth:`Trainer.losses` as the forward pass of a module, for DistributedDataParallel."""

    def __init__(self, trainer: Trainer):
        super().__init__()
        self.network = trainer.network
        self.trainer = trainer

    def forward(self, scene: Scene, generator: torch.Generator) -> dict[str, Tensor]:
        return self.trainer.losses(scene, generator)


@contextlib.contextmanager
def _interrupts_after_step():
    """Hold Ctrl-C and SIGTERM back, so that a step is never saved half done.

    Gives a list that the first signal fills; a second one raises KeyboardInterrupt.
    """
    interrupted: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread only
        return
    previous = {number: signal.signal(number, handle)
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def grown_state(own: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a smaller network in a larger one: new channels start at zero, new modules as
    they are initialised. Raises ValueError where something doesn't fit."""
    extra = sorted(set(given) - set(own))
    if extra:
        raise ValueError(f"the network has no {', '.join(extra[:3])}")
    state = {}
    for key, value in own.items():
        small = given.get(key, value)
        if small.shape != value.shape:
            if small.dim() != value.dim() or any(
                    a > b for a, b in zip(small.shape, value.shape)):
                raise ValueError(f"{key}: {tuple(small.shape)} doesn't fit {tuple(value.shape)}")
            large = torch.zeros_like(value)
            large[tuple(slice(n) for n in small.shape)] = small
            small = large
        state[key] = small
    return state


def mirrored(hrir: Tensor) -> Tensor:
    """(360, 2, taps) → the same head with its ears swapped, left for right."""
    return hrir.flip(0).roll(1, 0).flip(1)


def _truncate_csv(path: Path, step: int) -> None:
    """Drop the rows after ``step``."""
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    with open(path.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows[:1] + [r for r in rows[1:] if r and int(r[0]) <= step])
    os.replace(path.with_suffix(".tmp"), path)


def _append_csv(path: Path, row: dict[str, float]) -> None:
    """Append a row; columns that a file's head lacks (a later stage's terms) start a new head."""
    header = None
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            header = list(rows[0]) if rows else None
    if header is not None and set(row) - set(header):
        names = header + [key for key in row if key not in header]
        with open(path.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(path.with_suffix(".tmp"), path)
        header = names
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header or list(row))
        if header is None:
            writer.writeheader()
        writer.writerow(row)
