"""The paper's five systems: each lacks what its name says; the table from training to figures."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from model_fixtures import TINY, merged, minilm, noise, queries, write_corpus

import luseel_model.luseel.network
import training.mlp_gcc
from luseel_model.errors import CheckpointError, ConfigError
from training.benchmark.draw import make_catalogue
from training.benchmark.render import Renderer
from training.captions import Captions
from training.corpus.audiocaps import caption_label, pack_audiocaps, read_audiocaps
from training.heads import load_head
from training.paper_table.__main__ import main
from training.paper_table.systems import BY_KEY, PAPER, SYSTEMS, LeftEar, hears_one_ear, load_system
from training.paper_table.table import differences, markdown, read_results
from training.pool import ClipPool
from training.trainer import Trainer, load_train_config

KINDS = ["dog barking", "rain falling", "bell ringing", "frog croaking", "cat meowing"]
KEYS = [system.key for system in SYSTEMS]


def clip(index, samples):
    """A noise of its own colour."""
    generator = np.random.default_rng(index)
    spectrum = np.fft.rfft(generator.normal(size=samples))
    place = np.arange(spectrum.size) / spectrum.size * 8
    spectrum *= np.exp(-((place - 0.4 - 0.6 * (index % 5)) ** 2) / 0.5)
    sound = np.fft.irfft(spectrum, samples)
    return 0.5 * sound / np.abs(sound).max()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "packed", {
        split: [(kind, f"{split}{kind}{i}", clip(i + 5 * first, 9000))
                for first in range(2) for i, kind in enumerate(KINDS)]
        for split in ("train", "valid", "test")})


@pytest.fixture(autouse=True)
def one_text_encoder(monkeypatch):
    monkeypatch.setattr("training.tasks.luseel.TextEncoder", lambda config, device: minilm())
    monkeypatch.setattr("luseel_model.luseel.extractor.TextEncoder",
                        lambda config, device: minilm())


def tiny_config(key, packed):
    """A system of training/configs/ablation, its network as small as can be."""
    config = load_train_config(f"ablation/{key}", [
        f"data.packed={json.dumps(str(packed))}", "data.simulation.seconds=0.5", "batch_size=4"])
    return dataclasses.replace(config, overrides=merged(TINY, config.overrides))


@pytest.fixture(scope="module")
def systems(packed, tmp_path_factory):
    """A trainer of each, at its first step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.tasks.luseel.TextEncoder", lambda config, device: minilm())
        return {key: Trainer(tiny_config(key, packed), tmp_path_factory.mktemp(key), "cpu")
                for key in KEYS}


def gradients(trainer, scene):
    """Loss terms and gradients of a scene, always with the same chance."""
    torch.manual_seed(0)
    trainer.network.train()
    trainer.network.zero_grad()
    task = trainer.task
    kept, task.generator = task.generator, torch.Generator().manual_seed(0)
    terms = trainer.losses(task._heard(scene))
    task.generator = kept
    torch.stack(list(terms.values())).sum().backward()
    return terms, {name: p.grad.clone() for name, p in trainer.network.named_parameters()
                   if p.grad is not None}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture
def scene(systems):
    generator = torch.Generator().manual_seed(5)
    state = systems["luseel"].task.simulator.state_dict()
    systems["luseel"].task.simulator.generator = generator
    scene = systems["luseel"].task.simulator.sample(4, 2)
    systems["luseel"].task.simulator.generator = torch.Generator()
    systems["luseel"].task.simulator.load_state_dict(state)
    return scene


# -- what each system lacks


@pytest.mark.parametrize("key", ["t-htdemucs", "luseel-no-localization"])
def test_extraction_alone_learns_nothing_of_direction(systems, scene, key):
    trainer = systems[key]
    terms, before = gradients(trainer, scene)
    assert not [name for name in terms if "doa" in name] and "si_snr" in terms
    turned = dataclasses.replace(scene, azimuth=(scene.azimuth + 77) % 360)
    assert_equal(gradients(trainer, turned)[1], before)
    assert not [name for name in trainer.network.state_dict() if "locali" in name]
    output = trainer.network(trainer.task._heard(scene).mixture, *queries(1, 4))
    assert output.doa_logits is None


