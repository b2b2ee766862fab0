"""Which items could have been shown at a time: a shop's catalogue is never whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from eval.logs.log import Log
from eval.logs.log_times import times_of
from siglip_jax.errors import UserError

FIRST_SEEN = "first_seen"
_ALWAYS, _NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Live:
    """Item i is live at t when since[i] <= t < until[i]; microseconds since 1970, int64 [n].

    `rule` says in words where the times come from; `unknown` counts items without a first time, taken as always there.
    """

    since: np.ndarray
    until: np.ndarray
    rule: str
    unknown: int = 0

    def at(self, times: np.ndarray) -> np.ndarray:
        """bool [q, n]."""
        t = np.asarray(times)[:, None]
        return (self.since <= t) & (t < self.until)

    def age(self, items: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Days from an item's first time to each of the times: float64 [q], NaN where that is not known."""
        since = self.since[items]
        days = (np.asarray(times, np.float64) - since.astype(np.float64)) / 86_400e6
        return np.where(since == _ALWAYS, np.nan, days)

    def pairs(self, items: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Whether each item is live at its time: bool [m]."""
        return (self.since[items] <= times) & (times < self.until[items])


def live_items(
    columns: Mapping[str, Sequence[str]],
    ids: Sequence[str],
    *,
    live_from: str = "",
    live_until: str = "",
    log: Log | None = None,
) -> Live:
    """When each item of the catalogue is live.

    Args:
      columns: the catalogue's attributes.
      live_from: the attribute with the time an item came ("created_at"), "first_seen" for its first event in the log,
        or "" for always.
      live_until: the attribute with the time it left; where that is empty, and with "", it never did.

    Raises:
      UserError: no such attribute, or a value that is no time.
    """
    since, until, said, unknown = np.full(len(ids), _ALWAYS), np.full(len(ids), _NEVER), [], 0
    for what, name in (("live_from", live_from), ("live_until", live_until)):
        if name and name not in columns and not (what == "live_from" and name == FIRST_SEEN and log is not None):
            known = ", ".join(columns) or "none"
            raise UserError(f"config.evaluation.{what}={name!r}: no such attribute; the catalogue has {known}")
    if live_from in columns:
        since = times_of(columns[live_from], what=live_from, ids=ids)
        unknown = int((since == _ALWAYS).sum())
        said.append(f"from {live_from}")
    elif live_from and log is not None:
        items, first = log.sql.arrays("select item, min(time) from events where item < ? group by 1", [len(ids)])
        since = np.full(len(ids), _NEVER)  # what the log never shows was never there
        since[items] = first
        said.append("from its first event in the log")
    if live_until:
        until = times_of(columns[live_until], what=live_until, ids=ids)
        until = np.where(until == _ALWAYS, _NEVER, until)
        said.append(f"until {live_until}")
    return Live(since, until, " ".join(said) or "all items at all times", unknown)
