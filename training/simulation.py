"""Binaural scenes of several sounds, made on the fly (paper 000, section 3.1).

One recording is the anchor, the others are brought to its energy and then set off by a random
signal-to-noise ratio; each gets a random azimuth and is convolved with the responses of a head;
their sum is the mixture. A scene may also lie in a room (:mod:`training.rooms`), in noise from all
around, and be heard by microphones that hiss. All scenes of a batch are made at once by tensor
operations, the same on a CPU and a GPU.

Every random number of a batch is drawn first, from one generator on the CPU, into a :class:`Plan`
(:meth:`BinauralSimulator.draw`); :meth:`BinauralSimulator.render` then makes the scenes from it
without chance. So the same seed gives the same scenes on every device, and a plan can be written by
hand, too.

    python -m training.simulation --benchmark
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, fields, replace
from typing import Any, Mapping, Sequence

import numpy as np
import torch

from luseel_model.errors import ConfigError

from . import SAMPLE_RATE
from .heads import Head, load_head
from .noise import diffuse_noise
from .pool import BLOCK, LONGEST, ClipPool
from .rooms import SPLITS, RoomBank

#: Scenes that a CPU makes at once: more no longer fit its cache, and take up to twice the time.
_CPU_SCENES = 8
#: Length of the noise that scenes take theirs from, at random places (65 s).
_NOISE_LENGTH = 1 << 20
#: Tries to find places in a room that are far enough apart.
_PLACE_DRAWS = 16


@dataclass(frozen=True)
class SimulationConfig:
    """What the scenes are like. Ranges are (lowest, highest); None or 0 switches an option off.

    Attributes:
        n_sources: how many sounds a scene may have; each batch has one of these numbers.
        seconds: length of the window.
        snr_db: level of the anchor over each interferer, before the head.
        min_separation: least angle between two sounds of a scene, degrees.
        kind_cap, kind_power: a kind is drawn with probability min(recordings, cap) ** power.
        group_power: within a kind, a recording counts 1 / (recordings of its group) ** power.
        exclude_kinds, exclude_flags: kinds and catalogue flags that are left out.
        gap: pause before a recording shorter than the window starts again, seconds.
        rate: playback speed (pitch and tempo).
        equaliser_db: largest boost or cut of a random smooth equaliser of each sound.
        equaliser_bands: its bands, evenly spaced in log frequency from 60 Hz to 8 kHz.
        level_db: root mean square of the mixture over both ears, dB re full scale; less where it
            would clip. Off: the anchor keeps the level of its recording.
        swap_ears: share of scenes that are mirrored: ears swapped, azimuth negated.
        head_size: stretch of the responses in time, a larger or smaller head.
        head_sizes: how many sizes are prepared over that range.
        rooms: folder of room banks, one for each head (:mod:`training.rooms`). A sound in a room is
            as loud as it would be without, whatever its distance; head sizes are the bank's.
        room_share: share of scenes in a room.
        noise_share: share of scenes with noise from all around the head.
        noise_db: level of all sounds together over that noise, both ears, as heard; the noise is
            between white and brown (-6 dB an octave).
        sensor_db: level of all sounds together over the white noise of each microphone.
    """

    n_sources: tuple[int, ...] = (2,)
    seconds: float = 2.0
    snr_db: tuple[float, float] = (-5.0, 5.0)
    min_separation: float = 0.0
    kind_cap: int = 60
    kind_power: float = 0.5
    group_power: float = 0.5
    exclude_kinds: tuple[str, ...] = ()
    exclude_flags: tuple[str, ...] = ()
    gap: tuple[float, float] = (0.0, 0.4)
    rate: tuple[float, float] | None = (0.85, 1.18)
    equaliser_db: float = 6.0
    equaliser_bands: int = 6
    level_db: tuple[float, float] | None = (-35.0, -15.0)
    swap_ears: float = 0.5
    head_size: tuple[float, float] | None = (0.93, 1.08)
    head_sizes: int = 7
    rooms: str | None = None
    room_share: float = 0.0
    noise_share: float = 0.0
    noise_db: tuple[float, float] = (5.0, 30.0)
    sensor_db: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("snr_db", "gap", "rate", "level_db", "head_size", "noise_db", "sensor_db"):
            value = getattr(self, name)
            if value is not None and not value[0] <= value[1]:
                raise ConfigError(f"{name}: {value} must be (lowest, highest)")
        if not self.n_sources or min(self.n_sources) < 1:
            raise ConfigError(f"n_sources: {self.n_sources} must name at least one number above 0")
        if not self.seconds > 0:
            raise ConfigError(f"seconds: {self.seconds} must be above 0")
        if self.gap[0] < 0:
            raise ConfigError(f"gap: {self.gap} must not be negative")
        for name, least in (("rate", 0.5), ("head_size", 0.5)):
            value = getattr(self, name)
            if value is not None and not (least <= value[0] and value[1] <= 2.0):
                raise ConfigError(f"{name}: {value} must be within {least} and 2")
        for name in ("swap_ears", "room_share", "noise_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be within 0 and 1")
        if self.room_share and not self.rooms:
            raise ConfigError("room_share: name the folder of the room banks in rooms "
                              "(`python -m training.rooms` makes them)")
        if not 0 <= self.equaliser_db <= 24 or self.equaliser_bands < 2 or self.head_sizes < 1:
            raise ConfigError("equaliser_db must be within 0 and 24, equaliser_bands 2 or more, "
                              "head_sizes 1 or more")
        if not 0 <= self.min_separation * max(self.n_sources) <= 360:
            raise ConfigError(f"min_separation: {self.min_separation}° leaves no room for "
                              f"{max(self.n_sources)} sounds on the circle")
        if self.kind_cap < 1:
            raise ConfigError(f"kind_cap: {self.kind_cap} must be 1 or more")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SimulationConfig":
        """From a YAML mapping; an unknown key or wrong type is a ConfigError naming it."""
        from luseel_model.config import build_config

        return build_config(cls, data)

    def plain(self) -> "SimulationConfig":
        """The same scenes without augmentation, for validation and tests; rooms and noise stay."""
        return replace(self, rate=None, equaliser_db=0.0, swap_ears=0.0, head_size=None)


@dataclass
class Plan:
    """All that chance decides about B scenes of S sounds; on the CPU.

    Attributes:
        recording: (B, S) int64 index into the pool; sound 0 is the anchor.
        azimuth: (B, S) float32 degrees in [0, 360), as heard.
        snr_db: (B, S) level of the anchor over the sound, before the head; 0 for the anchor.
        moment: (B, S) float32 in [0, 1), which active moment of the recording is heard for certain.
        place: (B, S) float32 in [0, 1], where in the window it lies.
        gap: (B, S) seconds of pause where the recording repeats.
        rate: (B, S) playback speed.
        equaliser_db: (B, S, bands), or None.
        head, size: (B,) int64 indices of head and head size.
        swap: (B,) bool, mirrored scene.
        level_db: (B,) root mean square of the mixture, or None.
        room: (B,) int64 room of the head's bank, -1 for none; or None for no rooms at all.
        position: (B, S) int64 place in the room. ``azimuth`` is that of the place, mirrored where
            the scene is; rendering goes by the place.
        noise_db: (B,) level of the sounds over the noise from all around, infinite for none.
        noise_slope: (B,) fall of its power with frequency, 0 (white) to 2 (brown).
        sensor_db: (B,) level of the sounds over the noise of each microphone.
        noise_start: (B, 3) int64 where the noise is taken from: all around, left, right.
    """

    recording: torch.Tensor
    azimuth: torch.Tensor
    snr_db: torch.Tensor
    moment: torch.Tensor
    place: torch.Tensor
    gap: torch.Tensor
    rate: torch.Tensor
    equaliser_db: torch.Tensor | None
    head: torch.Tensor
    size: torch.Tensor
    swap: torch.Tensor
    level_db: torch.Tensor | None
    room: torch.Tensor | None = None
    position: torch.Tensor | None = None
    noise_db: torch.Tensor | None = None
    noise_slope: torch.Tensor | None = None
    sensor_db: torch.Tensor | None = None
    noise_start: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.recording)

    @property
    def is_resampled(self) -> bool:
        """Whether any recording is played faster or slower."""
        return bool((self.rate != 1).any())

    def __getitem__(self, part: slice | torch.Tensor) -> "Plan":
        """Some of the scenes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Plan(**{k: v if v is None else v[part] for k, v in values.items()})


