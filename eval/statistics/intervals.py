"""Intervals and tests for per-query metrics, paired, clustered, and for several comparisons at once.

One rule for all that is said of a difference: its studentised mean, t = mean / standard error. The interval is
mean +- reach * standard error, p the chance of a t as far from 0, and both come from one level. Of several comparisons
that level is the one at which *all* of their intervals hold together with the given confidence (`simultaneous`), so an
interval leaves out 0 exactly where p says so. What to conclude is said in `eval.statistics.significance`.
"""

from dataclasses import dataclass

import numpy as np
import scipy.stats

from eval.statistics.clusters import ClustersLike
from eval.statistics.simultaneous import correct
from eval.statistics.variance import Moments, clustered_moments
from siglip_jax.errors import UserError

SAMPLES = 20_000


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its interval. NaN where it is not defined: no query, or a single cluster."""

    mean: float
    low: float
    high: float
    queries: int
    left_out: int  # queries that were NaN
    clusters: int  # equals `queries` without clustering; of several ways the fewest
    effective_clusters: float  # (sum n)^2 / sum n^2 over cluster sizes n: falls where few users ask most queries
    standard_error: float  # of the mean, clustered
    degrees: float  # of freedom, see `eval.statistics.variance.Moments`


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of a - b over queries, with its interval and the two-sided p of "no difference".

    What ends in _all holds for all comparisons that were made together; of one alone it equals what does not.
    """

    p: float
    low_all: float
    high_all: float
    p_all: float
    level: float  # of each comparison, so that all hold together: 1 - confidence of one alone
    comparisons: int  # measured ones


def mean_interval(values: np.ndarray, *, clusters: ClustersLike = None, confidence: float = 0.95) -> Interval:
    """Interval of the mean of per-query values.

    Args:
      values: [query] floats; NaN values are left out and counted.
      clusters: [query] cluster of each query (ints or strings; user, title group), {way: [query]} where they depend on
        each other in several ways, None for single queries.
      confidence: that the interval holds the mean over more such users, query items and queries.

    Raises:
      UserError: lengths that differ, infinite values, or options out of range.
    """
    return mean_columns(np.asarray(values, np.float64)[:, None], clusters=clusters, confidence=confidence)[0]


def mean_columns(values: np.ndarray, *, clusters: ClustersLike = None, confidence: float = 0.95) -> list[Interval]:
    """`mean_interval` of every column of [query, column]."""
    _check(confidence)
    return intervals_of(clustered_moments(values, clusters), queries=len(values), confidence=confidence)


def paired_difference(
    a: np.ndarray, b: np.ndarray, *, clusters: ClustersLike = None, confidence: float = 0.95
) -> Difference:
    """Mean paired difference a - b, its interval and p.

    A pair with a NaN on either side is left out, both values together, and counted.

    Args:
      a, b: [query] floats, the same queries in the same order.
      clusters, confidence: as for `mean_interval`.

    Raises:
      UserError: lengths that differ, infinite values, or options out of range.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise UserError(f"paired values of shapes {a.shape} and {b.shape}: expected two arrays [query] of one length")
    return difference_columns((a - b)[:, None], clusters=clusters, confidence=confidence)[0]


def difference_columns(
    differences: np.ndarray,
    *,
    clusters: ClustersLike = None,
    confidence: float = 0.95,
    samples: int = SAMPLES,
    seed: int = 0,
    together: bool = False,
) -> list[Difference]:
    """`paired_difference` of every column of differences [query, column].

    Args:
      together: whether the columns are comparisons made at once; else each stands alone.
      samples, seed: of the draws that correct for their number. Equal seeds give equal results.
    """
    _check(confidence)
    if samples < 1:
        raise UserError(f"samples={samples}: expected 1 or more")
    moments = clustered_moments(differences, clusters)
    mean, error = moments.mean, moments.error
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: query by query the same
        t = np.where((mean == 0) & (error == 0), 0.0, np.abs(mean) / error)
    p = 2 * scipy.stats.t.sf(t, np.maximum(moments.degrees, 1))
    level, p_all, comparisons = 1 - confidence, p, 1
    if together:
        level, p_all, comparisons = correct(p, moments.covariance, confidence=confidence, samples=samples, seed=seed)
    reach = error * _quantile(level, moments.degrees)
    return [
        Difference(
            **vars(of),
            p=float(p[k]),
            low_all=float(mean[k] - reach[k]),
            high_all=float(mean[k] + reach[k]),
            p_all=float(p_all[k]),
            level=level,
            comparisons=comparisons,
        )
        for k, of in enumerate(intervals_of(moments, queries=len(differences), confidence=confidence))
    ]


def intervals_of(moments: Moments, *, queries: int, confidence: float) -> list[Interval]:
    """Of each column; queries: of all, with those left out."""
    reach = moments.error * _quantile(1 - confidence, moments.degrees)
    return [
        Interval(
            mean=float(moments.mean[k]),
            low=float(moments.mean[k] - reach[k]),
            high=float(moments.mean[k] + reach[k]),
            queries=int(moments.queries[k]),
            left_out=queries - int(moments.queries[k]),
            clusters=int(moments.clusters[k]),
            effective_clusters=float(moments.effective[k]),
            standard_error=float(moments.error[k]),
            degrees=float(moments.degrees[k]),
        )
        for k in range(len(moments.mean))
    ]


def _quantile(level: float, degrees: np.ndarray) -> np.ndarray:
    """How many standard errors an interval reaches. Fewer than 1 degree of freedom is too few to say anything."""
    return scipy.stats.t.isf(level / 2, np.maximum(degrees, 1))


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence}: expected a number between 0 and 1")
