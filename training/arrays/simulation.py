"""Scenes heard by a microphone array: still sounds, additive sounds and moving ones.

What is drawn and how recordings are laid out is :mod:`training.simulation`'s; here the responses
are those of a bank of :mod:`training.arrays.rooms`, of any number of microphones.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from luseel_model.arrays import MicrophoneArray
from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.arrays.rooms import ONSET, ArrayBank, diffuse_noise
from training.heads import Head
from training.pool import ClipPool
from training.rooms import SPLITS
from training.simulation import BinauralSimulator, Plan, SimulationConfig

_NOISE_LENGTH = 1 << 20  # that of training.simulation
#: Responses between which a moving sound is blended are this far apart in time (s).
_BLEND = 0.2


@dataclass(frozen=True)
class ArraySceneConfig:
    """What the scenes are like, beside their ``sounds`` (:class:`SimulationConfig`).

    Attributes:
        rooms: folder of the banks; ``bank``: the name of one in it.
        additive_share: share of scenes of two sounds or more whose other sounds have no direction:
            they reach all microphones alike, as the paper's additive source.
        speed: of a moving sound, degrees a second (lowest, highest), in either sense.
        still_share: share of sounds in moving scenes that stay where they are.
    """

    rooms: str = "data/arrays"
    bank: str = "square"
    additive_share: float = 0.0
    speed: tuple[float, float] = (5.0, 60.0)
    still_share: float = 0.3

    def __post_init__(self) -> None:
        for name in ("additive_share", "still_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be within 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.speed[0] <= self.speed[1]:
            raise ConfigError(f"speed: {self.speed} must be (lowest, highest)")


@dataclass
class MovingScene:
    """B scenes of S sounds.

    Attributes:
        mixture: (B, M, N) float32.
        sources: (B, S, M, N) as heard, scaled as in the mixture.
        azimuth: (B, S, N // hop + 1) degrees at 0, hop, 2·hop … samples.
        kind: (B, S) index into the pool's kinds.
    """

    mixture: Tensor
    sources: Tensor
    azimuth: Tensor
    kind: Tensor


class ArraySimulator(BinauralSimulator):
    """Makes batches of scenes without end; a scene's azimuth is NaN for an additive sound.

    Args:
        pool: the recordings.
        config: of the sounds; its heads and rooms aren't used.
        scenes: of the array.
        seed, confusable, split: see :class:`~training.simulation.BinauralSimulator`.
    """

    def __init__(self, pool: ClipPool, config: SimulationConfig, scenes: ArraySceneConfig,
                 device: torch.device | str | None = None, seed: int = 0,
                 confusable: Tensor | None = None, split: str = "train"):
        self.scenes = scenes
        self.bank = ArrayBank.load(scenes.rooms, scenes.bank, split)
        # everything is heard in a room, and by no head
        config = dataclasses.replace(config, rooms=scenes.rooms, room_share=1.0, swap_ears=0.0,
                                     head_size=None)
        head = Head("none", torch.ones(360, 2, 1))
        super().__init__(pool, [head], config, device, seed, confusable, split)

    @property
    def microphones(self) -> int:
        return self.bank.response.shape[2]

    # -- preparation, in the places where the head's would be

    def _prepare_rooms(self) -> None:
        bank, device = self.bank, self.device
        rooms, positions, microphones, taps = bank.response.shape
        if positions < max(self.config.n_sources):
            raise ConfigError(f"the rooms of {bank.name} have {positions} positions, too few for "
                              f"{max(self.config.n_sources)} sounds")
        # the last row is the additive sound: all microphones alike, from nowhere
        plain = torch.zeros(1, microphones, taps, dtype=torch.float16)
        plain[..., ONSET] = 1.0
        response = torch.cat([bank.response.flatten(0, 1), plain])
        energy = torch.cat([part.float().square().sum(-1).mean(-1)
                            for part in response.split(positions)])
        self._room_response = response.to(device)
        self._room_level = energy.rsqrt().to(device)
        self._room_azimuth = torch.cat([bank.azimuth.flatten(), torch.tensor([torch.nan])])
        self._room_rt60 = [bank.rt60]
        self._room_count = torch.tensor([rooms])
        self._room_positions = torch.tensor([positions])
        self._room_first = torch.tensor([0])
        self._reverberant = self._layout(taps)

    def _room_row(self, plan: Plan) -> Tensor:
        row = super()._room_row(plan)
        return torch.where(plan.position < 0, len(self._room_response) - 1, row)

    def _prepare_noise(self) -> None:
        super()._prepare_noise()
        if self.config.noise_share:
            places = self.bank.microphones[0].tolist()
            array = MicrophoneArray(self.bank.name, tuple(tuple(place) for place in places))
            random = np.random.default_rng(SPLITS.index(self.split))
            self._diffuse = torch.from_numpy(
                diffuse_noise(array, _NOISE_LENGTH, 1, random)).to(self.device)

    def _draw_noise(self, plan: Plan) -> None:
        super()._draw_noise(plan)
        plan.noise_start = torch.randint(_NOISE_LENGTH, (len(plan), 1 + self.microphones),
                                         generator=self.generator)

    # -- still scenes

    def draw(self, batch_size: int, n_sources: int | None = None) -> Plan:
        """As :meth:`BinauralSimulator.draw`; ``position`` -1 is an additive sound."""
        plan = super().draw(batch_size, n_sources)
        if self.scenes.additive_share and plan.position.shape[1] > 1:
            additive = self._uniform(batch_size) < self.scenes.additive_share
            plan.position[:, 1:] = torch.where(additive[:, None], -1, plan.position[:, 1:])
        return plan

    # -- moving scenes

    @torch.no_grad()
    def sample_moving(self, batch_size: int, n_sources: int, hop: int) -> MovingScene:
        """Scenes of sounds that move along circles, in rooms of a bank made with ``--path``.

        The sound of each stretch of time is heard through the response of the place where it is
        then, and stretches are blended.

        Args:
            hop: samples between the azimuths that are given.
        """
        plan = self.draw(batch_size, n_sources)
        low, high = self.scenes.speed
        shape = plan.position.shape
        speed = low + (high - low) * self._uniform(*shape)
        speed = speed * torch.where(self._uniform(*shape) < 0.5, -1.0, 1.0)
        speed = speed.masked_fill(self._uniform(*shape) < self.scenes.still_share, 0.0)
        return self.render_moving(plan, speed, hop)

    def render_moving(self, plan: Plan, speed: Tensor, hop: int) -> MovingScene:
        """Make the scenes of a plan whose sounds are at their place in the middle of the window
        and move at ``speed`` (B, S), degrees a second."""
        if not self.bank.is_path:
            raise ConfigError(f"the rooms of {self.bank.name} aren't made for moving sounds: make "
                              "some with `python -m training.arrays.rooms --path`")
        parts = [self._render_moving(plan[i:i + 1], speed[i:i + 1], hop)
                 for i in range(len(plan))]
        return MovingScene(*(torch.cat([getattr(part, field.name) for part in parts])
                             for field in dataclasses.fields(MovingScene)))

    def _render_moving(self, plan: Plan, speed: Tensor, hop: int) -> MovingScene:
        device, window = self.device, self.window
        layout = self._reverberant
        begin, taps = layout.before, self._room_response.shape[-1]
        dry = self._gather(plan, layout)[0]  # S nfft
        energy = dry[:, begin:begin + window].square().mean(-1)
        root = energy.clamp(min=1e-14).sqrt()
        gain = root[:1] / root * 10 ** (-plan.snr_db[0].to(device) / 20)
        positions = int(self._room_positions[0])
        step = 360.0 / positions
        first = int(plan.room[0]) * positions
        start = self._room_azimuth[first]
        middle = self._room_azimuth[first + plan.position[0]]  # S
        times = torch.arange(window // hop + 1) * hop / SAMPLE_RATE - 0.5 * window / SAMPLE_RATE
        azimuth = torch.remainder(middle[:, None] + speed[0, :, None] * times, 360.0)
        stretch = round(_BLEND * SAMPLE_RATE)
        count = (begin + window) // stretch + 2
        ramp = torch.arange(stretch, device=device) / stretch
        shape = torch.cat([ramp, 1 - ramp])  # neighbours add up to 1
        images = torch.zeros(len(gain), self.microphones, (count + 2) * stretch + taps,
                             device=device)
        size = _power_of_two(2 * stretch + taps)
        padded = torch.nn.functional.pad(dry, (stretch, (count + 2) * stretch))
        for k in range(count):
            # the middle of this stretch, seconds from the middle of the window
            moment = (k * stretch - begin - 0.5 * window) / SAMPLE_RATE
            place = torch.remainder(middle + speed[0] * moment - start, 360.0) / step
            low = place.floor()
            part = (place - low)[:, None, None].to(device)
            rows = torch.stack([first + torch.remainder(low + i, positions).long()
                                for i in (0, 1)]).to(device)
            near = self._room_response[rows].float() * self._room_level[rows][..., None, None]
            response = torch.lerp(near[0], near[1], part) if bool((part > 0).any()) else near[0]
            sound = padded[:, k * stretch:(k + 2) * stretch] * shape
            heard = torch.fft.irfft(torch.fft.rfft(sound, size)[:, None]
                                    * torch.fft.rfft(response, size), size)
            images[..., k * stretch:k * stretch + 2 * stretch + taps] += \
                heard[..., :2 * stretch + taps]
        images = images[..., stretch + begin:stretch + begin + window] * gain[:, None, None]
        mixture = images.sum(0)[None]
        noise = self._noise(plan, mixture)
        if noise is not None:
            mixture = mixture + noise
        if plan.level_db is not None:
            loud = 10 ** (plan.level_db.to(device) / 20) / mixture.square().mean().clamp(
                min=1e-20).sqrt()
            loud = torch.minimum(loud, 1.0 / mixture.abs().amax().clamp(min=1e-10))
            images, mixture = images * loud, mixture * loud
        return MovingScene(mixture, images[None], azimuth[None].to(device),
                           self.pool.kind[plan.recording.to(device)])


def plane_wave(sound: Tensor, array: MicrophoneArray, azimuth: Tensor | float) -> Tensor:
    """A sound from far away without a room, delayed exactly for each microphone.

    Args:
        sound: (N,), heard in a circle: its end goes on at its beginning.
        azimuth: degrees.
    Returns:
        (M, N).
    """
    delays = array.delays(torch.as_tensor(azimuth, dtype=torch.float64))
    spectrum = torch.fft.rfft(sound.double())
    frequency = torch.fft.rfftfreq(sound.shape[-1], 1 / SAMPLE_RATE, dtype=torch.float64)
    shift = torch.polar(torch.ones_like(frequency)[None], -2 * torch.pi * frequency
                        * delays[:, None])
    return torch.fft.irfft(spectrum * shift, sound.shape[-1]).float()


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
