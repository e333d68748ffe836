"""Models without a network, and without ROS."""

import time
from types import SimpleNamespace

import numpy as np

from luseel_model.query import Capabilities, as_query

RATE = 16000


class EarModel:
    """Gives the window back; says 90 degrees when the left ear is louder, else 270."""

    sample_rate, window, device, name = RATE, 0.4, "cpu", "ears"

    def __init__(self, seconds=0.0):
        self.seconds, self.runs = seconds, 0

    def warm_up(self):
        self.infer_window(np.zeros((2, 6400), np.float32), ["sound"])

    def infer_window(self, window, queries):
        self.runs += 1
        time.sleep(self.seconds)
        count, level = len(queries), np.abs(window).mean(-1)
        azimuth = 90.0 if level[0] > level[1] else 270.0
        likelihood = np.full((count, 360), 0.01, np.float32)
        likelihood[:, int(azimuth)] = 1.0
        return SimpleNamespace(
            audio=np.stack([window] * count), azimuth=np.full(count, azimuth),
            likelihood=likelihood, confidence=np.full(count, min(1.0, 8 * level.max())))


class AbleModel(EarModel):
    """One that says what it takes and gives; keeps the queries of its newest run."""

    capabilities = Capabilities(frozenset({"text"}))

    def __init__(self):
        super().__init__()
        self.queries = []

    @property
    def microphones(self):
        return self.capabilities.microphones

    def warm_up(self):
        pass

    def check_query(self, query):
        query = as_query(query)
        self.capabilities.check(query, self.name)
        return query

    def infer_window(self, window, queries):
        assert window.shape == (self.microphones, round(self.window * RATE))
        for query in queries:
            self.check_query(query)
        self.queries = list(queries)
        return self.answer(window, queries)

    def answer(self, window, queries):
        return super().infer_window(window, queries)


class MutedModel(AbleModel):
    """No direction: half of the window, whatever is asked for."""

    name = "muted"
    capabilities = Capabilities(frozenset({"text"}), direction=False)

    def answer(self, window, queries):
        count = len(queries)
        return SimpleNamespace(
            audio=np.stack([0.5 * window] * count), azimuth=np.full(count, np.nan),
            likelihood=np.zeros((count, 360), np.float32), confidence=np.full(count, 0.8))


class SquareModel(AbleModel):
    """No sound: which of four microphones is the loudest, at 45, 135, 225 and 315 degrees."""

    name = "square"
    capabilities = Capabilities(frozenset({"text"}), sound=False, microphones=4)

    def __init__(self):
        super().__init__()
        self.array = None

    def set_array(self, array):
        self.array = array

    def answer(self, window, queries):
        count = len(queries)
        azimuth = 45.0 + 90 * int(np.abs(window[:, -1600:]).mean(-1).argmax())
        off = (np.arange(360) - azimuth + 180) % 360 - 180
        likelihood = np.exp(-0.5 * (off / 5) ** 2).astype(np.float32)
        return SimpleNamespace(
            audio=None, azimuth=np.full(count, azimuth), likelihood=np.stack([likelihood] * count),
            confidence=np.full(count, 0.9))


class PictureModel(AbleModel):
    """Takes pictures alone: a red one asks for the left ear at 90 degrees, any other one for the
    right ear at 270. Counts the pictures that it has not looked at yet."""

    name = "pictures"
    capabilities = Capabilities(frozenset({"image"}))

    def __init__(self):
        super().__init__()
        self.seen = []  # the arrays themselves: an id of one that is gone may come again

    def answer(self, window, queries):
        audio, azimuth = np.zeros((len(queries), 2, window.shape[1]), np.float32), []
        for i, query in enumerate(queries):
            if not any(query.image is picture for picture in self.seen):
                self.seen.append(query.image)
            red, _, blue = query.image.reshape(-1, 3).mean(0)
            ear = 0 if red > blue else 1
            audio[i, ear] = window[ear]
            azimuth.append((90.0, 270.0)[ear])
        likelihood = np.full((len(queries), 360), 0.01, np.float32)
        likelihood[np.arange(len(queries)), np.int64(azimuth)] = 1
        return SimpleNamespace(audio=audio, azimuth=np.array(azimuth), likelihood=likelihood,
                               confidence=np.full(len(queries), 0.9))


class ClueModel(AbleModel):
    """Takes words, tags and moving pictures together; the more of them, the surer."""

    name = "clues"
    capabilities = Capabilities(frozenset({"text", "tag", "frames"}), together=True)

    def answer(self, window, queries):
        out = super().answer(window, queries)
        out.confidence = np.array([len(as_query(query).clues) / 4 for query in queries])
        return out