@dataclass
class Scene:
    """B scenes of S sounds, N samples at 16 kHz; tensors on the simulator's device.

    Attributes:
        mixture: (B, 2, N) float32, the sum of ``sources`` and ``noise``.
        sources: (B, S, 2, N) binaural images as heard, with the room, scaled as in the mixture.
        azimuth: (B, S) degrees in [0, 360).
        kind: (B, S) int64 index into ``pool.kinds``.
        recording: (B, S) int64 index into the pool.
        head: (B,) int64 index into the heads.
        snr_db: (B, S) level of the anchor over the sound before the head.
        rt60: (B,) float32 reverberation time of the room, seconds; 0 without one.
        swap: (B,) bool, mirrored: heard by the head with its ears swapped.
        noise: (B, 2, N) all noise, scaled as in the mixture; None where the configuration has none.
    """

    mixture: torch.Tensor
    sources: torch.Tensor
    azimuth: torch.Tensor
    kind: torch.Tensor
    recording: torch.Tensor
    head: torch.Tensor
    snr_db: torch.Tensor
    rt60: torch.Tensor
    swap: torch.Tensor
    noise: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["Scene"], order: torch.Tensor | None = None) -> "Scene":
        """Several batches as one; ``order`` (B,) int64 says which scene comes first, and so on."""
        values = {}
        for name in (f.name for f in fields(cls)):
            found = [getattr(part, name) for part in parts]
            if found[0] is not None:
                whole = torch.cat(found)
                values[name] = whole if order is None else whole[order.to(whole.device)]
        return cls(**values)


