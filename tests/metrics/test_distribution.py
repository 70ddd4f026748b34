"""Distances between sets: closed forms for Gaussians, and independent implementations."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import rbf_kernel

from mmaudio.metrics import distribution as sets


def gaussians(shift: float, scale: float, count: int, dimension: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return shift + scale * rng.normal(size=(count, dimension)), rng.normal(size=(count, dimension))


def mmd_of_gaussians(shift: float, scale: float, dimension: int, bandwidth: float) -> float:
    """Squared MMD of N(shift, scale^2) and N(0, 1), each coordinate alike: E k(x, y) is a Gaussian integral."""

    def mean_kernel(variance: float, difference: float) -> float:
        share = bandwidth**2 / (bandwidth**2 + variance)
        return share ** (dimension / 2) * math.exp(-dimension * difference**2 / 2 / (bandwidth**2 + variance))

    return mean_kernel(2 * scale**2, 0) + mean_kernel(2, 0) - 2 * mean_kernel(1 + scale**2, shift)


@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (0.0, 1.5), (0.3, 0.7)])
def test_kad_of_gaussians_is_the_closed_form(shift, scale):
    values, expected = [], []
    for seed in range(5):
        x, y = gaussians(shift, scale, 600, 4, seed)
        values.append(sets.kad(x, y))
        expected.append(100 * mmd_of_gaussians(shift, scale, 4, sets.median_distance(y)))
    assert np.mean(values) == pytest.approx(np.mean(expected), rel=0.1)


def test_kad_has_no_bias_in_small_sets_where_the_frechet_distance_is_all_bias():
    kads = [sets.kad(*gaussians(0, 1, 20, 64, seed)) for seed in range(200)]
    assert abs(np.mean(kads)) < 3 * np.std(kads) / math.sqrt(200)
    assert min(kads) < 0 < max(kads)
    assert np.mean([sets.frechet_distance(*gaussians(0, 1, 20, 64, seed)) for seed in range(5)]) > 20


def test_kad_has_no_bias_where_the_samples_of_a_clip_are_alike():
    kads = []
    for seed in range(200):
        clips, reference = gaussians(0, 1, 10, 8, seed)
        noise = 0.2**0.5 * np.random.default_rng(1000 + seed).normal(size=(20, 8))
        kads.append(sets.kad(0.8**0.5 * clips.repeat(2, 0) + noise, reference, np.arange(10).repeat(2)))
    assert abs(np.mean(kads)) < 3 * np.std(kads) / math.sqrt(200)


@pytest.mark.parametrize("alike", [0.0, 0.9, 1.0])
def test_kad_has_no_bias_where_sounds_are_like_their_own_originals(alike):
    """As a set they are the originals' equals; that each fits its own clip is not what a distance of sets is about."""
    kads = []
    for seed in range(200):
        other, reference = gaussians(0, 1, 8, 16, seed)
        kads.append(sets.kad(alike * reference + (1 - alike**2) ** 0.5 * other, reference, np.arange(8)))
    assert abs(np.mean(kads)) <= 3 * np.std(kads) / math.sqrt(200) + 1e-9


def test_kad_of_paired_sets_is_gretton_s_sum_over_pairs_of_clips():
    x, y = gaussians(0.2, 1.1, 9, 5)
    kernel = rbf_kernel(np.concatenate([x, y]), gamma=1 / (2 * sets.median_distance(y) ** 2))
    h = kernel[:9, :9] + kernel[9:, 9:] - kernel[:9, 9:] - kernel[9:, :9]
    assert sets.kad(x, y, np.arange(9)) == pytest.approx(100 * (h.sum() - np.trace(h)) / 72, rel=1e-9)


def test_kad_is_what_sklearn_kernels_give():
    x, y = gaussians(0.2, 1.1, 40, 7)
    gamma = 1 / (2 * sets.median_distance(y) ** 2)
    within = [(rbf_kernel(s, gamma=gamma).sum() - len(s)) / len(s) / (len(s) - 1) for s in (x, y)]
    expected = 100 * (within[0] + within[1] - 2 * rbf_kernel(x, y, gamma=gamma).mean())
    assert sets.kad(x, y) == pytest.approx(expected, rel=1e-9)


