"""Interleaving: one list from two rankers, and which of them users prefer by what they tap in it.

Team-draft (Radlinski, Kurup and Joachims 2008): two captains pick in turn, a coin saying who goes first in each round;
each picks its best item that is not yet in the list. A tap is credited to the team of the item. Both rankers meet in
front of the same user at the same time, so far fewer users are needed than in an A/B test; it says which is preferred,
not by how much sales will change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.stats

from eval.experiments.effects import Looks, sequence_p, sequence_radius
from eval.experiments.moments import moments, sample
from eval.metrics.topk import select_top
from siglip_jax.errors import UserError

_BLOCK = 256
FEW_USERS = 30


def team_draft(
    first: np.ndarray, second: np.ndarray, *, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(items, the team of each: 0 for `first`, 1 for `second`) of one list.

    Args:
      first, second: int [m], items from the best on, each once; at least `length` different ones in both together.
    """
    rankings, places, picked = (first, second), [0, 0], [0, 0]
    items: list[int] = []
    teams: list[int] = []
    taken: set[int] = set()
    while len(items) < length:
        turn = int(picked[0] > picked[1]) if picked[0] != picked[1] else int(rng.integers(2))
        for team in (turn, 1 - turn):  # the other, where one has no item left
            ranking = rankings[team]
            while places[team] < len(ranking) and int(ranking[places[team]]) in taken:
                places[team] += 1
            if places[team] < len(ranking):
                item = int(ranking[places[team]])
                break
        else:
            break
        items.append(item)
        teams.append(team)
        taken.add(item)
        picked[team] += 1
    return np.array(items, np.int64), np.array(teams, np.int64)


def draft_lists(
    rankers: Sequence[Any], queries: np.ndarray, *, length: int, drafts: int, seed: int
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """(query item, draft, items, teams) of every query item; the query item itself is in no list.

    Args:
      rankers: two, as of `eval.rankers`, over the whole catalogue.
      drafts: lists of each query item, by other coins; requests take them in turn.

    Raises:
      UserError: not two rankers, or counts below 1.
    """
    if len(rankers) != 2 or min(length, drafts) < 1:
        raise UserError(
            f"{len(rankers)} stores, length {length}, drafts {drafts}: expected two stores and counts from 1"
        )
    for begin in range(0, len(queries), _BLOCK):
        asked = queries[begin : begin + _BLOCK]
        best = []
        for ranker in rankers:
            scores = np.array(ranker.scores(asked), np.float32)
            scores[np.arange(len(asked)), asked] = -np.inf
            best.append(select_top(scores, min(length, scores.shape[1] - 1)).columns)  # equal scores by row
        for place, query in enumerate(asked):
            for draft in range(drafts):
                rng = np.random.default_rng([seed, int(query), draft])
                items, teams = team_draft(best[0][place], best[1][place], length=length, rng=rng)
                yield int(query), draft, items, teams


def preference(
    users: np.ndarray, credits: np.ndarray, *, names: tuple[str, str], look: Looks, requests: int
) -> dict[str, Any]:
    """Which ranker is preferred, from requests in which something was tapped.

    Args:
      users: [r], the user of each of these requests.
      credits: int [r, 2], taps on items of each team.
      names: of the two rankers.
      requests: how many there were, tapped in or not.

    Returns:
      {"first", "second": names, "requests", "tapped", "users", "wins": {name: requests}, "ties", "preference": the
       share of requests won by the second minus that won by the first, "low", "high", "p", "sign_p": of the sign test
       over users, "verdict": the name preferred, "undecided" or "too few"}
    """
    if len(users) != len(credits) or credits.ndim != 2 or credits.shape[1] != 2:
        raise UserError(f"credits {list(credits.shape)} of {len(users)} requests: expected [request, 2]")
    score = np.sign(credits[:, 1] - credits[:, 0]).astype(np.float64)
    _, code = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(code.reshape(-1), score), np.bincount(code.reshape(-1)).astype(np.float64)
    out: dict[str, Any] = {
        "first": names[0],
        "second": names[1],
        "requests": requests,
        "tapped": len(score),
        "users": len(sums),
        "wins": {names[0]: int((score < 0).sum()), names[1]: int((score > 0).sum())},
        "ties": int((score == 0).sum()),
        "looks": look.looks,
        "confidence": look.confidence,
    }
    if len(sums) < 2:
        return {**out, "preference": None, "low": None, "high": None, "p": None, "sign_p": None, "verdict": "too few"}
    found = sample(moments(np.stack([sums, counts], axis=1)))
    error, level = float(np.sqrt(found.variance / found.n)), 1 - look.confidence
    decided = int((sums != 0).sum())
    sign_p = float(scipy.stats.binomtest(int((sums > 0).sum()), decided).pvalue) if decided else 1.0
    if not error > 0:
        reach, p = float("nan"), float("nan")
    elif look.looks == "one":
        reach = float(scipy.stats.t.isf(level / 2, found.n - 1)) * error
        p = 2 * float(scipy.stats.t.sf(abs(found.value) / error, found.n - 1))
    else:
        reach = sequence_radius(error, scale=look.lift, alpha=level)
        p = sequence_p(found.value, error, scale=look.lift)
    verdict = "undecided"
    if decided < FEW_USERS or not error > 0:
        verdict = "too few"
    elif p <= level:
        verdict = names[1] if found.value > 0 else names[0]
    ends = {"low": found.value - reach, "high": found.value + reach}
    return {**out, "preference": found.value, **ends, "p": p, "sign_p": sign_p, "verdict": verdict}


def interleaving_sentence(found: dict[str, Any]) -> str:
    """What an interleaving says, first of all."""
    return ("Simulated: " if found.get("simulated") else "") + _said(found)


def _said(found: dict[str, Any]) -> str:
    first, second = found["first"], found["second"]
    lost, won = (found["wins"][name] for name in (first, second))
    wins = f"{second} won {won:,} requests, {first} {lost:,}, {found['ties']:,} were even"
    if found["verdict"] == "too few":
        return f"Too few users to say which ranker they prefer: {wins}."
    share = 100 * found["preference"]
    ends = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}".replace("-", "−")
    text = f"{share:+.1f} points (interval {ends})".replace("-", "−")
    if found["verdict"] == "undecided":
        return f"Undecided whether users prefer {second} or {first}: {text}; {wins}."
    better = found["verdict"]
    worse = first if better == second else second
    return f"Users prefer {better} to {worse}: {second} minus {first} is {text} of the requests; {wins}."