@dataclass
class _Layout:
    """How the window lies in what is transformed: ``before`` samples in, of ``nfft``."""

    nfft: int
    before: int
    steps: torch.Tensor  # (nfft,) 0, 1, 2, ...
    equaliser: torch.Tensor  # (bands, frequencies)


class BinauralSimulator:
    """Makes batches of scenes without end.

    Args:
        pool: the recordings; its device is where scenes are made unless ``device`` says otherwise.
        heads: heads or their names, each equally likely.
        config: a :class:`SimulationConfig` or a mapping for one.
        device: must be the pool's.
        seed: of all that is random.
        confusable: (K, K) bool, symmetric: kinds that never share a scene because asking for one
            of them would be ambiguous. A kind never shares a scene with itself.
        split: ``train``, ``valid`` or ``test``: whose rooms and noise are heard.

    Raises:
        ConfigError: too few kinds for the scenes asked for, or a wrong configuration.
    """

    def __init__(self, pool: ClipPool, heads: Sequence[Head | str] | Head | str,
                 config: SimulationConfig | Mapping[str, Any] | None = None,
                 device: torch.device | str | None = None, seed: int = 0,
                 confusable: torch.Tensor | None = None, split: str = "train") -> None:
        if not isinstance(config, SimulationConfig):
            config = SimulationConfig.from_dict(config or {})
        if isinstance(heads, (Head, str)):
            heads = [heads]
        if not heads:
            raise ConfigError("the simulation needs at least one head")
        self.pool = pool
        self.config = config
        self.device = torch.device(device if device is not None else pool.device)
        if self.device.type != pool.device.type:
            raise ConfigError(f"the pool is on {pool.device}, the simulation on {self.device}")
        self.heads = [load_head(head) if isinstance(head, str) else head for head in heads]
        self.generator = torch.Generator().manual_seed(seed)
        self.window = round(config.seconds * SAMPLE_RATE)
        self._apart = torch.eye(len(pool.kinds), dtype=torch.bool)
        if confusable is not None:
            self._apart |= confusable.cpu()
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is none of {', '.join(SPLITS)}")
        self.split = split
        self._prepare_heads()
        self._prepare_kinds()
        self._anechoic = self._layout(self._taps)
        if config.room_share:
            self._prepare_rooms()
        if config.noise_share or config.sensor_db is not None:
            self._prepare_noise()

    # -- preparation ------------------------------------------------------------------------------

    def _prepare_heads(self) -> None:
        sizes = [1.0]
        if self.config.head_size is not None:
            sizes = np.geomspace(*self.config.head_size, self.config.head_sizes).tolist()
        taps = max(head.taps for head in self.heads)
        bank = [torch.stack([head.warped(size).hrir for size in sizes]) for head in self.heads]
        bank = [torch.nn.functional.pad(b, (0, taps - b.shape[-1])) for b in bank]
        self.sizes = sizes
        self._bank = torch.stack(bank).to(self.device)  # (heads, sizes, 360, 2, taps)
        self._taps = taps

    def _prepare_kinds(self) -> None:
        pool, config = self.pool, self.config
        unknown = set(config.exclude_kinds) - set(pool.kinds)
        if unknown:
            raise ConfigError(f"exclude_kinds: no such kind: {', '.join(sorted(unknown))}")
        excluded = {pool.kinds.index(kind) for kind in config.exclude_kinds}
        flags = set(config.exclude_flags)
        kind, group = pool.kind.cpu(), pool.group.cpu()
        usable = torch.tensor([k >= 0 and k not in excluded and not flags.intersection(f.split(";"))
                               for k, f in zip(kind.tolist(), pool.flags)])
        index = usable.nonzero()[:, 0]
        index = index[torch.argsort(kind[index], stable=True)]
        count = torch.bincount(kind[index], minlength=len(pool.kinds))
        needed = max(config.n_sources)
        if int((count > 0).sum()) < needed:
            raise ConfigError(f"{needed} sounds of different kinds asked for, but the pool has "
                              f"only {int((count > 0).sum())} usable kinds")
        series = kind[index] * (int(group.max()) + 1) + group[index]
        _, place, members = series.unique(return_inverse=True, return_counts=True)
        weight = members[place].double() ** -config.group_power
        self._order = index
        self._running = torch.cat([torch.zeros(1, dtype=torch.float64), weight.cumsum(0)])
        end = count.cumsum(0)
        self._kind_begin, self._kind_end = end - count, end
        self._kind_weight = (count.clamp(max=config.kind_cap).double() ** config.kind_power
                             * (count > 0))

    def _layout(self, taps: int) -> _Layout:
        """For responses of ``taps`` samples."""
        needed = self.window + taps - 1
        nfft = _fast_length(needed + (512 if self.config.equaliser_db else 0))
        # Samples before the window: the tails of what came earlier, and half of the spare samples,
        # where the equaliser's response to the wrapped other end dies away.
        before = taps - 1 + (nfft - needed) // 2
        steps = torch.arange(nfft, device=self.device, dtype=torch.float32)
        frequency = torch.fft.rfftfreq(nfft, 1 / SAMPLE_RATE)
        octave = torch.log2(frequency.clamp(min=1.0) / 60.0) / math.log2(8000.0 / 60.0)
        bands = self.config.equaliser_bands
        place = (octave * (bands - 1)).clamp(0, bands - 1)
        near = (1 - (place[None] - torch.arange(bands)[:, None]).abs()).clamp(min=0)
        # (bands, frequencies): raised-cosine shares that sum to 1 at every frequency
        equaliser = (0.5 - 0.5 * torch.cos(math.pi * near)).to(self.device)
        return _Layout(nfft, before, steps, equaliser)

    def _prepare_rooms(self) -> None:
        banks = [RoomBank.load(RoomBank.path(self.config.rooms, head.name, self.split))
                 for head in self.heads]
        for head, bank in zip(self.heads, banks):
            if bank.response.shape[1] < max(self.config.n_sources):
                raise ConfigError(f"the rooms of {head.name} have {bank.response.shape[1]} "
                                  f"positions, too few for {max(self.config.n_sources)} sounds")
        taps = max(bank.taps for bank in banks)
        # All responses in rows; those of a head begin at its first row, room by room.
        rows = [bank.response.shape[0] * bank.response.shape[1] for bank in banks]
        self._room_response = torch.zeros(sum(rows), 2, taps, dtype=torch.float16)
        level, begin = [], 0
        for head, bank, count in zip(self.heads, banks, rows):
            self._room_response[begin:begin + count, :, :bank.taps] = bank.response.flatten(0, 1)
            begin += count
            # As loud as without a room; the ratio of direct to reverberant sound stays.
            energy = torch.stack([r.float().square().sum((-1, -2)) for r in bank.response])
            level.append((head.at(bank.azimuth).square().sum((-1, -2)) / energy).sqrt().flatten())
        device = self.device
        self._room_response = self._room_response.to(device)
        self._room_level = torch.cat(level).to(device)
        self._room_azimuth = torch.cat([bank.azimuth.flatten() for bank in banks])
        self._room_rt60 = [bank.rt60 for bank in banks]
        self._room_count = torch.tensor([len(bank) for bank in banks])
        self._room_positions = torch.tensor([bank.response.shape[1] for bank in banks])
        self._room_first = torch.tensor([0] + rows[:-1]).cumsum(0)
        self._reverberant = self._layout(taps)

    def _room_row(self, plan: Plan) -> torch.Tensor:
        """Row (B, S) of each sound's response, on the CPU."""
        positions = self._room_positions[plan.head]
        return (self._room_first[plan.head] + plan.room * positions)[:, None] + plan.position

    def _prepare_noise(self) -> None:
        generator = torch.Generator().manual_seed(SPLITS.index(self.split))
        self._hiss = torch.randn(_NOISE_LENGTH, generator=generator).to(self.device)
        if self.config.noise_share:
            self._diffuse = torch.stack([diffuse_noise(head, _NOISE_LENGTH, generator)
                                         for head in self.heads]).to(self.device)
        self._noise_nfft = _fast_length(self.window)
        frequency = torch.fft.rfftfreq(self._noise_nfft, 1 / SAMPLE_RATE).to(self.device)
        self._noise_octave = torch.log2(frequency.clamp(min=50.0) / 1000.0)
        self._noise_floor = (frequency / 50.0).clamp(max=1.0) ** 2  # no rumble below 50 Hz

    # -- chance -----------------------------------------------------------------------------------

    def _uniform(self, *shape: int, between: tuple[float, float] = (0.0, 1.0)) -> torch.Tensor:
        low, high = between
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def draw(self, batch_size: int, n_sources: int | None = None) -> Plan:
        """Draw all that is random about ``batch_size`` scenes.

        Args:
            n_sources: sounds a scene; None: one of ``config.n_sources``.
        """
        config, draw = self.config, self._uniform
        choice = int(draw(1) * len(config.n_sources))
        count = n_sources if n_sources is not None else config.n_sources[choice]
        if count < 1:
            raise ConfigError(f"can't make scenes of {count} sounds")
        shape = (batch_size, count)
        kind = self._draw_kinds(batch_size, count)
        begin, end = self._kind_begin[kind], self._kind_end[kind]
        low, high = self._running[begin], self._running[end]
        part = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        spot = torch.searchsorted(self._running, low + (high - low) * part, right=True) - 1
        recording = self._order[spot.clamp(min=begin, max=end - 1)]
        snr = draw(*shape, between=config.snr_db)
        snr[:, 0] = 0.0
        rate = torch.ones(shape)
        if config.rate is not None:
            rate = torch.exp(draw(*shape, between=tuple(map(math.log, config.rate))))
        equaliser = None
        if config.equaliser_db:
            limit = config.equaliser_db
            equaliser = draw(*shape, config.equaliser_bands, between=(-limit, limit))
        level = None
        if config.level_db is not None:
            level = draw(batch_size, between=config.level_db)
        plan = Plan(
            recording=recording, azimuth=self._draw_azimuth(*shape), snr_db=snr,
            moment=draw(*shape), place=draw(*shape, between=(0.05, 0.95)),
            gap=draw(*shape, between=config.gap), rate=rate, equaliser_db=equaliser,
            head=(draw(batch_size) * len(self.heads)).long(),
            size=(draw(batch_size) * len(self.sizes)).long(),
            swap=draw(batch_size) < config.swap_ears, level_db=level)
        # After all else, so that the rest of a plan does not depend on these options.
        if config.room_share:
            self._draw_rooms(plan)
        if config.noise_share or config.sensor_db is not None:
            self._draw_noise(plan)
        return plan

    def _draw_rooms(self, plan: Plan) -> None:
        batch_size, count = plan.recording.shape
        positions = self._room_positions[plan.head]
        if count > int(self._room_positions.min()):
            raise ConfigError(f"the rooms have too few positions for {count} sounds")
        inside = self._uniform(batch_size) < self.config.room_share
        room = (self._uniform(batch_size) * self._room_count[plan.head]).long()
        first = self._room_first[plan.head] + room * positions
        # Places without repetition; of some draws, the first whose sounds are far enough apart, or
        # else the one where they are farthest.
        most = int(self._room_positions.max())
        order = self._uniform(batch_size, _PLACE_DRAWS, most)
        order = order.masked_fill(torch.arange(most) >= positions[:, None, None], 2.0)
        places = order.argsort(dim=-1)[..., :count]
        azimuth = self._room_azimuth[first[:, None, None] + places]
        apart = 180 - ((azimuth[..., None] - azimuth[..., None, :]).abs() - 180).abs()
        apart = (apart + 360 * torch.eye(count)).amin((-1, -2))
        score = torch.where(apart >= self.config.min_separation,
                            1000.0 - torch.arange(_PLACE_DRAWS), apart)
        best = score.argmax(dim=1)
        rows = torch.arange(batch_size)
        plan.room = torch.where(inside, room, -1)
        plan.position = torch.where(inside[:, None], places[rows, best], 0)
        azimuth = azimuth[rows, best]
        azimuth = torch.where(plan.swap[:, None], torch.remainder(-azimuth, 360.0), azimuth)
        plan.azimuth = torch.where(inside[:, None], azimuth, plan.azimuth)

    def _draw_noise(self, plan: Plan) -> None:
        config, batch_size = self.config, len(plan)
        if config.noise_share:
            noisy = self._uniform(batch_size) < config.noise_share
            level = self._uniform(batch_size, between=config.noise_db)
            plan.noise_db = torch.where(noisy, level, math.inf)
            plan.noise_slope = self._uniform(batch_size, between=(0.0, 2.0))
        if config.sensor_db is not None:
            plan.sensor_db = self._uniform(batch_size, between=config.sensor_db)
        plan.noise_start = torch.randint(_NOISE_LENGTH, (batch_size, 3), generator=self.generator)

    def _draw_kinds(self, batch_size: int, count: int) -> torch.Tensor:
        """Kinds by weight, no two of a scene the same or confusable, (B, S)."""
        weight = self._kind_weight.repeat(batch_size, 1)
        kinds = []
        for _ in range(count):
            if not bool((weight.sum(1) > 0).all()):
                raise ConfigError(f"can't make scenes of {count} sounds of kinds that differ")
            kind = torch.multinomial(weight, 1, generator=self.generator)
            weight = weight * ~self._apart[kind[:, 0]]
            kinds.append(kind)
        return torch.cat(kinds, dim=1)

    def _draw_azimuth(self, batch_size: int, count: int) -> torch.Tensor:
        """Uniform over the circle, with at least ``min_separation`` between any two, (B, S).

        The gaps between neighbours share what the separations leave over, so that no draw has to be
        thrown away: points of a smaller circle, spread out again in a random order.
        """
        least = self.config.min_separation
        turn = self._uniform(batch_size, 1, between=(0.0, 360.0))
        if count == 1:
            return turn
        spare = 360.0 - count * least
        points = self._uniform(batch_size, count - 1, between=(0.0, spare)).sort(dim=1).values
        points = torch.cat([torch.zeros(batch_size, 1), points], dim=1)
        points = points + least * torch.arange(count)
        order = torch.rand(batch_size, count, generator=self.generator).argsort(dim=1)
        return torch.remainder(points.gather(1, order) + turn, 360.0)

    # -- sound ------------------------------------------------------------------------------------

    def _gather(self, plan: Plan, layout: _Layout) -> torch.Tensor:
        """The dry sounds, (B, S, nfft); the window begins at sample ``layout.before``."""
        pool, device = self.pool, self.device
        recording = plan.recording.to(device)
        start, length = pool.start[recording], pool.length[recording]
        rate = plan.rate.to(device)
        # An active moment: blocks are drawn by their activity, so that it is never a silent one.
        first, last = pool.block_start[recording], pool.block_start[recording + 1]
        low, high = pool.activity[first], pool.activity[last]
        goal = low + (high - low) * plan.moment.to(device).double()
        block = torch.searchsorted(pool.activity, goal, right=True) - 1
        block = block.clamp(min=first, max=last - 1)
        moment = ((block - first) * BLOCK + BLOCK // 2).clamp(max=length - 1).float()
        # Position in the recording at the start of what is gathered. Whole samples and fractions
        # are kept apart: float32 holds whole numbers up to LONGEST exactly, but no fractions then.
        origin = (moment - (plan.place.to(device) * self.window + layout.before) * rate).floor()
        reach = (layout.nfft * rate + 2).ceil()
        is_long = length > reach
        pause = (plan.gap.to(device) * SAMPLE_RATE).floor()
        period = torch.where(is_long, torch.full_like(pause, 2.0 * LONGEST), length + pause + 1)
        origin = torch.where(is_long, torch.minimum(origin.clamp(min=0), length - reach),
                             torch.remainder(origin, period))
        advance = rate[..., None] * layout.steps
        below = advance.floor()
        part = advance.sub_(below)
        below = torch.remainder(below.add_(origin[..., None]), period[..., None]).long()
        # Past the end of the recording comes silence, until it repeats.
        end = length[..., None]
        place = start[..., None] + torch.minimum(below, end - 1)
        here = pool.samples[place].float().masked_fill_(below >= end, 0.0)
        if plan.is_resampled:
            after = pool.samples[(place + 1).clamp_(max=len(pool.samples) - 1)].float()
            here = torch.lerp(here, after.masked_fill_(below + 1 >= end, 0.0), part)
        return here / 32768.0

    def render(self, plan: Plan) -> Scene:
        """Make the scenes of a plan."""
        if plan.room is None or not bool((plan.room >= 0).any()):
            return Scene.joined([self._render(part) for part in self._portions(plan)])
        # Only scenes in rooms pay for their long responses.
        inside = plan.room >= 0
        groups = [(~inside).nonzero()[:, 0], inside.nonzero()[:, 0]]
        parts = [self._render(part) for group in groups if len(group)
                 for part in self._portions(plan[group])]
        return Scene.joined(parts, torch.cat(groups).argsort())

    def _portions(self, plan: Plan) -> list[Plan]:
        size = _CPU_SCENES if self.device.type == "cpu" else len(plan)
        return [plan[i:i + size] for i in range(0, len(plan), size)]

    def _render(self, plan: Plan) -> Scene:
        """Scenes that are all in rooms, or all not."""
        device, window = self.device, self.window
        is_room = plan.room is not None and bool((plan.room >= 0).all())
        layout = self._reverberant if is_room else self._anechoic
        begin = layout.before
        dry = self._gather(plan, layout)
        spectrum = torch.fft.rfft(dry)
        energy = dry[..., begin:begin + window].square().mean(-1)
        if plan.equaliser_db is not None:
            gain = 10 ** ((plan.equaliser_db.to(device) @ layout.equaliser) / 20)
            before = spectrum.abs().square().sum(-1)
            spectrum = spectrum * gain
            energy = energy * spectrum.abs().square().sum(-1) / before.clamp(min=1e-20)
        # Every sound has an active moment inside the window; the floor only keeps 0 / 0 out.
        root = energy.clamp(min=1e-14).sqrt()
        gain = root[:, :1] / root * 10 ** (-plan.snr_db.to(device) / 20)
        swap = plan.swap.to(device)
        if is_room:
            row = self._room_row(plan)
            heard = self._room_azimuth[row].to(device)
            azimuth = torch.where(swap[:, None], torch.remainder(-heard, 360.0), heard)
            row = row.to(device)
            response = self._room_response[row].float()
            gain = gain * self._room_level[row]
            rt60 = torch.stack([self._room_rt60[head][room] for head, room
                                in zip(plan.head.tolist(), plan.room.tolist())]).to(device)
        else:
            azimuth = torch.remainder(plan.azimuth.to(device), 360.0)
            response = self._head_response(plan, azimuth, swap)
            rt60 = torch.zeros(len(plan), device=device)
        response = torch.where(swap[:, None, None, None], response.flip(2), response)
        response = torch.fft.rfft(response * gain[..., None, None], layout.nfft)
        images = torch.fft.irfft(spectrum[:, :, None] * response, layout.nfft)
        images = images[..., begin:begin + window]
        mixture = images.sum(1)
        noise = self._noise(plan, mixture)
        if noise is not None:
            mixture = mixture + noise
        if plan.level_db is not None:
            rms = mixture.square().mean((-1, -2)).clamp(min=1e-20).sqrt()
            loud = 10 ** (plan.level_db.to(device) / 20) / rms
            loud = torch.minimum(loud, 1.0 / mixture.abs().amax((-1, -2)).clamp(min=1e-10))
            images = images * loud[:, None, None, None]
            mixture = mixture * loud[:, None, None]
            noise = noise if noise is None else noise * loud[:, None, None]
        recording = plan.recording.to(device)
        return Scene(mixture=mixture, sources=images.contiguous(), azimuth=azimuth,
                     kind=self.pool.kind[recording], recording=recording,
                     head=plan.head.to(device), snr_db=plan.snr_db.to(device), rt60=rt60,
                     swap=plan.swap.to(device),
                     noise=noise)

    def _head_response(self, plan: Plan, azimuth: torch.Tensor, swap: torch.Tensor) -> torch.Tensor:
        """Responses without a room, (B, S, 2, taps), before mirrored ones are mirrored."""
        heard = torch.where(swap[:, None], torch.remainder(-azimuth, 360.0), azimuth)
        low = heard.floor()
        part = (heard - low)[..., None, None]
        low = low.long() % 360
        head = plan.head.to(self.device)[:, None]
        size = plan.size.to(self.device)[:, None]
        bank = self._bank
        return torch.lerp(bank[head, size, low], bank[head, size, (low + 1) % 360], part)

    def _noise(self, plan: Plan, sounds: torch.Tensor) -> torch.Tensor | None:
        """Noise (B, 2, N) at its level below ``sounds`` (B, 2, N), or None."""
        if plan.noise_start is None:
            return None
        device, window = self.device, self.window
        energy = sounds.square().mean((-1, -2))
        start = plan.noise_start.to(device)
        noise = torch.zeros_like(sounds)
        if plan.noise_db is not None:
            steps = torch.arange(self._noise_nfft, device=device)
            place = torch.remainder(start[:, :1] + steps, _NOISE_LENGTH)
            spectrum = torch.fft.rfft(self._diffuse[plan.head.to(device)[:, None], :, place]
                                      .transpose(1, 2))
            # 1 / f ** slope in power is 2 ** (-slope / 2) an octave in amplitude.
            slope = plan.noise_slope.to(device)[:, None]
            colour = torch.exp2(-0.5 * slope * self._noise_octave) * self._noise_floor
            around = torch.fft.irfft(spectrum * colour[:, None], self._noise_nfft)[..., :window]
            level = energy / around.square().mean((-1, -2)) * 10 ** (-plan.noise_db.to(device) / 10)
            noise += around * level.sqrt()[:, None, None]
        if plan.sensor_db is not None:
            steps = torch.arange(window, device=device)
            hiss = self._hiss[torch.remainder(start[:, 1:, None] + steps, _NOISE_LENGTH)]
            level = energy * 10 ** (-plan.sensor_db.to(device) / 10)
            noise += hiss * (level[:, None] / hiss.square().mean(-1)).sqrt()[..., None]
        return torch.where(plan.swap.to(device)[:, None, None], noise.flip(1), noise)

    @torch.no_grad()
    def sample(self, batch_size: int, n_sources: int | None = None) -> Scene:
        """Make ``batch_size`` new scenes."""
        return self.render(self.draw(batch_size, n_sources))

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State of the generator: with it, the next batch is the same on any device."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.generator.set_state(state["generator"].cpu())


def _fast_length(least: int) -> int:
    """Smallest even number of the form 2^a 3^b 5^c that is at least ``least``."""
    best = 1 << math.ceil(math.log2(least))
    five = 1
    while five < best:
        three = five
        while three < best:
            candidate = three * 2 ** max(1, math.ceil(math.log2(least / three)))
            if least <= candidate < best:
                best = candidate
            three *= 3
        five *= 5
    return best


def benchmark(simulator: BinauralSimulator, batch_sizes: Sequence[int] = (8, 16, 32, 64),
              seconds: float = 3.0) -> list[tuple[int, float]]:
    """Measure scenes a second for each batch size, after one batch to warm up."""
    rates = []
    cuda = simulator.device.type == "cuda"
    for batch in batch_sizes:
        simulator.sample(batch)
        if cuda:
            torch.cuda.synchronize()
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            simulator.sample(batch)
            if cuda:
                torch.cuda.synchronize()
            done += batch
        rates.append((batch, done / (time.perf_counter() - begin)))
    return rates


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see ``python -m training.simulation --help``."""
    parser = argparse.ArgumentParser(prog="python -m training.simulation",
                                     description="Measure how fast scenes are made.")
    parser.add_argument("--benchmark", action="store_true", required=True)
    parser.add_argument("--data", default="data/packed")
    parser.add_argument("--split", default="train")
    parser.add_argument("--heads", nargs="+", default=["mit_kemar"])
    parser.add_argument("--sources", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a scene")
    parser.add_argument("--rooms", help="folder of room banks: every scene in a room")
    parser.add_argument("--noise", action="store_true", help="noise in every scene")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    config = SimulationConfig(
        n_sources=(options.sources,), seconds=options.seconds, rooms=options.rooms,
        room_share=float(bool(options.rooms)), noise_share=float(options.noise),
        sensor_db=(30.0, 60.0) if options.noise else None)
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        try:
            pool = ClipPool.load(options.data, options.split, device)
            simulator = BinauralSimulator(pool, options.heads, config, split=options.split)
        except ConfigError as error:
            parser.error(str(error))
        where = f"{torch.get_num_threads()} threads" if device == "cpu" else (
            torch.cuda.get_device_name())
        print(f"{device} ({where}), {options.sources} sounds, {options.seconds:g} s, "
              f"{len(pool)} recordings")
        batches = (8, 16, 32, 64) if device == "cpu" else (16, 64, 256, 512)
        for batch, rate in benchmark(simulator, batches):
            print(f"  batch {batch:4d}: {rate:9.0f} scenes/s")


if __name__ == "__main__":
    main()
