"""Clues that training makes: clips of pictures, compromised clues, AudioSet's lists; the losses."""

import csv

import numpy as np
import pytest
import soundfile
import torch

from luseel_model.errors import ConfigError
from training.clues.bank import ClipBank
from training.clues.clips import moving_clip
from training.clues.compromise import noisy_frames, replace_words
from training.clues.manifests import SAMPLE_RATE, cut_events, loudest, read_segments
from training.losses.snr import negative_snr, snr, snr_improvement
from training.losses.spectrum_l1 import complex_l1


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def disc(side=64, colour=(200, 30, 30)):
    """A disc on white."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    picture = np.full((side, side, 3), 255, np.uint8)
    picture[np.hypot(x, y) < side / 3] = colour
    return picture


# -- clips


def centre(frame):
    """Of what is darker than the ground."""
    ink = 255.0 - frame.astype(float).sum(2) / frame.astype(float).sum(2).max() * 255
    ink[ink < 30] = 0
    y, x = np.mgrid[:frame.shape[0], :frame.shape[1]]
    return (x * ink).sum() / ink.sum(), (y * ink).sum() / ink.sum()


def test_clip_moves_evenly_and_differs_between_draws():
    clip = moving_clip(disc(), 5, 48, chance(3))
    assert clip.shape == (5, 48, 48, 3) and clip.dtype == np.uint8
    places = np.array([centre(frame) for frame in clip])
    steps = np.diff(places, axis=0)
    assert np.hypot(*(places[-1] - places[0])) > 2
    assert np.abs(steps - steps.mean(0)).max() < 1.5  # straight and at an even pace
    assert not np.array_equal(clip, moving_clip(disc(), 5, 48, chance(4)))
    assert np.array_equal(clip, moving_clip(disc(), 5, 48, chance(3)))


def test_clip_keeps_the_shape_of_wide_pictures():
    wide = np.full((40, 120, 3), 255, np.uint8)
    wide[5:35, 45:75] = 0  # a square in a wide picture stays one
    frame = moving_clip(wide, 1, 96, chance(0))[0].sum(2)
    dark = frame < 0.3 * frame.max()
    height, width = (np.flatnonzero(dark.any(axis)) for axis in (1, 0))
    assert abs((np.ptp(height) + 1) / (np.ptp(width) + 1) - 1) < 0.2


def test_bank_draws_clips_of_the_kind_and_none_where_there_is_none():
    kinds = ["bell", "dog", "rain"]
    bank = ClipBank.build({"bell": [disc()], "rain": [disc(colour=(0, 0, 255)), disc()], "cat": []},
                          kinds, lambda frames: torch.from_numpy(frames).float().mean((1, 2)),
                          frames=2, clips=3, size=16, seed=1)
    assert bank.embeddings.shape == (9, 2, 3) and bank.count.tolist() == [3, 0, 6]
    kind = torch.tensor([[0, 1], [2, 2]]).repeat(50, 1)
    drawn = bank.draw(kind, chance())
    assert (drawn[kind == 1] == -1).all()
    assert set(drawn[kind == 0].tolist()) == {0, 1, 2}
    assert set(drawn[kind == 2].tolist()) == {3, 4, 5, 6, 7, 8}
    values, mask = bank.batch(drawn)
    assert values.shape == (100, 2, 2, 3) and torch.equal(mask[..., 0], kind != 1)
    assert (values[kind == 1] == 0).all()
    assert torch.equal(values[0, 0], bank.embeddings[drawn[0, 0]])


# -- compromised clues


@pytest.mark.parametrize("text, wrong", [("dog", 1), ("a dog barks", 1),
                                         ("a dog barks at the door", 2),
                                         ("the sound of a dog that barks far away", 3)])
def test_a_third_of_the_words_is_replaced(text, wrong):
    words = ["rain", "bell", "dog", "car"]
    found = replace_words(text, words, np.random.default_rng(1)).split()
    changed = [new for new, old in zip(found, text.split()) if new != old]
    assert len(found) == len(text.split()) and len(changed) == wrong
    assert set(changed) <= set(words)


def test_noise_is_as_loud_as_said():
    frames = np.full((4, 64, 64, 3), 20, np.uint8)
    frames[:, ::2] = 60
    # read through a grey so light that nothing is clipped
    noisy = noisy_frames(frames, np.random.default_rng(0), snr_db=20.0).astype(float)
    ratio = (frames.astype(float) ** 2).mean() / ((noisy - frames) ** 2).mean()
    assert 10 * np.log10(ratio) == pytest.approx(20.0, abs=0.2)
    assert noisy_frames(frames, np.random.default_rng(0)).dtype == np.uint8


# -- AudioSet


def audioset(folder, clips=("abc", "def", "ghi")):
    """A miniature of the lists and clips: ``abc`` has one label, ``def`` two, ``ghi`` no file."""
    (folder / "labels.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/0bt9lr,"Dog"\n'
        '2,/m/07yv9,"Vehicle"\n')
    (folder / "segments.csv").write_text(
        "# Segments csv created Sun Mar  5 10:54:31 2017\n"
        "# num_ytids=3, num_segs=3\n# YTID, start_seconds, end_seconds, positive_labels\n"
        'abc, 30.000, 40.000, "/m/0bt9lr"\n'
        'def, 0.000, 10.000, "/m/09x0r,/m/07yv9"\nghi, 5.000, 15.000, "/m/09x0r"\n')
    (folder / "media").mkdir()
    t = np.arange(10 * 8000)
    sound = 0.01 * np.sin(t / 5)
    sound[48000:56000] *= 40  # the event, 6 s to 7 s
    for name in clips[:2]:
        soundfile.write(folder / "media" / f"{name}.wav", sound, 8000)
    (folder / "media" / "abc.mp4").write_bytes(b"")
    (folder / "captions").mkdir()
    (folder / "captions" / "train.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n1,abc,30,A dog barks twice.\n")
    return folder


def test_audioset_lists_are_read_with_labels_captions_and_files(tmp_path):
    root = audioset(tmp_path)
    found = read_segments(root / "segments.csv", root / "labels.csv", root / "media",
                          root / "captions")
    assert [(s.youtube, s.start, s.labels) for s in found] == [
        ("abc", 30.0, ("Dog",)), ("def", 0.0, ("Speech", "Vehicle")), ("ghi", 5.0, ("Speech",))]
    assert found[0].caption == "A dog barks twice" and found[1].caption == ""
    assert found[0].video == root / "media" / "abc.mp4" and found[2].sound is None
    (root / "segments.csv").write_text('abc, 30.000, 40.000, "/m/unknown"\n')
    with pytest.raises(ConfigError, match="/m/unknown"):
        read_segments(root / "segments.csv", root / "labels.csv", root / "media")


def test_two_seconds_around_the_event_of_clips_with_one_label(tmp_path):
    root = audioset(tmp_path)
    segments = read_segments(root / "segments.csv", root / "labels.csv", root / "media")
    rows = cut_events(segments, root / "events")
    assert [row["tag"] for row in rows] == ["Dog"]
    start = float(rows[0]["start"])
    assert 5.0 <= start <= 6.0
    with open(root / "events" / "clues.csv", "w", newline="") as file:
        csv.DictWriter(file, rows[0].keys()).writerows(rows)
    audio, rate = soundfile.read(rows[0]["file"])
    assert rate == SAMPLE_RATE and len(audio) == 2 * SAMPLE_RATE and np.abs(audio).max() > 0.3
    assert loudest(np.zeros(100) + 0.1, "") == 0


# -- losses


def test_snr_counts_the_gain():
    target = torch.randn(1, 1, 4000, generator=chance())
    noise = torch.randn(1, 1, 4000, generator=chance(1))
    noise *= (target.square().sum() / noise.square().sum()).sqrt()
    mixture = target + noise
    assert float(snr(mixture, target)) == pytest.approx(0.0, abs=1e-4)
    # half of it: error -s/2 + n/2, that is half the energy where they don't correlate
    correlation = float((target * noise).sum() / target.square().sum())
    expected = -10 * np.log10(0.5 - 0.5 * correlation)
    found = float(snr_improvement(0.5 * mixture, target, mixture))
    assert found == pytest.approx(expected, abs=1e-3)
    assert float(snr(0.1 * target, target)) == pytest.approx(-20 * np.log10(0.9), abs=1e-4)
    assert torch.isnan(snr(mixture, torch.zeros_like(mixture))).all()


def test_negative_snr_is_its_negative_with_finite_gradients():
    target, noise = (torch.randn(3, 1, 4000, generator=chance(i)) for i in (0, 1))
    mixture = target + noise
    value = negative_snr(mixture * 0.7, target, mixture)
    torch.testing.assert_close(value, -snr(mixture * 0.7, target)[:, 0], atol=0.02, rtol=0)
    for perfect in (target, torch.zeros_like(target)):
        estimate = perfect.clone().requires_grad_()
        negative_snr(estimate, perfect, mixture).sum().backward()
        assert estimate.grad.isfinite().all()


def test_complex_l1_is_the_mean_distance_at_any_level():
    target = torch.tensor([[[1 + 1j, 0j]], [[2 + 2j, 0j]]])
    estimate = torch.tensor([[[1 + 0j, 0.5j]], [[2 + 0j, 1j]]])
    mixture = 2 * target
    # |0 + 1| + |0 - 0.5| over two bins, the mixture's RMS bin is 2
    expected = torch.tensor([0.375, 0.375])
    torch.testing.assert_close(complex_l1(estimate, target, mixture), expected)