def test_joint_training_reaches_the_encoder_from_both_tasks(systems, scene):
    for key in ("luseel", "luseel-no-gcc"):
        trainer = systems[key]
        _, before = gradients(trainer, scene)
        turned = dataclasses.replace(scene, azimuth=(scene.azimuth + 77) % 360)
        _, after = gradients(trainer, turned)
        assert not torch.equal(before["frequency_encoder.0.conv.weight"],
                               after["frequency_encoder.0.conv.weight"])
        quiet = dataclasses.replace(scene, sources=scene.sources.flip(-1))
        _, after = gradients(trainer, quiet)
        assert not torch.equal(before["frequency_encoder.0.conv.weight"],
                               after["frequency_encoder.0.conv.weight"])


def test_one_channel_hears_no_right_ear(systems, scene):
    generator = torch.Generator().manual_seed(1)

    def other_right_ear(audio):
        audio = audio.clone()
        audio[..., 1, :] = torch.randn(audio[..., 1, :].shape, generator=generator) * 0.1
        return audio

    changed = dataclasses.replace(scene, mixture=other_right_ear(scene.mixture),
                                  sources=other_right_ear(scene.sources))
    one, other = (gradients(systems["t-htdemucs"], s) for s in (scene, changed))
    assert_equal(one[0], other[0])
    assert_equal(one[1], other[1])
    two = [gradients(systems["luseel-no-localization"], s)[1] for s in (scene, changed)]
    assert not torch.equal(two[0]["frequency_encoder.0.conv.weight"],
                           two[1]["frequency_encoder.0.conv.weight"])
    # the network itself is that of LuSeeL†
    states = [systems[key].network.state_dict() for key in ("t-htdemucs", "luseel-no-localization")]
    assert_equal(*states)


