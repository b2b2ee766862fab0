"""A simulated online experiment, to try `siglip-jax abtest` on and to see how offline and online figures go together.

Users look at items and are shown lists. Before the experiment all lists are those of one ranker, in an order of chance,
so that what is tapped tells of the items and not of their places; from its start on, half of the users get the lists of
another, and all in their rankers' order. What stands lower is seen less, what suits is tapped more, a tenth of the taps
are bought. It shows what would follow if users behaved so. Ids begin with "simulated-", and reports say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from eval.metrics.topk import select_top
from eval.protocols.relevance import Relevance
from eval.simulate import PREFIX
from siglip_jax.errors import UserError

_DAY = 86_400_000_000
_PLATFORMS = ("android", "ios", "web")
_BOUGHT = 0.1
_BLOCK = 512  # queries ranked at once


class _Ranks(Protocol):
    def scores(self, queries: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class ExperimentSessions:
    """What is simulated.

    Attributes:
      queries, users: how many; `length` items a list, the best of `pool` candidates.
      before, days: days before the experiment and of it; it starts on `start` (ISO date).
      seen: an item at position p from 0 is looked at with probability (1 / (1 + p))^seen.
    """

    queries: int = 20_000
    users: int = 4_000
    length: int = 10
    pool: int = 40
    before: int = 14
    days: int = 14
    start: str = "2024-07-01"
    seen: float = 0.7
    seed: int = 0


def simulate_experiment(
    relevance: Relevance, ids: Sequence[str], rankers: Mapping[str, _Ranks], sessions: ExperimentSessions
) -> pa.Table:
    """Events with variant, value (price) and platform, in the order of time.

    Args:
      relevance: grades of n items for each other.
      ids: n.
      rankers: {variant: what ranks}, two; the first is the control and makes all lists before the start.

    Raises:
      UserError: not two rankers, fewer items than a pool needs, or counts below 1.
    """
    counts = (sessions.queries, sessions.users, sessions.length, sessions.days)
    if len(rankers) != 2 or min(counts) < 1 or not sessions.length <= sessions.pool < len(ids):
        raise UserError(
            f"simulated experiment: {len(rankers)} rankers, {len(ids)} items, {sessions}; expected two rankers, counts "
            "from 1, and more items than the pool, which is no smaller than a list"
        )
    rng = np.random.default_rng(sessions.seed)
    n, names = len(ids), list(rankers)
    activity = rng.gamma(1.5, 1.0, sessions.users)
    user = rng.choice(sessions.users, sessions.queries, p=activity / activity.sum())
    asked = rng.integers(0, n, sessions.queries)
    start = int(np.datetime64(sessions.start, "us").astype(np.int64))
    span = (start - sessions.before * _DAY, start + sessions.days * _DAY)
    time = np.sort(rng.integers(*span, sessions.queries))
    variant = rng.integers(0, 2, sessions.users)
    shown_by = np.where(time < start, 0, variant[user])
    favourite = rng.random((sessions.users, 16)) < 0.25
    eager = rng.gamma(4, 0.25, sessions.users)  # how readily a user taps
    style, price = rng.integers(0, 16, n), np.round(rng.lognormal(3, 0.8, n), 2)
    lists, grades = _lists(rng, relevance, list(rankers.values()), asked, shown_by, time < start, sessions)
    chance = 0.02 + 0.10 * grades + 0.05 * favourite[user[:, None], style[lists]]
    position = np.arange(sessions.length)
    chance = np.minimum(0.9, chance * eager[user][:, None]) / (1.0 + position) ** sessions.seen
    tapped = rng.random(lists.shape) < chance
    bought = tapped & (rng.random(lists.shape) < _BOUGHT)
    parts = [_events(np.argwhere(np.ones_like(tapped)), "impression", 0)]
    parts += [_events(np.argwhere(tapped), "tap", 1), _events(np.argwhere(bought), "purchase", 2)]
    query, place, action, later = (np.concatenate([part[i] for part in parts]) for i in range(4))
    inside = time[query] >= start
    platform = np.array(_PLATFORMS, object)[rng.choice(3, sessions.users, p=[0.5, 0.35, 0.15])]
    item = lists[query, place]
    table = pa.table(
        {
            "query_id": [f"{PREFIX}query-{q}" for q in query],
            "user_id": [f"{PREFIX}user-{u}" for u in user[query]],
            "time": pa.array(time[query] + later * 1_000_000 * (1 + place), pa.timestamp("us", tz="UTC")),
            "item_id": [ids[i] for i in item],
            "position": pa.array(place, pa.int32()),
            "action": action.tolist(),
            "query_item_id": [ids[i] for i in asked[query]],
            "variant": [names[v] if there else None for v, there in zip(shown_by[query], inside, strict=True)],
            "value": pa.array(np.where(action == "purchase", price[item], np.nan), from_pandas=True),
            "platform": platform[user[query]].tolist(),
        }
    )
    return table.sort_by([("time", "ascending"), ("query_id", "ascending"), ("position", "ascending")])


def _events(where: np.ndarray, action: str, later: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(query, place, action, seconds after the list for each place) of the cells chosen."""
    return where[:, 0], where[:, 1], np.full(len(where), action, object), np.full(len(where), later)


