"""Where a row is weak: the metric within slices of the queries, and the paired difference to another row.

A slicing gives every query one of a few labels: an attribute's value, a price band, the age of the item, head or tail,
how much a user asks. Intervals within a slice are those of the whole (`eval.statistics.intervals`), of its own queries.

Many slices are many chances to be wrong: beside its 95 % interval each difference has a simultaneous one (Bonferroni
over all slices measured), and only that one decides whether a slice is called better or worse. The worst come first by
the far end of that interval, so a slice of few queries does not lead the list by noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.statistics.clusters import Clusters, ClustersLike
from eval.statistics.intervals import Interval, intervals_of
from eval.statistics.significance import FEW_CLUSTERS
from eval.statistics.variance import clustered_moments
from siglip_jax.errors import UserError

MIN_QUERIES, MIN_CLUSTERS = 50, 20
MAX_LABELS = 40
VOLUMES = (1, 2, 6, 21)  # lower ends of the bands of query volume
AGES = (0, 1, 7, 30, 90, 365)  # days


@dataclass(frozen=True)
class Slicing:
    """A label for every query.

    Attributes:
      name: of the slicing, such as "gender".
      labels: in the order to be read.
      codes: int64 [query], places in `labels`; -1 where the query has none.
    """

    name: str
    labels: tuple[str, ...]
    codes: np.ndarray


def by_value(name: str, values: Sequence[str], *, most: int = MAX_LABELS) -> Slicing:
    """One slice a value, the commonest first; beyond `most` of them the rest are one slice. "" is no value."""
    distinct, codes, counts = np.unique(np.asarray(values, object).astype(str), return_inverse=True, return_counts=True)
    named = distinct != ""
    order = np.lexsort((distinct, -counts))
    order = order[named[order]]
    place = np.full(len(distinct), -1, np.int64)
    place[order] = np.minimum(np.arange(len(order)), most)
    labels = tuple(map(str, distinct[order[:most]]))
    if len(order) > most:
        labels += (f"{len(order) - most} others",)
    return Slicing(name, labels, place[codes.reshape(-1)])


def by_band(
    name: str, numbers: np.ndarray, *, edges: Sequence[float] | None = None, bands: int = 5, unit: str = ""
) -> Slicing:
    """Bands of a number: price, or any other. NaN is no value.

    Args:
      numbers: real [query].
      edges: lower ends of the bands, ascending, the last band open; None for `bands` of about equal counts.
    """
    numbers = np.asarray(numbers, np.float64)
    known = np.isfinite(numbers)
    if edges is None:
        ends = np.quantile(numbers[known], np.arange(bands) / bands) if known.any() else np.zeros(1)
        edges = np.unique(ends).tolist()
    edges = list(edges)
    if not edges or sorted(set(edges)) != edges:
        raise UserError(f"bands of {name}: edges {edges}; expected ascending numbers")
    codes = np.where(known, np.searchsorted(edges, np.where(known, numbers, edges[0]), side="right") - 1, -1)
    # Whole numbers are said as they are counted, "2 to 5", others by their bounds.
    whole = bool((numbers[known] == np.rint(numbers[known])).all())
    return Slicing(name, _band_names(edges, numbers[known].max(initial=edges[-1]), whole=whole, unit=unit), codes)


def by_popularity(counts: np.ndarray, *, name: str = "popularity", share: float = 0.5) -> Slicing:
    """Head and tail by the interactions of each query's item in the training window.

    Head: the fewest most popular items that together hold `share` of all interactions; counts are of the query items,
    so an item asked often weighs often. Items without any interaction are a slice of their own.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any():
        raise UserError(f"{name}: expected a count, 0 or more, for each query")
    levels, back, times = np.unique(counts, return_inverse=True, return_counts=True)
    above = np.cumsum((levels * times)[::-1])[::-1] - levels * times  # held by more popular ones
    head = above < share * (levels * times).sum()
    code = np.where(levels == 0, 2, np.where(head, 0, 1))
    return Slicing(name, ("head", "tail", "never seen"), code[back.reshape(-1)])


def by_age(days: np.ndarray, *, name: str = "item age") -> Slicing:
    """Bands of AGES by the days from an item's creation to the query. Before its creation is no value."""
    days = np.asarray(days, np.float64)
    return by_band(name, np.where(days >= 0, np.floor(days), np.nan), edges=AGES, unit=" days")


def by_volume(group: np.ndarray, *, name: str = "queries of the user") -> Slicing:
    """Bands of VOLUMES by how many of the queries share a query's group: its user, or the item asked for."""
    _, back, times = np.unique(group, return_inverse=True, return_counts=True)
    return by_band(name, times[back.reshape(-1)], edges=VOLUMES)