def test_no_gcc_phat(systems, scene, monkeypatch):
    """LuSeeL° never computes it and has no weights for it; in LuSeeL it matters."""
    def broken(*args):
        raise AssertionError("GCC-PHAT was computed")

    tokens, mask = queries(1, 4)
    full, without = systems["luseel"].network.eval(), systems["luseel-no-gcc"].network.eval()
    with torch.no_grad():
        expected = without(scene.mixture, tokens, mask).doa_logits
        usual = full(scene.mixture, tokens, mask)
        count = full.config.gcc_features
        with monkeypatch.context() as patch:
            patch.setattr(luseel_model.luseel.network, "gcc_phat", broken)
            assert torch.equal(without(scene.mixture, tokens, mask).doa_logits, expected)
            with pytest.raises(AssertionError, match="was computed"):
                full(scene.mixture, tokens, mask)
            patch.setattr(luseel_model.luseel.network, "gcc_phat",
                          lambda audio, hop, lags: torch.ones(len(audio), count // lags, lags))
            changed = full(scene.mixture, tokens, mask)
    assert not torch.equal(changed.doa_logits, usual.doa_logits)
    assert torch.equal(changed.audio, usual.audio)
    inputs = [net.token_localizer.decoder[0].in_features for net in (full, without)]
    assert inputs == [full.config.width + count, full.config.width] and count > 0


def test_mlp_gcc_hears_gcc_phat_alone(systems, scene, monkeypatch):
    trainer = systems["mlp-gcc"]
    assert {name.split(".")[0] for name in trainer.network.state_dict()} == {
        "text_adapter", "decoder"}
    terms, before = gradients(trainer, scene)
    assert set(terms) == {"doa"}
    # no gradient from extraction: other targets change nothing
    silent = dataclasses.replace(scene, sources=scene.sources.flip(-1))
    assert_equal(gradients(trainer, silent)[1], before)
    tokens, mask = queries(2, 4)
    network = trainer.network.eval()
    with torch.no_grad():
        usual = network(scene.mixture, tokens, mask)
        assert torch.equal(usual.audio[:, 1], scene.mixture)
        assert not torch.equal(usual.doa_logits[:, 0], usual.doa_logits[:, 1])  # the text counts
        delayed = torch.stack([scene.mixture[:, 0], scene.mixture[:, 1].roll(5, -1)], 1)
        assert not torch.equal(network(delayed, tokens, mask).doa_logits, usual.doa_logits)
        kept = training.mlp_gcc.gcc_phat(
            scene.mixture, network.config.gcc_hop_samples, network.config.localization.gcc_lags)
        monkeypatch.setattr(training.mlp_gcc, "gcc_phat", lambda *args: kept)
        assert torch.equal(network(torch.randn(scene.mixture.shape), tokens, mask).doa_logits,
                           usual.doa_logits)


def test_all_see_the_same_in_the_same_order(systems):
    """Scenes, queries and wordings of the first steps; and the budget is the same."""
    seen = {}
    for key, trainer in systems.items():
        task = trainer.task
        state = task.simulator.state_dict(), task.generator.get_state()
        drawn = task.bank.draw
        wordings = []

        def draw(kind, generator, drawn=drawn, wordings=wordings):
            wordings.append(drawn(kind, generator))
            return wordings[-1]

        task.bank.draw = draw
        scenes = [task.simulator.sample(4) for _ in range(2)]
        for one in scenes:
            trainer.losses(task._heard(one))
        task.bank.draw = drawn
        task.simulator.load_state_dict(state[0])
        task.generator.set_state(state[1])
        seen[key] = [s.mixture for s in scenes], [s.azimuth for s in scenes], wordings
    for key in KEYS:
        for one, other in zip(seen[key], seen["luseel"]):
            assert len(one) == len(other) and all(map(torch.equal, one, other)), key
    budgets = {(t.config.steps, t.config.batch_size, t.config.seed, t.config.optimizer,
                t.config.data.simulation) for t in systems.values()}
    assert len(budgets) == 1


def test_the_tagger_fits_the_systems_that_start_from_it(systems, packed, tmp_path):
    tags = Trainer(dataclasses.replace(tiny_config("tags", packed), steps=1), tmp_path / "tags",
                   "cpu")
    tags.run()
    for key in KEYS:
        if not BY_KEY[key].tagged:
            continue
        trainer = Trainer(systems[key].config, tmp_path / key, "cpu",
                          tmp_path / "tags" / "last.safetensors")
        for name, value in tags._evaluated_state().items():
            assert torch.equal(trainer.network.state_dict()[name], value), name


@pytest.mark.parametrize("changes, said", [
    (["data.ears=left"], "leaves no direction"),
    (["network=mlp-gcc"], "mlp-gcc has no audio encoder"),
    (["network=mlp-gcc", "loss={doa: 1.0, spectrum: 0.0}"], "mlp-gcc extracts nothing"),
])
def test_contradictions(changes, said):
    config = load_train_config("ablation/luseel", changes)
    with pytest.raises(ConfigError, match=said):
        config.check(config.model_config())


# -- the paper's own size


def test_the_papers_runs():
    """Section 3 of the paper, and one network for all five."""
    sizes = {}
    for key in KEYS:
        config = load_train_config(f"paper/{key}")
        model = config.model_config()
        config.check(model)
        assert config.name == f"paper/{key}" and config.batch_size == 128
        optimizer, simulation = config.optimizer, config.data.simulation
        assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.schedule,
                optimizer.patience, config.validation.stop_patience) == (
                    1e-4, 5000, "plateau", 6, 10)
        assert (simulation.n_sources, simulation.snr_db, simulation.seconds) == (
            (2, 3), (-5.0, 5.0), 10.0)
        assert simulation.plain() == simulation and config.data.anchor_only
        system = BY_KEY[key]
        assert model.audio_channels == system.channels
        assert (model.use_localization and config.loss.doa == 10.0) == system.locates
        assert bool(config.loss.si_snr and config.loss.spectrum) == system.extracts
        sizes[key] = model
    assert sizes["luseel"].gcc_features and not sizes["luseel-no-gcc"].gcc_features
    decoder = training.mlp_gcc.MLPGCC(sizes["mlp-gcc"]).decoder
    assert decoder[0].in_features == 512 + 504 and decoder[-1].out_features == 360


def test_typed_in_as_in_the_paper():
    """Table 1 of the paper: the text says these differences (section 4.1)."""
    gain = {n: PAPER[n, "luseel"]["si_snri"] - PAPER[n, "luseel-no-gcc"]["si_snri"] for n in (2, 3)}
    assert gain[3] == pytest.approx(-0.4)
    two = {key: PAPER[2, key].get("si_snri") for key in KEYS}
    assert two["luseel"] - two["luseel-no-localization"] == pytest.approx(2.7)
    assert (two["t-htdemucs"], two["luseel-no-localization"]) == (7.7, 17.6)
    for sources in (2, 3):
        for key in KEYS:
            wanted = {"si_snri", "sdri"} if BY_KEY[key].extracts else set()
            wanted |= {"within_5", "doa_error"} if BY_KEY[key].locates else set()
            assert set(PAPER[sources, key]) == wanted


# -- from training to the table


def test_left_ear(packed, tmp_path):
    pool = ClipPool.load(packed, "test")
    catalogue = make_catalogue(tmp_path / "toy", pool, Captions.load(), None, "toy", 1, 2, 0.5,
                               ("mit_kemar",))
    arguments = catalogue, catalogue.cells["mit_kemar-2-none"], pool, load_head("mit_kemar")
    both, left = Renderer(*arguments)[0], LeftEar(*arguments)[0]
    for ear in (0, 1):
        assert np.array_equal(left.audio[ear], both.audio[0])
        assert np.array_equal(left.sources[:, ear], both.sources[:, 0])
    assert np.array_equal(left.azimuth, both.azimuth)


def test_end_to_end(packed, tmp_path, capsys):
    """All systems trained for two steps, evaluated, tabled; and once more from what was kept."""
    pool = ClipPool.load(packed, "test")
    make_catalogue(tmp_path / "toy", pool, Captions.load(), None, "toy", 1, 3, 0.8, ("mit_kemar",))
    runs, results, out = (str(tmp_path / name) for name in ("runs", "results", "report"))
    tiny = {name: value for name, value in TINY.items() if name not in ("head_search", "name")}
    tiny["localization"] = {**tiny["localization"], "extracted": False}
    changes = [f"data.packed={json.dumps(str(packed))}", "data.simulation.seconds=0.5",
               "batch_size=2", "tag_batch_size=2", "validation.mixtures=2",
               "validation.batch_size=2", "log_every=1", "steps=2",
               *(f"overrides.{name}={json.dumps(value)}" for name, value in tiny.items()
                 if not isinstance(value, dict)),
               *(f"overrides.{name}.{key}={json.dumps(value)}" for name, values in tiny.items()
                 if isinstance(values, dict) for key, value in values.items())]
    train = ["train", "--runs", runs, "--device", "cpu", *(
        part for change in changes for part in ("--set", change))]
    assert main([*train, "--minutes", "1e-9"]) == 0
    assert "stopped in tags" in capsys.readouterr().out
    assert main(train) == 0
    assert "all trained" in capsys.readouterr().out
    for key in KEYS:
        model = load_system(Path(runs) / key / "best.safetensors", "cpu")
        assert model.info["step"] == 2 and hears_one_ear(model) == (key == "t-htdemucs")
        assert model.info["training_seconds"] > 0
    with pytest.raises(CheckpointError):
        load_system(Path(runs) / "gone" / "best.safetensors")

    evaluate = ["evaluate", "--runs", runs, "--results", results, "--packed", str(packed),
                "--catalogue", str(tmp_path / "toy"), "--device", "cpu", "--mixtures", "2"]
    assert main(evaluate) == 0
    assert main(["table", "--results", results, "--out", out]) == 0
    text = (Path(out) / "table.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \| [23] ", line)]
    assert len(rows) == 10 and [row.split(" | ")[2] for row in rows[:5]] == [
        system.name for system in SYSTEMS]
    cells = [cell.strip() for cell in rows[1].strip("|").split("|")]  # MLP-GCC
    assert cells[8:10] == ["–", "–"] and cells[-1] == "51.6" and cells[-2] != "–"
    cells = [cell.strip() for cell in rows[4].strip("|").split("|")]
    assert cells[9] == "20.3" and "(" in cells[8]
    for name in ("figure2.png", "figure3.png", "figure4.png", "trend.png"):
        assert (Path(out) / name).stat().st_size > 5000
    assert main(["table", "--results", out, "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "table.md").read_text() == text
    assert main(["table", "--results", str(tmp_path), "--out", out]) == 2
    assert "evaluate` first" in capsys.readouterr().err

    # the known difference of one system and the same, 1 dB better
    found = read_results(results)
    better = {**found, "luseel-no-localization": {**found["luseel"], "rows": [
        {**row, "si_snri": row["si_snri"] - 1} for row in found["luseel"]["rows"]]}}
    (first, *_) = [d for d in differences(better) if d["second"] == "luseel-no-localization"
                   and d["first"] == "luseel"]
    assert first["ours"]["mean"] == pytest.approx(1) and first["agrees"] is True
    assert "as in the paper" in markdown(better, differences(better))


# -- AudioCaps


def test_audiocaps(tmp_path):
    """A miniature in the dataset's own layout."""
    import soundfile

    tables, waves = tmp_path / "tables", tmp_path / "waves"
    tables.mkdir()
    (waves / "deeper").mkdir(parents=True)
    content = {
        "train.csv": [(1, "aaaaaaaaaaa", 30, "A woman talks nearby as water pours."),
                      (2, "bbbbbbbbbbb", 0, "Rain falls, and a dog  barks"),
                      (3, "ccccccccccc", 5, "Never fetched")],
        "val.csv": [(4, "ddddddddddd", 10, "Birds chirp"), (5, "ddddddddddd", 10, "Some birds")],
        "test.csv": [(6, "eeeeeeeeeee", 70, "An engine idles"),
                     (7, "aaaaaaaaaaa", 30, "Water and a woman")]}
    for name, rows in content.items():
        with open(tables / name, "w", newline="") as file:
            csv.writer(file).writerows([("audiocap_id", "youtube_id", "start_time", "caption"),
                                        *rows])
    for i, name in enumerate(("aaaaaaaaaaa.wav", "Ybbbbbbbbbbb.wav", "deeper/ddddddddddd_10.wav",
                              "6.flac")):
        soundfile.write(waves / name, noise(8000, 2, seed=i).numpy(), 8000)
    items, missing = read_audiocaps(tables, waves)
    assert missing == ["ccccccccccc"]
    assert {(i.name, i.split, i.label) for i in items} == {
        ("audiocaps/bbbbbbbbbbb", "train", "Rain falls, and a dog barks"),
        ("audiocaps/ddddddddddd", "valid", "Birds chirp"),
        ("audiocaps/eeeeeeeeeee", "test", "An engine idles"),
        ("audiocaps/aaaaaaaaaaa", "test", "Water and a woman")}  # never trained on a test clip
    manifest = pack_audiocaps(items, tmp_path / "packed", progress=False)
    assert manifest["kinds"] == 4
    for split, count in (("train", 1), ("valid", 1), ("test", 2)):
        pool = ClipPool.load(tmp_path / "packed", split)
        assert len(pool) == count and int(pool.kind.min()) >= 0  # all can be asked for
        assert abs(int(pool.length[0]) - 16000) < 200  # 1 s at 16 kHz
    assert len(caption_label("word " * 80)) <= 256 and caption_label("A  dog.\n") == "A dog"
    (tables / "val.csv").unlink()
    with pytest.raises(ConfigError, match="no val.csv"):
        read_audiocaps(tables, waves)
