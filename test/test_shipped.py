"""The checkpoints that come with the package: small, described, and they hear the demo's scene."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from luseel_model import load_model
from luseel_model.checkpoint import CHECKPOINT_FOLDER, SHIPPED
from luseel_model.cli import main
from luseel_model.commands.models import card_facts
from luseel_model.image_files import read_image
from luseel_model.query import Query
from training.metrics import si_snr_per_ear_mean

NAMES = sorted(path.stem for path in CHECKPOINT_FOLDER.glob("*.safetensors"))
LARGEST = {SHIPPED: 20e6}  # bytes; 4 MB for any other
# dB that it gains, and that the sound asked for is nearer than the other; 2 and 6 for any other.
# The drawn rooster is found, but its first crow is lost.
LEAST = {"id-uss-small": (-2.0, 6.0), "multi-clue-small": (1.0, 3.0)}
SCENE = Path(__file__).parent.parent / "luseel_ros" / "demo" / "data"
PICTURES = Path(__file__).parent / "pictures"
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
    if not model.capabilities.sound:
        pytest.skip("gives no sound")
    clue = next(clue for clue in ("text", "tag", "image") if clue in model.capabilities.clues)
    queries = [Query(image=read_image(PICTURES / f"{label.split()[0]}.png")) if clue == "image"
               else Query(**{clue: label}) for label in ("dog barking", "rooster crowing")]
    mixture = tracks[0] + tracks[1]
    results = model.extract(mixture, RATE, queries, progress=False)

    def quality(estimate, truth):
        return float(si_snr_per_ear_mean(*(torch.from_numpy(np.ascontiguousarray(x))[None]
                                           for x in (estimate, truth))))

    gain, distance = LEAST.get(name, (2.0, 6.0))
    for result, truth, other in zip(results, tracks, reversed(tracks)):
        assert quality(result.audio, truth) > quality(mixture, truth) + gain
        assert quality(result.audio, truth) > quality(result.audio, other) + distance


def test_all_clues_on_the_command_line_and_which_of_them_counted(tmp_path):
    """The dog of the mixture by tag, words and picture together, and Figure 2 of it."""
    tracks = scene_tracks(4.0)
    soundfile.write(tmp_path / "in.wav", (tracks[0] + tracks[1]).T, RATE, subtype="FLOAT")
    assert main(["extract", str(tmp_path / "in.wav"), "a dog barks", "--tag", "dog barking",
                 "--image", str(PICTURES / "dog.png"), "--together", "--model", "multi-clue-small",
                 "--attention", str(tmp_path / "attention.png"), "-o", str(tmp_path / "dog.wav"),
                 "--quiet"]) == 0
    found = soundfile.read(tmp_path / "dog.wav", dtype="float32")[0].T
    dog, rooster = (np.corrcoef(found.ravel(), track.ravel())[0, 1] for track in tracks)
    assert dog > rooster + 0.2, (dog, rooster)
    assert read_image(tmp_path / "attention.png").std() > 30
