"""What tells the queries of a log apart: the item asked for, who asked, from where and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from eval.logs import Live, Queries
from eval.protocols.prepare_queries import CountedPairs
from eval.statistics import Slicing
from eval.statistics.slices import by_age, by_popularity, by_value, by_volume

_DAY, _HOUR = 86_400_000_000, 3_600_000_000  # microseconds
_MONDAY = 4 * _DAY  # the first one of 1970, the 5th of January
_MOST_DAYS = 21  # of a trend by day; a longer one is by week
_HOURS = 6  # of a band of the day


def query_slicings(
    slicings: Sequence[Slicing],
    queries: Queries,
    live: Live,
    counted: CountedPairs | None,
    *,
    first_seen: np.ndarray,
) -> list[Slicing]:
    """By attributes of the query item, its age and popularity; by segments of the log, whether the user is new, the
    hour, and how much the user asks. None for profiles.

    Args:
      slicings: of the items.
      first_seen: int64 [users of the log], the time of each one's first event.
    """
    if not len(queries) or (queries.items < 0).any():
        return []
    found = [dataclasses.replace(slicing, codes=slicing.codes[queries.items]) for slicing in slicings]
    found += [by_value(name, values.tolist()) for name, values in queries.segments.items()]
    if counted is not None:
        found.append(by_popularity(counted.popularity(len(live.since))[queries.items]))
    if (days := live.age(queries.items, queries.times)).size and not np.isnan(days).all():
        found.append(by_age(days))
    returning = first_seen[queries.users] < queries.times
    found.append(Slicing("user", ("new", "returning"), returning.astype(np.int64)))
    return [*found, _by_hour(queries.times), by_volume(queries.users)]


def by_period(times: np.ndarray) -> Slicing:
    """By day, or by week (from Monday) where there are more than 21 days; in the order of time, UTC.

    Args:
      times: int64 [q], microseconds since 1970.
    """
    first, last = (int(times.min()), int(times.max())) if len(times) else (0, 0)
    by_day = last // _DAY - first // _DAY < _MOST_DAYS
    length, shift = (_DAY, 0) if by_day else (7 * _DAY, _MONDAY)
    periods, codes = np.unique((times - shift) // length, return_inverse=True)
    begins = (periods * length + shift).astype("datetime64[us]").astype("datetime64[D]")
    return Slicing("day" if by_day else "week from", tuple(map(str, begins)), codes.reshape(-1).astype(np.int64))


def _by_hour(times: np.ndarray) -> Slicing:
    labels = tuple(f"{hour:02d} to {hour + _HOURS - 1:02d}" for hour in range(0, 24, _HOURS))
    return Slicing("hour, UTC", labels, times % _DAY // _HOUR // _HOURS)
