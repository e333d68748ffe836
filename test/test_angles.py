"""Azimuth arithmetic: wrapping, errors over the seam, REP-103, circular statistics."""

import math

import numpy as np
import pytest
import torch

from luseel_model.angles import (
    angular_error,
    circular_mean,
    circular_std,
    compass,
    from_rep103,
    mirror_front_back,
    to_rep103,
    wrap_degrees,
)

BOTH = pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])


def gaussian(centre, sigma):
    distance = np.abs((np.arange(360) - centre + 180) % 360 - 180)
    return np.exp(-(distance**2) / (2 * sigma**2))


@BOTH
def test_wrap(make):
    angles = make([0.0, 359.5, 360.0, 725.0, -1.0, -360.0, -1e-17])
    assert np.allclose(np.asarray(wrap_degrees(angles)), [0, 359.5, 0, 5, 359, 0, 0])
    assert (np.asarray(wrap_degrees(angles)) < 360).all()
    assert type(wrap_degrees(angles)) is type(angles)


def test_wrap_takes_numbers():
    assert wrap_degrees(-90) == 270.0
    assert wrap_degrees(torch.tensor(370)).item() == 10.0


@BOTH
def test_error_over_the_seam(make):
    a, b = make([1.0, 359.0, 0.0, 90.0, 10.0]), make([359.0, 1.0, 180.0, 90.0, 370.0])
    assert np.allclose(np.asarray(angular_error(a, b)), [2, 2, 180, 0, 0])


def test_error_mixes_numbers_and_tensors():
    assert torch.allclose(angular_error(torch.tensor([350.0]), 20), torch.tensor([30.0]))
    assert angular_error(20, torch.tensor([350.0])).item() == pytest.approx(30.0)
    assert angular_error(20, -10) == pytest.approx(30.0)


@BOTH
def test_left_is_positive_yaw(make):
    radians = np.asarray(to_rep103(make([0.0, 90.0, 180.0, 270.0, 359.0, 360.0])))
    assert np.allclose(
        radians, [0, math.pi / 2, math.pi, -math.pi / 2, -math.pi / 180, 0], atol=1e-6
    )


@BOTH
def test_rep103_there_and_back(make):
    degrees = make(np.arange(0, 360, 0.5).tolist())
    back = from_rep103(to_rep103(degrees))
    assert np.max(angular_error(np.asarray(back), np.asarray(degrees))) < 1e-4


def test_mirror():
    assert [mirror_front_back(a) for a in (0, 30, 90, 270, 200)] == [180, 150, 90, 270, 340]


@pytest.mark.parametrize("azimuth, side", [
    (0, "front"), (22, "front"), (23, "front left"), (90, "left"), (135, "back left"),
    (180, "back"), (270, "right"), (359.9, "front")])
def test_compass(azimuth, side):
    assert compass(azimuth) == side


@BOTH
@pytest.mark.parametrize("centre", [0.0, 90.0, 359.0, 200.5])
def test_circular_statistics_of_a_peak(make, centre):
    likelihood = make(gaussian(centre, 5.0).tolist())
    assert float(angular_error(circular_mean(likelihood), centre)) < 1e-3
    assert float(circular_std(likelihood)) == pytest.approx(5.0, abs=0.02)


@BOTH
def test_circular_std_ends(make):
    one_bin = np.zeros(360)
    one_bin[7] = 0.5
    assert float(circular_std(make(one_bin.tolist()))) == pytest.approx(0.0, abs=0.1)
    for empty in (np.zeros(360), np.ones(360)):
        spread = float(circular_std(make(empty.tolist())))
        assert math.isfinite(spread) and spread > 250


def test_circular_mean_batches():
    likelihood = torch.tensor(np.stack([gaussian(10, 3), gaussian(350, 3)]))
    assert circular_mean(likelihood).shape == (2,)
    both = likelihood.mean(0)
    assert float(angular_error(circular_mean(both), 0.0)) < 1e-6
