"""Users as queries, for data such as MovieLens: earlier liked items against all that the user has not yet seen.

Each pair of user and item counts once, at its first event other than an impression, with its highest gain, or below 0
its lowest. Where repeats count, each of its instants does, and what a user has seen stays a candidate. Events of one
user at the same instant are put in an order drawn by a hash, so that no catalogue order decides which is last.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from eval.embeddings.vectors import Scorer
from eval.logs import Log, Queries
from eval.logs.queries import GAIN
from eval.rankers import Ranker
from siglip_jax.errors import UserError

PROFILES = ("mean", "last")
_BLOCK = 1 << 24  # scores of profile items held at once


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Who did something with what: parallel arrays [m], by user, then time."""

    users: np.ndarray  # int64, codes of the log
    items: np.ndarray  # int64, rows of the catalogue
    times: np.ndarray  # int64, microseconds since 1970
    gains: np.ndarray  # float32

    def __len__(self) -> int:
        return len(self.users)

    def only(self, chosen: np.ndarray) -> Pairs:
        return Pairs(self.users[chosen], self.items[chosen], self.times[chosen], self.gains[chosen])


@dataclasses.dataclass(frozen=True)
class History:
    """What each query's user liked and saw before it; of query i the items at starts[i]:starts[i + 1].

    `liked` is the profile: all liked items, or the last alone. A profile's score of an item is the mean of its items'
    scores, which for cosines ranks as the cosine to the mean of the unit vectors does, and which any ranker has.
    """

    liked_starts: np.ndarray
    liked: np.ndarray
    seen_starts: np.ndarray
    seen: np.ndarray

    def liked_of(self, query: int) -> np.ndarray:
        return self.liked[self.liked_starts[query] : self.liked_starts[query + 1]]

    def seen_of(self, query: int) -> np.ndarray:
        return self.seen[self.seen_starts[query] : self.seen_starts[query + 1]]

    def has_seen(self, queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        """bool [m], for pairs of query and item."""
        owner = np.repeat(np.arange(len(self.seen_starts) - 1), np.diff(self.seen_starts))
        n = 1 + max(int(items.max(initial=0)), int(self.seen.max(initial=0)))
        return np.isin(queries * n + items, owner * n + self.seen)

    def scores(self, ranker: Ranker, at: np.ndarray, *, n: int) -> np.ndarray:
        """float32 [b, n]: the mean over each profile; items equal to the ranker are equal to the last bit."""
        listed = np.unique(np.concatenate([self.liked_of(query) for query in at]))
        out = np.zeros((len(at), n))
        step = max(1, _BLOCK // n)
        for lo in range(0, len(listed), step):
            block = listed[lo : lo + step]
            of_items = ranker.scores(block)
            for place, query in enumerate(at):
                # Added up element by element: a matrix product could round equal items apart.
                for item in np.flatnonzero(np.isin(block, self.liked_of(query))):
                    out[place] += of_items[item]
        return (out / np.diff(self.liked_starts)[at][:, None]).astype(np.float32)

    def profiles(self, scorer: Scorer, at: np.ndarray) -> np.ndarray:
        """Mean of the profile's unit vectors: float32 [b, d], not normalised."""
        return np.stack([scorer.rows(self.liked_of(query)).mean(axis=0) for query in at])

    def norms(self, scorer: Scorer, at: np.ndarray) -> np.ndarray:
        """Of `profiles`: float32 [b]."""
        return np.linalg.norm(self.profiles(scorer, at), axis=1)


def read_pairs(log: Log, *, until: int | None = None, repeats: bool = False) -> Pairs:
    """Every pair of user and item of the catalogue with an event other than an impression, before `until`.

    repeats: a pair for each instant at which the user did something with the item, not for the first alone.
    """
    most = np.iinfo(np.int64).max if until is None else until
    users, items, times, gains = log.sql.arrays(
        f"select user, item, min(events.time) as time, {GAIN} as gain from events where action <> 'impression' "
        f"and item < ? and events.time < ? group by user, item{', events.time' * repeats}",
        [log.items, int(most)],
    )
    with np.errstate(over="ignore"):
        drawn = (items.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ (
            users.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        )
        drawn = (drawn ^ (drawn >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    order = np.lexsort([items, drawn >> np.uint64(16), times, users])
    users, items, times, gains = users[order], items[order], times[order], gains[order]
    return Pairs(users.astype(np.int64), items.astype(np.int64), times.astype(np.int64), gains.astype(np.float32))


def leave_one_out(
    pairs: Pairs, *, profile: str = "mean", since: int | None = None, repeats: bool = False
) -> tuple[Queries, History, np.ndarray]:
    """Each user's last liked item is held out; the query is the user at that moment.

    The profile is what was liked strictly before. What happened at the same instant, the same day of a log of days,
    tells nothing of what came first: it is in no profile, and no candidate.

    Args:
      since: only items liked from then on are held out.
      repeats: as for `read_pairs`: what was seen before stays a candidate.

    Returns:
      queries, their history, and which pairs are held out: bool [m].

    Raises:
      UserError: no user with two liked items, or an unknown profile.
    """
    liked = np.flatnonzero(pairs.gains > 0)
    last = np.ones(len(liked), bool)
    last[:-1] = pairs.users[liked][1:] != pairs.users[liked][:-1]
    targets = liked[last]
    early = pairs.times[targets] < (np.iinfo(np.int64).min if since is None else since)
    held_out = np.zeros(len(pairs), bool)
    held_out[targets[~early]] = True
    left_out = {"last liked item before the window": int(early.sum())} if early.any() else {}
    time = _time_of_target(pairs, held_out)
    before, seen = pairs.times < time, (pairs.times <= time) & ~held_out
    queries, history = _build(
        pairs, held_out, before, seen & ~(before & repeats), profile=profile, left_out=left_out, repeats=repeats
    )
    return queries, history, held_out


def time_split(
    pairs: Pairs, *, at: int, profile: str = "mean", repeats: bool = False
) -> tuple[Queries, History, np.ndarray]:
    """Everything liked from `at` on is held out; a user's query time is that of the last such item.

    Args, Returns and Raises as `leave_one_out`.
    """
    before = pairs.times < at
    held_out = ~before & (pairs.gains > 0)
    queries, history = _build(
        pairs, held_out, before, before & (not repeats), profile=profile, left_out={}, repeats=repeats
    )
    return queries, history, held_out


def split_time(pairs: Pairs, *, share: float = 0.8) -> int:
    """The time before which `share` of the pairs lie."""
    if not len(pairs):
        raise UserError("the log has no event but impressions on the catalogue's items: nothing to split by time")
    return int(np.quantile(pairs.times, share, method="lower"))


def popularity(pairs: Pairs, counted: np.ndarray, n: int) -> np.ndarray:
    """How many users liked each item, of the pairs counted: int64 [n]."""
    return np.bincount(pairs.items[counted & (pairs.gains > 0)], minlength=n)


def _time_of_target(pairs: Pairs, held_out: np.ndarray) -> np.ndarray:
    """Of each pair, when its user's held-out item was liked; the smallest int64 where there is none: int64 [m]."""
    time = np.full(int(pairs.users.max(initial=-1)) + 1, np.iinfo(np.int64).min)
    time[pairs.users[held_out]] = pairs.times[held_out]
    return time[pairs.users]


def _once(pairs: Pairs, where: np.ndarray) -> np.ndarray:
    """Of the pairs at these places, the last of the highest gain of each user and item, in the same order."""
    order = np.lexsort([np.arange(len(where)), pairs.gains[where], pairs.items[where], pairs.users[where]])
    users, items = pairs.users[where][order], pairs.items[where][order]
    last = np.ones(len(order), bool)
    last[:-1] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return where[np.sort(order[last])]


def _build(
    pairs: Pairs,
    held_out: np.ndarray,
    before: np.ndarray,
    seen_before: np.ndarray,
    *,
    profile: str,
    left_out: dict[str, int],
    repeats: bool,
) -> tuple[Queries, History]:
    """Users that have both an earlier liked item and a held-out one, as queries by time.

    Args:
      held_out, before, seen_before: bool [m], what is asked for, what may be in a profile, what is no candidate.
    """
    if profile not in PROFILES:
        raise UserError(f"config.evaluation.profile={profile!r}; expected {' or '.join(PROFILES)}")
    liked = before & (pairs.gains > 0)
    with_target, with_profile = np.unique(pairs.users[held_out]), np.unique(pairs.users[liked])
    users = np.intersect1d(with_target, with_profile)
    at_once = pairs.users[(pairs.gains > 0) & ~held_out & ~before]  # coarse times do not tell what came first
    together = len(np.intersect1d(np.setdiff1d(with_target, users), at_once))
    counts = {
        "all liked at one instant": together,
        "no liked item before": len(with_target) - len(users) - together,
        "nothing held out": len(np.unique(pairs.users)) - len(with_target) - left_out.get(_EARLY, 0),
    }
    left_out = {**left_out, **{reason: count for reason, count in counts.items() if count}}
    if not len(users):
        said = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no event"
        raise UserError(
            f"no user with a liked item both before and held out ({said}); give another time, finer times or more log"
        )
    last_time = np.full(int(users.max()) + 1, np.iinfo(np.int64).min)
    known = np.isin(pairs.users, users)
    np.maximum.at(last_time, pairs.users[held_out & known], pairs.times[held_out & known])
    users = users[np.argsort(last_time[users], kind="stable")]
    number = np.full(int(users.max()) + 1, -1)
    number[users] = np.arange(len(users))

    def lists(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts [q + 1], pair of each entry), in the order of the queries."""
        where = np.flatnonzero(chosen & known)
        where = _once(pairs, where) if repeats else where
        owner = number[pairs.users[where]]
        order = np.argsort(owner, kind="stable")
        return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(users)))]), where[order]

    starts, target = lists(held_out)
    liked_starts, liked_pairs = lists(liked)
    if profile == "last":
        liked_pairs = liked_pairs[liked_starts[1:] - 1]
        liked_starts = np.arange(len(users) + 1)
    seen_starts, seen = lists(seen_before)
    ids = np.array([str(user) for user in users], object)
    queries = Queries(
        ids=ids,
        list_ids=np.full(len(users), "", object),
        users=users,
        times=last_time[users],
        items=np.full(len(users), -1),
        starts=starts,
        candidates=pairs.items[target],
        gains=pairs.gains[target],
        positions=np.full(len(target), -1),
        left_out=left_out,
    )
    return queries, History(liked_starts, pairs.items[liked_pairs], seen_starts, pairs.items[seen])


_EARLY: Any = "last liked item before the window"
