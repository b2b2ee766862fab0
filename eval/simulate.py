"""Simulated sessions, for demonstrations and tests where there is no log. They say nothing of any shop.

A user looks at an item and is shown a list that a noisy old ranker made; what stands lower is seen less, what suits is
tapped more, and each user favours some items beyond what attributes tell. Everything that comes out of them is called
simulated: every query and user id begins with "simulated-", and reports over such a log say so.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.protocols.relevance import Relevance
from siglip_jax.errors import UserError

PREFIX = "simulated-"
_DAY = 86_400_000_000  # microseconds


@dataclasses.dataclass(frozen=True)
class Sessions:
    """What is simulated.

    Attributes:
      queries, users: how many; `length` items a list.
      days: over which queries are spread, from `start` (ISO date) on.
      seen: an item at position p from 0 is looked at with probability (1 / (1 + p))^seen.
      noise: of the old ranker, in units of a grade.
      heavy: events of one user beyond all others; 0 for none.
    """

    queries: int = 2000
    users: int = 300
    length: int = 20
    days: int = 60
    start: str = "2024-04-01"
    seen: float = 1.0
    noise: float = 1.5
    heavy: int = 0
    seed: int = 0


def simulate_log(relevance: Relevance, ids: Sequence[str], sessions: Sessions) -> pa.Table:
    """Events as `eval.logs.log` reads them, in the order of time.

    Args:
      relevance: grades of n items for each other; a list is half of items with a grade, where there are so many.
      ids: n.

    Raises:
      UserError: fewer items than a list needs, or counts below 1.
    """
    n = len(ids)
    if n <= sessions.length or min(sessions.queries, sessions.users, sessions.length, sessions.days) < 1:
        raise UserError(f"simulated sessions: {n} items, {sessions}; expected counts from 1 and more items than a list")
    rng = np.random.default_rng(sessions.seed)
    activity = 1 / np.arange(1, sessions.users + 1)  # few users ask much
    users = rng.choice(sessions.users, sessions.queries, p=activity / activity.sum())
    asked = rng.integers(0, n, sessions.queries)
    first = int(np.datetime64(sessions.start, "us").astype(np.int64))
    times = first + np.sort(rng.integers(0, sessions.days * _DAY, sessions.queries))
    favourite = rng.random((sessions.users, 16)) < 0.25  # of 16 styles that no attribute names
    style = rng.integers(0, 16, n)
    rows: list[tuple[str, str, int, str, int | None, str, str]] = []
    for query, (user, item, time) in enumerate(zip(users, asked, times, strict=True)):
        grades = relevance.labels(np.array([item]))[0].astype(np.float64)
        shown = _shown(rng, grades, int(item), sessions)
        names = (f"{PREFIX}query-{query}", f"{PREFIX}user-{user}")
        chance = np.minimum(0.9, 0.04 + 0.15 * grades[shown] + 0.15 * favourite[user, style[shown]])
        position = np.arange(len(shown))
        tapped = rng.random(len(shown)) < chance / (1.0 + position) ** sessions.seen
        for place, candidate in enumerate(shown):
            rows.append((*names, int(time), ids[candidate], place, "impression", ids[item]))
            if tapped[place]:
                later = int(time) + 1_000_000 * (1 + place)
                for action, share in (("tap", 1.0), ("like", 0.3), ("purchase", 0.1)):
                    if rng.random() < share:
                        rows.append((*names, later, ids[candidate], place, action, ids[item]))
    for extra in range(sessions.heavy):
        item, candidate = rng.choice(n, 2, replace=False)
        names = (f"{PREFIX}query-heavy-{extra}", f"{PREFIX}user-heavy")
        time = first + int(rng.integers(0, sessions.days * _DAY))
        rows += [(*names, time, ids[candidate], 0, action, ids[item]) for action in ("impression", "tap")]
        rows.append((*names, time, ids[(candidate + 1) % n], 1, "impression", ids[item]))
    columns = ("query_id", "user_id", "time", "item_id", "position", "action", "query_item_id")
    table = pa.table({name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)})
    table = table.set_column(2, "time", table["time"].cast(pa.timestamp("us", tz="UTC")))
    return table.sort_by([("time", "ascending"), ("query_id", "ascending")])


def write_simulated_log(path: str | pathlib.Path, table: pa.Table) -> None:
    """Parquet, with the word in its metadata too."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"source": "simulated"}), path)


def _shown(rng: np.random.Generator, grades: np.ndarray, item: int, sessions: Sessions) -> np.ndarray:
    """Items of a list, as the old ranker put them."""
    others = np.delete(np.arange(len(grades)), item)
    good = others[grades[others] > 0]
    good = rng.permutation(good)[: sessions.length // 2]
    rest = rng.permutation(np.setdiff1d(others, good))[: sessions.length - len(good)]
    chosen = np.concatenate([good, rest])
    return chosen[np.argsort(-(grades[chosen] + sessions.noise * rng.standard_normal(len(chosen))), kind="stable")]