def measure_slices(
    slicings: Sequence[Slicing],
    new: np.ndarray,
    base: np.ndarray | None = None,
    *,
    clusters: ClustersLike = None,
    min_queries: int = MIN_QUERIES,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Means with intervals in every slice, worst first.

    Args:
      slicings: over the same queries.
      new, base: float64 [query], the metric of two rows; NaN queries are left out, from both.
      clusters: what depends on each other, see `Clusters.of`: user, title group; None for single queries.
      min_queries: a slice of fewer queries, or of fewer than MIN_CLUSTERS clusters, is counted and not measured.

    Returns:
      {"slices": [{"slicing", "label", "queries", "clusters", "new": {"mean", "low", "high"}, "base": the same or None,
        "difference": the same and "low_all", "high_all" (simultaneous), or None, "verdict": "better", "worse",
        "undecided", "too few" or None}],
       "small": [{"slicing", "label", "queries", "clusters"}], "no_value": {slicing: queries},
       "measured": how many slices, "min_queries", "min_clusters", "confidence"}.
      Slices stand by the far end of their simultaneous interval: of the difference, or of `new` without `base`.

    Raises:
      UserError: lengths that differ, no slicing, infinite values.
    """
    new = np.asarray(new, np.float64)
    columns = [new] if base is None else [new, np.asarray(base, np.float64), new - np.asarray(base, np.float64)]
    values = np.stack(columns, axis=1)
    if not slicings:
        raise UserError("no slicing: expected at least one")
    for slicing in slicings:
        if slicing.codes.shape != new.shape:
            raise UserError(f"slicing {slicing.name!r}: {len(slicing.codes)} labels for {len(new)} queries")
    clusters = Clusters.of(clusters, len(new))
    known = ~np.isnan(values).any(axis=1)
    if not np.isfinite(values[known]).all():
        raise UserError("slices: infinite values; expected finite or NaN")
    out: dict[str, Any] = {"slices": [], "small": [], "no_value": {}}
    enough: list[tuple[dict[str, Any], np.ndarray, Clusters]] = []
    for slicing in slicings:
        if missing := int((known & (slicing.codes < 0)).sum()):
            out["no_value"][slicing.name] = missing
        for label, inside in zip(slicing.labels, _members(slicing, known), strict=True):
            of = clusters.take(inside)
            fewest = min(part.groups for part in of.ways)
            head = {"slicing": slicing.name, "label": label, "queries": len(inside), "clusters": fewest}
            if len(inside) >= min_queries and fewest >= MIN_CLUSTERS:
                enough.append((head, inside, of))
            elif len(inside):
                out["small"].append(head)
    out |= {"measured": len(enough), "min_queries": min_queries, "min_clusters": MIN_CLUSTERS}
    out["confidence"] = confidence
    all_confidence = 1 - (1 - confidence) / max(1, len(enough))
    for head, inside, of in enough:
        moments = clustered_moments(values[inside], of)
        alone = intervals_of(moments, queries=len(inside), confidence=confidence)
        decides = intervals_of(moments, queries=len(inside), confidence=all_confidence)[-1]
        row = {**head, "new": _plain(alone[0]), "base": None, "difference": None, "verdict": None}
        if base is not None:
            row["base"] = _plain(alone[1])
            row["difference"] = {**_plain(alone[2]), "low_all": decides.low, "high_all": decides.high}
            row["verdict"] = _verdict(decides)
        out["slices"].append((decides.high, row))
    out["slices"] = [row for _, row in sorted(out["slices"], key=lambda found: found[0])]
    return out


def _members(slicing: Slicing, known: np.ndarray) -> list[np.ndarray]:
    """The queries of each label that are known: int64 [m], ascending."""
    inside = np.flatnonzero(known & (slicing.codes >= 0))
    code = slicing.codes[inside]
    ends = np.cumsum(np.bincount(code, minlength=len(slicing.labels)))[:-1]
    return np.split(inside[np.argsort(code, kind="stable")], ends)


def _verdict(difference: Interval) -> str:
    if difference.low <= 0 <= difference.high:
        return "undecided"
    if difference.degrees + 1 < FEW_CLUSTERS:
        return "too few"
    return "better" if difference.low > 0 else "worse"


def _plain(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _band_names(edges: Sequence[float], highest: float, *, whole: bool, unit: str) -> tuple[str, ...]:
    def say(number: float) -> str:
        return f"{number:,.0f}" if whole else f"{number:,.4g}"

    names = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        if high is None:
            last = f"{say(low)} and more" if highest > low else say(low)
            names.append(f"{last}{unit}")
        elif whole:
            names.append(f"{say(low)}{unit}" if high - low <= 1 else f"{say(low)} to {say(high - 1)}{unit}")
        else:
            names.append(f"{say(low)} to under {say(high)}{unit}")
    return tuple(names)