def _lists(
    rng: np.random.Generator,
    relevance: Relevance,
    rankers: Sequence[_Ranks],
    asked: np.ndarray,
    shown_by: np.ndarray,
    shuffled: np.ndarray,
    sessions: ExperimentSessions,
) -> tuple[np.ndarray, np.ndarray]:
    """(items of each list [q, length], their grades): the best of a pool that holds good items, where there are any."""
    lists, grades = [], []
    for begin in range(0, len(asked), _BLOCK):
        queries = asked[begin : begin + _BLOCK]
        labels = relevance.labels(queries).astype(np.float64)
        labels[np.arange(len(queries)), queries] = -np.inf  # the item itself
        wanted = rng.random(labels.shape) + np.where(labels > 0, rng.random(labels.shape) < 0.5, 0)
        wanted[np.isinf(labels)] = -1
        pool = select_top(wanted, sessions.pool).columns
        scores = np.stack([ranker.scores(queries, pool) for ranker in rankers])
        chosen = scores[shown_by[begin : begin + _BLOCK], np.arange(len(queries))]
        order = np.argsort(-chosen, axis=1, kind="stable")[:, : sessions.length]
        shown = np.take_along_axis(pool, order, axis=1)
        early = shuffled[begin : begin + _BLOCK]
        shown[early] = rng.permuted(shown[early], axis=1)
        lists.append(shown)
        grades.append(np.take_along_axis(labels, shown, axis=1))
    return np.concatenate(lists), np.concatenate(grades)


def simulate_interleaved(
    relevance: Relevance, ids: Sequence[str], lists: pa.Table, sessions: ExperimentSessions
) -> pa.Table:
    """Events of users who are shown interleaved lists, each a random one of those given, with its list_id.

    Args:
      relevance: grades of n items for each other.
      ids: n.
      lists: as `siglip-jax interleave` writes them: list_id, query_item_id, position, item_id, ranker.

    Raises:
      UserError: counts below 1, or lists of other items.
    """
    if min(sessions.queries, sessions.users, sessions.days) < 1 or not lists.num_rows:
        raise UserError(f"simulated interleaving: {lists.num_rows} rows of lists, {sessions}; expected counts from 1")
    rng = np.random.default_rng(sessions.seed)
    row_of = {item: row for row, item in enumerate(ids)}
    drafted: dict[str, list[tuple[int, int]]] = {}
    for row in lists.select(["list_id", "query_item_id", "item_id"]).to_pylist():
        if not {row["query_item_id"], row["item_id"]} <= row_of.keys():
            raise UserError(f"simulated interleaving: list {row['list_id']!r} has items that the dataset's split lacks")
        drafted.setdefault(row["list_id"], []).append((row_of[row["query_item_id"]], row_of[row["item_id"]]))
    names, eager = list(drafted), rng.gamma(4, 0.25, sessions.users)
    start = int(np.datetime64(sessions.start, "us").astype(np.int64))
    times = start + np.sort(rng.integers(0, sessions.days * _DAY, sessions.queries))
    out: dict[str, list] = {name: [] for name in ("query_id", "user_id", "time", "list_id", "item_id", "action")}
    for query, time in enumerate(times):
        user, name = int(rng.integers(sessions.users)), names[rng.integers(len(names))]
        asked, items = drafted[name][0][0], np.array([item for _, item in drafted[name]])
        grades = relevance.labels(np.array([asked]))[0][items]
        chance = (0.02 + 0.10 * grades) * eager[user] / (1.0 + np.arange(len(items))) ** sessions.seen
        for item, tapped in zip(items, rng.random(len(items)) < np.minimum(chance, 0.9), strict=True):
            for action in ("impression", "tap")[: 1 + tapped]:
                cells = (f"{PREFIX}query-{query}", f"{PREFIX}user-{user}", int(time), name, ids[item], action)
                for column, cell in zip(out.values(), cells, strict=True):
                    column.append(cell)
    return pa.table({**out, "time": pa.array(out["time"], pa.timestamp("us", tz="UTC"))})
