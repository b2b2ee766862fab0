"""Intervals and tests for per-query metrics: the percentile bootstrap and the sign-flip test, paired and clustered.

Queries of one user (or near-equal items of one title) are not independent: resampling whole clusters keeps the
interval honest where resampling queries would make it too narrow (Cameron, Gelbach and Miller 2008; Sakai 2006 for
paired bootstrap in retrieval; Smucker, Allan and Carterette 2007 for the randomisation test).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from siglip_jax.errors import UserError

_BLOCK = 1 << 22  # cluster draws held at once


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its bootstrap interval. NaN where it is not defined: no query, or a single cluster."""

    mean: float
    low: float
    high: float
    queries: int
    left_out: int  # queries that were NaN
    clusters: int  # equals `queries` without clustering


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of a - b over queries, with its interval and the two-sided p of "a and b are exchangeable"."""

    p: float


def bootstrap_mean(
    values: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile-bootstrap interval of the mean of per-query values.

    Args:
        values: [query] floats; NaN values are left out and counted.
        clusters: [query] cluster of each query (ints or strings; user, title group); None resamples queries.
        samples: bootstrap samples. Equal seeds give equal intervals.
        confidence: 0.95 for the 2.5 and 97.5 percentiles.

    Raises:
        UserError: lengths that differ, infinite values, or options out of range.
    """
    columns = np.asarray(values, np.float64)[:, None]
    return bootstrap_columns(columns, clusters=clusters, samples=samples, confidence=confidence, seed=seed)[0]


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Mean paired difference a - b with its percentile-bootstrap interval and a sign-flip p-value.

    A pair with a NaN on either side is left out, both values together, and counted. With clusters, whole clusters are
    drawn (the mean stays one over queries) and whole clusters change sign in the test.

    Args:
        a, b: [query] floats, the same queries in the same order.
        clusters, samples, confidence, seed: as for `bootstrap_mean`; `samples` also counts the sign flips, so
            p >= 1 / (samples + 1).

    Raises:
        UserError: lengths that differ, infinite values, or options out of range.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise UserError(f"paired values of shapes {a.shape} and {b.shape}: expected two arrays [query] of one length")
    return difference_columns((a - b)[:, None], clusters=clusters, samples=samples, confidence=confidence, seed=seed)[0]


def bootstrap_columns(
    values: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """`bootstrap_mean` of every column of [query, column], sharing the draws: far cheaper than one call per column."""
    columns = _Columns.of(values, clusters, samples, confidence)
    out: list[Interval] = [None] * columns.values.shape[1]  # type: ignore[list-item]
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    for index, sums, counts in columns.groups():
        means = _resampled_means(sums, counts, samples=samples, seed=seed)
        low, high = np.percentile(means, tails, axis=0) if len(counts) > 1 else np.full((2, len(index)), np.nan)
        for j, column in enumerate(index):
            queries = int(counts.sum())
            mean = float(sums[:, j].sum() / queries) if queries else float("nan")
            left_out = len(columns.values) - queries
            out[column] = Interval(mean, float(low[j]), float(high[j]), queries, left_out, len(counts))
    return out


def difference_columns(
    differences: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """`paired_bootstrap` of every column of differences [query, column], sharing draws and sign flips."""
    intervals = bootstrap_columns(differences, clusters=clusters, samples=samples, confidence=confidence, seed=seed)
    columns = _Columns.of(differences, clusters, samples, confidence)
    p = np.full(len(intervals), np.nan)
    for index, sums, counts in columns.groups():
        if len(counts) > 1:
            p[index] = _sign_flip_p(sums, samples=samples, seed=seed)
    return [Difference(**vars(interval), p=float(p[i])) for i, interval in enumerate(intervals)]


@dataclass(frozen=True)
class _Columns:
    values: np.ndarray  # float64 [query, column]
    clusters: np.ndarray  # int64 [query]

    @classmethod
    def of(cls, values: np.ndarray, clusters: np.ndarray | None, samples: int, confidence: float) -> "_Columns":
        values = np.asarray(values, np.float64)
        if values.ndim != 2:
            raise UserError(f"values of shape {values.shape}: expected one number per query")
        if np.isinf(values).any():
            raise UserError(
                f"value of query {int(np.argwhere(np.isinf(values))[0][0])} is infinite: expected finite or NaN"
            )
        if samples < 1 or not 0 < confidence < 1:
            raise UserError(f"samples={samples}, confidence={confidence}: expected samples >= 1 and 0 < confidence < 1")
        if clusters is None:
            return cls(values, np.arange(len(values)))
        clusters = np.asarray(clusters)
        if clusters.shape != (len(values),):
            raise UserError(f"clusters of shape {clusters.shape} for {len(values)} queries: expected one per query")
        return cls(values, np.unique(clusters, return_inverse=True)[1].reshape(-1))

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Columns missing the same queries: (column index, cluster sums [cluster, column], cluster sizes [cluster])."""
        missing = np.isnan(self.values)
        patterns, back = np.unique(missing.T, axis=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            index = np.flatnonzero(back.reshape(-1) == i)
            kept = self.values[~pattern][:, index]
            _, cluster = np.unique(self.clusters[~pattern], return_inverse=True)
            cluster = cluster.reshape(-1)
            counts = np.bincount(cluster).astype(np.float64)
            sums = np.stack([np.bincount(cluster, column, minlength=len(counts)) for column in kept.T], axis=1)
            yield index, sums, counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Means over queries when as many clusters as there are get drawn with replacement: float64 [samples, column]."""
    total = len(counts)
    means = np.full((samples, sums.shape[1]), np.nan)
    random = np.random.default_rng([seed, 0])
    step = max(1, _BLOCK // max(1, total))
    for lo in range(0, samples if total else 0, step):
        size = min(step, samples - lo)
        drawn = random.integers(0, total, (size, total)) + np.arange(size)[:, None] * total
        times = np.bincount(drawn.ravel(), minlength=size * total).reshape(size, total).astype(np.float64)
        means[lo : lo + size] = (times @ sums) / (times @ counts)[:, None]
    return means


def _sign_flip_p(sums: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Two-sided p of the mean being 0 when every cluster's sum could as well have the other sign: [column].

    (1 + flips at least as far from 0) / (1 + flips), which never gives 0 (Phipson and Smyth 2010).
    """
    total = len(sums)
    observed = np.abs(sums.sum(axis=0)) - 1e-9 * np.abs(sums).sum(
        axis=0
    )  # rounding must not make an equal flip smaller
    reached = np.zeros(sums.shape[1], np.int64)
    random = np.random.default_rng([seed, 1])
    step = max(1, _BLOCK // total)
    for lo in range(0, samples, step):
        size = min(step, samples - lo)
        sign = 2.0 * random.integers(0, 2, (size, total), dtype=np.int8) - 1
        reached += (np.abs(sign @ sums) >= observed).sum(axis=0)
    return (1 + reached) / (1 + samples)
