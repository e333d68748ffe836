"""Where the samples of a stream stand in time: from stamps to sample numbers, and back.

Plain Python, all times in nanoseconds. Sources of two kinds are understood. One numbers its samples
(`first_sample`): the numbers say what was lost, the stamps when it was. The other has stamps alone:
when they stay later than the samples so far explain, audio was lost; when they go back, it came
twice. Many sources stamp with the time of arrival: such stamps may jitter (up to `tolerance`),
drift (up to `MAX_DRIFT`), be late for a moment and catch up, and are not believed then.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

NANOSECONDS = 1_000_000_000
MAX_DRIFT = 500e-6  # of an audio clock against the stamps; crystals keep within 100e-6
PACE_BLOCKS = 32  # blocks by which the sample rate is judged ...
PACE_ERROR = 0.05  # ... and by how much it must be off
LATE_BLOCKS = 3  # blocks that must be late in a row before audio counts as lost
STAMP_REACH = 2.0  # [s] after the end of a block up to which its stamp is extrapolated

FOLLOWS, GAP, OVERLAP, JUMP = "follows", "gap", "overlap", "jump"


def samples_to_ns(samples: int, sample_rate: int) -> int:
    """The duration of so many samples (of either sign), rounded to a nanosecond."""
    shift, rest = divmod(int(samples) * NANOSECONDS, int(sample_rate))
    return shift + (2 * rest >= sample_rate)


@dataclass(frozen=True)
class Block:
    """A block of audio on the time line of a stream.

    Attributes:
        restarts: how often the stream had started anew when it came.
        start, count: its samples.
        stamp: capture time of the first.
        frame: where.
        arrival: monotonic time [s] at which it came.
    """

    restarts: int
    start: int
    count: int
    stamp: int
    frame: str
    arrival: float


@dataclass(frozen=True)
class Place:
    """Where a block belongs.

    Attributes:
        first_sample: the number to push it with; None: right after the block before.
        what: FOLLOWS, GAP, OVERLAP or JUMP: for a source without numbers, what the stamps say; JUMP
            then asks for a new stream. For one with numbers, JUMP says that the clock jumped while
            the audio went on, else FOLLOWS.
        off: by how much the stamp is later than expected.
    """

    first_sample: int | None
    what: str
    off: int = 0


class Timeline:
    """The blocks of one stream at one sample rate.

    Args:
        sample_rate: in Hz.
        tolerance: seconds by which a stamp may be off.
        max_gap: seconds up to which a gap or overlap is mended; beyond, it's a jump.
    """

    def __init__(self, sample_rate: int, tolerance: float = 0.1, max_gap: float = 1.0):
        self.sample_rate = sample_rate
        self._tolerance = round(tolerance * NANOSECONDS)
        self._max_gap = max(round(max_gap * NANOSECONDS), self._tolerance)
        self._next: int | None = None  # sample number expected next
        self._anchor = (0, 0)  # sample number and its time
        self._last: tuple[int, int] | None = None  # stamp and samples of the newest block
        self._late: list[int] = []  # by how much the newest blocks in a row were
        self._pace: collections.deque = collections.deque(maxlen=PACE_BLOCKS)
        self._blocks: collections.deque[Block] = collections.deque(maxlen=4096)
        self.first_number: int | None = None  # first_sample of the newest block, as it came

    def place(self, stamp: int, count: int, first_sample: int | None) -> Place:
        """Where a block of `count` samples that was stamped so belongs.

        Args:
            first_sample: its number if the source counts, else None. `stamp` 0: it has none
                either, and the block follows the one before.
        """
        begin = self._next if self._next is not None else (first_sample or 0)
        number = begin if first_sample is None else int(first_sample)
        self._next = max(begin, number + count) if abs(number - begin) <= self._samples(
            self._max_gap) else number + count
        last, self._last = self._last, (stamp, count) if stamp else None
        if stamp == 0:
            return Place(first_sample, FOLLOWS)
        if last is None or abs(number - begin) > self._samples(self._max_gap):
            # the first, or a source that started to count anew
            self._anchor, self._pace = (number, stamp), collections.deque(maxlen=PACE_BLOCKS)
            return Place(first_sample, FOLLOWS)
        took = samples_to_ns(number - begin + last[1], self.sample_rate)
        self._pace.append((stamp - last[0], took))
        expected = self._anchor[1] + samples_to_ns(number - self._anchor[0], self.sample_rate)
        off = stamp - expected
        if abs(off) <= self._tolerance:
            most = round(MAX_DRIFT * samples_to_ns(count, self.sample_rate))
            self._anchor = (number, expected + max(-most, min(most, off)))
            self._late = []
            return Place(first_sample, FOLLOWS, off)
        if first_sample is not None:
            self._anchor = (number, stamp)
            return Place(first_sample, JUMP, off)
        return self._by_stamp(stamp, count, begin, off, stamp - last[0])

    def _by_stamp(self, stamp: int, count: int, begin: int, off: int, step: int) -> Place:
        """Where a block without number belongs whose stamp is off, `step` after the last one."""
        if self.true_rate is not None or (off < 0 and step >= 0):
            # stamps that run at a wrong rate tell nothing; or they were late until now
            self._anchor, self._late = (begin, stamp), []
            return Place(None, FOLLOWS, off)
        if off > 0:
            if 2 * step > samples_to_ns(count, self.sample_rate):  # not part of a bunch
                self._late.append(off)
            if len(self._late) < LATE_BLOCKS:
                return Place(None, FOLLOWS, off)
            off = min(self._late)
        self._late = []
        if abs(off) > self._max_gap:
            return Place(None, JUMP, off)
        number = begin + self._samples(off)
        self._anchor = (number, stamp if off < 0 else self._anchor[1] + off + samples_to_ns(
            begin - self._anchor[0], self.sample_rate))
        self._next = max(begin, number + count)
        return Place(number, GAP if off > 0 else OVERLAP, off)

    def _samples(self, nanoseconds: int) -> int:
        return round(nanoseconds * self.sample_rate / NANOSECONDS)

    @property
    def true_rate(self) -> float | None:
        """The rate [Hz] that the stamps speak of, if they steadily contradict `sample_rate`.

        Lost audio and jumps of the clock are seldom; a wrong rate makes every stamp wrong.
        """
        if len(self._pace) < PACE_BLOCKS // 2:
            return None
        ratios = sorted(by_stamps / took for by_stamps, took in self._pace if took > 0)
        low, middle, high = (ratios[int(len(ratios) * q)] for q in (0.2, 0.5, 0.8)) \
            if ratios else (1.0, 1.0, 1.0)
        if middle > 0 and (low > 1 + PACE_ERROR or high < 1 - PACE_ERROR):
            return self.sample_rate / middle
        return None

    # -- back --------------------------------------------------------------------------------

    def add(self, block: Block) -> None:
        """Keep a block, once it is in the stream."""
        self._blocks.append(block)

    def find(self, restarts: int, sample: int) -> Block | None:
        """The block with this sample, or a little before it; None if it is forgotten.

        Args:
            restarts: of the stream before the sample: says which time line the number belongs to.
        """
        reach = STAMP_REACH * self.sample_rate
        for block in reversed(self._blocks.copy()):
            if (block.restarts == restarts
                    and block.start <= sample < block.start + block.count + reach):
                return block
        return None

    def time_of(self, restarts: int, sample: int) -> int | None:
        """Capture time of a sample; None if its block is forgotten."""
        block = self.find(restarts, sample)
        if block is None:
            return None
        return block.stamp + samples_to_ns(sample - block.start, self.sample_rate)
