"""From audio and words to the sound and its direction: what users of the package call.

:func:`load_model` gives an :class:`Extractor`; :meth:`Extractor.extract` takes audio of any
length and rate. Angles are degrees counter-clockwise from the front, 90 is left.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterable, Sequence, overload

import numpy as np
import soxr
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .angles import estimate_azimuth
from .calibration import Calibration
from .checkpoint import find_checkpoint, load_network
from .config import AZIMUTH_BINS
from .errors import AudioError, ConfigError, LuseelError, QueryError
from .families import family_of
from .heads import Head
from .query import Capabilities, Query, as_query
from .recording import Joined, WindowJoiner, cut_windows, hop_samples, window_starts

_BATCH = 4                 # windows of a stream's length at once: bounds the memory
_MIN_SECONDS = 0.05
_MAX_RATE = 768_000


@dataclass
class WindowTensors:
    """What a model says about B windows and Q queries, on its device.

    Attributes:
        audio: (B, Q, 2, N), or None from a model that extracts nothing.
        confidence: (B, Q) in [0, 1] that the sound is there.
        likelihood: (B, Q, 360) in [0, 1], or None from a model without localization.
        gate: (B, Q) logits of the gain that ``audio`` has been given by the confidence, or None.
    """

    audio: Tensor | None
    confidence: Tensor
    likelihood: Tensor | None = None
    gate: Tensor | None = None


@dataclass
class WindowOutput:
    """Estimates for one window of audio and Q queries.

    Attributes:
        audio: (Q, 2, samples) float32, the extracted ears; None from a model that extracts nothing.
        azimuth: (Q,) degrees in [0, 360), NaN for a model without localization.
        likelihood: (Q, 360) in [0, 1], bin i at i degrees (zeros without localization).
        confidence: (Q,) in [0, 1] that the sound is there.
        gate: (Q,) logits of the gain that ``audio`` has been given by the confidence, or None
            where the network gives none.
    """

    audio: np.ndarray | None
    azimuth: np.ndarray
    likelihood: np.ndarray
    confidence: np.ndarray
    gate: np.ndarray | None = None


@dataclass
class WindowEstimate:
    """Direction and presence in one window of a longer recording, starting at ``start`` s."""

    start: float
    duration: float
    azimuth: float | None
    likelihood: np.ndarray | None
    confidence: float


@dataclass
class Extraction:
    """The described sound in a recording.

    Attributes:
        query: the words, or what the query is called.
        audio: (2, samples) float32 at ``sample_rate`` (the input's), ears left and right; None
            from a model that extracts nothing.
        sample_rate: Hz.
        azimuth: degrees in [0, 360), counter-clockwise, 0 front, 90 left; None from a model
            without localization.
        likelihood: (360,) in [0, 1], bin i at i degrees; None from a model without localization.
        confidence: in [0, 1] that the sound is there, in the window that shows it best.
        windows: the same per window.
    """

    query: str
    audio: np.ndarray | None
    sample_rate: int
    azimuth: float | None
    likelihood: np.ndarray | None
    confidence: float
    windows: list[WindowEstimate] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the audio, ready for JSON."""
        def number(value: float | None) -> float | None:
            return None if value is None else round(float(value), 4)
        return {
            "query": self.query, "sample_rate": self.sample_rate,
            "azimuth_degrees": number(self.azimuth), "confidence": number(self.confidence),
            "likelihood": None if self.likelihood is None else
            [round(float(v), 5) for v in self.likelihood],
            "windows": [{"start": round(w.start, 3), "duration": round(w.duration, 3),
                         "azimuth_degrees": number(w.azimuth),
                         "confidence": number(w.confidence)} for w in self.windows],
        }


def validate_audio(audio: Any, sample_rate: Any, channels: int = 2) -> np.ndarray:
    """Audio as a float32 array (channels, samples), or an :class:`AudioError` saying what's wrong.

    Integer arrays are scaled to ±1. Accepts NumPy arrays and torch tensors.
    """
    if not isinstance(sample_rate, (int, float, np.integer, np.floating)) or \
            isinstance(sample_rate, bool) or not 1 <= sample_rate <= _MAX_RATE:
        raise AudioError(f"sample rate {sample_rate!r} Hz: expected a number from 1 to {_MAX_RATE}")
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    audio = np.asarray(audio)
    if audio.dtype.kind == "i":
        audio = audio / float(np.iinfo(audio.dtype).max + 1)
    elif audio.dtype.kind != "f":
        raise AudioError(f"audio must be floating-point numbers, got {audio.dtype}")
    if audio.size == 0:
        raise AudioError("the audio is empty")
    if audio.ndim != 2 or audio.shape[0] != channels:
        if audio.ndim == 1 or (audio.ndim == 2 and 1 in audio.shape):
            raise AudioError(f"the audio is mono {audio.shape}: {channels} channels are needed, "
                             f"shape ({channels}, samples)"
                             + (", the left and the right ear" if channels == 2 else ""))
        hint = "; transpose it" if audio.ndim == 2 and audio.shape[1] == channels else ""
        raise AudioError(f"audio must have shape ({channels}, samples), got {audio.shape}{hint}")
    audio = audio.astype(np.float32, copy=False)
    if not np.isfinite(audio).all():
        raise AudioError("the audio has NaN or infinite samples")
    if audio.shape[1] < _MIN_SECONDS * sample_rate:
        raise AudioError(f"the audio is too short: {audio.shape[1] / sample_rate * 1000:.1f} ms, "
                         f"at least {_MIN_SECONDS * 1000:.0f} ms are needed")
    return audio


def energy_share(audio: Tensor, mixture: Tensor) -> Tensor:
    """Share of the energy that was extracted, the poorest of all signs that a sound is there.

    Args:
        audio: (B, Q, C, N).
        mixture: (B, C, N).
    Returns:
        (B, Q) in [0, 1].
    """
    energy = audio.square().sum((-2, -1))
    return energy / (energy + mixture.square().sum((-2, -1))[:, None] + 1e-12)


class Extractor(ABC):
    """A network with all that it takes to use it. Each family of models has its own (families.py).

    Args:
        network: with its ``config``, on its device.
        name: shown to users.
        info: what the checkpoint says about its training.
        calibration: puts the ears right before the network hears them (luseel_model.calibration).
    """

    def __init__(self, network: nn.Module, name: str = "", info: dict | None = None,
                 calibration: Calibration | None = None):
        self.network = network.eval()
        self.calibration = calibration or Calibration()
        self.name, self.info = name or network.config.name, info or {}
        self.config = network.config
        self.device = next(network.parameters()).device

    @staticmethod
    @abstractmethod
    def capabilities_of(config: Any) -> Capabilities:
        """What a model of this configuration takes and gives."""

    @property
    def capabilities(self) -> Capabilities:
        """What the model takes and gives."""
        return self.capabilities_of(self.config)

    @abstractmethod
    def _infer(self, mixture: Tensor, queries: Sequence[Query]) -> WindowTensors:
        """Estimates for (B, microphones, window_samples) on the model's device and Q queries that
        it can use."""

    @property
    def microphones(self) -> int:
        """Audio channels the model takes."""
        return self.capabilities.microphones

    @property
    def sample_rate(self) -> int:
        """Rate inside the model, Hz."""
        return self.config.sample_rate

    #: Whether the model can hear more at once than in training.
    longer_windows = False

    @property
    def window(self) -> float:
        """Seconds the model hears at once in a stream, as in its training."""
        return self.config.window

    @property
    def recording_window(self) -> float:
        """Seconds of a recording from which the model extracts at once, at least ``window``."""
        return self.config.window

    @property
    def window_samples(self) -> int:
        """Samples of a window at the model's rate."""
        return self.config.window_samples

    def heard_at_once(self, samples: int, window: float | None = None) -> int:
        """Samples of a recording from which the model extracts at once.

        Args:
            samples: of the whole recording, at the model's rate.
            window: seconds wished for; None: ``recording_window``.

        Raises:
            ConfigError: the model can't hear so much, or so little, at once.
        """
        seconds = self.recording_window if window is None else window
        size = round(seconds * self.sample_rate) if math.isfinite(seconds) else 0
        if size < self.window_samples or not (self.longer_windows or size == self.window_samples):
            raise ConfigError(
                f"window {seconds:g} s: the model {self.name} hears "
                f"{'at least ' if self.longer_windows else ''}{self.window:g} s at once")
        return min(size, max(samples, self.window_samples))

    def set_head(self, head: Head) -> None:
        """Listen with another head than the one the network was trained on.

        Raises:
            ConfigError: the network doesn't use the responses of a head.
        """
        raise ConfigError(f"the model {self.name} makes no use of a head's responses: leave the "
                          "head out")

    def check_query(self, query: str | Query) -> Query:
        """The query as the model takes it.

        Raises:
            QueryError: it can't be read, or the model can't use it.
        """
        query = as_query(query)
        self.capabilities.check(query, self.name)
        return query

    # -- windows

    @torch.inference_mode()
    def infer_windows(self, windows: Tensor, queries: Sequence[str | Query]
                      ) -> list[WindowOutput]:
        """Estimates for several windows at once.

        Args:
            windows: (B, microphones, window_samples) at the model's rate; more samples where
                ``longer_windows``.
            queries: Q descriptions.
        Returns:
            B outputs, each for the Q queries.
        Raises:
            QueryError: a query can't be used; the message says why.
        """
        queries = [self.check_query(query) for query in queries]
        mixture = windows.to(self.device, torch.float32)
        if self.microphones == 2:
            mixture = self.calibration.apply(mixture, self.sample_rate)
        output = self._infer(mixture, queries)
        batch, shape = len(windows), (len(windows), len(queries))
        confidence = output.confidence.float().cpu().numpy()
        if output.likelihood is None:
            likelihood = np.zeros((*shape, AZIMUTH_BINS), np.float32)
            azimuth = np.full(shape, np.nan)
        else:
            likelihood = self.calibration.turn_likelihood(output.likelihood.float().cpu().numpy())
            azimuth = estimate_azimuth(likelihood)
        audio, gates = ([None] * batch if part is None else part.float().cpu().numpy()
                        for part in (output.audio, output.gate))
        return [WindowOutput(*parts)
                for parts in zip(audio, azimuth, likelihood, confidence, gates)]

    def infer_window(self, window: Tensor | np.ndarray, queries: Sequence[str | Query]
                     ) -> WindowOutput:
        """Estimates for one window.

        Args:
            window: (microphones, n) at the model's rate, n up to ``window_samples``; shorter is filled with
                silence at the end.
            queries: Q descriptions.
        Raises:
            AudioError, QueryError: what was given can't be used; the message says why.
        """
        if isinstance(queries, str) or not len(queries):
            raise QueryError(f"queries must be a list of descriptions, got {queries!r}")
        window = torch.as_tensor(window).detach().float()
        samples = window.shape[-1]
        if window.dim() != 2 or window.shape[0] != self.microphones or \
                not 0 < samples <= self.window_samples:
            raise AudioError(f"a window must have shape ({self.microphones}, "
                             f"1..{self.window_samples}), got {tuple(window.shape)}")
        if not window.isfinite().all():
            raise AudioError("the window has NaN or infinite samples")
        window = torch.nn.functional.pad(window, (0, self.window_samples - samples))
        output = self.infer_windows(window[None], queries)[0]
        if output.audio is not None:
            output.audio = output.audio[..., :samples]
        return output

    def warm_up(self) -> None:
        """Run once on silence, so that the first real window isn't slow."""
        self.infer_window(np.zeros((self.microphones, self.window_samples), np.float32),
                          [self._any_query()])

    def _any_query(self) -> Query:
        clues = self.capabilities.clues
        if "text" in clues:
            return Query(text="sound")
        if "tag" in clues:
            return Query(tag=self.info["kinds"][0])
        ramp = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
        return Query(image=ramp) if "image" in clues else Query(frames=ramp[None])

    # -- recordings

    @overload
    def extract(self, audio, sample_rate, query: str | Query, progress=..., hop=..., window=...
                ) -> Extraction: ...

    @overload
    def extract(self, audio, sample_rate, query: Sequence[str | Query], progress=..., hop=...,
                window=...) -> list[Extraction]: ...

    def extract(self, audio, sample_rate, query, progress: bool | None = None,
                hop: float | None = None, window: float | None = None):
        """Pull the described sound out of a recording and say where it comes from.

        Args:
            audio: (microphones, samples), the ears left and right for most models, NumPy or torch,
                full scale ±1, any length from 50 ms.
            sample_rate: of ``audio`` in Hz, any.
            query: a description in words, or a :class:`~luseel_model.query.Query`, or a list of
                them (these share what doesn't depend on the query).
            progress: show a progress bar; None shows it for recordings of several windows.
            hop: seconds from one window of a long recording to the next; None: half a window.
                Less takes longer and says more often what is heard where.
            window: seconds from which the sound is extracted at once; None:
                ``recording_window``. ``window`` of the model is better where ears or sounds
                move. Directions and confidences are of windows as long as a stream's whatever it
                is (docs/training.md).
        Returns:
            an :class:`Extraction`, or a list for a list of queries.
        Raises:
            AudioError, QueryError, ConfigError: what was given can't be used; the message says why.
        """
        audio = validate_audio(audio, sample_rate, self.microphones)
        is_list = isinstance(query, Iterable) and not isinstance(query, str)
        queries = [self.check_query(one) for one in (query if is_list else [query])]
        if not queries:
            return []
        inside = resample(audio, sample_rate, self.sample_rate)
        samples, size = inside.shape[1], self.window_samples
        starts = window_starts(samples, size, hop_samples(hop, size, self.sample_rate))
        longer = self.heard_at_once(samples, window)
        longer_starts = window_starts(samples, longer) if longer > size else []
        count = len(starts) + len(longer_starts)
        with tqdm(total=count, desc="extracting", unit="window",
                  disable=not progress if progress is not None else count < 4) as bar:
            joined, outputs = self._hear(inside, queries, starts, size, bar)
            sounds = joined.audio
            if longer_starts:
                # What is believed absent in a stream's windows as well is silenced twice.
                sounds = self._hear(inside, queries, longer_starts, longer, bar)[0].audio
                sounds *= joined.audible[:, None, None]

        duration = min(samples, size) / self.sample_rate
        results, located = [], self.capabilities.direction
        for i, one in enumerate(queries):
            extracted = None if sounds is None else _fit(
                resample(sounds[i], self.sample_rate, sample_rate), audio.shape[1])
            windows = [WindowEstimate(start / self.sample_rate, duration,
                                      float(o.azimuth[i]) if located else None,
                                      o.likelihood[i] if located else None,
                                      float(o.confidence[i]))
                       for start, o in zip(starts, outputs)]
            results.append(Extraction(
                one.words, extracted, sample_rate, float(joined.azimuth[i]) if located else None,
                joined.likelihood[i] if located else None, float(joined.confidence[i]), windows))
        return results if is_list else results[0]

    def _hear(self, audio: np.ndarray, queries: Sequence[Query], starts: Sequence[int], size: int,
              bar: tqdm) -> tuple[Joined, list[WindowOutput]]:
        """Windows of ``size`` samples, joined, and one by one without their audio."""
        joiner = WindowJoiner(len(queries), audio.shape[1], size, self.sample_rate)
        outputs: list[WindowOutput] = []
        batch = max(1, _BATCH * self.window_samples // size)
        for windows in cut_windows(audio, starts, size, batch):
            for output in self.infer_windows(torch.from_numpy(windows), queries):
                joiner.add(starts[len(outputs)], output)
                # a long recording's windows needn't be kept twice
                outputs.append(replace(output, audio=None))
                bar.update()
        return joiner.finish(), outputs


def resample(audio: np.ndarray, source: float, target: float) -> np.ndarray:
    """(channels, samples) at ``source`` Hz → float32 at ``target`` Hz."""
    if source == target:
        return audio
    return np.ascontiguousarray(soxr.resample(audio.T, source, target).T, dtype=np.float32)


def _fit(audio: np.ndarray, samples: int) -> np.ndarray:
    """Cut or zero-fill to exactly ``samples`` (resampling there and back may differ by one)."""
    return np.pad(audio[:, :samples], ((0, 0), (0, max(0, samples - audio.shape[1]))))


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """A device that can be used; None is CUDA where there is one, else the CPU.

    Raises:
        LuseelError: it can't be used here.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise LuseelError(f"device {device!r} can't be used: {error}") from None
    return place


def load_model(name_or_path: str | Path | None = None,
               device: str | torch.device | None = None,
               calibration: str | Path | Calibration | None = None,
               head: str | Path | Head | None = None) -> Extractor:
    """Load a checkpoint.

    Args:
        name_or_path: None for the shipped checkpoint, the name of a shipped one, or the path of
            a .safetensors file.
        device: 'cpu', 'cuda', ...; None takes CUDA where there is one.
        calibration: of the ears, or the YAML file that ``luseel calibrate`` wrote.
        head: responses of the ears, or the file that ``luseel calibrate --head`` made of claps,
            or ``luseel-heads`` of a SOFA file; None: those of the head the checkpoint was trained on.
    Raises:
        CheckpointError: missing, truncated or foreign file.
        ConfigError: the calibration or the head can't be used.
    """
    path = find_checkpoint(name_or_path)
    network, info = load_network(path, pick_device(device))
    if isinstance(calibration, (str, Path)):
        calibration = Calibration.load(calibration) if str(calibration) else None
    extractor = family_of(network.config).extractor_class(
        network, name=path.stem, info=info, calibration=calibration)
    if calibration is not None and extractor.microphones != 2:
        raise ConfigError(f"the model {extractor.name} hears {extractor.microphones} microphones: "
                          "a calibration is for two ears, leave it out")
    if head:
        extractor.set_head(head if isinstance(head, Head) else Head.open(head))
    return extractor
