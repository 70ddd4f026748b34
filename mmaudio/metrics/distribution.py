"""Distances between sets of sounds, given their features or class logits. Pure functions; no models.

n and m sounds, D features, K classes; float64 inside.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SCALE = 100.0
"""Factor of the squared MMD."""
MIN_CLIPS_FOR_FD = 513
"""Below this many clips a Frechet distance is mostly bias, whatever the features."""
MIN_ROWS_FOR_KAD = 2
Indices = npt.NDArray[np.intp]
RowMask = slice | npt.NDArray[np.bool_]
ALL_ROWS = slice(None)
SPLITS, SPLIT_SEED = 10, 2020
"""Splits of the inception score, and the seed that draws them."""


def median_distance(reference: Array) -> float:
    """The median Euclidean distance between two different rows of (n, D): the kernel's bandwidth."""
    from scipy.spatial.distance import pdist  # slow to import

    return float(np.median(pdist(np.asarray(reference, np.float64))))


def kad(features: Array, reference: Array, clip_indices: Indices | None = None) -> float:
    """Kernel audio distance of (n, D) from (m, D): 100 x the unbiased squared MMD; lower is better, below 0 by chance.

    Gaussian kernel exp(-d^2 / (2 s^2)), s the median pairwise distance of the reference set. Unbiased: no sound is
    compared with itself, so two samples of one distribution are 0 apart on average. `clip_indices` (n,) are the
    reference's rows with each sound's own original; None: the two sets are unrelated. With them no sound is compared
    with other samples of its clip, nor with its own original, which are alike: the originals are 0 from themselves.
    NaN below two sounds or clips, or for a reference whose sounds are all the same. Source: arXiv 2502.15602; the
    estimators, for separate and for paired sets: Gretton et al., JMLR 13, 2012, lemma 6.
    """
    return PairwiseKernels(features, reference, clip_indices).kad()


class PairwiseKernels:
    """The kernel between all pairs of two sets of sounds, computed once for the `kad` of many subsets."""

    def __init__(
        self,
        features: Array,
        reference: Array,
        clip_indices: Indices | None = None,
        weights: Array | None = None,
        reference_weights: Array | None = None,
    ) -> None:
        from scipy.spatial.distance import cdist  # slow to import

        x, y = np.asarray(features, np.float64), np.asarray(reference, np.float64)
        self.has_value = min(len(x), len(y)) >= MIN_ROWS_FOR_KAD and (bandwidth := median_distance(y)) > 0
        x_weights = np.ones(len(x)) if weights is None else weights
        y_weights = np.ones(len(y)) if reference_weights is None else reference_weights
        self.weights = {
            "features": (x_weights, x_weights),
            "reference": (y_weights, y_weights),
            "cross": (x_weights, y_weights),
        }
        if self.has_value:
            x_clips = np.arange(len(x)) if clip_indices is None else clip_indices
            y_clips = np.full(len(y), -1) if clip_indices is None else np.arange(len(y))
            self.different_clips = {
                "features": (x_clips[:, None] != x_clips).astype(np.float64),
                "reference": 1.0 - np.eye(len(y)),
                "cross": (x_clips[:, None] != y_clips).astype(np.float64),
            }
            pairs = {"features": (x, x), "reference": (y, y), "cross": (x, y)}
            self.values = {
                name: np.exp(cdist(*pair, "sqeuclidean") / (-2 * bandwidth**2)) * self.different_clips[name]
                for name, pair in pairs.items()
            }

    def kad(self, rows: RowMask = ALL_ROWS, reference: RowMask = ALL_ROWS) -> float:
        """`kad` of the features' `rows` from the reference's, both masks; the kernel's bandwidth is that of all."""
        if not self.has_value:
            return math.nan
        xx, yy = self._mean("features", rows, rows), self._mean("reference", reference, reference)
        return SCALE * (xx + yy - 2 * self._mean("cross", rows, reference))

    def _mean(self, name: str, rows: RowMask, columns: RowMask) -> float:
        """The weighted mean over the pairs of different clips; NaN where there is none."""
        row_weights, column_weights = (
            _select(weights, mask) for weights, mask in zip(self.weights[name], (rows, columns), strict=True)
        )
        total = row_weights @ self.different_clips[name] @ column_weights
        return float(row_weights @ self.values[name] @ column_weights / total) if total else math.nan


def _select(weights: Array, mask: RowMask) -> Array:
    """The weights, zero outside of the mask."""
    selected = np.zeros_like(weights)
    selected[mask] = weights[mask]
    return selected


def frechet_distance(features: Array, reference: Array) -> float:
    """Squared Frechet distance of the Gaussians fitted to (n, D) and (m, D); lower is better.

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)), A and B the covariances. Biased upwards in small sets: see
    `too_few_for_fd`. Source: Dowson and Landau, 1982; for sounds arXiv 1812.08466.
    """
    x, y = np.asarray(features, np.float64), np.asarray(reference, np.float64)
    a, b = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (x, y))
    root = _square_root(a)
    eigenvalues = np.linalg.eigvalsh(root @ b @ root)  # those of A B, which is similar to it
    trace_of_root = np.sqrt(eigenvalues.clip(min=0)).sum()
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * trace_of_root)


def _square_root(matrix: Array) -> Array:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def too_few_for_fd(num_clips: int, width: int) -> str:
    """Reason why so many clips and features give no Frechet distance; empty where they give one."""
    minimum = max(MIN_CLIPS_FOR_FD, width + 1)
    return "" if num_clips >= minimum else f"{num_clips} clips: below {minimum} a Frechet distance is mostly bias"


def kl_divergence(logits: Array, reference: Array) -> Array:
    """Divergence of the classes of logits (n, K) from the reference's, sound by sound, in nats (n,); lower is better.

    sum of r ln(r / p) over the classes, p and r the softmax of both, as in arXiv 2209.15352. Source: Kullback and
    Leibler, 1951.
    """
    from scipy.special import log_softmax  # slow to import

    p, r = (log_softmax(np.asarray(x, np.float64), axis=1) for x in (logits, reference))
    divergence: Array = (np.exp(r) * (r - p)).sum(1)
    return divergence


def inception_splits(count: int) -> Indices:
    """The split of each of `count` sounds (count,): SPLITS of equal size, drawn at random with a fixed seed.

    Seed and order are those of torch-fidelity.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(count)
    splits = np.empty(count, np.intp)
    for number in range(SPLITS):
        splits[order[number * count // SPLITS : (number + 1) * count // SPLITS]] = number
    return splits


def inception_scores(logits: Array, splits: Indices) -> Array:
    """The inception score of every split that has sounds, of logits (n, K); 1 to K, higher is better.

    exp of the mean divergence of each sound's classes, the softmax of its logits, from the split's mean. Published is
    the mean over 10 splits. Source: arXiv 1606.03498.
    """
    from scipy.special import log_softmax, logsumexp  # slow to import

    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    scores = []
    for number in np.unique(splits):
        rows = log_p[splits == number]
        log_mean = logsumexp(rows, axis=0, keepdims=True) - math.log(len(rows))
        scores.append(math.exp((np.exp(rows) * (rows - log_mean)).sum(1).mean()))
    return np.array(scores)


def too_few_for_splits(num_clips: int, width: int) -> str:
    """Reason why so many clips give no inception score; empty where they give one."""
    del width
    return "" if num_clips >= 2 * SPLITS else f"{num_clips} clips: the mean of {SPLITS} splits needs {2 * SPLITS}"
