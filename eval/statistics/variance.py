"""The variance of means over queries that depend on each other in several ways.

The cluster-robust variance of Cameron, Gelbach and Miller (2011): for users and query items that of users, plus that of
query items, less that of what they share. Each is a jackknife over whole clusters, which unlike the sandwich of
residuals is not too small where few clusters are large (MacKinnon, Nielsen and Webb 2023; 2024 for two ways).

Chosen by simulation (`siglip-jax bench verdicts`): intervals of Student's t with as many degrees of freedom as the
smaller side has effective clusters, less one, cover what they promise from 10 of them on. The pigeonhole bootstrap
(Owen 2007) counts what is independent three times; clusters of one side alone are blind to the other.
"""

from dataclasses import dataclass

import numpy as np

from eval.statistics.clusters import Clusters, ClustersLike, Grouping, effective_number
from siglip_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Moments:
    """Of c columns over the same queries. NaN where it is not defined: no query, or a single cluster.

    Attributes:
      mean: float64 [c].
      covariance: float64 [c, c], of the means.
      degrees: float64 [c], of freedom: the fewest effective clusters of any way, less one. Queries that are 0 do not
        count: of a difference they say nothing of how it varies.
      queries: int64 [c], that are not NaN.
      clusters: int64 [c], the fewest of any way.
      effective: float64 [c], the fewest effective clusters of any way, all queries counted.
    """

    mean: np.ndarray
    covariance: np.ndarray
    degrees: np.ndarray
    queries: np.ndarray
    clusters: np.ndarray
    effective: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Standard errors: float64 [c]."""
        return np.sqrt(np.diagonal(self.covariance))


def clustered_moments(values: np.ndarray, clusters: ClustersLike = None) -> Moments:
    """Means over queries, how they vary together, and how well that is known.

    Args:
      values: float [query, c]; NaN values are left out of their column. A ratio of sums a / b goes in as
        (a - r b) / mean(b), r the ratio: the delta method.
      clusters: see `Clusters.of`.

    Raises:
      UserError: values of another shape or infinite; as `Clusters.of`.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise UserError(f"values of shape {values.shape}: expected one number per query")
    if np.isinf(values).any():
        raise UserError(
            f"value of query {int(np.argwhere(np.isinf(values))[0][0])} is infinite: expected finite or NaN"
        )
    clusters = Clusters.of(clusters, len(values))
    missing = np.isnan(values)
    filled = np.where(missing, 0.0, values)
    queries = len(values) - missing.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=0) / queries
    residual = np.where(missing, 0.0, values - mean)
    shape = (len(clusters.parts), values.shape[1])
    covariance, variance = np.zeros((shape[1], shape[1])), np.zeros(shape[1])
    counted, effective, differing = (np.full(shape, np.inf) for _ in range(3))
    for k, part in enumerate(clusters.parts):
        changes = np.empty((part.groups, shape[1]))
        for column, sizes in enumerate(_sizes(part, missing)):
            changes[:, column] = _left_out(part.sums(residual[:, column]), sizes, queries[column])
            if k < len(clusters.names):
                counted[k, column] = np.count_nonzero(sizes)
                effective[k, column] = effective_number(sizes)
                there = filled[:, column] != 0
                whole = there.sum() == queries[column]
                differing[k, column] = effective[k, column] if whole else effective_number(part.sums(there))
        product = changes.T @ changes
        covariance += part.sign * product
        variance = np.diagonal(product)
    # In small samples the sum may fall far below what it would be were only queries that share all ways dependent.
    np.fill_diagonal(covariance, np.maximum(np.diagonal(covariance), variance / 2))
    return Moments(
        mean=mean,
        covariance=covariance,
        degrees=differing.min(axis=0) - 1,
        queries=queries,
        clusters=counted.min(axis=0).astype(np.int64),
        effective=effective.min(axis=0),
    )


def _sizes(part: Grouping, missing: np.ndarray) -> list[np.ndarray]:
    """Cluster sizes [groups] of each column, shared by columns that miss the same queries."""
    alike: dict[bytes, np.ndarray] = {}
    out = []
    for column in missing.T:
        key = column.tobytes()
        if key not in alike:
            alike[key] = part.sums(~column)
        out.append(alike[key])
    return out


def _left_out(sums: np.ndarray, sizes: np.ndarray, queries: int) -> np.ndarray:
    """How the mean changes where one cluster after the other is left out, scaled so that squares sum to a variance.

    sums: [groups], of residuals; sizes: [groups], queries that they are of.
    """
    groups = np.count_nonzero(sizes)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: a single cluster leaves nothing
        return sums / (queries - sizes) * np.sqrt((groups - 1) / groups)
