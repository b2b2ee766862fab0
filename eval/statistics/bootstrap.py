"""Intervals and tests for per-query metrics: the percentile bootstrap and the sign-flip test, paired and clustered.

Queries of one user (or near-equal items of one title) are not independent: resampling whole clusters keeps the
interval honest where resampling queries would make it too narrow (Cameron, Gelbach and Miller 2008; Sakai 2006 for
paired bootstrap in retrieval; Smucker, Allan and Carterette 2007 for the randomisation test). What to conclude from
the results is said in `eval.statistics.significance`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.statistics.resampling import bootstrap_sums, flipped_sums
from siglip_jax.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its bootstrap interval. NaN where it is not defined: no query, or a single cluster."""

    mean: float
    low: float
    high: float
    queries: int
    left_out: int  # queries that were NaN
    clusters: int  # equals `queries` without clustering
    effective_clusters: float  # (sum n)^2 / sum n^2 over cluster sizes n: falls where few users ask most queries
    standard_error: float  # of the mean, clustered (sandwich estimate); NaN for a single cluster


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
    columns = _ColumnClusters.of(values, clusters, samples, confidence)
    out: list[Interval] = [None] * columns.values.shape[1]  # type: ignore[list-item]
    for index, sums, counts in columns.groups():
        for column, interval in zip(
            index, columns.intervals(sums, counts, samples=samples, confidence=confidence, seed=seed), strict=True
        ):
            out[column] = interval
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
    columns = _ColumnClusters.of(differences, clusters, samples, confidence)
    out: list[Difference] = [None] * columns.values.shape[1]  # type: ignore[list-item]
    for index, sums, counts in columns.groups():
        p = np.full(len(index), np.nan)
        if len(counts) > 1:
            p = _sign_flip_p(sums, samples=samples, seed=seed)
        intervals = columns.intervals(sums, counts, samples=samples, confidence=confidence, seed=seed)
        for column, interval, chance in zip(index, intervals, p, strict=True):
            out[column] = Difference(**vars(interval), p=float(chance))
    return out


def simultaneous_intervals(
    differences: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of columns [query, column] that hold all at once with the given confidence: many models compared.

    mean +- c * standard error, c the quantile of the largest |t| over the columns in the bootstrap (Romano and Wolf
    2005): wider than one at a time, narrower than Bonferroni's where columns move together. A query that is NaN in one
    column is left out of all. A column that never varies has its mean for an interval.

    Raises:
      UserError: as `bootstrap_columns`.
    """
    differences = np.array(differences, np.float64)
    if differences.ndim == 2:
        differences[np.isnan(differences).any(axis=1)] = np.nan
    columns = _ColumnClusters.of(differences, clusters, samples, confidence)
    out: list[Interval] = []
    for _, sums, counts in columns.groups():
        out = columns.intervals(sums, counts, samples=samples, confidence=confidence, seed=seed)
        if len(counts) > 1:
            mean, error = (np.array([getattr(i, name) for i in out]) for name in ("mean", "standard_error"))
            resampled = _resampled_means(sums, counts, samples=samples, seed=seed)
            t = np.divide(np.abs(resampled - mean), error, out=np.zeros_like(resampled), where=error > 0)
            reach = np.quantile(t.max(axis=1), confidence) * error
            out = [
                Interval(**(vars(i) | {"low": float(m - r), "high": float(m + r)}))
                for i, m, r in zip(out, mean, reach, strict=True)
            ]
    return out


@dataclass(frozen=True)
class _ColumnClusters:
    values: np.ndarray  # float64 [query, column]
    clusters: np.ndarray  # int64 [query]

    @classmethod
    def of(cls, values: np.ndarray, clusters: np.ndarray | None, samples: int, confidence: float) -> "_ColumnClusters":
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

    def intervals(
        self, sums: np.ndarray, counts: np.ndarray, *, samples: int, confidence: float, seed: int
    ) -> list[Interval]:
        """Of each column of one of the `groups`."""
        queries, clusters = int(counts.sum()), len(counts)
        low = high = mean = error = np.full(sums.shape[1], np.nan)
        if clusters:
            mean = sums.sum(axis=0) / queries
        if clusters > 1:
            tails = [50 * (1 - confidence), 50 * (1 + confidence)]
            low, high = np.percentile(_resampled_means(sums, counts, samples=samples, seed=seed), tails, axis=0)
            spread = np.square(sums - counts[:, None] * mean).sum(axis=0)
            error = np.sqrt(spread * clusters / (clusters - 1)) / queries
        effective = float(queries**2 / np.square(counts).sum()) if clusters else 0.0
        left_out = len(self.values) - queries
        return [
            Interval(float(m), float(lo), float(hi), queries, left_out, clusters, effective, float(e))
            for m, lo, hi, e in zip(mean, low, high, error, strict=True)
        ]

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Columns missing the same queries: (column index, cluster sums [cluster, column], cluster sizes [cluster])."""
        missing = np.isnan(self.values)
        alike: dict[bytes, list[int]] = {}
        for column in range(missing.shape[1]):
            alike.setdefault(missing[:, column].tobytes(), []).append(column)
        for index in map(np.asarray, alike.values()):
            known = ~missing[:, index[0]]
            cluster = self.clusters[known]
            size = np.bincount(cluster)
            there = size > 0
            counts = size[there].astype(np.float64)
            columns = (self.values[known, column] for column in index)
            sums = np.stack([np.bincount(cluster, values)[there] for values in columns], axis=1)
            yield index, sums, counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Means over queries of resampled clusters: float64 [samples, column]."""
    mean = sums.sum(axis=0) / counts.sum()
    centred = np.column_stack([sums - counts[:, None] * mean, counts])
    drawn = bootstrap_sums(centred, samples=samples, seed=seed)
    return mean + drawn[:, :-1] / drawn[:, -1:]


def _sign_flip_p(sums: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Two-sided p of the mean being 0 when every cluster's sum could as well have the other sign: [column].

    (1 + flips at least as far from 0) / (1 + flips), which never gives 0 (Phipson and Smyth 2010).
    """
    slack = 1e-9 * np.abs(sums).sum(axis=0)  # rounding must not make an equal flip smaller
    flipped = np.abs(flipped_sums(sums, samples=samples, seed=seed))
    reached = np.count_nonzero(flipped >= np.abs(sums.sum(axis=0)) - slack, axis=0)
    return (1 + reached) / (1 + samples)
