"""The checkpoints that come with the package: small, described, and they hear the demo's scene."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from luseel_model import load_model
from luseel_model.checkpoint import CHECKPOINT_FOLDER, SHIPPED
from luseel_model.commands.models import card_facts
from luseel_model.query import Query
from training.metrics import si_snr_per_ear_mean

NAMES = sorted(path.stem for path in CHECKPOINT_FOLDER.glob("*.safetensors"))
LARGEST = {SHIPPED: 20e6}  # bytes; 4 MB for any other
SCENE = Path(__file__).parent.parent / "luseel_ros" / "demo" / "data"
RATE = 16000


@pytest.mark.parametrize("name", NAMES)
def test_size_and_card(name):
    path = CHECKPOINT_FOLDER / f"{name}.safetensors"
    assert path.stat().st_size <= LARGEST.get(name, 4e6)
    facts = card_facts(path.with_suffix(".md"))
    assert facts["license"] and facts["figures"]


def scene_tracks(seconds):
    """The demo's dog and rooster at its beginning, each alone as both ears hear it."""
    sounds = json.loads((SCENE / "scene.json").read_text())["sounds"][:2]
    tracks = [soundfile.read(SCENE / sound["track"], dtype="float32") for sound in sounds]
    assert [rate for _, rate in tracks] == [RATE, RATE]
    return [audio.T[:, :round(seconds * RATE)] for audio, _ in tracks]


@pytest.mark.parametrize("name", NAMES)
def test_it_hears_which_sound_is_meant(name):
    """The dog and the rooster of the demo's first seconds, each asked for."""
    tracks = scene_tracks(4.0)
    model = load_model(name, "cpu")
    if not model.capabilities.sound or not model.capabilities.clues & {"text", "tag"}:
        pytest.skip("gives no sound, or hears no words")
    clue = "text" if "text" in model.capabilities.clues else "tag"
    queries = [Query(**{clue: label}) for label in ("dog barking", "rooster crowing")]
    mixture = tracks[0] + tracks[1]
    results = model.extract(mixture, RATE, queries, progress=False)

    def quality(estimate, truth):
        return float(si_snr_per_ear_mean(*(torch.from_numpy(np.ascontiguousarray(x))[None]
                                           for x in (estimate, truth))))

    for result, truth, other in zip(results, tracks, reversed(tracks)):
        assert quality(result.audio, truth) > quality(mixture, truth) + 2.0
        assert quality(result.audio, truth) > quality(result.audio, other) + 6.0