def test_kad_of_too_few_clips_is_nan():
    x, y = gaussians(0, 1, 5, 3)
    assert math.isnan(sets.kad(x[:1], y)) and math.isnan(sets.kad(x, y[:1]))
    assert math.isnan(sets.kad(x, np.ones((4, 3)))) and math.isnan(sets.kad(x, y, np.zeros(5, int)))


@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (0.0, 1.5), (0.3, 0.7)])
def test_frechet_distance_of_gaussians_is_the_closed_form(shift, scale):
    x, y = gaussians(shift, scale, 60_000, 4)
    assert sets.frechet_distance(x, y) == pytest.approx(4 * (shift**2 + (scale - 1) ** 2), rel=0.06)


def test_frechet_distance_is_that_of_a_matrix_square_root():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert sets.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow  # torchmetrics takes seconds to import
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_frechet_distance_and_inception_score_are_those_of_torchmetrics(monkeypatch):
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.inception import InceptionScore

    x, y = gaussians(0.2, 1.1, 100, 5)
    tensors = [torch.from_numpy(values) for values in (x, y)]
    moments = [moment for tensor in tensors for moment in (tensor.mean(0), tensor.T.cov())]
    assert sets.frechet_distance(x, y) == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)
    logits = gaussians(0, 2, 40, 8)[0]
    splits = sets.inception_splits(40)
    score = InceptionScore(feature=torch.nn.Identity(), splits=10)
    score.update(torch.from_numpy(logits))
    monkeypatch.setattr(torch, "randperm", lambda count: torch.from_numpy(np.argsort(splits, kind="stable")))
    mean, deviation = score.compute()
    scores = sets.inception_scores(logits, splits)
    assert scores.mean() == pytest.approx(float(mean), rel=1e-6)
    assert scores.std(ddof=1) == pytest.approx(float(deviation), rel=1e-5)


def test_a_frechet_distance_needs_clips():
    assert "512 clips: below 513" in sets.too_few_for_fd(512, 20)
    assert "below 2049" in sets.too_few_for_fd(600, 2048)
    assert sets.too_few_for_fd(513, 512) == "" == sets.too_few_for_fd(2049, 2048)


def test_kl_divergence_is_that_of_scipy_and_torch():
    from scipy.stats import entropy

    logits, reference = (10 * values for values in gaussians(0, 1, 6, 9))
    p, r = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, reference))
    values = sets.kl_divergence(logits, reference)
    assert values == pytest.approx([entropy(b, a) for a, b in zip(p, r, strict=True)])
    tensors = [torch.from_numpy(x).log_softmax(1) for x in (logits, reference)]
    by_torch = torch.nn.functional.kl_div(*tensors, reduction="none", log_target=True).sum(1)
    assert values == pytest.approx(by_torch.numpy())
    assert sets.kl_divergence(logits, logits + 7.0) == pytest.approx(np.zeros(6), abs=1e-12), "a shift changes nothing"


def test_kl_divergence_and_inception_score_have_closed_forms():
    two = np.array([[math.log(3.0), 0.0]])  # 3/4 and 1/4
    assert sets.kl_divergence(np.zeros((1, 2)), two) == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    one_split = np.zeros(5, int)
    assert sets.inception_scores(1e3 * np.eye(5), one_split) == pytest.approx([5])
    assert sets.inception_scores(np.ones((4, 5)), one_split[:4]) == pytest.approx([1])
    half = sets.inception_scores(1e3 * np.eye(4), np.array([0, 0, 1, 1]))
    assert half == pytest.approx([2, 2]), "each split has two of the four classes"


def test_the_splits_are_equal_shuffled_and_always_the_same():
    splits = sets.inception_splits(47)
    assert sorted(np.bincount(splits)) == [4, 4, 4, *[5] * 7] and (splits == sets.inception_splits(47)).all()
    assert not (np.diff(splits) >= 0).all()
    assert sets.too_few_for_splits(20, 1) == "" and "needs 20" in sets.too_few_for_splits(19, 1)
