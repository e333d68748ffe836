"""Training of the multi-clue network: what is given, what is held out, what is learnt."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml

from luseel_model.config import build_config
from luseel_model.errors import ConfigError
from luseel_model.multi_clue.attention import Clues
from model_fixtures import write_corpus
from training.benchmark.run import Results
from training.clue_table.measure import measure
from training.clue_table.scenes import CONDITIONS, TestScenes
from training.clue_table.table import markdown, read_rows, summarise, write_rows
from training.clues.bank import ClipBank
from training.tasks.multi_clue import MultiClueTask, MultiClueTrainConfig
from training.train_config import load_train_config
from test_multi_clue import TINY, Pictures, picture
from test_multi_clue import MultiClueExtractor, minilm

TONES = {"bell": 440.0, "dog": 700.0, "flute": 1000.0, "rain": 1500.0}


def tone(frequency, seconds=0.7):
    t = np.arange(round(16000 * seconds)) / 16000
    return 0.4 * np.sin(2 * np.pi * frequency * t) * (1 + 0.2 * np.sin(20 * t))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    clips = [(label, f"{label}{i}", tone(f * (1 + 0.02 * i))) for label, f in TONES.items()
             for i in range(2)]
    return write_corpus(tmp_path_factory.mktemp("multi_clue") / "packed",
                        {split: clips for split in ("train", "valid", "test")})


def config(corpus, tmp_path, **changes):
    model = tmp_path / "tiny.yaml"
    model.write_text(yaml.safe_dump({"family": "multi-clue", **TINY}))
    data = {"packed": str(corpus), "captions": False, "unseen": ["flute"], "queries": 2,
            "absent_share": 0.3, "simulation": {"seconds": 0.5, "snr_db": [-2.0, 2.0]},
            **changes.pop("data", {})}
    return build_config(MultiClueTrainConfig, {
        "name": "tiny", "family": "multi-clue", "model": str(model), "steps": 8, "data": data,
        "loss": {"clip_tags": 1.0, "dense_tags": 1.0, "absent": 0.1, "presence": 1.0},
        "validation": {"mixtures": 4, "batch_size": 4}, **changes})


def make(config, seed=1):
    torch.manual_seed(seed)
    task = MultiClueTask(config, torch.device("cpu"), seed)
    # clips of two kinds, as if there were pictures
    width = task.network.config.video.image.embedding
    bank = ClipBank(torch.randn(4, 3, width), torch.tensor([0, 0, 3, 3]), 4)
    task.clips = task.valid_clips = bank
    return task


@pytest.fixture
def task(corpus, tmp_path):
    return make(config(corpus, tmp_path))


def test_batches_give_random_subsets_of_the_clues_that_there_are(task):
    seen, share = set(), []
    for step in range(6):
        batch = task.batch(step, 16)
        given = torch.stack([batch.clues.tag.any(-1), batch.clues.text_mask.any(-1),
                             batch.clues.video_mask.any(-1)], -1)
        assert given.any(-1).all()  # one at least
        wanted = torch.where(batch.asked >= 0, batch.kind.gather(1, batch.asked.clamp(min=0)), -1)
        assert not given[..., 2][(wanted == 1)].any()  # 'dog' has no clips
        tags = batch.clues.tag.argmax(-1)[given[..., 0] & (wanted >= 0)]
        assert torch.equal(tags, wanted[given[..., 0] & (wanted >= 0)])
        seen |= {tuple(row) for row in given.flatten(0, 1).tolist()}
        share.append((batch.asked < 0).float().mean())
    assert len(seen) == 7  # every subset but the empty one
    assert 0.02 < float(torch.stack(share).mean()) < 0.3


def test_held_out_kinds_are_never_heard_nor_asked_for(task):
    flute = task.bank.kinds.index("flute")
    for step in range(4):
        batch = task.batch(step, 16)
        assert not (batch.kind == flute).any() and not batch.clues.tag[..., flute].any()
    assert task.info()["unseen"] == ["flute"]


def test_first_stage_of_the_paper_gives_the_tag_alone(corpus, tmp_path):
    task = make(config(corpus, tmp_path, tag_clue_steps=5))
    batch = task.batch(0, 8)
    assert batch.clues.tag.any(-1).all()
    assert not batch.clues.text_mask.any() and not batch.clues.video_mask.any()
    assert task.batch(5, 32).clues.text_mask.any()


def test_single_clue_systems_get_that_clue_alone(corpus, tmp_path):
    task = make(config(corpus, tmp_path, data={"given": ["text"]}))
    batch = task.batch(0, 8)
    assert batch.clues.text_mask.any(-1).all() and not batch.clues.tag.any()
    assert set(task.validate()) >= {"score", "snri_all"}


def test_resumed_chance_gives_the_same_batches(task):
    task.batch(0, 4)
    state = task.state_dict()
    expected = task.batch(1, 4)
    task.load_state_dict(state)
    found = task.batch(1, 4)
    assert torch.equal(found.mixture, expected.mixture)
    assert torch.equal(found.clues.tag, expected.clues.tag)
    assert torch.equal(found.wording, expected.wording) and torch.equal(found.clip, expected.clip)


def test_first_stage_learns_which_kind_is_where(corpus, tmp_path):
    task = make(config(corpus, tmp_path, tag_steps=60))
    optimizer = torch.optim.AdamW(task.network.parameters(), 5e-3)
    batch, values = task.batch(0, 8), []
    for _ in range(40):
        terms = task.losses(batch, 0)
        assert set(terms) == {"clip_tags", "dense_tags"}
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        values.append(float(terms["dense_tags"].detach()))
    # three kinds are heard: ln 3 = 1.1 where nothing is known
    assert values[0] > 0.9 and values[-1] < 0.75 * values[0]


def test_second_stage_learns_to_extract(corpus, tmp_path):
    task = make(config(corpus, tmp_path, data={"absent_share": 0.0}))
    optimizer = torch.optim.AdamW(task.network.parameters(), 5e-3)
    batch, values = task.batch(0, 4), []
    for _ in range(40):
        terms = task.losses(batch, 0)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(task.network.parameters(), 5.0)
        optimizer.step()
        values.append(float(terms["snr"].detach()))
    # it starts from half the mixture, both queries of a mixture alike: 2 dB need telling them apart
    assert values[-1] < values[0] - 2.0


def test_second_stage_trains_all_parts_and_validates(task):
    batch = task.batch(0, 8)
    terms = task.losses(batch, 0)
    assert set(terms) == {"snr", "l1", "absent", "presence", "clip_tags", "dense_tags"}
    sum(terms.values()).backward()
    still = {name.split(".")[0] + "." + name.split(".")[1] for name, p in
             task.network.named_parameters() if p.grad is None}
    assert not still
    task.network.eval()
    chance = task.state_dict()["generator"].clone()
    first, second = task.validate(), task.validate()
    assert first == second and set(first) >= {"score", "snri_all", "snri_tag", "snri_text",
                                              "snri_video", "right_source"}
    assert torch.equal(task.state_dict()["generator"], chance)


def test_an_untrained_network_starts_near_half_the_mixture(task):
    task.network.eval()
    batch = task.batch(0, 8)
    with torch.inference_mode():
        audio = task.network(batch.mixture, batch.clues).audio[:, 0]
    share = (audio * batch.mixture).sum(-1) / batch.mixture.square().sum(-1)
    assert ((share > 0.3) & (share < 0.7)).all()


@pytest.mark.parametrize("change, message", [
    ({"data": {"simulation": {"seconds": 1.0}}}, "window"),
    ({"loss": {"snr": 0.0, "l1": 0.0}}, "extraction"),
    ({"tag_steps": 5, "loss": {}}, "tag_steps"),
    ({"overrides": {"tags": 9}}, "overrides: {tags: 4}")])
def test_contradictions_are_named(corpus, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        make(config(corpus, tmp_path, **{**{"data": {}}, **change}))


@pytest.mark.parametrize("name", ["multi-clue", "multi-clue-small"])
def test_shipped_trainings_fit_their_models(name):
    run = load_train_config(name)
    run.check(run.model_config())
    assert len(run.data.unseen) == len(set(run.data.unseen)) >= 10


def test_noise_losses_need_no_data(corpus, tmp_path):
    run = config(corpus, tmp_path)
    torch.manual_seed(0)
    terms = MultiClueTask.noise_losses(run, MultiClueTask.build_network(run), 2)
    assert all(value.isfinite() for value in terms.values())


# -- the tables


def test_tables_of_a_network(corpus, task, tmp_path):
    model = MultiClueExtractor(task.network, "tiny", {**task.info()}, text=minilm(),
                               image=Pictures())
    tags = {kind: kind for kind in TONES} | {"flute": "bell"}
    scenes = TestScenes(str(corpus), "mit_kemar", ["flute"],
                        {"bell": [picture()], "flute": [picture(1)]}, tags, frames=2)
    scenes.config = dataclasses.replace(scenes.config, seconds=0.5)
    results = Results(tmp_path / "rows", {})
    rows = measure(model, scenes, {"seen": 3, "unseen": 2}, results=results)
    # stopped in the middle: what is missing is made again, and is the same
    path = tmp_path / "rows" / "cells" / "seen.jsonl"
    whole = path.read_text()
    path.write_text(whole[:len(whole) // 2])
    again = measure(model, scenes, {"seen": 3, "unseen": 2}, results=results)
    assert path.read_text() == whole and [r["snri"] for r in again] == [r["snri"] for r in rows]
    assert all(np.isnan(r["within_10"]) == (r["condition"] == "half") for r in rows)
    assert {r["kind"] for r in rows if r["set"] == "unseen"} == {"flute"}
    assert not any(r["kind"] == "flute" for r in rows if r["set"] == "seen")
    bell = {r["condition"] for r in rows if r["kind"] == "bell"}
    assert bell == {" + ".join(c) for c in CONDITIONS} | {"half"}
    rain = {r["condition"] for r in rows if r["kind"] in ("dog", "rain")}
    assert rain == {"tag + text", "tag", "text", "text*", "half"}
    write_rows(rows, tmp_path / "rows.csv.gz")
    back = read_rows(tmp_path / "rows.csv.gz")
    assert [r["condition"] for r in back] == [r["condition"] for r in rows]
    summary = summarise(back, {"model": "tiny", "parameters": 20_000, "unseen": ["flute"],
                               "mixtures": {"seen": 3, "unseen": 2}, "nearest": {"flute": "bell"}})
    half = [r["snri"] for r in back if r["set"] == "seen" and r["condition"] == "half"]
    cell = next(c for c in summary["cells"] if c["set"] == "seen" and c["condition"] == "half"
                and not c["with_video"])
    assert cell["snri"]["mean"] == pytest.approx(np.mean(half))
    text = markdown(summary)
    assert "| tag + text + video | 6.9 |" in text and "| text* | 5.8 |" in text
    assert "flute: bell" in text and "3 mixtures seen (6 sounds of" in text


def test_scenes_are_the_same_for_every_model(corpus):
    tags = {kind: kind for kind in TONES}
    found = []
    for _ in range(2):
        scenes = TestScenes(str(corpus), "mit_kemar", ["flute"], {"bell": [picture()]}, tags, 2)
        found.append(list(scenes("unseen", 2)))
    for (_, one, sounds), (_, other, again) in zip(*found):
        assert torch.equal(one.mixture, other.mixture)
        assert [s.clues["text*"] for s in sounds] == [s.clues["text*"] for s in again]
        assert one.kind.numel() == 2 and len(sounds) == 1


def test_clues_move_between_devices_and_are_cut_down():
    clues = Clues(tag=torch.ones(1, 1, 2)).to("cpu")
    assert clues.only("text").tag is None and clues.only("tag").tag is not None
